# SPDX-License-Identifier: GPL-2.0-or-later
"""Cost of calls: usage that servers report, prices from files, sums for each day, budgets.

Pure but for :mod:`gateway.billing.ledger`, which keeps the sums of a day on the disk.
"""

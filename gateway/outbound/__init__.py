# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that the gateway places: limits, destinations, callbacks."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The realtime side of a call: its life, failover and hand-over."""

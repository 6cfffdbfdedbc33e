# SPDX-License-Identifier: GPL-2.0-or-later
"""The SIP side of a call: answering, hang-up, transfer, hold, timers."""

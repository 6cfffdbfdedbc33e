# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls with other people's SIP: Asterisk, Kamailio, baresip. ``make interop`` runs them."""

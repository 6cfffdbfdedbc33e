# SPDX-License-Identifier: GPL-2.0-or-later
"""Which SIP requests get in, before pjsua makes calls of them."""

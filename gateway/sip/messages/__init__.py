# SPDX-License-Identifier: GPL-2.0-or-later
"""SIP messages as they come: header fields, session descriptions, INFO, Refer-To. Pure."""

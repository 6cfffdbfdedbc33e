# SPDX-License-Identifier: GPL-2.0-or-later
"""A SIP telephony gateway that joins phone calls to realtime speech-to-speech sessions."""

__version__ = "0.1.0"

# SPDX-License-Identifier: GPL-2.0-or-later
"""RTP: media ports, jitter buffer, quality, sounds."""

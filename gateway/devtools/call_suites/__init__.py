# SPDX-License-Identifier: GPL-2.0-or-later
"""Call suites: calls as people make them, with assertions on SIP, audio and words."""

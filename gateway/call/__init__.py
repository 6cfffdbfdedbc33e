# SPDX-License-Identifier: GPL-2.0-or-later
"""The heart: what a call decides, as pure code. No sockets, no threads, no clock."""

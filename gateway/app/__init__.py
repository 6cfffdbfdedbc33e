# SPDX-License-Identifier: GPL-2.0-or-later
"""The process: start, serve, drain and stop; which INVITE becomes a call; workers."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversation of a call: responses, playback and barge-in, transcript; the interface for rules."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversation of a call: responses, items, transcript, and the interface for rules."""

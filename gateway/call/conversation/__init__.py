# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said: responses, items, transcript, and what rules may do in a conversation."""

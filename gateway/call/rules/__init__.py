# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules about a conversation, a module each (see ``ConversationRule`` in ``conversation``)."""

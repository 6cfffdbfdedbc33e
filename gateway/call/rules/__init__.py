# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules about a conversation: each watches it for one thing, such as a budget or a silent caller.

They act through ``ConversationControl``; their interface is ``ConversationRule`` in
:mod:`gateway.call.conversation.control`.
"""

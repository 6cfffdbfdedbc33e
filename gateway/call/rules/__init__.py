"""Rules about a conversation, a module each (:class:`.rule.ConversationRule`)."""

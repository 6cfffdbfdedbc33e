"""Rules about a conversation, a module each; all are a :class:`gateway.call.rules.rule.ConversationRule`."""

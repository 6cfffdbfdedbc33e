"""TODO gateway/call/conversation."""

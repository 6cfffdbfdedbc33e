"""TODO gateway/call/session."""

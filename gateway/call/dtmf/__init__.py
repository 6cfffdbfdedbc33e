"""TODO gateway/call/dtmf."""

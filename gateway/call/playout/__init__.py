"""TODO gateway/call/playout."""

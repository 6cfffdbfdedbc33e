"""TODO gateway/call/leg."""

"""TODO gateway/call/tools."""

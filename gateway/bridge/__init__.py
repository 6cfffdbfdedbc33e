"""TODO gateway/bridge."""

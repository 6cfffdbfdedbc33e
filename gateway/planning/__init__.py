"""TODO gateway/planning."""

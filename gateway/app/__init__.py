"""TODO gateway/app."""

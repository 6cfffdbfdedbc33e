"""TODO gateway/outbound."""

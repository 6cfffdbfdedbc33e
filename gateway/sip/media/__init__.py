"""TODO gateway/sip/media."""

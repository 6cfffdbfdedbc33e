"""TODO gateway/sip/trunks."""

"""TODO gateway/sip/ingress."""

"""Calls that the gateway places: limits, destinations, callbacks."""

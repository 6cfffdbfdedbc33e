"""The commands of `gateway`."""

"""Reads the event log of a realtime session and shows it as a conversation."""

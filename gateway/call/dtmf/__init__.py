"""Digits that the caller presses, and digits that a tool asks for."""

"""Finds the route that an INVITE would take, with the reasons and the session."""

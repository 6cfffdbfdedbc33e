"""``gateway events``: the event log of a session, read as a conversation."""

from gateway.devtools.event_viewer.cli import command

__all__ = ["command"]

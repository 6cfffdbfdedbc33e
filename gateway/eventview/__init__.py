"""``gateway events``: the event log of a session, read as a conversation."""

from .cli import command

__all__ = ["command"]

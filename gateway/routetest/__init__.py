"""``gateway route-test``: which route an INVITE would take, why, and with which session."""

from .cli import command

__all__ = ["command"]

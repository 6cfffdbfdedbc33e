"""``gateway route-test``: which route an INVITE would take, why, and with which session."""

from gateway.devtools.route_test.cli import command

__all__ = ["command"]

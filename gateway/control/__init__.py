"""The control socket: a running gateway says how it is, to its own user on its own machine."""

from gateway.control.cli import command

__all__ = ["command"]

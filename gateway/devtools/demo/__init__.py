"""One scripted call through emulator and gateway on this machine, shown and checked."""

from gateway.devtools.demo.cli import command

__all__ = ["command"]

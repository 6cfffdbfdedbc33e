# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process tells systemd and its supervisor, and the signals that must not end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import structlog

HARMLESS = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGPIPE,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
)
"""Do nothing, or what somebody sets up later (SIGHUP: certificates)."""


def keep_running(on_usr1: Callable[[], None]) -> None:
    """Let none of :data:`HARMLESS` end the process; SIGUSR1 calls ``on_usr1``. Main thread.

    Handlers, not SIG_IGN: that would be inherited by the processes of MCP servers.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            on_usr1()

    for number in HARMLESS:
        signal.signal(number, handle)
        signal.siginterrupt(number, False)


log = structlog.get_logger("gateway")

_VARIABLE = "NOTIFY_SOCKET"


def notify(*lines: str) -> None:
    """Send e.g. ``READY=1`` to systemd; do nothing where ``NOTIFY_SOCKET`` is not set."""
    address = os.environ.get(_VARIABLE, "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.warning("gateway.notify_failed", error=str(error))


def without_notify(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment for a child process, which must not notify systemd."""
    return {name: value for name, value in environ.items() if name != _VARIABLE}


UP = b"up\n"
"""What a worker says, once, when it takes calls."""

WELL, ILL = b"well\n", b"ill\n"
"""What it says each second from then on."""


class SupervisorLink:
    """The worker's end.

    Args:
        descriptor: the socket, inherited from the supervisor; owned from now on.
        on_gone: told once when the supervisor is no more.
    """

    def __init__(self, descriptor: int, on_gone: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._socket.set_inheritable(False)
        self._on_gone = on_gone
        self._watching = True
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def say_up(self) -> None:
        """Report that calls are taken."""
        with contextlib.suppress(OSError):  # a supervisor that is gone is noticed by reading
            self._socket.send(UP)

    def say_well(self, well: bool) -> None:
        """Report whether the process is healthy, once a second."""
        with contextlib.suppress(OSError):
            self._socket.send(WELL if well else ILL)

    def close(self) -> None:
        """Close the socket."""
        self._unwatch()
        self._socket.close()

    def _read(self) -> None:
        try:
            if self._socket.recv(64):
                return  # nothing is ever sent to a worker
        except BlockingIOError:
            return
        except OSError:
            pass  # reset: gone
        self._unwatch()
        self._on_gone()

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            asyncio.get_running_loop().remove_reader(self._socket)

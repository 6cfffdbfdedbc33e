# SPDX-License-Identifier: GPL-2.0-or-later
"""A socket between supervisor and worker: the worker says that it is up, and either sees the other
go, however it went."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

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

# SPDX-License-Identifier: GPL-2.0-or-later
"""One worker process, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence

from gateway.app.workers.notify import without_notify
from gateway.app.workers.supervisor_link import ILL, UP


class Worker:
    """A process from its start to its end; a restart is another one.

    Args:
        index: which worker, counted from 0.
        command: program and arguments; ``--supervisor_link FD`` is added.
    """

    def __init__(self, index: int, command: Sequence[str]) -> None:
        self.index = index
        self.was_up = False
        self.well = True
        """What it says of itself."""
        self.started_at = 0.0
        """Time of the event loop's clock, s."""
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor_link: socket.socket | None = None

    @property
    def pid(self) -> int:
        """Process id, 0 before the start."""
        return 0 if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C is for the supervisor. Raises OSError."""
        self.started_at = asyncio.get_running_loop().time()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    "--supervisor-link",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=without_notify(dict(os.environ)),
                )
            except BaseException:
                ours.close()
                raise
        self._supervisor_link = ours

    async def came_up(self, seconds: float) -> bool:
        """Wait until it accepts calls; return False when it ended before. Raises TimeoutError."""
        assert self._supervisor_link is not None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            try:
                self.was_up = (await loop.sock_recv(self._supervisor_link, 64)).startswith(UP)
            except ConnectionError:
                self.was_up = False
        return self.was_up

    async def listen(self, seconds: float) -> None:
        """Read its health reports until it ends. Raises TimeoutError after ``seconds`` without."""
        assert self._supervisor_link is not None
        loop = asyncio.get_running_loop()
        while True:
            async with asyncio.timeout(seconds):
                try:
                    said = await loop.sock_recv(self._supervisor_link, 4096)
                except ConnectionError:
                    return
            if not said:
                return
            self.well = not said.endswith(ILL)

    async def ended(self) -> int:
        """Wait for its end; return the exit status, or minus the signal that ended it."""
        assert self._process is not None
        status = await self._process.wait()
        if self._supervisor_link is not None:
            self._supervisor_link.close()
            self._supervisor_link = None
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def how_ended(status: int) -> str:
    """Return an exit status in words: ``exit status 1`` or ``SIGKILL``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""A program of the lab while it runs: its log in a file, its end by process id."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

STOP_S = 10.0
"""How long a program may take to end after SIGTERM."""


class Process:
    """One program; ``log`` gets what it prints."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path) -> None:
        self.command = list(command)
        self.folder = folder
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Run it. It is killed with this process, should a test run be killed."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", *self.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder), "LC_ALL": "C"},
            )

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL: a crash, or a power cut."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    def tail(self, size: int = 4000) -> str:
        """The end of its log, for a failed test."""
        if not self.log.exists():
            return "(no log)"
        return self.log.read_bytes()[-size:].decode("utf-8", "replace")

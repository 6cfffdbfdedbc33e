"""The demo's processes: started, watched through their output, ended within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

END_SECONDS = 15.0
"""For a process to end after SIGTERM: it hangs up, waits for its BYE, ends the library."""

_KEPT_LINES = 12
"""Of the end of an output, to show when something has gone wrong."""


class ProcessError(Exception):
    """A process that did not do what the demo needs; the message shows the end of its output."""


class Child:
    """One process of the same interpreter, ``gateway ARGUMENTS``.

    Its output goes to a file, line by line, and by ``on_line``.
    """

    def __init__(self, name: str, arguments: list[str | Path], log: Path) -> None:
        self.name = name
        self.returncode: int | None = None
        self.on_line: Callable[[str], None] = lambda line: None
        self._arguments = [str(argument) for argument in arguments]
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._wanted: tuple[re.Pattern[str], asyncio.Future[re.Match[str]]] | None = None
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)

    async def start(self) -> None:
        """Start it. Raises OSError."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore::DeprecationWarning", "-m", "gateway", *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends them in order
            limit=1024 * 1024,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(), name=f"output of {self.name}")

    async def until(self, pattern: str, within: float) -> re.Match[str]:
        """Wait for a line that matches, from now on.

        Raises ProcessError when it does not come in ``within`` seconds, or the process ends first.
        """
        future: asyncio.Future[re.Match[str]] = asyncio.get_running_loop().create_future()
        self._wanted = (re.compile(pattern), future)
        assert self._reader is not None
        try:
            done, _ = await asyncio.wait(
                (future, self._reader), timeout=within, return_when=asyncio.FIRST_COMPLETED
            )
            if future.done():
                return future.result()
            why = "ended" if done else f"was not ready within {within:g} s"
            raise ProcessError(f"{self.name} {why}\n{self.tail()}")
        finally:
            self._wanted = None

    async def ended(self, within: float) -> int:
        """Wait for its own end; its exit status. Raises ProcessError when it goes on."""
        assert self._process is not None
        assert self._reader is not None
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(self._reader)
                self.returncode = await self._process.wait()
        except TimeoutError:
            raise ProcessError(f"{self.name} did not end within {within:g} s") from None
        return self.returncode

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not end it in ``END_SECONDS``."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(END_SECONDS):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self.returncode = process.returncode
        if self._reader is not None:
            # A grandchild that kept the pipe would keep the reader.
            await asyncio.wait((self._reader,), timeout=2.0)
            self._reader.cancel()

    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(f"  {line}" for line in self._last) or "  (no output)"

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._log.open("w", encoding="utf-8") as log:
            while True:
                try:
                    raw = await self._process.stdout.readline()
                except ValueError:  # a line beyond the limit is for the file's reader no loss
                    continue
                if not raw:
                    return
                line = raw.decode("utf-8", "replace").rstrip()
                log.write(line + "\n")
                log.flush()
                self._last.append(line)
                self.on_line(line)
                if self._wanted is not None and not self._wanted[1].done():
                    match = self._wanted[0].search(line)
                    if match is not None:
                        self._wanted[1].set_result(match)

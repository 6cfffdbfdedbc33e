# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of a run: started, asked, and ended for certain."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: where ``-m tests.load...`` is found."""
ANSWER_SECONDS = 30.0
STOP_SECONDS = 20.0


class Failed(Exception):  # noqa: N818 - names what happened to the run
    """A process of the run did not do its part; says which and what it said."""


class Worker:
    """A process, with its standard error in a file."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                arguments,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._buffer = b""

    @classmethod
    def python(cls, name: str, module: str, folder: Path, *arguments: str) -> Self:
        """A module of this package, in this interpreter."""
        return cls(name, [sys.executable, "-m", module, *arguments], folder)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def line(self, seconds: float = ANSWER_SECONDS) -> str:
        """The next line of its output; raises Failed without one."""
        deadline = time.monotonic() + seconds
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise Failed(f"{self.name}: no answer within {seconds:g} s ({self.tail()})")
            data = os.read(descriptor, 1 << 20)
            if not data:
                raise Failed(f"{self.name} ended ({self.tail()})")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def ask(self, do: str, within: float = ANSWER_SECONDS, **fields: Any) -> dict[str, Any]:
        """One command and its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Failed(f"{self.name}: {error} ({self.tail()})") from None
        answer: dict[str, Any] = json.loads(self.line(within))
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def tail(self) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text[-1500:].strip() or "no output"

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and SIGKILL when that takes too long; returns the exit status."""
        with contextlib.suppress(OSError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person sees while the build runs: step n of m, a moving counter, minutes and seconds."""

from __future__ import annotations

import collections
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from .errors import BuildError

_TAIL_LINES = 25


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Prints steps to stdout: in place on a terminal, line by line (sparsely) in a log.

    ``log`` gets the full output of every command that runs.
    """

    def __init__(self, total_steps: int, log: Path) -> None:
        self.log = log
        self.timings: dict[str, float] = {}
        self._total = total_steps
        self._step = 0
        self._title = ""
        self._begun = time.monotonic()
        self._live = sys.stdout.isatty()
        self._last_line = 0.0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announces a step, and says afterwards how long it took."""
        self._step += 1
        self._title = title
        begun = self._last_line = time.monotonic()
        self._say(f"[{self._step}/{self._total}] {title} …")
        yield
        taken = self.timings[title] = time.monotonic() - begun
        self._end_line()
        self._say(
            f"[{self._step}/{self._total}] {title}: done in {_clock(taken)}"
            f" (elapsed {_clock(time.monotonic() - self._begun)})"
        )

    def skip(self, steps: int) -> None:
        """Takes steps that turn out not to be needed off the total."""
        self._total -= steps

    def note(self, text: str) -> None:
        """One line of information inside a step."""
        self._end_line()
        self._say(f"      {text}")

    def count(self, done: int, total: int, what: str) -> None:
        """Moves the counter; in a log a line at most every 15 seconds."""
        now = time.monotonic()
        text = f"      {done}/{total} {what} (elapsed {_clock(now - self._begun)})"
        if self._live:
            sys.stdout.write(f"\r\033[K{text[:110]}")
            sys.stdout.flush()
        elif now - self._last_line >= 15:
            self._say(text)
            self._last_line = now

    def _end_line(self) -> None:
        if self._live:
            sys.stdout.write("\r\033[K")

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        what: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Runs a command with its output in the log, and returns the last lines of it.

        Raises BuildError with the last lines and the log's path when it fails or cannot start.
        """
        words = [str(word) for word in command]
        tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        with self.log.open("a", encoding="utf-8", errors="replace") as log:
            print("$", *words, file=log, flush=True)
            try:
                process = subprocess.Popen(
                    words,
                    cwd=cwd,
                    env=dict(env if env is not None else os.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            except OSError as error:
                raise BuildError(f"{what}: cannot run {words[0]}: {error.strerror}") from error
            with process:
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        log.write(line)
                        tail.append(line.rstrip())
                        if on_line is not None:
                            on_line(line)
                except BaseException:
                    process.terminate()
                    raise
        if process.returncode:
            shown = "\n".join(f"      | {line}" for line in tail)
            raise BuildError(
                f"{what} failed (exit {process.returncode}); the end of its output, "
                f"all of it in {self.log}:\n{shown}"
            )
        return list(tail)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The one thread that signalling runs on.

pjsip gets no worker threads: this thread polls it, so every signalling callback comes here, and
runs what other threads post, so every call into pjsip comes from here too. The event loop never
touches pjsip; media frames have pjmedia's own clock thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

log = structlog.get_logger("sip")

_T = TypeVar("_T")


POLL_MS = 5
"""Longest wait for a SIP message before posted commands are looked at, ms."""

MAX_COMMANDS = 100_000
"""Posted and not yet run. Each call posts a handful in its life; only a hung thread gets here."""

LOG_SECONDS = 1.0
"""At most one line in the log for what turns raise, in so many seconds."""


class SipThread:
    """Polls pjsip, runs posted commands, and does the housekeeping, in turns, on one thread until
    told to stop.

    Args:
        poll: handles pjsip's events for at most the given ms.
        housekeeping: called after every turn, outside all callbacks.
    """

    def __init__(self, poll: Callable[[int], Any], housekeeping: Callable[[], None]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """That :meth:`to_loop` runs callbacks on."""
        self._poll = poll
        self._housekeeping = housekeeping
        self._commands: deque[Callable[[], object]] = deque()
        self._stopping = False
        self._ended = ""
        self._polled = 0.0
        self._thread: threading.Thread | None = None
        self.failures = 0
        """Parts of turns that raised something."""
        self._next_log = 0.0
        self.dropped = 0
        """Commands refused because the queue was full."""

    def start(self, first: Callable[[], None], last: Callable[[], None]) -> None:
        """Start the thread. ``first`` runs before the first turn, ``last`` after the last one, also
        where ``first`` raises: then there are no turns."""

        def run() -> None:
            try:
                first()
            except BaseException:
                last()
                return
            try:
                self._turn_until_stopped()
            except BaseException as error:
                self._ended = f"ended: {type(error).__name__}: {error}"
                log.exception("sip.thread_ended")
            finally:
                last()

        self._thread = threading.Thread(target=run, name="sip", daemon=True)
        self._thread.start()

    def post(self, command: Callable[[], object]) -> None:
        """Run ``command`` on the SIP thread, within a turn (5 ms), after what was posted before;
        its exception is logged. Dropped, and counted, where ``MAX_COMMANDS`` wait. Any thread."""
        if len(self._commands) >= MAX_COMMANDS:
            self.dropped += 1
            return
        self._commands.append(command)

    @property
    def waiting(self) -> int:
        """Return how many commands are queued."""
        return len(self._commands)

    def to_loop(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` on the event loop, soon, after what was given before; dropped
        before the loop is known and once it is closed. Any thread."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(callback, *args)

    def answer(
        self, future: asyncio.Future[_T], function: Callable[[], _T]
    ) -> BaseException | None:
        """Run a function on this thread, and give its result or exception to a future of the event
        loop, unless that is done by then.

        Returns the exception that it raised, or None.
        """
        try:
            result = function()
        except BaseException as error:
            raised = error
            self.to_loop(lambda: None if future.done() else future.set_exception(raised))
            return raised
        self.to_loop(lambda: None if future.done() else future.set_result(result))
        return None

    def trouble(self, seconds: float) -> str:
        """Return why the thread carries no calls: ended, or no poll for ``seconds``; "" if it is
        well.

        Any thread may ask.
        """
        if self._ended or not self._polled:
            return self._ended
        silent = time.monotonic() - self._polled
        return f"nothing polled for {silent:.0f} s" if silent >= seconds else ""

    def stop(self) -> None:
        """Leave the turns after the commands already posted; does not wait. Any thread."""
        self.post(self._stop_now)

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end at most ``timeout`` seconds; True when it is gone, or was never
        started."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _stop_now(self) -> None:
        """End the turns after this one."""
        self._stopping = True

    def _turn_until_stopped(self) -> None:
        """Poll pjsip, run the queued commands and the housekeeping, again and again."""
        while not self._stopping:
            if self._run(lambda: self._poll(POLL_MS), "poll"):
                self._polled = time.monotonic()
            for _ in range(len(self._commands)):
                self._run(self._commands.popleft(), "command")
            self._run(self._housekeeping, "housekeeping")

    def _run(self, what: Callable[[], Any], part: str) -> bool:
        """Run one part of a turn; return whether it succeeded. An exception is counted, and logged
        with ``part`` at most once in ``LOG_SECONDS``."""
        try:
            what()
            return True
        except Exception:
            self.failures += 1
            now = time.monotonic()
            if now >= self._next_log:  # a turn comes every 5 ms
                self._next_log = now + LOG_SECONDS
                log.exception("sip.turn_failed", part=part, count=self.failures)
            return False

# SPDX-License-Identifier: GPL-2.0-or-later
"""Health of the process: SIP thread, media clock, event loop, background tasks.

Checked once a second. A failure after which no call can be carried ends the process, so that its
supervisor starts it again; any other is reported by ``gateway status`` and to systemd.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from gateway.tasks import TaskSet

log = structlog.get_logger("gateway")

LOOK_SECONDS = 1.0

STALL_SECONDS = 1.0
"""The event loop late by so much is a line in the log: every call stood still."""

HUNG_SECONDS = 20.0
"""An event loop or a SIP thread that has not turned for so long is not waited for any more."""

SILENT_CLOCK_SECONDS = 5.0
"""A media clock that brings nothing for so long, while calls have media, has stopped."""


class Health:
    """Keeps what has failed in this process, by the name of the part.

    Args:
        sip: what is wrong with the SIP thread; empty while nothing is.
        beats: how often the media clock has brought audio; None while no call has media.
        on_look: told each second whether all is well.
        on_unfit: told once, with the reason, that no call can be carried any more.
    """

    def __init__(
        self,
        sip: Callable[[], str],
        beats: Callable[[], int | None],
        on_look: Callable[[bool], None],
        on_unfit: Callable[[str], None],
    ) -> None:
        self.problems: dict[str, str] = {}
        self._sip = sip
        self._beats = beats
        self._on_look = on_look
        self._on_unfit = on_unfit
        self._stalls = 0
        self._longest_stall = 0.0
        self._last_beats: int | None = None
        self._silent_since = 0.0
        self._tasks = TaskSet()

    def start(self) -> None:
        """Start looking, once a second."""
        self._tasks.serve(self._run, "health")

    async def stop(self) -> None:
        """Stop looking."""
        await self._tasks.cancel()
        faulthandler.cancel_dump_traceback_later()

    def failed(self, part: str, error: object) -> None:
        """Report that a part of the process has failed, from now until the process ends."""
        self.problems[part] = str(error)
        log.error("gateway.not_well", part=part, error=str(error))

    def on_unhandled(self, _loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Log what nobody has caught: the event loop's exception handler."""
        error, task = context.get("exception"), context.get("background")
        log.error(
            "gateway.unhandled",
            what=context.get("message"),
            exc_info=error if isinstance(error, BaseException) else None,
        )
        if isinstance(task, asyncio.Task):
            self.failed(task.get_name(), f"{type(error).__name__}: {error}")

    def as_json(self) -> dict[str, Any]:
        """Return the state of the process for ``gateway status``."""
        return {
            "well": not self.problems,
            "problems": dict(self.problems),
            "loop_stalls": self._stalls,
            "longest_loop_stall_seconds": round(self._longest_stall, 1),
        }

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # By a thread that needs no interpreter: also where something never gives it back.
            faulthandler.dump_traceback_later(HUNG_SECONDS, exit=True)
            began = loop.time()
            await asyncio.sleep(LOOK_SECONDS)
            late = loop.time() - began - LOOK_SECONDS
            if late >= STALL_SECONDS:
                self._stalls += 1
                self._longest_stall = max(self._longest_stall, late)
                log.error("gateway.loop_stalled", seconds=round(late, 1))
            self._look(loop.time())

    def _look(self, now: float) -> None:
        unfit = {"SIP thread": self._sip(), "media clock": self._clock(now)}
        for part, error in unfit.items():
            if error and part not in self.problems:
                self.failed(part, error)
                self._on_unfit(f"{part}: {error}")
        self._on_look(not self.problems)

    def _clock(self, now: float) -> str:
        beats = self._beats()
        if beats is None or beats != self._last_beats:
            self._last_beats, self._silent_since = beats, now
            return ""
        silent = now - self._silent_since
        return f"no beat for {silent:.0f} s" if silent >= SILENT_CLOCK_SECONDS else ""

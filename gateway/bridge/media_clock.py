# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves audio between all legs and all sessions, fifty times a second.

pjmedia's clock thread wakes the event loop once per beat, not once per call: each wake-up costs a
system call and a turn of the loop, however many calls it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

log = structlog.get_logger("media")

BUSY_CALLS = 64
"""From this many calls on, each is served on every other beat, half of them at a time: its audio
goes out in messages of 40 ms. A message costs the same whatever its length, most of it in the
kernel; the price is 10 ms of delay on average, at a load where there is more to win."""


class MediaClock:
    """Calls every registered function after the media clock has ticked.

    :meth:`wake` belongs to the media clock thread; everything else to the event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._halves: tuple[set[Callable[[], None]], set[Callable[[], None]]] = (set(), set())
        self.beats = 0
        self._scheduled = False
        self._faulty: set[Callable[[], None]] = set()
        self.faults = 0
        """Exceptions of moves; each is a defect."""

    def add(self, move: Callable[[], None]) -> None:
        """Call ``move`` from the next beat on."""
        first, second = self._halves
        if move not in first and move not in second:
            (second if len(second) < len(first) else first).add(move)

    def remove(self, move: Callable[[], None]) -> None:
        """Do not call ``move`` any more."""
        for half in self._halves:
            half.discard(move)
        self._faulty.discard(move)

    def wake(self) -> None:
        """Schedule a beat: a frame came. May be called from any thread."""
        if not self._scheduled and not self._loop.is_closed():
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._beat)

    def _beat(self) -> None:
        # Cleared first: a frame that comes while we run gets a beat of its own.
        self._scheduled = False
        self.beats += 1
        first, second = self._halves
        if len(first) + len(second) < BUSY_CALLS:
            self._move(first)
            self._move(second)
        else:
            self._move(self._halves[self.beats % 2])

    def _move(self, half: set[Callable[[], None]]) -> None:
        for move in tuple(half):
            if move not in half:
                continue  # its call ended in this beat
            try:
                move()
            except Exception:
                # One call's defect must not silence the others; said once, not every 20 ms.
                self.faults += 1
                if move not in self._faulty:
                    self._faulty.add(move)
                    log.exception("media.fault")

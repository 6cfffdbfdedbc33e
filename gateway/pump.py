"""The beat that moves audio between all legs and all sessions, fifty times a second.

pjmedia's clock thread wakes the event loop once per beat, not once per call: each wake-up costs a
system call and a turn of the loop, however many calls it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

log = structlog.get_logger("media")


class MediaPump:
    """Calls every registered function after the media clock has ticked.

    :meth:`wake` belongs to the media clock thread; everything else to the event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._moves: set[Callable[[], None]] = set()
        self._scheduled = False
        self._faulty: set[Callable[[], None]] = set()
        self.faults = 0
        """Exceptions of moves; each is a defect."""

    def add(self, move: Callable[[], None]) -> None:
        """Call ``move`` on every beat."""
        self._moves.add(move)

    def remove(self, move: Callable[[], None]) -> None:
        """Call it no more."""
        self._moves.discard(move)
        self._faulty.discard(move)

    def wake(self) -> None:
        """A frame came. From any thread; returns at once."""
        if not self._scheduled and not self._loop.is_closed():
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._beat)

    def _beat(self) -> None:
        # Cleared first: a frame that comes while we run gets a beat of its own.
        self._scheduled = False
        for move in tuple(self._moves):
            if move not in self._moves:
                continue  # its call ended in this beat
            try:
                move()
            except Exception:
                # One call's defect must not silence the others; said once, not every 20 ms.
                self.faults += 1
                if move not in self._faulty:
                    self._faulty.add(move)
                    log.exception("media.fault")

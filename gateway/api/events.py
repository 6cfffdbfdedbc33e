# SPDX-License-Identifier: GPL-2.0-or-later
"""The feed of events of a worker's calls, and the stream of the events of all workers."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from gateway.api.siblings import LOOK_SECONDS, Siblings

MAX_EVENTS = 1000
"""Events that a follower may be behind; one that is further behind is told how many it missed."""
MAX_FOLLOWERS = 64
POSITION = "feed.position"
"""Type of what a worker says first to another that follows its events: behind which they come."""


class EventFeed:
    """Numbers events and hands them out. Lives on the event loop."""

    def __init__(self, boot: str) -> None:
        self.followers = 0
        self.ending = {False: asyncio.Event(), True: asyncio.Event()}
        """Set when the server of the address, or of the Unix socket, ends its followers."""
        self._boot = boot
        self._events: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=MAX_EVENTS)
        self._last = 0
        self._pulse = asyncio.Event()

    def join(self) -> bool:
        """Take a place among the followers, until :meth:`leave`; False where none is free."""
        if self.followers >= MAX_FOLLOWERS:
            return False
        self.followers += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self.followers -= 1

    def add(self, event: Mapping[str, Any]) -> None:
        """An event of a call."""
        self._last += 1
        self._events.append((self._last, event))
        self._pulse.set()
        self._pulse = asyncio.Event()

    def position(self, after: str = "") -> str:
        """The id behind which :meth:`follow` begins."""
        return f"{self._boot}.{self._resumed(after)[0]}"

    def follow(self, after: str = "") -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        """Yield id and event, from the one behind ``after`` on, or from now on; never ends.

        Where events between are no longer there, or ``after`` is of another process, the first
        event is ``feed.gap`` with how many were missed, as far as that is known.

        Args:
            after: an id, or those of several processes with commas between: of this one, its own.
        """
        return self._follow(*self._resumed(after))

    def _resumed(self, after: str) -> tuple[int, bool]:
        """Return the number of the last event that was seen, and whether that is not known."""
        own = [one for one in after.split(",") if one.partition(".")[0] == self._boot]
        number = own[0].partition(".")[2] if own else ""
        told = int(number) if re.fullmatch("[0-9]{1,18}", number) else -1
        if 0 <= told <= self._last:
            return told, False
        return (self._last - len(self._events), True) if after else (self._last, False)

    async def _follow(
        self, seen: int, unknown: bool
    ) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        if unknown:
            yield f"{self._boot}.{seen}", {"type": "feed.gap", "missed": None}
        while True:
            oldest = self._events[0][0] if self._events else self._last + 1
            if seen < oldest - 1:
                missed, seen = oldest - 1 - seen, oldest - 1
                yield f"{self._boot}.{seen}", {"type": "feed.gap", "missed": missed}
            for number_of_event, event in [one for one in self._events if one[0] > seen]:
                seen = number_of_event
                yield f"{self._boot}.{seen}", event
            pulse = self._pulse
            if seen == self._last:
                await pulse.wait()


Coming: TypeAlias = tuple[Path | None, str, Mapping[str, Any]]
"""Worker (None: this one), id and event."""


async def merged(
    feed: EventFeed, siblings: Siblings, after: str
) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
    """Yield id and event of all workers, as :meth:`EventFeed.follow` does for one.

    The first, without an id, says that each of them is followed, or does not answer. An id names
    the last event of each worker, so that a follower resumes at any of them.
    """
    coming: asyncio.Queue[Coming] = asyncio.Queue(MAX_EVENTS)
    at: dict[Path | None, str] = {None: feed.position(after)}
    placed: dict[Path, asyncio.Event] = {path: asyncio.Event() for path in siblings.sockets}
    own = feed.follow(after)

    async def take_own() -> None:
        async for number, event in own:
            await coming.put((None, number, event))

    async def take(path: Path) -> None:
        async for number, event in siblings.events(path, after):
            if event["type"] == POSITION:
                at[path] = number
                placed[path].set()
            else:
                await coming.put((path, number, event))

    tasks = [asyncio.create_task(take_own(), name="events")]
    tasks += [asyncio.create_task(take(path), name=f"events of {path}") for path in placed]
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await asyncio.gather(*(one.wait() for one in placed.values()))
        yield "", {}
        while True:
            path, number, event = await coming.get()
            at[path] = number
            yield ",".join(at.values()), event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await own.aclose()

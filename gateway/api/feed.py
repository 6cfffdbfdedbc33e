# SPDX-License-Identifier: GPL-2.0-or-later
"""The last events of all calls, for those who follow them."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any

MAX_EVENTS = 1000
"""Events that a follower may be behind; one that is further behind is told how many it missed."""
MAX_FOLLOWERS = 64


class EventFeed:
    """Numbers events and hands them out. Lives on the event loop."""

    def __init__(self, boot: str) -> None:
        self.followers = 0
        self._boot = boot
        self._events: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=MAX_EVENTS)
        self._last = 0
        self._pulse = asyncio.Event()

    def add(self, event: Mapping[str, Any]) -> None:
        """An event of a call."""
        self._last += 1
        self._events.append((self._last, event))
        self._pulse.set()
        self._pulse = asyncio.Event()

    async def follow(self, after: str = "") -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        """Yield id and event, from the one behind ``after`` on, or from now on; never ends.

        Where events between are no longer there, or ``after`` is of another process, the first
        event is ``feed.gap`` with how many were missed, as far as that is known.
        """
        boot, _, number = after.partition(".")
        seen = self._last
        if after:
            told = int(number) if re.fullmatch("[0-9]{1,18}", number) else -1
            known = boot == self._boot and 0 <= told <= self._last
            seen = told if known else self._last - len(self._events)
            if not known:
                yield f"{self._boot}.{seen}", {"type": "feed.gap", "missed": None}
        self.followers += 1
        try:
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
        finally:
            self.followers -= 1

# SPDX-License-Identifier: GPL-2.0-or-later
"""How much one source may ask for, and how often the log says so. Pure: time comes in."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_SOURCES = 4096
"""Sources remembered; the one not heard of for longest is forgotten first, and starts afresh."""


class TokenBucket:
    """``rate`` a second in the long run, ``burst`` at once."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._left = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """One more, if there is one left."""
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class SourceBuckets:
    """A bucket for each source."""

    def __init__(self, max_sources: int = MAX_SOURCES) -> None:
        self._max = max_sources
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, source: str, rate: float, burst: float, now: float) -> bool:
        """One more of ``source``, if its bucket has one; a ``rate`` of 0 is no limit."""
        if not rate:
            return True
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= self._max:
                self._buckets.popitem(last=False)
            bucket = self._buckets[source] = TokenBucket(rate, burst, now)
        else:
            self._buckets.move_to_end(source)
        return bucket.take(now)


REPEAT_SECONDS = 60.0
"""A source that is refused on and on has a line with a count this often."""

MAX_REFUSALS = 1024
"""Pairs of rule and source that are counted apart; beyond, the oldest has its line early."""

LINES_PER_SECOND = 5.0
LINES_AT_ONCE = 50
"""Lines in all. A flood from made-up addresses gets one line with its sum each minute instead."""

Write = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class _Logged:
    since: float
    repeated: int = 0


class RefusalLog:
    """Counts refusals by rule and says them. Lives on the SIP thread; ``by_rule`` may be read.

    Args:
        write: writes one line with these fields.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._logged: OrderedDict[tuple[str, str], _Logged] = OrderedDict()
        self._lines: TokenBucket | None = None
        self._unlogged = 0
        self._unlogged_since = 0.0
        self.by_rule: Counter[str] = Counter()
        """Requests refused since the start, by rule."""
        self.unanswered = 0
        """Of these, how many got no answer because their source had too many already."""

    def note(self, rule: str, source: str, now: float, **fields: Any) -> None:
        """One refusal of ``source`` (an address without port) by ``rule``."""
        self.by_rule[rule] += 1
        key = (rule, source)
        entry = self._logged.get(key)
        if entry is not None:
            entry.repeated += 1
            return
        if len(self._logged) >= MAX_REFUSALS:
            self._release(now)
        self._logged[key] = _Logged(now)
        self._say({"rule": rule, "source": source, **fields}, now)

    def tick(self, now: float) -> None:
        """Say what has been counted for long enough. To be called about once a second."""
        while self._logged and next(iter(self._logged.values())).since <= now - REPEAT_SECONDS:
            self._release(now)
        if self._unlogged and now - self._unlogged_since >= REPEAT_SECONDS:
            self._write({"rule": "several", "source": "many", "repeated": self._unlogged})
            self._unlogged = 0

    def _release(self, now: float) -> None:
        (rule, source), entry = self._logged.popitem(last=False)
        if not entry.repeated:
            return
        seconds = round(now - entry.since)
        line = {"rule": rule, "source": source, "repeated": entry.repeated, "seconds": seconds}
        self._say(line, now)
        if entry.since <= now - REPEAT_SECONDS:
            self._logged[rule, source] = _Logged(now)  # it goes on: the next line is a minute away

    def _say(self, fields: Mapping[str, Any], now: float) -> None:
        if self._lines is None:
            self._lines = TokenBucket(LINES_PER_SECOND, LINES_AT_ONCE, now)
        if self._lines.take(now):
            self._write(fields)
            return
        if not self._unlogged:
            self._unlogged_since = now
        self._unlogged += 1

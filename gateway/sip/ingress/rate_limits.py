# SPDX-License-Identifier: GPL-2.0-or-later
"""How much one source may ask for: token buckets in a table with a bound. Pure: time comes in."""

from __future__ import annotations

from collections import OrderedDict

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

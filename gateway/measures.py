# SPDX-License-Identifier: GPL-2.0-or-later
"""Distributions, labels and mappings with a bound, and trace ids of calls (W3C Trace Context).

Counting a value is cheap enough to do for every packet.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

LAG = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.1, 0.25, 0.5, 1.0)
"""Bounds (s) of delays within the process: a frame of audio is 0.02."""
SESSION_OPEN = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
REQUEST = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds (s) of HTTP requests."""

OTHER = "other"
MAX_VALUES = 100
"""Values that a label has; further ones are ``other``."""


class Distribution:
    """Counts values by upper bounds, as a histogram of Prometheus does. Of one thread."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values up to each bound and above the one before; the last: above all."""
        self.total = 0.0
        """Sum of the values."""

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


_K = TypeVar("_K")
_V = TypeVar("_V")


class BoundedDict(OrderedDict[_K, _V]):
    """Mapping of at most ``most`` entries: one more drops the entry that was set longest ago."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: _K, value: _V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)


Reading = tuple[str, Mapping[str, str], float | Distribution]
"""Name, labels and value of a metric."""


class Labels:
    """Values of one label: known ones, and the first that come until there are too many."""

    def __init__(self, known: Iterable[str] = (), *, closed: bool = False) -> None:
        self.values: set[str] = set()
        self._closed = closed
        self.add(known)

    def add(self, known: Iterable[str]) -> None:
        """Make further values known, as far as there is room for them."""
        for value in known:
            if len(self.values) < MAX_VALUES:
                self.values.add(value)

    def of(self, value: str) -> str:
        """Return the label's value to use: this one, or ``other`` once there are too many."""
        if value in self.values or not value:
            return value
        if self._closed or len(self.values) >= MAX_VALUES:
            return OTHER
        self.values.add(value)
        return value


def trace_id_of(call_id: str) -> str:
    """Return the id of the trace of a call: 32 hexadecimal digits."""
    return hashlib.sha256(f"trace {call_id}".encode()).hexdigest()[:32]


def span_id_of(trace_id: str, part: str = "") -> str:
    """Return the id of a span of that trace: 16 hexadecimal digits; of the call without a part."""
    return hashlib.sha256(f"{trace_id} {part}".encode()).hexdigest()[:16]


def traceparent(trace_id: str, part: str = "") -> str:
    """Return the field of that name (W3C Trace Context) for what that span asks of others.

    Empty without a trace.
    """
    return f"00-{trace_id}-{span_id_of(trace_id, part)}-01" if trace_id else ""

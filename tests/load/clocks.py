# SPDX-License-Identifier: GPL-2.0-or-later
"""Time that all processes of a run share: CLOCK_MONOTONIC, in nanoseconds.

The kernel stamps arriving packets with CLOCK_REALTIME (SO_TIMESTAMPNS), so that a reader that is
late does not count against the gateway; :func:`arrival` turns such a stamp round.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable

SO_TIMESTAMPNS = 35
ANCILLARY_BYTES = 64

Ancillary = Iterable[tuple[int, int, bytes]]


def _offset() -> int:
    """Nanoseconds from the real to the monotonic clock: the tightest of some readings."""
    best, found = 1 << 62, 0
    for _ in range(20):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        if after - before < best:
            best, found = after - before, (before + after) // 2 - real
    return found


class Arrivals:
    """Monotonic times of packets, from the ancillary data that came with them."""

    def __init__(self) -> None:
        self._offset = _offset()

    def renew(self) -> None:
        """Read the clocks again; they drift apart while NTP slews one of them."""
        self._offset = _offset()

    def at(self, ancillary: Ancillary) -> int:
        """When the kernel had it; now, where the kernel does not say."""
        for _level, kind, value in ancillary:
            if kind == SO_TIMESTAMPNS and len(value) >= 16:
                seconds, nanoseconds = struct.unpack("qq", value[:16])
                return int(seconds) * 1_000_000_000 + int(nanoseconds) + self._offset
        return time.monotonic_ns()

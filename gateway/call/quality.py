# SPDX-License-Identifier: GPL-2.0-or-later
"""The quality of a whole call, out of what was read once a second. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.sip.types import Heard, RtpQuality


@dataclass(slots=True)
class Spread:
    """Least, mean and most of what was measured."""

    count: int = 0
    total: float = 0.0
    least: float = 0.0
    most: float = 0.0

    def add(self, value: float) -> None:
        """Take one more in."""
        self.least = min(self.least, value) if self.count else value
        self.most = max(self.most, value) if self.count else value
        self.count += 1
        self.total += value

    def as_json(self, digits: int) -> dict[str, float] | None:
        """``min``, ``mean`` and ``max``; None when nothing was measured."""
        if not self.count:
            return None
        mean = self.total / self.count
        return {
            "min": round(self.least, digits),
            "mean": round(mean, digits),
            "max": round(self.most, digits),
        }


class _Direction:
    def __init__(self) -> None:
        self._jitter = Spread()
        self._mos = Spread()

    def add(self, heard: Heard | None) -> None:
        if heard is not None:
            self._jitter.add(heard.jitter_ms)
            self._mos.add(heard.mos)

    def as_json(self, packets: int, lost: int, missed: int) -> dict[str, Any]:
        return {
            "packets": packets,
            "lost": lost,
            "lost_percent": round(100 * missed / packets, 2) if packets > 0 else 0.0,
            "jitter_ms": self._jitter.as_json(2),
            "mos": self._mos.as_json(2),
        }


class QualityOfCall:
    """Gathers a call's readings. ``rx`` is what the caller sends, ``tx`` what they hear."""

    def __init__(self) -> None:
        self._rx = _Direction()
        self._tx = _Direction()
        self._rtt = Spread()
        self._buffer = Spread()

    def add(self, quality: RtpQuality) -> dict[str, Any]:
        """Take a reading in; returns the quality of the call so far, for its record."""
        self._rx.add(quality.rx)
        self._tx.add(quality.tx)
        if quality.rtt_ms is not None:
            self._rtt.add(quality.rtt_ms)
        if quality.rx is not None:
            self._buffer.add(quality.buffer_ms)
        missed = quality.rx_lost + quality.rx_discarded
        rx = self._rx.as_json(quality.rx_packets + quality.rx_lost, quality.rx_lost, missed)
        rx |= {
            "packets": quality.rx_packets,
            "late": quality.rx_discarded,
            "reordered": quality.rx_reordered,
            "duplicates": quality.rx_duplicates,
        }
        tx = None
        if quality.tx_reports:
            tx = self._tx.as_json(quality.tx_reported, quality.tx_lost, quality.tx_lost)
            tx["packets"] = quality.tx_packets
        return {
            "rx": rx,
            "tx": tx,
            "rtt_ms": self._rtt.as_json(1),
            "buffer_ms": self._buffer.as_json(0),
        }

# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a call's RTP packets, and how well it is heard, by RTCP (RFC 3550). Pure.

The estimated MOS, once a second, is the E-model of ITU-T G.107 with its default values, for G.711:

* ``R = 93.2 - Id - Ie,eff``: 93.2 is what is left of the best line with everything at default.
* ``Id = 0.024 d + 0.11 max(0, d - 177.3)``, the delay's share, ``d`` one way in ms (the usual
  straight-line form of G.107 section 7.4).
* ``Ie,eff = 95 Ppl / (Ppl + Bpl)``, the loss's share, ``Ppl`` in percent; ``Bpl`` 25.1 is G.711
  with concealment (G.113 appendix I), losses taken as random.
* ``MOS = 1 + 0.035 R + R (R - 60) (100 - R) 7e-6``, 1 below R = 0 and 4.5 above 100.

It knows nothing of echo, level or noise, and of the other side only what that tells by RTCP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DirectionQuality:
    """Quality of one direction since the last second, or since the other side's last RTCP
    report."""

    loss_percent: float
    """What came too late to be heard included, for what we receive."""
    jitter_ms: float
    mos: float
    """Estimated, 1 to 4.5: see :mod:`gateway.sip.rtp`."""


@dataclass(frozen=True, slots=True)
class RtpQuality:
    """RTP counters of a leg so far, from RTCP's point of view (RFC 3550 section 6.4).

    Those of what we send (``tx``) come from the peer's RTCP reports; ``tx_reports`` is 0 until the
    first one.
    """

    rx_packets: int
    rx_lost: int
    rx_jitter_ms: float
    """Mean of the call so far."""
    tx_packets: int
    rx_discarded: int = 0
    """Came too late for the jitter buffer."""
    rx_reordered: int = 0
    rx_duplicates: int = 0
    tx_lost: int = 0
    tx_reports: int = 0
    tx_reported: int = 0
    """Packets that we had sent by the last report: ``tx_lost`` are of these."""
    buffer_ms: float = 0.0
    """Delay in our jitter buffer."""
    rtt_ms: float | None = None
    """There and back, by RTCP; None before it is known."""
    expected: bool = True
    """False while the peer's description says that it sends nothing (RFC 3264 section 5.1)."""
    rx: DirectionQuality | None = None
    """None when nothing came and nothing was to come."""
    tx: DirectionQuality | None = None


@dataclass(frozen=True, slots=True)
class UplinkCounts:
    """Counts of what became of a caller's RTP packets; in packets unless the name says
    otherwise."""

    packets: int
    lost: int
    """Not there within the time that they were waited for."""
    late: int
    """Came after their place had been filled; left out."""
    reordered: int
    """Overtaken on the way, and put into their place."""
    duplicates: int
    foreign: int
    """Of a source that was followed before, or with a number far from all others; left out."""
    source_changes: int
    """Changes to another SSRC, or to sequence numbers that began again."""
    timestamp_jumps: int
    """Timestamps that no time explains; the sequence numbers are followed."""
    filled_ms: int
    """Silence in the place of lost packets and of pauses between packets."""
    standing_in_ms: int
    """Silence sent in real time while no packet came."""
    overtaken_ms: int
    """The part of ``standing_in_ms`` whose packets came late and were sent as well."""
    dropped_ms: int
    """Audio that the event loop did not take in time."""


_R_BEST = 93.2
_BPL = 25.1
PACKET_MS = 20.0
"""Length (ms) of a packet, which leaves when its last sample has been spoken."""
PEER_BUFFER_MS = 40.0
"""Least that the jitter buffer of the other side is taken to hold; RTCP does not tell it."""


def r_factor(loss_percent: float, delay_ms: float) -> float:
    """Return the E-model's R (ITU-T G.107) of a G.711 line, for loss in percent and one-way delay
    in ms."""
    loss = min(max(loss_percent, 0.0), 100.0)
    delay = max(delay_ms, 0.0)
    impaired = 0.024 * delay + 0.11 * max(0.0, delay - 177.3)
    return _R_BEST - impaired - 95.0 * loss / (loss + _BPL)


def mos_of(r: float) -> float:
    """Return the mean opinion score, 1 to 4.5, of an R (ITU-T G.107 annex B)."""
    if r <= 0:
        return 1.0
    if r >= 100:
        return 4.5
    return max(1.0, 1 + 0.035 * r + r * (r - 60) * (100 - r) * 7e-6)


@dataclass(frozen=True, slots=True)
class StreamCounters:
    """Counters of one direction since its stream began."""

    packets: int = 0
    lost: int = 0
    jitter_ms: float = 0.0
    """Now, as RFC 3550 section 6.4.1 estimates it."""
    mean_jitter_ms: float = 0.0
    reordered: int = 0
    duplicates: int = 0
    reports: int = 0
    """How often it was told, for what the other side tells."""


@dataclass(frozen=True, slots=True)
class RtpCounters:
    """Pjmedia's counters of a call's stream since it began."""

    rx: StreamCounters = StreamCounters()
    tx: StreamCounters = StreamCounters()
    discarded: int = 0
    """Packets that came too late for the jitter buffer, where there is one."""
    buffer_ms: float = 0.0
    """Mean delay in the jitter buffer."""
    rtt_ms: float | None = None


def counters_of(statistic: Any) -> RtpCounters:
    """Return the counters in a pjsua2 ``StreamStat``."""
    rtcp, buffer = statistic.rtcp, statistic.jbuf
    return RtpCounters(
        rx=_stream(rtcp.rxStat),
        tx=_stream(rtcp.txStat),
        discarded=int(buffer.discard),
        buffer_ms=float(buffer.avgDelayMsec),
        rtt_ms=int(rtcp.rttUsec.last) / 1000 if int(rtcp.rttUsec.n) else None,
    )


def _stream(stat: Any) -> StreamCounters:
    """Return the counters of one direction in a pjsua2 ``RtcpStreamStat``; jitter from us in ms."""
    jitter = stat.jitterUsec
    return StreamCounters(
        packets=int(stat.pkt),
        lost=int(stat.loss),
        jitter_ms=int(jitter.last) / 1000,
        mean_jitter_ms=float(jitter.mean) / 1000,
        reordered=int(stat.reorder),
        duplicates=int(stat.dup),
        reports=int(stat.updateCount),
    )


class QualityMeter:
    """Computes RTP quality between two readings of a call's counters."""

    def __init__(self) -> None:
        self._before = RtpCounters()
        self._over = RtpCounters()
        """Of streams that came before this one: a re-INVITE may begin a new one."""
        self._late = 0
        self._told = StreamCounters()
        """What we had sent and lost when the other side last told."""
        self._tx: DirectionQuality | None = None

    def begin_stream(self) -> None:
        """Take the next counters for those of a new stream, and add them to the earlier ones."""
        self._over = _together(self._over, self._before)
        self._before, self._told = RtpCounters(), StreamCounters()

    def read(self, now: RtpCounters, uplink: UplinkCounts | None = None) -> RtpQuality:
        """Return the quality since the last reading, and the totals of the call. Lower counters
        than before are those of a new stream, see :meth:`begin_stream`.

        What we send (``tx``) is measured between the peer's RTCP reports, and repeated until the
        next.

        Args:
            now: counters of the current stream.
            uplink: counts of the call's packets, where they do not pass the jitter buffer.
        """
        late = 0 if uplink is None else uplink.late
        before = self._before
        if now.rx.packets < before.rx.packets or now.tx.packets < before.tx.packets:
            self.begin_stream()
            before = self._before
        rx = _heard(
            now.rx.packets - before.rx.packets,
            now.rx.lost + now.discarded - before.rx.lost - before.discarded + late - self._late,
            now.rx.jitter_ms,
            (now.rtt_ms or 0.0) / 2 + PACKET_MS + now.buffer_ms,
        )
        if now.tx.reports != self._told.reports:
            sent, lost = now.tx.packets - self._told.packets, now.tx.lost - self._told.lost
            buffered = max(PEER_BUFFER_MS, 2 * now.tx.jitter_ms)
            delay = (now.rtt_ms or 0.0) / 2 + PACKET_MS + buffered
            self._tx = _heard(sent - max(0, lost), lost, now.tx.jitter_ms, delay) or self._tx
            self._told = now.tx
        self._before, self._late = now, late
        total = _together(self._over, now)
        return RtpQuality(
            rx_packets=total.rx.packets,
            rx_lost=total.rx.lost,
            rx_jitter_ms=now.rx.mean_jitter_ms,
            tx_packets=total.tx.packets,
            rx_discarded=total.discarded + late,
            rx_reordered=total.rx.reordered,
            rx_duplicates=total.rx.duplicates,
            tx_lost=total.tx.lost,
            tx_reports=total.tx.reports,
            tx_reported=self._over.tx.packets + self._told.packets,
            buffer_ms=now.buffer_ms,
            rtt_ms=now.rtt_ms,
            rx=rx,
            tx=self._tx,
        )


def _heard(came: int, lost: int, jitter_ms: float, delay_ms: float) -> DirectionQuality | None:
    """Return the quality of an interval, None when no packets were due in it: packets that came and
    were lost, jitter, and one-way delay in ms.

    ``lost`` may be negative: a late packet takes an earlier loss back; it counts as 0.
    """
    lost = max(0, lost)
    if came + lost <= 0:
        return None
    loss = 100.0 * lost / (came + lost)
    return DirectionQuality(loss, jitter_ms, mos_of(r_factor(loss, delay_ms)))


def _together(first: RtpCounters, second: RtpCounters) -> RtpCounters:
    """Add the counters of a call's earlier streams (``first``) to those of the current one, whose
    jitter, delay and round trip are kept."""

    def both(one: StreamCounters, other: StreamCounters) -> StreamCounters:
        return StreamCounters(
            one.packets + other.packets,
            one.lost + other.lost,
            other.jitter_ms,
            other.mean_jitter_ms,
            one.reordered + other.reordered,
            one.duplicates + other.duplicates,
            one.reports + other.reports,
        )

    return RtpCounters(
        both(first.rx, second.rx),
        both(first.tx, second.tx),
        first.discarded + second.discarded,
        second.buffer_ms,
        second.rtt_ms,
    )


@dataclass(slots=True)
class MinMeanMax:
    """Minimum, mean and maximum of measured values."""

    count: int = 0
    total: float = 0.0
    least: float = 0.0
    most: float = 0.0

    def add(self, value: float) -> None:
        """Add a value to minimum, mean and maximum."""
        self.least = min(self.least, value) if self.count else value
        self.most = max(self.most, value) if self.count else value
        self.count += 1
        self.total += value

    def as_json(self, digits: int) -> dict[str, float] | None:
        """Return ``min``, ``mean`` and ``max`` rounded to so many digits; None when nothing was
        measured."""
        if not self.count:
            return None
        mean = self.total / self.count
        return {
            "min": round(self.least, digits),
            "mean": round(mean, digits),
            "max": round(self.most, digits),
        }


class _Direction:
    """Jitter and MOS of one direction, gathered over a call."""

    def __init__(self) -> None:
        self._jitter = MinMeanMax()
        self._mos = MinMeanMax()

    def add(self, heard: DirectionQuality | None) -> None:
        """Add the quality of an interval; None: nothing was measured in it."""
        if heard is not None:
            self._jitter.add(heard.jitter_ms)
            self._mos.add(heard.mos)

    def as_json(self, packets: int, lost: int, missed: int) -> dict[str, Any]:
        """Return the record's figures of the direction.

        Args:
            packets: sent, of which the others are a part.
            lost: of these, not arrived.
            missed: lost, or too late to be played; ``lost_percent`` is of these.
        """
        return {
            "packets": packets,
            "lost": lost,
            "lost_percent": round(100 * missed / packets, 2) if packets > 0 else 0.0,
            "jitter_ms": self._jitter.as_json(2),
            "mos": self._mos.as_json(2),
        }


class CallQuality:
    """Gathers a call's readings for its record. ``rx`` is what the caller sends, ``tx`` what they
    hear."""

    def __init__(self) -> None:
        self._rx = _Direction()
        self._tx = _Direction()
        self._rtt = MinMeanMax()
        self._buffer = MinMeanMax()

    def add(self, quality: RtpQuality) -> dict[str, Any]:
        """Take a reading in; return the quality of the call so far, for its record. ``tx`` is None
        until the caller's side has sent an RTCP report."""
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

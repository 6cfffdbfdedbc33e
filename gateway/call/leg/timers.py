# SPDX-License-Identifier: GPL-2.0-or-later
"""Timers that end a call: no ACK, no answer, maximum duration, no RTP."""

from __future__ import annotations

from gateway.call.ending import EndReason
from gateway.call.plan import CallPlan

ACK_SECONDS = 32.5
"""The library sends BYE when the ACK of a 200 has not come for 64 * T1 = 32 s (RFC 3261 section
13.3.1.4), and tells; should it not, we do so ourselves."""


class Timers:
    """The timers of one call. Times in s, of the machine's clock."""

    def __init__(self, plan: CallPlan) -> None:
        self._plan = plan
        self._ack_at: float | None = None
        self._ring_until: float | None = None
        self._max_at: float | None = None
        self._rtp_at: float | None = None
        self._packets = -1

    def answered(self, now: float) -> None:
        """Start the wait for the ACK."""
        self._ack_at = now + ACK_SECONDS

    def dialling(self, now: float, ring_seconds: float) -> None:
        """Start the ring timeout."""
        self._ring_until = now + ring_seconds

    def confirmed(self, now: float, *, held: bool) -> None:
        """Start the maximum duration and the RTP timeout; the ACK came."""
        self._ack_at = self._ring_until = None
        self._max_at = now + self._plan.max_call_duration
        self.held(now, held)

    def held(self, now: float, held: bool) -> None:
        """Stop the RTP timeout while on hold, when a caller may send no RTP at all."""
        self._rtp_at = None if held else now

    def packets(self, count: int, now: float, *, expected: bool) -> None:
        """Take the count of RTP packets; ``expected``: it should have grown."""
        if count != self._packets or not expected:
            self._packets = count
            self._rtp_at = now

    @property
    def deadline(self) -> float | None:
        """When :meth:`due` is to be asked next (s)."""
        rtp_at = None
        if self._rtp_at is not None and self._plan.rtp_timeout > 0:
            rtp_at = self._rtp_at + self._plan.rtp_timeout
        due = (self._ring_until, self._ack_at, self._max_at, rtp_at)
        return min((at for at in due if at is not None), default=None)

    def due(self, now: float) -> tuple[EndReason, str] | None:
        """Return why the call ends now, and a detail for the record; None: it does not."""
        if self._ack_at is not None and now >= self._ack_at:
            return EndReason.LEG_TIMEOUT, "no ACK"
        if self._ring_until is not None and now >= self._ring_until:
            return EndReason.NO_ANSWER, "rang too long"
        if self._max_at is not None and now >= self._max_at:
            return EndReason.MAX_DURATION, ""
        timeout = self._plan.rtp_timeout
        if self._rtp_at is not None and timeout > 0 and now >= self._rtp_at + timeout:
            return EndReason.RTP_TIMEOUT, f"no packet for {timeout:g} s"
        return None

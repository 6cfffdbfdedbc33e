# SPDX-License-Identifier: GPL-2.0-or-later
"""When a call is answered, and the timers that end it: no ACK, no answer, too long, no RTP."""

from __future__ import annotations

from gateway.call.ending import EndReason
from gateway.call.outputs import Answer, Output, PlaySound, Progress, Ring
from gateway.call.plan import AnswerPlan, CallPlan
from gateway.call.record import CallTimeline


class AnswerPolicy:
    """Decides when a call is answered. Times in s, of the machine's clock."""

    def __init__(self, plan: AnswerPlan, timeline: CallTimeline) -> None:
        self._plan = plan
        self._timeline = timeline
        self._began: float | None = None
        self.waiting = False
        """The model is ready; a sound is to be played to its end first."""
        self.confirmed = False
        """The ACK came before the model."""

    @property
    def at_once(self) -> bool:
        """Return whether the 200 is sent before the model is ready."""
        return self._plan.mode == "immediate"

    def begin(self, now: float) -> list[Output]:
        """Ring, send early media, or answer at once."""
        times = self._timeline.record.times
        if self.at_once:
            times.answered = self._timeline.ms(now)
            return [Answer(), self._timeline.note(now, "answered", "info"), *self._play_sound()]
        times.ringing = self._timeline.ms(now)
        note = self._timeline.note(now, "ringing", "info")
        if self._plan.mode != "early_media":
            return [note, Ring()]
        self._began = now
        return [note, Progress(), *self._play_sound()]

    def on_confirmed(self, now: float) -> None:
        """Note the ACK of a 200 that was sent at once: from now on the caller hears the sound."""
        self.confirmed, self._began = True, now

    def heard_out(self, now: float) -> bool:
        """Return whether the sound was played to its end; ask when the model is ready."""
        at = self.deadline
        self.waiting = self._plan.play_to_end_seconds > 0 and (at is None or now < at)
        return not self.waiting

    @property
    def deadline(self) -> float | None:
        """When the sound has been played once (s); None while nobody hears it."""
        return None if self._began is None else self._began + self._plan.play_to_end_seconds

    def answer(self, now: float) -> list[Output]:
        """Stop the sound, and answer if that was not done before."""
        quiet: list[Output] = [PlaySound("")] if self._plan.mode != "when_ready" else []
        if self.at_once:
            return quiet
        self._timeline.record.times.answered = self._timeline.ms(now)
        return [*quiet, Answer(), self._timeline.note(now, "answered", "info")]

    def _play_sound(self) -> list[Output]:
        """Play the sound of the route, if it has one."""
        return [PlaySound(self._plan.sound)] if self._plan.sound else []


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
        self._max_at = now + self._plan.limits.max_call_duration
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
        if self._rtp_at is not None and self._plan.limits.rtp_timeout > 0:
            rtp_at = self._rtp_at + self._plan.limits.rtp_timeout
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
        timeout = self._plan.limits.rtp_timeout
        if self._rtp_at is not None and timeout > 0 and now >= self._rtp_at + timeout:
            return EndReason.RTP_TIMEOUT, f"no packet for {timeout:g} s"
        return None

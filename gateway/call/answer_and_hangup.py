# SPDX-License-Identifier: GPL-2.0-or-later
"""Answer policy, timers that end a call, and hang-up once the closing words were played."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.call.call_record import CallTimeline
from gateway.call.outputs import Answer, Output, PlaySound, Progress, Ring
from gateway.call.plan import AnswerPlan, CallPlan
from gateway.ending import EndReason


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

    def sound_played(self, now: float) -> bool:
        """Return whether the sound was played to its end; asked once the model is ready."""
        at = self.deadline
        self.waiting = self._plan.play_to_end_seconds > 0 and (at is None or now < at)
        return not self.waiting

    @property
    def deadline(self) -> float | None:
        """When the sound has been played once (s); None while it is not played."""
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
        """Start the wait for the callee's answer: ``ring_seconds`` from now on."""
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
        """Restart the RTP timeout if packets have come, or none are ``expected``."""
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
        """Return the reason to end the call now, with a detail for the record, or None."""
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


LINGER_SECONDS = 0.2
"""From the last frame handed to RTP to the BYE: a telephone plays some 60 ms later than it
receives, and throws away what it still holds when the BYE comes."""


@dataclass(slots=True)
class _LastWords:
    why: EndReason
    deadline: float
    call_id: str
    awaited: bool
    speech_by: float = 0.0
    """Until when speech that begins anew is waited for (s)."""
    counted_ms: int = 0
    """Queued audio that the deadline allows for."""
    playing: bool = False
    """Audio was queued when :meth:`HangupAfterPlayout.due` was last asked."""
    heard_until: float = 0.0
    """Until when a sound in place of the words is played (s)."""
    said: bool = False
    """All of it was handed to RTP; the deadline is when the telephone has played it."""


GOODBYE_BEGINS_SECONDS = 4.0
"""How soon a goodbye begins that a model says by itself, after it has asked for the end."""


class HangupAfterPlayout:
    """Hangs up once the closing words of a call have been played to the caller.

    Args:
        seconds: how long to wait for last words that do not come.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._words: _LastWords | None = None

    @property
    def deadline(self) -> float | None:
        """When to hang up at the latest (s); None while no hang-up is due."""
        words = self._words
        if words is None:
            return None
        return words.speech_by or words.deadline

    def after_spoken_goodbye(self, call_id: str, now: float) -> None:
        """Hang up after the goodbye that the model has said, by the tool call ``call_id``."""
        self._words = _LastWords(
            EndReason.AGENT_HANGUP, now + self._seconds, call_id, awaited=False
        )

    def after_requested_goodbye(self, now: float) -> None:
        """Hang up after the goodbye that was requested for the model's ``end_call``."""
        self._words = _LastWords(EndReason.AGENT_HANGUP, now + self._seconds, "", awaited=True)

    def after_next_speech(self, now: float) -> None:
        """Hang up after the goodbye that the model is about to say by itself, for its
        ``end_call``: what it says next, if that begins soon."""
        by = now + min(GOODBYE_BEGINS_SECONDS, self._seconds)
        self._words = _LastWords(
            EndReason.AGENT_HANGUP, now + self._seconds, "", awaited=True, speech_by=by
        )

    def on_response_created(self) -> None:
        """Stop waiting for the announced goodbye to begin: the model speaks."""
        if self._words is not None:
            self._words.speech_by = 0.0

    def after_last_words(self, why: EndReason, now: float) -> None:
        """Hang up for ``why`` after the requested words. Barge-in does not cancel this."""
        self._words = _LastWords(why, now + self._seconds, "", awaited=True)

    def wait_for_sound(self, until: float) -> None:
        """Play a sound until then (s) in place of last words that did not come."""
        if self._words is not None:
            self._words.heard_until = self._words.deadline = until

    def on_session_over(self, now: float) -> None:
        """Hang up after the audio of a session that closed normally."""
        if self._words is None or self._words.awaited:
            self._words = _LastWords(
                EndReason.SESSION_CLOSED, now + self._seconds, "", awaited=False
            )

    @property
    def is_queued(self) -> bool:
        """Return whether all closing audio is queued, so that the session may close now."""
        return self._words is not None and not self._words.awaited

    def cancel(self) -> str | None:
        """Cancel the hang-up because of barge-in; return the tool call to answer, or empty.

        None when there was no hang-up to cancel.
        """
        words = self._words
        if words is None or words.why is not EndReason.AGENT_HANGUP:
            return None
        self._words = None
        return words.call_id

    def due(self, now: float, *, queued_ms: int, responding: bool) -> EndReason | None:
        """Return the reason to end the call now, or None.

        ``queued_ms``: audio put into the queue since it was last empty, 0 when it is;
        ``responding``: a response runs or is to come.
        """
        words = self._words
        if words is None:
            return None
        if now >= words.speech_by:
            words.speech_by = 0.0
        if words.awaited and not (responding or words.speech_by):
            words.awaited = False
        if queued_ms:
            words.playing = True
            if queued_ms > words.counted_ms:
                # What has come is heard to its end; the wait is for words that do not come.
                words.counted_ms = queued_ms
                words.deadline = max(words.deadline, now + queued_ms / 1000 + self._seconds)
        elif words.playing and not words.awaited:
            words.playing = False
            words.deadline = min(words.deadline, now + LINGER_SECONDS)
            words.said = True
        silent = not (queued_ms or words.awaited or words.said or now < words.heard_until)
        return words.why if silent or now >= words.deadline else None

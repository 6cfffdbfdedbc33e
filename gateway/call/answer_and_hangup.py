# SPDX-License-Identifier: GPL-2.0-or-later
"""When an inbound call is answered, timers that end a call, and the hang-up once the closing words
were played."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.call.call_record import CallTimeline
from gateway.call.outputs import Answer, Output, PlaySound, Progress, Ring
from gateway.call.plan import AnswerPlan, CallPlan
from gateway.ending import EndReason


class AnswerPolicy:
    """Decides when an inbound call is answered (``[route.answer]``). Times in s.

    ``when_ready``: 180, and 200 once the model is ready. ``early_media``: 183 with SDP and the
    route's sound, and 200 once the model is ready and the sound was played for
    ``play_to_end_seconds``. ``immediate``: 200 and the sound; the model is heard once both
    conditions hold.
    """

    def __init__(self, plan: AnswerPlan, timeline: CallTimeline) -> None:
        self._plan = plan
        self._timeline = timeline
        self._began: float | None = None
        self.waiting = False
        """The model is ready, and the sound has not yet been played for ``play_to_end_seconds``."""
        self.confirmed = False
        """The ACK came before the model was ready (only in mode ``immediate``)."""

    @property
    def at_once(self) -> bool:
        """Whether the 200 is sent before the model is ready (``mode = "immediate"``)."""
        return self._plan.mode == "immediate"

    def begin(self, now: float) -> list[Output]:
        """Begin the call, once. Mode ``when_ready`` returns ``Ring`` (180); ``early_media``
        ``Progress`` (183 with SDP) and the sound, whose time counts from now; ``immediate``
        ``Answer`` (200) and the sound. Records and logs ``ringing``, or ``answered``."""
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
        """Note the ACK of a 200 that was sent before the model was ready: ``play_to_end_seconds``
        count from now, as the caller hears the sound from now on."""
        self.confirmed, self._began = True, now

    def sound_played(self, now: float) -> bool:
        """Return whether the sound has been played for ``play_to_end_seconds``, and set
        :attr:`waiting` to the opposite. Always True where that setting is 0; else False before the
        ACK in mode ``immediate``. To be asked once the model is ready, and again at
        :attr:`deadline`."""
        at = self.deadline
        self.waiting = self._plan.play_to_end_seconds > 0 and (at is None or now < at)
        return not self.waiting

    @property
    def deadline(self) -> float | None:
        """When :meth:`sound_played` is to be asked again (s): ``play_to_end_seconds`` after the
        route's sound began, with the 183 (``early_media``) or at the ACK (``immediate``). None
        before that, and in mode ``when_ready``, which has no sound."""
        return None if self._began is None else self._began + self._plan.play_to_end_seconds

    def answer(self, now: float) -> list[Output]:
        """Stop the sound (none in mode ``when_ready``) and return ``Answer`` (200), which is
        recorded and logged as ``answered``. In mode ``immediate`` only stop the sound: the 200 was
        sent before."""
        quiet: list[Output] = [PlaySound("")] if self._plan.mode != "when_ready" else []
        if self.at_once:
            return quiet
        self._timeline.record.times.answered = self._timeline.ms(now)
        return [*quiet, Answer(), self._timeline.note(now, "answered", "info")]

    def _play_sound(self) -> list[Output]:
        """Return ``PlaySound`` of the route's sound; nothing where it has none."""
        return [PlaySound(self._plan.sound)] if self._plan.sound else []


ACK_SECONDS = 32.5
"""The library sends BYE when the ACK of a 200 has not come for 64 * T1 = 32 s (RFC 3261 section
13.3.1.4), and tells; should it not, we do so ourselves."""


class Timers:
    """Timers that end a call: no ACK, rings too long, too long a call, no RTP. Times in s.

    The methods start and stop them; :meth:`due` tells which one is over.
    """

    def __init__(self, plan: CallPlan) -> None:
        self._plan = plan
        self._ack_at: float | None = None
        self._ring_until: float | None = None
        self._max_at: float | None = None
        self._rtp_at: float | None = None
        self._packets = -1

    def answered(self, now: float) -> None:
        """Start the wait for the ACK, of ``ACK_SECONDS``: the 200 was sent."""
        self._ack_at = now + ACK_SECONDS

    def dialling(self, now: float, ring_seconds: float) -> None:
        """Start the wait for the callee's answer to a call that we place, of ``ring_seconds``."""
        self._ring_until = now + ring_seconds

    def confirmed(self, now: float, *, held: bool) -> None:
        """Start maximum duration and RTP timeout, and stop the waits for ACK and answer: the ACK
        came, or the callee's 200.

        Args:
            held: the caller has us on hold already, so the RTP timeout does not start.
        """
        self._ack_at = self._ring_until = None
        self._max_at = now + self._plan.limits.max_call_duration
        self.held(now, held)

    def held(self, now: float, held: bool) -> None:
        """Stop the RTP timeout when a hold by the caller begins (``held``), as a caller on hold may
        send no RTP; start it anew when the hold ends."""
        self._rtp_at = None if held else now

    def packets(self, count: int, now: float, *, expected: bool) -> None:
        """Restart the RTP timeout if packets were received since this was last called, or if none
        are expected. To be called only after the ACK and not during a hold, as it would start a
        timeout that does not run.

        Args:
            count: packets received so far.
            expected: False where the caller's SDP says that none are sent.
        """
        if count != self._packets or not expected:
            self._packets = count
            self._rtp_at = now

    @property
    def deadline(self) -> float | None:
        """When the first running timer is over (s); None while none runs. With
        ``limits.rtp_timeout`` 0 the RTP timeout never runs."""
        rtp_at = None
        if self._rtp_at is not None and self._plan.limits.rtp_timeout > 0:
            rtp_at = self._rtp_at + self._plan.limits.rtp_timeout
        due = (self._ring_until, self._ack_at, self._max_at, rtp_at)
        return min((at for at in due if at is not None), default=None)

    def due(self, now: float) -> tuple[EndReason, str] | None:
        """Return end reason and detail (for the record) of a timer that is over; None without one.
        Of several the first of: no ACK, rings too long, maximum duration, no RTP."""
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
    """A hang-up that waits for the end of the closing words."""

    why: EndReason
    deadline: float
    """When the call ends at the latest (s)."""
    call_id: str
    """``call_id`` of the ``end_call`` that has no answer yet; "": it has one, or there is none."""
    awaited: bool
    """Words are requested or to come; False: all that is to be heard is queued."""
    speech_by: float = 0.0
    """Until when a Live session may begin its goodbye (s); 0: it has begun, or is not waited
    for."""
    counted_ms: int = 0
    """Queued audio (ms) that the deadline allows for."""
    playing: bool = False
    """Audio was queued when :meth:`HangupAfterPlayout.due` was last asked."""
    heard_until: float = 0.0
    """Until when a sound in place of the words is played (s)."""
    said: bool = False
    """All of it was handed to RTP; the deadline is when the telephone has played it."""


GOODBYE_BEGINS_SECONDS = 4.0
"""How soon a goodbye begins that a model says by itself, after it has asked for the end."""


class HangupAfterPlayout:
    """Hangs up once the closing words have been played to the caller, or do not come in time.

    An ``after_...`` method starts it, in place of a hang-up that waits already; :meth:`due` then
    tells when to end the call.

    Args:
        seconds: longest wait (s) for words that are requested and do not come, and for queued
            audio that does not play; words that come are played to their end.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._words: _LastWords | None = None

    @property
    def deadline(self) -> float | None:
        """When :meth:`due` is to be asked (s): at the latest time of the hang-up or, while a
        goodbye is still to begin, when it is no longer waited for. None while no hang-up waits."""
        words = self._words
        if words is None:
            return None
        return words.speech_by or words.deadline

    def after_spoken_goodbye(self, call_id: str, now: float) -> None:
        """Hang up after the audio that is queued: the goodbye that the model has said with its tool
        call ``end_call``.

        Args:
            call_id: of that call; it gets no answer unless barge-in cancels the hang-up
                (:meth:`cancel`).
        """
        self._words = _LastWords(
            EndReason.AGENT_HANGUP, now + self._seconds, call_id, awaited=False
        )

    def after_requested_goodbye(self, now: float) -> None:
        """Hang up after the goodbye that the gateway has requested, since ``end_call`` came without
        words; the call of ``end_call`` was answered."""
        self._words = _LastWords(EndReason.AGENT_HANGUP, now + self._seconds, "", awaited=True)

    def after_next_speech(self, now: float) -> None:
        """Hang up after the goodbye that a Live session says by itself. If it does not begin within
        ``GOODBYE_BEGINS_SECONDS``, hang up once nothing is queued any more."""
        by = now + min(GOODBYE_BEGINS_SECONDS, self._seconds)
        self._words = _LastWords(
            EndReason.AGENT_HANGUP, now + self._seconds, "", awaited=True, speech_by=by
        )

    def on_response_created(self) -> None:
        """Note that the goodbye has begun (``response.created``): its end is waited for from now
        on. Nothing while no hang-up waits."""
        if self._words is not None:
            self._words.speech_by = 0.0

    def after_last_words(self, why: EndReason, now: float) -> None:
        """Have :meth:`due` end the call for ``why``, once the words that the gateway has requested
        and all queued audio were played. Once no response runs or is to come, only queued audio is
        waited for; a response that brings no words is waited for ``seconds`` at most. Replaces a
        hang-up that waits; :meth:`cancel` does not stop this one."""
        self._words = _LastWords(why, now + self._seconds, "", awaited=True)

    def wait_for_sound(self, until: float) -> None:
        """Hang up at ``until`` (s), the end of a sound that is played in place of words that did
        not come. Nothing while no hang-up waits."""
        if self._words is not None:
            self._words.heard_until = self._words.deadline = until

    def on_session_over(self, now: float) -> None:
        """Hang up (``session_closed``) after the queued audio of a session that closed normally. A
        hang-up that waits only for queued audio stays as it is; one that waits for words is
        replaced: none will come."""
        if self._words is None or self._words.awaited:
            self._words = _LastWords(
                EndReason.SESSION_CLOSED, now + self._seconds, "", awaited=False
            )

    @property
    def is_queued(self) -> bool:
        """Whether a hang-up waits only for queued audio, so that the session may close."""
        return self._words is not None and not self._words.awaited

    def cancel(self) -> str | None:
        """Cancel a hang-up that the model asked for (``agent_hangup``), because of barge-in.

        Returns the ``call_id`` of the ``end_call`` to be answered, "" where it has been answered;
        None where there is no such hang-up: one of another reason goes on.
        """
        words = self._words
        if words is None or words.why is not EndReason.AGENT_HANGUP:
            return None
        self._words = None
        return words.call_id

    def due(self, now: float, *, queued_ms: int, responding: bool) -> EndReason | None:
        """Return the reason to end the call now, or None; to be asked after each input.

        The call ends ``LINGER_SECONDS`` after words that were played; at once where no words are to
        come, nothing was or is queued, and no sound plays in their place; and at the deadline,
        which queued audio puts off to ``seconds`` after its own end. None without a hang-up that
        waits.

        Args:
            queued_ms: audio put into the playout queue since it was last empty; 0 when it is.
            responding: a response runs or is to come.
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

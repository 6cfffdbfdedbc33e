# SPDX-License-Identifier: GPL-2.0-or-later
"""One transfer, blind, attended or bridged, and the briefing of the colleague who answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from gateway.audio import BYTES_PER_MS, FRAME_MS
from gateway.call import inputs, outputs
from gateway.call.call_record import CallTimeline, TransferAttempt
from gateway.call.outputs import Output
from gateway.call.tools.commands import BriefingPlan, TransferPlan
from gateway.call.tools.definitions import Target
from gateway.ending import EndReason, Outcome, outcome_of
from gateway.realtime.events import CreateItem

TAKE_OVER_SECONDS = 20.0
"""The longest wait (s) of an attended transfer, from our REFER, for the caller's side to replace
our call to a target that has answered."""

_NEXT = "The caller is back with you: tell them, and offer something else."
"""What the model is to do after a failed transfer."""

SPEECH_SECONDS = 5.0
"""The longest wait (s) for the first audio of a briefing that the model speaks."""

SPEAKING_SECONDS = 30.0
"""The longest time (s) from the request for it to its last audio."""

REPEAT_SECONDS = 3.0
"""Pause (s) for a key after the end of a briefing, after which it is repeated."""

MAX_BRIEFING_SECONDS = 60
"""Audio of a briefing (s) that is played; the rest is dropped."""

_SUMMARIZE = (
    "You are on the telephone with a colleague who is about to take over this caller. The caller "
    "does not hear you. Say in at most three short sentences who calls, what they want, and what "
    "was done so far. Then say exactly: {}"
)

_REASONS = {
    "declined": "they answered, heard the briefing, and did not take the call",
    "hung_up": "they answered, and hung up during the briefing",
    "no_key": "the call was answered, but nobody took it; perhaps it was a voicemail",
}
"""Why the caller is back, by what a colleague did, for the model."""


class Speaker(Protocol):
    """What is needed here of :class:`gateway.call.conversation.out_of_band.OutOfBandResponses`,
    which has the model speak out of band (a Protocol, so that the module need not import it)."""

    bytes_per_ms: int
    """Of audio in the session's codec."""

    def request(
        self,
        key: str,
        purpose: str,
        instructions: str,
        now: float,
        *,
        seconds: float,
        words: str,
        then: Callable[[str, str, float], list[Output]],
        audio: Callable[[bytes, float], list[Output]],
    ) -> list[Output]:
        """Request a spoken response, which the caller does not hear; its audio goes to ``audio``.

        Args:
            key: for :meth:`cancel`, and in the record.
            purpose: what it is for, in the record.
            seconds: longest time that it may take (s), after which its status is ``late``.
            words: the words that it should say; "" where ``instructions`` leave them to the model.
            then: called once at its end, unless :meth:`cancel` ends it, with status, text and time
                (s); also at once, where the request is refused.
            audio: called with each piece of its speech, and the time (s).
        """

    def cancel(self, key: str, now: float) -> list[Output]:
        """Cancel the response that was requested under ``key``, also one that is not created yet:
        then ``key`` must not be used again before it is. Nothing if none runs under it. Its
        ``then`` is not called."""


class Interpreter(Protocol):
    """What is needed here of :class:`gateway.call.interpretation.Interpretation`, which interprets
    between the joined legs by two sessions (a Protocol, so that the module need not import it)."""

    def begin(self) -> list[Output]:
        """Join the legs (``BridgeLegs``), and open both sessions."""

    def end(self) -> list[Output]:
        """Close both sessions; nothing if they were not opened, or are closed."""

    def on(self, happening: inputs.InterpreterInput, now: float) -> list[Output]:
        """Handle an event of a session that interprets, or its end; nothing once both are
        closed."""


class Briefing:
    """Tells the colleague who has answered the B-leg what the call is about, and waits for their
    key.

    The model speaks it as an out-of-band response that only the colleague hears; its audio is
    repeated until a key is pressed. Where the model cannot speak they hear the route's sound in its
    place, and where there is none the call is joined at once (``skipped``).

    Args:
        words: said before the prompt; "" for a summary by the model.
        speak: has the model speak; None where no session is up.
        step: has the transfer take a step of the briefing at a time (s), and act on its
            :attr:`answer`. For what does not come through the transfer: the end of the speech.
    """

    def __init__(
        self,
        plan: BriefingPlan,
        words: str,
        timeline: CallTimeline,
        speak: Speaker | None,
        step: Callable[[Callable[[Briefing], list[Output]], float], list[Output]],
    ) -> None:
        self._bytes_per_ms = BYTES_PER_MS if speak is None else speak.bytes_per_ms
        self.answer = ""
        """accepted, declined, hung_up, no_key, or skipped where it could not be given; "" while it
        goes on."""
        self._plan = plan
        self._words = words
        self._timeline = timeline
        self._speak = speak
        self._step = step
        self._answer_by = 0.0
        """Until when a key has to be pressed (s)."""
        self._key = ""
        """That of the out-of-band response."""
        self._speech_by: float | None = None
        """Until when the first audio has to come (s); None once it has."""
        self._repeat_at: float | None = None
        """When it is repeated (s); None until it was said to its end."""
        self._began = 0.0
        """When its audio, or the repetition, began to play (s)."""
        self._audio = bytearray()
        """What the model has said, for the repetition."""
        self._played = 0
        """Bytes of ``_audio`` that were queued the first time."""
        self._by_model = True
        """The model speaks; False where the sound plays in its place, and once it is over."""
        self._recorded = False

    @property
    def deadline(self) -> float:
        """When :meth:`tick` is due next (s)."""
        due = (self._answer_by, self._speech_by, self._repeat_at)
        return min(at for at in due if at is not None)

    def begin(self, now: float) -> list[Output]:
        """Play music to the caller, and request the spoken briefing; without a session, play the
        route's sound to the colleague, or end as ``skipped``. Start a recording of the briefing, if
        the call is being recorded (not paused) and ``briefing.record`` is set. The key has to be
        pressed within ``briefing.timeout`` from now."""
        self._answer_by = now + self._plan.timeout
        begun: list[Output] = [outputs.PlaySound(self._plan.music)]
        recording = self._timeline.record.recording
        if self._plan.record and recording is not None and recording.state == "recording":
            self._recorded = True
            begun.append(outputs.StartRecording(b_leg=True))
        if self._speak is None:
            return [*begun, *self._give_up_model("no session is up", now)]
        self._speech_by = now + SPEECH_SECONDS
        prompt = self._plan.prompt
        words = f"{self._words} {prompt}" if self._words else ""
        wanted = f"Say exactly: {words}" if words else _SUMMARIZE.format(prompt)
        self._key = f"briefing-{len(self._timeline.record.actions.transfers)}"
        spoken = self._speak.request(
            self._key,
            "briefing",
            wanted,
            now,
            seconds=SPEAKING_SECONDS,
            words=words,
            then=lambda status, text, at: self._step(
                lambda briefing: briefing._on_speech_done(status, text, at), at
            ),
            audio=self._play_speech,
        )
        return [*begun, self._timeline.note(now, "briefing_started", "info"), *spoken]

    def on_digit(self, digit: str, now: float) -> list[Output]:
        """End the briefing as accepted or declined by a DTMF digit of the colleague; other digits
        are dropped."""
        if digit == self._plan.accept_key:
            return self.end("accepted", now)
        return self.end("declined", now) if digit == self._plan.decline_key else []

    def tick(self, now: float) -> list[Output]:
        """Act on :attr:`deadline`, the first of these that is due: end the briefing as ``no_key``,
        play the sound in place of a model that has said nothing (without a sound, end the briefing
        as ``skipped``, which connects the call), or repeat the briefing."""
        if now >= self._answer_by:
            return self.end("no_key", now)
        if self._speech_by is not None and now >= self._speech_by:
            return self._give_up_model("the model said nothing", now)
        if self._repeat_at is not None and now >= self._repeat_at:
            self._began, self._repeat_at = now, None
            return [outputs.PlayBriefing(bytes(self._audio)), *self._plan_repetition(now)]
        return []

    def session_lost(self, now: float) -> list[Output]:
        """Go on without the model, since the session is lost: a briefing that was said to its end
        goes on being repeated; in place of another, play the route's sound, or end as
        ``skipped``."""
        self._speak = None
        return self._give_up_model("the session was lost", now) if self._repeat_at is None else []

    def end(self, answer: str, now: float) -> list[Output]:
        """End the briefing, once, with this :attr:`answer`: accepted, declined, hung_up, no_key or
        skipped. Cancels the model's response, stops what plays to the colleague, and completes the
        recording; the caller's music goes on. Nothing if it has ended before."""
        if self.answer:
            return []
        self.answer, self._by_model = answer, False
        cancelled = [] if self._speak is None else self._speak.cancel(self._key, now)
        note = self._timeline.note(now, "briefing_ended", "info", answer=answer)
        over: list[Output] = [
            *cancelled,
            note,
            outputs.PlayBriefing(b""),
            outputs.PlaySound("", b_leg=True),
        ]
        return [*over, outputs.StopRecording(b_leg=True)] if self._recorded else over

    def _play_speech(self, audio: bytes, now: float) -> list[Output]:
        """Take a piece of the model's speech: keep and play it, up to ``MAX_BRIEFING_SECONDS`` in
        all; return ``PlayBriefing`` with the whole frames that are new. The first piece ends the
        wait for speech (``SPEECH_SECONDS``). Nothing once the model was given up or the briefing is
        over."""
        if not self._by_model:
            return []
        if self._speech_by is not None:
            self._speech_by, self._began = None, now
        self._audio += audio[: MAX_BRIEFING_SECONDS * 1000 * self._bytes_per_ms - len(self._audio)]
        whole = len(self._audio) - len(self._audio) % (FRAME_MS * self._bytes_per_ms)
        begun, self._played = self._played, whole
        return [outputs.PlayBriefing(bytes(self._audio[begun:whole]))] if whole > begun else []

    def _on_speech_done(self, status: str, text: str, now: float) -> list[Output]:
        """Handle the end of the spoken response: drop its last incomplete frame, and plan the
        repetition. If the response was not completed, or brought no audio, play the route's sound
        in its place, or end as ``skipped``. Nothing once the model was given up or the briefing is
        over.

        Args:
            status: that of ``response.done``, or refused or late.
            text: what it said, or the error, for the log.
        """
        if not self._by_model:
            return []
        if status != "completed" or self._speech_by is not None:
            return self._give_up_model(f"{status}: {text}".rstrip(": ")[:200], now)
        del self._audio[self._played :]
        return self._plan_repetition(now)

    def _plan_repetition(self, now: float) -> list[Output]:
        """Set the time of the next repetition: ``REPEAT_SECONDS`` after the colleague has heard the
        end of the audio that plays. Returns no output."""
        heard_at = self._began + len(self._audio) / self._bytes_per_ms / 1000
        self._repeat_at = max(now, heard_at) + REPEAT_SECONDS
        return []

    def _give_up_model(self, why: str, now: float) -> list[Output]:
        """Log ``briefing_failed``, drop what the model has said, and play the route's sound in its
        place, until the briefing ends; without a sound, end it as ``skipped``, so that the call is
        joined. Only once, and not if the briefing is over. A response of the model that still runs
        is not cancelled before the briefing ends: a Live voice that is late would say it to the
        caller.

        Args:
            why: for the log.
        """
        if self.answer or not self._by_model:
            return []
        self._by_model, self._speech_by = False, None
        note = self._timeline.note(now, "briefing_failed", "warning", reason=why)
        if not self._plan.sound:
            return [note, *self.end("skipped", now)]
        return [note, outputs.PlayBriefing(b""), outputs.PlaySound(self._plan.sound, b_leg=True)]


class Transfer:
    """One transfer, from the request to its outcome; the caller hears a sound meanwhile. The action
    (:class:`gateway.call.call_control.CallAction`) behind ``transfer_call`` and its like.

    *Blind*: the caller's side is asked to call the target (REFER, RFC 3515) and reports progress.
    *Attended*: we call the target first (B-leg), and the caller's side takes that call over
    (Replaces, RFC 3891 and RFC 5589 section 7). *Bridge*: we call the target and join both. In the
    latter two the target may be briefed before (:class:`Briefing`).

    Success sets :attr:`over`, or :attr:`joined`; failure sets :attr:`result`, for the model. Each
    attempt is in the record (:class:`TransferAttempt`).

    Args:
        speak: has the model speak a briefing; None where no session is up.
        interpreter: interprets between the legs once they are joined; None: nobody does.
    """

    is_transfer: ClassVar[bool] = True

    def __init__(
        self,
        target: Target,
        plan: TransferPlan,
        timeline: CallTimeline,
        speak: Speaker | None,
        interpreter: Interpreter | None = None,
    ) -> None:
        self.deadline: float | None = None
        self.audio_suspended = True
        self.begun = False
        self.joined = self.interpreted = False
        self.over: EndReason | None = None
        self.detail = ""
        self.result: Mapping[str, Any] | None = None
        self._target = target
        self._plan = plan
        self._interpreter = interpreter
        self._timeline = timeline
        self._taken = False
        """The caller's side has accepted our REFER."""
        self._ringing = False
        """The target rings, and the model was told."""
        self._replacing = False
        """The B-leg has taken the call, and the REFER with Replaces was sent."""
        self._has_b_leg = False
        """A B-leg was dialed and has not ended."""
        self._speak = speak
        self._briefing: Briefing | None = None
        """From the answer of the B-leg on; it stays when it is over. None without one."""
        self._attempt = TransferAttempt(0.0, target.destination.name, target.uri, "")

    @property
    def name(self) -> str:
        """Name of the destination in the route, for log and model."""
        return self._target.destination.name

    def begin(self, now: float) -> list[Output]:
        """Add the attempt to the record, and return ``Refer`` for a blind transfer, else
        ``DialBLeg``, with the sound for the caller. An outcome, or the answer of the B-leg, has to
        come within the destination's ``ring_timeout``."""
        destination, uri = self._target.destination, self._target.uri
        mode = destination.mode
        self._attempt = TransferAttempt(self._timeline.ms(now), destination.name, uri, mode)
        self.begun = True
        self._timeline.record.actions.transfers.append(self._attempt)
        self.deadline = now + destination.ring_timeout
        note = self._timeline.note(
            now, "transfer", "info", destination=self.name, to=uri, mode=mode
        )
        sound = outputs.PlaySound(self._plan.sound)
        by_pattern = destination.allowed_numbers is not None
        if mode == "blind":
            return [note, sound, outputs.Refer(uri, by_pattern=by_pattern)]
        self._has_b_leg = True
        dial = outputs.DialBLeg(
            uri,
            destination.trunk,
            destination.caller_id,
            by_pattern,
            briefed=destination.briefing is not None,
            interpreted=self._interpreter is not None,
        )
        return [note, sound, dial]

    def on_transfer_event(self, happening: inputs.TransferEvent, now: float) -> list[Output]:
        """Handle progress of the REFER (response or NOTIFY), or an event of the B-leg or of an
        interpreting session. A DTMF digit of the B-leg is sent on to the caller once the legs are
        joined; during the briefing the digit is the colleague's answer; otherwise it is
        dropped."""
        match happening:
            case inputs.ReferProgress():
                return self._on_refer_progress(happening, now)
            case inputs.BLegRinging(code):
                return self._on_ringing(code, now)
            case inputs.BLegAnswered():
                return self._on_b_leg_answered(now)
            case inputs.BLegDigit(digit):
                if self.joined:
                    return [outputs.SendDtmf(digit)]
                return self._step_briefing(lambda briefing: briefing.on_digit(digit, now), now)
            case inputs.BLegEnded():
                return self._on_b_leg_ended(happening, now)
            case _:
                return [] if self._interpreter is None else self._interpreter.on(happening, now)

    def tick(self, now: float) -> list[Output]:
        """At :attr:`deadline`, continue a briefing; else fail the transfer: ``unknown`` if a REFER
        with Replaces was sent, or the REFER accepted and no ringing reported; ``failed`` (408) if
        the REFER has no response; ``no_answer`` if the target rang or was dialed by us."""
        if self.deadline is None or now < self.deadline:
            return []
        if self.being_briefed:
            return self._step_briefing(lambda briefing: briefing.tick(now), now)
        if self._replacing or (self._taken and not self._ringing):
            return self._fail(Outcome.UNKNOWN, 0, now)
        if not self._has_b_leg and not self._taken:
            return self._fail(Outcome.FAILED, 408, now)
        return self._fail(Outcome.NO_ANSWER, 0, now)

    def abandon(self, now: float) -> list[Output]:
        """End the transfer because the call ends, the caller asked for a human, or the transfer has
        failed; nothing if it has not begun.

        Sets the outcome if there is none yet, or ``ringing``: ``unknown`` if the REFER was
        accepted, else ``failed``. Closes the interpreting sessions, and hangs up a B-leg. Neither
        the sound for the caller nor a briefing under way is ended here; the session's end, or
        :meth:`OutOfBandResponses.abandon`, ends the model's part in it.
        """
        if not self.begun:
            return []
        if self._attempt.outcome in ("", Outcome.RINGING):
            self._set_outcome(Outcome.UNKNOWN if self._taken else Outcome.FAILED, 0, now)
        dialled, self._has_b_leg = self._has_b_leg, False
        silent = self.stop_interpreting()
        return [*silent, outputs.HangUpBLeg()] if dialled else silent

    def stop_interpreting(self) -> list[Output]:
        """Close the sessions that interpret between the legs, which stay joined, and are no longer
        :attr:`interpreted`; nothing without an interpreter."""
        self.interpreted = False
        return [] if self._interpreter is None else self._interpreter.end()

    def end_by_bye(self, now: float) -> bool:
        """End the transfer by the BYE of the caller's side, with the outcome ``unknown``, if that
        accepted the REFER and has reported no ringing since the REFER was sent. Returns whether it
        did."""
        if not self._taken or self._ringing:
            return False
        self._set_outcome(Outcome.UNKNOWN, 0, now)
        return True

    def _on_refer_progress(self, told: inputs.ReferProgress, now: float) -> list[Output]:
        """Handle progress of the REFER (RFC 3515), by its code; 100 stands for its 202, 200 is of a
        NOTIFY, or of a peer that will send none.

        300 and more fails the transfer: ``refused`` where the REFER was not accepted, or could not
        be sent; the outcome of the code where it was, or where a limit of ours kept us from sending
        it. 200 and more is success, and sets :attr:`over`; 1xx as the last NOTIFY fails the
        transfer as ``unknown``; 180 to 199 of a blind transfer is told to the model; other codes
        are only logged. Nothing if the progress is of an earlier REFER: we have a B-leg, and no
        REFER was sent for it.
        """
        if self._has_b_leg and not self._replacing:
            return []  # of an earlier REFER
        if told.code >= 300:
            outcome = outcome_of(told.code) if self._taken or told.by_us else Outcome.REFUSED
            return self._fail(outcome, told.code, now)
        self._taken = True
        if told.code >= 200:
            self._set_outcome(Outcome.ANSWERED, told.code, now)
            self.over, self.detail = EndReason.TRANSFERRED, f"to {self.name}"
            return [self._timeline.note(now, "transfer_answered", "info", code=told.code)]
        if told.final:
            return self._fail(Outcome.UNKNOWN, told.code, now)
        if told.code >= 180 and not self._replacing:
            return self._on_ringing(told.code, now)
        return [self._timeline.note(now, "transfer_progress", code=told.code, phrase=told.phrase)]

    def _on_ringing(self, code: int, now: float) -> list[Output]:
        """Record, log and tell the model (system message, no response requested) that the target
        rings; once."""
        if self._ringing:
            return []
        self._ringing = True
        self._attempt.outcome = Outcome.RINGING
        content = [{"type": "input_text", "text": f"The transfer to {self.name} is ringing."}]
        note = self._timeline.note(now, "transfer_ringing", "info", code=code)
        return [
            note,
            outputs.Send(CreateItem({"type": "message", "role": "system", "content": content})),
        ]

    def _on_b_leg_answered(self, now: float) -> list[Output]:
        """Handle the B-leg's 200: begin the briefing, or without one connect caller and target.
        Only the first time; nothing without a B-leg."""
        if not self._has_b_leg or self._replacing or self.joined:
            return []
        note = self._timeline.note(now, "transfer_picked_up", "info", destination=self.name)
        plan = self._target.destination.briefing
        if plan is None:
            return [note, *self._connect(now)]
        if self._briefing is not None:
            return []
        words = plan.text or self._target.briefing
        self._briefing = Briefing(plan, words, self._timeline, self._speak, self._step_briefing)
        return [note, *self._step_briefing(lambda briefing: briefing.begin(now), now)]

    @property
    def being_briefed(self) -> bool:
        """Whether the colleague has answered the B-leg, is being briefed, and has not decided
        yet."""
        return self._has_b_leg and self._briefing is not None and not self._attempt.briefing

    def session_lost(self, now: float) -> list[Output]:
        """Go on without the model: a briefing that is to come is given by the route's sound, and so
        is one under way, unless the model has said it to its end. Where the route has no sound, it
        is ``skipped``: caller and target are connected. Nothing else changes."""
        self._speak = None
        return self._step_briefing(lambda briefing: briefing.session_lost(now), now)

    def _step_briefing(self, step: Callable[[Briefing], list[Output]], now: float) -> list[Output]:
        """Let the briefing take a step, and act on its answer, if it has one now: accepted or
        skipped connects caller and target, no_key fails the transfer as ``no_answer``, another
        answer as ``declined``. The transfer takes over the briefing's deadline, and the record its
        answer. Nothing unless :attr:`being_briefed`.

        Args:
            step: what the briefing is to do; returns outputs.
        """
        briefing = self._briefing
        if briefing is None or not self.being_briefed:
            return []
        todo = step(briefing)
        if not self.being_briefed:
            return todo  # a step within this one has ended the briefing
        self._attempt.briefing = briefing.answer
        self.deadline = briefing.deadline
        if not briefing.answer:
            return todo
        if briefing.answer in ("accepted", "skipped"):
            return todo + self._connect(now)
        outcome = Outcome.NO_ANSWER if briefing.answer == "no_key" else Outcome.DECLINED
        return todo + self._fail(outcome, 0, now)

    def _connect(self, now: float) -> list[Output]:
        """Connect caller and target, who has taken the call. Attended: send the REFER with
        Replaces, and wait ``TAKE_OVER_SECONDS``. Bridge: stop the sound and join the legs, with the
        interpreter if there is one; the outcome is ``answered``."""
        if self._target.destination.mode == "attended":
            self._replacing = True
            self._ringing = False
            self.deadline = now + TAKE_OVER_SECONDS
            return [outputs.Refer(replaces=True)]
        self.joined, self.audio_suspended, self.deadline = True, False, None
        self._set_outcome(Outcome.ANSWERED, 200, now)
        if self._interpreter is None:
            return [outputs.PlaySound(""), outputs.BridgeLegs(self._plan.listen)]
        self.interpreted = True
        return [outputs.PlaySound(""), *self._interpreter.begin()]

    def _on_b_leg_ended(self, ended: inputs.BLegEnded, now: float) -> list[Output]:
        """Handle the end of the B-leg, the first of these that applies: nothing if we have none;
        end a briefing as ``hung_up``; of a joined one set :attr:`over`, which ends the call; after
        a REFER with Replaces only log it, as NOTIFY tells the outcome; else fail the transfer, with
        the outcome of the code with which the B-leg ended (``failed`` for 2xx)."""
        if not self._has_b_leg:
            return []
        if self.being_briefed:
            return self._step_briefing(lambda briefing: briefing.end("hung_up", now), now)
        self._has_b_leg = False
        if self.joined:
            self.over = EndReason.BRIDGE_ENDED
            self.detail = f"{self.name}: {ended.code} {ended.phrase}"
            return [self._timeline.note(now, "bridge_ended", "info")]
        if self._replacing:
            # What replaces a call ends it (RFC 3891 section 3); NOTIFY has the last word.
            return [self._timeline.note(now, "transfer_replaced", code=ended.code)]
        if 200 <= ended.code < 300:
            return self._fail(Outcome.FAILED, ended.code, now)
        return self._fail(outcome_of(ended.code), ended.code, now)

    def _fail(self, outcome: Outcome, code: int, now: float) -> list[Output]:
        """End the transfer with this outcome: set :attr:`result` for the model (status, SIP code,
        reason, what to do next), stop the sound, let caller and model hear each other again, and
        hang up the B-leg.

        Args:
            code: SIP code; 0 for none.
        """
        self._set_outcome(outcome, code, now)
        self.audio_suspended, self.deadline = False, None
        result: dict[str, Any] = {"status": outcome.value, "destination": self.name}
        if code:
            result["sip_code"] = code
        if self._briefing is not None and self._briefing.answer in _REASONS:
            result["reason"] = _REASONS[self._briefing.answer]
        self.result = {**result, "next": _NEXT}
        note = self._timeline.note(now, "transfer_failed", "info", outcome=outcome.value, code=code)
        return [note, outputs.PlaySound(""), *self.abandon(now)]

    def _set_outcome(self, outcome: Outcome, code: int, now: float) -> None:
        """Set outcome, SIP code (0 for none) and duration of the attempt in the record."""
        self._attempt.outcome = outcome.value
        self._attempt.sip_code = code
        self._attempt.ms = round(self._timeline.ms(now) - self._attempt.at_ms, 1)

# SPDX-License-Identifier: GPL-2.0-or-later
"""One transfer, blind, attended or bridged, and the briefing of the colleague who answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from gateway.audio.codecs import BYTES_PER_MS, FRAME_MS
from gateway.call import inputs, outputs
from gateway.call.call_record import CallTimeline
from gateway.call.outputs import Output
from gateway.call.record_entries import TransferAttempt
from gateway.call.tools.commands import BriefingPlan, TransferPlan
from gateway.call.tools.definitions import Target
from gateway.ending import EndReason, Outcome, outcome_of
from gateway.realtime.events import CreateItem

TAKE_OVER_SECONDS = 20.0
"""The longest wait (s) for the caller's side to replace our call to a callee that has answered."""

_NEXT = "The caller is back with you: tell them, and offer something else."

SPEECH_SECONDS = 5.0
"""The longest wait (s) for the first audio of a briefing that the model speaks."""

SPEAKING_SECONDS = 30.0
"""The longest wait (s) for its last audio."""

REPEAT_SECONDS = 3.0
"""Pause (s) for a key, after which a briefing is repeated."""

MAX_BRIEFING_SECONDS = 60
"""More of it (s) is not played."""

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
    """Has the model speak out of band: :class:`OutOfBandResponses`."""

    bytes_per_ms: int

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
        """Request a spoken response, which the caller does not hear; ``key`` is for :meth:`cancel`.

        Args:
            seconds: longest time that it may take.
            words: the words that it should say.
            then: called once, with status, text and time.
            audio: called with each piece of speech, and the time.
        """

    def cancel(self, key: str, now: float) -> list[Output]:
        """Cancel the response that was requested under ``key``, if it has not ended."""


class Interpreter(Protocol):
    """Interprets between the joined legs: :class:`gateway.call.interpretation.Interpretation`."""

    def begin(self) -> list[Output]:
        """Join the legs, and open both sessions."""

    def end(self) -> list[Output]:
        """Close both sessions; nothing where they are closed."""

    def on(self, happening: inputs.InterpreterInput, now: float) -> list[Output]:
        """Handle an event of a session that interprets, or its end."""


class Briefing:
    """Tells the colleague who has answered what the call is about, and waits for their key.

    The model speaks it as an out-of-band response that only the colleague hears; it is repeated
    until a key is pressed. Without the model they hear the route's sound, and without that the call
    is joined at once.

    Args:
        words: said before the prompt; "" for a summary by the model.
        speak: has the model speak; None where no session is up.
        step: has the transfer take a step of the briefing and act on its :attr:`answer`.
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
        """accepted, declined, hung_up, no_key, or skipped where it could not be given; "" yet."""
        self._plan = plan
        self._words = words
        self._timeline = timeline
        self._speak = speak
        self._step = step
        self._answer_by = 0.0
        self._key = ""
        """Of what the model says."""
        self._speech_by: float | None = None
        """Until when the first audio has to come (s)."""
        self._repeat_at: float | None = None
        self._began = 0.0
        self._audio = bytearray()
        self._played = 0
        self._by_model = True
        self._recorded = False

    @property
    def deadline(self) -> float:
        """When :meth:`tick` is due next (s)."""
        due = (self._answer_by, self._speech_by, self._repeat_at)
        return min(at for at in due if at is not None)

    def begin(self, now: float) -> list[Output]:
        """Play music to the caller, and request the spoken briefing; start its recording, where the
        call is recorded and the route wants that."""
        self._answer_by = now + self._plan.timeout
        begun: list[Output] = [outputs.PlaySound(self._plan.music)]
        recording = self._timeline.record.recording
        if self._plan.record and recording is not None and recording.state == "recording":
            self._recorded = True
            begun.append(outputs.StartRecording(b_leg=True))
        if self._speak is None:
            return [*begun, *self._without_model("no session is up", now)]
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
        """Accept or decline by a DTMF digit of the colleague; other digits are ignored."""
        if digit == self._plan.accept_key:
            return self.end("accepted", now)
        return self.end("declined", now) if digit == self._plan.decline_key else []

    def tick(self, now: float) -> list[Output]:
        """Repeat the briefing, play the sound instead of a model that says nothing, or end it as
        ``no_key``."""
        if now >= self._answer_by:
            return self.end("no_key", now)
        if self._speech_by is not None and now >= self._speech_by:
            return self._without_model("the model said nothing", now)
        if self._repeat_at is not None and now >= self._repeat_at:
            self._began, self._repeat_at = now, None
            return [outputs.PlayBriefing(bytes(self._audio)), *self._plan_repetition(now)]
        return []

    def session_lost(self, now: float) -> list[Output]:
        """Go on after the session is lost: repeat a briefing that was said to its end, else play
        the sound."""
        self._speak = None
        return self._without_model("the session was lost", now) if self._repeat_at is None else []

    def end(self, answer: str, now: float) -> list[Output]:
        """Stop the briefing, and set its answer, once: accepted, declined, hung_up, no_key or
        skipped."""
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
        """Return ``PlayBriefing`` with the whole frames of what the model says, at most
        ``MAX_BRIEFING_SECONDS``."""
        if not self._by_model:
            return []
        if self._speech_by is not None:
            self._speech_by, self._began = None, now
        self._audio += audio[: MAX_BRIEFING_SECONDS * 1000 * self._bytes_per_ms - len(self._audio)]
        whole = len(self._audio) - len(self._audio) % (FRAME_MS * self._bytes_per_ms)
        begun, self._played = self._played, whole
        return [outputs.PlayBriefing(bytes(self._audio[begun:whole]))] if whole > begun else []

    def _on_speech_done(self, status: str, text: str, now: float) -> list[Output]:
        """Handle the end of the spoken response: wait for the key, or without audio play the
        sound."""
        if not self._by_model:
            return []
        if status != "completed" or self._speech_by is not None:
            return self._without_model(f"{status}: {text}".rstrip(": ")[:200], now)
        del self._audio[self._played :]
        return self._plan_repetition(now)

    def _plan_repetition(self, now: float) -> list[Output]:
        """Set the time of the repetition: ``REPEAT_SECONDS`` after the end of the briefing."""
        heard_at = self._began + len(self._audio) / self._bytes_per_ms / 1000
        self._repeat_at = max(now, heard_at) + REPEAT_SECONDS
        return []

    def _without_model(self, why: str, now: float) -> list[Output]:
        """Play the route's sound in place of the model; without a sound, join the call at once."""
        if self.answer or not self._by_model:
            return []
        self._by_model, self._speech_by = False, None
        note = self._timeline.note(now, "briefing_failed", "warning", reason=why)
        if not self._plan.sound:
            return [note, *self.end("skipped", now)]
        return [note, outputs.PlayBriefing(b""), outputs.PlaySound(self._plan.sound, b_leg=True)]


class Transfer:
    """One transfer, from the request to its outcome; the caller hears a sound meanwhile.

    *Blind*: the caller's side is asked to call the target (REFER, RFC 3515) and reports progress.
    *Attended*: we call the target first, and the caller's side takes that call over (Replaces, RFC
    3891 and RFC 5589 section 7). *Bridge*: we call the target and join both. In both, the target
    may be briefed before (:class:`Briefing`).
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
        self._ringing = False
        self._replacing = False
        self._has_b_leg = False
        self._speak = speak
        self._briefing: Briefing | None = None
        """From the answer on; it stays when it is over."""
        self._attempt = TransferAttempt(0.0, target.destination.name, target.uri, "")

    @property
    def name(self) -> str:
        """Name of the destination in the route."""
        return self._target.destination.name

    def begin(self, now: float) -> list[Output]:
        """Return ``Refer`` for a blind transfer, else ``DialBLeg``, with the sound for the
        caller."""
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
        """Handle progress of the REFER (response or NOTIFY), or an event of B-leg or
        interpreter."""
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
                return self._briefed(lambda briefing: briefing.on_digit(digit, now), now)
            case inputs.BLegEnded():
                return self._on_b_leg_ended(happening, now)
            case _:
                return [] if self._interpreter is None else self._interpreter.on(happening, now)

    def tick(self, now: float) -> list[Output]:
        """Continue the briefing at :attr:`deadline`, or end the transfer without an answer."""
        if self.deadline is None or now < self.deadline:
            return []
        if self.being_briefed:
            return self._briefed(lambda briefing: briefing.tick(now), now)
        if self._replacing or (self._taken and not self._ringing):
            return self._fail(Outcome.UNKNOWN, 0, now)
        if not self._has_b_leg and not self._taken:
            return self._fail(Outcome.FAILED, 408, now)
        return self._fail(Outcome.NO_ANSWER, 0, now)

    def abandon(self, now: float) -> list[Output]:
        """End the transfer because the call is over or it has failed: hang up the B-leg, and set
        the outcome where there is none."""
        if not self.begun:
            return []
        if self._attempt.outcome in ("", Outcome.RINGING):
            self._set_outcome(Outcome.UNKNOWN if self._taken else Outcome.FAILED, 0, now)
        dialled, self._has_b_leg = self._has_b_leg, False
        silent = self.stop_interpreting()
        return [*silent, outputs.HangUpBLeg()] if dialled else silent

    def stop_interpreting(self) -> list[Output]:
        """Close the sessions that interpret; nothing without an interpreter."""
        return [] if self._interpreter is None else self._interpreter.end()

    def taken_over(self, now: float) -> bool:
        """Return whether the caller's BYE means success: the REFER was accepted, and nothing told
        since."""
        if not self._taken or self._ringing:
            return False
        self._set_outcome(Outcome.UNKNOWN, 0, now)
        return True

    def _on_refer_progress(self, told: inputs.ReferProgress, now: float) -> list[Output]:
        """Handle a response to the REFER or a NOTIFY (RFC 3515): 2xx ends the call as transferred,
        300 and more fails the transfer, 180 and more is told to the model."""
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
        """Tell the model that the target rings, once."""
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
        """Handle the B-leg's 200: begin the briefing, or join the legs."""
        if not self._has_b_leg or self._replacing or self.joined:
            return []
        note = self._timeline.note(now, "transfer_picked_up", "info", destination=self.name)
        plan = self._target.destination.briefing
        if plan is None:
            return [note, *self._connect(now)]
        if self._briefing is not None:
            return []
        words = plan.text or self._target.briefing
        self._briefing = Briefing(plan, words, self._timeline, self._speak, self._briefed)
        return [note, *self._briefed(lambda briefing: briefing.begin(now), now)]

    @property
    def being_briefed(self) -> bool:
        """Whether the colleague has answered the B-leg and not decided yet."""
        return self._has_b_leg and self._briefing is not None and not self._attempt.briefing

    def session_lost(self, now: float) -> list[Output]:
        """Go on without the model: finish a briefing without it."""
        self._speak = None
        return self._briefed(lambda briefing: briefing.session_lost(now), now)

    def _briefed(self, step: Callable[[Briefing], list[Output]], now: float) -> list[Output]:
        """Take a step of the briefing, and act on its answer: join the legs, or fail the
        transfer."""
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
        """Join caller and B-leg (``BridgeLegs``), or send the REFER with Replaces of an attended
        transfer."""
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
        """Handle the end of the B-leg: of a joined one end the call, else fail the transfer or its
        briefing."""
        if not self._has_b_leg:
            return []
        if self.being_briefed:
            return self._briefed(lambda briefing: briefing.end("hung_up", now), now)
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
        """End the transfer with this outcome: set the result for the model, stop the sound, and
        hang up the B-leg."""
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
        """Set outcome, SIP code and duration in the record."""
        self._attempt.outcome = outcome.value
        self._attempt.sip_code = code
        self._attempt.ms = round(self._timeline.ms(now) - self._attempt.at_ms, 1)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording of a call: whether it is recorded, the caller's consent, and what is left out of it."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from gateway.call.call_record import RecordingRecord
from gateway.call.conversation.control import ConversationControl
from gateway.call.inputs import (
    DigitPressed,
    Input,
    PlayoutDrained,
    PlayoutStarted,
    ServerEventReceived,
)
from gateway.call.outputs import (
    Output,
    SilenceRecording,
    StartRecording,
    StopRecording,
)
from gateway.call.tools.commands import RecordingPlan
from gateway.realtime.events import CreateResponse, InputTranscribed
from gateway.text import contains_phrase, words_of

QUESTION_SECONDS = 15.0
"""The longest wait (s) for the prompt to be heard; the time for an answer begins after it."""


class State(StrEnum):
    """State of the recording of a call."""

    OFF = ""
    ASKING = "asking"
    RECORDING = "recording"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


ACTIONS = ("start", "stop", "pause", "resume", "delete")
"""What the model, an application or an operator may do; ``delete`` stops, and leaves no file."""

_UP = (State.RECORDING, State.PAUSED)


def refusal_of(record: RecordingRecord | None, plan: RecordingPlan, action: str) -> str:
    """Return why ``action`` cannot be done to the call's recording now; empty: it can."""
    state = State.OFF if record is None else State(record.state)
    if plan.mode == "off":
        return "the route does not allow recordings"
    if action == "start" and state in (State.REFUSED, State.DELETED):
        return "the caller did not agree to it, or had it deleted"
    if action == "start" and state is not State.OFF and state is not State.UNANSWERED:
        return f"the recording is {state.value} already"
    if action == "pause" and state is not State.RECORDING:
        return "nothing is being recorded"
    if action == "resume" and state is not State.PAUSED:
        return "no recording is paused"
    if action == "delete" and state is State.STOPPED:
        return ""
    if action in ("stop", "delete") and state not in _UP:
        return "nothing is being recorded"
    return ""


class CallRecording:
    """Decides whether the call is recorded (``[route.recording]``): asks for consent, starts and
    stops."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        PlayoutStarted,
        PlayoutDrained,
        DigitPressed,
        InputTranscribed,
    )

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._greeting: CreateResponse | None = None
        """Requested once the caller has answered."""
        self._heard = self._begun = False
        self._by = ""
        self.deadline: float | None = None

    @property
    def _plan(self) -> RecordingPlan:
        """Settings of ``[route.recording]``, complete once the call's data are there."""
        return self._control.plan.recording

    @property
    def state(self) -> State:
        """State of the recording, as the record has it."""
        record = self._control.timeline.record.recording
        return State.OFF if record is None else State(record.state)

    @property
    def wants_digits(self) -> bool:
        """Whether the caller is being asked to press a key for consent."""
        return self.state is State.ASKING and self._plan.consent == "ask"

    def on_digit(self, _digit: str, _now: float) -> list[Output]:
        """Return nothing: this keeps the digit from the conversation, and :meth:`on` handles it."""
        return []

    # ---- what happens

    def ask_for_consent(self, greeting: CreateResponse | None, now: float) -> list[Output] | None:
        """Announce the recording or ask for consent, before the greeting. None where the route asks
        nothing.

        Args:
            greeting: requested after the answer; None for none.
        """
        if self._plan.mode != "always" or self._plan.consent == "none" or self.state:
            return None
        self._greeting = greeting
        return self._begin_asking("route", now)

    def start_if_due(self, now: float, *, confirmed: bool) -> list[Output]:
        """Return ``StartRecording`` on a route that records always and asks nobody, once the ACK
        came."""
        plan = self._plan
        if not confirmed or plan.mode != "always" or plan.consent != "none" or self.state:
            return []
        return self._start("route", "", now)

    def on_bridged(self, now: float) -> list[Output]:
        """Stop the recording as the legs are joined, unless the route has ``after_transfer``."""
        if self._plan.after_transfer:
            return []
        if self.state is State.ASKING:
            return self._decide(State.UNANSWERED, "unanswered", now)
        return self._stop(State.STOPPED, now) if self.state in _UP else []

    def on(self, input: Input, now: float) -> list[Output]:
        """Follow the playout of the prompt, and take the caller's yes or no by digit or words."""
        if isinstance(input, DigitPressed):
            return self._answer(
                input.digit == self._plan.no_key, input.digit == self._plan.yes_key, now
            )
        if isinstance(input, ServerEventReceived):
            assert isinstance(input.event, InputTranscribed)
            words = words_of(input.event.transcript)
            no = any(contains_phrase(words, phrase) for phrase in self._plan.no_phrases)
            yes = any(contains_phrase(words, phrase) for phrase in self._plan.yes_phrases)
            return self._answer(no, yes, now)
        if self.state is not State.ASKING or self._heard:
            return []
        if isinstance(input, PlayoutStarted):
            self._begun = True
        elif self._begun and self._control.responses.idle:
            return self._prompt_heard(now)
        return []

    def tick(self, now: float) -> list[Output]:
        """Act on the end of the time for the prompt, or for the answer: go on without one."""
        if self.deadline is None or now < self.deadline:
            return []
        self.deadline = None
        if self.state is not State.ASKING:
            return []
        if not self._heard and self._begun:
            return self._prompt_heard(now)
        return self._decide(State.UNANSWERED, "unanswered", now)

    def command(self, action: str, by: str, now: float) -> tuple[str, list[Output]]:
        """Start, stop, pause, resume or delete the recording (``action``).

        Returns why that cannot be done, or "", and the outputs.

        Args:
            by: route, tool, operator or application.
        """
        refused = refusal_of(self._control.timeline.record.recording, self._plan, action)
        if refused:
            return refused, []
        note = self._control.timeline.note
        if action == "start":
            if self._plan.consent != "none":
                return "", self._begin_asking(by, now)
            return "", self._start(by, "", now)
        if action == "stop":
            return "", self._stop(State.STOPPED, now)
        if action == "delete":
            return "", self._stop(State.DELETED, now)
        paused = action == "pause"
        self._enter(State.PAUSED if paused else State.RECORDING)
        event = "recording_paused" if paused else "recording_resumed"
        return "", [SilenceRecording(paused), note(now, event, "info", by=by)]

    # ---- consent

    def _begin_asking(self, by: str, now: float) -> list[Output]:
        """Have the model say the prompt, and set its deadline."""
        self._by, self._heard, self._begun = by, False, self._control.speaking
        self._enter(State.ASKING)
        self.deadline = now + QUESTION_SECONDS
        note = self._control.timeline.note(now, "recording_asked", "info", by=by)
        return [note, *self._control.say(self._plan.prompt, now)]

    def _prompt_heard(self, now: float) -> list[Output]:
        """Start recording (``consent = "announce"``), or set the deadline of the answer
        (``"ask"``)."""
        self._heard = True
        self.deadline = now + self._plan.consent_timeout
        if self._plan.consent == "ask":
            return []
        return self._start(self._by, "announced", now) + self._greet(now)

    def _answer(self, no: bool, yes: bool, now: float) -> list[Output]:
        """Handle the caller's answer; a "no" after an announcement stops and deletes the
        recording."""
        record = self._control.timeline.record.recording
        asking = self.state is State.ASKING
        may_object = (
            record is not None and record.consent == "announced" and self.deadline is not None
        )
        if no and self.state in _UP and may_object:
            return self._stop(State.REFUSED, now, consent="refused")
        if not asking:
            return []
        if no:
            return self._decide(State.REFUSED, "refused", now)
        if yes and self._plan.consent == "ask":
            return self._decide(State.RECORDING, "given", now)
        return []

    def _decide(self, state: State, consent: str, now: float) -> list[Output]:
        """Start recording, or note that it was refused or not answered; then request the greeting.

        Args:
            consent: given, refused or unanswered.
        """
        self.deadline = None
        if state is State.RECORDING:
            return self._start(self._by, consent, now) + self._greet(now)
        self._enter(state).consent = consent
        note = self._control.timeline.note(now, "recording_refused", "info", consent=consent)
        words = "The caller did not agree to a recording of this call; it is not recorded."
        return [note, *self._control.add_message(words), *self._greet(now)]

    def _greet(self, now: float) -> list[Output]:
        """Request the greeting that has waited for the consent."""
        greeting, self._greeting = self._greeting, None
        return [] if greeting is None else self._control.request_response(greeting, now)

    # ---- the recorder

    def _start(self, by: str, consent: str, now: float) -> list[Output]:
        """Return ``StartRecording``, and set who started it in the record."""
        record = self._enter(State.RECORDING)
        record.started_by, record.consent = by, consent
        record.began_ms = round(self._control.timeline.ms(now), 1)
        note = self._control.timeline.note(now, "recording_started", "info", by=by)
        return [StartRecording(), note]

    def _stop(self, state: State, now: float, consent: str = "") -> list[Output]:
        """Return ``StopRecording``, which deletes the file unless ``state`` is STOPPED."""
        record = self._enter(state)
        record.consent = consent or record.consent
        self.deadline = None
        deleted = state is not State.STOPPED
        note = self._control.timeline.note(now, "recording_stopped", "info", deleted=deleted)
        outputs: list[Output] = [StopRecording(discard=deleted), note]
        if state is State.REFUSED:
            words = "The caller objected to the recording of this call; it was deleted."
            outputs += self._control.add_message(words)
        return outputs

    def _enter(self, state: State) -> RecordingRecord:
        """Set the state in the call's record; return that record."""
        call = self._control.timeline.record
        if call.recording is None:
            call.recording = RecordingRecord()
        call.recording.state = state.value
        return call.recording

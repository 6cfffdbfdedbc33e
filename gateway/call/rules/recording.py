# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording of a call: whether it is recorded, the caller's consent, and pauses.

A route records always or on demand; consent is not asked for, the recording is announced and the
caller may say no, or only a caller who says yes is recorded.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from gateway.call.call_record import RecordingRecord
from gateway.call.conversation.control import ConversationControl, Prompt
from gateway.call.conversation.out_of_band import LATE_WORDS_SECONDS
from gateway.call.inputs import (
    DigitPressed,
    HoldChanged,
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
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    CreateResponse,
    InputTranscribed,
    ResponseCreated,
    ServerEvent,
    SpeechStarted,
)
from gateway.text import contains_phrase, words_of

QUESTION_SECONDS = 15.0
"""The longest wait (s) for the prompt to begin and be heard; a prompt that has begun by then counts
as heard. The time for an answer begins after it."""

KEY_SECONDS = 1.0
"""From a key that is no answer until the prompt that it has cut off is said again (s)."""

MAX_REPEATS = 3
"""How often a prompt that was interrupted is said again, or one that waits gets more time, before
the call is not recorded. One that ended without audio is said again once."""

MAX_TURNS = 8
"""Turns of the caller whose words are awaited; a transcript comes within seconds."""


class State(StrEnum):
    """State of the recording of a call, as the record has it."""

    OFF = ""
    ASKING = "asking"
    RECORDING = "recording"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


ACTIONS = ("start", "stop", "pause", "resume", "delete")
"""What the model, an application or an operator may do; ``delete`` stops, and deletes the file."""

_UP = (State.RECORDING, State.PAUSED)
"""States with a recording under way."""


def refusal_of(record: RecordingRecord | None, plan: RecordingPlan, action: str) -> str:
    """Return why ``action`` (of ``ACTIONS``) cannot be done to the call's recording now, in words;
    "" if it can.

    Args:
        record: None before anything was asked or recorded.
    """
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
    stops.

    With ``consent = "announce"`` the recording starts after the prompt, and a no within
    ``consent_timeout`` stops and deletes it; with ``"ask"`` it starts once the caller says yes.
    Answers are DTMF digits or words. The greeting waits for the end of the announcement, or for the
    answer to the question.
    """

    reacts_to: ClassVar[tuple[type, ...]] = (
        PlayoutStarted,
        PlayoutDrained,
        DigitPressed,
        HoldChanged,
        SpeechStarted,
        InputTranscribed,
        ResponseCreated,
    )

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._greeting: CreateResponse | None = None
        """Request for the greeting, sent after the decision; None for none."""
        self._prompt = Prompt(control)
        """Counts as heard once it was played to its end, or still is after ``QUESTION_SECONDS``."""
        self._begun = False
        """It has begun to be played."""
        self._said_at = 0.0
        """When the response that says it began (s)."""
        self._waits = 0
        """How often the agent had waited in a queue when the prompt was requested."""
        self._repeats = 0
        """How often it was said again, or got more time to begin."""
        self._turns: BoundedDict[str, bool] = BoundedDict(MAX_TURNS)
        """Of the caller's latest turns, by item: whether they may have heard some of the prompt as
        they began to speak."""
        self._by = ""
        """Who wants the recording: route, tool, operator or application."""
        self._due: float | None = None
        """When the prompt or the answer is late (s)."""
        self._held_at: float | None = None
        """Since when the caller has us on hold (s); None while they have not."""

    @property
    def _plan(self) -> RecordingPlan:
        """Settings of ``[route.recording]``, read anew each time: the plan with the call's fetched
        data replaces the first one."""
        return self._control.plan.recording

    @property
    def state(self) -> State:
        """State of the recording, as the record has it; ``OFF`` before anything was asked or
        recorded."""
        record = self._control.timeline.record.recording
        return State.OFF if record is None else State(record.state)

    @property
    def deadline(self) -> float | None:
        """When the prompt or the answer is late, or the past if a greeting was kept (s); None
        without these, and while nobody would hear anything."""
        if self._unheard:
            return None
        return 0.0 if self.has_greeting and self.state is not State.ASKING else self._due

    @property
    def has_greeting(self) -> bool:
        """Whether a greeting waits here."""
        return self._greeting is not None

    @property
    def _unheard(self) -> bool:
        """Whether nobody would hear what is said: there is no session, the caller has music, as
        during a transfer, or has us on hold, or the agent waits in the other side's queue."""
        control = self._control
        suspended = control.call_actions.audio_suspended or self._held_at is not None
        return control.between_sessions or suspended or control.waiting

    @property
    def _queued_since(self) -> bool:
        """Whether the agent has waited in a queue since the prompt was requested: whoever picks up
        has not heard it."""
        return self._waits != len(self._control.timeline.record.content.hold_waits)

    @property
    def _say_due(self) -> bool:
        """Whether the prompt is to be said again: it is lost, with its session or otherwise, or was
        said before the agent waited in a queue, for which requests are dropped."""
        if self.state is not State.ASKING or self._prompt.requested:
            return False
        return self._queued_since or self._prompt.lost

    def _may_agree(self, now: float) -> bool:
        """Return whether the caller may have heard some of the prompt, so that they can agree to
        it: some of its audio was handed to RTP. False where the agent has waited in a queue
        since."""
        if self.state is not State.ASKING or self._queued_since:
            return False
        return self._prompt.heard or self._prompt.heard_ms(now) > 0

    @property
    def wants_digits(self) -> bool:
        """Whether the caller's DTMF digits are kept from the conversation, as answers: consent is
        being asked for (``consent = "ask"``). The conversation also gets a key that objects to an
        announcement."""
        return self.state is State.ASKING and self._plan.consent == "ask"

    def drops(self, _digit: str, _now: float) -> bool:
        """Return False."""
        return False

    def on_digit(self, _digit: str, _now: float) -> list[Output]:
        """Return nothing. A digit passed here is kept from the conversation; :meth:`on` gets it,
        too, and takes the answer."""
        return []

    # ---- what happens

    def ask_for_consent(self, greeting: CreateResponse | None, now: float) -> list[Output] | None:
        """Have the model say the prompt, before the greeting. Returns None, and the caller of this
        requests the greeting, unless the route records always, with consent ``announce`` or
        ``ask``, and the recording has no state yet, or the session was lost before the prompt was
        heard.

        Args:
            greeting: requested by this rule once the prompt was heard (``announce``), or once the
                caller has answered or ``consent_timeout`` is over (``ask``); None for none.
        """
        unheard = self.state is State.ASKING and not self._prompt.heard
        self._greeting = None
        if self._plan.mode != "always" or self._plan.consent == "none":
            return None
        if self.state and not unheard:
            return None
        self._greeting = greeting
        return self._begin_asking("route", now)

    def start_if_due(self, now: float, *, confirmed: bool) -> list[Output]:
        """Start the recording, on a route that records always and asks for no consent, once
        ``confirmed``: the ACK came. Nothing if the recording has a state already. Called after each
        input, and before ``StartMedia``, so that the first frame is recorded."""
        plan = self._plan
        if not confirmed or plan.mode != "always" or plan.consent != "none" or self.state:
            return []
        return self._start("route", "", now)

    def on_bridged(self, now: float) -> list[Output]:
        """Stop the recording as caller and B-leg are joined, unless the route has
        ``after_transfer``. Where consent is still awaited, give it up as not answered, without a
        greeting: nobody asks any more, and what the caller says or presses is for the B-leg."""
        self._greeting = None  # the model listens, if it hears them at all
        if self.state is State.ASKING:
            return self._decide(State.UNANSWERED, "unanswered", now)
        if self._plan.after_transfer:
            return []
        return self._stop(State.STOPPED, now) if self.state in _UP else []

    def on(self, input: Input, now: float) -> list[Output]:
        """Take the caller's no or yes, from a DTMF digit or a transcript with one of the phrases. A
        digit for a joined B-leg, an approval or ``collect_digits`` is none. The prompt counts as
        heard when playout has begun and run empty, and no response runs, is requested or waits. If
        it was interrupted, had no audio, or could not be requested, it is said again then; after a
        digit that is no answer in ``KEY_SECONDS``. Time does not count while the caller has us on
        hold."""
        if isinstance(input, HoldChanged):
            return self._on_hold_changed(input.held, now)
        if isinstance(input, DigitPressed):
            taken, self._control.digit_taken = self._control.digit_taken, False
            if taken or self._control.call_actions.joined:
                return []
            no, yes = input.digit == self._plan.no_key, input.digit == self._plan.yes_key
            outputs = self._answer(no, yes and self._may_agree(now), now)
            if self._say_due and self.wants_digits:
                self._due = now + KEY_SECONDS  # no turn of the caller follows
            return outputs
        if isinstance(input, ServerEventReceived):
            return self._on_event(input.event, now)
        if self.state is not State.ASKING:
            return []
        if isinstance(input, PlayoutStarted):
            self._begun = True
        elif self._begun and self._control.responses.idle:
            if self._say_due:
                return [] if self.deadline is None else self._say_again(now)
            return [] if self._prompt.heard else self._on_prompt_heard(now)
        return []

    def _on_hold_changed(self, held: bool, now: float) -> list[Output]:
        """Put the deadline off by the length of a hold that is over. Returns no output."""
        if held:
            self._held_at = now if self._held_at is None else self._held_at
        elif self._held_at is not None:
            if self._due is not None:
                self._due += now - self._held_at
            self._held_at = None
        return []

    def _on_event(self, event: ServerEvent, now: float) -> list[Output]:
        """Note which response says the prompt, and what the caller has heard as they begin to
        speak; take their answer from a transcript. A yes counts by when its turn began, since its
        words come later. Where that is not known, as it was too soft, it counts by now, and with a
        server whose words come late only ``LATE_WORDS_SECONDS`` after the prompt began."""
        unheard = self.state is State.ASKING and not self._prompt.heard
        match event:
            case ResponseCreated(response_id) if unheard:
                if self._prompt.on_response_created(response_id):
                    self._said_at = now
                    before = self._control.playback.queued_ms / 1000
                    self._due = now + before + QUESTION_SECONDS
            case SpeechStarted(item_id):
                self._turns[item_id] = self._may_agree(now)
            case InputTranscribed(item_id, text):
                words = words_of(text)
                no = any(contains_phrase(words, phrase) for phrase in self._plan.no_phrases)
                yes = any(contains_phrase(words, phrase) for phrase in self._plan.yes_phrases)
                may_agree = self._turns.get(item_id)
                if may_agree is None:
                    late = self._control.capabilities.late_words
                    spoke_after = now - (LATE_WORDS_SECONDS if late else 0.0)
                    may_agree = self._may_agree(now) and self._said_at <= spoke_after
                return self._answer(no, yes and may_agree and not self._queued_since, now)
        return []

    def on_session_over(self) -> None:
        """Note that a prompt that is not complete, or was interrupted, is lost with its session
        (:meth:`Prompt.on_session_over`)."""
        self._prompt.on_session_over()
        self._turns.clear()  # the next one may use the ids again

    def ask_again(self, now: float) -> list[Output]:
        """Have the session that has taken over say a prompt that was lost, or the greeting, where
        consent was decided meanwhile; nothing without these."""
        if self.state is not State.ASKING:
            return self._greet(now)
        return self._begin_asking(self._by, now) if self._say_due else []

    def tick(self, now: float) -> list[Output]:
        """Act on the deadline, if consent is awaited: a prompt that is being played counts as heard
        now, one that was interrupted, had no audio or could not be requested is said again, and one
        that is still to come, as it waits for another response, gets as long once more
        (``MAX_REPEATS`` in all); where nothing was said, or no answer came, that counts as
        unanswered: the call is not recorded. After an announcement the caller may no longer object.
        A greeting that was kept is requested."""
        if self.deadline is None or now < self.deadline:
            return []
        if self._due is not None and now >= self._due:
            self._due = None
        if self.state is not State.ASKING:
            return self._greet(now)
        if self._say_due:
            return self._say_again(now)
        if not self._prompt.heard:
            coming, waits = self._prompt.requested, self._begun and not self._control.responses.idle
            if self._begun and not (coming or self._prompt.soundless):
                return self._on_prompt_heard(now)
            if (coming or waits) and self._repeats < MAX_REPEATS:
                self._repeats += 1  # it waits for what is being said
                self._due = now + QUESTION_SECONDS
                return []
        return self._decide(State.UNANSWERED, "unanswered", now)

    def command(self, action: str, by: str, now: float) -> tuple[str, list[Output]]:
        """Do one of ``ACTIONS`` to the recording; where the route has a consent, ``start`` says the
        prompt first, and cannot be done while the legs are joined. In a pause silence is recorded.

        Returns why the action cannot be done, or "" if it was done (or the prompt requested), and
        the outputs.

        Args:
            by: tool, operator or application: for the record who has started the recording, for
                the log also who has paused or resumed it.
        """
        refused = refusal_of(self._control.timeline.record.recording, self._plan, action)
        if refused:
            return refused, []
        note = self._control.timeline.note
        if action == "start":
            if self._plan.consent == "none":
                return "", self._start(by, "", now)
            if self._control.call_actions.joined:
                return "the model cannot ask or tell a caller who is joined with a colleague", []
            return "", self._begin_asking(by, now)
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
        """Have the model say the prompt, once a session is up, and set the deadline
        ``QUESTION_SECONDS`` for it.

        Args:
            by: who wants the recording, for record and log.
        """
        self._by, self._begun = by, self._control.speaking
        self._waits = len(self._control.timeline.record.content.hold_waits)
        self._enter(State.ASKING)
        self._due = now + QUESTION_SECONDS
        note = self._control.timeline.note(now, "recording_asked", "info", by=by)
        return [note, *self._prompt.say(self._plan.prompt, now)]

    def _on_prompt_heard(self, now: float) -> list[Output]:
        """Handle the prompt's end, or the end of ``QUESTION_SECONDS`` while it is still played: set
        the deadline ``consent_timeout`` for the caller's answer; with consent ``announce`` also
        start recording, and request the greeting if one has waited for that."""
        self._prompt.heard = True
        self._due = now + self._plan.consent_timeout
        if self._plan.consent == "ask":
            return []
        return self._start(self._by, "announced", now) + self._greet(now)

    def _say_again(self, now: float) -> list[Output]:
        """Have the model say the prompt again; after ``MAX_REPEATS``, or once after one that ended
        without audio, give it up as not answered."""
        if self._repeats >= MAX_REPEATS:
            return self._decide(State.UNANSWERED, "unanswered", now)
        # One without audio has failed, with its retries, and such failures in a row end the call.
        self._repeats = MAX_REPEATS if self._prompt.soundless else self._repeats + 1
        return self._begin_asking(self._by, now)

    def _answer(self, no: bool, yes: bool, now: float) -> list[Output]:
        """Handle the caller's answer; with both, ``no`` counts. A no while consent is awaited
        refuses the recording; one within ``consent_timeout`` after an announcement stops and
        deletes it. A yes starts it, where that was asked (``consent = "ask"``). Nothing at other
        times.

        Args:
            yes: given by who had heard some of the question (:meth:`_may_agree`).
        """
        record = self._control.timeline.record.recording
        asking = self.state is State.ASKING
        may_object = record is not None and record.consent == "announced" and self._due is not None
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
        """End the wait for consent: start recording, or set ``state`` and consent in the record and
        tell the model that the call is not recorded; then request the greeting.

        Args:
            state: RECORDING, REFUSED or UNANSWERED.
            consent: given, refused or unanswered, for the record.
        """
        self._due, self._repeats = None, 0
        if state is State.RECORDING:
            return self._start(self._by, consent, now) + self._greet(now)
        self._enter(state).consent = consent
        note = self._control.timeline.note(now, "recording_refused", "info", consent=consent)
        words = "The caller did not agree to a recording of this call; it is not recorded."
        return [note, *self._control.add_message(words), *self._greet(now)]

    def _greet(self, now: float) -> list[Output]:
        """Request the greeting that has waited for the consent, once; nothing without one. It is
        kept while nobody would hear it."""
        if self._unheard:
            return []
        greeting, self._greeting = self._greeting, None
        return [] if greeting is None else self._control.request_response(greeting, now)

    # ---- the recorder

    def _start(self, by: str, consent: str, now: float) -> list[Output]:
        """Start the recording: set state (RECORDING), time (ms), consent and who started it in the
        record, and return ``StartRecording`` and its log line.

        Args:
            consent: given or announced; "" where the route has none.
        """
        record = self._enter(State.RECORDING)
        record.started_by, record.consent = by, consent
        record.began_ms = round(self._control.timeline.ms(now), 1)
        note = self._control.timeline.note(now, "recording_started", "info", by=by)
        return [StartRecording(), note]

    def _stop(self, state: State, now: float, consent: str = "") -> list[Output]:
        """Stop the recording: set the state in the record, and return ``StopRecording`` and its log
        line. From now on the caller cannot object.

        Args:
            state: STOPPED, or DELETED or REFUSED, with which the file is deleted; with REFUSED the
                model is told that the caller has objected.
            consent: for the record; "" leaves it as it is.
        """
        record = self._enter(state)
        record.consent = consent or record.consent
        self._due = None
        deleted = state is not State.STOPPED
        note = self._control.timeline.note(now, "recording_stopped", "info", deleted=deleted)
        outputs: list[Output] = [StopRecording(discard=deleted), note]
        if state is State.REFUSED:
            words = "The caller objected to the recording of this call; it was deleted."
            outputs += self._control.add_message(words)
        return outputs

    def _enter(self, state: State) -> RecordingRecord:
        """Set the state in the call's record, adding the recording's part if it has none; return
        that part."""
        call = self._control.timeline.record
        if call.recording is None:
            call.recording = RecordingRecord()
        call.recording.state = state.value
        return call.recording

# SPDX-License-Identifier: GPL-2.0-or-later
"""The conversation of one call while its session is up: responses, playout, DTMF, tools, rules.

A rule is a ``ConversationRule`` that is listed in :meth:`Conversation.__init__`: it watches for one
thing, such as a silent caller, is given the inputs that it registers for, in the order of the list,
and acts through ``ConversationControl``.
"""

from __future__ import annotations

import json

from gateway.call.call_control import BY_OPERATOR
from gateway.call.call_record import CallTimeline
from gateway.call.conversation.barge_in import Interruptions, cancel_hangup, interrupt
from gateway.call.conversation.control import (
    ConversationControl,
    ConversationRule,
    carry_out,
    send,
)
from gateway.call.conversation.playback import Playout
from gateway.call.conversation.responses import ResponseNames
from gateway.call.conversation.transcript import Transcript
from gateway.call.dtmf import DtmfInput
from gateway.call.inputs import Input, ServerEventReceived
from gateway.call.outputs import OutOfBandDone, Output
from gateway.call.plan import CallPlan
from gateway.call.rules.cost_control import Budget, ContextTrimmer
from gateway.call.rules.escape import EscapeToHuman
from gateway.call.rules.guardrails import Guardrails
from gateway.call.rules.hold_wait import HoldWait
from gateway.call.rules.line_quality import LineWatch
from gateway.call.rules.machine_detection import MachineDetector
from gateway.call.rules.recording import CallRecording
from gateway.call.rules.response_failure import ResponseFallback
from gateway.call.rules.silence import Silence, UserIdleTimeout
from gateway.call.tools.approvals import Approvals, McpWatch
from gateway.call.tools.commands import CallCommand, Interrupt, RequestOutOfBand
from gateway.call.tools.definitions import TRANSFER_CALL
from gateway.call.tools.function_calls import Functions
from gateway.ending import EndReason
from gateway.realtime.errors import Kind, classify_error
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    AudioDelta,
    AudioDone,
    CancelResponse,
    ClientCommand,
    CreateResponse,
    DecisionMade,
    InputCommitted,
    InputTranscribed,
    ItemTruncated,
    ResponseCreated,
    ResponseDone,
    ServerError,
    ServerEvent,
    SpeechStarted,
    SpeechStopped,
    WorkDelegated,
)
from gateway.realtime.session_object import mended

GREETING_SECONDS = 3.0
"""The longest wait (s) for a greeting's first audio, before an interpreter's callee is called."""


class Conversation:
    """The conversation of a call while its session is up: passes events to responses, playback,
    DTMF, tools and rules, and returns their outputs.

    Times are those of the machine's clock (s).
    """

    def __init__(self, plan: CallPlan, timeline: CallTimeline, playout: Playout) -> None:
        self._plan = plan
        self._timeline = timeline
        self.control = ConversationControl(plan, timeline, playout)
        self.call_actions = self.control.call_actions
        self._interruptions = Interruptions(self.control)
        self._keys = DtmfInput(self.control, self._interruptions.on_digit)
        approvals = self._approvals = self.control.approvals = Approvals(self.control)
        self.functions = Functions(self.control, approvals)
        self._mcp_watch = McpWatch(self.control, approvals)
        self.transcript = Transcript(self.control)
        self.functions.tasks.words_missing = lambda: (
            self._caller_speaks or self.transcript.words_missing
        )
        self.response_times = self.control.response_times
        self._session_failed = False
        self._caller_speaks = False
        self._disclosure_lost = False
        """Its session ended before it was complete, and it was not requested again."""
        self._last_words_lost = False
        """The session ended before the last words of the conversation were complete."""
        self._answer_lost = False
        """The session that ended owed an answer (:attr:`answer_due`)."""
        self._names = ResponseNames(self.control.responses, self.control.playback.was_interrupted)
        self.silence = Silence(
            self.control,
            lambda: self._caller_speaks,
            lambda: self.functions.busy,
        )
        self._response_fallback = ResponseFallback(self.control)
        self._guardrails = Guardrails(self.control)
        self._context_trimmer = ContextTrimmer(self.control)
        self._user_idle = UserIdleTimeout(self.control, lambda: self.working)
        self._line_watch = LineWatch(self.control)
        self.recording = self.control.recording = CallRecording(self.control)
        self.hold_wait = HoldWait(self.control)
        self.escape = EscapeToHuman(self.control)
        self.control.try_next_escape_destination = self.escape.try_next_destination
        self._machine_detector = MachineDetector(
            self.control, lambda now: interrupt(self.control, "machine", now)
        )
        self._rules: tuple[ConversationRule, ...] = (
            self.transcript,
            Budget(self.control),
            self._user_idle,
            self.hold_wait,
            self._machine_detector,
            self._line_watch,
            approvals,
            self._mcp_watch,
            self._guardrails,
            self._context_trimmer,
            self._response_fallback,
            self.silence,
            self.recording,
            self.escape,
        )
        self._rules_for: dict[type, list[ConversationRule]] = {}
        """Rules by what they have registered for."""
        for rule in self._rules:
            for kind in rule.reacts_to:
                self._rules_for.setdefault(kind, []).append(rule)

    def prepare(self, plan: CallPlan) -> None:
        """Replace the plan by one that is the same, with the call's fetched data in its texts;
        called before :meth:`open`. No part is told: what one has kept of the first plan stays in
        use, so that it may keep only what has no text with such data."""
        self._plan = self.control.plan = plan

    # ---- what happens

    def complete(self, event: ServerEvent) -> ServerEvent:
        """Return the event with the ids that hold in this gateway (:class:`ResponseNames`,
        :class:`CallIds`). To be called once for each event, in order."""
        return self.control.call_ids.complete(self._names.complete(event))

    def open(self, now: float) -> list[Output]:
        """Begin to talk: request the disclosure, then the recording's announcement or question for
        consent, or without one the greeting, which otherwise the recording requests later
        (:meth:`CallRecording.ask_for_consent`).

        Of an interpreted call, unless another action is queued or under way, also queue the
        transfer to its destination. After a disclosure or greeting it begins no sooner than
        ``GREETING_SECONDS`` from now, and then once queued audio was heard (:meth:`_begin_action`).
        """
        greeting = None
        if (given := self._plan.greeting) is not None:
            greeting = CreateResponse(
                given,
                self._plan.greeting_words,
                self._plan.greeting_clip,
                self._plan.greeting_exact,
            )
        self._interruptions.greeting = greeting
        disclosed = self._disclose(greeting, now)
        asked = self.recording.ask_for_consent(greeting, now)
        if asked is None and greeting is not None:
            asked = self.control.request_response(greeting, now)
        interpreter = self._plan.tools.transfer.interpreter
        if interpreter is not None and interpreter.at_once and not self.call_actions.busy:
            wanted = json.dumps({"destination": interpreter.destination})
            said = GREETING_SECONDS if greeting is not None or disclosed else 0.0
            self.call_actions.queue_tool_action(
                TRANSFER_CALL, BY_OPERATOR, wanted, now, said_within=said
            )
        return disclosed + (asked or [])

    def _disclose(self, greeting: CreateResponse | None, now: float) -> list[Output]:
        """Put the disclosure that an AI speaks into the record, and request it in exact words,
        before the greeting. Nothing is requested where the greeting itself has it, or the route has
        none.

        A disclosure that is not interruptible is protected from barge-in.

        Args:
            greeting: requested after it; None for none.
        """
        plan = self._plan.disclosure
        if plan is None:
            return []
        self.control.timeline.record.disclosure = plan.words
        first = (
            self.control.exact_words(plan.words, as_audio=plan.exact)
            if plan.before or greeting is None
            else greeting
        )
        self._interruptions.disclosure, self._disclosure_lost = first, False
        return [] if first is greeting else self.control.request_response(first, now)

    def apply_rules(self, input: Input, now: float) -> list[Output]:
        """Pass an input to the rules that have registered for its type, or for the type of its
        server event, after the conversation has handled it; return their outputs. Called in a live
        call only, and not for an audio delta that was only queued.

        Events of out-of-band responses go to no rule. Events while the caller is joined with a
        B-leg go to the rules, though :meth:`on_event` ignores most.
        """
        kind: type = type(input)
        if isinstance(input, ServerEventReceived):
            if self.control.out_of_band.takes(input.event):
                return []
            kind = type(input.event)
        return [output for rule in self._rules_for.get(kind, ()) for output in rule.on(input, now)]

    def on_event(
        self, event: ServerEvent, now: float, command: ClientCommand | None = None
    ) -> list[Output]:
        """Handle a server event of the active session: events of out-of-band responses go only to
        those; while the caller is joined with a B-leg, only complete transcripts are handled (the
        session listens).

        Audio stops the hold music of a tool call and a function's filler, even audio of an
        interrupted response; it is queued unless its response was interrupted. Only audio that is
        queued and is no silence stops the filler of a late response, too; the end of a part's audio
        queues its last frame. Words of the agent may protect their response from interruption. The
        end of speech begins the caller's wait for a response (:class:`ResponseTimes`; without
        ``speech_stopped`` the committed turn does), and the beginning of speech cancels that wait.
        Both, and the caller's transcript, may interrupt. A committed turn restarts the count of
        tool-only responses, and is answered where the gateway decides about interruptions.
        ``response.created`` and ``response.done`` begin and end a response (at once, where they
        came in the wrong order); the latter starts its function calls. Work and decisions of a Live
        session go to the delegated tasks. Transcripts and truncations are logged. Other events
        bring nothing here.

        Args:
            command: our request that a ``response.created`` answers, where the server says so.
        """
        note, control = self._timeline.note, self.control
        if control.out_of_band.takes(event):
            return control.out_of_band.on_event(event, now)
        if self.call_actions.joined and not isinstance(event, AgentTranscript | InputTranscribed):
            return []  # it listens, and has nobody to talk to
        match event:
            case AudioDelta():
                outputs = self.call_actions.on_model_audio(now) + self.functions.on_model_audio()
                spoke = control.speaking
                outputs += control.playback.on_audio(event)
                if not control.playback.was_interrupted(event.response_id):
                    self.response_times.on_audio(now, speaking=spoke)
                if not control.speaking:
                    return outputs
                return outputs + self.silence.on_audio(event, now, speaking=spoke)
            case AudioDone():
                return control.playback.on_audio_done(event)
            case SpeechStarted():
                self._caller_speaks = True
                self.response_times.on_speech_started()
                return self._interruptions.on_speech_started(event, now)
            case SpeechStopped():
                self._caller_speaks = False
                self.response_times.on_turn_over(now)
                stopped = note(now, "caller_speech_stopped", audio_ms=event.audio_end_ms)
                return [*self._interruptions.on_speech_stopped(event, now), stopped]
            case InputCommitted():
                self._caller_speaks = False
                self.response_times.on_turn_over(now, committed=True)
                self.functions.reset_rounds()
                answers = control.capabilities.turn_events and control.capabilities.responds
                if answers and not self._plan.interruptions.by_gateway:
                    control.responses.on_turn()
                return self._interruptions.on_committed(event, now)
            case ResponseCreated():
                request = command if isinstance(command, CreateResponse) else None
                request = control.responses.on_created(event.response_id, request)
                self._interruptions.on_response_created(event.response_id, request)
                control.hangup_after_playout.on_response_created()
                over = self._names.is_over(event.response_id)
                return send(control.responses.on_done(event.response_id, now)) if over else []
            case AgentTranscriptDelta():
                self._interruptions.on_agent_words(event)
                return []
            case ResponseDone():
                return self._on_response_done(event, now)
            case DecisionMade():
                return self.functions.tasks.on_decision(event, now)
            case WorkDelegated():
                return self.functions.tasks.on_delegated(event, now)
            case AgentTranscript():
                return [note(now, "agent_transcript", item_id=event.item_id, text=event.transcript)]
            case InputTranscribed():
                self.functions.tasks.words_came = True
                said = note(now, "caller_transcript", text=event.transcript)
                return [said, *self._interruptions.on_transcribed(event, now)]
            case ItemTruncated():
                at_ms = event.audio_end_ms
                return [note(now, "truncated", item_id=event.item_id, audio_end_ms=at_ms)]
        return []

    def on_error(
        self, error: ServerError, command: ClientCommand | None, now: float
    ) -> list[Output]:
        """Handle an ``error`` event: log it, and act on the command that it refuses.

        A refused out-of-band request ends as ``refused``. After
        ``conversation_already_has_active_response`` the request waits again, as the first. A
        ``response.create`` that is refused for another reason is sent again without the field that
        the error names (:func:`mended`); where that cannot be done, the request is lost, and the
        next waiting one is sent. After a refused ``response.cancel`` the response counts as done,
        and the next waiting request is sent. A truncation beyond the end of its item is sent again
        at the length that the error names, once. An error that ends the session
        (:mod:`gateway.realtime.errors`) is kept for :meth:`ended`.

        Args:
            command: the command that it answers; None where the server does not say: then only a
                collision, of the request that was sent last, and the truncation that was sent last
                are acted on.
        """
        verdict = classify_error(error)
        responses = self.control.responses
        outputs: list[Output] = [
            self._timeline.note(
                now,
                "error",
                "debug" if verdict.kind is Kind.BENIGN else "warning",
                code=verdict.code,
                message=error.message,
                answers=None if command is None else type(command).__name__,
                kind=verdict.kind.value,
            )
        ]
        if self.control.out_of_band.is_request(command):
            outputs += self.control.out_of_band.on_refused(command, error, now)
        elif error.code == "conversation_already_has_active_response":
            request = command if isinstance(command, CreateResponse) else None
            self._interruptions.on_collision(responses.on_collision(request, now))
        elif isinstance(command, CreateResponse):
            # A field that this server does not take costs nobody the answer.
            instead = mended(command, error)
            self._interruptions.on_request_replaced(command, instead)
            outputs += send(responses.on_refused(command, now, instead))
        elif isinstance(command, CancelResponse):
            # It does not run, whatever became of its response.done.
            outputs += send(responses.on_done(command.response_id, now))
        outputs += self.control.playback.on_error(error, command)
        self._session_failed = self._session_failed or verdict.ends_session
        return outputs

    def on_digit(self, digit: str, now: float, *, in_band: bool = False) -> list[Output]:
        """Handle a DTMF digit of the caller, and restart the count of tool-only responses. See
        :meth:`DtmfInput.on_digit`: the digit goes to a joined B-leg, to whoever wants digits
        (:attr:`ConversationControl.dtmf_consumer`), or into a message, and may interrupt.

        Args:
            in_band: detected in the audio, not sent as RTP event or INFO.
        """
        self.functions.reset_rounds()
        return self._keys.on_digit(digit, now, in_band=in_band)

    def on_playout_started(self, now: float) -> list[Output]:
        """Handle the first frame handed to RTP after silence: note the call's first audio in the
        record, end the wait for the response, and return the log line ``agent_speech_started``
        (:meth:`Playback.on_playout_started`)."""
        times = self._timeline.record.times
        if times.first_audio is None:
            times.first_audio = self._timeline.ms(now)
        self.response_times.on_playing(now)
        return self.control.playback.on_playout_started(now)

    def on_command(self, command: CallCommand, now: float) -> list[Output]:
        """Carry out a command of a tool function, an operator or an application: see
        :func:`carry_out`. ``Interrupt`` stops the agent as barge-in does, even where speech and
        digits must not. While the conversation is being ended, only out-of-band requests and
        the end of an operator's hold are carried out; the last words are not interrupted."""
        outputs = carry_out(command, self.control, now)
        if outputs and isinstance(command, Interrupt):
            outputs += interrupt(self.control, "application", now)
        return outputs

    def reject_command(self, command: CallCommand) -> list[Output]:
        """Return the result (``refused``) of an out-of-band request that came while no session is
        up; nothing for other commands."""
        return (
            [OutOfBandDone(command.key, "refused", "nobody talks")]
            if isinstance(command, RequestOutOfBand)
            else []
        )

    def after_input(self, now: float, *, confirmed: bool) -> list[Output]:
        """Start what has waited for the last input; called after each input of a call in progress,
        also while no session is up, but not for audio that was only queued. In this order: begin a
        queued action, cancel the model's hang-up while a transfer is queued or under way, send the
        result of a finished action, start the recording, carry out a termination (last words, or a
        transfer, which begins at once if it can), begin delegated tasks whose words have come, and
        start or end the caller's wait for a response.

        Args:
            confirmed: the ACK came, so that the caller can hear something.
        """
        outputs = self._begin_action(now, confirmed)
        if self.call_actions.transferring:
            outputs += cancel_hangup(self.control, "the caller is being transferred", now)
        outputs += self.functions.answer_finished_action(now)
        outputs += self.recording.start_if_due(now, confirmed=confirmed)
        if self.control.termination is not None:
            # What is under way, or a goodbye that is being said, ends the call by itself.
            outputs += self.control.end_conversation(now)
            outputs += self._begin_action(now, confirmed)
        outputs += self.functions.tasks.begin_if_transcribed(now)
        return outputs + self.silence.update_wait(now, confirmed=confirmed)

    def on_silence(self, rule: str, now: float) -> list[Output]:
        """Handle a silence where no fallback steps may be taken, so that the session stays:
        interrupt all responses and forget those that run, play the route's sound for that, and
        request the response again; after ``max_failures`` failed responses in a row play the sound
        and end the conversation instead.

        Args:
            rule: name of the silence (:attr:`Silence.rule`), for log and record.
        """
        outputs = interrupt(self.control, "silence", now) + self.silence.reset()
        return outputs + self._response_fallback.on_silence(
            rule, self.control.responses.forget_running(), now
        )

    def hang_up_after_playout(self, now: float) -> list[Output]:
        """Have the call hung up once the queued audio was played, as the session is closed and no
        other follows: forget its requests and responses, record digits that were not sent, and
        resume playout that barge-in had paused. A hang-up that waits only for queued audio keeps
        its reason and deadline (:meth:`HangupAfterPlayout.on_session_over`); an error that ended
        the session is forgotten. Returns ``Pause(False)`` if playout was paused, else nothing."""
        self._session_failed = False
        self.control.hangup_after_playout.on_session_over(now)
        self.control.responses.reset()
        self.on_end(now)
        return self._interruptions.forget_turns(now)

    def detach(self, now: float) -> list[Output]:
        """End what belongs to a session that is lost, closed on hold or handed over: its responses
        (of those out of band only the spoken ones), requests, turns, ids, items to be trimmed,
        guardrail checks and requests for approval of MCP calls; queued audio is played to the end.
        Tool functions, actions, a hang-up that waits and digits being entered go on; what the
        caller was being told or asked waits for :meth:`ask_again`. An error that ended the session
        is forgotten, so that :meth:`ended` does not return it again.

        Returns the last frame, ``Pause(False)`` if barge-in had paused playout, the end of the
        filler sound, and what follows for a briefing.
        """
        self._answer_lost, self.control.between_sessions = self.answer_due, True
        self.transcript.on_session_replaced()
        self._names.reset()
        self.control.call_ids.on_session_over()
        self._guardrails.on_session_over()
        self._context_trimmer.on_session_over()
        self.hold_wait.on_session_over()
        self._machine_detector.on_session_over()
        self._user_idle.on_session_over()
        self._line_watch.on_session_over()
        self._mcp_watch.on_session_over()
        self._approvals.on_session_over(now)
        self.recording.on_session_over()
        disclosure = self._interruptions.disclosure
        if disclosure is not None and self.control.responses.is_open(disclosure):
            self._disclosure_lost = True
        words = self.control.last_words
        self._last_words_lost = words is not None and self.control.responses.is_open(words)
        outputs = self.control.playback.on_session_over() + self._interruptions.on_session_over(now)
        outputs += self.silence.reset() + self.control.out_of_band.on_session_over(now)
        self.control.responses.reset()
        self._caller_speaks = self._session_failed = False
        return outputs

    def ask_again(self, now: float, due: bool) -> list[Output]:
        """Request anew, in the session that has taken over, what the caller has not heard to its
        end of the one before (:meth:`detach`): the disclosure, announcement of a recording or
        question for consent, and the question whether a tool call may run. The greeting follows
        the disclosure, unless it waits for the recording, and is requested where consent was
        decided meanwhile. Where these are the last words of a conversation that is being ended,
        they alone. A silent caller may be prompted again.

        Where none of these is requested, request the response that is due. Behind them it is only
        requested for an answer that the last session owed (:attr:`answer_due`), or that what was
        said or done since calls for, and not where the greeting or a tool call's approval is still
        to come: those lead on by themselves. None while the agent waits in a queue.

        Args:
            due: a response is due.
        """
        if self._last_words_lost and self.control.termination is not None:
            return self.control.say_last_words(self.control.termination, now)
        outputs: list[Output] = []
        lost, greeting = self._disclosure_lost, self._interruptions.greeting
        if lost:
            outputs += self._disclose(greeting, now)
        greets = lost and not self.recording.has_greeting
        outputs += self.recording.ask_again(now)
        if greets and greeting is not None:
            outputs += self.control.request_response(greeting, now)
        outputs += self._approvals.ask_again(now)
        if not self.control.responses.idle:
            answer = self._answer_lost or self.transcript.unanswered
            follows = self.recording.has_greeting or self._approvals.wants_digits
            due = due and answer and not follows
        if due and not self.control.waiting:
            outputs += self.control.request_due_response(now)
        return outputs

    @property
    def working(self) -> bool:
        """Whether something is being done of which only this session can tell the caller: a tool
        runs or waits for its approval (:attr:`Functions.busy`), the server makes an MCP call or
        owes a response to one, or the backend of a Live session works."""
        server = self.silence.mcp_runs or self.silence.backend_works
        return server or self.functions.busy or self._mcp_watch.deadline is not None

    @property
    def response_due(self) -> bool:
        """Whether the agent is expected to speak: it owes an answer (:attr:`answer_due`), or a
        response runs, is requested or waits. A session that takes over is asked for it."""
        return self.answer_due or not self.control.responses.idle

    @property
    def answer_due(self) -> bool:
        """Whether the agent owes an answer to what was said or done: a turn is unanswered
        (:attr:`Silence.turn_due`), a response without settings of its own runs, is requested or
        waits, or the server makes an MCP call, has asked for its approval, or owes a response to
        one."""
        mcp = self.silence.mcp_runs or self._mcp_watch.owes_response
        return self.silence.turn_due or self.control.responses.answering or mcp

    @property
    def quiet(self) -> bool:
        """Whether a pause of the talk is the time for a hand-over: neither side speaks, the agent
        owes no response and none runs, is requested or waits (:attr:`Silence.due`), no action is
        queued or under way, nothing is being done (:attr:`working`), and no hang-up waits."""
        control = self.control
        leaving = control.hangup_after_playout.deadline is not None
        busy = control.call_actions.busy or self.working or leaving
        return not (busy or control.speaking or self._caller_speaks or self.silence.due)

    def on_end(self, now: float) -> None:
        """Record the DTMF digits that were not sent to the model, and forget them, since the call
        or session ends."""
        self._keys.abandon(now)

    def on_bridged(self, now: float) -> list[Output]:
        """Stop what is for the model and the caller alone, since the legs are joined: the recording
        (unless the route has ``after_transfer``), a wait in a queue, playout, digits that the model
        was not told, and requests that wait."""
        self._keys.abandon(now)
        self.control.responses.forget_waiting()
        outputs = self.recording.on_bridged(now) + self.hold_wait.on_bridged(now)
        return outputs + self.control.playback.stop(now)

    # ---- what follows from it

    def ended(self, now: float) -> tuple[EndReason | None, str]:
        """Have a hang-up that waits follow its playout, which changes its state, so call this after
        each input. Return the reason to end the call now, with a detail for the record: an
        ``error`` that ends the session, or a hang-up whose words were played or did not come in
        time. The detail is that of a termination; "" for all else. None and "" while the call goes
        on."""
        if self._session_failed:
            return EndReason.SESSION_ERROR, ""
        queued_ms, responding = self.control.playback.queued_ms, not self.control.responses.idle
        why = self.control.hangup_after_playout.due(now, queued_ms=queued_ms, responding=responding)
        termination = self.control.termination
        return why, termination.detail if termination is not None and termination.why is why else ""

    @property
    def deadline(self) -> float | None:
        """When :meth:`on_tick` is due next (s), :meth:`after_input` for a queued action, or
        :meth:`ended` for a hang-up; None while nothing waits for time."""
        due = [
            self._keys.deadline,
            self.functions.deadline,
            self._interruptions.deadline,
            self.control.responses.deadline,
            self.control.hangup_after_playout.deadline,
            self.control.out_of_band.deadline,
            self.call_actions.deadline,
            *(rule.deadline for rule in self._rules),
        ]
        return min((at for at in due if at is not None), default=None)

    def on_tick(self, now: float) -> list[Output]:
        """Act on all deadlines that have come, in this order: digits, undecided interruptions, an
        unanswered request (given up, the next one is sent), the action that has begun, out-of-band
        responses, functions, rules. That of a queued action is left to :meth:`after_input`, and
        that of a hang-up to :meth:`ended`."""
        responses = self.control.responses
        outputs = self._keys.tick(now) + self._interruptions.tick(now)
        if responses.deadline is not None and now >= responses.deadline:
            outputs.append(self._timeline.note(now, "response_unanswered", "warning"))
            outputs += send(responses.on_unanswered(now))
        outputs += self.call_actions.tick(now) + self.control.out_of_band.tick(now)
        outputs += self.functions.tick(now)
        return outputs + [output for rule in self._rules for output in rule.tick(now)]

    def _begin_action(self, now: float, confirmed: bool) -> list[Output]:
        """Begin the queued call-control action once the call is up (``confirmed``) and the speech
        before it was heard; in a Live session, once no response runs either. Speech and responses
        are waited for ``limits.say_seconds`` at most.

        While sensitive digits are entered none begins: whoever is joined would hear the keys.
        """
        ready = confirmed and not self.control.concealed
        queued = self.control.speaking or (
            # Its queue is short, and may be empty within a sentence.
            not self.control.capabilities.direct_tools and bool(self.control.responses.running)
        )
        return self.call_actions.begin_if_ready(now, queued=queued, confirmed=ready)

    def _on_response_done(self, event: ResponseDone, now: float) -> list[Output]:
        """Handle ``response.done``: return its last frame and a log line, start its function calls
        if it is completed, and send the oldest request that has waited for its end. A model in a
        loop of tool calls (:attr:`Functions.in_loop`), with no other response requested, counts as
        a failed response."""
        outputs = self.control.playback.on_response_done(event.response_id)
        failed = event.status == "failed"
        outputs.append(
            self._timeline.note(
                now,
                "response",
                "warning" if failed else "debug",
                response_id=event.response_id,
                status=event.status,
                reason=event.reason,
                **({"code": event.error_code, "message": event.error_message} if failed else {}),
            )
        )
        following = self.control.responses.on_done(event.response_id, now)
        outputs += self.functions.on_response_done(event, now)
        outputs += send(following)
        if self.functions.in_loop and self.control.responses.idle:
            outputs += self._response_fallback.on_tool_loop(now, event)
        return outputs

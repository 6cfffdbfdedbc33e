# SPDX-License-Identifier: GPL-2.0-or-later
"""Interface through which rules act on a conversation: playout, responses and call control.

A :class:`ConversationRule` decides that something is to be done. This module does it without
colliding with responses and call-control actions (transfer, hold, DTMF) that are under way, and
carries out the commands of tool functions, operators and applications.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from gateway.call.call_control import (
    BY_GATEWAY,
    BY_OPERATOR,
    CallActions,
    HangupAfterPlayout,
)
from gateway.call.call_record import CallTimeline
from gateway.call.conversation.out_of_band import OutOfBandResponses
from gateway.call.conversation.playback import Playback, Playout
from gateway.call.conversation.playout_tracker import PAST
from gateway.call.conversation.responses import CallIds, ResponseQueue, ResponseTimes
from gateway.call.inputs import Input
from gateway.call.interpretation import Interpretation
from gateway.call.outputs import Mute, OutOfBandDone, Output, Send
from gateway.call.plan import CallPlan
from gateway.call.tools.commands import (
    CallCommand,
    EndCall,
    MuteCaller,
    OperatorHold,
    OperatorTransfer,
    PressKeys,
    RecordCall,
    ReferTo,
    RequestOutOfBand,
    RequestResponse,
    Say,
    SendImage,
    SendMessage,
    TransferTo,
)
from gateway.call.tools.definitions import TRANSFER_CALL, Target, ToolCallError
from gateway.call.transfer import Transfer
from gateway.ending import EndReason
from gateway.realtime.events import (
    ClientCommand,
    ContinueWork,
    CreateItem,
    CreateResponse,
    UpdateSession,
)
from gateway.realtime.session_object import REALTIME, Capabilities
from gateway.text import printable

HELD = "The caller has put this call on hold, and hears nothing until they come back."
RESUMED = "The caller is back from hold."
"""System messages for the model."""

ANNOUNCED_SECONDS = 1.0
"""How soon a voice begins to say what its backend does: the calls of a backend may come first."""

TAKEN_OVER = "You have taken over this conversation. An answer is due: give it now."
"""System message for a model of which no answer can be requested."""

LISTEN = "The caller speaks with somebody else from now on. Listen, and say nothing."
"""System message for a model whose turn detection cannot be turned off."""


@dataclass(frozen=True, slots=True)
class Termination:
    """Decision of the gateway to end the conversation: by transfer, after a goodbye, or at once;
    see :meth:`ConversationControl.terminate`."""

    why: EndReason
    detail: str = ""
    """For the record."""
    words: str = ""
    """The last words to the caller; "": the call is hung up without any."""
    transfer_to: str = ""
    """Name of the destination to transfer to; ``words`` are for when that fails."""


class DtmfConsumer(Protocol):
    """Takes the caller's DTMF digits in place of the conversation, while it wants them: approvals,
    the tool ``collect_digits``, consent to a recording (asked in this order)."""

    @property
    def wants_digits(self) -> bool:
        """Whether it wants the next digit."""

    def drops(self, digit: str, now: float) -> bool:
        """Return whether this digit is dropped, so that it does not interrupt the agent, and
        :meth:`on_digit` does not get it; called only while :attr:`wants_digits`."""

    def on_digit(self, digit: str, now: float) -> list[Output]:
        """Take a digit that is not dropped and return what follows; called only while
        :attr:`wants_digits`."""


class RecordingCommands(DtmfConsumer, Protocol):
    """What is needed here of :class:`gateway.call.rules.recording.CallRecording`, as a Protocol, so
    that this module need not import it."""

    def command(self, action: str, by: str, now: float) -> tuple[str, list[Output]]:
        """Start, stop, pause, resume or delete the recording (``action``).

        Returns why that cannot be done, or "" where it is done, and the outputs.

        Args:
            by: who wants it, for log and record.
        """


class ConversationRule(Protocol):
    """Interface of the rules: each watches the conversation for one thing, such as a budget or a
    silent caller.

    A rule gets the inputs that it has registered for, after the conversation has handled them. It
    keeps its own deadline, calls no other rule, and acts through :class:`ConversationControl`.
    """

    reacts_to: ClassVar[tuple[type, ...]]
    """Types of inputs and of session events (:mod:`gateway.realtime.events`)."""

    def on(self, input: Input, now: float) -> list[Output]:
        """Handle an input of the registered types; return the outputs that the rule wants, to be
        executed after those of the conversation."""

    def tick(self, now: float) -> list[Output]:
        """Act if the rule's deadline has come, and return outputs. It is called at every tick, also
        of other deadlines."""

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s); None while nothing waits for time."""


class ConversationControl:
    """What rules may do in a conversation: request responses, add messages, end it, act on the
    call.

    Methods that take the time (s) return outputs. Requests wait in :class:`ResponseQueue` while a
    response runs; actions in :class:`CallActions` until the speech before them was heard.
    """

    def __init__(self, plan: CallPlan, timeline: CallTimeline, playout: Playout) -> None:
        self.plan = plan
        self.capabilities = REALTIME
        """Of the active session."""
        self.timeline = timeline
        self.response_times = ResponseTimes(timeline)
        self.playback = Playback(playout, plan.codec, plan.server.truncate_margin_ms, timeline)
        self.playback.interrupted_after = self.response_times.interrupted_after
        self.responses = ResponseQueue()
        self.call_ids = CallIds(as_given=plan.tools.application)
        self.hangup_after_playout = HangupAfterPlayout(plan.limits.goodbye_timeout)
        self.changes: dict[str, UpdateSession] = {}
        """Changes of the session's settings by subject; a new session gets them, too."""
        self.out_of_band = OutOfBandResponses(timeline, plan.codec.bytes_per_ms)
        self.call_actions = CallActions(plan, timeline, self._transfer_to)
        self.trimmed_items: set[str] = set()
        """Ids of items that context trimming deletes from the session, and the transcript keeps."""
        self.private: set[str] = set()
        """Ids of function calls whose results the transcript has only as "(private)"."""
        self.concealed = False
        """Sensitive digits are entered: the session gets silence, digits are not logged, and no
        call-control action begins."""
        self.waiting = False
        """The agent waits in the other side's queue (hold and wait): nothing is to be said."""
        self.between_sessions = True
        """No session is up yet, or it is over and no other has taken over yet: nobody could
        speak."""
        self.digit_taken = False
        """The latest digit was for an approval or ``collect_digits``, also if dropped, or is the
        tone of a key that was signalled: it is no answer about a recording."""
        self.collecting: DtmfConsumer | None = None
        """The tool ``collect_digits``."""
        self.approvals: DtmfConsumer | None = None
        self.try_next_escape_destination: Callable[[float], list[Output]] = lambda _now: []
        """Transfers a caller who asked for a human to the next destination; called with the time
        (s) after the transfer to the one before has failed."""
        self.recording: RecordingCommands | None = None
        self.termination: Termination | None = None
        """Why no more responses are requested; None while the conversation goes on."""
        self._handed_on = False
        self.last_words: CreateResponse | None = None
        """The request for those of :attr:`termination`, once it was made."""

    def _transfer_to(self, target: Target, session_up: bool) -> Transfer:
        """Make the transfer to a target, not yet begun: with an interpreter where the route has one
        for this destination.

        Args:
            session_up: the model can brief the target; else the briefing's sound does, if it has
                one.
        """
        speak = self.out_of_band if session_up else None
        plan = self.plan.tools.transfer
        interpreter = (
            Interpretation(plan.interpreter, self.timeline)
            if plan.interpreter is not None
            and plan.interpreter.destination == target.destination.name
            else None
        )
        return Transfer(target, plan, self.timeline, speak, interpreter)

    def set_capabilities(self, capabilities: Capabilities) -> None:
        """Set the capabilities of the session that is active from now on, also for playback
        (truncation) and out-of-band responses. :attr:`between_sessions` is False from now on."""
        self.capabilities, self.between_sessions = capabilities, False
        self.playback.truncates = capabilities.truncation
        self.out_of_band.capabilities = capabilities

    # ---- the model

    def request_response(self, create: CreateResponse, now: float) -> list[Output]:
        """Request a response: return ``Send`` of ``response.create``, or nothing where the request
        waits, for a response that runs or a request that is unanswered. One without settings of its
        own is dropped where such a one waits already (:meth:`ResponseQueue.request`).

        Requests nothing while the conversation is being ended (:attr:`termination`), no session is
        up (:attr:`between_sessions`; the next one is asked for what is due then), the agent waits
        in the other side's queue (hold and wait) or the legs are joined, and of a session that only
        transcribes. A Live session gets only requests with words or instructions. A
        hang-up that the model asked for prevents no request.
        """
        silent = self.waiting or self.call_actions.joined or not self.capabilities.responds
        if self.termination is not None or silent or self.between_sessions:
            return []
        wishes = create.words or (create.response or {}).get("instructions")
        if not (self.capabilities.requested_responses or wishes):
            return []
        return send(self.responses.request(create, now))

    def continue_with_results(self, now: float) -> list[Output]:
        """Request the response to results of tool calls that were sent; none while a hang-up is
        due, as the goodbye is the last that is said. In a Live session tell the backend to go on
        instead, also while a hang-up is due, since the voice still has to say the goodbye; not
        where a rule is ending the conversation (:attr:`termination`) or the legs are joined."""
        if self.capabilities.direct_tools:
            leaving = self.hangup_after_playout.deadline is not None
            return [] if leaving else self.request_response(CreateResponse(), now)
        silent = self.termination is not None or self.call_actions.joined
        return [] if silent else [Send(ContinueWork())]

    def queue_action(self, name: str, call_id: str, arguments: str, now: float) -> None:
        """Queue the call-control action of the tool ``name``: transfer, hold or DTMF. It begins
        once the call is up and the speech before the action was heard, or after
        ``limits.say_seconds`` (:meth:`CallActions.begin_if_ready`); in a Live session no sooner
        than ``ANNOUNCED_SECONDS`` from now, since that speech may come so much later. Barge-in
        cancels it until it begins. Raises ToolCallError while another action is queued or under
        way or the conversation is being ended, and for wrong ``arguments`` (JSON text)."""
        if self.termination is not None:
            raise ToolCallError("the call is being ended")
        within = 0.0 if self.capabilities.direct_tools else ANNOUNCED_SECONDS
        self.call_actions.queue_tool_action(name, call_id, arguments, now, said_within=within)

    def speak_language(self, code: str) -> tuple[str, list[Output]]:
        """Change the language of this session, and of sessions that replace it (:attr:`changes`).

        Returns the language's name (the code, where the route has none), and ``session.update``;
        for a session whose settings cannot be changed, a system message to speak that language.

        Args:
            code: ISO 639-1; one for which the route has an update (KeyError for others).
        """
        plan = self.plan.tools.language
        name = plan.names.get(code, code)
        change = self.changes["language"] = UpdateSession(plan.updates[code])
        if self.capabilities.settings_updates:
            return name, [Send(change)]
        return name, self.add_message(f"Speak {name} from now on.")

    def request_due_response(self, now: float) -> list[Output]:
        """Request the response that a session owes the caller when it has taken over
        (:attr:`Transcript.response_due`, which is not asked here). Tell a model of which no
        response can be requested (Live) by a message that an answer is due, unless the conversation
        is being ended."""
        if self.capabilities.requested_responses:
            return self.request_response(CreateResponse(), now)
        return [] if self.termination is not None else self.add_message(TAKEN_OVER)

    def say(self, words: str, now: float) -> list[Output]:
        """Request a response that says exactly these words, without tools; under the conditions of
        :meth:`request_response`."""
        return self.request_response(self.exact_words(words), now)

    def exact_words(self, words: str, *, as_audio: bool = False) -> CreateResponse:
        """Return the ``response.create`` that has the model say exactly these words, without tools;
        nothing is sent.

        Args:
            as_audio: a session that would rephrase the words is given them as synthesised audio
                (``CreateResponse.exact``).
        """
        wanted = {"instructions": f"Say exactly: {words}", "tools": []}
        return CreateResponse(wanted, words, exact=as_audio)

    def listen(self) -> list[Output]:
        """Return what has the session only transcribe a bridged call: ``session.update`` after
        which the server's turn detection creates no responses, without tools; a message to say
        nothing where settings cannot be changed."""
        if self.capabilities.settings_updates:
            return [Send(UpdateSession(self.plan.listening))]
        return self.add_message(LISTEN)

    def add_message(self, text: str, *, role: str = "system") -> list[Output]:
        """Return ``Send`` of a text message for the conversation (``conversation.item.create``); no
        response is requested. Nothing for a session that only transcribes.

        Args:
            role: system, or user for what stands in the transcript as the caller's words.
        """
        return [Send(CreateItem(message(role, text)))] if self.capabilities.responds else []

    @property
    def dtmf_consumer(self) -> DtmfConsumer | None:
        """Consumer of the next DTMF digit: the first that wants one, of approvals,
        ``collect_digits`` and consent to a recording. None: the digit is for the conversation."""
        for consumer in (self.approvals, self.collecting, self.recording):
            if consumer is not None and consumer.wants_digits:
                return consumer
        return None

    # ---- its sound

    @property
    def speaking(self) -> bool:
        """Whether model audio is queued or playing: it was put into the queue, which is not known
        to have run empty since."""
        return self.playback.queued_ms > 0

    # ---- the end of it

    def note_disposition(self, disposition: str, by: str, now: float) -> Output:
        """Set the disposition of the call in its record, in place of an earlier one, without
        unprintable characters; return the log line.

        Args:
            by: who names it: model, tool, operator.
        """
        disposition = printable(disposition)
        self.timeline.record.disposition = disposition
        return self.timeline.note(now, "disposition", "info", disposition=disposition, by=by)

    def terminate(self, termination: Termination) -> None:
        """Have the conversation end: drop the waiting requests for responses, and request no more.
        What runs or was sent goes on. :meth:`end_conversation` carries the termination out once no
        action is queued or under way and no hang-up waits. Only the first termination counts."""
        if self.termination is None:
            self.termination = termination
            self.responses.forget_waiting()

    def hang_up_after_goodbye(self, call_id: str, spoke: bool, now: float) -> list[Output]:
        """Carry out the model's ``end_call``: hang up after its goodbye, or request a goodbye first
        (without tools).

        Where words were spoken with ``end_call``, or are still being played, they are the goodbye,
        and the function call is answered only if the hang-up is cancelled: by an interruption
        (:func:`interrupt`), or by a transfer. Where a hang-up waits already, as after an earlier
        ``end_call``, no goodbye is requested either, and this hang-up replaces the other; it waits
        only for queued audio. Otherwise the function call is answered ("ending"), and a goodbye
        without tools is requested. In a Live session the function call of the backend is always
        answered, and the hang-up follows the voice's next words, or comes without them if they do
        not begin in time (:class:`HangupAfterPlayout`); where a hang-up waits already, it is only
        answered.

        While the conversation is being ended (:attr:`termination`), the function call is only
        answered: the last words or the transfer of the termination follow, and its reason holds.

        Args:
            spoke: the response that called it had audio, which is the goodbye.
        """
        outputs: list[Output] = [self.timeline.note(now, "hangup_requested", "info", spoken=spoke)]
        result = {"status": "ending", "next": "Say a short goodbye now; then the call ends."}
        again = self.hangup_after_playout.deadline is not None
        if self.termination is not None:  # it ends the call by itself, after its own words
            result["next"] = "Say no more."
            return [*outputs, tool_output(call_id, result)]
        if not self.capabilities.direct_tools and again:
            return [*outputs, tool_output(call_id, result)]
        if not self.capabilities.direct_tools:
            # It was asked for by a backend; the voice says goodbye when it learns of it.
            self.hangup_after_playout.after_next_speech(now)
            if self.speaking:
                result["next"] = "Say no more."
            return [*outputs, tool_output(call_id, result), *self.continue_with_results(now)]
        if spoke or self.speaking or again:  # without the words that it was asked for
            self.hangup_after_playout.after_spoken_goodbye(call_id, now)
            return outputs
        self.hangup_after_playout.after_requested_goodbye(now)
        outputs.append(tool_output(call_id, result))
        return outputs + self.request_response(CreateResponse({"tools": []}), now)

    def end_conversation(self, now: float) -> list[Output]:
        """Carry out :attr:`termination`: queue its transfer, once; where there is none, or it
        cannot be queued, or it was tried and the call goes on, request the last words and hang up
        after them, or without words once queued audio was played.

        With the last words, turn detection is switched off, where settings can be changed. Returns
        nothing without a termination, and while an action is queued or under way or a hang-up
        waits; called after each input.
        """
        termination = self.termination
        if (
            termination is None
            or self.call_actions.busy
            or self.hangup_after_playout.deadline is not None
        ):
            return []
        if termination.transfer_to and not self._handed_on:
            self._handed_on = True
            wanted = json.dumps({"destination": termination.transfer_to})
            try:
                self.call_actions.queue_tool_action(TRANSFER_CALL, BY_GATEWAY, wanted, now)
            except ToolCallError as error:
                note = self.timeline.note(now, "tool_refused", "error", reason=str(error))
                return [note, *self.end_conversation(now)]
            return []
        self.hangup_after_playout.after_last_words(termination.why, now)
        if not termination.words or not self.capabilities.responds:
            return []
        return self.say_last_words(termination, now)

    def say_last_words(self, termination: Termination, now: float) -> list[Output]:
        """Request the last words, also anew of another session; turn detection is switched off with
        them, where settings can be changed."""
        self.last_words = self.exact_words(termination.words)
        goodbye = send(self.responses.request(self.last_words, now))
        if not self.capabilities.settings_updates:
            return goodbye
        # Nobody is to be answered any more, nor to be cut short.
        deaf = UpdateSession({"audio": {"input": {"turn_detection": None}}})
        return [Send(deaf), *goodbye]


class Prompt:
    """Words that the caller must have heard before something counts: the question whether a tool
    call may run, the prompt for a recording."""

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._request = CreateResponse()
        self._response: str | None = None
        """The response that says them, where that is known; if it was complete, with the prefix
        ``PAST`` for each session that has ended since."""
        self.heard = False
        """They count as heard; set by whoever has them said."""

    def say(self, words: str, now: float) -> list[Output]:
        """Have the model say them, from the beginning; between sessions only forget what was said
        and heard before."""
        self._request, self._response = self._control.exact_words(words), None
        self.heard = False
        if self._control.between_sessions:
            return []
        return self._control.request_response(self._request, now)

    def on_response_created(self, response_id: str) -> bool:
        """Note, and return, whether this response says them; of a server that names no requests,
        the one that came while they were requested does."""
        responses = self._control.responses
        says = (responses.request_of(response_id) or responses.presumed) is self._request
        if says:
            self._response = response_id
        return says

    def on_session_over(self) -> None:
        """Forget the response unless it is complete, with audio, and was not interrupted. To be
        called before responses are reset, and before interrupted ones are forgotten."""
        said, responses = self._response, self._control.responses
        complete = not (self.lost or self.soundless or responses.is_open(self._request))
        self._response = PAST + said if said and complete else None

    @property
    def requested(self) -> bool:
        """Whether they are still to come: their request is unanswered or waits, also once more,
        after a silence or since it has collided with the response that was taken for its answer."""
        said, responses = self._response, self._control.responses
        says = said in responses.running and responses.request_of(said) is self._request
        return responses.is_open(self._request) and not says

    @property
    def lost(self) -> bool:
        """Whether they are not heard, and will not be: the response was interrupted or ended
        without audio, or they are neither said nor requested."""
        if self.heard or self.requested:
            return False
        silent = self.soundless and self._control.responses.idle
        return self._response is None or self.interrupted or silent

    @property
    def interrupted(self) -> bool:
        """Whether the response was interrupted."""
        return self._control.playback.was_interrupted(self._response or "")

    @property
    def soundless(self) -> bool:
        """Whether the response was not interrupted and has had no audio yet, or at all."""
        said = self._response or PAST
        had_audio = said.startswith(PAST) or self._control.playback.had_audio(said)
        return not (had_audio or self.interrupted)

    def heard_ms(self, now: float) -> int:
        """Return how much of the response was handed to RTP (ms); 0 while it is to come."""
        said = self._response
        return self._control.playback.heard_ms_by(said, now) if said and not self.requested else 0


def tool_output(call_id: str, result: Mapping[str, Any] | str) -> Output:
    """Return ``Send`` of a ``function_call_output`` item with the result of a function call.

    Args:
        call_id: of the function call.
        result: a mapping becomes JSON.
    """
    text = result if isinstance(result, str) else json.dumps(result)
    item = {"type": "function_call_output", "call_id": call_id, "output": text}
    return Send(CreateItem(item))


def send(command: ClientCommand | None) -> list[Output]:
    """Return ``Send`` of this command in a list; an empty list for None (such as a request that
    waits)."""
    return [] if command is None else [Send(command)]


def message(role: str, text: str) -> dict[str, Any]:
    """Return a ``message`` item of this role with one text part (``output_text`` for the assistant,
    else ``input_text``)."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


CALLER_HELD = "An operator has put the caller on hold; they hear music, and not you."
CALLER_BACK = "The operator has taken the caller back from hold."
CALLER_MUTED = "An operator has muted the caller: you do not hear them."
CALLER_UNMUTED = "The operator has unmuted the caller."
"""System messages for the model."""


_FOR_SPEECH = (Say, SendMessage, SendImage, RequestResponse, RequestOutOfBand)
"""Commands for a session that speaks."""


def carry_out(command: CallCommand, control: ConversationControl, now: float) -> list[Output]:
    """Carry out a command of a tool function, operator or application; return its outputs and a log
    line.

    Nothing at all while the conversation is being ended, but for out-of-band requests and the end
    of an operator's hold, for which the end of the conversation waits. What cannot
    be carried out is logged with its reason (``command_rejected``), such as words for a session
    that only transcribes, an action while another is queued or under way, or an operator's transfer
    to an unknown destination. An out-of-band request then gets :class:`OutOfBandDone`
    (``refused``), and ``command_rejected`` only where the session only transcribes. A ``Say`` or
    ``RequestResponse`` may still bring no response (:meth:`ConversationControl.request_response`),
    which is not logged.

    TransferTo and EndCall end the conversation (:meth:`ConversationControl.terminate`), also a
    TransferTo with an unknown destination; OperatorTransfer and ReferTo do not. ``Interrupt`` is
    only logged here; RecordCall (:func:`record_call`) and SetDisposition do not come here.
    """
    goes_on = isinstance(command, RequestOutOfBand) or command == OperatorHold(False)
    if control.termination is not None and not goes_on:
        return []
    note = control.timeline.note(now, "command", "info", command=type(command).__name__)
    if isinstance(command, _FOR_SPEECH) and not control.capabilities.responds:
        why = "the session only transcribes, it does not speak"
        rejected = control.timeline.note(now, "command_rejected", "warning", reason=why)
        if isinstance(command, RequestOutOfBand):
            return [note, rejected, OutOfBandDone(command.key, "refused", why)]
        return [note, rejected]
    match command:
        case Say(words):
            return [note, *control.say(words, now)]
        case SendMessage(text, role, respond):
            return [note, *control.add_message(text, role=role), *_respond(control, respond, now)]
        case SendImage(image, text, respond):
            content = [{"type": "input_text", "text": text}] if text else []
            content.append({"type": "input_image", "image_url": image})
            item = {"type": "message", "role": "user", "content": content}
            return [note, Send(CreateItem(item)), *_respond(control, respond, now)]
        case RequestResponse(instructions):
            return [
                note,
                *control.request_response(CreateResponse({"instructions": instructions}), now),
            ]
        case RequestOutOfBand(key, instructions, metadata):
            return [
                note,
                *control.out_of_band.request(key, "application", instructions, now, metadata),
            ]
        case TransferTo(destination, words):
            control.terminate(
                Termination(EndReason.APPLICATION, "by a function", words, transfer_to=destination)
            )
        case MuteCaller(muted):
            words = CALLER_MUTED if muted else CALLER_UNMUTED
            told = control.timeline.note(now, "muted" if muted else "unmuted", "info")
            return [note, told, Mute(muted), *control.add_message(words)]
        case OperatorTransfer() | ReferTo() | PressKeys() | OperatorHold():
            actions = control.call_actions
            try:
                if isinstance(command, ReferTo):
                    actions.refer_to(command.uri, now)
                elif isinstance(command, PressKeys):
                    actions.press(command.digits, now)
                elif isinstance(command, OperatorHold):
                    words = CALLER_HELD if command.held else CALLER_BACK
                    return [note, *actions.hold(command.held, now), *control.add_message(words)]
                else:
                    target = {"destination": command.destination, "briefing": command.briefing}
                    wanted = json.dumps(target)
                    actions.queue_tool_action(TRANSFER_CALL, BY_OPERATOR, wanted, now)
            except ToolCallError as error:
                refused = control.timeline.note(
                    now, "command_rejected", "warning", reason=str(error)
                )
                return [note, refused]
        case EndCall(words):
            control.terminate(Termination(EndReason.APPLICATION, "by a function", words))
    return [note]


def record_call(command: RecordCall, control: ConversationControl, now: float) -> list[Output]:
    """Carry out a command for the recording, which needs no session; where it cannot be done, only
    log why (``command_rejected``)."""
    assert control.recording is not None
    refused, outputs = control.recording.command(command.action, command.by, now)
    if refused:
        return [control.timeline.note(now, "command_rejected", "warning", reason=refused)]
    return outputs


def _respond(control: ConversationControl, wanted: bool, now: float) -> list[Output]:
    """Request a response if ``wanted`` (:meth:`ConversationControl.request_response`), else return
    nothing."""
    return control.request_response(CreateResponse(), now) if wanted else []

# SPDX-License-Identifier: GPL-2.0-or-later
"""Function calls of the model: check, approve, run, and answer those of a response together.

A function of the route runs outside the machine (``RunTool``); the gateway's own tools, such as
``hold`` or ``collect_digits``, are done here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.call.call_control import BY_CALLER, BY_GATEWAY, BY_OPERATOR
from gateway.call.call_record import ToolUse
from gateway.call.conversation.control import ConversationControl, tool_output
from gateway.call.dtmf import DigitCollection
from gateway.call.outputs import Output, PlaySound, RequestApproval, RunTool
from gateway.call.plan import CallPlan, FunctionPlan
from gateway.call.tools import definitions
from gateway.call.tools.approvals import Approvals
from gateway.call.tools.definitions import ToolCallError, call_id_of
from gateway.call.tools.delegated_tasks import DelegatedTasks
from gateway.realtime.events import ResponseDone

MAX_RUNNING = 8
"""Functions that run, or wait for approval, at a time for one telephone call; a model that wants
more gets an error."""

MAX_CALLS = 32
"""Function calls of one response that are carried out; those beyond get an error."""

MAX_ANSWERED = 256
"""Function calls of one response that get any answer."""

MAX_NAME = 128
"""Characters of a function's name in log and record; the API allows 64."""

WORDS_SECONDS = 10.0
"""Words of the agent end a row of responses that call tools only so long (s) after those that ended
the last. A row that is quicker is a loop, whatever is said in it."""

MAX_REASON = 300
"""Characters of a rejection's reason in the log; the model gets all."""


@dataclass(slots=True)
class _Group:
    """The function calls of one response: their results are sent together, with one request for a
    response; not those of call-control actions that have been queued."""

    open: set[str] = field(default_factory=set)
    """``call_id`` of those that have no result yet."""
    whole: bool = False
    """All of them have been started or answered with an error; before, nothing is sent."""
    outputs: list[Output] = field(default_factory=list)
    """Results that are to be sent."""
    respond: bool = False
    """A response to the results is to be requested."""


FREE_ROUNDS = 3
"""Responses in a row that only call tools whose results are sent at once."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 0.8
"""Seconds that the results of the next one are held back, doubled with each further one, and at
most."""


@dataclass(slots=True)
class _Call:
    """One function call of the model, or a delegated task, that is carried out."""

    id: str
    name: str
    arguments: str
    """JSON text."""
    group: _Group
    """The calls of the same response."""
    use: ToolUse
    """Its entry in the record."""


@dataclass(slots=True)
class _Running:
    """A function of the route that runs, or waits for its approval."""

    call: _Call
    plan: FunctionPlan
    began: float
    """When it was called; once it runs, when it was started (s)."""
    started: bool = False
    """It runs; False while it waits for its approval."""
    asking: bool = False
    """The HTTP service of an approval rule is being asked."""
    told: bool = False
    """The caller has got the filler text or sound; there is only one."""
    waits_from: float = 0.0
    """When the caller's wait began anew, as they heard something when the filler was due (s); 0
    before that."""

    @property
    def due(self) -> float | None:
        """When the function is late, or its filler is to be heard (s), whichever is first. Before
        its approval only the time of the filler counts, and only while the HTTP service is asked.
        None without either."""
        due = [self.began + self.plan.timeout] if self.started else []
        if self.plan.filler_delay and not self.told and (self.started or self.asking):
            due.append(max(self.began, self.waits_from) + self.plan.filler_delay)
        return min(due, default=None)


class Functions:
    """Carries out the model's function calls: checks, approvals, functions of the route, the
    gateway's own tools; and tasks that a Live session delegates.

    The results of one response are sent together, as ``function_call_output`` items, and then one
    response is requested. They do not wait for a call-control action (transfer, hold, DTMF): its
    result follows, with a request of its own, when the action has ended. Methods that take the time
    (s) return outputs.
    """

    def __init__(self, control: ConversationControl, approvals: Approvals) -> None:
        self._control = control
        self._approvals = approvals
        self._running: dict[str, _Running] = {}
        self.digit_collection = DigitCollection(control, self._on_digits_collected)
        self._collecting_for: _Call | None = None
        self.tasks = DelegatedTasks(control, self._start_task)
        self._sounding = ""
        """``call_id`` of the function whose filler sound plays; "" while none does."""
        self._silent_rounds = 0
        """Responses in a row that only call tools."""
        self._words_at = -WORDS_SECONDS
        """When words ended a row last (s)."""
        self._paused: tuple[float, list[Output]] | None = None
        """Results of a model that only calls tools, and when they are sent (s)."""
        self.in_loop = False
        """The last response was one too many in a row that only call tools: its calls got errors,
        and no response was requested. Whoever sees it has to request one without tools."""
        tools, recording = self._plan.tools, self._plan.recording
        offered = {
            definitions.SET_LANGUAGE: bool(tools.language.updates),
            definitions.COLLECT_DIGITS: tools.collect_digits.enabled,
            definitions.SET_DISPOSITION: bool(tools.disposition.values),
            definitions.RECORD_CALL: recording.mode != "off" and recording.tool,
        }
        self._own = {*control.call_actions.names, *(one for one in offered if offered[one])}

    @property
    def _plan(self) -> CallPlan:
        """The call's plan as it is now: it is replaced when the call's data were fetched."""
        return self._control.plan

    def on_response_done(self, event: ResponseDone, now: float) -> list[Output]:
        """Handle the function calls of a ``response.done``: log the first ``MAX_CALLS``, and start
        each call or answer it. Of a response that is not completed, none is done or answered.

        Passed over are calls that are being carried out already, and those that an application
        answers. Calls beyond ``MAX_CALLS`` get an error, and those beyond ``MAX_ANSWERED`` no
        answer. If the response was interrupted, all its calls are answered as not done.

        Responses that only call tools are counted. One beyond ``max_tool_rounds`` in a row sets
        :attr:`in_loop`, and its calls get errors, unless it has ``end_call``. A response without
        calls but with audio ends the row. One with both ends it only if none with audio did so in
        the last ``WORDS_SECONDS``, whether there was a row or not; else it counts as one that only
        calls tools.

        With ``end_call`` among the calls, those for an action (transfer, hold, DTMF) are answered
        as not done, and the others are started. No response is requested: the hang-up after the
        goodbye follows. While a transfer is queued or under way, ``end_call`` is answered as not
        done.
        """
        self.in_loop = False
        if event.status != "completed":
            return []
        control, note = self._control, self._control.timeline.note
        calls = definitions.calls_of(event.output)
        names = [str(call.get("name"))[:MAX_NAME] for call in calls[:MAX_CALLS]]
        outputs: list[Output] = [note(now, "tool", "info", name=name) for name in names]
        calls = [call for call in calls if not self._is_open(call_id_of(call))]
        if self._plan.tools.application:
            calls = [call for call in calls if self._is_ours(call.get("name"))]
        calls, beyond = calls[:MAX_CALLS], calls[MAX_CALLS:MAX_ANSWERED]
        if beyond:
            reason = f"too many calls in one response: {MAX_CALLS} are carried out"
            outputs.append(note(now, "tool_refused", "warning", name="", reason=reason))
            outputs += [tool_output(call_id_of(call), {"error": reason}) for call in beyond]
        if control.playback.was_interrupted(event.response_id):
            result = {"status": "not done", "reason": "you were interrupted"}
            return outputs + [tool_output(call_id_of(call), result) for call in calls]
        end_call = next((call for call in calls if call.get("name") == definitions.END_CALL), None)
        if end_call is not None and control.call_actions.transferring:
            calls.remove(end_call)
            result = {"status": "not done", "reason": "the caller is being transferred"}
            outputs.append(tool_output(call_id_of(end_call), result))
            end_call = None
        most = self._plan.content.response_failure.max_tool_rounds
        spoke = control.playback.had_audio(event.response_id)
        if spoke and (not calls or now >= self._words_at + WORDS_SECONDS):
            self._silent_rounds, self._words_at = 0, now
        elif calls:
            self._silent_rounds += 1
        self.in_loop = bool(calls) and not end_call and self._silent_rounds > most
        if self.in_loop:
            outputs.append(note(now, "tool_loop", "warning", rounds=most))
            why = f"{most} responses in a row called tools"
            return outputs + [tool_output(call_id_of(call), {"error": why}) for call in calls]
        group = _Group()
        for call in calls:
            if call.get("name") == definitions.END_CALL:
                continue
            if end_call is not None and call.get("name") in control.call_actions.names:
                result = {"status": "not done", "reason": "the call is being ended"}
                outputs.append(tool_output(call_id_of(call), result))
                continue
            outputs += self._start_call(call, group, now)
        group.whole = True
        outputs += self._send_results(group, now, respond=end_call is None)
        if end_call is None:
            return outputs
        return outputs + control.hang_up_after_goodbye(call_id_of(end_call), spoke, now)

    def _is_open(self, call_id: str) -> bool:
        """Return whether the call of this ``call_id`` is being carried out: its function runs, it
        waits for approval or digits, or its action is under way. False for ""."""
        waits = self._collecting_for is not None and self._collecting_for.id == call_id
        acts = self._control.call_actions.call_id == call_id or call_id in self._running
        return bool(call_id and (waits or acts or self._approvals.is_pending(call_id)))

    def _is_ours(self, name: object) -> bool:
        """Return whether the gateway answers calls of this function: functions of the route, its
        own tools that the route offers, and ``end_call`` even where the route does not offer it,
        since a hosted prompt may. The others are left to the route's application."""
        return (
            name == definitions.END_CALL or name in self._own or name in self._plan.tools.functions
        )

    def on_tool_done(self, call_id: str, output: str, now: float) -> list[Output]:
        """Handle the result of a function: log ``tool_done``, record it, stop its filler, and keep
        it. Nothing if the function does not run any more: its result is late.

        The last result of a response's calls sends the results of all and has the model go on
        (no request while a hang-up waits). After ``FREE_ROUNDS`` responses in a row that only
        called tools they are held back for a while.

        Args:
            output: the result; JSON text that begins with ``{"error":`` is recorded as failed.
        """
        running = self._running.pop(call_id, None)
        if running is None:
            return []
        # What runs functions tells of a failure so, and so do most services.
        outcome = "failed" if output.startswith('{"error":') else "done"
        fields = {"name": running.call.name, "call_id": call_id, "outcome": outcome}
        note = self._control.timeline.note(now, "tool_done", **fields)
        return [note, *self._finish_function(running, outcome, output, now)]

    def answer_finished_action(self, now: float) -> list[Output]:
        """Send the result of a call-control action that has just ended; nothing if none has.

        The result of an action of the model is sent as tool output, and a response is requested,
        unless the model speaks already. That of a failed transfer of an operator is sent as a
        message, with the same request (not in a Live session). For an action of the gateway itself
        only the response is requested. After a failed transfer of an escape to a human, the next
        destination is called instead.
        """
        result = self._control.call_actions.take_result()
        if result is None:
            return []
        if result.call_id == BY_CALLER:
            return self._control.try_next_escape_destination(now)
        outputs: list[Output] = []
        told = result.respond or not self._control.capabilities.direct_tools  # a backend waits
        go_on = self._control.continue_with_results(now) if told else []
        if result.call_id == BY_OPERATOR:
            words = f"The operator wanted to hand the caller on: {json.dumps(result.output)}"
            outputs += self._control.add_message(words)
            if not self._control.capabilities.direct_tools:
                return outputs  # no backend has asked for it
        elif result.call_id != BY_GATEWAY:
            outputs.append(tool_output(result.call_id, result.output))
        return outputs + go_on

    def reset_rounds(self) -> None:
        """End the row of responses that only call tools, since the caller has ended a turn or
        pressed a key."""
        self._silent_rounds = 0

    def on_model_audio(self) -> list[Output]:
        """Stop the filler sound, if one plays, since the model speaks."""
        return self._stop_filler() if self._sounding else []

    def tick(self, now: float) -> list[Output]:
        """Act on deadlines, also those of :attr:`digit_collection` and :attr:`tasks`: send results
        that were held back because the model only calls tools; answer the call of a function that
        is late with an error; say or play a filler whose delay is over (:meth:`_fill_wait`)."""
        outputs = self.digit_collection.tick(now) + self.tasks.tick(now)
        if self._paused is not None and now >= self._paused[0]:
            outputs += self._send_paused(now)
        for call_id, running in list(self._running.items()):
            if running.due is None or now < running.due:
                continue
            if running.started and now >= running.began + running.plan.timeout:
                del self._running[call_id]
                text = json.dumps({"error": f"no result within {running.plan.timeout:g} s"})
                fields = {"name": running.call.name, "call_id": call_id}
                outputs.append(self._control.timeline.note(now, "tool_late", "warning", **fields))
                outputs += self._finish_function(running, "late", text, now)
            else:
                outputs += self._fill_wait(running, now)
        return outputs

    @property
    def busy(self) -> bool:
        """Whether a function runs, a tool call (also to an MCP server) waits for approval, results
        are held back, a delegated task waits to begin, or digits are collected for the model."""
        waits = self._paused is not None or self._collecting_for is not None
        return bool(self._running) or self._approvals.busy or self.tasks.busy or waits

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` acts next (s); None while nothing has a deadline."""
        due = [self.digit_collection.deadline, *(one.due for one in self._running.values())]
        due += [] if self._paused is None else [self._paused[0]]
        due += [] if self.tasks.deadline is None else [self.tasks.deadline]
        return min((at for at in due if at is not None), default=None)

    # ---- one call

    def _start_task(self, name: str, task: str, arguments: str, now: float) -> list[Output]:
        """Run the function ``name`` for a delegated task of a Live session, as if it were called
        with the task's id (``task``) as ``call_id``; its result answers the task."""
        group = _Group()
        note = self._control.timeline.note(now, "tool", "info", name=name)
        item = {"name": name, "call_id": task, "arguments": arguments}
        outputs = [note, *self._start_call(item, group, now)]
        group.whole = True
        return outputs + self._send_results(group, now)

    def _start_call(self, item: Mapping[str, Any], group: _Group, now: float) -> list[Output]:
        """Record one function call, and start it: a function of the route, or a tool of the
        gateway's own, at once or after the approval that a rule asks for.

        Where it cannot be carried out (no such tool, already under way, wrong arguments, too many
        run) its result is an error.
        """
        name, call_id = str(item.get("name", "")), call_id_of(item)
        at_ms = round(self._control.timeline.ms(now), 1)
        use = ToolUse(at_ms, name[:MAX_NAME], id=call_id[:MAX_NAME])
        self._control.timeline.record.actions.add_tool_use(use)
        call = _Call(call_id, name, str(item.get("arguments") or "{}"), group, use)
        try:
            if call_id in self._running:
                raise ToolCallError("this call is being carried out already")
            if name in self._plan.tools.functions:
                return self._run_function(call, now)
            if name not in self._own:
                raise ToolCallError("this gateway has no such tool")
        except ToolCallError as error:
            return self._answer_error(call, error, now)

        def decided(yes: bool, by: str, reason: str, now: float) -> list[Output]:
            """Record who decided, and run the tool, or answer that it is not done (``reason``)."""
            use.approval = by if yes else f"refused: {by}"
            group.open.discard(call_id)
            if yes:
                return self._run_own_tool(call, now)
            use.outcome = "refused"
            return self._add_result(call, {"status": "not done", "reason": reason}, now)

        group.open.add(call_id)
        asked = self._approvals.ask(call_id, name, call.arguments, decided, now, needed=False)
        if asked is not None:
            return asked
        group.open.discard(call_id)
        return self._run_own_tool(call, now)

    def _answer_error(self, call: _Call, error: ToolCallError, now: float) -> list[Output]:
        """Answer a call with the error, and record and log it as refused (``tool_refused``)."""
        call.use.outcome = "refused"
        fields = {"name": call.use.name, "reason": str(error)[:MAX_REASON]}
        note = self._control.timeline.note(now, "tool_refused", "warning", **fields)
        return [note, *self._add_result(call, {"error": str(error)}, now)]

    def _run_function(self, call: _Call, now: float) -> list[Output]:
        """Run a function of the route, at once or after the approval that a rule asks for; one that
        needs approval is refused where no rule applies. Raises ToolCallError where ``MAX_RUNNING``
        functions run or wait for approval, or the function's check rejects the arguments."""
        if len(self._running) >= MAX_RUNNING:
            raise ToolCallError(
                f"{MAX_RUNNING} functions are running already; wait for their results"
            )
        plan = self._plan.tools.functions[call.name]
        if wrong := plan.check(call.arguments):
            raise ToolCallError(wrong)
        running = self._running[call.id] = _Running(call, plan, now)
        call.group.open.add(call.id)

        def decided(yes: bool, by: str, reason: str, now: float) -> list[Output]:
            """Record who decided, and run the function, or answer that it is not done
            (``reason``); only record it if the function does not wait any more."""
            call.use.approval = by if yes else f"refused: {by}"
            if call.id not in self._running:
                return []
            if yes:
                return self._run_approved(running, now)
            del self._running[call.id]
            result = json.dumps({"status": "not done", "reason": reason})
            return self._finish_function(running, "refused", result, now)

        asked = self._approvals.ask(
            call.id, call.name, call.arguments, decided, now, needed=plan.approval
        )
        if asked is None:
            return self._run_approved(running, now)
        running.asking = any(isinstance(output, RequestApproval) for output in asked)
        return asked

    def _run_approved(self, running: _Running, now: float) -> list[Output]:
        """Run the function: return ``RunTool``; its timeout and filler delay count from now."""
        running.began, running.started = now, True
        call = running.call
        return [RunTool(call.id, call.name, call.arguments)]

    def _fill_wait(self, running: _Running, now: float) -> list[Output]:
        """Have the model say the filler text, or without one play the filler sound, once for each
        call of a function. Log ``tool_slow`` the first time that this is called for it.

        Where the caller hears something anyway (a filler sound, model audio), a response runs, is
        requested or waits, an action is queued or under way, or the conversation is being ended,
        nothing is said or played yet: the wait for the filler starts anew.
        """
        control, plan = self._control, running.plan
        notes: list[Output] = []
        if not running.waits_from:
            fields = {"name": running.call.name, "call_id": running.call.id}
            notes.append(control.timeline.note(now, "tool_slow", **fields))
        busy = self._sounding or control.call_actions.busy or control.termination is not None
        if busy or control.speaking or not control.responses.idle:
            running.waits_from = now  # they hear something anyway; perhaps not for so long
            return notes
        running.told = True
        if plan.filler_text:
            return [*notes, *control.say(plan.filler_text, now)]
        if plan.filler_sound:
            self._sounding = running.call.id
            return [*notes, PlaySound(plan.filler_sound)]
        return notes

    def _stop_filler(self) -> list[Output]:
        """Note that no filler sound plays, and return ``PlaySound("")``; nothing where a hold or
        transfer that has begun has replaced it by a sound of its own."""
        self._sounding = ""
        return [] if self._control.call_actions.audio_suspended else [PlaySound("")]

    def _finish_function(
        self, running: _Running, outcome: str, output: str, now: float
    ) -> list[Output]:
        """Record outcome (done, failed, late, refused) and duration of a function, stop its filler
        sound, and answer its call with ``output``."""
        call = running.call
        call.use.outcome, call.use.ms = outcome, round((now - running.began) * 1000, 1)
        quiet = self._stop_filler() if self._sounding == call.id else []
        return quiet + self._add_result(call, output, now)

    # ---- the calls of one response

    def _add_result(self, call: _Call, output: str | Mapping[str, Any], now: float) -> list[Output]:
        """Keep the result of one call, to which a response is wanted. The last result of a group
        sends those of all (:meth:`_send_results`)."""
        call.group.open.discard(call.id)
        call.group.outputs.append(tool_output(call.id, output))
        call.group.respond = True
        return self._send_results(call.group, now)

    def _send_results(self, group: _Group, now: float, *, respond: bool = True) -> list[Output]:
        """Send the results of a group, and request a response to them if one is wanted; nothing
        until all its calls were started and have their results.

        Results that are held back are sent before, with their request. After more than
        ``FREE_ROUNDS`` responses in a row that only call tools, results to which a response is
        wanted are held back themselves, for ``FIRST_PAUSE`` to ``LONGEST_PAUSE`` seconds.

        Args:
            respond: False: request none for the results that there are (the call is being ended).
        """
        if not respond:
            group.respond = False
        if group.open or not group.whole:
            return []
        outputs, group.outputs = group.outputs, []
        earlier = self._send_paused(now)
        if not group.respond:
            return earlier + outputs
        rounds = self._silent_rounds - FREE_ROUNDS
        if rounds <= 0:
            return earlier + outputs + self._control.continue_with_results(now)
        self._paused = now + min(FIRST_PAUSE * 2 ** (rounds - 1), LONGEST_PAUSE), outputs
        return earlier

    def _send_paused(self, now: float) -> list[Output]:
        """Send the results that are held back, and request a response to them; nothing if none
        are."""
        if self._paused is None:
            return []
        (_due, outputs), self._paused = self._paused, None
        return outputs + self._control.continue_with_results(now)

    # ---- the gateway's own

    def _run_own_tool(self, call: _Call, now: float) -> list[Output]:
        """Run one of the gateway's own tools: language, disposition and recording are changed and
        answered at once; digits are answered when they were collected; transfer, hold and DTMF are
        queued, and answered when done (:meth:`answer_finished_action`). Arguments that are not
        allowed, and what cannot be done now, are answered with an error."""
        tools, use = self._plan.tools, call.use
        try:
            if call.name == definitions.SET_LANGUAGE:
                code = definitions.language_of(call.arguments, tools.language)
                language, changed = self._control.speak_language(code)
                use.outcome = "done"
                result = {"status": "done", "language": language}
                return [*changed, *self._add_result(call, result, now)]
            if call.name == definitions.SET_DISPOSITION:
                wanted = definitions.disposition_of(call.arguments, tools.disposition)
                use.outcome = "done"
                noted = self._control.note_disposition(wanted, "model", now)
                return [noted, *self._add_result(call, {"status": "done"}, now)]
            if call.name == definitions.RECORD_CALL:
                return self._record(call, now)
            use.outcome = "begun"
            if call.name == definitions.COLLECT_DIGITS:
                return self._collect_digits(call, now)
            self._control.queue_action(call.name, call.id, call.arguments, now)
        except ToolCallError as error:
            return self._answer_error(call, error, now)
        return self._send_results(call.group, now)

    def _record(self, call: _Call, now: float) -> list[Output]:
        """Run ``record_call``, and answer it with the state of the recording. Raises ToolCallError
        where the arguments name no action, or it cannot be done now (``refusal_of``)."""
        recording = self._control.recording
        assert recording is not None
        refused, outputs = recording.command(definitions.record_action(call.arguments), "tool", now)
        if refused:
            raise ToolCallError(refused)
        call.use.outcome = "done"
        record = self._control.timeline.record.recording
        result = {"status": "" if record is None else record.state}
        return [*outputs, *self._add_result(call, result, now)]

    def _collect_digits(self, call: _Call, now: float) -> list[Output]:
        """Start ``collect_digits``. Of private digits that are not sensitive, the transcript has
        the result only as "(private)". Raises ToolCallError while digits are collected for another
        call, or for wrong arguments."""
        if self._collecting_for is not None:
            raise ToolCallError("digits are being waited for already")
        outputs = self.digit_collection.begin(call.arguments, now)
        self._collecting_for = call
        call.group.open.add(call.id)
        plan = self._plan.tools.collect_digits
        if plan.private and not plan.sensitive:
            self._control.private.add(call.id)
        return outputs

    def _on_digits_collected(self, result: Mapping[str, Any], now: float) -> list[Output]:
        """Answer ``collect_digits`` with ``result``: the digits, what the service that took
        sensitive ones has answered, or why there are none. Nothing if no call waits."""
        call, self._collecting_for = self._collecting_for, None
        return [] if call is None else self._add_result(call, result, now)

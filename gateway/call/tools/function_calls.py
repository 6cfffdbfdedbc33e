# SPDX-License-Identifier: GPL-2.0-or-later
"""Function calls of the model: check, approve, run, and answer those of a response together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.call.call_control import BY_CALLER, BY_GATEWAY, BY_OPERATOR
from gateway.call.conversation.control import ConversationControl, tool_output
from gateway.call.dtmf import DigitCollection
from gateway.call.outputs import Output, PlaySound, RequestApproval, RunTool
from gateway.call.plan import CallPlan, FunctionPlan
from gateway.call.record_entries import ToolUse
from gateway.call.tools.approvals import Approvals
from gateway.call.tools.definitions import (
    COLLECT_DIGITS,
    END_CALL,
    RECORD_CALL,
    SET_DISPOSITION,
    SET_LANGUAGE,
    ToolCallError,
    call_id_of,
    calls_of,
    disposition_of,
    language_of,
    record_action,
)
from gateway.call.tools.delegated_tasks import DelegatedTasks
from gateway.realtime.events import CreateResponse, ResponseDone

MAX_RUNNING = 8
"""Tool functions that run at a time for one call; a model that wants more is in a loop."""

MAX_CALLS = 32
"""Function calls of one response that are carried out; those beyond get an error."""

MAX_ANSWERED = 256
"""Function calls of one response that get any answer."""

MAX_NAME = 128
"""Characters of a function's name in log and record; the API allows 64."""

WORDS_SECONDS = 10.0
"""How often words of the agent end a row of responses that call tools. A row that is quicker is a
loop, whatever is said in it."""

MAX_REASON = 300
"""Characters of a rejection's reason in the log; the model gets all."""


@dataclass(slots=True)
class _Group:
    """The function calls of one response: answered together, followed by one request."""

    open: set[str] = field(default_factory=set)
    whole: bool = False
    """All of them have been started or rejected."""
    outputs: list[Output] = field(default_factory=list)
    respond: bool = False


FREE_ROUNDS = 3
"""Responses in a row that only call tools and are answered at once."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 0.8
"""How long the results of the next one wait (s), doubled with each."""


@dataclass(slots=True)
class _Running:
    """A tool function that runs, or waits for its approval."""

    name: str
    plan: FunctionPlan
    group: _Group
    use: ToolUse
    began: float
    arguments: str
    started: bool = False
    asking: bool = False
    """The operator is being asked."""
    told: bool = False
    """The caller has got the filler text or sound."""
    waits_from: float = 0.0
    """When the caller's wait began (s): with the function, or when they last heard something."""

    @property
    def due(self) -> float | None:
        """When the time of the function is over, or its filler is due (s)."""
        due = [self.began + self.plan.timeout] if self.started else []
        if self.plan.filler_delay and not self.told and (self.started or self.asking):
            due.append(max(self.began, self.waits_from) + self.plan.filler_delay)
        return min(due, default=None)


class Functions:
    """Runs the function calls of the model. Every method takes the time (s)."""

    def __init__(self, control: ConversationControl, approvals: Approvals) -> None:
        self._control = control
        self._approvals = approvals
        self._running: dict[str, _Running] = {}
        self._collecting = DigitCollection(control, self._digits_collected)
        self._collecting_for: tuple[str, _Group] | None = None
        self.tasks = DelegatedTasks(control, self._start_task)
        self._sounding = ""
        self._silent_rounds = 0
        self._words_at = -WORDS_SECONDS
        """When words ended a row last (s)."""
        self._paused: tuple[float, list[Output]] | None = None
        """Results of a model that only calls tools, and when they are sent (s)."""
        self.in_loop = False
        """The last response called functions once too often, and no other was asked for."""
        self._own = set(control.call_actions.names)
        if self._plan.tools.language.updates:
            self._own.add(SET_LANGUAGE)
        if self._plan.tools.collect_digits.enabled:
            self._own.add(COLLECT_DIGITS)
        if self._plan.tools.disposition.values:
            self._own.add(SET_DISPOSITION)
        if self._plan.recording.mode != "off" and self._plan.recording.tool:
            self._own.add(RECORD_CALL)

    @property
    def _plan(self) -> CallPlan:
        return self._control.plan

    def on_response_done(self, event: ResponseDone, now: float) -> list[Output]:
        """Start the function calls of a response that is done; reject those that cannot be."""
        control, note = self._control, self._control.timeline.note
        calls = calls_of(event.output)
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
        self.in_loop = False
        if control.playback.was_interrupted(event.response_id):
            result = {"status": "not done", "reason": "the caller interrupted"}
            return outputs + [tool_output(call_id_of(call), result) for call in calls]
        end_call = next((call for call in calls if call.get("name") == END_CALL), None)
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
            if call.get("name") == END_CALL:
                continue
            if end_call is not None and call.get("name") in control.call_actions.names:
                result = {"status": "not done", "reason": "the call is being ended"}
                outputs.append(tool_output(call_id_of(call), result))
                continue
            outputs += self._start_call(call, group, now)
        group.whole = True
        outputs += self._send_results(group, now, respond=end_call is None)
        return outputs + ([] if end_call is None else self._end_call(end_call, spoke, now))

    def _is_open(self, call_id: str) -> bool:
        """Return whether this call is carried out; reported again, it gets one result only."""
        waits = self._collecting_for and self._collecting_for[0] == call_id
        acts = self._control.call_actions.call_id == call_id or call_id in self._running
        return bool(call_id and (waits or acts or self._approvals.is_pending(call_id)))

    def _is_ours(self, name: object) -> bool:
        """Return whether the gateway answers calls of this function, not the application."""
        return name == END_CALL or name in self._own or name in self._plan.tools.functions

    def on_tool_done(self, call_id: str, output: str, now: float) -> list[Output]:
        """Take the result of a tool function."""
        running = self._running.pop(call_id, None)
        if running is None:
            return []
        # What runs functions tells of a failure so, and so do most services.
        outcome = "failed" if output.startswith('{"error":') else "done"
        note = self._control.timeline.note(
            now, "tool_done", name=running.name, call_id=call_id, outcome=outcome
        )
        return [note, *self._finish_function(running, call_id, outcome, output, now)]

    def answer_finished_action(self, now: float) -> list[Output]:
        """Send the result of a call-control action that is done."""
        result = self._control.call_actions.take_result()
        if result is None:
            return []
        if result.call_id == BY_CALLER:
            return self._control.next_escape_destination(now)
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
        """Reset the count of consecutive responses that only call tools."""
        self._silent_rounds = 0

    def on_model_audio(self) -> list[Output]:
        """Stop the filler sound, since the model speaks."""
        return self._stop_filler() if self._sounding else []

    def tick(self, now: float) -> list[Output]:
        """Act on deadlines: a function is late, a filler is due, or results have waited."""
        outputs = self._collecting.tick(now) + self.tasks.tick(now)
        if self._paused is not None and now >= self._paused[0]:
            outputs += self._send_paused(now)
        for call_id, running in list(self._running.items()):
            if running.due is None or now < running.due:
                continue
            if running.started and now >= running.began + running.plan.timeout:
                del self._running[call_id]
                text = json.dumps({"error": f"no result within {running.plan.timeout:g} s"})
                note = self._control.timeline.note(
                    now, "tool_late", "warning", name=running.name, call_id=call_id
                )
                outputs += [note, *self._finish_function(running, call_id, "late", text, now)]
            else:
                outputs += self._fill_wait(running, call_id, now)
        return outputs

    @property
    def busy(self) -> bool:
        """Return whether a function runs, its result waits, or digits are being collected."""
        waits = self._paused is not None or self._collecting_for is not None
        return bool(self._running) or self.tasks.busy or waits

    @property
    def deadline(self) -> float | None:
        due = [self._collecting.deadline, *(one.due for one in self._running.values())]
        due += [] if self._paused is None else [self._paused[0]]
        due += [] if self.tasks.deadline is None else [self.tasks.deadline]
        return min((at for at in due if at is not None), default=None)

    # ---- one call

    def _start_task(self, name: str, task: str, arguments: str, now: float) -> list[Output]:
        """Run a function for a task that was handed over to us; its result answers that."""
        group = _Group()
        note = self._control.timeline.note(now, "tool", "info", name=name)
        call = {"name": name, "call_id": task, "arguments": arguments}
        outputs = [note, *self._start_call(call, group, now)]
        group.whole = True
        return outputs + self._send_results(group, now)

    def _start_call(self, call: Mapping[str, Any], group: _Group, now: float) -> list[Output]:
        """Start one function call of a response once it is allowed; answer a refused one."""
        control = self._control
        name, call_id = str(call.get("name", "")), call_id_of(call)
        arguments = str(call.get("arguments") or "{}")
        at_ms = round(control.timeline.ms(now), 1)
        use = ToolUse(at_ms, name[:MAX_NAME], id=call_id[:MAX_NAME])
        control.timeline.record.actions.used(use)
        try:
            if call_id in self._running:
                raise ToolCallError("this call is being carried out already")
            if name in self._plan.tools.functions:
                return self._run_function(name, call_id, arguments, group, use, now)
            if name not in self._own:
                raise ToolCallError("this gateway has no such tool")
        except ToolCallError as error:
            return self._answer_error(error, call_id, group, use, now)

        def decided(yes: bool, by: str, reason: str, now: float) -> list[Output]:
            """Run the tool, or answer that it is not approved."""
            use.approval = by if yes else f"refused: {by}"
            group.open.discard(call_id)
            if yes:
                return self._run_own_tool(name, call_id, arguments, group, use, now)
            use.outcome = "refused"
            return self._add_result(group, call_id, {"status": "not done", "reason": reason}, now)

        group.open.add(call_id)
        asked = self._approvals.ask(call_id, name, arguments, decided, now, needed=False)
        if asked is not None:
            return asked
        group.open.discard(call_id)
        return self._run_own_tool(name, call_id, arguments, group, use, now)

    def _answer_error(
        self, error: ToolCallError, call_id: str, group: _Group, use: ToolUse, now: float
    ) -> list[Output]:
        """Answer a call that cannot be carried out with the error."""
        use.outcome, reason = "refused", str(error)[:MAX_REASON]
        note = self._control.timeline.note(
            now, "tool_refused", "warning", name=use.name, reason=reason
        )
        return [note, *self._add_result(group, call_id, {"error": str(error)}, now)]

    def _run_function(
        self, name: str, call_id: str, arguments: str, group: _Group, use: ToolUse, now: float
    ) -> list[Output]:
        """Run a function of the route, or ask for its approval first. Raises ToolCallError."""
        if len(self._running) >= MAX_RUNNING:
            raise ToolCallError(
                f"{MAX_RUNNING} functions are running already; wait for their results"
            )
        plan = self._plan.tools.functions[name]
        if wrong := plan.check(arguments):
            raise ToolCallError(wrong)
        running = _Running(name, plan, group, use, now, arguments)
        self._running[call_id] = running
        group.open.add(call_id)

        def decided(yes: bool, by: str, reason: str, now: float) -> list[Output]:
            """Run the function, or answer that it is not approved."""
            use.approval = by if yes else f"refused: {by}"
            if call_id not in self._running:
                return []
            if yes:
                return self._run_approved(running, call_id, now)
            del self._running[call_id]
            result = json.dumps({"status": "not done", "reason": reason})
            return self._finish_function(running, call_id, "refused", result, now)

        asked = self._approvals.ask(call_id, name, arguments, decided, now, needed=plan.approval)
        if asked is None:
            return self._run_approved(running, call_id, now)
        running.asking = any(isinstance(output, RequestApproval) for output in asked)
        return asked

    def _run_approved(self, running: _Running, call_id: str, now: float) -> list[Output]:
        """Let the executor run a function, and set its deadline."""
        running.began, running.started = now, True
        return [RunTool(call_id, running.name, running.arguments)]

    def _fill_wait(self, running: _Running, call_id: str, now: float) -> list[Output]:
        """Say or play the filler, unless the caller hears something anyway."""
        control, plan = self._control, running.plan
        notes: list[Output] = []
        if running.waits_from <= running.began:
            fields = {"name": running.name, "call_id": call_id}
            notes.append(control.timeline.note(now, "tool_slow", **fields))
        busy = self._sounding or control.call_actions.busy or control.termination is not None
        if busy or control.speaking or not control.responses.idle:
            running.waits_from = now  # they hear something anyway; perhaps not for so long
            return notes
        running.told = True
        if plan.filler_text:
            return [*notes, *control.say(plan.filler_text, now)]
        if plan.filler_sound:
            self._sounding = call_id
            return [*notes, PlaySound(plan.filler_sound)]
        return notes

    def _stop_filler(self) -> list[Output]:
        """Stop the filler sound, unless an action plays its own."""
        self._sounding = ""
        return [] if self._control.call_actions.busy else [PlaySound("")]

    def _finish_function(
        self, running: _Running, call_id: str, outcome: str, output: str, now: float
    ) -> list[Output]:
        """Record the outcome of a function, and answer its call."""
        running.use.outcome = outcome
        running.use.ms = round((now - running.began) * 1000, 1)
        quiet = self._stop_filler() if self._sounding == call_id else []
        return quiet + self._add_result(running.group, call_id, output, now)

    # ---- the calls of one response

    def _add_result(
        self, group: _Group, call_id: str, output: str | Mapping[str, Any], now: float
    ) -> list[Output]:
        """Add the result of one call; the last of a group sends all of them."""
        group.open.discard(call_id)
        group.outputs.append(tool_output(call_id, output))
        group.respond = True
        return self._send_results(group, now)

    def _send_results(self, group: _Group, now: float, *, respond: bool = True) -> list[Output]:
        """Send all results of a group at once, and request one response."""
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
        """Send results that have waited, and request a response to them."""
        if self._paused is None:
            return []
        (_due, outputs), self._paused = self._paused, None
        return outputs + self._control.continue_with_results(now)

    # ---- the gateway's own

    def _run_own_tool(
        self, name: str, call_id: str, arguments: str, group: _Group, use: ToolUse, now: float
    ) -> list[Output]:
        """Run one of the gateway's own tools; those that take time are answered when done."""
        try:
            if name == SET_LANGUAGE:
                code = language_of(arguments, self._plan.tools.language)
                language, changed = self._control.speak_language(code)
                use.outcome = "done"
                result = {"status": "done", "language": language}
                return [*changed, *self._add_result(group, call_id, result, now)]
            if name == SET_DISPOSITION:
                wanted = disposition_of(arguments, self._plan.tools.disposition)
                use.outcome = "done"
                noted = self._control.note_disposition(wanted, "model", now)
                return [noted, *self._add_result(group, call_id, {"status": "done"}, now)]
            if name == RECORD_CALL:
                return self._record(call_id, arguments, group, use, now)
            use.outcome = "begun"
            if name == COLLECT_DIGITS:
                return self._collect_digits(call_id, arguments, group, now)
            self._control.begin_action(name, call_id, arguments, now)
        except ToolCallError as error:
            return self._answer_error(error, call_id, group, use, now)
        return self._send_results(group, now)

    def _record(
        self, call_id: str, arguments: str, group: _Group, use: ToolUse, now: float
    ) -> list[Output]:
        """Start, stop, pause, resume or delete the recording. Raises ToolCallError."""
        recording = self._control.recording
        assert recording is not None
        refused, outputs = recording.command(record_action(arguments), "tool", now)
        if refused:
            raise ToolCallError(refused)
        use.outcome = "done"
        record = self._control.timeline.record.recording
        result = {"status": "" if record is None else record.state}
        return [*outputs, *self._add_result(group, call_id, result, now)]

    def digits_stored(self, result: Mapping[str, Any], now: float) -> list[Output]:
        """Take what became of sensitive digits."""
        return self._collecting.stored(result, now)

    def _collect_digits(
        self, call_id: str, arguments: str, group: _Group, now: float
    ) -> list[Output]:
        """Start the collection of digits for ``collect_digits``. Raises ToolCallError."""
        if self._collecting_for is not None:
            raise ToolCallError("digits are being waited for already")
        outputs = self._collecting.begin(arguments, now)
        self._collecting_for = (call_id, group)
        group.open.add(call_id)
        plan = self._plan.tools.collect_digits
        if plan.private and not plan.sensitive:
            self._control.private.add(call_id)
        return outputs

    def _digits_collected(self, result: Mapping[str, Any], now: float) -> list[Output]:
        """Answer ``collect_digits`` with what was pressed."""
        waiting, self._collecting_for = self._collecting_for, None
        return [] if waiting is None else self._add_result(waiting[1], waiting[0], result, now)

    def _end_call(self, call: Mapping[str, Any], spoke: bool, now: float) -> list[Output]:
        """Hang up for ``end_call`` after the words that were said, or request a goodbye."""
        control = self._control
        note = control.timeline.note(now, "hangup_requested", "info", spoken=spoke)
        outputs: list[Output] = [note]
        result = {"status": "ending", "next": "Say a short goodbye now; then the call ends."}
        again = control.hangup_after_playout.deadline is not None
        if not control.capabilities.direct_tools and again:
            return [*outputs, tool_output(call_id_of(call), result)]
        if not control.capabilities.direct_tools:
            # It was asked for by a backend; the voice says goodbye when it learns of it.
            control.hangup_after_playout.after_next_speech(now)
            if control.speaking:
                result["next"] = "Say no more."
            outputs.append(tool_output(call_id_of(call), result))
            return outputs + control.continue_with_results(now)
        if spoke or control.speaking or again:  # without the words that it was asked for
            control.hangup_after_playout.after_spoken_goodbye(call_id_of(call), now)
            return outputs
        control.hangup_after_playout.after_requested_goodbye(now)
        outputs.append(tool_output(call_id_of(call), result))
        return outputs + control.request_response(CreateResponse({"tools": []}), now)

"""The conversation of one call while its session is up: playout, barge-in, digits, goodbyes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gateway.call.digits import Collected, DigitCollector
from gateway.call.ending import Why
from gateway.call.errands import Errands
from gateway.call.farewell import Farewell
from gateway.call.journal import Journal
from gateway.call.outputs import Output, Press, Send
from gateway.call.plan import CallPlan
from gateway.call.playback import Playback
from gateway.call.record import DigitRun
from gateway.call.responses import ResponseGate
from gateway.call.toolwork import ToolWork, tool_output
from gateway.realtime.commands import (
    CancelResponse,
    ClientCommand,
    CreateItem,
    CreateResponse,
    UpdateSession,
)
from gateway.realtime.errors import Kind, classify_error
from gateway.realtime.events import (
    AgentTranscript,
    AudioDelta,
    AudioDone,
    InputTranscribed,
    ItemTruncated,
    ResponseCreated,
    ResponseDone,
    ServerError,
    ServerEvent,
    SpeechStarted,
    SpeechStopped,
)
from gateway.tools.arguments import ToolError
from gateway.tools.definitions import END_CALL, TRANSFER_CALL

BUDGET_ERRAND = "budget"
"""Where a tool call has its id: the transfer that no model asked for."""


class Conversation:
    """Decides for a call that is up. Every method takes the time (s) and returns outputs."""

    def __init__(self, plan: CallPlan, journal: Journal) -> None:
        self._plan = plan
        self._journal = journal
        self._playback = Playback(plan.codec.silence, plan.truncate_margin_ms, journal)
        self._gate = ResponseGate()
        self._farewell = Farewell(plan.farewell_seconds)
        digits = plan.digits
        self._digits = DigitCollector(
            digits.inter_digit_seconds, digits.terminator, digits.max_digits
        )
        self.errands = Errands(plan, journal)
        self._tools = ToolWork(plan, journal, self.errands)
        self._keys_signalled = False
        self._to_cancel: str | None = None
        self._after_cut: list[Output] = []
        self._session_failed = False
        self._handed_on = False
        self.spent = ""
        """Which budget is spent, once one is; nothing more is asked of the model then."""

    # ---- what happens

    def open(self, now: float) -> list[Output]:
        """The session is up: the greeting is asked for, so that it is there at the answer."""
        if self._plan.greeting is None:
            return []
        return self._create(CreateResponse(self._plan.greeting), now)

    def on_event(self, event: ServerEvent, now: float) -> list[Output]:
        """An event of the session."""
        note = self._journal.note
        if self.errands.joined and not isinstance(event, AgentTranscript | InputTranscribed):
            return []  # it listens, and has nobody to talk to
        match event:
            case AudioDelta():
                outputs = self.errands.model_speaks(now)
                return outputs + self._playback.receive(event)
            case AudioDone():
                return self._playback.part_done(event)
            case SpeechStarted():
                started = note(now, "caller_starts", audio_ms=event.audio_start_ms)
                if not self._plan.server_interrupts:
                    return [started]
                # Silence first: a log that takes its time must not let the agent talk on.
                return [*self._interrupt("speech", now), started]
            case SpeechStopped():
                return [note(now, "caller_stops", audio_ms=event.audio_end_ms)]
            case ResponseCreated():
                self._gate.created(event.response_id)
                return []
            case ResponseDone():
                return self._on_response_done(event, now)
            case AgentTranscript():
                return [note(now, "agent_said", item_id=event.item_id, text=event.transcript)]
            case InputTranscribed():
                return [note(now, "caller_said", text=event.transcript)]
            case ItemTruncated():
                at_ms = event.audio_end_ms
                return [note(now, "truncated", item_id=event.item_id, audio_end_ms=at_ms)]
        return []

    def on_error(
        self, error: ServerError, command: ClientCommand | None, now: float
    ) -> list[Output]:
        """An ``error`` event; most leave the call as it is (section 4.1 of the protocol notes)."""
        verdict = classify_error(error)
        outputs: list[Output] = [
            self._journal.note(
                now,
                "error",
                "debug" if verdict.kind is Kind.BENIGN else "warning",
                code=verdict.code,
                message=error.message,
                answers=None if command is None else type(command).__name__,
                kind=verdict.kind.value,
            )
        ]
        if error.code == "conversation_already_has_active_response":
            self._gate.collided(command if isinstance(command, CreateResponse) else None, now)
        elif isinstance(command, CreateResponse):
            outputs += self._send(self._gate.failed(command, now))
        elif isinstance(command, CancelResponse):
            # It does not run, whatever became of its response.done.
            outputs += self._send(self._gate.done(command.response_id, now))
        outputs += self._playback.refusal(error, command)
        self._session_failed = self._session_failed or verdict.ends_session
        return outputs

    def on_digit(self, digit: str, now: float, *, in_band: bool = False) -> list[Output]:
        """The caller pressed a key."""
        if in_band and self._keys_signalled:
            return []  # the tone of a key that was signalled, too
        self._keys_signalled = self._keys_signalled or not in_band
        outputs: list[Output] = [self._journal.note(now, "digit", digit=digit)]
        if self.errands.joined:
            return [*outputs, Press(digit, second=True)]
        if self.spent or not self._plan.digits.enabled or self.errands.away:
            return outputs
        outputs += self._on_collected(self._digits.expire(now), now)
        if self._plan.digits.interrupt:
            outputs += self._interrupt("digit", now)
        collected = self._on_collected(self._digits.press(digit, now), now)
        if self._playback.cutting:
            # What was heard comes first, or the model answers to what nobody heard.
            self._after_cut = collected
            return outputs
        return outputs + collected

    def on_playout_started(self, now: float) -> list[Output]:
        """The caller begins to hear an answer."""
        return self._playback.started(now)

    def on_playout_drained(self, now: float) -> list[Output]:
        """The caller has heard all there was."""
        return self._playback.drained(now)

    def on_playout_refused(self, frames: int, now: float) -> list[Output]:
        """The queue is full: the answer is cut at its end, and that is said."""
        return self._playback.refused(frames, now)

    def on_flushed(self, unplayed_frames: int, now: float) -> list[Output]:
        """Playout has stopped; tell the server what was heard, and to stop where it does not."""
        outputs = self._playback.flushed(unplayed_frames, now)
        cancel, self._to_cancel = self._to_cancel, None
        if cancel is not None:
            outputs.append(Send(CancelResponse(cancel)))
        following, self._after_cut = self._after_cut, []
        return outputs + following

    def on_budget(self, spent: bool, detail: str, now: float) -> list[Output]:
        """Money is nearly spent, or spent (``detail`` says whose)."""
        plan = self._plan.budget
        if self.spent:
            return []
        if not spent:
            warned = self._journal.note(now, "budget_warning", "info", budget=detail)
            text = {"type": "input_text", "text": plan.warn}
            item = {"type": "message", "role": "system", "content": [text]}
            asked = self._create(CreateResponse(), now) if plan.warn_respond else []
            return [warned, Send(CreateItem(item)), *asked]
        self.spent = detail
        self._gate.forget_waiting()
        return [self._journal.note(now, "budget_spent", "warning", budget=detail)]

    def _stop(self, now: float) -> list[Output]:
        """No money is left: hand the caller on, or say goodbye to them."""
        plan = self._plan.budget
        if plan.transfer_to and not self._handed_on:
            self._handed_on = True
            wanted = json.dumps({"destination": plan.transfer_to})
            try:
                self.errands.ask(TRANSFER_CALL, BUDGET_ERRAND, wanted, now)
            except ToolError as error:
                note = self._journal.note(now, "tool_refused", "error", reason=str(error))
                return [note, *self._stop(now)]
            return []
        self._farewell.last(Why.BUDGET, now)
        # Nobody is to be answered any more, nor to be cut short.
        deaf = UpdateSession({"audio": {"input": {"turn_detection": None}}})
        words = CreateResponse({"instructions": f"Say exactly: {plan.goodbye}", "tools": []})
        return [Send(deaf), *self._send(self._gate.request(words, now))]

    def on_tool_done(self, call_id: str, output: str, now: float) -> list[Output]:
        """A function outside has returned."""
        return self._asking(self._tools.done(call_id, output, now), now)

    def settle(self, now: float, *, confirmed: bool) -> list[Output]:
        """What follows from what happened, once all of that is known."""
        outputs = self._begin_errand(now, confirmed)
        result = self.errands.take_result()
        if result is not None:
            if result.call_id != BUDGET_ERRAND:
                outputs.append(tool_output(result.call_id, result.output))
            if result.respond:
                outputs += self._create(CreateResponse(), now)
        # What is under way, or a goodbye that is being said, ends the call by itself.
        if self.spent and not self.errands.busy and self._farewell.deadline is None:
            outputs += self._stop(now)
            outputs += self._begin_errand(now, confirmed)
        return outputs

    def _begin_errand(self, now: float, confirmed: bool) -> list[Output]:
        queued = self._playback.queued_ms > 0
        return self.errands.settle(now, queued=queued, confirmed=confirmed)

    def on_session_over(self, now: float) -> None:
        """The session closed as it should, but what came of it is still to be heard."""
        self._farewell.session_over(now)
        self._gate = ResponseGate()
        self.on_end(now)

    def on_end(self, now: float) -> None:
        """The session ends; digits that were not sent yet are in the record at least."""
        self._record_digits(self._digits.abandon(), now)

    @property
    def goodbye_is_here(self) -> bool:
        """What is left to be heard is a goodbye, and all of it has come."""
        return self._farewell.being_said

    def ended(self, now: float) -> Why | None:
        """Why the call is to end now, if it is; asked after everything that happens."""
        if self._session_failed:
            return Why.SESSION_ERROR
        return self._farewell.over(
            now, queued_ms=self._playback.queued_ms, responding=not self._gate.idle
        )

    @property
    def deadline(self) -> float | None:
        """When :meth:`on_tick` is due next (s)."""
        due = [
            self._digits.deadline,
            self._gate.deadline,
            self._farewell.deadline,
            self.errands.deadline,
            self._tools.deadline,
        ]
        return min((at for at in due if at is not None), default=None)

    def on_tick(self, now: float) -> list[Output]:
        """A deadline may have come."""
        outputs = self._on_collected(self._digits.expire(now), now)
        if self._gate.deadline is not None and now >= self._gate.deadline:
            outputs.append(self._journal.note(now, "response_unanswered", "warning"))
            outputs += self._send(self._gate.unanswered(now))
        outputs += self.errands.tick(now)
        return outputs + self._asking(self._tools.tick(now), now)

    @property
    def late_audio_ms(self) -> int:
        """Audio that came after its response was cut, ms."""
        return self._playback.late_audio_ms

    # ---- what follows from it

    def _on_response_done(self, event: ResponseDone, now: float) -> list[Output]:
        outputs = self._playback.response_done(event.response_id)
        failed = event.status == "failed"
        outputs.append(
            self._journal.note(
                now,
                "response",
                "warning" if failed else "debug",
                response_id=event.response_id,
                status=event.status,
                reason=event.reason,
                **({"code": event.error_code, "message": event.error_message} if failed else {}),
            )
        )
        following = self._gate.done(event.response_id, now)
        if event.status == "completed":
            outputs += self._on_tools(event, now)
        return outputs + self._send(following)

    def _on_tools(self, event: ResponseDone, now: float) -> list[Output]:
        """Answer what the model called, once its response is whole (ordering D of the protocol)."""
        outputs: list[Output] = []
        calls = [item for item in event.output if item.get("type") == "function_call"]
        for call in calls:
            outputs.append(self._journal.note(now, "tool", "info", name=str(call.get("name"))))
        if self._playback.was_cut(event.response_id):
            # The caller was first; what comes of that is asked for elsewhere.
            result = {"status": "not done", "reason": "the caller interrupted"}
            return outputs + [tool_output(_id_of(call), result) for call in calls]
        end_call = next((call for call in calls if call.get("name") == END_CALL), None)
        respond = False
        for call in calls:
            if call.get("name") == END_CALL:
                continue
            if end_call is not None and call.get("name") in self.errands.names:
                result = {"status": "not done", "reason": "the call is being ended"}
                outputs.append(tool_output(_id_of(call), result))
                continue
            more, wanted = self._tools.take(call, now)
            outputs += more
            respond = respond or wanted
        if end_call is not None:
            spoke = self._playback.spoke(event.response_id)
            return outputs + self._say_goodbye(end_call, spoke, now)
        return outputs + (self._create(CreateResponse(), now) if respond else [])

    def _say_goodbye(self, call: Mapping[str, Any], spoke: bool, now: float) -> list[Output]:
        outputs: list[Output] = [self._journal.note(now, "farewell", "info", spoken=spoke)]
        if spoke or self._playback.queued_ms:
            self._farewell.said(_id_of(call), now)
            return outputs
        self._farewell.asked_for(now)
        result = {"status": "ending", "next": "Say a short goodbye now; then the call ends."}
        outputs.append(tool_output(_id_of(call), result))
        return outputs + self._create(CreateResponse({"tools": []}), now)

    def _interrupt(self, trigger: str, now: float) -> list[Output]:
        """The caller wants to be heard: stop playing, and take a goodbye back."""
        outputs: list[Output] = []
        unanswered = self._farewell.take_back()
        if unanswered is not None:
            outputs.append(self._journal.note(now, "farewell_taken_back", "info"))
        if unanswered:
            result = {"status": "not ended", "reason": "the caller spoke during the goodbye"}
            outputs.append(tool_output(unanswered, result))
        undone = self.errands.interrupt()
        if undone is not None:
            result = {"status": "not done", "reason": "the caller interrupted"}
            outputs.append(tool_output(undone, result))
        active = self._gate.active
        if trigger != "speech" and active is not None and not self._playback.was_cut(active):
            # Of speech the server knows by itself.
            self._to_cancel = active
        return outputs + self._playback.interrupt(trigger, active)

    def _on_collected(self, collected: Collected | None, now: float) -> list[Output]:
        if collected is None:
            return []
        self._record_digits(collected, now)
        item = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": self._plan.digits.text(collected.digits)}],
        }
        ended_by = collected.ended_by.value
        note = self._journal.note(now, "digits", "info", digits=collected.digits, ended_by=ended_by)
        return [note, Send(CreateItem(item)), *self._create(CreateResponse(), now)]

    def _record_digits(self, collected: Collected | None, now: float) -> None:
        if collected is not None:
            at_ms = round(self._journal.ms(now), 1)
            run = DigitRun(at_ms, collected.digits, collected.ended_by.value)
            self._journal.record.digits.append(run)

    def _asking(self, work: tuple[list[Output], bool], now: float) -> list[Output]:
        outputs, respond = work
        return outputs + (self._create(CreateResponse(), now) if respond else [])

    def _create(self, create: CreateResponse, now: float) -> list[Output]:
        if self.spent:
            return []
        return self._send(self._gate.request(create, now))

    @staticmethod
    def _send(command: ClientCommand | None) -> list[Output]:
        return [] if command is None else [Send(command)]


def _id_of(call: Mapping[str, Any]) -> str:
    return str(call.get("call_id", ""))

"""The conversation of one call while its session is up: playout, barge-in, digits, goodbyes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.call.digits import Collected, DigitCollector
from gateway.call.ending import Why
from gateway.call.journal import Journal
from gateway.call.ledger import Heard, Ledger
from gateway.call.outputs import Flush, Output, Play, Send
from gateway.call.plan import CallPlan
from gateway.call.record import DigitRun, Interruption
from gateway.call.responses import ResponseGate
from gateway.call.truncation import Truncations
from gateway.realtime.commands import (
    CancelResponse,
    ClientCommand,
    CreateItem,
    CreateResponse,
    DeleteItem,
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

END_CALL = "end_call"
"""Name of the built-in tool with which the model hangs up."""

_CUT_RESPONSES = 32
"""Interrupted responses remembered; events of one stop coming at its ``response.done``."""


@dataclass(slots=True)
class LastWords:
    """What is playing is the last of this call; it ends when that has been heard."""

    why: Why
    deadline: float
    call_id: str = ""
    """The ``end_call`` to answer if the caller speaks up and the call goes on."""
    awaits_response: bool = False
    """The goodbye was asked for and has not come yet."""


class Conversation:
    """Decides for a call that is up. Every method takes the time (s) and returns outputs.

    ``ended`` is set when the call is to end, for the machine to act on.
    """

    def __init__(self, plan: CallPlan, journal: Journal) -> None:
        self._plan = plan
        self._journal = journal
        self._record = journal.record
        self._ledger = Ledger(plan.codec.silence)
        self._gate = ResponseGate()
        self._truncations = Truncations(plan.truncate_margin_ms)
        digits = plan.digits
        self._digits = DigitCollector(
            digits.inter_digit_seconds, digits.terminator, digits.max_digits
        )
        self._queued = False
        self._audible = False
        self._last_spoken = ""
        self._cut: deque[str] = deque(maxlen=_CUT_RESPONSES)
        self._never_played: dict[str, list[str]] = {}
        self._interrupting: str | None = None
        self._last_words: LastWords | None = None
        self.ended: Why | None = None

    # ---- what happens

    def open(self, now: float) -> list[Output]:
        """The session is up: the greeting is asked for, so that it is there at the answer."""
        if self._plan.greeting is None:
            return []
        return self._create(CreateResponse(self._plan.greeting), now)

    def on_event(self, event: ServerEvent, now: float) -> list[Output]:
        """An event of the session."""
        match event:
            case AudioDelta():
                return self._on_audio(event)
            case AudioDone():
                due = self._ledger.finish((event.item_id, event.content_index))
                return self._play(due, more=False)
            case SpeechStarted():
                note = self._journal.note(now, "caller_starts", audio_ms=event.audio_start_ms)
                return [note, *self._interrupt("speech", now)]
            case SpeechStopped():
                return [self._journal.note(now, "caller_stops", audio_ms=event.audio_end_ms)]
            case ResponseCreated():
                self._gate.created(event.response_id)
                return []
            case ResponseDone():
                return self._on_response_done(event, now)
            case AgentTranscript():
                return [
                    self._journal.note(
                        now, "agent_said", item_id=event.item_id, text=event.transcript
                    )
                ]
            case InputTranscribed():
                return [self._journal.note(now, "caller_said", text=event.transcript)]
            case ItemTruncated():
                return [
                    self._journal.note(
                        now, "truncated", item_id=event.item_id, audio_end_ms=event.audio_end_ms
                    )
                ]
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
            self._gate.collided(now)
        elif isinstance(command, CreateResponse):
            outputs += self._send(self._gate.failed(now))
        outputs += self._send(self._truncations.retry(error, command))
        if verdict.ends_session:
            self.ended = Why.SESSION_ERROR
        return outputs

    def on_digit(self, digit: str, now: float) -> list[Output]:
        """The caller pressed a key."""
        outputs: list[Output] = [self._journal.note(now, "digit", digit=digit)]
        if not self._plan.digits.enabled:
            return outputs
        if self._plan.digits.interrupt:
            outputs += self._interrupt("digit", now)
        collected = self._digits.press(digit, now)
        return outputs + self._on_collected(collected, now)

    def on_playout_started(self, now: float) -> list[Output]:
        """The caller begins to hear an answer."""
        if not self._queued:
            return []  # it was flushed before word of its start came here
        self._audible = True
        return [self._journal.note(now, "agent_starts", item_id=self._ledger.first_item)]

    def on_playout_drained(self, now: float) -> list[Output]:
        """The caller has heard all there was."""
        self._ledger.drained()
        self._queued = False
        self._end_if_said()
        was_audible, self._audible = self._audible, False
        return [self._journal.note(now, "agent_stops", cut=False)] if was_audible else []

    def on_playout_refused(self, frames: int, now: float) -> list[Output]:
        """The queue is full: the answer is cut at its end, and that is said."""
        self._ledger.refused(frames)
        return [self._journal.note(now, "playout_overflow", "error", lost_ms=frames * 20)]

    def on_flushed(self, unplayed_frames: int, now: float) -> list[Output]:
        """Playout has stopped; tell the server what was heard."""
        trigger, self._interrupting = self._interrupting or "speech", None
        was_audible, self._audible, self._queued = self._audible, False, False
        outputs: list[Output] = []
        if was_audible:
            outputs.append(self._journal.note(now, "agent_stops", cut=True))
        for heard in self._ledger.flush(unplayed_frames):
            outputs += self._settle(heard, trigger, now)
        active = self._gate.active
        if active is not None and trigger != "speech":
            outputs.append(Send(CancelResponse(active)))
        return outputs

    def close_when_said(self, why: Why, now: float) -> None:
        """The session is over, but what came of it is still to be heard."""
        self._last_words = LastWords(why, now + self._plan.farewell_seconds)
        self._end_if_said()

    @property
    def deadline(self) -> float | None:
        """When :meth:`on_tick` is due next (s)."""
        last_words = None if self._last_words is None else self._last_words.deadline
        due = [self._digits.deadline, self._gate.deadline, last_words]
        return min((at for at in due if at is not None), default=None)

    def on_tick(self, now: float) -> list[Output]:
        """A deadline may have come."""
        outputs = self._on_collected(self._digits.expire(now), now)
        if self._gate.deadline is not None and now >= self._gate.deadline:
            outputs.append(self._journal.note(now, "response_unanswered", "warning"))
            outputs += self._send(self._gate.failed(now))
        if self._last_words is not None and now >= self._last_words.deadline:
            self.ended = self._last_words.why
        return outputs

    @property
    def late_audio_ms(self) -> int:
        """Audio that came after its response was cut, ms."""
        return self._ledger.dropped_bytes // 8

    # ---- what follows from it

    def _on_audio(self, event: AudioDelta) -> list[Output]:
        if event.response_id in self._cut:
            self._ledger.dropped_bytes += len(event.audio)
            seen = self._never_played.setdefault(event.response_id, [])
            if event.item_id not in seen and not self._ledger.was_cut(event.item_id):
                seen.append(event.item_id)
            return []
        self._last_spoken = event.response_id
        key = (event.item_id, event.content_index)
        return self._play(self._ledger.receive(event.response_id, key, event.audio), more=True)

    def _play(self, due: bytes, *, more: bool) -> list[Output]:
        if due:
            self._queued = True
        return [Play(due, more)] if due or not more else []

    def _on_response_done(self, event: ResponseDone, now: float) -> list[Output]:
        spoke = self._last_spoken == event.response_id
        outputs: list[Output] = self._play(
            self._ledger.finish_response(event.response_id), more=False
        )
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
        for item_id in self._never_played.pop(event.response_id, []):
            outputs.append(Send(DeleteItem(item_id)))
        following = self._gate.done(event.response_id, now)
        if event.status == "completed" and event.response_id not in self._cut:
            outputs += self._on_tools(event, spoke, now)
        outputs += self._send(following)
        if self._last_words is not None and self._last_words.awaits_response:
            self._last_words.awaits_response = not self._gate.idle
        self._end_if_said()
        return outputs

    def _on_tools(self, event: ResponseDone, spoke: bool, now: float) -> list[Output]:
        outputs: list[Output] = []
        calls = [item for item in event.output if item.get("type") == "function_call"]
        unknown = [call for call in calls if call.get("name") != END_CALL]
        for call in calls:
            outputs.append(self._journal.note(now, "tool", "info", name=str(call.get("name"))))
        for call in unknown:
            outputs += self._answer_tool(call, {"error": "this gateway has no such tool"})
        if len(unknown) < len(calls):
            end_call = next(call for call in calls if call.get("name") == END_CALL)
            return outputs + self._say_goodbye(end_call, spoke, now)
        if unknown:
            outputs += self._create(CreateResponse(), now)
        return outputs

    def _say_goodbye(self, call: Mapping[str, Any], spoke: bool, now: float) -> list[Output]:
        call_id = str(call.get("call_id", ""))
        self._last_words = LastWords(
            Why.FAREWELL, now + self._plan.farewell_seconds, call_id, awaits_response=False
        )
        outputs: list[Output] = [self._journal.note(now, "farewell", "info", spoken=spoke)]
        if spoke or self._queued:
            return outputs
        self._last_words.awaits_response = True
        self._last_words.call_id = ""
        outputs += self._answer_tool(
            call, {"status": "ending", "next": "Say a short goodbye now; then the call ends."}
        )
        return outputs + self._create(CreateResponse({"tools": []}), now)

    def _end_if_said(self) -> None:
        words = self._last_words
        if words is not None and not words.awaits_response and not self._queued:
            self.ended = words.why

    def _interrupt(self, trigger: str, now: float) -> list[Output]:
        if trigger == "speech" and not self._plan.server_interrupts:
            return []
        outputs = self._go_on(now)
        active = self._gate.active
        if active is not None and active not in self._cut:
            self._cut.append(active)
        if self._queued or self._ledger or active is not None:
            self._interrupting = trigger
            outputs.append(Flush())
        return outputs

    def _go_on(self, now: float) -> list[Output]:
        """The caller speaks into the goodbye: the call is not over after all."""
        words = self._last_words
        if words is None or words.why is not Why.FAREWELL:
            return []
        self._last_words = None
        outputs: list[Output] = [self._journal.note(now, "farewell_taken_back", "info")]
        if words.call_id:
            result = {"status": "not ended", "reason": "the caller spoke during the goodbye"}
            outputs += self._answer_tool({"call_id": words.call_id}, result)
        return outputs

    def _settle(self, heard: Heard, trigger: str, now: float) -> list[Output]:
        command = None if heard.complete else self._truncations.command(heard)
        if command is None:
            return []
        action = "delete" if isinstance(command, DeleteItem) else "truncate"
        at_ms = self._journal.ms(now)
        flushed_ms = heard.received_ms - heard.played_ms
        self._record.interruptions.append(
            Interruption(
                at_ms=round(at_ms, 1),
                trigger=trigger,
                item_id=heard.item_id,
                played_ms=heard.played_ms,
                received_ms=heard.received_ms,
                flushed_ms=flushed_ms,
                action=action,
            )
        )
        note = self._journal.note(
            now,
            "interruption",
            "info",
            trigger=trigger,
            item_id=heard.item_id,
            played_ms=heard.played_ms,
            received_ms=heard.received_ms,
            action=action,
        )
        return [Send(command), note]

    def _on_collected(self, collected: Collected | None, now: float) -> list[Output]:
        if collected is None:
            return []
        ended_by = collected.ended_by.value
        self._record.digits.append(
            DigitRun(round(self._journal.ms(now), 1), collected.digits, ended_by)
        )
        item = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": self._plan.digits.text(collected.digits)}],
        }
        note = self._journal.note(now, "digits", "info", digits=collected.digits, ended_by=ended_by)
        return [note, Send(CreateItem(item)), *self._create(CreateResponse(), now)]

    def _answer_tool(self, call: Mapping[str, Any], result: Mapping[str, Any]) -> list[Output]:
        item = {
            "type": "function_call_output",
            "call_id": str(call.get("call_id", "")),
            "output": json.dumps(result),
        }
        return [Send(CreateItem(item))]

    def _create(self, create: CreateResponse, now: float) -> list[Output]:
        return self._send(self._gate.request(create, now))

    @staticmethod
    def _send(command: ClientCommand | None) -> list[Output]:
        return [] if command is None else [Send(command)]

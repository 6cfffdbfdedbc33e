"""Function calls of the model: answered, carried out here, or handed to what runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.call.outputs import Output, RunTool
from gateway.call.talk import OWN_ERRAND, Talk, tool_output
from gateway.realtime.commands import CreateResponse
from gateway.realtime.events import ResponseDone
from gateway.tools.arguments import ToolError
from gateway.tools.definitions import END_CALL

MAX_RUNNING = 8
"""Functions outside that run at a time for one call; a model that asks for more is in a loop."""


class Functions:
    """Knows which function calls are still to be answered. Every method takes the time (s)."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._plan = talk.plan
        self._running: dict[str, float] = {}

    def called(self, event: ResponseDone, now: float) -> list[Output]:
        """Answer what the model called, once its response is whole (ordering D of the protocol)."""
        talk = self._talk
        outputs: list[Output] = []
        calls = [item for item in event.output if item.get("type") == "function_call"]
        for call in calls:
            outputs.append(talk.journal.note(now, "tool", "info", name=str(call.get("name"))))
        if talk.playback.was_cut(event.response_id):
            # The caller was first; what comes of that is asked for elsewhere.
            result = {"status": "not done", "reason": "the caller interrupted"}
            return outputs + [tool_output(_id_of(call), result) for call in calls]
        end_call = next((call for call in calls if call.get("name") == END_CALL), None)
        respond = False
        for call in calls:
            if call.get("name") == END_CALL:
                continue
            if end_call is not None and call.get("name") in talk.errands.names:
                result = {"status": "not done", "reason": "the call is being ended"}
                outputs.append(tool_output(_id_of(call), result))
                continue
            more, wanted = self._take(call, now)
            outputs += more
            respond = respond or wanted
        if end_call is not None:
            spoke = talk.playback.spoke(event.response_id)
            return outputs + self._say_goodbye(end_call, spoke, now)
        return outputs + (talk.ask(CreateResponse(), now) if respond else [])

    def done(self, call_id: str, output: str, now: float) -> list[Output]:
        """A function outside has returned."""
        if self._running.pop(call_id, None) is None:
            return []
        note = self._talk.journal.note(now, "tool_done", call_id=call_id)
        return [note, tool_output(call_id, output), *self._talk.ask(CreateResponse(), now)]

    def errand_done(self, now: float) -> list[Output]:
        """What the gateway was to do in the call may be done: tell the model."""
        result = self._talk.errands.take_result()
        if result is None:
            return []
        outputs: list[Output] = []
        if result.call_id != OWN_ERRAND:
            outputs.append(tool_output(result.call_id, result.output))
        return outputs + (self._talk.ask(CreateResponse(), now) if result.respond else [])

    def tick(self, now: float) -> list[Output]:
        """A deadline may have come."""
        late = [call_id for call_id, at in self._running.items() if now >= at]
        outputs: list[Output] = []
        for call_id in late:
            del self._running[call_id]
            error = f"no result within {self._plan.tool_seconds:g} s"
            outputs.append(self._talk.journal.note(now, "tool_late", "warning", call_id=call_id))
            outputs.append(tool_output(call_id, {"error": error}))
        return outputs + (self._talk.ask(CreateResponse(), now) if late else [])

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s)."""
        return min(self._running.values(), default=None)

    def _take(self, call: Mapping[str, Any], now: float) -> tuple[list[Output], bool]:
        """What to do, and whether the model is to be asked for a response about it."""
        talk = self._talk
        name, call_id = str(call.get("name", "")), _id_of(call)
        arguments = str(call.get("arguments") or "{}")
        try:
            if name in talk.errands.names:
                talk.errands.ask(name, call_id, arguments, now)
                return [], False
            if name in self._plan.tools:
                return [self._run(name, call_id, arguments, now)], False
            raise ToolError("this gateway has no such tool")
        except ToolError as error:
            note = talk.journal.note(now, "tool_refused", "warning", name=name, reason=str(error))
            return [note, tool_output(call_id, {"error": str(error)})], True

    def _run(self, name: str, call_id: str, arguments: str, now: float) -> Output:
        if len(self._running) >= MAX_RUNNING:
            raise ToolError(f"{MAX_RUNNING} functions are running already; wait for their results")
        self._running[call_id] = now + self._plan.tool_seconds
        return RunTool(call_id, name, arguments)

    def _say_goodbye(self, call: Mapping[str, Any], spoke: bool, now: float) -> list[Output]:
        talk = self._talk
        outputs: list[Output] = [talk.journal.note(now, "farewell", "info", spoken=spoke)]
        if spoke or talk.speaking:
            talk.farewell.said(_id_of(call), now)
            return outputs
        talk.farewell.asked_for(now)
        result = {"status": "ending", "next": "Say a short goodbye now; then the call ends."}
        outputs.append(tool_output(_id_of(call), result))
        return outputs + talk.ask(CreateResponse({"tools": []}), now)


def _id_of(call: Mapping[str, Any]) -> str:
    return str(call.get("call_id", ""))

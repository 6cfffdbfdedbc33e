"""Function calls of the model: answered, carried out here, or handed to what runs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gateway.call.errands import Errands
from gateway.call.journal import Journal
from gateway.call.outputs import Output, RunTool, Send
from gateway.call.plan import CallPlan
from gateway.realtime.commands import CreateItem
from gateway.tools.arguments import ToolError

MAX_RUNNING = 8
"""Functions outside that run at a time for one call; a model that asks for more is in a loop."""


def tool_output(call_id: str, result: Mapping[str, Any] | str) -> Output:
    """The item that answers a function call."""
    text = result if isinstance(result, str) else json.dumps(result)
    item = {"type": "function_call_output", "call_id": call_id, "output": text}
    return Send(CreateItem(item))


class ToolWork:
    """Knows which function calls are still to be answered. Methods take the time (s).

    What they return comes with whether the model is to be asked for a response about it.
    """

    def __init__(self, plan: CallPlan, journal: Journal, errands: Errands) -> None:
        self._plan = plan
        self._journal = journal
        self._errands = errands
        self._running: dict[str, float] = {}

    def take(self, call: Mapping[str, Any], now: float) -> tuple[list[Output], bool]:
        """The model calls this function."""
        name, call_id = str(call.get("name", "")), str(call.get("call_id", ""))
        arguments = str(call.get("arguments") or "{}")
        try:
            if name in self._errands.names:
                self._errands.ask(name, call_id, arguments, now)
                return [], False
            if name in self._plan.tools:
                return [self._run(name, call_id, arguments, now)], False
            raise ToolError("this gateway has no such tool")
        except ToolError as error:
            note = self._journal.note(now, "tool_refused", "warning", name=name, reason=str(error))
            return [note, tool_output(call_id, {"error": str(error)})], True

    def done(self, call_id: str, output: str, now: float) -> tuple[list[Output], bool]:
        """A function outside has returned."""
        if self._running.pop(call_id, None) is None:
            return [], False
        note = self._journal.note(now, "tool_done", call_id=call_id)
        return [note, tool_output(call_id, output)], True

    def tick(self, now: float) -> tuple[list[Output], bool]:
        """A deadline may have come."""
        late = [call_id for call_id, at in self._running.items() if now >= at]
        outputs: list[Output] = []
        for call_id in late:
            del self._running[call_id]
            error = f"no result within {self._plan.tool_seconds:g} s"
            outputs.append(self._journal.note(now, "tool_late", "warning", call_id=call_id))
            outputs.append(tool_output(call_id, {"error": error}))
        return outputs, bool(late)

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s)."""
        return min(self._running.values(), default=None)

    def _run(self, name: str, call_id: str, arguments: str, now: float) -> Output:
        if len(self._running) >= MAX_RUNNING:
            raise ToolError(f"{MAX_RUNNING} functions are running already; wait for their results")
        self._running[call_id] = now + self._plan.tool_seconds
        return RunTool(call_id, name, arguments)

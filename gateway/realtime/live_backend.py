# SPDX-License-Identifier: GPL-2.0-or-later
"""The backend of a Live session with ``delegation.type = "responses"``: its calls and results.

Its responses come as ``response.event``, one event of a Responses stream each. What they call is
gathered from ``response.output_item.done``, as ``response.completed`` has no output; all calls of a
response have to be answered before one ``response.create`` goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.realtime.events import BackendEvent, ResponseDone

MAX_STREAMS = 16
"""Responses that run at a time; the oldest is forgotten."""

MAX_ITEMS = 64
"""Items kept of one response."""

MAX_OPEN = 256
"""Calls that wait for their results."""

_ENDS = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
    "error": "failed",
}


@dataclass(slots=True)
class _Stream:
    """One response as far as it has come."""

    id: str = ""
    model: str = ""
    items: list[Mapping[str, Any]] = field(default_factory=list)


class Backend:
    """Gathers the calls of the backend's responses, and knows when it may go on.

    Args:
        model: that the session was started with; a response may name another.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._streams: dict[str, _Stream] = {}
        """By the delegation that they belong to; "" for what we began ourselves."""
        self._open: dict[str, None] = {}
        """Ids of calls that are not answered."""
        self._waits = False
        """``response.create`` waits for results that are missing."""

    def on_event(self, event: BackendEvent) -> ResponseDone | None:
        """Take the next event of a response; return the response when it is over."""
        inner, name = event.event, event.delegation_id
        kind = inner.get("type")
        told = inner.get("response")
        told = told if isinstance(told, Mapping) else {}
        if kind == "response.created" or name not in self._streams:
            self._streams.pop(name, None)
            self._streams[name] = _Stream(model=self._model)
            if len(self._streams) > MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
        stream = self._streams[name]
        stream.id = _text(told.get("id")) or stream.id
        stream.model = _text(told.get("model")) or stream.model
        item = inner.get("item")
        if kind == "response.output_item.done" and isinstance(item, Mapping):
            if len(stream.items) < MAX_ITEMS:
                stream.items.append(item)
            return None
        status = _ENDS.get(kind) if isinstance(kind, str) else None
        if status is None:
            return None
        del self._streams[name]
        return self._over(stream, status, told, inner)

    def _over(
        self,
        stream: _Stream,
        status: str,
        told: Mapping[str, Any],
        inner: Mapping[str, Any],
    ) -> ResponseDone:
        output = told.get("output")
        if not stream.items and isinstance(output, list):
            stream.items = [item for item in output if isinstance(item, Mapping)][:MAX_ITEMS]
        if status == "completed":
            for item in stream.items:
                call_id = item.get("call_id")
                if item.get("type") == "function_call" and isinstance(call_id, str):
                    self._open[call_id] = None
                    if len(self._open) > MAX_OPEN:
                        del self._open[next(iter(self._open))]
        error = told.get("error")
        error = error if isinstance(error, Mapping) else inner
        details = told.get("incomplete_details")
        usage = told.get("usage")
        return ResponseDone(
            stream.id,
            status,
            _text(details.get("reason")) if isinstance(details, Mapping) else None,
            _text(error.get("code")) if status == "failed" else None,
            _text(error.get("message")) if status == "failed" else None,
            tuple(stream.items),
            usage if isinstance(usage, Mapping) else None,
            stream.model or "backend",
        )

    def answer(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the client events that hand over the result of a call.

        Of a call that this session does not know (one before asked for it) it is a message.
        """
        call_id = item.get("call_id")
        if call_id not in self._open:
            text = f"The result of a function that was called before: {item.get('output')}"
            part = {"type": "input_text", "text": text}
            item = {"type": "message", "role": "developer", "content": [part]}
        else:
            del self._open[call_id]
        return [{"type": "response.item.create", "item": dict(item)}, *self._due()]

    def go_on(self) -> list[dict[str, Any]]:
        """Return ``response.create``, once all calls are answered."""
        self._waits = True
        return self._due()

    def _due(self) -> list[dict[str, Any]]:
        if self._open or not self._waits:
            return []
        self._waits = False
        return [{"type": "response.create"}]


def _text(value: object) -> str | None:
    return value[:500] if isinstance(value, str) else None

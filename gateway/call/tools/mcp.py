# SPDX-License-Identifier: GPL-2.0-or-later
"""MCP servers that the realtime server calls itself (``client = "provider"``).

The realtime server lists and calls their tools. A call that needs approval comes as an
``mcp_approval_request`` item and is answered with an ``mcp_approval_response``. Where the server
begins no response after a call, one is requested (it is not documented whether that is needed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gateway.call.conversation.control import ConversationControl
from gateway.call.inputs import Input, ServerEventReceived, SessionClosed
from gateway.call.outputs import Output, Send
from gateway.call.record import ToolUse
from gateway.call.tools.approvals import Approvals
from gateway.realtime.commands import CreateItem, CreateResponse
from gateway.realtime.events import (
    ItemAdded,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    SpeechStarted,
)
from gateway.text import json_of

RESPOND_SECONDS = 1.0
"""How long the server has to say something about a call by itself."""

MAX_REMEMBERED = 256
"""Requests for approval that are not answered twice."""

_CALL_ENDS = ("response.mcp_call.completed", "response.mcp_call.failed")


class McpWatch:
    """Answers approval requests of the server, and asks for responses that it owes."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        SessionClosed,
        ResponseCreated,
        SpeechStarted,
        ResponseDone,
        ItemAdded,
        OtherEvent,
    )

    def __init__(self, talk: ConversationControl, approvals: Approvals) -> None:
        self._talk = talk
        self._approvals = approvals
        self._seen: dict[str, None] = {}
        self._asked_for: set[str] = set()
        """Requests of this session that wait for a decision."""
        self._approved: dict[str, str] = {}
        """Who approved of it, by request; until the call that was asked about is over."""
        self._answered = 0
        self.deadline: float | None = None

    def on(self, input: Input, now: float) -> list[Output]:
        """Take an event of the session, which may be about MCP, or its end."""
        if not isinstance(input, ServerEventReceived):
            self._asked_for.clear()
            self._approved.clear()
            self.deadline = None
            return []
        match input.event:
            case ResponseCreated(response_id) if self._talk.gate.answers_turn(response_id):
                self.deadline = None  # a phrase of ours says nothing about the call
            case SpeechStarted():
                self.deadline = None
            case ResponseDone() as event:
                return self._done(event, now)
            case ItemAdded(item):
                return self._item(item, now)
            case OtherEvent() as event:
                return self._other(event, now)
        return []

    def tick(self, now: float) -> list[Output]:
        """The server has not said anything by itself."""
        if self.deadline is None or now < self.deadline:
            return []
        self.deadline = None
        return [] if self._talk.gate.answering else self._talk.ask(CreateResponse(), now)

    def _done(self, event: ResponseDone, now: float) -> list[Output]:
        outputs = [output for item in event.output for output in self._item(item, now, whole=True)]
        last = event.output[-1].get("type") if event.output else None
        if last == "mcp_call" and event.status == "completed":
            self.deadline = now + RESPOND_SECONDS
        return outputs

    def _other(self, event: OtherEvent, now: float) -> list[Output]:
        if event.type in ("conversation.item.done", "response.output_item.done"):
            item = event.raw.get("item")
            return self._item(item, now, whole=True) if isinstance(item, Mapping) else []
        if event.type == "mcp_list_tools.failed":
            item_id = str(event.raw.get("item_id"))
            return [self._talk.timeline.note(now, "mcp_list_failed", "warning", item_id=item_id)]
        if event.type == "response.mcp_call.in_progress":
            self.deadline = None
        elif event.type in _CALL_ENDS and self._talk.gate.active is None:
            self.deadline = now + RESPOND_SECONDS
        return []

    def _item(self, item: Mapping[str, Any], now: float, *, whole: bool = False) -> list[Output]:
        kind, item_id = item.get("type"), str(item.get("id"))
        note = self._talk.timeline.note
        if kind == "mcp_list_tools" and whole and self._is_new(item_id):
            tools = item.get("tools")
            count = len(tools) if isinstance(tools, list) else 0
            label = str(item.get("server_label"))
            return [note(now, "mcp_listed", "info", server=label, tools=count)]
        if kind == "mcp_call" and whole and self._is_new(item_id):
            name, failed = _name_of(item), item.get("error")
            outcome = "failed" if failed else "done"
            self._used(name, outcome, self._approved.pop(_request_of(item), ""), now)
            why = {"why": failed.get("type")} if isinstance(failed, Mapping) else {}
            return [note(now, "mcp_call", "info", name=name, outcome=outcome, **why)]
        if kind == "mcp_approval_request" and whole and self._is_new(item_id):
            return self._asked(item, item_id, now)
        return []

    def _asked(self, item: Mapping[str, Any], item_id: str, now: float) -> list[Output]:
        name, arguments = _name_of(item), str(item.get("arguments") or "{}")

        self._asked_for.add(item_id)

        def decided(yes: bool, by: str, reason: str, now: float) -> list[Output]:
            if item_id not in self._asked_for:
                return []  # the session that asked is gone
            self._asked_for.discard(item_id)
            self._answered += 1
            answer: dict[str, Any] = {
                "id": f"gw_approval_{self._answered}",
                "type": "mcp_approval_response",
                "approval_request_id": item_id,
                "approve": yes,
            }
            if yes:
                self._approved[item_id] = by
            else:
                answer["reason"] = reason
                self._used(name, "refused", f"refused: {by}", now)
            self.deadline = now + RESPOND_SECONDS
            return [Send(CreateItem(answer))]

        asked = self._approvals.ask(
            item_id, name, arguments, _given(arguments), decided, now, needed=True
        )
        return asked or []

    def _used(self, name: str, outcome: str, approval: str, now: float) -> None:
        at_ms = round(self._talk.timeline.ms(now), 1)
        self._talk.timeline.record.used(ToolUse(at_ms, name, outcome, approval=approval))

    def _is_new(self, item_id: str) -> bool:
        if item_id in self._seen:
            return False
        self._seen[item_id] = None
        if len(self._seen) > MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return True


def _name_of(item: Mapping[str, Any]) -> str:
    """As a tool of a server that the gateway calls would be named."""
    return f"{item.get('server_label')}_{item.get('name')}"


def _request_of(call: Mapping[str, Any]) -> str:
    """The request for approval that this call was made by."""
    return str(call.get("approval_request_id") or "")


def _given(arguments: str) -> Mapping[str, Any]:
    try:
        given = json_of(arguments)
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}

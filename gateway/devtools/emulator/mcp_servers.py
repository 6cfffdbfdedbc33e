# SPDX-License-Identifier: GPL-2.0-or-later
"""The MCP servers of a session: their listings, and the calls that wait for an approval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from gateway.devtools.emulator.conversation import Item
from gateway.devtools.emulator.objects import Json, ProtocolError, Sender, new_id
from gateway.devtools.emulator.script import McpCall, Script
from gateway.devtools.emulator.speech import AudioFormat


def list_item(label: str, names: Sequence[str]) -> Json:
    """An item of type ``mcp_list_tools``; each tool takes any object."""
    return {
        "id": new_id("mcpl"),
        "type": "mcp_list_tools",
        "server_label": label,
        "tools": [
            {
                "name": name,
                "description": None,
                "input_schema": {"type": "object", "additionalProperties": True},
                "annotations": None,
            }
            for name in names
        ],
    }


def request_item(call: McpCall) -> Json:
    """An item of type ``mcp_approval_request``."""
    return {
        "id": new_id("mcpr"),
        "type": "mcp_approval_request",
        "server_label": call.server_label,
        "name": call.name,
        "arguments": call.arguments,
    }


def mcp_call_item(call: McpCall, approval_request_id: str | None) -> Json:
    """An item of type ``mcp_call`` that has not run yet."""
    return {
        "id": new_id("mcp"),
        "type": "mcp_call",
        "server_label": call.server_label,
        "name": call.name,
        "arguments": "",
        "approval_request_id": approval_request_id,
        "output": None,
        "error": None,
    }


def failure(call: McpCall) -> Json:
    """``mcp_call.error`` of a call that the script lets fail."""
    if call.error == "tool_execution_error":
        return {"type": call.error, "message": call.error_message}
    code = 502 if call.error == "http_error" else -32603
    return {"type": call.error, "code": code, "message": call.error_message}


def labels(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The MCP tools among a session's tools, by ``server_label``."""
    return {tool["server_label"]: tool for tool in tools if tool.get("type") == "mcp"}


def allowed(tool: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the tools of a server that ``allowed_tools`` leaves."""
    wanted = tool.get("allowed_tools")
    if isinstance(wanted, Mapping):
        wanted = wanted.get("tool_names")
    return [name for name in names if wanted is None or name in wanted]


def needs_approval(call: McpCall, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a call waits for the client: the script's word, else ``require_approval``.

    Without ``require_approval`` the service asks always; a tool that is in neither of its lists
    is asked for too.
    """
    if call.approval is not None:
        return call.approval
    rule = labels(tools).get(call.server_label, {}).get("require_approval") or "always"
    if isinstance(rule, str):
        return rule == "always"
    return call.name not in ((rule.get("never") or {}).get("tool_names") or [])


class Host(Sender, Protocol):
    """What is needed of the session."""

    script: Script

    def add_item(self, item: Item) -> None:
        """An item at the end of the conversation."""


class McpServers:
    """What the session knows of its MCP servers."""

    def __init__(self, host: Host) -> None:
        self.asked: dict[str, McpCall] = {}
        """Calls that wait for the client, by the id of the ``mcp_approval_request``."""
        self.approved: list[tuple[str, McpCall]] = []
        """Calls that may run, with the request that was said yes to."""
        self._host = host
        self._listed: set[str] = set()

    def configure(self, tools: Sequence[Mapping[str, Any]], audio_format: AudioFormat) -> None:
        """List the tools of servers that the session did not have before."""
        script, servers = self._host.script, labels(tools)
        for label in [label for label in servers if label not in self._listed]:
            self._listed.add(label)
            item = Item(list_item(label, allowed(servers[label], script.mcp_tools)), audio_format)
            self._host.later(0, partial(self._say, "in_progress", item))
            if script.mcp_listing != "never":
                delay_s = 0.001 + script.mcp_listing_ms / 1000
                self._host.later(delay_s, partial(self._over, item))

    def known(self, answer: Json) -> McpCall:
        """Return the call that an ``mcp_approval_response`` is about. Raises
        :class:`ProtocolError`."""
        call = self.asked.get(answer["approval_request_id"])
        if call is None:
            text = f"Approval request with id not found: {answer['approval_request_id']}"
            raise ProtocolError("invalid_value", text, "item.approval_request_id")
        return call

    def decided(self, answer: Json) -> McpCall | None:
        """Take the client's answer; the call if it was refused."""
        call = self.asked.pop(answer["approval_request_id"])
        if not answer["approve"]:
            return call
        self.approved.append((answer["approval_request_id"], call))
        return None

    def _over(self, item: Item) -> None:
        if self._host.script.mcp_listing == "failed":
            self._say("failed", item)
            return
        self._host.add_item(item)
        self._say("completed", item)

    def _say(self, state: str, item: Item) -> None:
        self._host.emit({"type": f"mcp_list_tools.{state}", "item_id": item.id})

"""MCP as the realtime server runs it: listing a server's tools, calls, and their approval.

No MCP server is asked. What a listing or a call gives is in the script: `mcp_tools` and
`answers.mcp`. Order of events: ``mcp_list_tools.in_progress``, the item, then
``mcp_list_tools.completed`` or ``failed``; for a call ``response.output_item.added``,
``response.mcp_call_arguments.delta`` and ``done``, ``response.mcp_call.in_progress``, then
``completed`` or ``failed``, and the item's end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.devtools.emulator.objects import Json, new_id
from gateway.devtools.emulator.script import McpCall


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
    """Those of a server's tools that ``allowed_tools`` leaves."""
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The conversation of a session: its items in order, their audio, truncation and deletion.

A session's MCP servers add items too: the listing of their tools, requests for approval, and calls.
"""

from __future__ import annotations

import base64
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, TypeAdapter

from gateway.devtools.emulator.objects import (
    Json,
    ProtocolError,
    Sender,
    Strict,
    checked,
    new_id,
    validated,
)
from gateway.devtools.emulator.script import McpCall, Script
from gateway.devtools.emulator.session_log import SessionRecord, Truncation
from gateway.devtools.speech import AudioFormat

MAX_ITEMS = 500
"""Older items fall out silently, as under the service's truncation "auto"."""
MAX_AUDIO_BYTES = 16 * 1024 * 1024
"""Audio kept for ``conversation.item.retrieve``; older items lose theirs first."""

_MS_PER_TOKEN_IN = 100
_MS_PER_TOKEN_OUT = 50
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_IMAGE = {"low": 85, "auto": 765, "high": 765}
"""The emulator's own figures: the service counts an image by its size."""


class _ItemFields(Strict):
    id: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class _Text(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str


class _InputAudio(Strict):
    type: Literal["input_audio"]
    audio: str
    transcript: str | None = None


class _Image(Strict):
    type: Literal["input_image"]
    image_url: str = Field(pattern=r"^data:image/(png|jpeg);base64,")
    detail: Literal["auto", "low", "high"] | None = None


_UserPart = Annotated[_Text | _InputAudio | _Image, Field(discriminator="type")]


class _UserMessage(_ItemFields):
    type: Literal["message"]
    role: Literal["user"]
    content: list[_UserPart]


class _TextMessage(_ItemFields):
    type: Literal["message"]
    role: Literal["system", "assistant"]
    content: list[_Text]


class _Call(_ItemFields):
    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: str | None = None


class _CallOutput(_ItemFields):
    type: Literal["function_call_output"]
    call_id: str
    output: str


class _Approval(_ItemFields):
    type: Literal["mcp_approval_response"]
    approval_request_id: str
    approve: bool
    reason: str | None = None


_Message = Annotated[_UserMessage | _TextMessage, Field(discriminator="role")]
_Item: TypeAdapter[Any] = TypeAdapter(
    Annotated[_Message | _Call | _CallOutput | _Approval, Field(discriminator="type")]
)


class _Reference(Strict):
    type: Literal["item_reference"]
    id: str


@dataclass(slots=True)
class Item:
    """An item: ``body`` is its JSON without audio, ``audio`` that of its only audio part.

    ``audio_bytes`` counts what belongs to the item even when the bytes are no longer kept.
    """

    body: Json
    audio_format: AudioFormat
    audio: bytearray = field(default_factory=bytearray)
    audio_bytes: int = 0

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def audio_ms(self) -> int:
        """Whole milliseconds of audio in the item."""
        return self.audio_format.length_ms(self.audio_bytes)

    @property
    def by_agent(self) -> bool:
        return self.body.get("role") == "assistant"

    def add_audio(self, data: bytes) -> None:
        self.audio += data
        self.audio_bytes += len(data)


class Conversation:
    """All items of a session. Methods raise :class:`ProtocolError` where the service refuses."""

    def __init__(self, record: SessionRecord) -> None:
        self.id = new_id("conv")
        self._items: list[Item] = []
        self._record = record
        self._cached = (0, 0, 0)

    def item_of_client(self, data: object, audio_format: AudioFormat, root: str = "item") -> Item:
        """Check the item of a client event, and return it with ids and status, not yet added.

        Args:
            root: path of the item in the event, for errors.
        """
        body: Json = checked(_Item, data, root).model_dump()
        if body["type"] == "message":
            body["content"] = [
                {key: value for key, value in part.items() if value is not None}
                for part in body["content"]
            ]
        body["id"] = body["id"] or new_id("item")
        body["object"] = "realtime.item"
        body["status"] = body["status"] or "completed"
        if body["type"] == "function_call":
            body["call_id"] = body["call_id"] or new_id("call")
        if body["type"] == "mcp_approval_response":
            del body["object"], body["status"]
        if self._find(body["id"]) is not None:
            message = f"Item with item_id already exists: {body['id']}"
            raise ProtocolError("invalid_value", message, f"{root}.id")
        return Item(body, audio_format)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Add ``item`` at the end, after the item ``after``, or first (``"root"``).

        Returns the id of the item before it, None for the first.
        """
        if after == "root":
            position = 0
        elif after is None:
            position = len(self._items)
        else:
            before = self._find(after)
            if before is None:
                message = f"Item with previous_item_id not found: {after}"
                raise ProtocolError("invalid_value", message, "previous_item_id")
            position = self._items.index(before) + 1
        self._items.insert(position, item)
        previous = self._items[position - 1].id if position else None
        self._forget()
        return previous

    def before(self, item: Item) -> str | None:
        """The id of the item before ``item``, None at the front or when it was deleted."""
        ids = [other.id for other in self._items]
        if item.id not in ids or ids[0] == item.id:
            return None
        return ids[ids.index(item.id) - 1]

    def retrieve(self, item_id: str) -> Json:
        item = self._get(item_id, "item_retrieve_invalid_item_id")
        body = copy.deepcopy(item.body)
        for part in body.get("content", []):
            if part["type"] in ("input_audio", "output_audio") and item.audio:
                part["audio"] = base64.b64encode(item.audio).decode("ascii")
        return body

    def delete(self, item_id: str) -> None:
        self._items.remove(self._get(item_id, "item_delete_invalid_item_id"))
        self._record.deletions.append(item_id)

    def truncate(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        """Truncate an assistant's item to ``audio_end_ms``, and erase its transcript."""
        item = self._get(item_id, "item_truncate_invalid_item_id")
        length = item.audio_ms
        refusal: ProtocolError | None = None
        if not item.by_agent or not item.audio_bytes:
            message = "Only model output audio messages can be truncated"
            refusal = ProtocolError("unsupported_content_type", message)
        elif content_index != 0:
            message = f"Content index {content_index} is out of range"
            refusal = ProtocolError("invalid_value", message, "content_index")
        elif audio_end_ms > length:
            message = f"Audio content of {length}ms is already shorter than {audio_end_ms}ms"
            refusal = ProtocolError("invalid_value", message, "audio_end_ms")
        self._record.truncations.append(
            Truncation(
                time.monotonic(), item_id, content_index, audio_end_ms, length, refusal is None
            )
        )
        if refusal is not None:
            raise refusal
        kept = item.audio_format.bytes_for(audio_end_ms)
        del item.audio[kept:]
        item.audio_bytes = kept
        for part in item.body["content"]:
            if "transcript" in part:
                part["transcript"] = ""

    def last_id(self) -> str | None:
        """The id of the newest item, if there is one."""
        return self._items[-1].id if self._items else None

    def context_of_client(self, data: object, audio_format: AudioFormat) -> list[Item]:
        """Return the items of ``response.create.response.input``; references are resolved."""
        context: list[Item] = []
        for index, each in enumerate(data if isinstance(data, list) else []):
            root = f"response.input[{index}]"
            if not isinstance(each, dict) or each.get("type") != "item_reference":
                context.append(self.item_of_client(each, audio_format, root))
                continue
            item = self._find(validated(_Reference, each, root).id)
            if item is None:
                text = f"Item with item_id not found: {each['id']}"
                raise ProtocolError("invalid_value", text, f"{root}.id")
            context.append(item)
        return context

    def input_tokens(
        self, instructions: str, context: Sequence[Item] | None = None
    ) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Return the input tokens of a response, of text, audio and images; and those cached.

        Everything that an earlier response of the session read counts as cached, in steps of 64;
        nothing of a ``context`` of the response's own.
        """
        text = len(instructions) // _CHARACTERS_PER_TOKEN
        audio = image = 0
        for item in self._items if context is None else context:
            per_token = _MS_PER_TOKEN_OUT if item.by_agent else _MS_PER_TOKEN_IN
            audio += item.audio_ms // per_token
            image += _image_tokens(item.body)
            text += _text_length(item.body) // _CHARACTERS_PER_TOKEN + 3
        if context is not None:
            return (text, audio, image), (0, 0, 0)
        cached_text = min(self._cached[0], text) // 64 * 64
        cached_audio = min(self._cached[1], audio) // 64 * 64
        cached_image = min(self._cached[2], image)
        self._cached = (text, audio, image)
        return (text, audio, image), (cached_text, cached_audio, cached_image)

    def _get(self, item_id: str, code: str) -> Item:
        item = self._find(item_id)
        if item is None:
            raise ProtocolError(code, f"Item with item_id not found: {item_id}", "item_id")
        return item

    def _find(self, item_id: str) -> Item | None:
        return next((item for item in reversed(self._items) if item.id == item_id), None)

    def _forget(self) -> None:
        del self._items[: max(0, len(self._items) - MAX_ITEMS)]
        kept = sum(len(item.audio) for item in self._items)
        for item in self._items:
            if kept <= MAX_AUDIO_BYTES:
                return
            kept -= len(item.audio)
            item.audio = bytearray()


def output_tokens(text: str, audio_ms: int) -> tuple[int, int]:
    """Return the output tokens of a response: of its text or transcript, and of its audio."""
    return len(text) // _CHARACTERS_PER_TOKEN, audio_ms // _MS_PER_TOKEN_OUT


def ms_of_output_tokens(tokens: int) -> int:
    """Return the duration of audio of so many output tokens (ms)."""
    return tokens * _MS_PER_TOKEN_OUT


def _text_length(body: Json) -> int:
    parts = body.get("content", [body])
    keys = ("text", "transcript", "arguments", "output")
    return sum(len(part.get(key) or "") for part in parts for key in keys)


def _image_tokens(body: Json) -> int:
    images = [part for part in body.get("content", []) if part["type"] == "input_image"]
    return sum(_TOKENS_PER_IMAGE[part.get("detail") or "auto"] for part in images)


def mcp_listing_item(label: str, names: Sequence[str]) -> Json:
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


def mcp_request_item(call: McpCall) -> Json:
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


def mcp_call_error(call: McpCall) -> Json:
    """``mcp_call.error`` of a call that the script lets fail."""
    if call.error == "tool_execution_error":
        return {"type": call.error, "message": call.error_message}
    code = 502 if call.error == "http_error" else -32603
    return {"type": call.error, "code": code, "message": call.error_message}


def _by_label(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The MCP tools among a session's tools, by ``server_label``."""
    return {tool["server_label"]: tool for tool in tools if tool.get("type") == "mcp"}


def _allowed(tool: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return those of ``names`` that the tool's ``allowed_tools`` permits."""
    wanted = tool.get("allowed_tools")
    if isinstance(wanted, Mapping):
        wanted = wanted.get("tool_names")
    return [name for name in names if wanted is None or name in wanted]


def needs_approval(call: McpCall, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a call waits for the client's approval, by script or ``require_approval``.

    Without ``require_approval`` the service asks always; a tool that is in neither of its lists
    is asked for too.
    """
    if call.approval is not None:
        return call.approval
    rule = _by_label(tools).get(call.server_label, {}).get("require_approval") or "always"
    if isinstance(rule, str):
        return rule == "always"
    return call.name not in ((rule.get("never") or {}).get("tool_names") or [])


class McpHost(Sender, Protocol):
    """The session, as :class:`McpServers` uses it."""

    script: Script

    def add_item(self, item: Item) -> None:
        """Add an item at the end of the conversation."""


class McpServers:
    """The MCP servers of a session: which were listed, and calls that wait for an approval."""

    def __init__(self, host: McpHost) -> None:
        self.asked: dict[str, McpCall] = {}
        """Calls that wait for the client, by the id of the ``mcp_approval_request``."""
        self.approved: list[tuple[str, McpCall]] = []
        """Calls that may run, with the request that was said yes to."""
        self._host = host
        self._listed: set[str] = set()

    def configure(self, tools: Sequence[Mapping[str, Any]], audio_format: AudioFormat) -> None:
        """List the tools of servers that the session did not have before."""
        script = self._host.script
        for label, tool in _by_label(tools).items():
            if label in self._listed:
                continue
            self._listed.add(label)
            names = _allowed(tool, script.mcp_tools)
            item = Item(mcp_listing_item(label, names), audio_format)
            self._host.later(0, partial(self._send_listing, "in_progress", item))
            if script.mcp_listing != "never":
                delay_s = 0.001 + script.mcp_listing_ms / 1000
                self._host.later(delay_s, partial(self._finish_listing, item))

    def call_of(self, answer: Json) -> McpCall:
        """Return the call whose approval an ``mcp_approval_response`` answers.

        Raises :class:`ProtocolError`.
        """
        call = self.asked.get(answer["approval_request_id"])
        if call is None:
            text = f"Approval request with id not found: {answer['approval_request_id']}"
            raise ProtocolError("invalid_value", text, "item.approval_request_id")
        return call

    def decide(self, answer: Json) -> McpCall | None:
        """Take an ``mcp_approval_response``; return the call if the client refused it."""
        call = self.asked.pop(answer["approval_request_id"])
        if not answer["approve"]:
            return call
        self.approved.append((answer["approval_request_id"], call))
        return None

    def _finish_listing(self, item: Item) -> None:
        """Send the end of a listing, completed or failed by the script."""
        if self._host.script.mcp_listing == "failed":
            self._send_listing("failed", item)
            return
        self._host.add_item(item)
        self._send_listing("completed", item)

    def _send_listing(self, state: str, item: Item) -> None:
        self._host.emit({"type": f"mcp_list_tools.{state}", "item_id": item.id})

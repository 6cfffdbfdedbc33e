# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends one response: its events in the documented order, and its end; counts rate limits.

Order: ``response.created``, for each item ``response.output_item.added``,
``conversation.item.added``, its content, ``conversation.item.done``,
``response.output_item.done``; then ``response.done`` and ``rate_limits.updated``.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.devtools.emulator.client_events import ResponseParameters
from gateway.devtools.emulator.conversation import (
    Conversation,
    Item,
    mcp_call_error,
    mcp_call_item,
    mcp_request_item,
    ms_of_output_tokens,
    needs_approval,
    output_tokens,
)
from gateway.devtools.emulator.objects import (
    Json,
    Sender,
    call_item,
    content_part,
    message_item,
    new_id,
    split_at_spaces,
    split_every,
    usage_object,
)
from gateway.devtools.emulator.script import Answer, Limits, McpCall, Script
from gateway.devtools.speech import FORMATS, AudioFormat


class Host(Sender, Protocol):
    """A session, as a response uses it."""

    conversation: Conversation
    script: Script
    limits: RateLimits

    def room(self) -> Awaitable[None]:
        """Wait until the client has taken what was sent."""

    def audio_began(self) -> None:
        """Handle the first audio of a response."""

    def approval_asked(self, request_id: str, call: McpCall) -> None:
        """An ``mcp_approval_request`` was sent."""

    def mcp_answered(self, output: str) -> None:
        """Handle a completed call of an MCP tool."""

    def response_over(self, response: Response) -> None:
        """``response.done`` was sent."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one response: its own, else the session's."""

    instructions: str
    modality: str
    format: Json
    voice: Any
    speed: float
    max_tokens: int | str
    tools: Sequence[Mapping[str, Any]]
    metadata: Mapping[str, str] | None
    in_conversation: bool
    context: Sequence[Item] | None
    """What the response reads in place of the conversation (``response.input``)."""

    @classmethod
    def of(
        cls,
        session: Mapping[str, Any],
        own: ResponseParameters,
        context: Sequence[Item] | None = None,
    ) -> Settings:
        """Merge ``response.create.response`` over the session object."""
        output = session["audio"]["output"]
        own_output = own.audio.output if own.audio else None
        own_format = own_output.format.model_dump() if own_output and own_output.format else None
        own_voice = own_output.voice if own_output else None
        if own_voice is not None and not isinstance(own_voice, str):
            own_voice = own_voice.id
        voice = own_voice or output["voice"]
        tools = own.tools
        return cls(
            instructions=session["instructions"],
            modality=(own.output_modalities or session["output_modalities"])[0],
            format=own_format or output["format"],
            voice=voice["id"] if isinstance(voice, dict) else voice,
            speed=output["speed"],
            max_tokens=own.max_output_tokens or session["max_output_tokens"],
            tools=session["tools"] if tools is None else [tool.model_dump() for tool in tools],
            metadata=own.metadata,
            in_conversation=own.conversation != "none",
            context=context,
        )


@dataclass(frozen=True, slots=True)
class Content:
    """Words, audio and function calls of a response; ``audio`` is in the response's format."""

    text: str = ""
    audio: bytes = b""
    message: bool = True
    calls: tuple[tuple[str, str], ...] = ()


class Response:
    """A response in progress. It ends once: by itself, or by :meth:`cancel`."""

    def __init__(self, host: Host, settings: Settings, answer: Answer) -> None:
        self.id = new_id("resp")
        self.settings = settings
        self.answer = answer
        self.audio_format: AudioFormat = FORMATS[settings.format["type"]]
        self.over = False
        self.approved: Mapping[int, str] = {}
        """By ``id()`` of an MCP call: the approval request that the client said yes to."""
        self.audio_ends_at = 0.0
        """``time.monotonic()`` at which a listener in real time has heard all of it."""
        self._host = host
        self._message: Item | None = None
        """The message that is being sent."""
        self._output: list[Json] = []
        self._said = ""
        self._audio_ms = 0
        self._object: Json = {
            "object": "realtime.response",
            "id": self.id,
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": host.conversation.id if settings.in_conversation else None,
            "output_modalities": [settings.modality],
            "max_output_tokens": settings.max_tokens,
            "audio": {"output": {"format": settings.format, "voice": settings.voice}},
            "usage": None,
            "metadata": dict(settings.metadata) if settings.metadata is not None else None,
        }

    def begin(self) -> None:
        """Send ``response.created``."""
        self._emit("response.created", response=self._snapshot())

    async def run(self, content: Content) -> None:
        """Send ``content`` at the answer's pace, then the end."""
        status, reason = self.answer.outcome, None
        if content.message:
            self._open_message()
            if self.settings.modality == "text":
                await self._stream_text(content.text)
            else:
                cut = await self._stream_audio(content)
                if cut:
                    status, reason = "incomplete", "max_output_tokens"
            self._close_message("completed" if status == "completed" else "incomplete")
        if status == "completed":
            for name, arguments in content.calls:
                await self._host.room()
                self._call(name, arguments)
            for call in self.answer.mcp:
                await self._host.room()
                self._mcp(call, self.approved.get(id(call)))
        if status == "incomplete":
            reason = reason or self.answer.reason
        self._finish(status, reason)

    def fail(self, code: str, message: str, type_: str = "server_error") -> None:
        """End as failed before anything was sent: ``status_details.error`` says why."""
        self._finish("failed", None, {"type": type_, "code": code, "message": message})

    def cancel(self, reason: str) -> None:
        """End as cancelled, for ``reason`` ``turn_detected`` or ``client_cancelled``."""
        if self.over:
            return
        if self._message is not None:
            if self._host.script.cancel_tail == "full":
                self._close_message("incomplete")
            else:
                self._output.append(self._message.body)
                self._write_down("incomplete")
        self._finish("cancelled", reason)

    # Items

    def _open_message(self) -> None:
        item = Item(message_item(new_id("item"), "assistant", [], "in_progress"), self.audio_format)
        self._message = item
        self._added(item)
        kind = "text" if self.settings.modality == "text" else "audio"
        item.body["content"] = [
            {"type": "output_text", "text": ""}
            if kind == "text"
            else {"type": "output_audio", "transcript": ""}
        ]
        self._emit_part("response.content_part.added", part=content_part(kind, ""))

    async def _stream_text(self, text: str) -> None:
        for word in split_at_spaces(text, max(1, len(text.split()) // 2)):
            await self._host.room()
            self._say(word)
            self._emit_part("response.output_text.delta", delta=word)
            await asyncio.sleep(0)

    async def _stream_audio(self, content: Content) -> bool:
        """Send audio and transcript in turn; return whether ``max_output_tokens`` cut it off."""
        script, answer, format_ = self._host.script, self.answer, self.audio_format
        audio, cut = content.audio, False
        if isinstance(self.settings.max_tokens, int):
            limit = format_.bytes_for(ms_of_output_tokens(self.settings.max_tokens))
            audio, cut = audio[:limit], len(audio) > limit
        chunk = format_.bytes_for(script.chunk_ms)
        bytes_per_s = format_.bytes_per_ms * 1000 * (answer.speed or script.speed)
        words = split_at_spaces(content.text, max(1, -(-len(audio) // chunk)))
        stall_at = None if answer.stall_at_ms is None else format_.bytes_for(answer.stall_at_ms)
        start = time.monotonic()
        for index, offset in enumerate(range(0, len(audio), chunk)):
            if stall_at is not None and offset >= stall_at:
                await asyncio.sleep(answer.stall_s)
                start += answer.stall_s
                stall_at = None
            await self._host.room()
            if index < len(words):
                self._say(words[index])
                self._emit_part("response.output_audio_transcript.delta", delta=words[index])
            self._send_audio(audio[offset : offset + chunk])
            if not answer.burst:
                ahead = start + (offset + chunk) / bytes_per_s - time.monotonic()
                await asyncio.sleep(max(0.0, ahead))
        for word in words[-(-len(audio) // chunk) :]:
            self._say(word)
            self._emit_part("response.output_audio_transcript.delta", delta=word)
        return cut

    def _send_audio(self, data: bytes) -> None:
        assert self._message is not None
        if not self._audio_ms:
            self.audio_ends_at = time.monotonic()
        length = self.audio_format.length_ms(len(data))
        first = not self._audio_ms
        self._audio_ms += length
        self.audio_ends_at += length / 1000
        self._message.add_audio(data)
        self._emit_part("response.output_audio.delta", data)
        if first:
            self._host.audio_began()

    def _say(self, words: str) -> None:
        self._said += words

    def _close_message(self, status: str) -> None:
        if self.settings.modality == "text":
            self._emit_part("response.output_text.done", text=self._said)
            self._emit_part("response.content_part.done", part=content_part("text", self._said))
        else:
            self._emit_part("response.output_audio.done")
            self._emit_part("response.output_audio_transcript.done", transcript=self._said)
            self._emit_part("response.content_part.done", part=content_part("audio", self._said))
        self._done(self._write_down(status))

    def _write_down(self, status: str) -> Item:
        """Put words and status into the open message, which ends with that."""
        item, self._message = self._message, None
        assert item is not None
        key = "text" if self.settings.modality == "text" else "transcript"
        item.body["content"][0][key] = self._said
        item.body["status"] = status
        return item

    def _call(self, name: str, arguments: str) -> None:
        body = call_item(new_id("item"), new_id("call"), name, "", "in_progress")
        item = Item(body, self.audio_format)
        where = {
            "response_id": self.id,
            "item_id": item.id,
            "output_index": len(self._output),
            "call_id": body["call_id"],
        }
        self._added(item)
        for piece in split_every(arguments, 24):
            self._emit("response.function_call_arguments.delta", **where, delta=piece)
        self._emit("response.function_call_arguments.done", **where, name=name, arguments=arguments)
        body["arguments"] = arguments
        body["status"] = "completed"
        self._done(item)

    def _mcp(self, call: McpCall, approved_by: str | None) -> None:
        if approved_by is None and needs_approval(call, self.settings.tools):
            body = mcp_request_item(call)
            item = Item(body, self.audio_format)
            self._added(item)
            self._done(item)
            self._host.approval_asked(item.id, call)
            return
        body = mcp_call_item(call, approved_by)
        item = Item(body, self.audio_format)
        at = {"item_id": item.id, "output_index": len(self._output)}
        self._added(item)
        where = {"response_id": self.id, **at}
        for piece in split_every(call.arguments, 24):
            self._emit("response.mcp_call_arguments.delta", **where, delta=piece)
        self._emit("response.mcp_call_arguments.done", **where, arguments=call.arguments)
        body["arguments"] = call.arguments
        self._emit("response.mcp_call.in_progress", **at)
        if call.error is None:
            body["output"] = call.output
            self._emit("response.mcp_call.completed", **at)
        else:
            body["error"] = mcp_call_error(call)
            self._emit("response.mcp_call.failed", **at)
        self._done(item)
        self._host.mcp_answered(call.output if call.error is None else call.error_message)

    def _added(self, item: Item) -> None:
        where = {"response_id": self.id, "output_index": len(self._output)}
        self._emit("response.output_item.added", **where, item=copy.deepcopy(item.body))
        if self.settings.in_conversation:
            previous = self._host.conversation.add(item)
            self._emit(
                "conversation.item.added", previous_item_id=previous, item=copy.deepcopy(item.body)
            )

    def _done(self, item: Item) -> None:
        if self.settings.in_conversation:
            previous = self._host.conversation.before(item)
            self._emit(
                "conversation.item.done", previous_item_id=previous, item=copy.deepcopy(item.body)
            )
        self._emit(
            "response.output_item.done",
            response_id=self.id,
            output_index=len(self._output),
            item=copy.deepcopy(item.body),
        )
        self._output.append(item.body)

    # The end

    def _finish(self, status: str, reason: str | None, error: Json | None = None) -> None:
        self.over = True
        self._object["status"] = status
        if status in ("cancelled", "incomplete"):
            self._object["status_details"] = {"type": status, "reason": reason, "error": None}
        elif status == "failed":
            error = error or {
                "type": "invalid_request_error",
                "code": self.answer.error_code,
                "message": self.answer.error_message,
            }
            self._object["status_details"] = {"type": status, "reason": None, "error": error}
        self._object["usage"] = self._usage()
        self._emit("response.done", response=self._snapshot())
        self._host.limits.spent(self._object["usage"]["total_tokens"])
        self._host.emit(self._host.limits.event())
        self._host.response_over(self)

    def _usage(self) -> Json:
        read = self._host.conversation.input_tokens(
            self.settings.instructions, self.settings.context
        )
        return usage_object(*read, *output_tokens(self._said, self._audio_ms))

    def _snapshot(self) -> Json:
        return copy.deepcopy({**self._object, "output": self._output})

    def _emit_part(self, type_: str, audio: bytes = b"", **fields: Any) -> None:
        assert self._message is not None
        event = {
            "type": type_,
            "response_id": self.id,
            "item_id": self._message.id,
            "output_index": len(self._output),
            "content_index": 0,
            **fields,
        }
        self._host.emit(event, audio)

    def _emit(self, type_: str, **fields: Any) -> None:
        self._host.emit({"type": type_, **fields})


class RateLimits:
    """Requests and tokens that a session has left.

    Without ``limits`` nothing runs out, and ``rate_limits.updated`` tells of tokens only.
    """

    def __init__(self, limits: Limits | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._endless = limits is None
        self._limits = limits or Limits()
        self._left = {
            "requests": float(self._limits.requests),
            "tokens": float(self._limits.tokens),
        }
        self._clock = clock
        self._at = clock()

    def begin(self) -> str | None:
        """Count a response; return the message of ``rate_limit_exceeded`` where one is used up."""
        self._refill()
        if self._endless:
            return None
        for name, left in self._left.items():
            if left < 1:
                limit = self._limit(name)
                again = (1 - left) * self._limits.window_s / limit if limit else 0.0
                return (
                    f"Rate limit reached on {name}: Limit {limit}, Remaining {max(0, int(left))}. "
                    f"Please try again in {again:.3f}s."
                )
        self._left["requests"] -= 1
        return None

    def spent(self, tokens: int) -> None:
        """Subtract the tokens of a response."""
        self._refill()
        self._left["tokens"] -= tokens

    def event(self) -> Json:
        """``rate_limits.updated``, in the form seen after ``response.done``."""
        self._refill()
        names = ["tokens"] if self._endless else ["requests", "tokens"]
        return {"type": "rate_limits.updated", "rate_limits": [self._entry(name) for name in names]}

    def _limit(self, name: str) -> int:
        return self._limits.requests if name == "requests" else self._limits.tokens

    def _entry(self, name: str) -> Json:
        limit, left = self._limit(name), max(0.0, self._left[name])
        missing = (limit - left) / limit if limit else 1.0
        return {
            "name": name,
            "limit": limit,
            "remaining": int(left),
            "reset_seconds": round(missing * self._limits.window_s, 3),
        }

    def _refill(self) -> None:
        """Add what came back since the last call; a sum below zero rises from there."""
        now = self._clock()
        share = (now - self._at) / self._limits.window_s
        self._at = now
        for name, left in self._left.items():
            self._left[name] = min(self._limit(name), left + share * self._limit(name))

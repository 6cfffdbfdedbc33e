# SPDX-License-Identifier: GPL-2.0-or-later
"""A Realtime session (GA protocol): settings, conversation, input audio and responses."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections.abc import Awaitable
from typing import Protocol

import structlog

from gateway.devtools.emulator import client_events
from gateway.devtools.emulator.client_events import (
    ClientEvent,
    ResponseParameters,
    default_session,
    default_transcription,
    updated_session,
)
from gateway.devtools.emulator.conversation import Conversation, Item, McpServers
from gateway.devtools.emulator.dialogue import ContentMaker, Turn
from gateway.devtools.emulator.listening import Listening, Transcribing
from gateway.devtools.emulator.objects import Json, ProtocolError, Sender, message_item
from gateway.devtools.emulator.response import RateLimits, Response, Settings
from gateway.devtools.emulator.script import Answer, McpCall, Script
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import AudioFormat, SpeechError

MAX_PARALLEL_RESPONSES = 8
"""Responses at a time, out-of-band ones included: a client cannot pile up work."""
_TEXTS_REMEMBERED = 20

_log = structlog.get_logger("gateway.devtools.emulator")


class Wire(Sender, Protocol):
    """The connection, as a session uses it."""

    def error(self, error: ProtocolError, client_event_id: str | None) -> None:
        """Send an ``error`` event."""

    def room(self) -> Awaitable[None]:
        """Wait until the client has taken what was sent."""


class Session:
    """State and answers of one session. Client events arrive as calls of its methods.

    Methods that a client event leads to raise :class:`ProtocolError` where the service would
    send an ``error``; nothing has changed then.
    """

    def __init__(
        self, wire: Wire, record: SessionRecord, script: Script, maker: ContentMaker
    ) -> None:
        self.script = script
        self.record = record
        self.conversation = Conversation(record)
        self.limits = RateLimits(script.rate_limits)
        self.expires_at = time.time() + script.expires_s
        self.room = wire.room
        self.emit = wire.emit
        self.later = wire.later
        self._error = wire.error
        self._maker = maker
        self._settings = (
            default_transcription() if record.transcription else default_session(record.model)
        )
        listening = self._listening = Listening(self)
        self.append, self.commit, self.clear = listening.append, listening.commit, listening.clear
        self.pretend_speech, self.end_speech = listening.pretend_speech, listening.end_speech
        self._listening.configure(self._settings["audio"]["input"])
        self._turn = Turn(first=True)
        self._transcribing = Transcribing(self)
        self._caller_audio: tuple[bytes, AudioFormat] | None = None
        self._active: Response | None = None
        self._running: dict[Response, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._voice_locked = False
        self._mcp = McpServers(self)

    def announce(self) -> None:
        """Send ``session.created``."""
        self.emit({"type": "session.created", "session": self._session_object()})

    async def stop(self) -> None:
        """Cancel all tasks, as the connection has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What client events do

    def handle(self, event: ClientEvent) -> None:
        """Do what a client event asks for. Raises :class:`ProtocolError`."""
        match event:
            case client_events.Update():
                self.update(event.session)
            case client_events.Commit():
                self.commit()
            case client_events.Clear():
                self.clear()
            case client_events.CreateItem():
                self.create_item(event.item, event.previous_item_id)
            case client_events.RetrieveItem():
                item = self.conversation.retrieve(event.item_id)
                self.emit({"type": "conversation.item.retrieved", "item": item})
            case client_events.TruncateItem():
                self.truncate_item(event.item_id, event.content_index, event.audio_end_ms)
            case client_events.DeleteItem():
                self.conversation.delete(event.item_id)
                self.emit({"type": "conversation.item.deleted", "item_id": event.item_id})
            case client_events.CreateResponse():
                self.create_response(event.response)
            case client_events.CancelResponse():
                self.cancel_response(event.response_id)

    def update(self, session: object) -> None:
        """Apply ``session.update``, and answer ``session.updated``."""
        script = self.script
        self._settings = updated_session(self._settings, session, voice_locked=self._voice_locked)
        self._listening.configure(self._settings["audio"]["input"])
        if self.record.log is not None:
            self.record.log.caller_format(self._listening.format)
        if not self.record.transcription:
            self._mcp.configure(self._settings["tools"], self._listening.format)
        if script.updated == "never":
            return
        event = {"type": "session.updated", "session": self._session_object()}
        if script.updated_delay_ms:
            self.later(script.updated_delay_ms / 1000, lambda: self.emit(event))
        else:
            self.emit(event)

    def create_item(self, data: object, after: str | None) -> None:
        """``conversation.item.create``."""
        item = self.conversation.item_of_client(data, self._listening.format)
        body = item.body
        if body["type"] == "mcp_approval_response":
            self._mcp.call_of(body)
        self.add_item(item, after)
        if body["type"] == "function_call_output":
            self._turn.outputs.append(body["output"])
        elif body["type"] == "mcp_approval_response":
            refused = self._mcp.decide(body)
            if refused is not None:
                self._turn.outputs.append(f"{refused.name} was not approved.")
            self._run_approved()
        elif body["type"] == "message" and body["role"] == "user":
            parts = body["content"]
            self._turn.texts += [part["text"] for part in parts if part["type"] == "input_text"]
            if any(part["type"] == "input_audio" for part in parts):
                self._heard(item, item.audio_ms)
        del self._turn.texts[:-_TEXTS_REMEMBERED], self._turn.outputs[:-_TEXTS_REMEMBERED]

    def truncate_item(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        """``conversation.item.truncate``."""
        self.conversation.truncate(item_id, content_index, audio_end_ms)
        self.emit(
            {
                "type": "conversation.item.truncated",
                "item_id": item_id,
                "content_index": content_index,
                "audio_end_ms": audio_end_ms,
            }
        )

    def create_response(self, parameters: ResponseParameters) -> None:
        """``response.create``."""
        turn, context = self._turn, None
        if parameters.conversation == "none" or parameters.input is not None:
            given = self.conversation.context_of_client(parameters.input, self._listening.format)
            turn = _turn_of_input([item.body for item in given])
            context = None if parameters.input is None else given
        turn.instructions = parameters.instructions
        self._respond(turn, parameters, context=context)

    def cancel_response(self, response_id: str | None) -> None:
        """``response.cancel``."""
        wanted = [
            response
            for response in self._running
            if response.id == response_id or (response_id is None and response is self._active)
        ]
        if not wanted:
            text = "Cancellation failed: no active response found"
            raise ProtocolError("response_cancel_not_active", text)
        self._cancel(wanted[0], "client_cancelled")

    # What the listening side reports

    def speech_began(self) -> None:
        """Cancel the active response, where ``interrupt_response`` is set."""
        if self._active is not None and self._turn_detection("interrupt_response"):
            self._cancel(self._active, "turn_detected")

    def caller_item(
        self, item_id: str, audio: bytes, audio_format: AudioFormat, spoken_ms: int
    ) -> None:
        """Add committed audio as an item of the caller, and transcribe it where that is set."""
        part = {"type": "input_audio", "transcript": None}
        item = Item(message_item(item_id, "user", [part], "completed"), audio_format)
        item.add_audio(audio)
        self.emit(
            {
                "type": "input_audio_buffer.committed",
                "item_id": item_id,
                "previous_item_id": self.conversation.last_id(),
            }
        )
        self.add_item(item)
        self._heard(item, spoken_ms)
        transcription = self._settings["audio"]["input"]["transcription"]
        if transcription is not None:
            self._transcribing.turn(item, spoken_ms, transcription["model"] or "")

    def turn_over(self, *, idle: bool) -> None:
        """Answer a turn that the server found the end of, where ``create_response`` is set."""
        if self.record.transcription or not self._turn_detection("create_response"):
            return
        try:
            self._respond(Turn(idle=True) if idle else self._turn, ResponseParameters())
        except ProtocolError as error:
            self._error(error, None)

    def _turn_detection(self, flag: str) -> bool:
        detection = self._settings["audio"]["input"]["turn_detection"] or {}
        return bool(detection.get(flag, True))

    def _heard(self, item: Item, spoken_ms: int) -> None:
        self._turn.spoken_ms += spoken_ms
        self._turn.caller_spoke = True
        self._caller_audio = (bytes(item.audio), item.audio_format)

    def approval_asked(self, request_id: str, call: McpCall) -> None:
        """Remember a call whose approval was requested from the client."""
        self._mcp.asked[request_id] = call

    def mcp_answered(self, output: str) -> None:
        """Keep the output of an MCP tool for the next answer."""
        self._turn.outputs.append(output)

    def _run_approved(self) -> None:
        wanted = self._mcp.approved and self.script.after_approval == "response"
        if wanted and self._active is None:
            self._respond(Turn(), ResponseParameters(), Answer(kind="nothing"))

    def add_item(self, item: Item, after: str | None = None) -> None:
        """Add an item at the end of the conversation, or after the one with the id ``after``."""
        previous = self.conversation.add(item, after)
        for type_ in ("conversation.item.added", "conversation.item.done"):
            body = copy.deepcopy(item.body)
            self.emit({"type": type_, "previous_item_id": previous, "item": body})

    # Responses

    def _respond(
        self,
        turn: Turn,
        parameters: ResponseParameters,
        answer: Answer | None = None,
        context: list[Item] | None = None,
    ) -> None:
        settings = Settings.of(self._settings, parameters, context)
        if settings.in_conversation and self._active is not None:
            raise ProtocolError(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._active.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        if len(self._running) >= MAX_PARALLEL_RESPONSES:
            raise ProtocolError("rate_limit_exceeded", "Too many responses at a time.")
        approved, given = self._mcp.approved, answer
        answer = given or self.script.out_of_band
        if settings.in_conversation:
            self._listening.stop_idle()
            self._turn = Turn()
            self._mcp.approved = []
            answer = given or self.script.answer(next(self._numbers))
            if approved:
                calls = [call for _, call in approved]
                answer = answer.model_copy(update={"mcp": [*calls, *answer.mcp]})
        if answer.kind == "silent":
            return
        response = Response(self, settings, answer)
        response.approved = {id(call): request_id for request_id, call in approved}
        if settings.in_conversation:
            self._active = response
        response.begin()
        if (used_up := self.limits.begin()) is not None:
            response.fail("rate_limit_exceeded", used_up, "invalid_request_error")
            return
        task = asyncio.create_task(
            self._produce(response, turn, self._caller_audio), name=f"response {response.id}"
        )
        self._running[response] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _produce(
        self, response: Response, turn: Turn, caller: tuple[bytes, AudioFormat] | None
    ) -> None:
        answer = response.answer
        await asyncio.sleep(answer.first_delay_ms / 1000)
        if answer.kind == "hang":
            return
        try:
            content = await self._maker.make(
                answer, response.settings, response.audio_format, turn, caller
            )
        except SpeechError as error:
            _log.error("no speech for a response", session=self.record.id, error=str(error))
            response.fail("server_error", str(error))
            return
        await response.run(content)

    def _cancel(self, response: Response, reason: str) -> None:
        task = self._running[response]
        response.cancel(reason)
        task.cancel()

    def audio_began(self) -> None:
        """Fix the voice, since the first audio of a response went out."""
        self._voice_locked = True
        self._listening.agent_audio_began()

    def response_over(self, response: Response) -> None:
        """Handle the end of a response, whatever its status."""
        self._running.pop(response, None)
        if response is self._active:
            self._active = None
            self._listening.start_idle(max(0.0, response.audio_ends_at - time.monotonic()))
            self._run_approved()

    def _session_object(self) -> Json:
        return {
            **copy.deepcopy(self._settings),
            "id": self.record.id,
            "object": f"realtime.{'transcription_' * self.record.transcription}session",
            "expires_at": int(self.expires_at),
        }


def _turn_of_input(items: list[Json]) -> Turn:
    """Return the words and function results of ``response.create.response.input``."""
    contents = [item["content"] for item in items if item["type"] == "message"]
    texts = [
        part.get("text") or part.get("transcript") or "" for content in contents for part in content
    ]
    outputs = [item["output"] for item in items if item["type"] == "function_call_output"]
    return Turn(
        texts=[text for text in texts if text][-_TEXTS_REMEMBERED:],
        outputs=outputs[-_TEXTS_REMEMBERED:],
    )

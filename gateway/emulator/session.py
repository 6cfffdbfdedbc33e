"""One realtime session: client events in, state, server events out (GA protocol)."""

from __future__ import annotations

import asyncio
import binascii
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from gateway.emulator.audio import AudioFormat
from gateway.emulator.client_events import CLIENT_EVENTS, ClientEvent
from gateway.emulator.content import ContentMaker
from gateway.emulator.conversation import Conversation, Item
from gateway.emulator.dialogue import Turn
from gateway.emulator.errors import ProtocolError, validated
from gateway.emulator.listening import Listening
from gateway.emulator.objects import Json, error_event, message_item, new_id
from gateway.emulator.outbox import Outbox
from gateway.emulator.record import SessionRecord
from gateway.emulator.response import Response, Settings
from gateway.emulator.script import Answer, Script
from gateway.emulator.settings import ResponseParameters, default_session, updated_session

MAX_APPEND_CHARACTERS = 15 * 1024 * 1024
MAX_PARALLEL_RESPONSES = 8
"""Out-of-band responses at a time, so that a client cannot pile up work."""

_log = structlog.get_logger("gateway.emulator")


class Session:
    """Serves one connection from ``session.created`` to its close."""

    def __init__(
        self, socket: ServerConnection, record: SessionRecord, script: Script, maker: ContentMaker
    ) -> None:
        self.script = script
        self.record = record
        self.conversation = Conversation(record)
        self.tokens_left = 1_000_000
        self._socket = socket
        self._maker = maker
        self._outbox = Outbox(socket, record)
        self._settings = default_session(record.model)
        self._listening = Listening(self)
        self._turn = Turn(first=True)
        self._last_caller_audio: tuple[bytes, AudioFormat] | None = None
        self._active: Response | None = None
        self._runs: dict[Response, asyncio.Task[None]] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._answered = 0
        self._voice_locked = False
        self._refused = 0
        self._end_seen = 0
        self._expires_at = time.time() + script.expires_s
        self._listening.configure(self._settings["audio"]["input"])

    # The connection

    async def serve(self) -> None:
        """Read until the connection is over; nothing of the session is left then."""
        writer = asyncio.create_task(self._outbox.run(), name=f"{self.record.id} writer")
        try:
            self._begin()
            async for message in self._socket:
                await self._outbox.room()
                self._receive(message)
        except ConnectionClosed:
            pass
        finally:
            for timer in self._timers:
                timer.cancel()
            tasks = [writer, *self._runs.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def emit(self, event: Json, audio: bytes = b"") -> None:
        """Put a server event in the way, with its ``event_id`` and the script's oddities."""
        event["event_id"] = new_id("event")
        type_ = event["type"]
        if self.script.obfuscation and type_.endswith(".delta"):
            event["obfuscation"] = "emulated"
        self._outbox.put(event, audio)
        end = self.script.end
        if end is not None and end.at == type_:
            self._at_end_event()

    async def room(self) -> None:
        """Wait until the client has taken what was sent."""
        await self._outbox.room()

    def later(self, delay_s: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        """Call ``action`` after a delay, unless the session ends before."""

        def fire() -> None:
            self._timers.discard(handle)
            action()

        handle = asyncio.get_running_loop().call_later(delay_s, fire)
        self._timers = {timer for timer in self._timers if not timer.cancelled()}
        self._timers.add(handle)
        return handle

    def close(self, code: int, reason: str = "", *, drop: bool = False) -> None:
        """End the session after what was sent so far; ``drop`` cuts the TCP connection."""
        self._outbox.end(code, reason, drop=drop)

    def _begin(self) -> None:
        script = self.script
        refusal = script.refuse
        if refusal is not None and refusal.step == "connect":
            self._refuse(None)
            return
        if script.created == "normal":
            self.later(script.created_delay_ms / 1000, self._created)
        self.later(script.expires_s, self._expire)
        if script.end is not None and script.end.after_s is not None:
            self.later(script.end.after_s, self._end)

    def _created(self) -> None:
        self.emit({"type": "session.created", "session": self._session_object()})
        self._unknown_event()

    def _expire(self) -> None:
        text = "Your session hit the maximum duration of 60 minutes."
        self._error(ProtocolError("session_expired", text), None)
        self.close(1001, text)

    def _at_end_event(self) -> bool:
        """Count an event that the script ends at; whether this was the one."""
        end = self.script.end
        assert end is not None
        self._end_seen += 1
        if self._end_seen == end.nth:
            self._end()
        return self._end_seen >= end.nth

    def _end(self) -> None:
        end = self.script.end
        assert end is not None
        self.close(end.code, end.reason, drop=end.drop)

    # Client events

    def _receive(self, message: str | bytes) -> None:
        event_id: str | None = None
        try:
            if isinstance(message, bytes):
                raise ProtocolError("invalid_event", "Binary messages are not supported.")
            event = _parsed(message)
            given = event.get("event_id")
            event_id = given if isinstance(given, str) else None
            if event.get("type") == "input_audio_buffer.append":
                self._append(event)
                return
            self.record.note_client(event)
            end = self.script.end
            if end is not None and end.at == event.get("type") and self._at_end_event():
                return
            self._handle(event, event_id)
        except ProtocolError as error:
            self._error(error, event_id)

    def _append(self, event: Mapping[str, Any]) -> None:
        audio = event.get("audio")
        if not isinstance(audio, str):
            raise ProtocolError(
                "missing_required_parameter", "Missing required parameter: 'audio'.", "audio"
            )
        if len(audio) > MAX_APPEND_CHARACTERS:
            raise ProtocolError("invalid_value", "Audio is limited to 15 MiB per event.", "audio")
        try:
            data = binascii.a2b_base64(audio, strict_mode=True)
        except (binascii.Error, ValueError):
            raise ProtocolError(
                "invalid_value",
                "Invalid 'audio'. Expected base64-encoded audio bytes but got an invalid value.",
                "audio",
            ) from None
        self.record.note_append(data)
        self._listening.append(data)

    def _handle(self, data: Json, event_id: str | None) -> None:
        model = CLIENT_EVENTS.get(str(data.get("type")))
        if model is None:
            supported = ", ".join(f"'{name}'" for name in CLIENT_EVENTS)
            raise ProtocolError(
                "invalid_value",
                f"Invalid value: '{data.get('type')}'. Supported values are: {supported}.",
                "type",
            )
        refusal = self.script.refuse
        refused = refusal is not None and refusal.step == data["type"]
        if refusal is not None and refused and self._refused < refusal.times:
            self._refused += 1
            self._refuse(event_id)
            return
        event: ClientEvent = validated(model, data, "")
        event.apply(self)

    def _refuse(self, event_id: str | None) -> None:
        refusal = self.script.refuse
        assert refusal is not None
        error = ProtocolError(refusal.code, refusal.message, refusal.param, refusal.type)
        self._error(error, event_id)
        if refusal.close_code is not None:
            self.close(refusal.close_code, f"{refusal.type}.{refusal.code}")

    def _error(self, error: ProtocolError, event_id: str | None) -> None:
        _log.debug("refused", session=self.record.id, code=error.code, message=error.message)
        self.emit(error_event(error, event_id))

    # What client events do (called by their models)

    def update(self, session: object) -> None:
        """``session.update``."""
        self._settings = updated_session(self._settings, session, voice_locked=self._voice_locked)
        self._listening.configure(self._settings["audio"]["input"])
        if self.record.log is not None:
            self.record.log.caller_format(self._listening.format)
        if self.script.updated == "normal":
            event = {"type": "session.updated", "session": self._session_object()}
            if self.script.updated_delay_ms:
                self.later(self.script.updated_delay_ms / 1000, lambda: self.emit(event))
            else:
                self.emit(event)

    def commit(self) -> None:
        """``input_audio_buffer.commit``."""
        self._listening.commit()

    def clear(self) -> None:
        """``input_audio_buffer.clear``."""
        self._listening.clear()

    def create_item(self, data: object, after: str | None) -> None:
        """``conversation.item.create``."""
        item = self.conversation.item_of_client(data, self._listening.format)
        self._add_item(item, after)
        body = item.body
        if body["type"] == "function_call_output":
            self._turn.outputs.append(body["output"])
        elif body["type"] == "message" and body["role"] == "user":
            parts = body["content"]
            self._turn.texts += [part["text"] for part in parts if part["type"] == "input_text"]
            del self._turn.texts[:-20]

    def retrieve_item(self, item_id: str) -> None:
        """``conversation.item.retrieve``."""
        item = self.conversation.retrieve(item_id)
        self.emit({"type": "conversation.item.retrieved", "item": item})

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

    def delete_item(self, item_id: str) -> None:
        """``conversation.item.delete``."""
        self.conversation.delete(item_id)
        self.emit({"type": "conversation.item.deleted", "item_id": item_id})

    def cancel_response(self, response_id: str | None) -> None:
        """``response.cancel``."""
        running = [run for run in self._runs if response_id in (None, run.id) and not run.over]
        if response_id is None:
            running = [run for run in running if run is self._active]
        if not running:
            raise ProtocolError(
                "response_cancel_not_active", "Cancellation failed: no active response found"
            )
        self._stop_response(running[0], "client_cancelled")

    def create_response(self, parameters: ResponseParameters) -> None:
        """``response.create``."""
        turn = self._turn
        if parameters.conversation == "none" or parameters.input is not None:
            turn = _turn_of_input(parameters.input or [])
        turn.instructions = parameters.instructions
        if parameters.conversation == "none" and len(self._runs) >= MAX_PARALLEL_RESPONSES:
            raise ProtocolError("rate_limit_exceeded", "Too many responses at a time.")
        self._respond(turn, parameters)

    # What the listening side reports

    def speech_began(self) -> None:
        """The caller speaks: the active response is cancelled where the settings say so."""
        detection = self._settings["audio"]["input"]["turn_detection"] or {}
        if self._active is not None and detection.get("interrupt_response", True):
            self._stop_response(self._active, "turn_detected")

    def caller_item(
        self, item_id: str, audio: bytes, audio_format: AudioFormat, spoken_ms: int
    ) -> None:
        """Committed audio becomes an item of the caller."""
        part = {"type": "input_audio", "transcript": None}
        item = Item(message_item(item_id, "user", [part], "completed"), audio_format)
        item.add_audio(audio)
        previous = self.conversation.last_id()
        self.emit(
            {
                "type": "input_audio_buffer.committed",
                "item_id": item_id,
                "previous_item_id": previous,
            }
        )
        self._add_item(item, None)
        self._turn.spoken_ms += spoken_ms
        self._turn.caller_audio = audio
        self._last_caller_audio = (audio, audio_format)
        if self._settings["audio"]["input"]["transcription"] is not None:
            self._transcribe(item, spoken_ms)

    def turn_over(self, *, idle: bool) -> None:
        """The server found the end of a turn: answer where ``create_response`` is set."""
        detection = self._settings["audio"]["input"]["turn_detection"] or {}
        if not detection.get("create_response", True):
            return
        if idle:
            self._turn = Turn(idle=True)
        try:
            self._respond(self._turn, ResponseParameters())
        except ProtocolError as error:
            self._error(error, None)

    def _add_item(self, item: Item, after: str | None) -> None:
        previous = self.conversation.add(item, after)
        for type_ in ("conversation.item.added", "conversation.item.done"):
            self.emit({"type": type_, "previous_item_id": previous, "item": dict(item.body)})

    def _transcribe(self, item: Item, spoken_ms: int) -> None:
        seconds = spoken_ms / 1000
        words = self.script.transcript or f"({seconds:.1f} seconds of speech, not transcribed)"
        where = {"item_id": item.id, "content_index": 0}
        type_ = "conversation.item.input_audio_transcription"
        self.emit({"type": f"{type_}.delta", **where, "delta": words, "logprobs": None})
        self.emit(
            {
                "type": f"{type_}.completed",
                **where,
                "transcript": words,
                "logprobs": None,
                "usage": {"type": "duration", "seconds": item.audio_ms / 1000},
            }
        )
        item.body["content"][0]["transcript"] = words

    # Responses

    def _respond(self, turn: Turn, parameters: ResponseParameters) -> None:
        settings = Settings.of(self._settings, parameters)
        if settings.in_conversation:
            if self._active is not None:
                raise ProtocolError(
                    "conversation_already_has_active_response",
                    "Conversation already has an active response in progress: "
                    f"{self._active.id}. Wait until the response is finished before creating a "
                    "new one.",
                )
            self._listening.stop_idle()
            self._turn = Turn()
        answer = self._next_answer() if settings.in_conversation else Answer()
        if answer.kind == "silent":
            return
        response = Response(self, settings, answer)
        if settings.in_conversation:
            self._active = response
        response.begin()
        self._unknown_event()
        work = self._run(response, turn)
        self._runs[response] = asyncio.create_task(work, name=f"{self.record.id} {response.id}")

    def _run(self, response: Response, turn: Turn) -> Coroutine[Any, Any, None]:
        caller = self._last_caller_audio

        async def run() -> None:
            answer = response.answer
            if answer.first_delay_ms:
                await asyncio.sleep(answer.first_delay_ms / 1000)
            if answer.kind == "hang":
                return
            content = await self._maker.make(
                answer, response.settings, response.audio_format, turn, caller
            )
            await response.run(content)

        return run()

    def _next_answer(self) -> Answer:
        answers = self.script.answers
        self._answered += 1
        return answers[min(self._answered, len(answers)) - 1] if answers else Answer()

    def _stop_response(self, response: Response, reason: str) -> None:
        task = self._runs.get(response)
        response.cancel(reason)
        if task is not None:
            task.cancel()

    def audio_began(self) -> None:
        """The first audio of a response went out: the voice is fixed from here."""
        self._voice_locked = True
        self._listening.agent_audio_began()

    def response_over(self, response: Response) -> None:
        """A response is done, whatever its fate."""
        self._runs.pop(response, None)
        if response is self._active:
            self._active = None
            self._listening.start_idle(max(0.0, response.audio_ends_at - time.monotonic()))

    # Little things

    def _unknown_event(self) -> None:
        if self.script.unknown_events:
            self.emit({"type": "emulator.unknown_event", "nobody": {"knows": ["this"]}})

    def _session_object(self) -> Json:
        return {
            **json.loads(json.dumps(self._settings)),
            "id": self.record.id,
            "object": "realtime.session",
            "expires_at": int(self._expires_at),
        }


def _parsed(message: str) -> Json:
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        raise ProtocolError("invalid_json", "The message is not valid JSON.") from None
    if not isinstance(event, dict):
        raise ProtocolError("invalid_event", "The message is not a JSON object.")
    if not isinstance(event.get("type"), str):
        raise ProtocolError(
            "missing_required_parameter", "Missing required parameter: 'type'.", "type"
        )
    return event


def _turn_of_input(items: list[Json]) -> Turn:
    turn = Turn()
    for item in items[-20:]:
        content = item.get("content")
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                turn.texts.append(part["text"])
    return turn

# SPDX-License-Identifier: GPL-2.0-or-later
"""A WebSocket connection to the emulator: events in and out, timers, faults of the script.

What the events mean is :class:`gateway.devtools.emulator.session.Session`'s business.
Events leave in the order in which they were put; the writer task alone waits for the network.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from gateway.devtools.emulator.beta import BetaWire
from gateway.devtools.emulator.client_events import CLIENT_EVENTS, TRANSCRIPTION_EVENTS, ClientEvent
from gateway.devtools.emulator.dialogue import ContentMaker
from gateway.devtools.emulator.live_events import LIVE_EVENTS
from gateway.devtools.emulator.live_session import APPEND_TYPE, LiveSession
from gateway.devtools.emulator.objects import Json, ProtocolError, error_event, new_id, validated
from gateway.devtools.emulator.script import Script
from gateway.devtools.emulator.session import Session
from gateway.devtools.emulator.session_log import SessionRecord

_ROOM = 64  # events; a response waits beyond it, so a slow client bounds what is kept for it

NO_CODE = 1005
"""Stands for a close frame without a code (RFC 6455 section 7.1.5)."""


@dataclass(frozen=True, slots=True)
class _End:
    code: int
    reason: str
    drop: bool


class Outbox:
    """Events on their way to one client.

    ``translate`` makes of an event what the client gets, and a type of ``spaced_types`` gets a
    space before it; the record has it as it was put.
    """

    def __init__(
        self,
        socket: ServerConnection,
        record: SessionRecord,
        translate: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
        spaced_types: Collection[str] = (),
    ) -> None:
        self._socket = socket
        self._translate = translate
        self._spaced_types = frozenset(spaced_types)
        self._record = record
        self._queue: deque[tuple[dict[str, Any], bytes] | _End] = deque()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._over = False

    def put(self, event: dict[str, Any], audio: bytes = b"") -> None:
        """Send ``event``; ``audio``, if any, becomes its ``delta``. Nothing after an end."""
        if not self._over:
            self._queue.append((event, audio))
            self._filled.set()

    def end(self, code: int, reason: str = "", *, drop: bool = False) -> None:
        """Close after what was put before; ``drop`` cuts the TCP connection instead."""
        if not self._over:
            self._over = True
            self._queue.append(_End(code, reason, drop))
            self._filled.set()

    async def room(self) -> None:
        """Wait until fewer than 64 events wait for the client.

        Ends with the connection: the keepalive of the server bounds the wait.
        """
        while len(self._queue) >= _ROOM and not self._over:
            self._drained.clear()
            await self._drained.wait()

    async def run(self) -> None:
        """Write until the connection is over."""
        try:
            while True:
                while self._queue:
                    entry = self._queue.popleft()
                    if isinstance(entry, _End):
                        await self._finish(entry)
                        return
                    event, audio = entry
                    if audio:
                        event["delta"] = base64.b64encode(audio).decode("ascii")
                    self._record.note_server(event, audio)
                    told = [event] if self._translate is None else self._translate(event)
                    for each in told:
                        if each["type"] in self._spaced_types:
                            each = {**each, "type": f" {each['type']}"}
                        await self._socket.send(json.dumps(each))
                    if len(self._queue) < _ROOM:
                        self._drained.set()
                self._filled.clear()
                await self._filled.wait()
        except ConnectionClosed:
            return
        finally:
            self._over = True
            self._queue.clear()
            self._drained.set()

    async def _finish(self, end: _End) -> None:
        if end.drop:
            self._socket.transport.abort()
        elif end.code == NO_CODE:
            async with self._socket.send_context():
                self._socket.protocol.send_close()
        else:
            await self._socket.close(end.code, end.reason)


_NEWS = ("session.created", "session.started", "response.created")
MAX_APPEND_CHARACTERS = 15 * 1024 * 1024

_log = structlog.get_logger("gateway.devtools.emulator")


class Connection:
    """Serves one client from ``session.created`` to the close of the WebSocket.

    ``beta``: in the Beta dialect.
    """

    append_type = "input_audio_buffer.append"
    client_events: Mapping[str, type[ClientEvent]] = CLIENT_EVENTS
    without_id: frozenset[str] = frozenset()
    """Types of server events that have no ``event_id``."""

    def __init__(
        self,
        socket: ServerConnection,
        record: SessionRecord,
        script: Script,
        maker: ContentMaker,
        *,
        beta: bool = False,
    ) -> None:
        self.script = script
        self.record = record
        if record.transcription:
            self.client_events = TRANSCRIPTION_EVENTS
        self.session: Any = self._new_session(maker)
        self._socket = socket
        self.request = socket.request
        """The upgrade, as it came."""
        self._beta = BetaWire(self.session.conversation.id) if beta else None
        translate = None if self._beta is None else self._beta.sent
        self._outbox = Outbox(socket, record, translate, script.spaced_types)
        self._timers: set[asyncio.TimerHandle] = set()
        self._refused = 0
        self._end_seen = 0

    def _new_session(self, maker: ContentMaker) -> Any:
        return Session(self, self.record, self.script, maker)

    async def serve(self) -> None:
        """Read until the connection is over; no task or timer of it is left then."""
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
            await self.session.stop()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    # Towards the client

    def emit(self, event: Json, audio: bytes = b"") -> None:
        """Send a server event, with an ``event_id`` and the script's oddities.

        ``audio`` is sent as the event's ``delta``, in base64.
        """
        type_ = event["type"]
        if type_ not in self.without_id:
            event["event_id"] = new_id("event")
        if self.script.obfuscation and type_.endswith(".delta"):
            event["obfuscation"] = "emulated"
        self._outbox.put(event, audio)
        end = self.script.end
        if end is not None and end.at == type_:
            self._at_end_event()
        if self.script.unknown_events and type_ in _NEWS:
            self.emit({"type": "emulator.unknown_event", "nobody": {"knows": ["this"]}})

    def close(self, code: int, reason: str = "", *, drop: bool = False) -> None:
        """End the session after what was sent so far; ``drop`` cuts the TCP connection."""
        self._outbox.end(code, reason, drop=drop)

    async def room(self) -> None:
        await self._outbox.room()

    def later(self, delay_s: float, action: Callable[[], None]) -> asyncio.TimerHandle:

        def fire() -> None:
            self._timers.discard(handle)
            action()

        handle = asyncio.get_running_loop().call_later(delay_s, fire)
        self._timers = {timer for timer in self._timers if not timer.cancelled()}
        self._timers.add(handle)
        return handle

    def error(self, error: ProtocolError, client_event_id: str | None) -> None:
        """Send an ``error`` event."""
        _log.debug("refused", session=self.record.id, code=error.code, message=error.message)
        self.emit(error_event(error, client_event_id))

    # What the script does to the connection

    def _begin(self) -> None:
        script = self.script
        if script.refuse is not None and script.refuse.step == "connect":
            self._refuse(None)
            return
        if script.created == "normal":
            if script.created_delay_ms:
                self.later(script.created_delay_ms / 1000, self.session.announce)
            else:
                self.session.announce()
        self.later(max(0.0, self.session.expires_at - time.time()), self._expire)
        if script.end is not None and script.end.after_s is not None:
            self.later(script.end.after_s, self._end)

    def _refuse(self, event_id: str | None) -> None:
        refusal = self.script.refuse
        assert refusal is not None
        error = ProtocolError(refusal.code, refusal.message, refusal.param, refusal.type)
        self.error(error, event_id)
        if refusal.close_code is not None:
            self.close(refusal.close_code, f"{refusal.type}.{refusal.code}")

    def _expire(self) -> None:
        text = "Your session hit the maximum duration of 60 minutes."
        self.error(ProtocolError("session_expired", text), None)
        self.close(1001, text)

    def _at_end_event(self) -> bool:
        """Count an event of the type that the script ends at; return whether it has ended."""
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

    # From the client

    def _receive(self, message: str | bytes) -> None:
        event_id: str | None = None
        try:
            if isinstance(message, bytes):
                raise ProtocolError("invalid_event", "Binary messages are not supported.")
            event = _parsed(message)
            given = event.get("event_id")
            event_id = given if isinstance(given, str) else None
            if event["type"] == self.append_type:
                data = self._read_audio(event)
                self.record.note_append(data)
                self.session.append(data)
                return
            self.record.note_client(event)
            end = self.script.end
            if end is not None and end.at == event["type"] and self._at_end_event():
                return
            self._handle(event, event_id)
        except ProtocolError as error:
            self.error(error, event_id)

    def _handle(self, event: Json, event_id: str | None) -> None:
        type_ = event["type"]
        model = self.client_events.get(type_)
        if model is None:
            supported = ", ".join(f"'{name}'" for name in self.client_events)
            text = f"Invalid value: '{type_[:100]}'. Supported values are: {supported}."
            raise ProtocolError("invalid_value", text, "type")
        refusal = self.script.refuse
        if refusal is not None and refusal.step == type_ and self._refused < refusal.times:
            self._refused += 1
            self._refuse(event_id)
            return
        if self._beta is not None:
            event = self._beta.received(event)
        self.session.handle(validated(model, event, ""))

    def _read_audio(self, event: Mapping[str, Any]) -> bytes:
        """Return the audio of an append event, decoded. Raises :class:`ProtocolError`."""
        audio = event.get("audio")
        if not isinstance(audio, str):
            text = "Missing required parameter: 'audio'."
            raise ProtocolError("missing_required_parameter", text, "audio")
        if len(audio) > MAX_APPEND_CHARACTERS:
            raise ProtocolError("invalid_value", "Audio is limited to 15 MiB per event.", "audio")
        try:
            return binascii.a2b_base64(audio, strict_mode=True)
        except ValueError:
            text = "Invalid 'audio'. Expected base64-encoded audio bytes but got an invalid value."
            raise ProtocolError("invalid_value", text, "audio") from None


class LiveConnection(Connection):
    """Serves one Live client."""

    append_type = APPEND_TYPE
    client_events: Mapping[str, type[ClientEvent]] = LIVE_EVENTS
    without_id = frozenset({"session.output_audio.delta"})

    def __init__(self, *args: Any, azure: bool = False, **kwargs: Any) -> None:
        self.azure = azure
        """Whether to speak as Azure's preview does: 24 kHz PCM, no echo of client ids."""
        self.client_event_id: str | None = None
        super().__init__(*args, **kwargs)

    def _new_session(self, maker: ContentMaker) -> LiveSession:
        return LiveSession(self, self.record, self.script, maker)

    def error(self, error: ProtocolError, client_event_id: str | None) -> None:
        """Send an ``error`` event."""
        body = {"type": error.type, "code": error.code, "message": error.message}
        if error.param is not None:
            body["param"] = error.param
        event: Json = {"type": "error", "error": body}
        if client_event_id is not None and not self.azure:
            body["client_event_id"] = event["client_event_id"] = client_event_id
        self.emit(event)

    def _read_audio(self, event: Mapping[str, Any]) -> bytes:
        for name in event.keys() - {"type", "event_id", "audio"}:
            text = f"Unknown parameter: '{name}'."
            raise ProtocolError("unknown_parameter", text, name)
        try:
            return super()._read_audio(event)
        except ProtocolError as error:
            raise ProtocolError("invalid_audio", error.message, "audio") from None

    def _handle(self, event: Json, event_id: str | None) -> None:
        session: LiveSession = self.session
        if not session.started and event["type"] != "session.start":
            text = "The first event must be 'session.start'; wait for 'session.started'."
            raise ProtocolError("invalid_request_error", text, "type")
        if session.closing:
            raise ProtocolError("session_closing", "The session is closing.", "type")
        self.client_event_id = event_id
        super()._handle(event, event_id)

    def _expire(self) -> None:
        self.session.end("expired")

    def _end(self) -> None:
        end = self.script.end
        assert end is not None
        if end.closed is None:
            super()._end()
        else:
            self.session.end(end.closed)


def _parsed(message: str) -> Json:
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        raise ProtocolError("invalid_json", "The message is not valid JSON.") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise ProtocolError("invalid_event", "The message is not a JSON object with a 'type'.")
    return event

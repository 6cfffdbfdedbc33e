# SPDX-License-Identifier: GPL-2.0-or-later
"""A client for tests of the emulator: raw WebSocket, every event held to the official types."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from openai.types.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import BaseModel, TypeAdapter
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.devtools.emulator import Emulator
from gateway.devtools.speech import PCMU, synthesise
from tests.support.official_types import check_live_server_event

PCMU_SESSION = {
    "type": "realtime",
    "audio": {
        "input": {"format": {"type": "audio/pcmu"}},
        "output": {"format": {"type": "audio/pcmu"}},
    },
}
END_CALL = {
    "type": "function",
    "name": "end_call",
    "description": "Hang up.",
    "parameters": {
        "type": "object",
        "properties": {"reason": {"type": "string"}},
        "required": ["reason"],
    },
}
LIVE_BACKEND: dict[str, Any] = {
    "type": "responses",
    "responses": {"model": "small", "tools": [END_CALL]},
}
_DEADLINE_S = 30.0
# Added by the service to what session.update may set; the package types leave them out.
_SESSION_EXTRAS = {"id", "object", "expires_at"}

Result = TypeVar("Result")


def _types_of_events() -> dict[str, TypeAdapter[Any]]:
    union = typing.get_args(RealtimeServerEvent)[0]
    return {
        typing.get_args(model.model_fields["type"].annotation)[0]: TypeAdapter(model)
        for model in typing.get_args(union)
    }


_EVENTS = _types_of_events()


def check(event: Mapping[str, Any]) -> None:
    """Fail unless ``event`` is a GA server event with right types and no unknown key."""
    model = _EVENTS[event["type"]].validate_python(event)
    _no_extras(model, event["type"])


def _no_extras(value: object, path: str) -> None:
    if isinstance(value, BaseModel):
        extras = set(value.model_extra or {})
        if path.endswith(".session"):
            extras -= _SESSION_EXTRAS
        assert not extras, f"{path}: unknown keys {extras}"
        for name in type(value).model_fields:
            _no_extras(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _no_extras(part, f"{path}[{index}]")


def caller_turn() -> bytes:
    """A caller's sentence in u-law, and the silence that ends the turn."""
    spoken = PCMU.encode(*synthesise("I would like to book a room, please."))
    return spoken + PCMU.silence(800)


def input_text(text: str) -> dict[str, Any]:
    """A content part of a message."""
    return {"type": "input_text", "text": text}


class Client:
    """One session: sends events, keeps and checks all that comes."""

    check: Callable[[Mapping[str, Any]], None] = staticmethod(check)
    append_type = "input_audio_buffer.append"

    def __init__(self, socket: ClientConnection, *, strict: bool = True) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self.sent_bytes = 0
        self._strict = strict

    async def send(self, type_: str, **fields: Any) -> None:
        """Send a client event."""
        await self.socket.send(json.dumps({"type": type_, **fields}))

    async def say(self, text: str, role: str = "user") -> None:
        """Put a text item into the conversation."""
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": role, "content": content}
        await self.send("conversation.item.create", item=item)

    async def append(self, audio: bytes, piece: int = 160) -> None:
        """Append audio in pieces as a phone call does."""
        self.sent_bytes += len(audio)
        for start in range(0, len(audio), piece):
            data = base64.b64encode(audio[start : start + piece]).decode()
            await self.send(self.append_type, audio=data)

    async def receive(self) -> dict[str, Any]:
        """The next event, checked. Raises ``ConnectionClosed``, ``TimeoutError``."""
        async with asyncio.timeout(_DEADLINE_S):
            event: dict[str, Any] = json.loads(await self.socket.recv())
        if self._strict:
            self.check(event)
        self.events.append(event)
        return event

    async def until(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Read on to an event of this type (with these fields)."""
        while True:
            event = await self.receive()
            if event["type"] == type_ and fields.items() <= event.items():
                return event

    async def error(self) -> dict[str, Any]:
        """Read on to an ``error`` event; its ``error`` object."""
        error: dict[str, Any] = (await self.until("error"))["error"]
        return error

    async def update(self, session: dict[str, Any]) -> dict[str, Any]:
        """``session.update``, and the session that comes back."""
        await self.send("session.update", session=session)
        updated: dict[str, Any] = (await self.until("session.updated"))["session"]
        return updated

    async def answered(self, **response: Any) -> dict[str, Any]:
        """``response.create``, read to the end of the response; the response."""
        await self.send("response.create", **({"response": response} if response else {}))
        return await self.done()

    async def done(self) -> dict[str, Any]:
        """Read on to ``rate_limits.updated`` after the next ``response.done``; the response."""
        response: dict[str, Any] = (await self.until("response.done"))["response"]
        await self.until("rate_limits.updated")
        return response

    async def closed(self) -> int:
        """Read until the connection is over; its close code."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.receive()
        assert self.socket.close_code is not None
        return self.socket.close_code

    def types(self, *, deltas: bool = True) -> list[str]:
        """The types of all events so far."""
        types = [event["type"] for event in self.events]
        return [type_ for type_ in types if deltas or not type_.endswith(".delta")]

    def audio(self, response_id: str | None = None) -> bytes:
        """All audio that came (of one response), in order."""
        return b"".join(
            base64.b64decode(event["delta"])
            for event in self.events
            if event["type"].endswith(".output_audio.delta")
            and response_id in (None, event.get("response_id"))
        )


class LiveClient(Client):
    """One Live session. Its clock runs as fast as the script's ``live.speed`` allows."""

    check = staticmethod(check_live_server_event)
    append_type = "session.input_audio.append"
    silence = b"\xff"

    async def begin(self, **session: Any) -> dict[str, Any]:
        """``session.start`` in u-law with these fields over the usual ones; the session."""
        audio = {"format": {"type": "audio/pcmu", "rate": 8000}}
        given = {"model": "gpt-live-1.1", "audio": audio, **session}
        await self.send("session.start", event_id="start", session=given)
        started: dict[str, Any] = (await self.until("session.started"))["session"]
        return started

    async def quiet(self, ms: int) -> None:
        """Send silence of the caller."""
        await self.append(self.silence * 8 * ms, 8 * ms)

    async def caught_up(self) -> None:
        """Read until the track is as long as what was sent, in whole chunks of 100 ms."""
        while len(self.audio()) < self.sent_bytes // 800 * 800:
            await self.receive()

    async def text(self, kind: str, content: str, **fields: Any) -> None:
        """Append a text: commentary, thinking or instructions."""
        given = {"delegation_id": None, "content": content, **fields}
        await self.send(f"session.{kind}.append", **given)

    def transcript(self, side: str = "output") -> str:
        """The fragments so far, put together."""
        type_ = f"session.{side}_transcript.delta"
        return "".join(event["delta"] for event in self.events if event["type"] == type_)

    def backend(self, type_: str) -> list[dict[str, Any]]:
        """The backend's events of this type so far."""
        events = [event["event"] for event in self.events if event["type"] == "response.event"]
        return [event for event in events if event["type"] == type_]


@asynccontextmanager
async def live(
    emulator: Emulator, script: str | None = None, *, strict: bool = True, **behaviour: Any
) -> AsyncIterator[LiveClient]:
    """A Live session whose clock runs a hundred times faster, not started yet."""
    behaviour = {"live__speed": 100, "live__transcript_lag_ms": 200, **behaviour}
    url = emulator.live_url(script, **behaviour)
    # Without a bound on unread events a test may leave while the track goes on.
    async with connect(url, compression=None, max_size=None, max_queue=None) as socket:
        yield LiveClient(socket, strict=strict)


@asynccontextmanager
async def session(
    emulator: Emulator, script: str | None = None, *, strict: bool = True, **behaviour: Any
) -> AsyncIterator[Client]:
    """A session with the emulator, its first event not read yet."""
    url = emulator.url(script, **behaviour, model="gpt-realtime-2.1")
    async with connect(url, compression=None, max_size=None) as socket:
        yield Client(socket, strict=strict)


@asynccontextmanager
async def phone(
    emulator: Emulator, script: str | None = None, *, strict: bool = True, **behaviour: Any
) -> AsyncIterator[Client]:
    """A session in u-law with ``end_call``, ready to talk."""
    async with session(emulator, script, strict=strict, **behaviour) as client:
        await client.until("session.created")
        await client.update({**PCMU_SESSION, "tools": [END_CALL]})
        yield client


def with_emulator(
    test: Callable[[Emulator], Coroutine[Any, Any, Result]],
    run: Callable[[Coroutine[Any, Any, Result]], Result] = asyncio.run,
    **options: Any,
) -> Result:
    """Run ``test`` with a fresh emulator, by ``asyncio.run`` or by ``idle_clock.run``."""

    async def main() -> Result:
        async with Emulator(**options) as emulator:
            return await test(emulator)

    return run(main())

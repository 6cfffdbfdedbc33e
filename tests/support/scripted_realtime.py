# SPDX-License-Identifier: GPL-2.0-or-later
"""A realtime server whose every move a test writes down, on a real WebSocket on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from gateway.realtime.connection import Endpoint
from gateway.realtime.events import ServerEvent
from gateway.realtime.session import Session, SessionClosed
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import open_session

KEY = "sk-test-6f1c0a9d-never-to-be-seen"
WAIT = 30.0
"""Seconds that a test waits for something that must come: a bound, not a measure."""

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, ws: ServerConnection, over: asyncio.Event) -> None:
        self.ws = ws
        self._over = over
        self.received: list[dict[str, Any]] = []

    async def send(self, event_type: str, **fields: Any) -> None:
        await self.ws.send(json.dumps({"type": event_type, "event_id": "event_1", **fields}))

    async def error(self, code: str | None, message: str, **fields: Any) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message, **fields}
        await self.send("error", error=error)

    async def receive(self, event_type: str | None = None) -> dict[str, Any]:
        """The next event from the gateway, or the next of that type."""
        async with asyncio.timeout(WAIT):
            while True:
                frame = await self.ws.recv()
                assert isinstance(frame, str), "the gateway sent a binary frame"
                event: dict[str, Any] = json.loads(frame)
                self.received.append(event)
                if event_type is None or event["type"] == event_type:
                    return event

    async def set_up(self, **overrides: Any) -> dict[str, Any]:
        """``session.created``, the gateway's update, ``session.updated``; returns the update."""
        base = {"id": "sess_1", "object": "realtime.session", "expires_at": 1_900_000_000}
        await self.send("session.created", session=base)
        update = await self.receive()
        assert update["type"] == "session.update"
        await self.send("session.updated", session={**base, **update["session"], **overrides})
        return update

    async def hang(self) -> None:
        """Read nothing more until the test is over, then vanish."""
        self.ws.transport.pause_reading()
        await self._over.wait()
        self.ws.transport.abort()

    async def until_closed(self, within_s: float = WAIT) -> None:
        async with asyncio.timeout(within_s):
            try:
                while True:
                    self.received.append(json.loads(await self.ws.recv()))
            except ConnectionClosed:
                pass


class Server:
    """Connections and script failures of a :func:`serving`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.peers: list[Peer] = []
        self.open = 0
        self.failures: list[Exception] = []
        self._changed = asyncio.Event()

    def changed(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def serving(script: Script, **options: Any) -> AsyncIterator[Server]:
    """Serve ``script`` to every connection; a script that fails fails the test."""
    server: Server
    over = asyncio.Event()

    async def handle(ws: ServerConnection) -> None:
        peer = Peer(ws, over)
        server.peers.append(peer)
        server.open += 1
        server.changed()
        try:
            await script(peer)
        except ConnectionClosed:
            pass
        except Exception as error:
            server.failures.append(error)
        finally:
            await ws.close()
            await ws.wait_closed()
            server.open -= 1
            server.changed()

    # Without pings of its own: any keepalive task in the process is the gateway's.
    options = {"compression": None, "close_timeout": 1, "ping_interval": None, **options}
    async with serve(handle, "127.0.0.1", 0, **options) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        server = Server(f"ws://127.0.0.1:{port}/v1/realtime")
        try:
            yield server
        finally:
            over.set()
    if server.failures:
        raise server.failures[0]


class Heard:
    """What a session called back with, to be waited for."""

    def __init__(self) -> None:
        self.events: list[ServerEvent] = []
        self.closed: list[SessionClosed] = []
        self._changed = asyncio.Event()

    def on_event(self, event: ServerEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def on_closed(self, closed: SessionClosed) -> None:
        self.closed.append(closed)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def end(self) -> SessionClosed:
        await self.until(lambda: bool(self.closed))
        return self.closed[0]


def client_tasks() -> list[str]:
    """What still runs of realtime sessions and of the library's keepalive for them."""
    names = [f"{task.get_name()} {task.get_coro()}" for task in asyncio.all_tasks()]
    return [name for name in names if "realtime-session" in name or "keepalive" in name]


async def opened(server: Server, heard: Heard, **endpoint: Any) -> Session:
    """A PCMU session on ``server`` with the test's key."""
    return await open_session(
        Endpoint(server.url, "gpt-realtime-2.1", KEY, **endpoint),
        session_object({"instructions": "Be short."}, "PCMU", []),
        timeout=WAIT,
        on_event=heard.on_event,
        on_closed=heard.on_closed,
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits on what clients of the API send: connections, the time a request takes, bodies.

uvicorn has no limit on the first two: it keeps a connection on which nothing comes for as long as
its owner likes, and answers 503 to everybody while there are too many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from fastapi import HTTPException, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import Headers
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.api.tokens import Token

MAX_BODY_BYTES = 2 * 1024 * 1024
"""An image of the largest size that a conversation takes has room in it."""

UNAUTHORIZED = {"code": "unauthorized", "message": "a valid bearer token is wanted"}
BEARER = {"WWW-Authenticate": "Bearer"}

CONNECTIONS = 256
"""At a time; one more closes the one that has waited for a request for longest."""

REQUEST_SECONDS = 15.0
"""From the first byte of a request, or the beginning of a connection, to the end of the request."""


class Connection(H11Protocol):
    """An HTTP connection with a deadline for each request."""

    _overdue: asyncio.TimerHandle | None = None
    """Set while a request is waited for, or for the rest of one."""

    _since = 0.0
    """When it was last begun to wait (s, of the loop)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if need be in place of another."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one.waits]
        full = len(self.connections) >= CONNECTIONS
        if full and waiting:
            min(waiting, key=lambda one: one._since).abort()
        super().connection_made(transport)
        if full and not waiting:
            self.abort()
        else:
            self._wait()

    @property
    def waits(self) -> bool:
        """Whether no request is being answered."""
        return self._overdue is not None or self.cycle is None or self.cycle.response_complete

    def abort(self) -> None:
        """Close the connection at once, whatever waits to be sent."""
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is complete, and start it with the next one."""
        super().data_received(data)
        upgraded = self.transport.get_protocol() is not self  # a WebSocket may be quiet
        if upgraded:
            self._on_upgrade(self.transport.get_protocol())
        if upgraded or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
        elif self._overdue is None:
            self._wait()

    def _on_upgrade(self, websocket: Any) -> None:
        """Close a WebSocket whose handshake cannot be read, or is not complete in time: uvicorn
        would keep it, and count it, for as long as its client likes."""
        if not websocket.handshake_initiated:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            self.transport.close()
            return

        def look() -> None:
            if not websocket.handshake_complete:
                self.transport.abort()

        self.loop.call_later(REQUEST_SECONDS, look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._since = self.loop.time()
        self._overdue = self.loop.call_later(REQUEST_SECONDS, self.abort)

    def _forget(self) -> None:
        overdue: Any = self._overdue
        self._overdue = None
        if overdue is not None:
            overdue.cancel()


class BodyLimit:
    """Refuses bodies that are too long, by their length or as they come (ASGI).

    FastAPI reads a body before anything else: without a token, none is read.
    """

    def __init__(self, app: Any, token_of: Callable[[Scope], Token | None]) -> None:
        self._app = app
        self._token_of = token_of

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # What applications send is read after their token, and they have errors of their own.
        reads = scope["method"] not in ("GET", "HEAD") and not scope["path"].startswith("/v1/")
        if reads and self._token_of(scope) is None:
            refused = JSONResponse({"error": UNAUTHORIZED}, 401, BEARER)
            await refused(scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            await _too_long()(scope, receive, send)
            return
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY_BYTES:
                raise HTTPException(413, {"code": "too_long", "message": "the body is too long"})
            return message

        await self._app(scope, counted, send)


def _too_long() -> Response:
    return PlainTextResponse("the body is too long", 413)

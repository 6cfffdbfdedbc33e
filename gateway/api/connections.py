# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections of the API's clients: limits on what comes, and the Unix socket of the own user.

uvicorn limits neither connections nor the time that a request takes: it keeps a connection on which
nothing comes for as long as its owner likes, and answers 503 to everybody while there are too many.
The socket's file has the mode 0600: who can open it may do all that an administrator may, and needs
no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pwd
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from random import uniform
from time import thread_time
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import anyio.lowlevel
import h11
import structlog
from fastapi import HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import Headers
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from gateway.api.backend import Role, Token
from gateway.config.operations import MAX_SOCKET_BYTES
from gateway.tasks import TaskSet

MAX_BODY_BYTES = 2 * 1024 * 1024
"""An image of the largest size that a conversation takes has room in it."""

UNAUTHORIZED = {"code": "unauthorized", "message": "a valid bearer token is wanted"}
BEARER = {"WWW-Authenticate": "Bearer"}

CONNECTIONS = 256
"""At a time; one more closes the one that has waited for a request for longest."""

FRAMES_PER_SECOND = 250
FRAMES_AT_ONCE = 2000
"""Rate limit of one WebSocket's frames, and its burst: a call from a page sends 50 a second."""
READ_BYTES = 16 * 1024
"""Read from a WebSocket at once: some 2,700 frames at most, which take 30 ms."""

HTTP_READ_BYTES = 1024
"""Read from a connection at once."""
SLOW_SECONDS = 0.002
REST = 10
"""A request whose reading computed for ``SLOW_SECONDS``, as that of chunks of one byte does, is not
read for so many times as long; such requests are read one after another."""
LONGEST_REST_SECONDS = 5.0
"""In which all of ``CONNECTIONS`` have their turn; where it is not enough, turns are by chance."""

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()
"""When the last of the requests that rest is read on (s, of the loop)."""

REQUEST_SECONDS = 15.0
"""From the first byte of a request, or the beginning of a connection, to the end of the request."""


_unreadable = itertools.count(1)
"""Requests of this process that could not be read."""


class Connection(H11Protocol):
    """An HTTP connection with a deadline for each request."""

    _overdue: asyncio.TimerHandle | None = None
    """Set while a request is waited for, or for the rest of one."""

    _since = 0.0
    """When it was last begun to wait (s, of the loop)."""

    _spent = 0.0
    """What reading the request has computed since it last rested (s)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; with ``CONNECTIONS`` the one that waits for a request for longest is
        closed, or this one where none waits."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one.waits]
        full = len(self.connections) >= CONNECTIONS
        if full and waiting:
            min(waiting, key=lambda one: one._since).abort()
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = HTTP_READ_BYTES
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
        """Stop the clock when a request is complete, and start it with the next one; pause reading
        one that is slow to read."""
        began = thread_time()
        super().data_received(data)
        self._spent += thread_time() - began
        upgraded = self.transport.get_protocol() is not self  # a WebSocket may be quiet
        if upgraded:
            self._on_upgrade(self.transport.get_protocol())
        if upgraded or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
            self._spent = 0.0
        elif self._overdue is None:
            self._wait()
        if self._spent > SLOW_SECONDS:
            self.transport.pause_reading()
            now = self.loop.time()
            turn = max(now, _turns.get(self.loop, now)) + self._spent * REST
            if turn <= now + LONGEST_REST_SECONDS:
                _turns[self.loop] = turn
            else:
                turn = now + uniform(0.0, LONGEST_REST_SECONDS)
            self.loop.call_at(turn, self._read_on)
            self._spent = 0.0

    def _read_on(self) -> None:
        """Timer: read on, unless the application has not taken what came."""
        if not self.flow.read_paused:
            self.transport.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read with 400, or only close the connection if an answer has begun,
        as to a request whose body was not waited for. Log the first, and then ever fewer."""
        count = next(_unreadable)
        if count & (count - 1) == 0:
            log.warning("api.invalid_request", source=(self.client or ("local",))[0], count=count)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

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
        """Stop the clock of the request that was waited for."""
        self._forget()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Start the clock, which closes the connection after ``REQUEST_SECONDS``."""
        self._since = self.loop.time()
        self._overdue = self.loop.call_later(REQUEST_SECONDS, self.abort)

    def _forget(self) -> None:
        """Stop the clock; nothing if it does not run."""
        overdue: Any = self._overdue
        self._overdue = None
        if overdue is not None:
            overdue.cancel()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with a rate limit of frames, pings too: a client that sends more is read
    no faster. Nothing that a client does wrong is taken for an error of ours."""

    held_back = 0
    """How often reading was paused by the rate limit."""

    _room = float(FRAMES_AT_ONCE)
    """Frames that the rate limit allows, as of ``_room_at`` (s); below 0 while none is read."""
    _room_at = 0.0
    _hold: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, which is read in small pieces: all frames in one are handled at
        once."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES

    def handle_events(self) -> None:
        """Handle the frames that have come, then pause reading for as long as the rate limit
        takes."""
        count, now = len(self.conn.events), self.loop.time()
        super().handle_events()
        room = min(FRAMES_AT_ONCE, self._room + (now - self._room_at) * FRAMES_PER_SECOND)
        self._room, self._room_at = room - count, now
        if self._room < 0 and self._hold is None:
            self.held_back += 1
            self.read_paused = False  # else the application would resume reading
            self.transport.pause_reading()
            self._hold = self.loop.call_later(-self._room / FRAMES_PER_SECOND, self._go_on)

    def _go_on(self) -> None:
        """Timer: read on, now or once the application has taken what came."""
        self._hold = None
        if self.queue.empty():
            self.transport.resume_reading()
        else:
            self.read_paused = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection, and the pause of its reading."""
        if self._hold is not None:
            self._hold.cancel()
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        """Send what the application says; a refusal completes the handshake."""
        await super().send(message)
        if self.close_sent:  # uvicorn would report a refusal with a body as an error
            self.handshake_complete = True

    def send_receive_event_to_app(self) -> None:
        """Give a message to the application; close (1007) for a text that is no UTF-8."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()


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
            await PlainTextResponse("the body is too long", 413)(scope, receive, send)
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


log = structlog.get_logger("control")

BACKLOG = 16

AGAIN_SECONDS = 0.2
"""Until a client that found no descriptor is looked at again."""

SPARE = 4
"""Descriptors kept for clients when the process has no other: theirs, and what commands open."""

LOOK_SECONDS = 5.0
"""Between two looks at whether the socket is still there."""


class SocketError(Exception):
    """The socket cannot be opened; the message names it and why."""


class LocalSocket:
    """Owns the socket's file while it listens.

    Args:
        path: where the socket is made; one that nobody listens on is replaced.
        serve: takes a client that has connected, on the event loop.
    """

    def __init__(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        self._path = path
        self._serve = serve
        self._listener: socket.socket | None = None
        self._spare: list[int] = []
        """Descriptors that are given up for a client where the process has no other left."""
        self._watch = TaskSet()

    async def start(self) -> None:
        """Listen, and listen again where the socket is lost. Raises SocketError."""
        # The first request has anyio import a dozen files, and may find no descriptor for them.
        await anyio.lowlevel.checkpoint()
        await self._listen()
        self._watch.serve(self._keep_listening, "control socket")

    async def stop(self) -> None:
        """Stop listening, and remove the file."""
        if self._listener is None:
            return
        await self._watch.cancel()
        self._close()
        self._path.unlink(missing_ok=True)

    def keep_spare(self) -> None:
        """Take descriptors for the next client, as far as there are any: nobody is served now."""
        with contextlib.suppress(OSError):
            while self._listener is not None and len(self._spare) < SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    async def _keep_listening(self) -> None:
        """Listen again where the socket was removed (by a cleaner of /run, say) or has closed."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._listener is None or not self._path.is_socket():
                log.warning("control.socket_lost", path=str(self._path))
                self._close()
                await self._listen()

    async def _listen(self) -> None:
        """Listen on the Unix socket, for the gateway's user alone. Raises SocketError."""
        path = str(self._path)
        if len(os.fsencode(path)) > MAX_SOCKET_BYTES:
            raise SocketError(f"control.socket: {path} is longer than {MAX_SOCKET_BYTES} bytes")
        self._make_room()
        before = os.umask(0o177)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise SocketError(f"control.socket: {path}: {error.strerror or error}") from None
        finally:
            os.umask(before)
        self._listener = listener
        self.keep_spare()
        self._watch_listener(listener)

    def _close(self) -> None:
        """Close the listener and the spare descriptors; the socket's file stays."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self._give_up_spare()

    def _make_room(self) -> None:
        """Remove a socket that nobody listens on. Raises SocketError where somebody does."""
        try:
            if not self._path.is_socket():
                if self._path.exists():
                    raise SocketError(f"control.socket: {self._path} is there and is no socket")
                return
        except OSError as error:
            raise SocketError(f"control.socket: {self._path}: {error.strerror}") from None
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._path))
            except OSError:
                self._path.unlink(missing_ok=True)  # left behind by a gateway that was killed
                return
        raise SocketError(f"control.socket: another gateway listens on {self._path}")

    def _on_client(self) -> None:
        """Accept a client, if need be with a spare descriptor.

        Where there is none either, the listener is left alone for ``AGAIN_SECONDS``.
        """
        listener = self._listener
        assert listener is not None
        self._give_up_spare()  # the command may need one, too
        try:
            client, _address = listener.accept()
        except OSError:
            # No descriptor, not even a spare one, as these are with a client: it comes back.
            self.keep_spare()
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(AGAIN_SECONDS, self._watch_listener, listener)
            return
        client.setblocking(False)
        self._serve(client)

    def _watch_listener(self, listener: socket.socket) -> None:
        """Accept the clients of a listener; nothing if it was replaced meanwhile."""
        if listener is self._listener:
            asyncio.get_running_loop().add_reader(listener, self._on_client)

    def _give_up_spare(self) -> None:
        """Close the spare descriptors, so that a client can have them."""
        while self._spare:
            os.close(self._spare.pop())


LOCAL, ROLE = "gateway.local", "gateway.role"
"""Keys of an ASGI scope: the user at the other end of the Unix socket, and what they may do."""

HOP, USER, PEER, RIGHTS = "x-gateway-hop", "x-gateway-user", "x-gateway-peer", "x-gateway-role"
"""Header fields of a request that another worker hands on, and of whom it is. The last three are
believed on the Unix socket only, where an administrator is at the other end anyway."""

_CREDENTIALS = struct.Struct("3i")
"""``struct ucred``: process, user, group (unix(7))."""


class LocalConnection(Connection):
    """A connection over the Unix socket; its peer is the user on the other side.

    Args:
        left: told at its end how many others there are.
    """

    def __init__(self, config: Config, state: ServerState, left: Callable[[int], None]) -> None:
        super().__init__(config, state, {})
        self._left = left

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and ask the kernel whose it is."""
        super().connection_made(transport)
        told = transport.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        _process, user, _group = _CREDENTIALS.unpack(told)
        self.client = (_NAMES.get(user, f"user {user}"), 0)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._left(len(self.connections))


def as_local(app: Any) -> Any:
    """Return the application for clients of the Unix socket, who need no token.

    They are admins, under the name of their user; a request that another worker forwards has the
    name, address and role that its header fields say.
    """

    async def local(scope: Any, receive: Any, send: Any) -> None:
        headers = Headers(scope=scope)
        user = unquote(headers.get(USER, "")) or (scope.get("client") or ("unknown", 0))[0]
        peer, rights = headers.get(PEER), headers.get(RIGHTS, "")
        role = Role.__members__.get(rights.upper(), Role.READONLY) if rights else Role.ADMIN
        told = {"client": (peer, 0) if peer else None, LOCAL: user, ROLE: role}
        await app({**scope, **told}, receive, send)

    return local


def _own_name() -> str:
    """Return the name of the user whose process this is."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


_NAMES = {os.getuid(): _own_name(), 0: "root"}
"""Nobody else can open the socket."""

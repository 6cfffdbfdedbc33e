# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves the API on the process's event loop: on an address, and on the Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gateway.sip.agent import AgentError
from gateway.tasks import TaskSet

if TYPE_CHECKING:
    from gateway.api.backend import Backend
    from gateway.api.connections import LocalSocket
    from gateway.api.tokens import Token

STOP_SECONDS = 5.0
MAX_MESSAGE_BYTES = 2 * 1024 * 1024
"""Of a WebSocket: an image in a conversation has room in it."""
BACKLOG = 128

log = structlog.get_logger("api")


class ApiServer:
    """Owns the listeners while it runs."""

    def __init__(self, backend: Backend, tokens: tuple[Token, ...]) -> None:
        self._backend = backend
        self._tokens = tokens
        self._app: Any = None
        self._making = asyncio.Lock()
        self._serving: dict[bool, tuple[Any, asyncio.Task[None]]] = {}
        """Server and task, by whether it is the Unix socket's."""
        self._socket: LocalSocket | None = None
        self._clients = TaskSet()

    async def listen(self, host: str, port: int) -> None:
        """Listen on an address; port 0 takes any free one. Raises AgentError."""
        listener = _bound(host, port)
        port = listener.getsockname()[1]
        await self._serve([listener], local=False)
        log.info("api.listening", address=f"{host}:{port}", tokens=len(self._tokens))

    async def open_socket(self, path: Path) -> None:
        """Listen on a Unix socket, whose clients need no token. Raises AgentError."""
        server = await self._serve([], local=True)
        from gateway.api.connections import LocalSocket, SocketError

        self._socket = LocalSocket(path, lambda client: self._take(server, client))
        try:
            await self._socket.start()
        except SocketError as error:
            await self._end(local=True)
            raise AgentError(str(error)) from None

    async def close_socket(self) -> None:
        """Stop listening on the Unix socket, and end what is being answered there."""
        if self._socket is not None:
            await self._socket.stop()
        await self._end(local=True)
        await self._clients.cancel()

    async def stop(self) -> None:
        """Stop listening on the address, and end what is being answered there."""
        await self._end(local=False)

    async def _serve(self, listeners: list[socket.socket], *, local: bool) -> Any:
        """Start a server on listeners of the network, or on the Unix socket (``local``)."""
        async with self._making:
            # On a thread: its libraries take a while to load.
            server = await asyncio.to_thread(self._make, local)
        task = asyncio.create_task(server.serve(sockets=listeners), name="api")
        self._serving[local] = server, task
        return server

    async def _end(self, *, local: bool) -> None:
        """Stop one of the servers, after its streams of events have ended."""
        server, task = self._serving.pop(local, (None, None))
        if server is None or task is None:
            return
        self._backend.feed.ending[local].set()
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await task

    def _take(self, server: Any, client: socket.socket) -> None:
        self._clients.spawn(self._connect(server, client), "control client")

    async def _connect(self, server: Any, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: server.connection(self._left), client)
        except OSError:
            client.close()

    def _left(self, others: int) -> None:
        """Forget a client of the socket that has disconnected."""
        if self._socket is not None and not others:
            self._socket.keep_spare()  # nobody else's command needs them now

    def _make(self, local: bool) -> Any:
        """Make the uvicorn server of the network, or of the Unix socket. On a thread."""
        import uvicorn

        from gateway.api.app import make_app
        from gateway.api.connections import CONNECTIONS, Connection, LocalConnection, as_local

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                """Leave the signals to the gateway, which drains."""
                yield

            def connection(self, left: Any) -> LocalConnection:
                """A protocol for a client of the Unix socket."""
                return LocalConnection(self.config, self.server_state, left)

        if self._app is None:
            self._app = make_app(self._backend, self._tokens)
        return Server(
            uvicorn.Config(
                as_local(self._app) if local else self._app,
                http=Connection,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="websockets-sansio",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,  # G.711 grows by it
                server_header=False,
                proxy_headers=not local,
                limit_concurrency=CONNECTIONS + 1,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=2,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )


def _bound(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises AgentError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or error
        raise AgentError(f"api.listen: {host}:{port}: {why}") from None
    listener.setblocking(False)
    return listener

# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves the API on the process's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import structlog

from gateway.sip.agent import AgentError

if TYPE_CHECKING:
    from gateway.api.backend import Backend
    from gateway.api.tokens import Token

STOP_SECONDS = 5.0
MAX_MESSAGE_BYTES = 2 * 1024 * 1024
"""Of a WebSocket: an image in a conversation has room in it."""
BACKLOG = 128

log = structlog.get_logger("api")


class ApiServer:
    """Owns the listener while it runs.

    Args:
        host, port: where to listen; port 0 takes any free one.
    """

    def __init__(self, host: str, port: int, backend: Backend, tokens: tuple[Token, ...]) -> None:
        self.port = port
        """The port really bound."""
        self._host = host
        self._backend = backend
        self._tokens = tokens
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises AgentError where the address cannot be had."""
        listener = self._bound()
        self.port = listener.getsockname()[1]
        self._server = await asyncio.to_thread(self._made)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="api")
        log.info("api.listening", address=f"{self._host}:{self.port}", tokens=len(self._tokens))

    async def stop(self) -> None:
        """Stop listening, and end what is being answered."""
        task, self._task = self._task, None
        if task is None:
            return
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await task

    def _bound(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self.port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            why = error.strerror or error
            raise AgentError(f"api.listen: {self._host}:{self.port}: {why}") from None
        listener.setblocking(False)
        return listener

    def _made(self) -> Any:
        """The server, on a thread: its libraries take a while to load."""
        import uvicorn

        from gateway.api.app import make_app
        from gateway.api.limits import CONNECTIONS, Connection

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                """Leave the signals to the gateway, which drains."""
                yield

        app = make_app(self._backend, self._tokens)
        return Server(
            uvicorn.Config(
                app,
                http=Connection,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="websockets-sansio",
                ws_max_size=MAX_MESSAGE_BYTES,
                server_header=False,
                limit_concurrency=CONNECTIONS + 1,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=2,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )

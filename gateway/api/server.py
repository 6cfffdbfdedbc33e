# SPDX-License-Identifier: GPL-2.0-or-later
"""Server of the HTTP API: its ASGI application, on an address and on the Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Message, Receive, Scope, Send

from gateway import __version__
from gateway.api.access import (
    LIFETIME_SECONDS,
    Access,
    OwnCookie,
    Paths,
    Throttle,
    audit,
    cookie_name,
    token_of,
)
from gateway.api.admin import add_administration
from gateway.api.backend import Backend, RequestTimes, Role, Token
from gateway.api.call_audio import add_audio
from gateway.api.calls import add_calls
from gateway.api.connections import (
    CONNECTIONS,
    BodyLimit,
    Connection,
    LocalConnection,
    LocalSocket,
    SocketError,
    WebSocketConnection,
    as_local,
)
from gateway.api.hosted import add_hosted
from gateway.api.siblings import ForwardToWorker, Siblings
from gateway.sip.agent import AgentError
from gateway.tasks import TaskSet

log = structlog.get_logger("api")


def make_app(
    backend: Backend, tokens: tuple[Token, ...], siblings: Siblings | None = None
) -> FastAPI:
    """Return the application with all paths, and what each request passes through.

    Args:
        siblings: the other workers of this machine; None for none.
    """
    siblings = Siblings(()) if siblings is None else siblings
    app = FastAPI(
        title="SIP realtime gateway",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    access = Access(tokens)
    if siblings.sockets:
        app.add_middleware(
            ForwardToWorker, siblings=siblings, here=backend.here, token_of=access.token_of
        )
    app.add_middleware(BodyLimit, token_of=access.token_of)
    app.add_middleware(Throttle, access=access)
    app.add_middleware(Timed, times=backend.requests)
    app.add_middleware(OwnCookie)
    _add_errors(app)
    _add_health(app, backend)
    paths = Paths(app, access)
    add_calls(paths, backend, siblings)
    add_administration(paths, backend, siblings)
    add_audio(paths, backend, siblings)
    add_console(paths)
    _describe(app)
    decides = any(token.role is Role.APPLICATION for token in tokens)
    if backend.applications is not None and decides:
        add_hosted(app, backend.applications, tokens)
    return app


class Timed:
    """Measures the time until the answer begins: streams last as long as they like (ASGI)."""

    def __init__(self, app: Any, times: RequestTimes) -> None:
        self._app = app
        self._times = times

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()

        async def timed(message: Message) -> None:
            status = {"websocket.accept": 101}.get(message["type"]) or message.get("status")
            if status is not None:
                handler = getattr(scope.get("route"), "path", "")
                method = scope.get("method", "WEBSOCKET")
                self._times.observe(handler, method, status, time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, timed)


_FOR_ALL = {"x-role": "none"}
_UNWELL: dict[int | str, Any] = {503: {"description": "No; the body says why"}}


def _add_health(app: FastAPI, backend: Backend) -> None:
    """Add ``/healthz`` and ``/readyz``."""

    @app.get("/healthz", tags=["health"], openapi_extra=_FOR_ALL, responses=_UNWELL)
    async def healthz() -> JSONResponse:
        """Whether the process works; true while draining."""
        problems = dict(backend.problems())
        return JSONResponse({"ok": not problems, "problems": problems}, 503 if problems else 200)

    @app.get("/readyz", tags=["health"], openapi_extra=_FOR_ALL, responses=_UNWELL)
    async def readyz() -> JSONResponse:
        """Whether calls should be sent here."""
        reasons = dict(backend.ready())
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @app.get("/metrics", tags=["health"], openapi_extra=_FOR_ALL, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(
            await backend.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _describe(app: FastAPI) -> None:
    """Have the description name the bearer token that paths need."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer", "description": "[[api.token]]"}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_errors(app: FastAPI) -> None:
    """Give every error of the API one JSON form."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(_request: Request, error: StarletteHTTPException) -> Response:
        detail: Any = error.detail
        if error.status_code == 400:  # FastAPI could not read the body: no JSON, or no UTF-8
            wrong = {"code": "invalid", "message": "body: is no JSON", "param": "body"}
            return JSONResponse({"error": wrong}, 422)
        if not isinstance(detail, dict):
            codes = {404: "not_found", 405: "method_not_allowed"}
            detail = {"code": codes.get(error.status_code, "http"), "message": detail}
        return JSONResponse({"error": detail}, error.status_code, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Without the input, which may be private.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if where == "body" and "json" not in request.headers.get("content-type", ""):
            first = {"msg": "is no JSON: it needs Content-Type: application/json"}
        return JSONResponse(
            {"error": {"code": "invalid", "message": f"{where}: {first['msg']}", "param": where}},
            422,
        )

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> Response:
        log.error("api.failed", exc_info=error)
        return JSONResponse(
            {"error": {"code": "internal", "message": "the gateway's log says why"}}, 500
        )


FOLDER = Path(__file__).parent / "pages"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; media-src 'self' blob:; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), payment=(), usb=()",
    "Cache-Control": "no-cache",
}


class Session(BaseModel):
    """Who is logged in, or asks with a token, and what they may do."""

    name: str
    role: str


def add_console(paths: Paths) -> None:
    """Add the pages, and the paths by which a browser logs in and out."""
    logins = paths.access.logins

    def described(token: Token) -> dict[str, Any]:
        return {"name": token.name, "role": token.role.name.lower()}

    @paths.add("GET", "/session", Role.READONLY, Session, tags=["console"])
    async def get_session(request: Request) -> Any:
        """Whose token or login this is."""
        return described(token_of(request))

    @paths.add("POST", "/session", Role.READONLY, Session, tags=["console"])
    async def log_in(request: Request) -> Any:
        """Log a browser in: the answer has a cookie that stands for the token."""
        token = token_of(request)
        audit(request, "login", {}, "ok")
        answer = JSONResponse(described(token))
        answer.set_cookie(
            cookie_name(request.scope),
            logins.begin(token),
            expires=datetime.fromtimestamp(time.time() + LIFETIME_SECONDS, UTC),
            secure=request.scope["scheme"] == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    @paths.add("DELETE", "/session", Role.READONLY, tags=["console"])
    async def log_out(request: Request) -> Any:
        """Log this browser out."""
        audit(request, "logout", {}, "ok")
        logins.end(request.scope)
        answer = JSONResponse({})
        secure = request.scope["scheme"] == "https"
        answer.delete_cookie(cookie_name(request.scope), secure=secure, httponly=True)
        return answer

    _add_pages(paths.app)


def _add_pages(app: FastAPI) -> None:
    """Add the console's files."""
    files = {
        file.name: (file.read_bytes(), _KINDS[file.suffix])
        for file in FOLDER.iterdir()
        if file.suffix in _KINDS
    }
    tags = {name: f'"{hashlib.sha256(body).hexdigest()[:32]}"' for name, (body, _) in files.items()}

    @app.get("/console/{name:path}", include_in_schema=False)
    async def page(name: str, request: Request) -> Response:
        name = name or "index.html"
        if name not in files:
            return Response(status_code=404)
        headers = {**_HEADERS, "ETag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        body, kind = files[name]
        return Response(body, media_type=kind, headers=headers)

    async def to_console() -> Response:
        return RedirectResponse("/console/")

    for path in ("/", "/console"):
        app.get(path, include_in_schema=False)(to_console)


STOP_SECONDS = 5.0
"""For the responses in progress when a server stops."""
MAX_MESSAGE_BYTES = 2 * 1024 * 1024
"""Of a WebSocket: an image in a conversation has room in it."""
BACKLOG = 128


UNREAD_SECONDS = 60.0
"""For which a client may take nothing of what is sent to it; then its connection is closed."""


class _Server(uvicorn.Server):
    """Server that installs no signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the gateway, which drains."""
        yield


class ApiServer:
    """Owns the listeners while it runs."""

    def __init__(
        self, backend: Backend, tokens: tuple[Token, ...], siblings: Siblings | None = None
    ) -> None:
        self._backend = backend
        self._tokens = tokens
        self._siblings = siblings
        self._app: FastAPI | None = None
        self._serving: dict[bool, tuple[_Server, asyncio.Task[None]]] = {}
        """Server and task, by whether it is the Unix socket's."""
        self._socket: LocalSocket | None = None
        self._clients = TaskSet()

    async def listen(self, host: str, port: int) -> None:
        """Listen on an address, and serve; port 0 takes any free one. Raises AgentError."""
        listener = _bound(host, port)
        port = listener.getsockname()[1]
        await self._serve([listener], local=False)
        log.info("api.listening", address=f"{host}:{port}", tokens=len(self._tokens))

    async def open_socket(self, path: Path) -> None:
        """Listen on a Unix socket, whose clients need no token. Raises AgentError."""
        server = await self._serve([], local=True)

        def take(client: socket.socket) -> None:
            self._clients.spawn(self._connect(server, client), "control client")

        self._socket = LocalSocket(path, take)
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

    async def _serve(self, listeners: list[socket.socket], *, local: bool) -> _Server:
        """Start a server on listeners of the network, or on the Unix socket (``local``)."""
        # On a thread: the models of all paths take a while to build.
        server = await asyncio.to_thread(self._make, local)
        task = asyncio.create_task(server.serve(sockets=listeners), name="api")
        self._serving[local] = server, task
        task.add_done_callback(lambda _task: self._on_ended(task, local))
        return server

    def _on_ended(self, task: asyncio.Task[None], local: bool) -> None:
        """Report a server that has ended by itself: that part of the process has failed."""
        if self._serving.get(local, (None, None))[1] is not task or task.cancelled():
            return
        error = task.exception() or RuntimeError("it has ended")
        context = {"message": "the API has ended", "exception": error, "background": task}
        task.get_loop().call_exception_handler(context)

    async def _end(self, *, local: bool) -> None:
        """End the streams of events of one of the servers, and stop it, within ``STOP_SECONDS``.

        Nothing if it does not run.
        """
        server, task = self._serving.pop(local, (None, None))
        if server is None or task is None:
            return
        self._backend.feed.ending[local].set()
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await task

    async def _connect(self, server: _Server, client: socket.socket) -> None:
        """Have the server speak HTTP with a client that has connected to the Unix socket."""

        def connection() -> LocalConnection:
            return LocalConnection(server.config, server.server_state, self._left)

        try:
            await asyncio.get_running_loop().connect_accepted_socket(connection, client)
        except OSError:
            client.close()

    def _left(self, others: int) -> None:
        """Keep spare descriptors again, when the last client of the Unix socket has left."""
        if self._socket is not None and not others:
            self._socket.keep_spare()  # nobody else's command needs them now

    def _make(self, local: bool) -> _Server:
        """Make the uvicorn server of the network, or of the Unix socket. On a thread."""
        if self._app is None:
            self._app = make_app(self._backend, self._tokens, self._siblings)
        # Its warnings are about what clients send, one for each, and name none of them.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        return _Server(
            uvicorn.Config(
                as_local(self._app) if local else self._app,
                http=Connection,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws=WebSocketConnection,
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
    # Of each connection, too: whoever sends on it waits no longer.
    patience = round(UNREAD_SECONDS * 1000)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or error
        raise AgentError(f"api.listen: {host}:{port}: {why}") from None
    listener.setblocking(False)
    return listener

# SPDX-License-Identifier: GPL-2.0-or-later
"""ASGI application of the HTTP API: its routers, access checks, and bodies of failures."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Message, Receive, Scope, Send

from gateway import __version__
from gateway.api.access import Access, Paths, Throttle, audit, token_of
from gateway.api.admin import add_administration
from gateway.api.backend import Backend, RequestTimes
from gateway.api.browser import add_browser_calls
from gateway.api.calls import add_calls
from gateway.api.connections import BodyLimit
from gateway.api.hosted import add_hosted
from gateway.api.siblings import HandOn
from gateway.api.tokens import LIFETIME_SECONDS, OwnCookie, Role, Token, cookie_name
from gateway.api.watching import add_watching

log = structlog.get_logger("api")


def make_app(backend: Backend, tokens: tuple[Token, ...]) -> FastAPI:
    app = FastAPI(
        title="SIP realtime gateway",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    access = Access(tokens)
    if backend.siblings is not None:
        app.add_middleware(
            HandOn, siblings=backend.siblings, here=backend.here, token_of=access.token_of
        )
    app.add_middleware(BodyLimit, token_of=access.token_of)
    app.add_middleware(Throttle, access=access)
    app.add_middleware(Timed, times=backend.requests)
    app.add_middleware(OwnCookie)
    _add_errors(app)
    _add_health(app, backend)
    paths = Paths(app, access)
    add_calls(paths, backend)
    add_administration(paths, backend)
    add_watching(paths, backend)
    add_console(paths)
    add_browser_calls(paths, backend)
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

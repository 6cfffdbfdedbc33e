# SPDX-License-Identifier: GPL-2.0-or-later
"""The console: its pages, and the paths by which a browser logs in and out."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel

from gateway.api.access import Paths, audit, token_of
from gateway.api.tokens import LIFETIME_SECONDS, Role, Token, cookie_name

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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Access to the API: tokens and log-ins, roles of paths, throttling, and the audit log.

A browser sends its token once, in a header field, and gets a cookie for it. The cookie counts only
in requests that the console's own pages make.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from gateway.addresses import counted
from gateway.api.backend import Backend, NoCallError, Role, Token, recognized
from gateway.api.client import RefusedError
from gateway.api.connections import BEARER, LOCAL, ROLE, UNAUTHORIZED
from gateway.measures import BoundedDict
from gateway.tasks import until_one_ends
from gateway.text import unicode_in

log = structlog.get_logger("api")

IDLE_SECONDS = 3600.0
"""A login on which nothing was asked for so long is over; an open page asks all the time."""
LIFETIME_SECONDS = 12 * 3600.0
MAX_LOGINS = 1000
"""At a time; one more ends the one that was used least recently."""

ASKED_BY = "gateway-console"
"""Value of ``X-Requested-With``, which a page of another site cannot send."""


_SECRET = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(slots=True)
class _Login:
    """A log-in: its token, when it ends at the latest and when it was used last (s)."""

    token: Token
    until: float
    used: float


class Logins:
    """Log-ins of browsers, by the hash of the cookie's value. Lives on the event loop.

    Args:
        now: seconds that only grow.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._logins: BoundedDict[str, _Login] = BoundedDict(MAX_LOGINS)
        """By the hash of the secret, the one used least recently first."""

    def begin(self, token: Token) -> str:
        """Log a token in; return the secret that is the cookie's value.

        With ``MAX_LOGINS`` the one used least recently ends.
        """
        secret, now = secrets.token_urlsafe(32), self._now()
        self._logins[_hashed(secret)] = _Login(token, now + LIFETIME_SECONDS, now)
        return secret

    def end(self, scope: Mapping[str, Any]) -> None:
        """End the log-in of this request's cookie; nothing if there is none."""
        self._logins.pop(_hashed(_cookie(scope)), None)

    def token_of(self, scope: Mapping[str, Any]) -> Token | None:
        """Return the token behind a request's cookie, and count the use.

        None without a cookie, for requests that no page of the console makes, and for a log-in that
        was idle for ``IDLE_SECONDS`` or is older than ``LIFETIME_SECONDS``.
        """
        secret = _cookie(scope)
        if not secret or not _own_page(scope):
            return None
        key, now = _hashed(secret), self._now()
        login = self._logins.get(key)
        if login is None:
            return None
        if now >= login.until or now >= login.used + IDLE_SECONDS:
            del self._logins[key]
            return None
        login.used = now
        self._logins.move_to_end(key)
        return login.token


def _hashed(secret: str) -> str:
    """Return the SHA-256 of a secret, in hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def cookie_name(scope: Mapping[str, Any]) -> str:
    """Return the cookie's name: over TLS one that no other host may set; else with the port, since
    cookies are shared by all ports of a host."""
    if scope.get("scheme") in ("https", "wss"):
        return "__Host-gateway"
    return f"gateway-{(scope.get('server') or ('', 0))[1] or 0}"


def _field(scope: Mapping[str, Any], name: bytes) -> str | None:
    """Return the first header field of this lower-case name; None for none."""
    return next((v.decode("latin-1") for n, v in scope["headers"] if n == name), None)


def _cookie(scope: Mapping[str, Any]) -> str:
    """Return the secret in the console's cookie; empty where there is none.

    Read here: ``http.cookies`` takes a time that grows with the square of a quoted value.
    """
    name = cookie_name(scope)
    for one in (_field(scope, b"cookie") or "").split(";"):
        told, _, value = one.strip().partition("=")
        if told == name and _SECRET.fullmatch(value):
            return value
    return ""


class OwnCookie:
    """Passes on no cookie but the console's own (ASGI): libraries below would read all of them."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if any(name == b"cookie" for name, _ in scope.get("headers", ())):
            own = _cookie(scope)
            headers = [field for field in scope["headers"] if field[0] != b"cookie"]
            if own:
                headers.append((b"cookie", f"{cookie_name(scope)}={own}".encode()))
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def _own_page(scope: Mapping[str, Any]) -> bool:
    """Whether the console's own page makes the request, not one of another site or port.

    By ``Sec-Fetch-Site``, else ``Origin``; without both only reading is allowed. HTTP requests that
    act need ``X-Requested-With``, too.
    """
    acts = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
    if scope["type"] == "http" and acts and _field(scope, b"x-requested-with") != ASKED_BY:
        return False
    site = _field(scope, b"sec-fetch-site")
    if site is not None:  # the browser says; "none": somebody has opened the address
        return site == "same-origin" or (site == "none" and not acts)
    origin = _field(scope, b"origin")
    if origin is None:
        return not acts
    return same_site(origin, _field(scope, b"host") or "")


def same_site(origin: str, host: str) -> bool:
    """Whether an ``Origin`` has the host and port of a ``Host`` field."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:  # "http://["
        return False


FREE_FAILURES = 3
"""Wrong tokens of a source that cost it no time."""
FIRST_DELAY, LAST_DELAY = 0.25, 8.0
"""Seconds that the answer to the next wrong token takes; each doubles the one before."""
FORGET_SECONDS = 60.0
"""Until one wrong token is forgotten."""
MAX_SOURCES = 4096
MAX_DELAYED = 32
"""Answers that wait at a time, of all sources: one more is 429 at once."""


class Error(BaseModel):
    """What is wrong, for programs (``code``) and for people."""

    code: str
    message: str
    param: str | None = None


class Failure(BaseModel):
    """Body of every failure."""

    error: Error


_ALWAYS = {
    401: "No token, or one that is not known",
    403: "The token's role is not enough",
    413: "The body is too long",
    422: "A parameter or the body is wrong; `param` says which",
    429: "Too many: `Retry-After` says when to try again",
}
NO_CALL = {404: "There is no such call", 409: "The call's state does not allow it"}


class ApiResponse(JSONResponse):
    """JSON of whatever a telephone or a server has sent: also of text that is no Unicode."""

    def render(self, content: Any) -> bytes:
        return super().render(unicode_in(content))


class Access:
    """Recognizes tokens, and delays answers to wrong ones. Lives on the event loop.

    Args:
        tokens: those of the configuration.
    """

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self._tokens = tokens
        self.logins = Logins()
        self._failures: BoundedDict[str, tuple[int, float]] = BoundedDict(MAX_SOURCES)
        self._delayed = 0

    def token_of(self, scope: Scope) -> Token | None:
        """Return the token of a request, or the one that its console login stands for.

        A request on the Unix socket without one is an admin's, or has the role that another worker
        passes on.
        """
        given = Headers(scope=scope).get("authorization", "")
        if given:
            return recognized(given, self._tokens)
        if LOCAL in scope:
            return Token(scope[LOCAL], scope[ROLE], "")
        return self.logins.token_of(scope)

    def failed(self, source: str) -> float:
        """Count a wrong token of a source (IPv6: /64); return how long its answer is to take (s).

        0 for the first ``FREE_FAILURES``, then doubling up to ``LAST_DELAY``. One failure is
        forgotten each ``FORGET_SECONDS``.
        """
        now, source = asyncio.get_running_loop().time(), counted(source)
        count, since = self._failures.get(source, (0, now))
        count = max(0, count - int((now - since) / FORGET_SECONDS)) + 1
        self._failures[source] = count, now
        over = count - FREE_FAILURES
        if over <= 0:
            return 0.0
        if over & (over - 1) == 0:  # the first, and then ever fewer
            log.warning("api.login_failed", source=source, count=count)
        return min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(over - 1, 16))

    async def refuse(self, source: str) -> JSONResponse | None:
        """Count a wrong token and wait its delay; return None then, or a 429 at once where
        ``MAX_DELAYED`` answers wait."""
        delay = self.failed(source)
        if not delay:
            return None
        if self._delayed >= MAX_DELAYED:
            error = {"code": "too_many", "message": "too many wrong tokens"}
            return JSONResponse({"error": error}, 429, {"Retry-After": str(int(LAST_DELAY))})
        self._delayed += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self._delayed -= 1
        return None


class Throttle:
    """Delays the answer to a request with a wrong token, or answers it with 429 (ASGI)."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            given = Headers(scope=scope).get("authorization", "")
            if given and self._access.token_of(scope) is None:
                refused = await self._access.refuse((scope.get("client") or ("local", 0))[0])
                if refused is not None and scope["type"] == "http":
                    await refused(scope, receive, send)
                    return
        await self._app(scope, receive, send)


class Paths:
    """Adds paths to the application, each with the least role that may use it."""

    def __init__(self, app: FastAPI, access: Access) -> None:
        self.app = app
        self.access = access

    def add(
        self,
        method: str,
        path: str,
        role: Role,
        answer: Any = None,
        errors: Mapping[int, str] | None = None,
        **options: Any,
    ) -> Callable[[Any], Any]:
        """Return a decorator for the function that answers.

        Args:
            answer: model of the body of a success, for the description; None for any object.
            errors: what can be wrong beside the usual.
        """

        def check(request: Request) -> None:
            admit(self.access, request, role)

        told = {**_ALWAYS, **(errors or {})}
        responses: dict[int | str, Any] = {
            code: {"model": Failure, "description": told[code]} for code in sorted(told)
        }
        if answer is not None:
            responses[options.get("status_code", 200)] = {"model": answer}
        return self.app.api_route(
            path if path.startswith("/v1/") else f"/api/v1{path}",
            methods=[method],
            dependencies=[Depends(check)],
            response_class=options.pop("response_class", ApiResponse),
            response_model=None,
            responses=responses,
            openapi_extra={"x-role": role.name.lower(), "security": [{"token": []}]},
            **options,
        )


def admit(access: Access, request: HTTPConnection, role: Role) -> None:
    """Find the token of a request, for :func:`token_of`.

    Raises HTTPException: 401 where there is none that is known, 403 where its role is below
    ``role``.
    """
    token = access.token_of(request.scope)
    if token is None:
        raise HTTPException(401, UNAUTHORIZED, BEARER)
    request.state.token = token
    if token.role < role:
        raise forbidden(f"needs the role {role.name.lower()}")


def forbidden(message: str) -> HTTPException:
    """Return a 403 with the code ``forbidden``."""
    return HTTPException(403, {"code": "forbidden", "message": message})


async def deny(socket: WebSocket, refused: HTTPException) -> None:
    """Answer the handshake of a WebSocket with the error that another request would get."""
    headers = dict(refused.headers or {})
    answer = JSONResponse({"error": refused.detail}, refused.status_code, headers)
    await socket.send_denial_response(answer)


async def send_until_closed(socket: WebSocket, sending: Coroutine[Any, Any, None]) -> None:
    """Run ``sending`` until it ends, or the client closes its WebSocket.

    What the client sends is ignored. ``sending`` closes the WebSocket at its own end.
    """

    async def ignore() -> None:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass

    with suppress(WebSocketDisconnect, RuntimeError):
        await until_one_ends(sending, ignore())


def token_of(request: HTTPConnection) -> Token:
    """Return the token of a request that :func:`admit` has let pass."""
    found: Token = request.state.token
    return found


async def audited(
    backend: Backend, request: Request, name: str, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Carry out a command, and write its audit line with the result: ``ok`` or the status code.

    Raises as :func:`run`.
    """
    try:
        answer = await run(backend, name, fields)
    except HTTPException as error:
        audit(request, name, fields, str(error.status_code))
        raise
    audit(request, name, fields, "ok")
    return answer


async def once(
    backend: Backend,
    request: Request,
    key: str,
    fields: Mapping[str, Any],
    act: Callable[[], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    """Carry out a request once for each Idempotency-Key of a token; repeat the first answer.

    Without a key it is carried out. Where it is refused, the key may be used again.

    Raises as ``act``, and HTTPException: 409 while the first is under way, 422 where the key was
    another request's, 503 where the database that remembers keys is not reached.
    """
    keys = backend.request_keys
    if not key or keys is None:
        return await act()
    name = f"{token_of(request).name}\n{key}"
    try:
        state, answer = await keys.first(name, json.dumps(fields, sort_keys=True))
    except TimeoutError:
        message = "the database that remembers Idempotency-Keys is not reached"
        raise HTTPException(503, {"code": "unavailable", "message": message}) from None
    if state == "other":
        message = "this Idempotency-Key was another request's"
        raise HTTPException(422, {"code": "idempotency_key_reused", "message": message})
    if state == "same":
        if answer is None:
            message = "the first request with this Idempotency-Key is under way"
            raise HTTPException(409, {"code": "in_progress", "message": message})
        done: dict[str, Any] = json.loads(answer)
        return done
    try:
        done = await act()
    except HTTPException:
        keys.answered(name, None)
        raise
    keys.answered(name, json.dumps(done))
    return done


_TOLD = ("destination", "to", "trunk", "route", "held", "muted", "delivery", "level_of_log")
"""What of a command the log names; never words of a conversation, nor keys that are pressed."""


MAX_MESSAGE = 1000
"""Characters of an error's message."""

MAX_TOLD = 256
"""Characters of a value in an audit line."""


def audit(request: HTTPConnection, action: str, fields: Mapping[str, Any], result: str) -> None:
    """Write the audit line ``api.audit``: who has done or read what, from where, with which result.

    Of ``fields`` it has the call and those in ``_TOLD``.
    """
    token = token_of(request)
    log.info(
        "api.audit",
        who=token.name,
        role=token.role.name.lower(),
        action=action,
        call=fields.get("call", ""),
        **{
            name: value[:MAX_TOLD] if isinstance(value := fields[name], str) else value
            for name in _TOLD
            if fields.get(name) not in (None, "")
        },
        result=result,
        peer=request.client.host if request.client else "local",
    )


async def run(backend: Backend, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out a command, wait for it, and return its answer. Raises HTTPException: 404, 409."""
    with refusals(str(fields.get("call", ""))):
        answer = backend.commands[name](fields)
        if isinstance(answer, Awaitable):
            answer = await answer
    return dict(answer)


@contextmanager
def refusals(call_id: str) -> Iterator[None]:
    """Raise HTTPException for what a command on a call raises: 404 for NoCallError, else 409."""
    try:
        yield
    except NoCallError as error:
        raise no_call(call_id, str(error)) from None
    except RefusedError as error:
        raise HTTPException(409, {"code": "refused", "message": _brief(str(error))}) from None


def _brief(text: str) -> str:
    """Return a message, cut after ``MAX_MESSAGE`` characters."""
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."


def no_call(call_id: str, text: str = "") -> HTTPException:
    """Return the 404 for an unknown call, with the code ``call_not_found``."""
    message = _brief(text or f"there is no call {call_id!r}")
    return HTTPException(404, {"code": "call_not_found", "message": message})

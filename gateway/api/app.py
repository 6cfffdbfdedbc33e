# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP interface: which paths there are, who may use them, and what they answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

import structlog
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException

from gateway import __version__
from gateway.api.backend import Backend
from gateway.api.feed import MAX_FOLLOWERS
from gateway.api.hosted import add_hosted
from gateway.api.tokens import Role, Token, recognized
from gateway.control.server import RefusedError
from gateway.records.database import Filter
from gateway.text import unicode_in

MAX_BODY_BYTES = 2 * 1024 * 1024
"""An image of the largest size that a conversation takes has room in it."""
QUERY_SECONDS = 15.0
KEEP_ALIVE_SECONDS = 15.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_UNAUTHORIZED = {"code": "unauthorized", "message": "a valid bearer token is wanted"}
_BEARER = {"WWW-Authenticate": "Bearer"}

log = structlog.get_logger("api")


class Dial(BaseModel):
    """A call to place."""

    to: str
    route: str
    trunk: str = ""
    caller_id: str = ""
    variables: dict[str, str] = Field(default_factory=dict)


class Destination(BaseModel):
    """Where to transfer a call: the name of one of its route's destinations."""

    destination: str


class Text(BaseModel):
    """What the model shall say, or be asked."""

    text: str


class Question(Text):
    """What to ask the model, unheard by the caller."""

    metadata: dict[str, str] = Field(default_factory=dict)


class Message(Text):
    """A message in the conversation."""

    role: Literal["system", "user"] = "system"
    respond: bool = False


class Image(BaseModel):
    """An image in the conversation, as a data URI."""

    image: str
    text: str = ""
    respond: bool = False


def make_app(backend: Backend, tokens: tuple[Token, ...], local: bool = False) -> FastAPI:
    """Return the application. With ``local`` whoever can connect is an administrator."""
    app = FastAPI(
        title="SIP realtime gateway",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    def token_of(headers: Headers) -> Token | None:
        if local:
            return Token("local", Role.ADMIN, "")
        return recognized(headers.get("authorization", ""), tokens)

    app.add_middleware(_BodyLimit, token_of=token_of)
    _add_errors(app)
    _add_health(app, backend)

    def needs(role: Role) -> Any:
        def check(request: Request) -> Token:
            token = token_of(request.headers)
            if token is None:
                raise HTTPException(401, _UNAUTHORIZED, _BEARER)
            request.state.token = token
            if token.role < role:
                message = f"needs the role {role.name.lower()}"
                raise HTTPException(403, {"code": "forbidden", "message": message})
            return token

        return Depends(check)

    _add_queries(app, backend, needs(Role.READONLY), needs(Role.OPERATOR))
    _add_commands(app, backend, needs(Role.OPERATOR))
    _add_administration(app, backend, needs(Role.ADMIN))
    decides = any(token.role is Role.APPLICATION for token in tokens)
    if backend.applications is not None and decides:
        add_hosted(app, backend.applications, tokens)
    return app


# ---- health and metrics


def _add_health(app: FastAPI, backend: Backend) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> JSONResponse:
        """Whether the process works; true while draining."""
        problems = dict(backend.problems())
        return JSONResponse({"ok": not problems, "problems": problems}, 503 if problems else 200)

    @app.get("/readyz", tags=["health"])
    async def readyz() -> JSONResponse:
        """Whether calls should be sent here."""
        reasons = dict(backend.ready())
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(
            await backend.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


# ---- what there is


def _add_queries(app: FastAPI, backend: Backend, readonly: Any, operator: Any) -> None:
    async def query(work: Callable[[Any], Any]) -> Any:
        """Run ``work`` with the database on a thread."""
        if backend.database is None:
            return None
        database = backend.database()
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                return await asyncio.to_thread(lambda: database.exists() and work(database))
        except (SQLAlchemyError, TimeoutError, OSError):
            message = "the database of calls does not answer"
            raise HTTPException(503, {"code": "database_unavailable", "message": message}) from None
        finally:
            database.close()

    @app.get("/api/v1/status", dependencies=[readonly], tags=["gateway"])
    async def status() -> dict[str, Any]:
        """Trunks, calls, servers, refusals and costs of this process."""
        return await _run(backend, "status", {})

    @app.get("/api/v1/trunks", dependencies=[readonly], tags=["gateway"])
    async def trunks() -> dict[str, Any]:
        """Each trunk with the state of its registration."""
        return {"trunks": (await _run(backend, "status", {}))["trunks"]}

    @app.get("/api/v1/calls", dependencies=[readonly], tags=["calls"])
    async def calls(
        live: bool | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        number: str = "",
        route: str = "",
        trunk: str = "",
        direction: str = "",
        outcome: str = "",
        why: str = "",
        sip_call_id: str = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: str = "",
    ) -> dict[str, Any]:
        """Calls in progress and past ones, newest first; ``next`` is ``after`` of the next page."""
        wanted = Filter(since, until, number, route, trunk, direction, outcome, why, sip_call_id)
        current = {row["id"]: row for row in backend.live()}
        if live:
            rows = [row for row in reversed(current.values()) if _fits(row, wanted)]
            return {"calls": _json(rows[:limit]), "next": None}
        found = await query(lambda database: database.find(wanted, limit=limit, after=after)) or []
        last = found[-1]["id"] if len(found) == limit else None
        known = {row["id"] for row in found}
        rows = [{**row, **current.get(row["id"], {})} for row in found]
        if not after:
            new = [row for key, row in current.items() if key not in known and _fits(row, wanted)]
            rows = [*reversed(new), *rows] if last is None else rows
        if live is False:
            rows = [row for row in rows if row["id"] not in current]
        return {"calls": _json(rows), "next": last}

    @app.get("/api/v1/calls/{call_id}", tags=["calls"])
    async def call(call_id: str, request: Request, token: Token = readonly) -> dict[str, Any]:
        """One call, with its record and its events; what was said needs the role operator."""
        current = next((row for row in backend.live() if row["id"] == call_id), None)
        found = await query(lambda database: database.get(call_id))
        if found is None and current is None:
            raise _no_call(call_id)
        row = {"record": None, "events": [], **(found or {}), **(current or {})}
        if token.role < Role.OPERATOR:
            row["record"] = _without_words(row["record"])
        elif row["record"]:
            _audit(request, token, "read", {"call": call_id}, "ok")
        answer: dict[str, Any] = _json(row)
        return answer

    @app.get("/api/v1/calls/{call_id}/transcript", tags=["calls"])
    async def transcript(
        call_id: str, request: Request, after: int = 0, token: Token = operator
    ) -> Any:
        """What was said so far in a call in progress."""
        fields = {"call": call_id, "after": after}
        return await _audited(backend, request, token, "transcript", fields)

    @app.get("/api/v1/events", dependencies=[readonly], tags=["events"])
    async def events(request: Request) -> StreamingResponse:
        """Events of all calls as they come (Server-Sent Events); resumes by Last-Event-ID."""
        if backend.feed.followers >= MAX_FOLLOWERS:
            message = f"{MAX_FOLLOWERS} follow already"
            raise HTTPException(429, {"code": "too_many", "message": message}, {"Retry-After": "5"})
        last = request.headers.get("last-event-id", "")
        return StreamingResponse(
            _stream(backend, last),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


async def _stream(backend: Backend, last: str) -> AsyncIterator[str]:
    follower = backend.feed.follow(last)
    coming: asyncio.Task[tuple[str, Mapping[str, Any]]] | None = None
    try:
        yield ": the gateway's events\n\n"
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(follower))
            done, _ = await asyncio.wait({coming}, timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield ": still here\n\n"
                continue
            number, event = coming.result()
            coming = None
            data = json.dumps(unicode_in(dict(event)), ensure_ascii=False)
            yield f"id: {number}\nevent: {event['type']}\ndata: {data}\n\n"
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await follower.aclose()


# ---- what can be done


def _add_commands(app: FastAPI, backend: Backend, operator: Any) -> None:
    base = "/api/v1/calls/{call_id}"

    async def act(request: Request, token: Token, name: str, fields: dict[str, Any]) -> Any:
        return await _audited(backend, request, token, name, fields)

    @app.post(f"{base}/hangup", tags=["calls"])
    async def hangup(call_id: str, request: Request, token: Token = operator) -> Any:
        """End a call."""
        return await act(request, token, "hangup", {"call": call_id})

    @app.post(f"{base}/transfer", tags=["calls"])
    async def transfer(
        call_id: str, body: Destination, request: Request, token: Token = operator
    ) -> Any:
        """Transfer a call; its outcome is in the call's record and events."""
        return await act(request, token, "transfer", {"call": call_id, **body.model_dump()})

    @app.post(f"{base}/say", tags=["calls"])
    async def say(call_id: str, body: Text, request: Request, token: Token = operator) -> Any:
        """Have the model say a text."""
        return await act(request, token, "say", {"call": call_id, **body.model_dump()})

    @app.post(f"{base}/messages", tags=["calls"])
    async def messages(
        call_id: str, body: Message, request: Request, token: Token = operator
    ) -> Any:
        """Add a message to the conversation."""
        return await act(request, token, "tell", {"call": call_id, **body.model_dump()})

    @app.post(f"{base}/images", tags=["calls"])
    async def images(call_id: str, body: Image, request: Request, token: Token = operator) -> Any:
        """Add an image to the conversation."""
        return await act(request, token, "show", {"call": call_id, **body.model_dump()})

    @app.post(f"{base}/responses", tags=["calls"])
    async def responses(call_id: str, body: Text, request: Request, token: Token = operator) -> Any:
        """Have the model speak by these instructions."""
        return await act(request, token, "respond", {"call": call_id, **body.model_dump()})

    @app.post(f"{base}/query", tags=["calls"])
    async def ask(call_id: str, body: Question, request: Request, token: Token = operator) -> Any:
        """Ask the model about the call, unheard by the caller."""
        return await act(request, token, "ask", {"call": call_id, **body.model_dump()})


def _add_administration(app: FastAPI, backend: Backend, admin: Any) -> None:
    @app.post("/api/v1/calls", status_code=201, tags=["calls"])
    async def dial(body: Dial, request: Request, token: Token = admin) -> Any:
        """Place a call with a route's session."""
        answer = await _audited(backend, request, token, "dial", body.model_dump())
        return {"id": answer["call"], **answer}

    @app.get("/api/v1/webhooks/deliveries", tags=["webhooks"])
    async def deliveries(dead: bool = False, token: Token = admin) -> Any:
        """Deliveries that wait, or those that were given up."""
        del token
        found = [] if backend.webhooks is None else await backend.webhooks.deliveries(dead=dead)
        return {"deliveries": [{**asdict(one), "body": json.loads(one.body)} for one in found]}

    @app.post("/api/v1/webhooks/deliveries/{delivery_id}/resend", tags=["webhooks"])
    async def resend(delivery_id: str, request: Request, token: Token = admin) -> Any:
        """Try deliveries that were given up anew; ``*`` for all of them."""
        count = 0 if backend.webhooks is None else await backend.webhooks.resend(delivery_id)
        _audit(request, token, "resend", {}, str(count))
        if not count:
            message = f"no delivery {delivery_id!r} was given up"
            raise HTTPException(404, {"code": "delivery_not_found", "message": message})
        return {"resent": count}

    @app.post("/api/v1/drain", status_code=202, tags=["gateway"])
    async def drain(request: Request, token: Token = admin) -> Any:
        """Take no further calls, and end when those in progress are over."""
        _audit(request, token, "drain", {}, "ok")
        backend.drain()
        return {"draining": True}

    @app.post("/api/v1/reload", tags=["gateway"])
    async def reload(request: Request, token: Token = admin) -> Any:
        """Read configuration, dialplans, prices and certificates anew."""
        if backend.reload is None:
            raise HTTPException(501, {"code": "not_here", "message": "nothing can be reloaded"})
        answer = await backend.reload()
        _audit(request, token, "reload", {}, "ok" if answer.get("applied") else "kept")
        return JSONResponse(dict(answer), 200 if answer.get("applied") else 422)


async def _audited(
    backend: Backend, request: Request, token: Token, name: str, fields: dict[str, Any]
) -> Any:
    try:
        answer = await _run(backend, name, fields)
    except HTTPException as error:
        _audit(request, token, name, fields, str(error.status_code))
        raise
    _audit(request, token, name, fields, "ok")
    return answer


def _audit(
    request: Request, token: Token, name: str, fields: Mapping[str, Any], result: str
) -> None:
    log.info(
        "api.audit",
        who=token.name,
        role=token.role.name.lower(),
        action=name,
        call=fields.get("call", ""),
        result=result,
        peer=request.client.host if request.client else "local",
    )


async def _run(backend: Backend, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Carry out a command. Raises HTTPException where it is refused."""
    try:
        answer = backend.commands[name](fields)
        if isinstance(answer, Awaitable):
            answer = await answer
    except RefusedError as error:
        text = str(error)
        if text.startswith("there is no call"):
            raise _no_call(str(fields.get("call", "")), text) from None
        raise HTTPException(409, {"code": "refused", "message": text}) from None
    return dict(answer)


def _no_call(call_id: str, text: str = "") -> HTTPException:
    message = text or f"there is no call {call_id!r}"
    return HTTPException(404, {"code": "call_not_found", "message": message})


# ---- how

_WORDS = ("transcript", "timeline", "out_of_band", "digits")
"""Parts of a record that have what people said or pressed."""


def _without_words(record: Any) -> Any:
    if not isinstance(record, dict):
        return record
    return {name: value for name, value in record.items() if name not in _WORDS}


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_json(inner) for inner in value]
    return unicode_in(value) if isinstance(value, str) else value


def _fits(row: Mapping[str, Any], wanted: Filter) -> bool:
    names = ("route", "trunk", "direction", "outcome", "why", "sip_call_id")
    if any(getattr(wanted, name) not in ("", row[name]) for name in names):
        return False
    began = datetime.fromisoformat(row["invited_at"])
    if wanted.since is not None and began < wanted.since:
        return False
    if wanted.until is not None and began >= wanted.until:
        return False
    return wanted.number in ("", row["from_number"], row["to_number"])


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def refused(_request: Request, error: StarletteHTTPException) -> Response:
        detail: Any = error.detail
        if not isinstance(detail, dict):
            detail = {
                "code": "not_found" if error.status_code == 404 else "http",
                "message": detail,
            }
        return JSONResponse({"error": detail}, error.status_code, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        # Without the input, which may be private.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
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


class _BodyLimit:
    """Refuses bodies that are too long, by their length or as they come (ASGI).

    FastAPI reads a body before anything else: without a token, none is read.
    """

    def __init__(self, app: Any, token_of: Callable[[Headers], Token | None]) -> None:
        self._app = app
        self._token_of = token_of

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # What applications send is read after their token, and they have errors of their own.
        reads = scope["method"] not in ("GET", "HEAD") and not scope["path"].startswith("/v1/")
        if reads and self._token_of(headers) is None:
            refused = JSONResponse({"error": _UNAUTHORIZED}, 401, _BEARER)
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

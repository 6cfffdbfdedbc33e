# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths about calls: queries of those in progress and past ones, their events, commands."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import structlog
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from gateway.api.backend import MAX_FOLLOWERS, Backend, NoCallError, RefusedError
from gateway.api.tokens import Role, Token
from gateway.records.database import Filter
from gateway.text import unicode_in

QUERY_SECONDS = 15.0
"""For one query of the database."""
KEEP_ALIVE_SECONDS = 15.0
"""Between two lines of a stream of events."""

_WORDS = ("transcript", "timeline", "out_of_band", "digits")
"""Parts of a record that have what people said or pressed."""


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


class Recording(BaseModel):
    """What to do about the recording of a call."""

    action: Literal["start", "stop", "pause", "resume", "delete"]


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


def add_queries(app: FastAPI, backend: Backend, readonly: Any, operator: Any) -> None:
    """Add what reads calls, with the roles that may."""

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
            raise no_call(call_id)
        row = {"record": None, "events": [], **(found or {}), **(current or {})}
        if token.role < Role.OPERATOR:
            row["record"] = _without_words(row["record"])
        elif row["record"]:
            audit(request, token, "read", {"call": call_id}, "ok")
        answer: dict[str, Any] = _json(row)
        return answer

    @app.get("/api/v1/calls/{call_id}/transcript", tags=["calls"])
    async def transcript(
        call_id: str,
        request: Request,
        after: Annotated[int, Query(ge=0)] = 0,
        unmasked: bool = False,
        token: Token = operator,
    ) -> Any:
        """What was said so far in a call in progress; unmasked for the role admin."""
        if unmasked and token.role < Role.ADMIN:
            raise HTTPException(403, {"code": "forbidden", "message": "needs the role admin"})
        fields = {"call": call_id, "after": after, "unmasked": unmasked}
        if after:  # who follows a call is logged once
            return await run(backend, "transcript", fields)
        return await audited(backend, request, token, "transcript", fields)

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


def add_commands(app: FastAPI, backend: Backend, operator: Any, admin: Any) -> None:
    """Add what acts on calls, with the roles that may."""
    base = "/api/v1/calls/{call_id}"

    async def act(request: Request, token: Token, name: str, fields: dict[str, Any]) -> Any:
        return await audited(backend, request, token, name, fields)

    @app.post(f"{base}/hangup", tags=["calls"])
    async def hangup(call_id: str, request: Request, token: Token = operator) -> Any:
        """End a call."""
        return await act(request, token, "hangup", {"call": call_id})

    @app.post(f"{base}/transfer", tags=["calls"])
    async def transfer(
        call_id: str, body: Destination, request: Request, token: Token = operator
    ) -> Any:
        """Transfer a call. The outcome is at ``transfers`` and ``transfer``, and in its record."""
        return await act(request, token, "transfer", {"call": call_id, **body.model_dump()})

    @app.get(f"{base}/transfers/{{transfer}}", dependencies=[operator], tags=["calls"])
    async def transfers(call_id: str, transfer: int) -> dict[str, Any]:
        """What became of a transfer that was asked for here."""
        return await run(backend, "transfer_outcome", {"call": call_id, "transfer": transfer})

    @app.post(f"{base}/recording", tags=["calls"])
    async def recording(
        call_id: str, body: Recording, request: Request, token: Token = operator
    ) -> Any:
        """Start, stop, pause, resume or delete the recording of a call in progress."""
        return await act(request, token, "recording", {"call": call_id, **body.model_dump()})

    @app.get(f"{base}/recording", tags=["calls"])
    async def recorded(call_id: str, request: Request, token: Token = operator) -> FileResponse:
        """The recording of a call; an encrypted one as it is in the folder."""
        folder = backend.recordings
        known = folder is not None and re.fullmatch(r"[A-Za-z0-9-]{1,80}", call_id)
        found = sorted(folder.glob(f"*_{call_id}.*")) if known and folder is not None else []
        if not found:
            raise no_call(call_id, f"there is no recording of {call_id!r} here")
        audit(request, token, "recording.read", {"call": call_id}, "ok")
        kinds = {".wav": "audio/wav", ".ogg": "audio/ogg"}
        kind = kinds.get(found[0].suffix, "application/octet-stream")
        return FileResponse(found[0], media_type=kind, filename=found[0].name)

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

    @app.post("/api/v1/calls", status_code=201, tags=["calls"])
    async def dial(body: Dial, request: Request, token: Token = admin) -> Any:
        """Place a call with a route's session."""
        answer = await audited(backend, request, token, "dial", body.model_dump())
        return {"id": answer["call"], **answer}

    @app.get(f"{base}/outcome", dependencies=[operator], tags=["calls"])
    async def outcome(call_id: str) -> dict[str, Any]:
        """Whether a call that was placed is over, and its summary."""
        return await run(backend, "call", {"call": call_id})


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


log = structlog.get_logger("api")


async def audited(
    backend: Backend, request: Request, token: Token, name: str, fields: dict[str, Any]
) -> Any:
    try:
        answer = await run(backend, name, fields)
    except HTTPException as error:
        audit(request, token, name, fields, str(error.status_code))
        raise
    audit(request, token, name, fields, "ok")
    return answer


def audit(
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


async def run(backend: Backend, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Carry out a command. Raises HTTPException where it is refused."""
    try:
        answer = backend.commands[name](fields)
        if isinstance(answer, Awaitable):
            answer = await answer
    except NoCallError as error:
        raise no_call(str(fields.get("call", "")), str(error)) from None
    except RefusedError as error:
        raise HTTPException(409, {"code": "refused", "message": str(error)}) from None
    return dict(answer)


def no_call(call_id: str, text: str = "") -> HTTPException:
    message = text or f"there is no call {call_id!r}"
    return HTTPException(404, {"code": "call_not_found", "message": message})

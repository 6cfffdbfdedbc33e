# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths about the process: state, trunks, log level, drain, reload, webhooks, events, and keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import HTTPException, Query, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.types import Receive, Scope, Send

from gateway.api.access import (
    NO_CALL,
    Paths,
    admit,
    audit,
    audited,
    deny,
    run,
    send_until_closed,
    token_of,
)
from gateway.api.backend import MAX_FOLLOWERS, POSITION, Backend, EventFeed, Role
from gateway.api.calls import Term, part
from gateway.api.connections import HOP, LOCAL
from gateway.api.siblings import Siblings, merged
from gateway.text import unicode_in

KEEP_ALIVE_SECONDS = 15.0
"""Between two lines of a stream of events."""
EventId = Annotated[str, StringConstraints(max_length=4096)]
Limit = Annotated[int, Query(ge=1, le=1000)]


class Trunk(BaseModel):
    """A trunk, its registration and what it answers to OPTIONS."""

    model_config = ConfigDict(extra="allow")
    name: str
    state: str
    last_error: str
    options: str
    calls: int


class Trunks(BaseModel):
    """A page of trunks."""

    trunks: list[Trunk]
    next: str | None


class Deliveries(BaseModel):
    """A page of deliveries to webhooks."""

    deliveries: list[dict[str, Any]]
    next: str | None


class Level(BaseModel):
    """The least level of lines in the log, until the next start."""

    level: Literal["debug", "info", "warning", "error"]


class Reloaded(BaseModel):
    """What a reload has changed, what needs a restart, and why all was kept."""

    applied: bool
    changed: list[str]
    restart_required: list[str]
    problems: list[str]


class Expiry(BaseModel):
    """Lifetime of a key (s)."""

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=10, le=7200)] = 600


class ClientSecret(BaseModel):
    """Whose session a browser gets, and for how long its key is good."""

    route: Term
    expires_after: Expiry = Field(default_factory=Expiry)


def add_administration(paths: Paths, backend: Backend, siblings: Siblings) -> None:
    """Add the paths about the process, its webhooks and its events."""

    @paths.add("GET", "/status", Role.READONLY, tags=["gateway"])
    async def get_status() -> Any:
        """Trunks, calls, servers, refusals and costs of this process."""
        return await run(backend, "status", {})

    @paths.add("GET", "/here", Role.READONLY, tags=["gateway"])
    async def get_here(call: Term) -> Any:
        """Whether a call of this id, part of one or Call-ID is known to this worker."""
        return {"here": backend.here(call)}

    @paths.add("GET", "/refused", Role.OPERATOR, errors=NO_CALL, tags=["gateway"])
    async def get_refused(call: Term) -> Any:
        """Why an INVITE with this SIP Call-ID was refused before any route, if it was lately."""
        return await run(backend, "refused", {"call": call})

    @paths.add("GET", "/trunks", Role.READONLY, Trunks, tags=["gateway"])
    async def list_trunks(limit: Limit = 100, after: Term = "") -> Any:
        """Each trunk with the state of its registration."""
        found = part((await run(backend, "status", {}))["trunks"], "name", limit, after)
        return {"trunks": found[0], "next": found[1]}

    unknown = {404: "There is no such trunk", 409: "It does not register"}

    @paths.add("POST", "/trunks/{name}/register", Role.OPERATOR, errors=unknown, tags=["gateway"])
    async def register(name: Term, request: Request) -> Any:
        """Register at a trunk now, whatever it waits for."""
        return await audited(backend, request, "register", {"trunk": name})

    @paths.add("GET", "/log", Role.READONLY, Level, tags=["gateway"])
    async def get_log_level() -> Any:
        """The level of the log."""
        return await run(backend, "log", {})

    @paths.add("PUT", "/log", Role.ADMIN, Level, tags=["gateway"])
    async def set_log_level(body: Level, request: Request) -> Any:
        """Change the level of the log, until the next start."""
        answer = await run(backend, "log", {"level": body.level})
        audit(request, "log", {"level_of_log": body.level}, "ok")
        return answer

    @paths.add("POST", "/drain", Role.ADMIN, status_code=202, tags=["gateway"])
    async def drain(request: Request) -> Any:
        """Take no further calls, and end when those in progress are over."""
        audit(request, "drain", {}, "ok")
        backend.drain()
        return {"draining": True}

    @paths.add("POST", "/reload", Role.ADMIN, Reloaded, tags=["gateway"])
    async def reload(request: Request) -> Any:
        """Read configuration, dialplans, prices and certificates anew; 422 where one is wrong."""
        if backend.reload is None:
            raise HTTPException(501, {"code": "not_here", "message": "nothing can be reloaded"})
        answer = await backend.reload()
        audit(request, "reload", {}, "ok" if answer.get("applied") else "kept")
        return JSONResponse(unicode_in(dict(answer)), 200 if answer.get("applied") else 422)

    @paths.add("GET", "/canaries", Role.READONLY, tags=["gateway"])
    async def list_canaries() -> Any:
        """Routes with a canary: whether it runs, and the figures of both sides."""
        return await run(backend, "canaries", {})

    @paths.add("POST", "/canaries/{route}/{action}", Role.OPERATOR, tags=["gateway"])
    async def set_canary(route: Term, action: Literal["stop", "start"], request: Request) -> Any:
        """Stop a canary, or start it with its figures anew."""
        told = {"route": route, "who": token_of(request).name}
        return await audited(backend, request, f"canary_{action}", told)

    @paths.add("POST", "/v1/realtime/client_secrets", Role.OPERATOR, errors=NO_CALL, tags=["calls"])
    async def client_secret(body: ClientSecret, request: Request) -> Any:
        """A short-lived key for a browser that talks to the provider itself, with the session of a
        route."""
        return await audited(backend, request, "client_secret", body.model_dump())

    _add_webhooks(paths, backend)
    _add_events(paths, backend.feed, siblings)


def _add_webhooks(paths: Paths, backend: Backend) -> None:
    """Add the paths that list deliveries to webhooks, and send those that were given up again."""

    @paths.add("GET", "/webhooks/deliveries", Role.ADMIN, Deliveries, tags=["webhooks"])
    async def list_deliveries(dead: bool = False, limit: Limit = 100, after: Term = "") -> Any:
        """Deliveries that wait, or those that were given up."""
        found = [] if backend.webhooks is None else await backend.webhooks.deliveries(dead=dead)
        rows = [{**asdict(one), "body": json.loads(one.body)} for one in found]
        page = part(rows, "id", limit, after)
        return {"deliveries": page[0], "next": page[1]}

    @paths.add(
        "POST",
        "/webhooks/deliveries/{delivery_id}/resend",
        Role.ADMIN,
        errors={404: "No such delivery was given up"},
        tags=["webhooks"],
    )
    async def resend(delivery_id: Term, request: Request) -> Any:
        """Try deliveries that were given up anew; ``*`` for all of them."""
        count = 0 if backend.webhooks is None else await backend.webhooks.resend(delivery_id)
        audit(request, "resend", {"delivery": delivery_id}, str(count))
        if not count:
            message = f"no delivery {delivery_id!r} was given up"
            raise HTTPException(404, {"code": "delivery_not_found", "message": message})
        return {"resent": count}


def _add_events(paths: Paths, feed: EventFeed, siblings: Siblings) -> None:
    """Add the path that streams events, as Server-Sent Events or WebSocket."""

    @paths.add("GET", "/events", Role.READONLY, tags=["events"], response_class=StreamingResponse)
    async def follow_events(request: Request, after: EventId = "") -> Any:
        """Events of all calls as they come (Server-Sent Events), or as a WebSocket of JSON texts.

        Resumes behind the id in ``Last-Event-ID`` or ``after``, of the stream or, of the WebSocket,
        in a text's ``last_event_id``; ``feed.gap`` says that events are missing. Those of all
        workers come, and an id is good at each of them.
        """
        last = request.headers.get("last-event-id", "") or after
        return _EventStream(feed, siblings, request, last)

    @paths.app.websocket("/api/v1/events")
    async def events_socket(socket: WebSocket, after: str = "") -> None:
        try:
            admit(paths.access, socket, Role.READONLY)
        except HTTPException as refused:
            await deny(socket, refused)
            return
        if not feed.join():
            await socket.send_denial_response(_full())
            return
        try:
            await socket.accept()
            last = socket.headers.get("last-event-id", "") or after
            await send_until_closed(socket, _send_events(feed, siblings, socket, last))
        finally:
            feed.leave()


def _full() -> JSONResponse:
    """Return the 429 for a follower above ``MAX_FOLLOWERS``."""
    error = {"code": "too_many", "message": f"{MAX_FOLLOWERS} follow already"}
    return JSONResponse({"error": error}, 429, {"Retry-After": "5"})


class _EventStream(StreamingResponse):
    """Server-Sent Events to a follower, whose place is taken and given back here."""

    def __init__(self, feed: EventFeed, siblings: Siblings, request: Request, last: str) -> None:
        super().__init__(
            _stream(feed, siblings, request, last),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._feed.join():
            await _full()(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.leave()


async def _send_events(feed: EventFeed, siblings: Siblings, socket: WebSocket, last: str) -> None:
    """Send events to a WebSocket as JSON texts until the gateway ends; then close it with 1012."""
    ending = feed.ending[LOCAL in socket.scope]
    async for number, event in _numbered(_followed(feed, siblings, last), ending):
        if number:
            told = json.dumps({"last_event_id": number, **event}, ensure_ascii=False)
            await socket.send_text(told)
    await socket.close(1012)


async def _stream(
    feed: EventFeed, siblings: Siblings, request: Request, last: str
) -> AsyncIterator[str]:
    """Yield events as Server-Sent Events, a comment each ``KEEP_ALIVE_SECONDS`` without one.

    To another worker (``HOP``) only those of this one, after one that says the position.
    """
    alone = HOP in request.headers
    follower = _followed(feed, siblings, last, alone=alone)
    if alone or not siblings.sockets:
        yield ": the gateway's events\n\n"
    if alone:
        position = json.dumps({"type": POSITION})
        yield f"id: {feed.position(last)}\nevent: {POSITION}\ndata: {position}\n\n"
    async for number, event in _numbered(follower, feed.ending[LOCAL in request.scope]):
        if number:
            data = json.dumps(event, ensure_ascii=False)
            yield f"id: {number}\nevent: {event['type']}\ndata: {data}\n\n"
        else:
            yield ": still here\n\n"


Follower: TypeAlias = AsyncGenerator[tuple[str, Mapping[str, Any]], None]


def _followed(feed: EventFeed, siblings: Siblings, last: str, *, alone: bool = False) -> Follower:
    """Return id and event of all workers; of this one only if ``alone`` or there are no others."""
    if alone or not siblings.sockets:
        return feed.follow(last)
    return merged(feed, siblings, last)


async def _numbered(
    follower: Follower, ending: asyncio.Event
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield id and event until ``ending`` is set, and close ``follower`` at the end.

    An empty id and event where none has come for ``KEEP_ALIVE_SECONDS``.
    """
    ended = asyncio.ensure_future(ending.wait())
    coming: asyncio.Task[Any] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(follower))
            done, _ = await asyncio.wait(
                {coming, ended}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if ended in done:
                return
            if not done:
                yield "", {}
                continue
            number, event = coming.result()
            coming = None
            yield number, unicode_in(dict(event))
    finally:
        waiting = [ended] if coming is None else [ended, coming]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await follower.aclose()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths about calls: queries of those in progress and past ones, exports, commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, HTTPException, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.exc import SQLAlchemyError

from gateway.api.access import (
    NO_CALL,
    Paths,
    audit,
    audited,
    forbidden,
    no_call,
    once,
    refusals,
    run,
    token_of,
)
from gateway.api.backend import Backend, Role
from gateway.api.connections import HOP
from gateway.api.siblings import Siblings
from gateway.records.database import Filter
from gateway.records.report import export_lines

QUERY_SECONDS = 15.0
"""For one query of the database."""
_THREADS = ThreadPoolExecutor(4, "queries")
"""Of their own: a database that hangs takes none from other work of the process."""
EXPORTED_AT_ONCE = 200
"""Rows of an export that are fetched together."""

_WORDS = ("transcript", "timeline", "out_of_band", "digits")
"""Parts of a record that have what people said or pressed."""
_DATABASE = {503: "The database of calls does not answer"}


def _utc(value: datetime) -> datetime:
    """Return the time in UTC. Raises ValueError where its zone leads out of the calendar."""
    try:
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


def _plain(value: str) -> str:
    """Return a text as it is. Raises ValueError for one with a NUL."""
    if "\0" in value:
        raise ValueError("has a character that no call has")
    return value


Time = Annotated[datetime, AfterValidator(_utc)]
"""ISO 8601, in UTC where it has no zone."""
Term = Annotated[str, StringConstraints(max_length=256), AfterValidator(_plain)]
"""What a column is compared with."""
CallId = Annotated[
    str,
    Path(description="The id of a call, its beginning or end if no other has it, or its Call-ID"),
    AfterValidator(_plain),
]


class Row(BaseModel):
    """A call, in progress or past. There are more fields: see the records."""

    model_config = ConfigDict(extra="allow")
    id: str
    sip_call_id: str
    direction: Literal["inbound", "outbound"]
    state: str
    from_number: str
    from_name: str = ""
    to_number: str
    trunk: str
    route: str
    invited_at: datetime
    answered_at: datetime | None
    ended_at: datetime | None
    outcome: str
    why: str


class Rows(BaseModel):
    """A page of calls; ``next`` is ``after`` of the next page, null on the last one."""

    calls: list[Row]
    next: str | None


class Whole(Row):
    """A call with its record, of which operators see what was said, and its events."""

    record: dict[str, Any] | None
    events: list[dict[str, Any]]
    explanation: list[str]


class Spoken(BaseModel):
    """Entries of a transcript; ``count`` is ``after`` of the next question."""

    call: str
    dropped: int
    count: int
    transcript: list[dict[str, Any]]


class Progress(BaseModel):
    """A call in progress: its record, with what has come of timeline and transcript."""

    call: dict[str, Any]


class Done(BaseModel):
    """The id of the call that a command was carried out for."""

    model_config = ConfigDict(extra="allow")
    call: str


class Dial(BaseModel):
    """A call to place."""

    to: Term
    route: Term
    trunk: Term = ""
    caller_id: Term = ""
    variables: dict[str, str] = Field(default_factory=dict)


class Destination(BaseModel):
    """Where to transfer a call: a destination of its route, by its name or by a number that it
    allows. Left out, it is the first. ``briefing`` is told to whoever answers, where the route has
    them briefed."""

    destination: Term = ""
    briefing: str = ""


class Disposition(BaseModel):
    """How a call went."""

    disposition: Term


class Recording(BaseModel):
    """What to do about the recording of a call."""

    action: Literal["start", "stop", "pause", "resume", "delete"]


class Text(BaseModel):
    """What the model shall say, or be asked."""

    text: str


class Question(Text):
    """What to ask the model, unheard by the caller."""

    metadata: dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(default_factory=dict)


class Message(Text):
    """A message in the conversation."""

    role: Literal["system", "user"] = "system"
    respond: bool = False


class Image(BaseModel):
    """An image in the conversation, as a data URI."""

    image: str
    text: str = ""
    respond: bool = False


class Keys(BaseModel):
    """DTMF digits; w is a pause of half a second, W of a second, a comma of two."""

    digits: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Nothing(BaseModel):
    """No body is needed."""


class _Wanted:
    """The filters of a list of calls, as parameters."""

    def __init__(
        self,
        since: Time | None = None,
        until: Time | None = None,
        number: Term = "",
        route: Term = "",
        trunk: Term = "",
        direction: Literal["", "inbound", "outbound"] = "",
        outcome: Term = "",
        why: Term = "",
        sip_call_id: Term = "",
    ) -> None:
        self.filter = Filter(
            since, until, number, route, trunk, direction, outcome, why, sip_call_id
        )


def add_calls(paths: Paths, backend: Backend, siblings: Siblings) -> None:
    """Add the paths that read calls of all workers and past ones, and that act on calls."""
    _add_queries(paths, backend, siblings)
    _add_commands(paths, backend)


def _add_queries(paths: Paths, backend: Backend, siblings: Siblings) -> None:
    """Add the paths that read calls, past and in progress."""

    @paths.add("GET", "/calls", Role.READONLY, Rows, _DATABASE, tags=["calls"])
    async def list_calls(
        request: Request,
        wanted: Annotated[_Wanted, Depends()],
        live: bool | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Term = "",
    ) -> Any:
        """Calls in progress and past ones, newest first; ``next`` is ``after`` of the next page."""
        live_rows = backend.live()
        if HOP not in request.headers:
            live_rows += await siblings.live()
            live_rows.sort(key=lambda row: str(row["invited_at"]))
        current = {row["id"]: row for row in live_rows}
        fitting = [row for row in reversed(current.values()) if _fits(row, wanted.filter)]
        if live:
            return {"calls": (page := part(fitting, "id", limit, after))[0], "next": page[1]}
        rows = await _query(backend, lambda one: one.find(wanted.filter, limit=limit, after=after))
        rows = rows or []
        last = rows[-1]["id"] if len(rows) == limit else None
        known = {row["id"] for row in rows}
        rows = [{**row, **current.get(row["id"], {})} for row in rows]
        if not after:
            # Their rows are on their way to the database.
            rows = [*(row for row in fitting if row["id"] not in known), *rows]
        if live is False:
            rows = [row for row in rows if row["id"] not in current]
        return {"calls": rows, "next": last}

    @paths.add(
        "GET",
        "/calls/export",
        Role.READONLY,
        errors=_DATABASE,
        tags=["calls"],
        response_class=StreamingResponse,
    )
    async def export_calls(
        request: Request,
        wanted: Annotated[_Wanted, Depends()],
        form: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
    ) -> Any:
        """All calls that fit, oldest first, as JSON Lines or CSV, as they are read."""
        audit(request, "export", {}, "ok")
        lines = _lines(backend, wanted.filter, form)
        first = await anext(lines)  # raises before the answer begins
        kinds = {"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8"}
        return StreamingResponse(_chained(first, lines), media_type=kinds[form])

    @paths.add("GET", "/calls/{call_id}", Role.READONLY, Whole, NO_CALL | _DATABASE, tags=["calls"])
    async def get_call(call_id: CallId, request: Request) -> Any:
        """One call: legs, state, quality, cost and events; its words need the role operator."""
        current = _named(backend.live(), call_id)
        call_id = call_id if current is None else current["id"]
        found = await _query(backend, lambda one: one.get(call_id))
        if found is None and current is None:
            raise no_call(call_id)
        row = {"record": None, "events": [], **(found or {}), **(current or {})}
        if current is not None:
            row["record"] = backend.record(call_id)
        row["explanation"] = (row["record"] or row).get("explanation", [])
        if token_of(request).role < Role.OPERATOR:
            row["record"] = _without_words(row["record"])
        elif row["record"]:
            audit(request, "read", {"call": call_id}, "ok")
        return row

    @paths.add("GET", "/calls/{call_id}/transcript", Role.OPERATOR, Spoken, NO_CALL, tags=["calls"])
    async def get_transcript(
        call_id: CallId,
        request: Request,
        after: Annotated[int, Query(ge=0)] = 0,
        unmasked: bool = False,
    ) -> Any:
        """What was said in a call, so far; of one in progress unmasked for the role admin."""
        if unmasked and token_of(request).role < Role.ADMIN:
            raise forbidden("needs the role admin")
        fields = {"call": call_id, "after": after, "unmasked": unmasked}
        try:
            if after:  # who follows a call is logged once
                return await run(backend, "transcript", fields)
            return await audited(backend, request, "transcript", fields)
        except HTTPException as error:
            row = await _query(backend, lambda one: one.get(call_id))
            if error.status_code != 404 or unmasked or not row or not row["record"]:
                raise
            audit(request, "read", {"call": row["id"]}, "ok")
            said, dropped = (row["record"].get(f"transcript{of}") for of in ("", "_dropped"))
            count = len(said or ())
            told = {"call": row["id"], "dropped": dropped or 0, "count": count}
            return {**told, "transcript": (said or [])[after:]}

    @paths.add("GET", "/calls/{call_id}/progress", Role.OPERATOR, Progress, NO_CALL, tags=["calls"])
    async def get_progress(
        call_id: CallId,
        request: Request,
        place: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
        spoken: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    ) -> Any:
        """A call in progress: its record, the timeline from ``place`` on, which the last answer
        named, and the transcript from entry ``spoken`` on."""
        if backend.progress is None:
            raise no_call(call_id)
        with refusals(call_id):
            told = backend.progress(call_id, place, spoken)
        if not place:  # who watches a call is logged once
            audit(request, "read", {"call": told["call_id"]}, "ok")
        return {"call": told}

    path = "/calls/{call_id}/transfers/{transfer}"

    @paths.add("GET", path, Role.OPERATOR, errors=NO_CALL, tags=["calls"])
    async def get_transfer(call_id: CallId, transfer: int) -> Any:
        """What became of a transfer that was asked for by the API."""
        return await run(backend, "transfer_outcome", {"call": call_id, "transfer": transfer})

    @paths.add("GET", "/calls/{call_id}/outcome", Role.OPERATOR, errors=NO_CALL, tags=["calls"])
    async def get_outcome(call_id: CallId) -> Any:
        """Whether a call that was placed by the API is over, and its summary."""
        return await run(backend, "call", {"call": call_id})


async def _query(backend: Backend, work: Callable[[Any], Any]) -> Any:
    """Return what ``work`` finds in the database, on a thread; None without a database.

    Raises as :func:`_asked`.
    """
    if backend.database is None:
        return None
    database = backend.database()
    try:
        return await _asked(lambda: work(database) if database.exists() else None)
    finally:
        database.close()


async def _asked(work: Callable[[], Any]) -> Any:
    """Run a query on a thread. Raises HTTPException (503) where the database does not answer within
    ``QUERY_SECONDS``."""
    try:
        async with asyncio.timeout(QUERY_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(_THREADS, work)
    except (SQLAlchemyError, TimeoutError, OSError):
        message = "the database of calls does not answer"
        raise HTTPException(503, {"code": "database_unavailable", "message": message}) from None


async def _lines(backend: Backend, wanted: Filter, form: str) -> AsyncIterator[str]:
    """Yield parts of an export, ``EXPORTED_AT_ONCE`` lines each; the last one is empty.

    Raises as :func:`_asked`.
    """
    database = None if backend.database is None else backend.database()
    try:
        there = database is not None and await _asked(database.exists)
        lines = export_lines(database.each(wanted) if database is not None and there else (), form)
        while some := await _asked(lambda: list(islice(lines, EXPORTED_AT_ONCE))):
            yield "".join(some)
        yield ""
    finally:
        if database is not None:
            database.close()


async def _chained(first: str, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield ``first``, then the rest."""
    yield first
    async for one in lines:
        yield one


_COMMANDS: tuple[tuple[str, str, type[BaseModel], Mapping[str, Any], str], ...] = (
    ("hangup", "hangup", Nothing, {}, "End a call."),
    (
        *("transfer", "transfer", Destination, {}),
        "Transfer a call, to people as a rule. The outcome is at ``transfers`` with the answer's "
        "``transfer``, and in the record.",
    ),
    ("hold", "hold", Nothing, {"held": True}, "Play music to the caller until ``unhold``."),
    ("unhold", "hold", Nothing, {"held": False}, "Take the caller back from hold."),
    ("mute", "mute", Nothing, {"muted": True}, "Let the model hear silence, not the caller."),
    ("unmute", "mute", Nothing, {"muted": False}, "Let the model hear the caller again."),
    ("dtmf", "dtmf", Keys, {}, "Send DTMF digits to the caller's side."),
    (
        *("recording", "recording", Recording, {}),
        "Start, stop, pause, resume or delete the recording of a call in progress.",
    ),
    ("disposition", "disposition", Disposition, {}, "Note how a call in progress went."),
    ("black_box", "black_box", Nothing, {}, "Keep the black box of a call in progress at its end."),
    ("say", "say", Text, {}, "Have the model say a text."),
    ("messages", "send_message", Message, {}, "Add a message to the conversation."),
    ("images", "send_image", Image, {}, "Add an image to the conversation."),
    ("responses", "create_response", Text, {}, "Have the model speak by these instructions."),
    ("responses/cancel", "cancel", Nothing, {}, "Stop what the model says."),
    ("query", "query", Question, {}, "Ask the model about the call, unheard by the caller."),
)
"""Below a call: path, command, body, what the command gets beside it, and a description."""


def _add_commands(paths: Paths, backend: Backend) -> None:
    """Add the paths that act on calls in progress."""

    def add(path: str, name: str, model: Any, more: Mapping[str, Any], text: str) -> None:
        async def act(call_id: CallId, request: Request, body: Any = None) -> Any:
            given = {} if body is None else body.model_dump()
            return await audited(backend, request, name, {"call": call_id, **given, **more})

        act.__annotations__["body"] = model if model.model_fields else model | None
        act.__name__, act.__doc__ = path.replace("/", "_"), text
        if any(one.is_required() for one in model.model_fields.values()):
            act.__defaults__ = ()
        paths.add(
            "POST", f"/calls/{{call_id}}/{path}", Role.OPERATOR, Done, NO_CALL, tags=["calls"]
        )(act)

    for command in _COMMANDS:
        add(*command)

    @paths.add(
        "POST",
        "/calls",
        Role.ADMIN,
        errors={**NO_CALL, 503: "The database of keys does not answer"},
        status_code=201,
        tags=["calls"],
    )
    async def dial(
        body: Dial,
        request: Request,
        key: Annotated[str, Header(alias="Idempotency-Key", max_length=200)] = "",
    ) -> Any:
        """Place a call with a route's session; once for each Idempotency-Key, if given."""
        fields = body.model_dump()

        async def place() -> dict[str, Any]:
            answer = await audited(backend, request, "dial", fields)
            return {"id": answer["call"], **answer}

        return await once(backend, request, key, fields, place)


def part(rows: list[Any], key: str, limit: int, after: str) -> tuple[list[Any], str | None]:
    """Return a page of a whole list, and the key of the page's last row; None if no more follow.

    It begins behind the row whose ``key`` is ``after``, or at the first where none is.
    """
    keys = [row[key] for row in rows]
    first = keys.index(after) + 1 if after in keys else 0
    found = rows[first : first + limit]
    return found, found[-1][key] if first + limit < len(rows) and found else None


def _named(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Return the row of the call whose id is ``name``, else begins so, else ends so, else the
    newest with that Call-ID; None for none, and where several ids fit."""
    for fits in (str.__eq__, str.startswith, str.endswith):
        if found := [row for row in rows if fits(row["id"], name)]:
            return found[0] if len(found) == 1 else None
    return next((row for row in reversed(rows) if row["sip_call_id"] == name), None)


def _without_words(record: Any) -> Any:
    """Return a record without transcript, timeline, digits and out-of-band responses."""
    if not isinstance(record, dict):
        return record
    return {name: value for name, value in record.items() if name not in _WORDS}


def _fits(row: Mapping[str, Any], wanted: Filter) -> bool:
    """Whether the row of a call in progress passes a filter, as the database applies it to rows."""
    names = ("route", "trunk", "direction", "outcome", "why", "sip_call_id")
    if any(getattr(wanted, name) not in ("", row[name]) for name in names):
        return False
    began = datetime.fromisoformat(row["invited_at"])
    if wanted.since is not None and began < wanted.since:
        return False
    if wanted.until is not None and began >= wanted.until:
        return False
    return wanted.number in ("", row["from_number"], row["to_number"])

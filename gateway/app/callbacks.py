# SPDX-License-Identifier: GPL-2.0-or-later
"""Callbacks: accepts them from the model, keeps them in the database, places them when due."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from random import uniform
from typing import Any, Protocol, TypeVar

import structlog

from gateway.bridge.legs import DialRefusedError
from gateway.call.call_record import CallRecord
from gateway.call.tools import definitions
from gateway.call.tools.commands import SchedulePlan
from gateway.call.tools.definitions import NUMBER
from gateway.config.sections import CallbackSettings
from gateway.config.values import shown
from gateway.dialplan import Route
from gateway.planning.route_tools import plan_of
from gateway.records import shared
from gateway.tasks import TaskSet, wait_any
from gateway.text import printable
from gateway.tools import Function, ToolCall, ToolError
from gateway.tools.http import HttpClient, Request

MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Rules:
    """What a route allows: see :class:`gateway.dialplan.tool_sections.ScheduleCallback`."""

    route: str
    """Of the call to be placed."""
    trunk: str
    allow: re.Pattern[str] | None
    max_days: int
    zone: tzinfo | None
    """Of times that name no offset; None is the machine's."""


@dataclass(frozen=True, slots=True)
class ScheduledCallback:
    """A call to be placed at its time."""

    id: str
    at: str
    """UTC, ISO 8601."""
    number: str
    route: str
    trunk: str
    reason: str
    call: str
    """In which it was scheduled."""
    tries: int = 0

    @property
    def due(self) -> datetime:
        """Time of the call, in UTC."""
        return datetime.fromisoformat(self.at)

    def as_json(self) -> dict[str, Any]:
        """Return it for the operator's service and ``gateway status``."""
        return asdict(self)


def callback_of(
    given: dict[str, Any], rules: Rules, caller: str, call: str, now: datetime
) -> tuple[ScheduledCallback, str]:
    """Return the callback that the model asks for, and its local time as text.

    Its id is number and route: a later callback to the same replaces an earlier one.

    Args:
        given: arguments that fit the tool's schema.
        caller: the number that calls now, as the route's variable ``from`` has it.
        call: the id of that call.
        now: with a time zone.

    Raises ToolError, with what is wrong.
    """
    due = _time(str(given["at"]), rules, now)
    number = _number(str(given.get("number") or ""), rules, caller)
    # One call to a number: a later callback takes the place of an earlier one.
    callback = ScheduledCallback(
        id=f"{number}/{rules.route}",
        at=due.astimezone(UTC).isoformat(timespec="seconds"),
        number=number,
        route=rules.route,
        trunk=rules.trunk,
        reason=printable(" ".join(str(given.get("reason") or "").split()))[:MAX_REASON],
        call=call,
    )
    return callback, f"{due.astimezone(rules.zone):%Y-%m-%d %H:%M}"


def _time(text: str, rules: Rules, now: datetime) -> datetime:
    """Parse the ISO 8601 time of a callback, in the route's zone where it has no offset.

    Raises ToolError for text that is no time, for the past, and beyond ``max_days``.
    """
    try:
        due = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ToolError(f"at: {text!r} is no time; write it like 2026-11-20T14:30") from None
    if due.tzinfo is None:
        due = due.astimezone() if rules.zone is None else due.replace(tzinfo=rules.zone)
    if due <= now:
        local = now.astimezone(rules.zone)
        raise ToolError(f"at: {text} is in the past; it is {local:%Y-%m-%dT%H:%M} now")
    if due > now + timedelta(days=rules.max_days):
        raise ToolError(f"at: {text} is too far ahead, at most {rules.max_days} days")
    return due


def _number(wanted: str, rules: Rules, caller: str) -> str:
    """Return the number to call back, without separators: ``wanted``, else the caller's.

    Raises ToolError where it is none, or is not the caller's and ``rules.allow`` does not fit it.
    """
    number = _plain(wanted) or _plain(caller)
    if not NUMBER.fullmatch(number) or not any(char.isdigit() for char in number):
        raise ToolError(
            f"number: {wanted!r} is no telephone number"
            if wanted
            else "number: the caller's is not known; ask for it"
        )
    if number != _plain(caller) and not (rules.allow and rules.allow.fullmatch(number)):
        raise ToolError(f"number: {number} may not be called; the caller's own may")
    return number


def _plain(number: str) -> str:
    """Return a telephone number without spaces, brackets, dots, slashes and hyphens."""
    return re.sub(r"[\s()./-]", "", number)


log = structlog.get_logger("callbacks")

T = TypeVar("T")

_FIELDS = {field.name for field in fields(ScheduledCallback)}


class Run(Protocol):
    """Carries out an operation in a transaction of the database."""

    def __call__(self, operation: Callable[[Any], T], /) -> Awaitable[T]:
        """Return what it returns; raises what it raises, or that the database is not reached."""


class Store:
    """The table of callbacks, which all processes on the database share.

    Args:
        run: carries out an operation there.
        holder: the name of this process.
    """

    def __init__(self, run: Run, holder: Callable[[], str]) -> None:
        self._run = run
        self._holder = holder

    async def put(self, callback: ScheduledCallback, most: int) -> str:
        """Write a callback: ``new``, or ``replaced`` for one of its id, with tries at 0.

        ``full``, and nothing written, where ``most`` wait already and it is a new one.
        """
        row = _row_of(callback)
        return await self._run(lambda connection: shared.put_callback(connection, row, most))

    async def claim(self, now: datetime) -> list[ScheduledCallback]:
        """Claim callbacks that are due and not claimed, 20 at most, for ``CLAIM_SECONDS``.

        ``tries`` of each is one more.
        """
        at, holder = now.timestamp(), self._holder()
        rows = await self._run(
            lambda connection: shared.claim_callbacks(connection, holder, at, CLAIM_SECONDS)
        )
        return [_callback_of(row) for row in rows]

    async def keep(self, callback: ScheduledCallback, now: datetime) -> bool:
        """Extend a claim to ``CLAIM_SECONDS`` from now; False, and nothing, if it was replaced or
        claimed by another process."""
        row, until = _row_of(callback), now.timestamp() + CLAIM_SECONDS
        return await self._run(
            lambda connection: shared.keep_callback(connection, self._holder(), row, until)
        )

    async def retry(self, callback: ScheduledCallback, due: datetime) -> None:
        """Release a claim, for another attempt at ``due``; nothing if it is no longer ours."""
        row, at = _row_of(callback), due.timestamp()
        await self._run(
            lambda connection: shared.retry_callback(connection, self._holder(), row, at)
        )

    async def drop(self, callback: ScheduledCallback) -> None:
        """Delete a callback that this process has claimed; nothing if it was replaced meanwhile."""
        row = _row_of(callback)
        await self._run(lambda connection: shared.drop_callback(connection, self._holder(), row))

    async def pending(self, now: datetime) -> tuple[int, list[ScheduledCallback], float | None]:
        """Return how many callbacks there are, the first ``SHOWN``, and when the next is due.

        Unix time (s) of the next one that is not claimed; None without one.
        """

        def look(connection: Any) -> tuple[int, list[dict[str, Any]], float | None]:
            count, rows = shared.pending_callbacks(connection, SHOWN)
            return count, rows, shared.next_due(connection, now.timestamp())

        count, rows, due = await self._run(look)
        return count, [_callback_of(row) for row in rows], due


def _row_of(callback: ScheduledCallback) -> dict[str, Any]:
    """Return the database row of a callback: ``at`` as a time, ``due`` in Unix time (s)."""
    row = {**callback.as_json(), "at": callback.due, "due": callback.due.timestamp()}
    row["call_id"] = row.pop("call")
    return row


def _callback_of(row: Mapping[str, Any]) -> ScheduledCallback:
    """Return the callback of a database row, with its time in UTC."""
    known = {**row, "call": row["call_id"]}
    known["at"] = row["at"].astimezone(UTC).isoformat()
    return ScheduledCallback(**{name: known[name] for name in _FIELDS})


AGAIN_SECONDS = 60.0
"""From the first try to the second: nobody answered, or a cap did not allow the call. Each further
wait is double, and up to a quarter longer."""

LONGEST_AGAIN_SECONDS = 900.0

MAX_TRIES = 12
"""Attempts of one callback."""

LONGEST_SLEEP = 10.0
"""Seconds; due times are wall-clock times, and that clock may be set meanwhile; and other processes
leave callbacks behind."""

SHOWN = 20
"""Callbacks that ``gateway status`` lists."""


CLAIM_SECONDS = 30.0
"""A claim expires after so long (s) unless it is renewed, every ``HOLD_SECONDS``: then another
process may place the callback."""

HOLD_SECONDS = 10.0

LOOK_SECONDS = 0.2
"""How often a call that is placed is looked at: one that was answered is not placed again."""

STORE_SECONDS = 5.0
AGAIN_THERE_SECONDS = 3.0
"""From the database's return to the first claim."""


class Dial(Protocol):
    """Places a call: :meth:`gateway.app.outbound_calls.OutboundCalls.place`."""

    async def __call__(
        self, to: str, route: str, trunk: str, variables: Mapping[str, str], *, parent: str
    ) -> tuple[CallRecord, asyncio.Future[CallRecord]]:
        """Place a call: its record, and the same once it is over.

        Raises DialRefusedError and ValueError.
        """


class CallbackScheduler:
    """Places callbacks when they are due, each by one of the processes on the database. Lives on
    the event loop."""

    def __init__(
        self,
        settings: CallbackSettings,
        dial: Dial,
        http: HttpClient,
        store: Store,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        refusal: Callable[[str, re.Pattern[str] | None], str | None] = lambda _number, _allow: None,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._refusal = refusal
        """Says why a number may not be called, by what the route allows; None when it may."""
        self._draining = draining
        """Whether this process places no further calls: then due callbacks are left in the
        database, for other processes or the next start."""
        self._settings = settings
        self._dial = dial
        self._http = http
        self._now = now
        self._store = store
        self._count = 0
        self._first: list[ScheduledCallback] = []
        self._failing = False
        self._changed = asyncio.Event()
        self._tasks = TaskSet()
        self.placed = 0
        self.given_up = 0

    async def start(self) -> None:
        """Start to claim and place callbacks that are due, also those of before the start."""
        self._tasks.serve(self._own, "callbacks")

    async def stop(self) -> None:
        """Cancel the attempts; what is pending stays in the database, where claims expire."""
        await self._tasks.cancel()

    def as_json(self) -> dict[str, Any]:
        """Return the pending callbacks for ``gateway status``."""
        return {
            "count": self._count,
            "waiting": [
                {"at": one.at, "number": one.number, "route": one.route, "tries": one.tries}
                for one in self._first
            ],
            "placed": self.placed,
            "given_up": self.given_up,
        }

    async def take(self, rules: Rules, call: ToolCall, given: dict[str, Any]) -> str:
        """Schedule a callback; return JSON for the model: status, local time, number.

        Checked by the route's rules, then by ``[outbound]``; then the configured URL is told, and
        then it is written. Raises ToolError at the first of these that fails, for a full list, and
        in a process that places no callbacks.
        """
        if not self._tasks:
            raise ToolError("no callbacks can be taken in this call")
        caller = str(call.variables.get("from", ""))
        callback, local = callback_of(given, rules, caller, call.call, self._now())
        if self._refusal(callback.number, rules.allow) is not None:
            raise ToolError(f"number: {callback.number} may not be called")
        if self._settings.url is not None:
            await self._tell(callback)
        try:
            async with asyncio.timeout(STORE_SECONDS):
                done = await self._store.put(callback, self._settings.max_pending)
                await self._look()
        except Exception as error:
            log.error("callback.write_failed", why=str(error) or "no answer in time")
            raise ToolError("the callback could not be noted down") from None
        if done == "full":
            log.error("callback.queue_full", limit=self._settings.max_pending)
            raise ToolError("no more callbacks can be taken now")
        self._changed.set()
        log.info("callback.scheduled", call=call.call, at=callback.at, route=callback.route)
        status = "scheduled" if done == "new" else "scheduled in place of the earlier one"
        return json.dumps({"status": status, "at": local, "number": callback.number})

    async def _tell(self, callback: ScheduledCallback) -> None:
        """POST a callback to the configured URL, once more on failure. Raises ToolError."""
        settings = self._settings
        assert settings.url is not None
        body = callback.as_json()
        headers = {"Idempotency-Key": callback.id, **shown(settings.headers)}
        try:
            await self._http.send(
                Request("POST", settings.url, headers, body=body, retries=1, again=True)
            )
        except ToolError:
            raise ToolError("the callback could not be noted down") from None

    # ---- their time comes

    async def _own(self) -> None:
        """Claim callbacks that are due, and start an attempt at each; never ends.

        Waits until the next is due or one changes, ``LONGEST_SLEEP`` at most. A draining process
        claims none. After an outage of the database, ``AGAIN_THERE_SECONDS`` pass before a claim.
        """
        while True:
            self._changed.clear()
            now = self._now()
            seconds = LONGEST_SLEEP
            try:
                due = await self._look()
                if self._failing:
                    # Whoever reached somebody while the database was away says so first.
                    self._failing = False
                    await asyncio.sleep(AGAIN_THERE_SECONDS)
                draining = self._draining()
                for callback in () if draining else await self._store.claim(now):
                    self._tasks.spawn(self._place(callback), f"callback {callback.id}")
                if due is not None and not draining:
                    seconds = min(max(due - now.timestamp(), 0.0), LONGEST_SLEEP)
            except Exception as error:
                self._note(error)
                seconds = STORE_SECONDS
            await wait_any(seconds + 0.01, self._changed)

    async def _kept(self, write: Callable[[], Awaitable[None]]) -> None:
        """Repeat a write to the database each second until it succeeds."""
        while True:
            try:
                await write()
                return
            except Exception as error:
                self._note(error)
            await asyncio.sleep(1.0)

    def _note(self, error: Exception) -> None:
        """Log that the database is not reached, once until it is again."""
        if not self._failing:
            log.error("callback.write_failed", why=str(error) or type(error).__name__)
        self._failing = True

    async def _look(self) -> float | None:
        """Read count and first callbacks for ``gateway status``; return when the next is due.

        Unix time (s) of the next that is not claimed; None without one.
        """
        self._count, self._first, due = await self._store.pending(self._now())
        return due

    async def _place(self, callback: ScheduledCallback) -> None:
        """Try a callback that was claimed: it is deleted if answered, else released for later.

        Deleted without a call: where ``callbacks.auto_dial`` is off (its time is only logged), and
        past ``expire_after`` or ``MAX_TRIES`` (given up). The pause doubles with each try.
        """
        until = callback.due + timedelta(seconds=self._settings.expire_after)
        try:
            if not self._settings.auto_dial:
                log.info("callback.due", route=callback.route, at=callback.at, call=callback.call)
            elif self._now() > until or callback.tries > MAX_TRIES:
                self.given_up += 1
                log.error(
                    "callback.expired", route=callback.route, at=callback.at, call=callback.call
                )
            elif (why := await self._try(callback)) is None:
                self.placed += 1
            else:
                log.warning(
                    "callback.attempt_failed", route=callback.route, tries=callback.tries, why=why
                )
                again = min(AGAIN_SECONDS * 2 ** (callback.tries - 1), LONGEST_AGAIN_SECONDS)
                pause = timedelta(seconds=again * uniform(1.0, 1.25))
                await self._kept(lambda: self._store.retry(callback, self._now() + pause))
                return
            await self._kept(lambda: self._store.drop(callback))
        finally:
            self._changed.set()

    async def _try(self, callback: ScheduledCallback) -> str | None:
        """Place the call and wait until it is answered or over, renewing the claim meanwhile.

        Returns None if it was answered; else the rule that forbade it, or how it ended.
        """
        variables = {"callback_reason": callback.reason}
        try:
            record, over = await self._dial(
                callback.number,
                callback.route,
                callback.trunk,
                variables,
                parent=callback.call,
            )
        except (DialRefusedError, ValueError) as error:
            return str(error)
        held = asyncio.get_running_loop().time()
        while not over.done() and record.times.answered is None:
            await asyncio.wait([over], timeout=LOOK_SECONDS)
            if asyncio.get_running_loop().time() - held > HOLD_SECONDS:
                held = asyncio.get_running_loop().time()
                try:
                    await self._store.keep(callback, self._now())
                except Exception as error:
                    self._note(error)
        if record.times.answered is not None:
            return None
        return "not answered" if record.ending is None else record.ending.why.value


def function_of(route: Route, scheduler: CallbackScheduler, timeout: float) -> Function | None:
    """Return the function ``schedule_callback`` of a route; None where the route has none.

    ``timeout``: of one execution (s).
    """
    given = route.schedule_callback
    told = definitions.schedule_callback(plan_of(SchedulePlan, given), given.description)
    if told is None:
        return None
    rules = Rules(
        route=given.route or route.name,
        trunk=given.trunk or "",
        allow=given.allowed_numbers,
        max_days=given.max_days,
        zone=route.timezone,
    )
    return Function(
        name=told["name"],
        description=told["description"],
        parameters=told["parameters"],
        run=partial(scheduler.take, rules),
        timeout=timeout,
        max_result_chars=1000,
    )

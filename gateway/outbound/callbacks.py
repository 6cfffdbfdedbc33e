# SPDX-License-Identifier: GPL-2.0-or-later
"""Callbacks: accepts them from the model, keeps them in a file, places them when due."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from random import uniform
from typing import Any, Protocol

import structlog

from gateway.bridge.legs import DialRefusedError
from gateway.call.call_record import CallRecord
from gateway.call.plan import SchedulePlan
from gateway.call.tools import definitions
from gateway.call.tools.definitions import NUMBER
from gateway.config.sections import CallbackSettings
from gateway.config.values import shown
from gateway.dialplan import Route
from gateway.planning.route_tools import plan_of
from gateway.tasks import TaskSet
from gateway.tools.api import ToolError
from gateway.tools.functions import Function, ToolCall
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
        """The time at which it is to be placed."""
        return datetime.fromisoformat(self.at)

    def as_json(self) -> dict[str, Any]:
        """Return it for the file, the operator's service, and ``gateway status``."""
        return asdict(self)


def callback_of(
    given: dict[str, Any], rules: Rules, caller: str, call: str, now: datetime
) -> tuple[ScheduledCallback, str]:
    """Return the callback that the model asks for, and its time in the route's time zone.

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
        reason=" ".join(str(given.get("reason") or "").split())[:MAX_REASON],
        call=call,
    )
    return callback, f"{due.astimezone(rules.zone):%Y-%m-%d %H:%M}"


def _time(text: str, rules: Rules, now: datetime) -> datetime:
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
    return re.sub(r"[\s()./-]", "", number)


log = structlog.get_logger("callbacks")

_FIELDS = {field.name for field in fields(ScheduledCallback)}


class Store:
    """Reads and writes the file, in a thread; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = asyncio.Lock()

    async def load(self) -> list[ScheduledCallback]:
        """Read the file; one that cannot be read is renamed, and logged as an error."""
        if self._path is None:
            return []
        return await asyncio.to_thread(_load, self._path)

    async def save(self, callbacks: Iterable[ScheduledCallback]) -> None:
        """Write all callbacks, and wait for the disk. Raises OSError."""
        if self._path is None:
            return
        text = json.dumps([one.as_json() for one in callbacks], indent=1, ensure_ascii=False)
        async with self._lock:
            await asyncio.to_thread(_save, self._path, text)


def _load(path: Path) -> list[ScheduledCallback]:
    try:
        found = json.loads(path.read_text("utf-8"))
        callbacks = [
            ScheduledCallback(**{name: value for name, value in one.items() if name in _FIELDS})
            for one in found
        ]
        for callback in callbacks:
            assert callback.due.tzinfo is not None
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
        bad = path.with_name(path.name + ".bad")
        log.error(
            "callback.file_unreadable",
            file=str(path),
            why=type(error).__name__,
            kept=str(bad),
        )
        try:
            path.replace(bad)
        except OSError:
            log.error("callback.file_unreadable", file=str(path), why="it cannot be put aside")
        return []
    return callbacks


def _save(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    # It has numbers of callers, and what they want.
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


AGAIN_SECONDS = 60.0
"""From the first try to the second: nobody answered, or a cap did not allow the call. Each further
wait is double, and up to a quarter longer."""

LONGEST_AGAIN_SECONDS = 900.0

MAX_TRIES = 12
"""Attempts of one callback."""

LONGEST_SLEEP = 30.0
"""Seconds; due times are wall-clock times, and that clock may be set meanwhile."""

SHOWN = 20
"""Callbacks that ``gateway status`` lists."""


class Dial(Protocol):
    """Places a call: :meth:`gateway.outbound.calls.OutboundCalls.dial`."""

    def __call__(
        self, to: str, route: str, trunk: str, variables: Mapping[str, str]
    ) -> asyncio.Future[CallRecord]:
        """Place a call; the result is its record. Raises DialRefusedError and ValueError."""


class CallbackScheduler:
    """Owns the callbacks of the process. Lives on the event loop."""

    def __init__(
        self,
        settings: CallbackSettings,
        dial: Dial,
        http: HttpClient,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        refusal: Callable[[str, re.Pattern[str] | None], str | None] = lambda _number, _allow: None,
    ) -> None:
        self._refusal = refusal
        """Says why a number may not be called, by what the route allows; None when it may."""
        self._settings = settings
        self._dial = dial
        self._http = http
        self._now = now
        self._store = Store(settings.file)
        self._waiting: dict[str, ScheduledCallback] = {}
        self._placing: set[str] = set()
        self._changed = asyncio.Event()
        self._tasks = TaskSet()
        self.placed = 0
        self.given_up = 0

    async def start(self) -> None:
        """Read the file, and start placing what is due."""
        self._waiting = {one.id: one for one in await self._store.load()}
        if self._waiting:
            log.info("callback.pending", count=len(self._waiting))
        self._tasks.serve(self._own, "callbacks")

    async def stop(self) -> None:
        """Stop placing; what is pending is in the file."""
        await self._tasks.cancel()

    def as_json(self) -> dict[str, Any]:
        """Return the pending callbacks for ``gateway status``."""
        first = sorted(self._waiting.values(), key=lambda one: one.at)[:SHOWN]
        return {
            "count": len(self._waiting),
            "waiting": [
                {"at": one.at, "number": one.number, "route": one.route, "tries": one.tries}
                for one in first
            ],
            "placed": self.placed,
            "given_up": self.given_up,
        }

    async def take(self, rules: Rules, call: ToolCall, given: dict[str, Any]) -> str:
        """Schedule a callback; return text for the model. Raises ToolError."""
        if not self._tasks:
            # A process that places one call has not read the file, and must not write it.
            raise ToolError("no callbacks can be taken in this call")
        caller = str(call.variables.get("from", ""))
        callback, local = callback_of(given, rules, caller, call.call, self._now())
        if self._refusal(callback.number, rules.allow) is not None:
            raise ToolError(f"number: {callback.number} may not be called")
        earlier = self._waiting.get(callback.id)
        if earlier is None and len(self._waiting) >= self._settings.max_pending:
            log.error("callback.queue_full", limit=self._settings.max_pending)
            raise ToolError("no more callbacks can be taken now")
        if self._settings.url is not None:
            await self._tell(callback)
        self._waiting[callback.id] = callback
        try:
            await self._store.save(self._waiting.values())
        except OSError as error:
            del self._waiting[callback.id]
            log.error("callback.write_failed", why=error.strerror)
            raise ToolError("the callback could not be noted down") from None
        self._changed.set()
        log.info("callback.scheduled", call=call.call, at=callback.at, route=callback.route)
        status = "scheduled" if earlier is None else "scheduled in place of the earlier one"
        return json.dumps({"status": status, "at": local, "number": callback.number})

    async def _tell(self, callback: ScheduledCallback) -> None:
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
        while True:
            self._changed.clear()
            now = self._now()
            for callback in list(self._waiting.values()):
                if callback.due <= now and callback.id not in self._placing:
                    self._begin(callback)
            waiting = (one.due for one in self._waiting.values() if one.id not in self._placing)
            soonest = min(waiting, default=now + timedelta(seconds=LONGEST_SLEEP))
            seconds = min(max((soonest - now).total_seconds(), 0.0), LONGEST_SLEEP)
            try:
                async with asyncio.timeout(seconds + 0.01):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _begin(self, callback: ScheduledCallback) -> None:
        self._placing.add(callback.id)
        task = self._tasks.spawn(self._place(callback), f"callback {callback.id}")

        def over(_task: asyncio.Task[None]) -> None:
            self._placing.discard(callback.id)
            self._changed.set()

        task.add_done_callback(over)

    async def _place(self, callback: ScheduledCallback) -> None:
        """Try one callback until somebody answered or it is too late."""
        until = callback.due + timedelta(seconds=self._settings.expire_after)
        again = AGAIN_SECONDS
        while self._settings.auto_dial and self._now() <= until and callback.tries < MAX_TRIES:
            callback = replace(callback, tries=callback.tries + 1)
            if not await self._keep(callback):
                return  # scheduled for another time meanwhile
            why = await self._try(callback)
            if why is None:
                self.placed += 1
                await self._drop(callback)
                return
            log.warning(
                "callback.attempt_failed", route=callback.route, tries=callback.tries, why=why
            )
            await asyncio.sleep(again * uniform(1.0, 1.25))
            again = min(2 * again, LONGEST_AGAIN_SECONDS)
        if self._settings.auto_dial:
            self.given_up += 1
            log.error("callback.expired", route=callback.route, at=callback.at, call=callback.call)
        else:
            log.info("callback.due", route=callback.route, at=callback.at, call=callback.call)
        await self._drop(callback)

    async def _try(self, callback: ScheduledCallback) -> str | None:
        """Place the call; return why nobody was reached, None when somebody was."""
        variables = {"callback_reason": callback.reason}
        try:
            over = self._dial(callback.number, callback.route, callback.trunk, variables)
        except (DialRefusedError, ValueError) as error:
            return str(error)
        record = await asyncio.shield(over)
        if record.times.answered is not None:
            return None
        return "not answered" if record.ending is None else record.ending.why.value

    def _is_current(self, callback: ScheduledCallback) -> bool:
        kept = self._waiting.get(callback.id)
        return kept is not None and kept.at == callback.at

    async def _keep(self, callback: ScheduledCallback) -> bool:
        if not self._is_current(callback):
            return False
        self._waiting[callback.id] = callback
        await self._saved()
        return True

    async def _drop(self, callback: ScheduledCallback) -> None:
        if self._is_current(callback):
            del self._waiting[callback.id]
            await self._saved()

    async def _saved(self) -> None:
        try:
            await self._store.save(self._waiting.values())
        except OSError as error:
            log.error("callback.write_failed", why=error.strerror)


def function_of(route: Route, scheduler: CallbackScheduler, timeout: float) -> Function | None:
    """Return the function behind the route's tool; None where the route has none."""
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries: a share of a route's callers gets another session, as long as it keeps up.

Which callers is a matter of their number's hash. Whether a canary runs, and since when its figures
count, is in the database that processes share; figures are those of the calls' rows there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import Connection

from gateway.api.client import RefusedError
from gateway.app.shared_state import NotReachedError, SharedState
from gateway.call.call_record import CallRecord
from gateway.dialplan import Dialplan, Route
from gateway.dialplan.route_session import Canary
from gateway.measures import Reading
from gateway.records import shared
from gateway.records.database import Database, Filter
from gateway.records.report import CANARY, CONTROL, Line, Report, report_of
from gateway.records.shared import CanaryState
from gateway.records.store import RecordStore
from gateway.tasks import TaskSet, wait_any

LOOK_SECONDS = 2.0
"""How often this process asks whether canaries run."""

JUDGE_SECONDS = 30.0
"""How often figures are compared at least; sooner after a canary's call."""

JUDGE_PART = 20
"""Comparing takes at most one part in so many of the time."""

AUTOMATIC = "gateway"
"""Who stopped a canary that fell behind."""

log = structlog.get_logger("canary")


def behind(canary: Line, control: Line, settings: Canary) -> str:
    """Return by what the canary has fallen behind the other calls; "" where it has not.

    Both sides need ``stop.min_calls`` calls.
    """
    limits = settings.stop
    if min(canary.calls, control.calls) < limits.min_calls:
        return ""
    for name, most in (
        ("failed", limits.failed_percent),
        ("transferred", limits.transferred_percent),
    ):
        ours, theirs = (100 * getattr(one, name) / one.calls for one in (canary, control))
        if most and ours - theirs > most:
            return f"{name}: {ours:.1f} % of its calls, {theirs:.1f} % of the others"
    slow, usual = (one.as_json()["response_p95_ms"] for one in (canary, control))
    known = slow is not None and usual is not None
    if known and 0 < limits.response_ms < slow - usual:
        return f"response p95: {slow:.0f} ms, {usual:.0f} ms of the others"
    return ""


class Canaries:
    """Chooses for each call between the route's session and its canary's; stops canaries that are
    worse. Lives on the event loop.

    Args:
        shared: its database has the state of all processes.
        records: told of each call's end, and of a canary that is stopped.
        url: of the database of calls; None: there is none, and no canary.
    """

    def __init__(
        self, dialplan: Dialplan, shared: SharedState, records: RecordStore, url: str | None
    ) -> None:
        self._shared = shared
        self._records = records
        self._url = url
        self._states: dict[str, CanaryState] = {}
        self._routes: dict[str, Canary] = {}
        self._tasks = TaskSet()
        self._changed = asyncio.Event()
        self._due = asyncio.Event()
        self.use(dialplan)
        records.listeners.append(self._told)
        self.commands: dict[str, Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]] = {
            "canaries": self._list,
            "canary_stop": lambda r: self._set(r, running=False),
            "canary_start": lambda r: self._set(r, running=True),
        }

    def use(self, dialplan: Dialplan) -> None:
        """Apply the canaries of a new dialplan to further calls; the figures of a changed one begin
        anew."""
        self._routes = {
            route.name: route.canary
            for route in dialplan.routes
            if route.enabled and route.canary is not None
        }
        self._changed.set()

    async def start(self) -> None:
        """Start to follow the shared state, and to compare figures; nothing without a database."""
        if self._url is not None:
            self._tasks.serve(self._follow, "canaries")
            self._tasks.serve(self._judge_on, "canary figures")

    async def stop(self) -> None:
        """End both loops; canaries that run go on, by the state that was read last."""
        await self._tasks.cancel()

    def choose(self, route: Route, caller: str, record: CallRecord) -> Route:
        """Return the route that a call takes, with its canary's session or its own.

        Args:
            caller: their number; one that is not told has a side by the call's id.
        """
        canary = self._routes.get(route.name)
        if canary is None or record.variant:
            return route
        known = caller if caller.lower() not in ("", "anonymous") else record.call_id
        ours = self._runs(route.name) and canary.has(route.name, known)
        record.variant = CANARY if ours else CONTROL
        side = f"{record.variant}, by the caller's number" if self._runs(route.name) else "stopped"
        record.explanation.append(f"canary of route {route.name}: {side}")
        return route.with_canary() if ours else route

    def readings(self) -> Iterator[Reading]:
        """Yield what ``/metrics`` reads."""
        for route in self._routes:
            yield "canary_active", {"route": route}, float(self._runs(route))

    def _runs(self, route: str) -> bool:
        """Whether the canary of a route was found in the database, and not stopped."""
        state = self._states.get(route)
        return state is not None and not state.stopped_by

    # ---- the state that is shared

    async def _follow(self) -> None:
        """Read the state of the canaries regularly, and after a reload; never ends. Where that
        fails, what held last holds on; a defect is logged once, until it succeeds."""
        failing = False
        while True:
            self._changed.clear()
            try:
                await self._refresh()
                failing = False
            except NotReachedError:
                pass  # it was said
            except Exception:
                if not failing:
                    log.exception("shared.failed", what="canaries")
                failing = True
            await wait_any(LOOK_SECONDS, self._changed)

    async def _refresh(self) -> None:
        """Read the state of the dialplan's canaries, which adds new ones to the database.

        A start or stop since the last time is logged. Raises NotReachedError.
        """
        if not self._routes:
            self._states = {}
            return
        wanted = {name: one.fingerprint for name, one in self._routes.items()}
        found = await self._shared.run(lambda connection: shared.canary_states(connection, wanted))
        for name, state in found.items():
            before = self._states.get(name)
            if before is not None and before.stopped_by != state.stopped_by:
                event = "canary.stopped" if state.stopped_by else "canary.started"
                log.warning(event, route=name, who=state.stopped_by, why=state.why)
        self._states = found

    async def _set(self, request: Mapping[str, Any], *, running: bool) -> Mapping[str, Any]:
        """Start or stop a canary for an operator, in all processes; return whether it changed.

        Raises RefusedError where the route has none, or the database is not reached.
        """
        route, who = str(request.get("route")), str(request.get("who") or "operator")
        if route not in self._routes:
            raise RefusedError(f"route {route!r} has no canary")
        try:
            changed = await self._change(route, "" if running else who, "")
            await self._refresh()
        except NotReachedError as error:
            raise RefusedError(f"the database is not reached: {error}") from None
        return {"route": route, "running": self._runs(route), "changed": changed}

    async def _change(self, route: str, stopped_by: str, why: str) -> bool:
        """Stop a canary in the database, or start it (``stopped_by`` ""); return whether that
        changed it. A change is announced to webhooks. Raises NotReachedError."""

        def change(connection: Connection) -> bool:
            return shared.set_canary(connection, route, stopped_by, why)

        changed = await self._shared.run(change)
        if changed:
            kind = "canary.stopped" if stopped_by else "canary.started"
            self._records.announce(kind, {"route": route, "by": stopped_by, "why": why})
        return changed

    # ---- figures

    def _told(self, event: dict[str, Any], record: CallRecord) -> None:
        """Have the figures compared soon, if the event is the end of a canary's call."""
        if event["type"] == "call.ended" and record.variant == CANARY:
            self._due.set()

    async def _judge_on(self) -> None:
        """Judge all running canaries every ``JUDGE_SECONDS`` at least; never ends.

        Soon after a canary's call, too; in the process only that leads in writing rows.
        """
        pause = 1.0
        while True:
            self._due.clear()
            await wait_any(JUDGE_SECONDS, self._due)
            await asyncio.sleep(pause)  # the rows of calls that have ended are on their way
            began = time.monotonic()
            if self._records.forwarder.leading:
                for route in list(self._routes):
                    if self._runs(route):
                        await self._judge(route)
            pause = max(1.0, JUDGE_PART * (time.monotonic() - began))

    async def _judge(self, route: str) -> None:
        """Stop the canary of a route if it has fallen :func:`behind`, for all processes.

        Reads the figures on a thread; an error is logged, and the canary goes on.
        """
        settings = self._routes.get(route)
        if settings is None:
            return  # a reload has taken it away meanwhile
        try:
            report = await asyncio.to_thread(self._figures, route, self._states[route])
            sides = {line.name: line for line in report.lines}
            why = behind(
                sides.get(CANARY, Line(CANARY)), sides.get(CONTROL, Line(CONTROL)), settings
            )
            if why and await self._change(route, AUTOMATIC, why):
                await self._refresh()
        except Exception as error:
            # Whatever the database says: the calls go on, and it is looked at again.
            log.warning("canary.not_judged", route=route, error=str(error).split("\n")[0])

    def _figures(self, route: str, state: CanaryState) -> Report:
        """Return the figures of both sides since the canary began, of ended calls. On a thread."""
        assert self._url is not None
        database = Database(self._url, read_only=True)
        try:
            rows = database.each(Filter(since=state.began_at, route=route, ended=True))
            now = datetime.now(UTC).isoformat(timespec="seconds")
            sides = (row for row in rows if row["variant"] in (CANARY, CONTROL))
            return report_of(
                sides, "variant", state.began_at.isoformat(timespec="seconds"), now, None
            )
        finally:
            database.close()

    async def _list(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return each canary with its state and the figures of both sides. Raises RefusedError."""
        found = []
        for route, canary in self._routes.items():
            state = self._states.get(route)
            told: dict[str, Any] = {"route": route, "share": canary.share}
            told["running"] = self._runs(route)
            if state is not None:
                told |= {"stopped_by": state.stopped_by, "why": state.why}
                try:
                    report = await asyncio.to_thread(self._figures, route, state)
                except Exception as error:
                    raise RefusedError(f"the database is not reached: {error}") from None
                told["figures"] = report.as_json()
            found.append(told)
        return {"canaries": found}

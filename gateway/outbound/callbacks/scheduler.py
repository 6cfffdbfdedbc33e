# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules callbacks: accepts them from the model, keeps them in a file, places them when due."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import uniform
from typing import Any, Protocol

import structlog

from gateway.bridge.legs import DialRefusedError
from gateway.call.record import CallRecord
from gateway.config.tools import CallbackSettings
from gateway.config.values import shown
from gateway.outbound.callbacks.scheduled import Rules, ScheduledCallback, callback_of
from gateway.outbound.callbacks.store import Store
from gateway.tasks import TaskSet
from gateway.tools.api import ToolError
from gateway.tools.functions import ToolCall
from gateway.tools.http import HttpClient, Request

log = structlog.get_logger("callbacks")

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
    """Places a call: :meth:`gateway.app.service.Service.dial`."""

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

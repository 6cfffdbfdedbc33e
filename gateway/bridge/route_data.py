# SPDX-License-Identifier: GPL-2.0-or-later
"""Data that a route's texts need: of a service (``[route.data]``), and the caller's earlier calls
(``[route.caller_history]``).

They are fetched from the INVITE on, while the telephone rings and the realtime server is connected;
only ``session.update`` waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from gateway.call.plan import CallPlan
from gateway.config.values import shown
from gateway.dialplan import Match
from gateway.realtime.errors import Kind, SetupFailed, Step, Verdict
from gateway.records.caller_history import Earlier, Lookup
from gateway.text import json_of
from gateway.tools.functions import ToolError
from gateway.tools.http import HttpClient, Request

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The complete plan of a call, and the session objects to send."""

    plan: CallPlan
    settings: Mapping[str, Any]
    """Of a Realtime session."""
    ms: int | None
    """How long the data took; None where the route has none."""
    failure: str = ""
    """Why the data are missing."""
    live_settings: Mapping[str, Any] = field(default_factory=dict)
    """Of a Live session."""
    history: Mapping[str, Any] | None = None
    """The caller's earlier calls, for the record."""
    messages: int = 0
    """Messages of the plan at the start of the call, which those of the complete one replace."""


Completed = tuple[CallPlan, Mapping[str, Any], Mapping[str, Any]]
"""The plan of a call, and its session objects for a Realtime and a Live session."""

Complete = Callable[[Match, str], Completed]
"""Makes a plan of a route's match with all values, and a text about the caller's earlier calls."""


@dataclass(eq=False)
class DataLookup:
    """Fetches the data of one call and the caller's earlier calls, once, on the event loop, and
    completes the call's plan with them.

    Args:
        client: of the data service; None where the route has none.
        complete: makes the complete plan.
        history: looks up the caller's earlier calls; None where the route has no use of them.
    """

    match: Match
    client: HttpClient | None
    complete: Complete
    history: Lookup | None = None
    _task: asyncio.Task[Prepared] | None = field(default=None, init=False)

    async def ready(self) -> Prepared:
        """Await the data or their timeout, after starting the request if need be; return the
        complete plan, made with defaults where data are missing. May be awaited any number of
        times; being cancelled does not cancel the request.

        Raises SetupFailed without data where the route has ``on_failure = "reject"``.
        """
        self.start("")
        assert self._task is not None
        prepared = await asyncio.shield(self._task)
        data = self.match.route.data
        if prepared.failure and data is not None and data.on_failure == "reject":
            verdict = Verdict(Kind.FATAL, "no_data", "the data of this call cannot be had", True)
            raise SetupFailed(verdict, Step.CREATED, prepared.failure)
        return prepared

    def start(self, call_id: str) -> None:
        """Send the request, if it was not sent yet; ``call_id`` names the call in logs."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(call_id), name=f"data {call_id}")

    def stop(self) -> None:
        """Cancel the request, if there is one: the call is over."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, call_id: str) -> Prepared:
        """Fetch data and call history at the same time, and complete the plan with them."""
        structlog.contextvars.bind_contextvars(call=call_id, route=self.match.route.name)
        (answer, failure, ms), earlier = await asyncio.gather(self._data(), self._earlier())
        match, history, told = with_data(self.match, answer), None, ""
        if earlier is not None:
            match = replace(match, values={**match.values, **earlier.values})
            told = earlier.text if match.route.caller_history.message else ""
            history = {"calls": list(earlier.calls), "ms": earlier.ms}
            history |= {"failed": earlier.failure} if earlier.failure else {}
        plan, settings, live = self.complete(match, told)
        return Prepared(plan, settings, ms, failure, live, history, len(match.route.message))

    async def _data(self) -> tuple[Any, str, int | None]:
        """Return the data (None without), why they are missing ("" if they are not, or the route
        has none), and how long they took (ms; None where the route has none). Log them."""
        if self.match.route.data is None or self.client is None:
            return None, "", None
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer, failure = await fetch(self.match, self.client)
        ms = round((loop.time() - began) * 1000)
        if failure:
            log.warning("call.data_failed", detail=failure, ms=ms)
        else:
            log.info("call.data", ms=ms)
        return answer, failure, ms

    async def _earlier(self) -> Earlier | None:
        """Return the caller's earlier calls; None where the route has no use of them."""
        return None if self.history is None else await self.history()


def with_data(match: Match, answer: Any) -> Match:
    """Return ``match`` with the variables of ``[route.data]`` taken from ``answer``, the object of
    the data service; None for their defaults. Without that section, ``match`` itself."""
    route = match.route
    if route.data is None:
        return match
    return replace(
        match, values={**match.values, **route.data.values(route.data_variables(), answer)}
    )


async def fetch(match: Match, client: HttpClient) -> tuple[Any, str]:
    """Send the request of ``[route.data]``, again after a failure as it says; return the JSON
    object of the answer and "", or None and why there is none within its timeout."""
    data = match.route.data
    if data is None:
        return None, ""
    known = {name: value for name, value in match.values.items() if value}
    request = Request(
        method=data.method,
        url=data.address(match.values),
        headers={"Accept": "application/json", **shown(data.headers)},
        body=known if data.method == "POST" else None,
        retries=data.retries,
        again=True,  # it asks for something, and does nothing
    )
    try:
        async with asyncio.timeout(data.timeout):
            text = await client.send(request)
    except TimeoutError:
        return None, f"no answer within {data.timeout:g} s"
    except ToolError as error:
        return None, str(error)
    try:
        answer = json_of(text)
    except (ValueError, RecursionError):
        return None, "the answer is no JSON"
    if not isinstance(answer, dict):
        return None, "the answer is no JSON object"
    return answer, ""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Health of the realtime servers, so that no call waits for one that is known to be unavailable.

A session is opened at each from time to time, and what calls meet there is noted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from random import uniform

import structlog

from gateway.bridge.sessions import ServerWatch, SessionPlan
from gateway.call.plan import CallPlan
from gateway.measures import SESSION_OPEN, Distribution
from gateway.realtime.endpoint import Endpoint
from gateway.realtime.errors import Kind, SetupFailed, Verdict, class_of
from gateway.realtime.session import SessionClosed
from gateway.realtime.setup import open_session
from gateway.tasks import TaskSet

CALLS_IN_A_ROW = 3
"""Successive calls without a session after which a server counts as unavailable."""


@dataclass(slots=True)
class _Server:
    failures: int = 0
    since: float | None = None
    """Since when it is in trouble (s); None while it is not."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ServerChange:
    """A server came into trouble, or out of it."""

    url: str
    down: bool
    detail: str
    lasted: float
    """Seconds that it was in trouble."""


class ServerHealth:
    """State of each realtime server, by its URL. Pure: times in s, of any one clock."""

    def __init__(self) -> None:
        self._servers: dict[str, _Server] = {}

    def worked(self, url: str, now: float) -> ServerChange | None:
        """Note that a session was opened; return the change if the server was unhealthy before."""
        server = self._servers.setdefault(url, _Server())
        since, server.since = server.since, None
        server.failures, server.detail = 0, ""
        return None if since is None else ServerChange(url, False, "", now - since)

    def probe_failed(self, url: str, detail: str, now: float) -> ServerChange | None:
        """Note that a health check could not open a session."""
        return self._fail(url, detail, now, at_once=True)

    def call_failed(self, url: str, detail: str, now: float) -> ServerChange | None:
        """Note that a call could not open a session."""
        return self._fail(url, detail, now, at_once=False)

    def trouble(self, url: str) -> str | None:
        """Return the failure of a server that is known to be unavailable."""
        server = self._servers.get(url)
        return None if server is None or server.since is None else server.detail

    def as_json(self, now: float) -> list[dict[str, object]]:
        """Return the state for ``gateway status``."""
        return [
            {
                "url": url,
                "state": "up" if server.since is None else "in trouble",
                "seconds": None if server.since is None else round(now - server.since, 1),
                "detail": server.detail,
            }
            for url, server in self._servers.items()
        ]

    def _fail(self, url: str, detail: str, now: float, *, at_once: bool) -> ServerChange | None:
        """Count a failure; return the change if the server becomes unhealthy by it."""
        server = self._servers.setdefault(url, _Server())
        server.failures += 1
        server.detail = detail
        if server.since is not None or not (at_once or server.failures >= CALLS_IN_A_ROW):
            return None
        server.since = now
        return ServerChange(url, True, detail, 0.0)


log = structlog.get_logger("gateway")


class HealthChecker(ServerWatch):
    """Counts what calls meet at each server, and checks each in a task of its own; without an
    interval there is no check.

    A check opens, configures and closes a session. It sends no audio and requests no response, so
    it costs nothing.

    Args:
        endpoints: the servers; those of one URL are asked once.
        seconds: from one check to the next; 0 for none.
        timeout: a server whose session takes longer is unhealthy (s).
    """

    def __init__(self, endpoints: list[Endpoint], seconds: float, timeout: float) -> None:
        self.health = ServerHealth()
        self._endpoints = {endpoint.shown: endpoint for endpoint in endpoints}
        self._seconds = seconds
        self._timeout = timeout
        self._tasks = TaskSet()
        self.opened: dict[tuple[str, str], Distribution] = {}
        """Seconds of attempts of calls to open a session, by URL, and ``ok`` or what failed."""
        self.errors: Counter[tuple[str, str]] = Counter()
        """Errors that calls met, by URL and class."""
        self.ends: Counter[tuple[str, str]] = Counter()
        """Sessions of calls that ended, by URL and reason."""

    def start(self) -> None:
        """Start to probe each server, every ``health_check_interval`` s; nothing when that is 0."""
        if self._seconds <= 0:
            return
        for url, endpoint in self._endpoints.items():
            self._tasks.serve(partial(self._ask_on, url, endpoint), f"probe {url}")

    async def stop(self) -> None:
        await self._tasks.cancel()

    def trouble(self, endpoint: Endpoint) -> str | None:
        """Return what is known to be wrong with a server; None for nothing."""
        return self.health.trouble(endpoint.shown) if self._seconds > 0 else None

    def met(self, endpoint: Endpoint, failure: SetupFailed | None, seconds: float) -> None:
        """Note what a call met at a server; ``failure`` is None where it got its session."""
        url = endpoint.shown
        key = (url, "ok" if failure is None else failure.verdict.kind.value)
        if key not in self.opened:
            self.opened[key] = Distribution(SESSION_OPEN)
        self.opened[key].observe(seconds)
        if failure is not None:
            self.error(endpoint, failure.verdict)
        if self._seconds <= 0:
            return
        now = asyncio.get_running_loop().time()
        if failure is None:
            _tell(self.health.worked(url, now))
        else:
            _tell(self.health.call_failed(url, str(failure), now))

    def closed(self, endpoint: Endpoint, closed: SessionClosed) -> None:
        """Count the end of a session by its reason; one that is a failure counts as an error
        too."""
        reason = "by us" if closed.by_us else closed.verdict.kind.value
        self.ends[endpoint.shown, reason] += 1
        if not closed.by_us and closed.verdict.kind is not Kind.BENIGN:
            self.error(endpoint, closed.verdict)

    def error(self, endpoint: Endpoint, verdict: Verdict) -> None:
        """Count an error of a server, by its class."""
        self.errors[endpoint.shown, class_of(verdict)] += 1

    def inform(self, plan: CallPlan, session: SessionPlan) -> tuple[CallPlan, SessionPlan]:
        """Return the plans of a call with the known outage, and a report of what it meets."""
        known = self.trouble(session.endpoint) or ""
        plan = replace(plan, server=replace(plan.server, known_outage=known))
        return plan, replace(session, watch=self)

    def as_json(self) -> list[dict[str, object]]:
        """Return the state of each server for ``gateway status``."""
        return self.health.as_json(asyncio.get_running_loop().time())

    async def _ask_on(self, url: str, endpoint: Endpoint) -> None:
        """Try an unhealthy server again and again until it opens a session."""
        while True:
            with structlog.contextvars.bound_contextvars(probe=True):
                failure = await self._ask(endpoint)
            now = asyncio.get_running_loop().time()
            if failure is None:
                _tell(self.health.worked(url, now))
            else:
                _tell(self.health.probe_failed(url, failure, now))
            # Servers and workers that began together do not stay together.
            await asyncio.sleep(self._seconds * uniform(0.9, 1.1))

    async def _ask(self, endpoint: Endpoint) -> str | None:
        """Open and close a session; return why that failed, or None."""
        try:
            session = await open_session(
                endpoint,
                endpoint.least_session(),
                timeout=self._timeout,
                on_event=lambda _event: None,
                on_closed=lambda _closed: None,
            )
        except SetupFailed as failure:
            return str(failure)
        except Exception as error:  # whatever it is, the next probe comes
            log.exception("health_check.failed", url=endpoint.shown)
            return type(error).__name__
        await session.close(1000, "probe")
        return None


def _tell(changed: ServerChange | None) -> None:
    """Log a change of a server's health."""
    if changed is None:
        return
    if changed.down:
        log.error("realtime.unhealthy", url=changed.url, detail=changed.detail)
    else:
        log.info("realtime.healthy", url=changed.url, seconds=round(changed.lasted, 1))

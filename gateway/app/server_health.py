# SPDX-License-Identifier: GPL-2.0-or-later
"""Health checks of the realtime servers: opens a session at each, in the background."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from random import uniform

import structlog

from gateway.bridge.sessions import SessionPlan
from gateway.call.plan import CallPlan
from gateway.realtime.endpoint import Endpoint
from gateway.realtime.health import Changed, Health
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import SetupFailed, open_session
from gateway.tasks import TaskSet

log = structlog.get_logger("gateway")


class HealthChecker:
    """Checks each server in a task of its own; without an interval there is no check.

    A check opens, configures and closes a session. It sends no audio and requests no response, so
    it costs nothing.

    Args:
        endpoints: the servers; those of one URL are asked once.
        seconds: from one check to the next; 0 for none.
        timeout: a server whose session takes longer is unhealthy (s).
    """

    def __init__(self, endpoints: list[Endpoint], seconds: float, timeout: float) -> None:
        self.health = Health()
        self._endpoints = {endpoint.shown: endpoint for endpoint in endpoints}
        self._seconds = seconds
        self._timeout = timeout
        self._tasks = TaskSet()

    def start(self) -> None:
        """Start the checks."""
        if self._seconds <= 0:
            return
        for url, endpoint in self._endpoints.items():
            self._tasks.serve(partial(self._ask_on, url, endpoint), f"probe {url}")

    async def stop(self) -> None:
        """End the checks."""
        await self._tasks.cancel()

    def trouble(self, endpoint: Endpoint) -> str | None:
        """Return what is known to be wrong with a server; None for nothing."""
        return self.health.trouble(endpoint.shown) if self._seconds > 0 else None

    def met(self, endpoint: Endpoint, failure: str | None) -> None:
        """Note what a call met at a server; ``failure`` is None where it got its session."""
        if self._seconds <= 0:
            return
        now = asyncio.get_running_loop().time()
        if failure is None:
            _tell(self.health.worked(endpoint.shown, now))
        else:
            _tell(self.health.call_failed(endpoint.shown, failure, now))

    def inform(self, plan: CallPlan, session: SessionPlan) -> tuple[CallPlan, SessionPlan]:
        """Return the plans of a call with the known outage, and a report of what it meets."""
        known = self.trouble(session.endpoint) or ""
        return replace(plan, known_outage=known), replace(session, met=self.met)

    def as_json(self) -> list[dict[str, object]]:
        """Return the state of each server for ``gateway status``."""
        return self.health.as_json(asyncio.get_running_loop().time())

    async def _ask_on(self, url: str, endpoint: Endpoint) -> None:
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
        try:
            session = await open_session(
                endpoint,
                session_object({}, "PCMU", ()),
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


def _tell(changed: Changed | None) -> None:
    if changed is None:
        return
    if changed.down:
        log.error("realtime.unhealthy", url=changed.url, detail=changed.detail)
    else:
        log.info("realtime.healthy", url=changed.url, seconds=round(changed.lasted, 1))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Health checks: sessions opened at realtime servers, synthetic calls to the gateway itself.

No call waits for a server that is known to be unavailable: what calls meet there counts, too. A
synthetic call goes through the gateway's own SIP port. It has to be answered, and the agent to be
heard in time. Its record, row and event are marked, and count in no report and no budget but the
day's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from random import uniform

import structlog

from gateway.audio import Codec
from gateway.bridge.sessions import ServerWatch, SessionPlan
from gateway.call.call_record import CallRecord
from gateway.call.plan import CallPlan
from gateway.config.operations import SyntheticCall
from gateway.dialplan import Dialplan, Match
from gateway.measures import SESSION_OPEN, Distribution, Reading
from gateway.planning import placed_match
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import Kind, SetupFailed, Verdict, class_of
from gateway.realtime.session import SessionClosed
from gateway.realtime.setup import open_session
from gateway.records.report import SYNTHETIC
from gateway.records.store import RecordStore
from gateway.sip.agent import UserAgent
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import IgnoringHandler, Invite, Leg, LegEnd
from gateway.tasks import TaskSet, wait_any

log = structlog.get_logger("gateway")

CALLS_IN_A_ROW = 3
"""Successive calls without a session after which a server counts as unavailable."""


@dataclass(slots=True)
class _Server:
    """State of a realtime server: failures in a row, and the last one's text."""

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
        """Note an opened session: the server is healthy; return the change if it was in trouble."""
        server = self._servers.setdefault(url, _Server())
        since, server.since = server.since, None
        server.failures, server.detail = 0, ""
        return None if since is None else ServerChange(url, False, "", now - since)

    def probe_failed(self, url: str, detail: str, now: float) -> ServerChange | None:
        """Note a health check without a session: in trouble at once. Returns the change, if any."""
        return self._fail(url, detail, now, at_once=True)

    def call_failed(self, url: str, detail: str, now: float) -> ServerChange | None:
        """Note a call without a session: in trouble at the third failure in a row.

        Returns the change, if any.
        """
        return self._fail(url, detail, now, at_once=False)

    def forget(self, url: str) -> None:
        """Drop what is known of a server, without a change to log."""
        self._servers.pop(url, None)

    def trouble(self, url: str) -> str | None:
        """Return the last failure of a server in trouble; None for any other, unknown ones too."""
        server = self._servers.get(url)
        return None if server is None or server.since is None else server.detail

    def as_json(self, now: float) -> list[dict[str, object]]:
        """Return url, state, seconds in trouble and last failure of each server that was met."""
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
        self._endpoints: dict[str, Endpoint] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._started = False
        self._seconds = 0.0
        self._timeout = timeout
        self._tasks = TaskSet()
        self.opened: dict[tuple[str, str], Distribution] = {}
        """Seconds of attempts of calls to open a session, by URL, and ``ok`` or what failed."""
        self.errors: Counter[tuple[str, str]] = Counter()
        """Errors that calls met, by URL and class."""
        self.ends: Counter[tuple[str, str]] = Counter()
        """Sessions of calls that ended, by URL and reason."""
        self.use(endpoints, seconds, timeout)

    def start(self) -> None:
        """Start a check of each server, now and every ``seconds``; nothing where that is 0."""
        self._started = True
        self._start_probes()

    async def stop(self) -> None:
        """Cancel the checks, one that is under way too; what is known of servers stays."""
        self._started = False
        await self._tasks.cancel()

    def use(self, endpoints: list[Endpoint], seconds: float, timeout: float) -> None:
        """Check these servers in place of the ones before, with a new interval and timeout (s).

        A server that is gone, or has another key or other settings, is forgotten with its state; a
        new or changed one is checked at once, and with another interval each. Without an interval
        all are forgotten.
        """
        before, self._endpoints = self._endpoints, {one.shown: one for one in endpoints}
        other, self._seconds, self._timeout = seconds != self._seconds, seconds, timeout
        for url, endpoint in before.items():
            changed = self._endpoints.get(url) != endpoint
            if changed or seconds <= 0:
                self.health.forget(url)
            if (changed or other) and (probe := self._probes.pop(url, None)) is not None:
                probe.cancel()
        self._start_probes()

    def _start_probes(self) -> None:
        """Start the check of each server that has none, once :meth:`start` was called; nothing
        without an interval."""
        for url, endpoint in self._endpoints.items():
            if self._started and self._seconds > 0 and url not in self._probes:
                work = partial(self._ask_on, url, endpoint)
                self._probes[url] = self._tasks.serve(work, f"probe {url}")

    def trouble(self, endpoint: Endpoint) -> str | None:
        """Return the failure of a server in trouble; None for none, or where none are checked."""
        return self.health.trouble(endpoint.shown) if self._seconds > 0 else None

    def met(self, endpoint: Endpoint, failure: SetupFailed | None, seconds: float) -> None:
        """Count a call's attempt to open a session; ``failure`` is None where it got one.

        With health checks, it also counts for the state of a server that is checked.

        Args:
            seconds: that the attempt took.
        """
        url = endpoint.shown
        key = (url, "ok" if failure is None else failure.verdict.kind.value)
        if key not in self.opened:
            self.opened[key] = Distribution(SESSION_OPEN)
        self.opened[key].observe(seconds)
        if failure is not None:
            self.error(endpoint, failure.verdict)
        if self._seconds <= 0 or url not in self._endpoints:
            return  # nothing would find out that a server without a check works again
        now = asyncio.get_running_loop().time()
        if failure is None:
            _tell(self.health.worked(url, now))
        else:
            _tell(self.health.call_failed(url, str(failure), now))

    def closed(self, endpoint: Endpoint, closed: SessionClosed) -> None:
        """Count the end of a session by its reason; a failure counts as an error, too."""
        reason = "by us" if closed.by_us else closed.verdict.kind.value
        self.ends[endpoint.shown, reason] += 1
        if not closed.by_us and closed.verdict.kind is not Kind.BENIGN:
            self.error(endpoint, closed.verdict)

    def error(self, endpoint: Endpoint, verdict: Verdict) -> None:
        """Count an error of a server, by its class."""
        self.errors[endpoint.shown, class_of(verdict)] += 1

    def inform(self, plan: CallPlan, session: SessionPlan) -> tuple[CallPlan, SessionPlan]:
        """Return a call's plans with ``known_outage`` set to its server's failure, "" for none.

        Its sessions report to this object.
        """
        known = self.trouble(session.endpoint) or ""
        plan = replace(plan, server=replace(plan.server, known_outage=known))
        return plan, replace(session, watch=self)

    def as_json(self) -> list[dict[str, object]]:
        """Return the state of each server for ``gateway status``."""
        return self.health.as_json(asyncio.get_running_loop().time())

    async def _ask_on(self, url: str, endpoint: Endpoint) -> None:
        """Check a server now and at every interval (±10 %), and note the result; never ends."""
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
        """Open and close a session of least settings; return why opening it failed, or None."""
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
        await session.close("probe")
        return None


def _tell(changed: ServerChange | None) -> None:
    """Log a change of a server's health; nothing for None."""
    if changed is None:
        return
    if changed.down:
        log.error("realtime.unhealthy", url=changed.url, detail=changed.detail)
    else:
        log.info("realtime.healthy", url=changed.url, seconds=round(changed.lasted, 1))


FIRST_SECONDS = 2.0
"""Until the first call after the start; one more for each before it."""

LOUD = 500
"""Peak of 32,767 from which the agent is heard: noise of an idle line is far below."""

LOOK_SECONDS = 0.05
END_SECONDS = 5.0
"""How long the end of a call is waited for."""

PLAYOUT_FRAMES = 50


class _Caller(IgnoringHandler):
    """Handler of the caller's leg of a synthetic call; ``record`` is that of the incoming call."""

    def __init__(self, settings: SyntheticCall) -> None:
        self.settings = settings
        self.record: CallRecord | None = None
        """Of the call as it came in."""
        self.answered = asyncio.Event()
        self.ended = asyncio.Event()
        self.code = 0
        """Of the final response, or of the end."""

    def on_confirmed(self) -> None:
        """Note that the call was answered."""
        self.answered.set()

    def on_ended(self, end: LegEnd) -> None:
        """Note that the call has ended or was refused, and its SIP code."""
        self.code = end.code
        self.ended.set()

    @property
    def how(self) -> str:
        """Return how the call ended: the code, and the reason that its record has."""
        ending = None if self.record is None else self.record.ending
        return f"SIP {self.code}" if ending is None else f"SIP {self.code}, {ending.why}"


@dataclass(slots=True)
class _Result:
    """Results of the calls of one ``[[synthetic_call]]``."""

    up: bool | None = None
    heard_seconds: float | None = None
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class SyntheticCalls:
    """Places the calls of ``[[synthetic_call]]`` at their intervals. Lives on the event loop.

    Args:
        agent: dials, and is dialled.
        records: tells webhooks of what failed, and of what works again.
        draining: whether the process takes no further calls: then none is placed, and one that
            fails counts for nothing.
    """

    settings: Sequence[SyntheticCall]
    dialplan: Dialplan
    agent: UserAgent
    records: RecordStore
    draining: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._legs: dict[Leg, _Caller] = {}
        self._results = {one.name: _Result() for one in self.settings}
        self._tasks = TaskSet()

    def use(self, dialplan: Dialplan) -> None:
        """Apply a new dialplan to further calls."""
        self.dialplan = dialplan

    async def start(self) -> None:
        """Start a task for each ``[[synthetic_call]]``, which repeats its call."""
        for number, one in enumerate(self.settings):
            self._tasks.serve(partial(self._repeat, number, one), f"synthetic {one.name}")

    async def stop(self) -> None:
        """Make no further call, and end those in progress."""
        await self._tasks.cancel()

    def readings(self) -> Iterator[Reading]:
        """Yield what ``/metrics`` reads."""
        for name, result in self._results.items():
            labels = {"name": name}
            if result.up is not None:
                yield "synthetic_up", labels, float(result.up)
            if result.heard_seconds is not None:
                yield "synthetic_heard_seconds", labels, result.heard_seconds
            for outcome in ("passed", "failed"):
                told = {**labels, "result": outcome}
                yield "synthetic_calls", told, float(result.counts[outcome])

    def mark(self, invite: Invite, record: CallRecord) -> Match | None:
        """Mark the record of an INVITE that a synthetic call has sent, known by its Call-ID.

        Returns the match of the route that it names; None for other calls, and where it names none.
        """
        made = (
            one for leg, one in self._legs.items() if leg.invite.sip_call_id == invite.sip_call_id
        )
        caller = next(made, None)
        if caller is None:
            return None
        caller.record, settings = record, caller.settings
        record.variant = SYNTHETIC
        record.explanation.append(f"synthetic call {settings.name}")
        route = next((one for one in self.dialplan.routes if one.name == settings.route), None)
        if route is None:
            return None
        return placed_match(route, invite.to_uri, invite.trunk, {}, datetime.now(UTC))

    async def _repeat(self, number: int, settings: SyntheticCall) -> None:
        """Place one synthetic call after another at its interval (±5 %); never ends.

        None while the process drains; one that fails then is not counted.
        """
        pause = FIRST_SECONDS + number
        while True:
            await asyncio.sleep(pause)
            pause = settings.interval_minutes * 60 * uniform(0.95, 1.05)
            if self.draining():
                continue
            why, heard = await self._call(settings)
            if not (why and self.draining()):
                self._tell(settings.name, why, heard)

    def _tell(self, name: str, why: str, heard: float | None) -> None:
        """Count and log the outcome of a synthetic call; webhooks get a failure, and the first
        success after one."""
        result = self._results[name]
        before, result.up, result.heard_seconds = result.up, not why, heard
        outcome = "failed" if why else "passed"
        result.counts[outcome] += 1
        told = {"name": name, "why": why, "heard_ms": None if heard is None else round(heard * 1e3)}
        (log.warning if why else log.info)(f"synthetic.{outcome}", **told)
        if why or before is False:
            self.records.announce(f"synthetic.{outcome}", told)

    async def _call(self, settings: SyntheticCall) -> tuple[str, float | None]:
        """Call ourselves; return why that failed, "" if it passed, and when the agent was heard.

        Passed: answered within ``answer_within`` s, then a peak of ``LOUD`` within ``heard_within``
        s. The second is the time from the INVITE (s); None if it failed. Hangs up in any case.
        """
        address = self._address()
        if address is None:
            return "there is no listener by UDP or TCP to call", None
        caller, audio = _Caller(settings), CallAudio(Codec.PCMU, PLAYOUT_FRAMES)
        clock = asyncio.get_running_loop().time
        began = clock()
        uri = f"sip:{settings.to or SYNTHETIC}@{address}"
        leg = self.agent.dial(uri, caller, audio, [Codec.PCMU])
        self._legs[leg] = caller
        try:
            await wait_any(settings.answer_within, caller.answered, caller.ended)
            if caller.ended.is_set():
                return f"not answered: {caller.how}", None
            if not caller.answered.is_set():
                return f"not answered within {settings.answer_within:g} s", None
            until = clock() + settings.heard_within
            while clock() < until and not caller.ended.is_set():
                if audio.levels[0] >= LOUD:
                    return "", clock() - began
                await asyncio.sleep(LOOK_SECONDS)
            if caller.ended.is_set():
                return f"ended before the agent was heard: {caller.how}", None
            return f"the agent was not heard within {settings.heard_within:g} s", None
        finally:
            leg.hang_up()
            await wait_any(END_SECONDS, caller.ended)
            del self._legs[leg]

    def _address(self) -> str | None:
        """Return host and port of a listener by UDP, else TCP, for a SIP URI; None for neither.

        A wildcard address becomes the loopback one.
        """
        for wanted in ("udp", "tcp"):
            for address in self.agent.addresses:
                transport, _, place = address.partition(":")
                if transport == wanted:
                    host, _, port = place.rpartition(":")
                    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
                    return f"{host}:{port}" + (";transport=tcp" if wanted == "tcp" else "")
        return None

# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a gateway process: start, serve, drain, stop; and its health.

SIP thread, media clock, event loop and background tasks are checked once a second. A failure after
which no call can be carried ends the process, so that its supervisor starts it again; any other is
reported by ``gateway status`` and to systemd.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from typing import Any

import structlog

from gateway.addresses import LookupLoop
from gateway.app.gateway import Gateway
from gateway.app.reload import Read
from gateway.app.supervisor import SupervisorLink, notify
from gateway.call.call_record import CallRecord
from gateway.config import Config
from gateway.dialplan import Dialplan
from gateway.measures import Distribution
from gateway.sip.agent import AgentError
from gateway.tasks import TaskSet, wait_any

log = structlog.get_logger("gateway")

LOOK_SECONDS = 1.0

LAG_LOOKS = 5
"""Measurements of the event loop's lag in that time."""

STALL_SECONDS = 1.0
"""The event loop late by so much is a line in the log: every call stood still."""

HUNG_SECONDS = 20.0
"""An event loop or a SIP thread that has not turned for so long is not waited for any more."""

SILENT_CLOCK_SECONDS = 5.0
"""A media clock that brings nothing for so long, while calls have media, has stopped."""


class Health:
    """Keeps what has failed in this process, by the name of the part.

    Args:
        sip: what is wrong with the SIP thread; empty while nothing is.
        beats: how often the media clock has brought audio; None while no call has media.
        on_look: called each second with whether all is well.
        on_unfit: called once, with the reason, when no call can be carried any more.
        lag: counts by how much (s) a timer of the event loop comes late.
    """

    def __init__(
        self,
        sip: Callable[[], str],
        beats: Callable[[], int | None],
        on_look: Callable[[bool], None],
        on_unfit: Callable[[str], None],
        lag: Distribution,
    ) -> None:
        self.problems: dict[str, str] = {}
        self._lag = lag
        self._sip = sip
        self._beats = beats
        self._on_look = on_look
        self._on_unhealthy = on_unfit
        self._stalls = 0
        self._longest_stall = 0.0
        self._last_beats: int | None = None
        self._silent_since = 0.0
        self._tasks = TaskSet()

    def start(self) -> None:
        """Start looking, once a second."""
        self._tasks.serve(self._run, "health")

    async def stop(self) -> None:
        """Stop looking, and call off the dump of threads that hang."""
        await self._tasks.cancel()
        faulthandler.cancel_dump_traceback_later()

    def failed(self, part: str, error: object) -> None:
        """Report that a part of the process has failed, from now until the process ends."""
        self.problems[part] = str(error)
        log.error("gateway.not_well", part=part, error=str(error))

    def on_unhandled(self, _loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Log what nobody has caught: the event loop's exception handler."""
        error, task = context.get("exception"), context.get("background")
        log.error(
            "gateway.unhandled",
            what=context.get("message"),
            exc_info=error if isinstance(error, BaseException) else None,
        )
        if isinstance(task, asyncio.Task):
            self.failed(task.get_name(), f"{type(error).__name__}: {error}")

    def as_json(self) -> dict[str, Any]:
        """Return the state of the process for ``gateway status``."""
        return {
            "well": not self.problems,
            "problems": dict(self.problems),
            "loop_stalls": self._stalls,
            "longest_loop_stall_seconds": round(self._longest_stall, 1),
        }

    async def _run(self) -> None:
        """Look regularly whether SIP thread, media clock and tasks are alive."""
        loop = asyncio.get_running_loop()
        while True:
            # By a thread that needs no interpreter: also where something never gives it back.
            faulthandler.dump_traceback_later(HUNG_SECONDS, exit=True)
            late = 0.0
            for _ in range(LAG_LOOKS):
                began = loop.time()
                await asyncio.sleep(LOOK_SECONDS / LAG_LOOKS)
                one = loop.time() - began - LOOK_SECONDS / LAG_LOOKS
                self._lag.observe(one)
                late = max(late, one)
            if late >= STALL_SECONDS:
                self._stalls += 1
                self._longest_stall = max(self._longest_stall, late)
                log.error("gateway.loop_stalled", seconds=round(late, 1))
            self._look(loop.time())

    def _look(self, now: float) -> None:
        """Note a SIP thread or media clock that has stopped."""
        unfit = {"SIP thread": self._sip(), "media clock": self._clock(now)}
        for part, error in unfit.items():
            if error and part not in self.problems:
                self.failed(part, error)
                self._on_unhealthy(f"{part}: {error}")
        self._on_look(not self.problems)

    def _clock(self, now: float) -> str:
        """Return why the media clock is unfit: it has stood still for too long; or ""."""
        beats = self._beats()
        if beats is None or beats != self._last_beats:
            self._last_beats, self._silent_since = beats, now
            return ""
        silent = now - self._silent_since
        return f"no beat for {silent:.0f} s" if silent >= SILENT_CLOCK_SECONDS else ""


BYE_SECONDS = 4.0
"""Wait (s) of a shutdown for calls that were ended."""

REPORT_SECONDS = 5.0
"""Interval (s) at which the log names the calls that a drain waits for."""

REPORTED_CALLS = 20
"""Calls that such a line names."""


class State(StrEnum):
    """State of the process, in order; a start that fails is STOPPED."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


_NOTIFIED = {
    State.STARTING: (),
    State.SERVING: ("READY=1",),
    State.DRAINING: ("STOPPING=1",),
    State.STOPPED: (),
}
"""Messages to systemd on entering a state, beside ``STATUS=`` (sd_notify(3))."""


class Service:
    """Runs a gateway on the event loop of this process.

    Args:
        supervisor_link: descriptor of the socket to the supervisor that started this process, if
            one did.
        read: reads the files anew, for a reload; without it nothing but certificates is.
    """

    def __init__(
        self,
        config: Config,
        dialplan: Dialplan,
        supervisor_link: int | None = None,
        read: Read | None = None,
    ) -> None:
        self.state = State.STARTING
        self._gateway = gateway = Gateway(config, dialplan, self._status, self._drain, read)
        self._draining = asyncio.Event()
        self._force_stop = asyncio.Event()
        self._unfit = ""
        self._link = (
            None
            if supervisor_link is None
            else SupervisorLink(supervisor_link, self._on_supervisor_gone)
        )
        self.health = Health(
            lambda: gateway.agent.trouble(HUNG_SECONDS),
            lambda: gateway.pump.beats if gateway.agent.pool.in_use else None,
            self._on_look,
            self._on_unhealthy,
            gateway.lag,
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends the calls at once.

        Raises AgentError or OSError when something cannot be had at start, and AgentError when the
        process cannot carry calls any more.
        """
        async with self._running(serving=True):
            if self._link is not None:
                self._link.report_ready()
            await self._draining.wait()
        if self._unfit:
            raise AgentError(self._unfit)

    async def run_one(
        self,
        to: str,
        route: str,
        trunk: str = "",
        variables: Mapping[str, str] | None = None,
        caller_id: str = "",
    ) -> CallRecord:
        """Place one call, take none, and end with it; SIGTERM or SIGINT hang it up.

        Raises as :meth:`run` and :meth:`OutboundCalls.dial` do.
        """
        async with self._running(serving=False):
            try:
                outbound = self._gateway.outbound
                _record, over = await outbound.place(to, route, trunk, variables, caller_id)
                ended = asyncio.Event()
                over.add_done_callback(lambda _over: ended.set())
                await wait_any(None, ended, self._draining)
            finally:
                self._force_stop.set()
        return await over

    @asynccontextmanager
    async def _running(self, *, serving: bool) -> AsyncIterator[None]:
        """Start everything, and stop it in reverse order at the end."""
        loop = asyncio.get_running_loop()
        # Signals, health and the link to the supervisor last until every part has stopped.
        async with AsyncExitStack() as process:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._on_signal, number)
                process.callback(loop.remove_signal_handler, number)
            if self._link is not None:
                process.callback(self._link.close)
            self._enter(State.STARTING)
            async with AsyncExitStack() as parts:
                await self._gateway.start(parts, serving=serving)
                self.health.start()
                process.push_async_callback(self.health.stop)
                if not self._draining.is_set():
                    self._enter(State.SERVING)
                try:
                    yield
                finally:
                    await self._end_calls()
            self._enter(State.STOPPED)
            log.info("gateway.stopped", media_faults=self._gateway.pump.faults)

    def _enter(self, state: State) -> None:
        self.state = state
        log.info("gateway.state", state=state.value)
        notify(*_NOTIFIED[state], f"STATUS={state.value}")

    def _drain(self) -> None:
        """Take no further call; a second time nothing changes."""
        self._draining.set()
        self._gateway.drain()
        if self.state is not State.DRAINING:
            self._enter(State.DRAINING)

    async def _end_calls(self) -> None:
        """Wait for calls to end, and end those that are left at the deadline."""
        calls, limits = self._gateway.calls, self._gateway.config.limits
        self._drain()
        reporting = TaskSet()
        reporting.spawn(self._report_calls(), "report calls left")
        # A dispatcher's probes are to see that we drain.
        await wait_any(limits.min_drain_time, self._force_stop)
        left = max(0.0, limits.drain_timeout - limits.min_drain_time)
        await calls.wait_idle(left, self._force_stop)
        calls.shut_down()
        await calls.wait_idle(BYE_SECONDS)
        if calls:
            log.warning("gateway.calls_not_ended", calls=calls.ids)
        await calls.wait_gone(BYE_SECONDS)
        await reporting.cancel()

    async def _report_calls(self) -> None:
        """Log the calls that a drain waits for, every ``REPORT_SECONDS``; never ends."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            calls = self._gateway.calls
            if calls:
                log.info("gateway.draining", count=len(calls), calls=calls.ids[:REPORTED_CALLS])

    def _status(self) -> Mapping[str, object]:
        return {
            "state": self.state.value,
            "draining": self.state is State.DRAINING,
            "health": self.health.as_json(),
        }

    def _on_signal(self, number: int) -> None:
        """Drain on SIGTERM or SIGINT; the second one ends the calls."""
        if self._draining.is_set():
            self._force_stop.set()
        calls = len(self._gateway.calls)
        log.info("gateway.signal", signal=signal.Signals(number).name, calls=calls)
        self._drain()

    def _on_look(self, well: bool) -> None:
        """Report health to supervisor and systemd."""
        if self._link is not None:
            self._link.report_health(well)
        if well:
            notify("WATCHDOG=1")
        else:
            notify(f"STATUS=not well: {', '.join(self.health.problems)}")

    def _on_unhealthy(self, why: str) -> None:
        """End, to be started again: no call can be carried any more."""
        calls = self._gateway.calls
        log.error("gateway.cannot_carry_calls", error=why, calls=len(calls))
        self._unfit = why
        self._force_stop.set()
        self._drain()
        for call in calls:
            call.give_up(why)

    def _on_supervisor_gone(self) -> None:
        """Drain: nobody would start this worker again."""
        log.error("gateway.supervisor_gone", calls=len(self._gateway.calls))
        self._drain()


def run(
    config: Config,
    dialplan: Dialplan,
    supervisor_link: int | None = None,
    read: Read | None = None,
) -> None:
    """Serve until told to stop: ``gateway run``."""

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        service = Service(config, dialplan, supervisor_link, read)
        loop.set_exception_handler(service.health.on_unhandled)
        await service.run()

    with asyncio.Runner(loop_factory=LookupLoop) as runner:
        runner.run(serve())

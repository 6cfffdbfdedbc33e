# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a gateway process: start, serve, drain, stop; and its health.

SIP thread, media clock, event loop and background tasks are checked once a second. A failure after
which no call can be carried ends the process, so that its supervisor starts it again; any other is
reported by ``gateway status`` and to systemd.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import threading
import time
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
"""A timer of the event loop late by so much (s) is logged: every call stood still."""

HUNG_SECONDS = 20.0
"""An event loop that does not run for so long (s) ends the process, with a dump of its threads; a
SIP thread that does not has the process end after its calls were given up."""

SILENT_CLOCK_SECONDS = 5.0
"""A media clock without a frame for so long (s), while calls have media, has stopped."""


class Health:
    """Checks SIP thread, media clock and event loop each second, and keeps what has failed.

    A failure stays until the process ends.

    Args:
        sip: what is wrong with the SIP thread; empty while nothing is.
        beats: how often the media clock has brought audio; None while no call has media.
        on_look: called each second with whether all is well.
        on_unfit: called when SIP thread or media clock fail, once for each, with the reason.
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
        """Start the checks, once a second."""
        self._tasks.serve(self._run, "health")

    async def stop(self) -> None:
        """Stop the checks, and the timer that ends the process when the event loop hangs."""
        await self._tasks.cancel()
        faulthandler.cancel_dump_traceback_later()

    def failed(self, part: str, error: object) -> None:
        """Note and log that a part has failed, until the process ends; it ends nothing."""
        self.problems[part] = str(error)
        log.error("gateway.not_well", part=part, error=str(error))

    def on_unhandled(self, _loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Log an exception that nobody has caught: the event loop's exception handler.

        Of a loop that :func:`gateway.tasks.background` has given up, its part has failed, too.
        """
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
        """Measure the event loop's lag, and check SIP thread and media clock; never ends.

        Each round, of ``LOOK_SECONDS``, puts off the timer of :data:`HUNG_SECONDS`, at which the
        process exits.
        """
        loop = asyncio.get_running_loop()
        while True:
            # By a thread that needs no interpreter: also where something never gives it back.
            faulthandler.dump_traceback_later(HUNG_SECONDS, exit=True)
            late = computed = 0.0
            for _ in range(LAG_LOOKS):
                began, began_cpu = loop.time(), time.thread_time()
                await asyncio.sleep(LOOK_SECONDS / LAG_LOOKS)
                one = loop.time() - began - LOOK_SECONDS / LAG_LOOKS
                self._lag.observe(one)
                if one > late:
                    late, computed = one, time.thread_time() - began_cpu
            if late >= STALL_SECONDS:
                self._stalls += 1
                self._longest_stall = max(self._longest_stall, late)
                # The rest of the time it had no processor, or waited for a disk.
                log.error(
                    "gateway.loop_stalled", seconds=round(late, 1), cpu_seconds=round(computed, 1)
                )
            self._look(loop.time())

    def _look(self, now: float) -> None:
        """Note a SIP thread or media clock that has stopped, tell ``on_unfit`` once for each, and
        tell ``on_look`` whether all is well."""
        unfit = {"SIP thread": self._sip(), "media clock": self._clock(now)}
        for part, error in unfit.items():
            if error and part not in self.problems:
                self.failed(part, error)
                self._on_unhealthy(f"{part}: {error}")
        self._on_look(not self.problems)

    def _clock(self, now: float) -> str:
        """Return why the media clock is unfit: no beat for ``SILENT_CLOCK_SECONDS``; else "".

        While no call has media it is not expected to beat.
        """
        beats = self._beats()
        if beats is None or beats != self._last_beats:
            self._last_beats, self._silent_since = beats, now
            return ""
        silent = now - self._silent_since
        return f"no beat for {silent:.0f} s" if silent >= SILENT_CLOCK_SECONDS else ""


BYE_SECONDS = 4.0
"""Wait (s) of a shutdown for BYE of the calls that it ended, and again for their sessions."""

REPORT_SECONDS = 5.0
"""Interval (s) at which the log names the calls that a drain waits for."""

REPORTED_CALLS = 20
"""Calls that such a line names."""


class State(StrEnum):
    """State of the process, in order; where the start fails it stays STARTING."""

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
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends the calls at once.

        Drained, too: by the API, without its supervisor, and when no call can be carried.

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
        """Place one call, take none, and stop with it; SIGTERM or SIGINT hang it up.

        Returns its record. Raises as :meth:`run` and :meth:`OutboundCalls.dial` do, and AgentError
        where the call has not ended when everything else has.
        """
        async with self._running(serving=False):
            try:
                outbound = self._gateway.outbound
                record, over = await outbound.place(to, route, trunk, variables, caller_id)
                ended = asyncio.Event()
                over.add_done_callback(lambda _over: ended.set())
                await wait_any(None, ended, self._draining)
            finally:
                self._force_stop.set()
        if not over.done():
            raise AgentError(f"the call {record.call_id} has not ended")
        return over.result()

    @asynccontextmanager
    async def _running(self, *, serving: bool) -> AsyncIterator[None]:
        """Start everything; at the end drain, end the calls, and stop it in reverse order.

        Raises what a part raises at its start, after the parts before it were stopped.
        """
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
        """Change the state, log it, and tell systemd."""
        self.state = state
        log.info("gateway.state", state=state.value)
        notify(*_NOTIFIED[state], f"STATUS={state.value}")

    def _drain(self) -> None:
        """Take no further call, and have :meth:`run` end; a second time nothing changes."""
        self._draining.set()
        self._gateway.drain()
        if self.state is not State.DRAINING:
            self._enter(State.DRAINING)

    async def _end_calls(self) -> None:
        """Drain, and end the calls that are left at ``limits.drain_timeout``.

        At least ``limits.min_drain_time`` (s) passes, so that dispatchers see it; a second signal
        ends both waits. Then calls have ``BYE_SECONDS``, and their sessions again as long.
        """
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
        """Return state, draining and health, for ``gateway status`` and the API."""
        return {
            "state": self.state.value,
            "draining": self.state is State.DRAINING,
            "health": self.health.as_json(),
        }

    def _on_signal(self, number: int) -> None:
        """Drain on SIGTERM or SIGINT; end the calls at once if the process drains already."""
        if self._draining.is_set():
            self._force_stop.set()
        calls = len(self._gateway.calls)
        log.info("gateway.signal", signal=signal.Signals(number).name, calls=calls)
        self._drain()

    def _on_look(self, well: bool) -> None:
        """Report health to the supervisor; to systemd the watchdog's beat, or what is not well."""
        if self._link is not None:
            self._link.report_health(well)
        if well:
            notify("WATCHDOG=1")
        else:
            notify(f"STATUS=not well: {', '.join(self.health.problems)}")

    def _on_unhealthy(self, why: str) -> None:
        """Give up all calls and end with an error, to be started again: no call can be carried."""
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


EXIT_SECONDS = 3.0
"""Wait after the stop for threads that still work, as on a disk that hangs: Python waits for them
without a deadline."""


def run(
    config: Config,
    dialplan: Dialplan,
    supervisor_link: int | None = None,
    read: Read | None = None,
    write_log: Callable[[], None] = lambda: None,
) -> None:
    """Run a gateway on an event loop of its own until it is told to stop: ``gateway run``.

    The process then has ``EXIT_SECONDS`` to end; it exits without its threads, after a last
    ``write_log``, where those hold it up. Raises as :meth:`Service.run`.
    """

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        service = Service(config, dialplan, supervisor_link, read)
        loop.set_exception_handler(service.health.on_unhandled)
        await service.run()

    status = 1

    def leave() -> None:
        others = [one for one in threading.enumerate() if one is not threading.main_thread()]
        log.error("gateway.threads_left", threads=[one.name for one in others if not one.daemon])
        write_log()
        os._exit(status)

    with asyncio.Runner(loop_factory=LookupLoop) as runner:
        try:
            runner.run(serve())
            status = 0
        finally:
            end = threading.Timer(EXIT_SECONDS, leave)
            end.daemon = True
            end.start()

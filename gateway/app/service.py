"""The gateway as a process: start up, serve, shut down."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

import structlog

from gateway import __version__
from gateway.app.capacity import room_for
from gateway.app.health import HUNG_SECONDS, Health
from gateway.app.maintenance import Maintenance
from gateway.app.operator_commands import OperatorCommands
from gateway.app.refusals import Rejections
from gateway.app.server_health import HealthChecker
from gateway.app.workers.notify import notify
from gateway.app.workers.supervisor_link import SupervisorLink
from gateway.billing.costs import Costs
from gateway.bridge.call_controller import CallController
from gateway.bridge.media_clock import MediaClock
from gateway.call.ending import EndReason
from gateway.call.record import CallRecord
from gateway.config import Config
from gateway.control.content import ContentCommands
from gateway.dialplan import Dialplan, Match, Route
from gateway.outbound.callbacks.function import function_of
from gateway.outbound.callbacks.scheduler import CallbackScheduler
from gateway.outbound.calls import OutboundCalls
from gateway.outbound.limits import OutboundLimiter
from gateway.planning.call_plan import (
    codec_of,
    facts_of,
    plans,
    record_of,
    servers_of,
    sip_settings,
)
from gateway.planning.route_tools import tool_executor
from gateway.records.events import EventLogs
from gateway.records.files import RecordFiles
from gateway.sip import library
from gateway.sip.agent import AgentError, UserAgent
from gateway.sip.ingress.message import user_of
from gateway.sip.leg import Leg
from gateway.sip.report import bans, refusals, trunk_states

log = structlog.get_logger("gateway")

BYE_SECONDS = 4.0
"""How long a shutdown waits for calls that were told to end."""


class Service:
    """Owns the user agent, the pump, the records and every call.

    Args:
        lifeline: descriptor of the socket to the supervisor that started this process, if one did.
    """

    def __init__(
        self, config: Config, dialplan: Dialplan, supervisor_link: int | None = None
    ) -> None:
        self._config = config
        self._dialplan = dialplan
        self._sip = sip_settings(config)
        self._pump = MediaClock()
        self._records = RecordFiles(config.records.folder)
        secrets = (*config.secrets(), *dialplan.secrets())
        self._event_logs = EventLogs(config.records.folder, secrets)
        self._costs = Costs(config)
        self._tool_executor = tool_executor(config, dialplan)
        realtime = config.realtime
        self._health_checker = HealthChecker(
            servers_of(config, dialplan), realtime.health_check_interval, realtime.connect_timeout
        )
        self._calls: set[CallController] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._max_calls = 0
        self._only_placing = False
        self._started = 0.0
        self._supervisor_link = (
            None
            if supervisor_link is None
            else SupervisorLink(supervisor_link, self._on_supervisor_gone)
        )
        self.refusals = Rejections(self._records, self._sip.retry_after)
        self.refusals.redact = config.records.redact
        self._agent = UserAgent(
            self._sip,
            on_invite=self._on_invite,
            on_refused=self.refusals.refused_below,
            on_caller_audio=self._pump.wake,
        )
        self.health = Health(
            lambda: self._agent.trouble(HUNG_SECONDS),
            lambda: self._pump.beats if self._agent.pool.in_use else None,
            self._on_look,
            self._on_unfit,
        )
        self._unfit = ""
        self._placing = OutboundLimiter(config.outbound, self._agent)
        self._outbound = OutboundCalls(
            config,
            dialplan,
            self._sip.retry_after,
            self._pump,
            self._placing,
            self,
            self._tool_executor,
        )
        self._callbacks = CallbackScheduler(
            config.callbacks,
            self.dial,
            self._tool_executor.http,
            refusal=self._placing.promise_refusal,
        )
        for route in dialplan.routes:
            promise = function_of(route, self._callbacks, config.tools.timeout)
            if promise is not None:
                self._tool_executor.add(route.name, promise)
        operator = OperatorCommands(self._calls)
        commands = {
            "status": lambda _request: self._status(),
            **self._outbound.commands,
            **operator.commands,
            **ContentCommands(lambda: self._calls).commands,
        }
        self._maintenance = Maintenance(self._agent, config.control.socket, commands)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second one hurries the end.

        Raises AgentError or OSError when something cannot be had at start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        await self._start_up()
        if self._supervisor_link is not None:
            self._supervisor_link.say_up()
        self.health.start()
        notify("READY=1", "STATUS=takes calls")
        try:
            await self._stop.wait()
        finally:
            await self._shut_down()
            await self.health.stop()
            if self._supervisor_link is not None:
                self._supervisor_link.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
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

        Raises as :meth:`run` and :meth:`dial` do.
        """
        self._only_placing = True
        loop = asyncio.get_running_loop()
        try:
            await self._start_up()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._on_signal, number)
            over = self.dial(to, route, trunk, variables, caller_id)
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait((over, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
        finally:
            self._hurry.set()
            await self._shut_down()
        return await over

    async def _start_up(self) -> None:
        for problem in self._dialplan.unsure:
            log.warning("dialplan.unknown_setting", where=str(problem))
        await self._records.start()
        await self._event_logs.start()
        await self._costs.start()
        await self._tool_executor.start()
        self._health_checker.start()
        await self._agent.start()
        try:
            await self._maintenance.start()
        except AgentError:
            await self._agent.stop()
            raise
        if not self._only_placing:
            await self._callbacks.start()
        self._started = asyncio.get_running_loop().time()
        self._max_calls = room_for(self._config.sip.max_calls, self._agent.capacity)
        log.info(
            "gateway.started",
            listen=list(self._agent.addresses),
            max_calls=self._max_calls,
            routes=[route.name for route in self._dialplan.routes],
            realtime=self._config.realtime.url.partition("?")[0],
            pjsua2=asdict(library.build()),
        )

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            self._hurry.set()
        log.info("gateway.signal", signal=signal.Signals(number).name, calls=len(self._calls))
        self._drain()

    def _on_look(self, well: bool) -> None:
        if self._supervisor_link is not None:
            self._supervisor_link.say_well(well)
        if well:
            notify("WATCHDOG=1")
        else:
            notify(f"STATUS=not well: {', '.join(self.health.problems)}")

    def _on_unfit(self, why: str) -> None:
        """No call can be carried any more: end, to be started again."""
        log.error("gateway.cannot_carry_calls", error=why, calls=len(self._calls))
        self._unfit = why
        self._hurry.set()
        self._drain()
        for bridge in tuple(self._calls):
            bridge.give_up(why)

    def _on_supervisor_gone(self) -> None:
        log.error("gateway.supervisor_gone", calls=len(self._calls))
        self._drain()

    def _drain(self) -> None:
        """No new calls from now on, and OPTIONS says so."""
        self._stop.set()
        self._agent.drain()
        notify("STOPPING=1", "STATUS=draining")

    async def _shut_down(self) -> None:
        limits = self._config.limits
        await self._notice(limits.min_drain_time)
        left = max(0.0, limits.drain_timeout - limits.min_drain_time)
        await self._wait_idle(left, or_hurry=True)
        for bridge in tuple(self._calls):
            bridge.shut_down()
        await self._wait_idle(BYE_SECONDS, or_hurry=False)
        if self._calls:
            log.warning("gateway.calls_not_ended", calls=[b.record.call_id for b in self._calls])
        if self._leaving:
            await asyncio.wait(tuple(self._leaving), timeout=BYE_SECONDS)
        await self._callbacks.stop()
        await self._maintenance.stop()
        await self._agent.stop()
        self.refusals.stop()
        await self._health_checker.stop()
        await self._tool_executor.stop()
        await self._records.stop()
        await self._event_logs.stop()
        await self._costs.stop()
        log.info("gateway.stopped", media_faults=self._pump.faults)

    async def _notice(self, seconds: float) -> None:
        """Stay for a dispatcher's probes to see that we drain."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    async def _wait_idle(self, seconds: float, *, or_hurry: bool) -> None:
        waits = [asyncio.create_task(self._idle.wait())]
        if or_hurry:
            waits.append(asyncio.create_task(self._hurry.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()

    def _status(self) -> dict[str, object]:
        """What ``gateway status`` shows; times in seconds."""
        return {
            "version": __version__,
            "pjsua2": asdict(library.build()),
            "uptime_seconds": round(asyncio.get_running_loop().time() - self._started, 1),
            "health": self.health.as_json(),
            "draining": self._stop.is_set(),
            "listen": list(self._agent.addresses),
            "max_calls": self._max_calls,
            "calls": [bridge.record.in_progress(datetime.now(UTC)) for bridge in self._calls],
            "trunks": trunk_states(self._agent),
            "refused": refusals(self._agent),
            "banned": bans(self._agent),
            "unrecorded": dict(self.refusals.unrecorded),
            "cost": self._costs.as_json(),
            "realtime": self._health_checker.as_json(),
            "mcp": self._tool_executor.states(),
            "callbacks": self._callbacks.as_json(),
            "dropped": {
                "records": self._records.dropped,
                "media faults": self._pump.faults,
            },
        }

    # ---- calls

    def _on_invite(self, leg: Leg) -> None:
        now = datetime.now(UTC)
        record = CallRecord(leg.invite.call_id, leg.invite.sip_call_id, started_at=now.isoformat())
        try:
            record = record_of(leg.invite, now)
            self._admit(leg, record, now)
        except Exception as error:
            # Before it had a bridge: that ends its call by itself.
            log.exception("call.internal_error", call=record.call_id, route=record.route)
            self.refusals.refuse(
                leg, record, EndReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
            )

    def _admit(self, leg: Leg, record: CallRecord, now: datetime) -> None:
        if self._stop.is_set() or self._only_placing:
            self.refusals.refuse(leg, record, EndReason.SHUTDOWN)
        elif len(self._calls) >= self._max_calls:
            self.refusals.refuse(
                leg, record, EndReason.OVER_CAPACITY, f"{self._max_calls} calls in progress"
            )
        elif leg.invite.offered == ():
            self.refusals.refuse(leg, record, EndReason.NO_COMMON_CODEC)
        else:
            match = self._dialplan.match(facts_of(leg.invite, now))
            if match is None:
                to = leg.invite.to_user
                self.refusals.refuse(leg, record, EndReason.NO_ROUTE, f"no route takes {to!r}")
            elif (spent := self.spent(match.route, leg.invite.from_user)) is not None:
                record.route = match.route.name
                self.refusals.refuse(leg, record, EndReason.BUDGET, spent)
            else:
                self._take(leg, record, match)

    def _take(self, leg: Leg, record: CallRecord, match: Match) -> None:
        codec = codec_of(leg.invite)
        record.route, record.codec = match.route.name, codec.value
        bridge = CallController(
            leg,
            *self._health_checker.inform(
                *plans(
                    self._config,
                    match,
                    codec,
                    self._sip.retry_after,
                    self._tool_executor,
                    trusted=leg.invite.trusted,
                )
            ),
            record,
            self._pump,
            self.finished,
            dial=self._placing.dial,
            permit_refer=self._placing.permit_refer,
            tools=self._tool_executor,
        )
        record.mark(0.0, "invite", source=record.source)
        if match.cleaned:
            record.mark(0.0, "variables_cleaned", names=list(match.cleaned))
            log.warning("call.variables_cleaned", call=record.call_id, names=list(match.cleaned))
        self.begin(bridge)

    def begin(self, bridge: CallController) -> None:
        """Count a call, and start it."""
        self._calls.add(bridge)
        self._idle.clear()
        bridge.start(lambda: self._watch(bridge))

    def _watch(self, bridge: CallController) -> None:
        record = bridge.record
        route = next(one for one in self._dialplan.routes if one.name == record.route)
        redact = route.records.redact
        record.private.redact(self._config.records.redact if redact is None else redact)
        number = user_of(record.from_uri if record.direction == "inbound" else record.to_uri)
        account = self._costs.open(
            route,
            number,
            model=bridge.session_plan.endpoint.model,
            url=bridge.session_plan.endpoint.url,
            session=bridge.session_plan.settings,
        )
        events = None
        own = route.records.events
        if self._config.records.events if own is None else own:
            events = self._event_logs.open(
                record.call_id, record.started_at, record.private, route=record.route
            )
        bridge.watch(account, events)

    def spent(self, route: Route, number: str) -> str | None:
        """The budget that leaves nothing for another call, if one does."""
        reached = self._costs.exhausted(route, number)
        return None if reached is None else str(reached)

    def dial(
        self,
        to: str,
        route: str,
        trunk: str = "",
        variables: Mapping[str, str] | None = None,
        caller_id: str = "",
    ) -> asyncio.Future[CallRecord]:
        """Place a call with a route's session; the result is its record, once it is over.

        Args:
            to: a number, which needs a trunk, or a sip or tel URI.
            route: the name of a route; its conditions are not asked.
            variables: what the route's named groups would have brought.
            caller_id: in place of the trunk's own; its ``caller_ids`` has to allow it.

        Raises DialRefusedError, naming the rule that does not let it be placed, and ValueError
        where route, trunk or address are not to be had.
        """
        return self._outbound.dial(to, route, trunk, variables, caller_id)

    def no_room(self) -> str | None:
        """Which rule lets no further call begin now; None when there is room."""
        if self._stop.is_set():
            return "the gateway shuts down"
        if len(self._calls) >= self._max_calls:
            return f"sip.max_calls: {self._max_calls} calls in progress"
        return None

    def finished(self, bridge: CallController) -> None:
        """A call is over."""
        self._calls.discard(bridge)
        if not self._calls:
            self._idle.set()
        self._records.write(bridge.record)
        leaving = asyncio.create_task(bridge.gone(), name=f"leave {bridge.record.call_id}")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)


def run(config: Config, dialplan: Dialplan, supervisor_link: int | None = None) -> None:
    """Serve until told to stop: ``gateway run``."""

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        service = Service(config, dialplan, supervisor_link)
        loop.set_exception_handler(service.health.on_unhandled)
        await service.run()

    asyncio.run(serve())

# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a gateway process: made from its configuration, started in order, stopped in the
opposite order."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from gateway import __version__
from gateway.app.admission import Admission, Rejections, explained_refusal
from gateway.app.api_backend import Api, BrowserCalls, Readings
from gateway.app.api_commands import (
    ContentCommands,
    DialCommands,
    OperatorCommands,
    ProcessCommands,
)
from gateway.app.applications import Applications, client_secret
from gateway.app.callbacks import CallbackScheduler, Store, function_of
from gateway.app.canary import Canaries
from gateway.app.health_checks import HealthChecker, SyntheticCalls
from gateway.app.outbound_calls import OutboundCalls, OutboundLimiter
from gateway.app.registry import (
    CallRegistry,
    facts_for_slot,
    possible_calls,
)
from gateway.app.reload import Read, Reloader
from gateway.app.shared_state import SharedState
from gateway.app.stores import Step, endpoints_of, stores_of
from gateway.billing import Costs
from gateway.bridge.call_controller import CallController
from gateway.bridge.media import MediaPump
from gateway.bridge.route_data import CallerHistories
from gateway.config import Config
from gateway.dialplan import Dialplan
from gateway.measures import LAG, Distribution
from gateway.planning import servers_of
from gateway.planning.route_notes import has_live_sessions
from gateway.planning.route_tools import tool_executor
from gateway.planning.sip import sip_settings
from gateway.sip import library
from gateway.sip.agent import UserAgent
from gateway.sip.transports import hosts_of, unreachable
from gateway.tasks import TaskSet, freeze_objects
from gateway.tools.executor import ToolExecutor
from gateway.tools.http import HttpClient

log = structlog.get_logger("gateway")

RESOLVE_SECONDS = 5.0
READY_SECONDS = 1.0
"""By which the answer to OPTIONS follows that of ``/readyz``."""


class Maintenance:
    """Tasks of the process while the user agent listens.

    Args:
        reload: what SIGHUP does.
        ready: whether calls should come here, as OPTIONS are answered: 200 or 503.
    """

    def __init__(
        self,
        agent: UserAgent,
        reload: Callable[[], Awaitable[object]],
        ready: Callable[[], bool],
    ) -> None:
        self._agent = agent
        self._ready = ready
        self._reload = reload
        self._tasks = TaskSet()

    def start(self) -> None:
        """Have SIGHUP reload and OPTIONS answered by ``ready``; warn once of unreachable trunks."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._tasks.spawn(self._look_at_addresses(), "look at addresses")
        self._tasks.serve(self._tell_ready, "answer to OPTIONS")

    async def stop(self) -> None:
        """Stop handling SIGHUP, which is ignored from now on, and the tasks."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda *_: None)  # the default would cut the drain short
        await self._tasks.cancel()

    def _on_hangup(self) -> None:
        """Reload, in a task (SIGHUP)."""
        self._tasks.spawn(self._reload_all(), "reload")

    async def _reload_all(self) -> None:
        """Reload; what became of it is in the log."""
        await self._reload()

    async def _tell_ready(self) -> None:
        """Tell the user agent each ``READY_SECONDS`` whether OPTIONS get 200 or 503; never ends."""
        while True:
            await asyncio.sleep(READY_SECONDS)
            self._agent.set_ready(self._ready())

    async def _look_at_addresses(self) -> None:
        """Resolve the hosts of trunks once, and log advice on NAT where they cannot reach us."""
        found: dict[str, list[str]] = {}
        for trunk in self._agent.trunks.all:
            found[trunk.name] = []
            for host in hosts_of(trunk):
                found[trunk.name] += await _resolved(host)
        for line in unreachable(self._agent.settings, found):
            log.warning("sip.nat", advice=line)


async def _resolved(host: str) -> list[str]:
    """Return the addresses of a host; none if it is not resolved within ``RESOLVE_SECONDS``."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            infos = await loop.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError):
        return []  # what needs it will say so
    return [str(info[4][0]) for info in infos]


PART_SECONDS = 20.0
"""Within which a part is stopped: more than any deadline of its own."""


@dataclass(frozen=True, slots=True)
class Part:
    """A component that is started and stopped with the process."""

    name: str
    start: Step | None
    stop: Step
    only_serving: bool = False
    """Not started in a process that only places a call."""

    async def start_on(self, stack: AsyncExitStack) -> None:
        """Start it, and have ``stack`` stop it. Raises what its start raises; then nothing stops
        it."""
        if self.start is not None and (starting := self.start()) is not None:
            await starting
        stack.push_async_callback(self._stop)

    async def _stop(self) -> None:
        """Stop it within ``PART_SECONDS``; what that raises is logged, and skips no other part."""
        try:
            async with asyncio.timeout(PART_SECONDS):
                stopping = self.stop()
                if stopping is not None:
                    await stopping
        except Exception:
            log.exception("gateway.stop_failed", part=self.name)


RETIRE_SECONDS = 1.0
"""Between two looks at whether calls still use functions that a reload has replaced."""


class Gateway:
    """All parts of a gateway process, started in order and stopped in the opposite order.

    Args:
        state: how the process is, for ``gateway status``.
        begin_drain: has the process end when its calls are over.
        read: reads configuration and dialplans anew; None: a reload renews certificates only.
    """

    def __init__(
        self,
        config: Config,
        dialplan: Dialplan,
        state: Callable[[], Mapping[str, Any]],
        begin_drain: Callable[[], None],
        read: Read | None = None,
    ) -> None:
        self.config = config
        self._dialplan = dialplan
        self._started = 0.0
        sip = sip_settings(config)
        self.pump = pump = MediaPump()
        self.lag = Distribution(LAG)
        """By how much (s) a timer of the event loop comes late."""
        self._stores = stores = stores_of(config, dialplan)
        records = stores.records
        self._costs = costs = Costs(config)
        self._tools = tools = tool_executor(config, dialplan)
        self._servers = servers = HealthChecker(
            servers_of(config, dialplan),
            config.realtime.health_check_interval,
            config.realtime.connect_timeout,
        )
        rejections = Rejections(
            records,
            sip.retry_after,
            (config.records.redact, config.records.redact_patterns),
            lambda key, trunk: self.config.place(key, trunk),
        )
        self.calls = calls = CallRegistry(config, dialplan, stores, costs)
        self.agent = agent = UserAgent(
            sip,
            on_invite=lambda leg: self._admission.on_invite(leg),
            on_refused=rejections.refused_below,
            on_caller_audio=pump.serve,
            on_arrival=lambda invite: records.arrived(invite.call_id, facts_for_slot(invite)),
            messages=stores.messages,
        )
        self._shared = shared = SharedState(config, costs, agent.ban)
        agent.on_banned = shared.on_banned
        calls.on_finished = shared.release
        rejections.on_refused = partial(shared.release, unused=True)
        limiter = OutboundLimiter(config.outbound, agent, shared, config.workers.count)
        applications = Applications(
            lambda: endpoints_of(self.config),
            calls,
            rejections.refuse,
            lambda uri: limiter.permit_refer(uri, True, count=False),
            lambda route: has_live_sessions(self.config, route),
        )
        self._canaries = canaries = Canaries(dialplan, shared, records, config.records.database_url)
        self._synthetic = synthetic = SyntheticCalls(
            config.synthetic_call, dialplan, agent, records, lambda: calls.closed
        )
        self._admission = Admission(
            config,
            dialplan,
            calls,
            rejections,
            pump,
            limiter,
            servers,
            tools,
            applications,
            canaries,
            synthetic,
            histories := CallerHistories(config.records.database_url),
            shared,
        )
        self.outbound = OutboundCalls(
            config,
            dialplan,
            pump,
            limiter,
            calls,
            self._admission.not_placed,
            servers,
            tools,
            shared,
            canaries.choose,
        )
        # Its own: the functions' is closed when a reload has replaced them.
        tooling = config.tools
        http = HttpClient(tooling.http_connections, tooling.http_proxy, tooling.http_ca)
        self._callbacks = callbacks = CallbackScheduler(
            config.callbacks,
            self.outbound.place,
            http,
            Store(shared.run, lambda: shared.holder),
            refusal=limiter.callback_refusal,
            draining=lambda: calls.closed,
        )
        self._add_callbacks(tools, dialplan)
        self._retired = TaskSet()
        self.reloader = reloader = Reloader(
            read or (lambda: (self.config, self._dialplan)),
            lambda: (self.config, self._dialplan),
            self._use,
            agent.renew_certificates,
        )
        operator = OperatorCommands(calls, lambda: calls.waiting, calls.refuse_waiting)
        commands = {
            "status": lambda _request: {**self._status(), **state()},
            **DialCommands(self.outbound).commands,
            "client_secret": lambda request: client_secret(self.config, self._dialplan, request),
            **operator.commands,
            **ContentCommands(lambda: calls).commands,
            **canaries.commands,
            **ProcessCommands(
                agent.register,
                lambda call: explained_refusal(agent.refused_invite(call), self.config),
            ).commands,
            "reload": lambda _request: reloader.reload(),
        }
        browsers = BrowserCalls(agent, pump, lambda: (self.config, self._dialplan))
        readings = Readings(
            config,
            agent,
            calls,
            stores,
            servers,
            pump,
            costs,
            reloader,
            self.lag,
            browsers,
            lambda: [*canaries.readings(), *synthetic.readings()],
        )
        self._api = api = Api(
            config,
            dialplan,
            agent,
            calls,
            records,
            commands,
            state,
            servers.as_json,
            begin_drain,
            stores.webhooks,
            reloader.reload,
            applications,
            readings,
            lambda call: operator.knows(call) or self.outbound.recent(call) is not None,
            shared,
        )
        # Whoever asks by OPTIONS may bring calls, whatever became of the trunks.
        maintenance = Maintenance(
            agent, reloader.reload, lambda: not api.not_ready().keys() - {"trunks"}
        )
        self._parts = (
            *(Part(*one) for one in stores.parts()),
            Part("cost state", costs.start, costs.stop),
            Part("shared state", shared.start, shared.stop),
            Part("callback requests", None, http.close),
            Part("tools", lambda: self._tools.start(), lambda: self._tools.stop()),
            Part("replaced tools", None, self._retired.cancel),
            Part("health checks", servers.start, servers.stop),
            Part("refusals", None, rejections.stop),
            Part("caller histories", None, histories.stop),
            Part("applications", None, applications.stop),
            Part("followed transfers", None, limiter.stop),
            Part("API", api.start, api.stop, only_serving=True),
            Part("SIP", agent.start, agent.stop),
            Part("control socket", api.open_socket, api.close_socket),
            Part("maintenance", maintenance.start, maintenance.stop),
            Part("callbacks", callbacks.start, callbacks.stop, only_serving=True),
            Part("canaries", canaries.start, canaries.stop, only_serving=True),
            Part("synthetic calls", synthetic.start, synthetic.stop, only_serving=True),
        )
        self._shown: dict[str, Callable[[], object]] = {
            "trunks": agent.trunk_states,
            "browser_calls": lambda: {
                "active": browsers.active,
                "limit": browsers.limit,
                "closes": dict(browsers.closes),
                "unread_frames": browsers.unread,
                "skipped_frames": browsers.skipped,
            },
            "refused": agent.refusals,
            "banned": agent.bans,
            "unrecorded": lambda: dict(rejections.unrecorded),
            "cost": costs.as_json,
            "realtime": servers.as_json,
            "mcp": lambda: self._tools.states(),
            "callbacks": callbacks.as_json,
            "records": records.as_json,
            "recordings": stores.recordings_as_json,
            "shared": shared.as_json,
            "dropped": lambda: {"records": stores.files.dropped, "media faults": pump.faults},
        }

    async def start(self, stack: AsyncExitStack, *, serving: bool) -> None:
        """Start every part, and have ``stack`` stop it.

        Args:
            serving: take INVITEs and place callbacks; else calls are only placed by ``dial``.

        Raises AgentError or OSError when something cannot be had.
        """
        for problem in self._dialplan.unsure:
            log.warning("dialplan.unknown_setting", where=str(problem))
        self._admission.closed = not serving
        for part in self._parts:
            if serving or not part.only_serving:
                await part.start_on(stack)
        freeze_objects(collect=False)
        self._started = asyncio.get_running_loop().time()
        self.calls.max_calls = possible_calls(self.config.sip.max_calls, self.agent.capacity)
        log.info(
            "gateway.started",
            listen=list(self.agent.addresses),
            max_calls=self.calls.max_calls,
            routes=[route.name for route in self._dialplan.routes],
            realtime=self.config.realtime.url.partition("?")[0],
            pjsua2=asdict(library.build()),
        )

    async def _use(
        self, config: Config, dialplan: Dialplan, last: Callable[[], Awaitable[None]]
    ) -> None:
        """Put a reloaded configuration and dialplan into effect for further calls.

        First all that may fail: servers and functions are made, ``last`` awaited, prices read; an
        exception of these leaves all as it was. Then every part gets the new ones, and functions
        that were replaced are stopped once the calls in progress now are over.
        """
        # On threads: they import modules, read certificates, go through all routes.
        servers = await asyncio.to_thread(servers_of, config, dialplan)
        tools = await asyncio.to_thread(_tools_with_client, config, dialplan)
        self._add_callbacks(tools, dialplan)
        await tools.start()
        try:
            await last()
            self._costs.use(config)
        except BaseException:
            await tools.stop()
            raise
        before, self._tools = self._tools, tools
        self.config, self._dialplan = config, dialplan
        self.calls.use(config, dialplan)
        self._admission.use(config, dialplan, tools)
        self.outbound.use(config, dialplan, tools)
        self._canaries.use(dialplan)
        self._synthetic.use(dialplan)
        realtime = config.realtime
        self._servers.use(servers, realtime.health_check_interval, realtime.connect_timeout)
        self._api.use(config, dialplan)
        self._retired.spawn(self._retire(before, set(self.calls)), "retire tools")
        self._retired.spawn(self._settle(), "settle memory")

    async def _settle(self) -> None:
        """Exempt what a reload has made from garbage collection, now and, after a full collection,
        when no call is in progress."""
        freeze_objects(collect=False)
        while True:
            await asyncio.sleep(RETIRE_SECONDS)
            if not self.calls:
                break
        freeze_objects(collect=True)

    async def _retire(self, tools: ToolExecutor, users: set[CallController]) -> None:
        """Stop functions that a reload has replaced, once the calls of ``users`` are over.

        Looks each ``RETIRE_SECONDS``; when cancelled it stops them at once.
        """
        try:
            while True:
                await asyncio.sleep(RETIRE_SECONDS)
                if not users & set(self.calls):
                    break
        finally:
            await tools.stop()

    def _add_callbacks(self, tools: ToolExecutor, dialplan: Dialplan) -> None:
        """Add the function behind ``schedule_callback`` to the tools of each route that has it."""
        for route in dialplan.routes:
            function = function_of(route, self._callbacks, self.config.tools.timeout)
            if function is not None:
                tools.add(route.name, function)

    def drain(self) -> None:
        """Begin no further call: INVITEs and OPTIONS get 503, calls in progress go on."""
        self.calls.closed = True
        self.agent.drain()

    def _status(self) -> dict[str, object]:
        """Return what ``gateway status`` shows; times in seconds."""
        return {
            "version": __version__,
            "pjsua2": asdict(library.build()),
            "uptime_seconds": round(asyncio.get_running_loop().time() - self._started, 1),
            "listen": list(self.agent.addresses),
            "max_calls": self.calls.max_calls,
            "calls": [one.as_live_json(datetime.now(UTC)) for one in self.calls.records],
            **{name: show() for name, show in self._shown.items()},
        }


def _tools_with_client(config: Config, dialplan: Dialplan) -> ToolExecutor:
    """Return what runs the functions of all routes, its HTTP client made, which reads
    ``tools.http_ca``. Raises ToolModuleError, OSError or ``ssl.SSLError``."""
    tools = tool_executor(config, dialplan)
    _ = tools.http
    return tools

# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP API of this process, joined with calls, records and metrics; and calls from pages."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gateway.api.backend import Backend, Command, EventFeed, RequestTimes, Role, Token
from gateway.api.metrics import Metrics
from gateway.api.server import ApiServer
from gateway.api.siblings import Siblings
from gateway.app.api_commands import call_named
from gateway.app.applications import Applications
from gateway.app.health_checks import HealthChecker
from gateway.app.registry import CallRegistry
from gateway.app.reload import Reloader
from gateway.app.shared_state import NotReachedError, SharedState
from gateway.app.stores import Stores
from gateway.audio import Codec
from gateway.billing import Costs
from gateway.bridge.media import MediaPump
from gateway.config import Config
from gateway.config.operations import split_address
from gateway.dialplan import Dialplan
from gateway.measures import OTHER, Distribution, Labels, Reading
from gateway.planning import server_names
from gateway.records.database import Database
from gateway.records.shared import answer_key, first_with_key
from gateway.records.store import RecordStore
from gateway.records.tables import columns_of
from gateway.records.webhooks import WebhookSender
from gateway.sip.agent import UserAgent
from gateway.sip.browser_leg import TRANSPORT, BrowserEnd
from gateway.sip.leg import Invite
from gateway.sip.library import bridge_failures, late_beats

KEY_SECONDS = 5.0
"""For the database to remember a request's key; a call is placed only once it has."""

_UP = ("registered", "static")
"""States of a trunk that takes calls, as far as is known."""


def _may_bring_calls(trunk: Mapping[str, Any]) -> bool:
    """Whether a trunk is registered or needs no registration, and its last answer to OPTIONS was a
    SIP response of any code, if it is asked by OPTIONS."""
    if trunk["state"] not in _UP:
        return False
    return not trunk["options"] or str(trunk["options"])[:1].isdigit()


class RequestKeys:
    """Idempotency keys of requests to the API, in the database that processes share.

    Without one they are in memory, for this process.
    """

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared

    async def first(self, key: str, request: str) -> tuple[str, str | None]:
        """Claim a key; see :class:`gateway.api.backend.RequestKeys`.

        Raises TimeoutError where the database does not answer within ``KEY_SECONDS``.
        """
        try:
            async with asyncio.timeout(KEY_SECONDS):
                return await self._shared.run(partial(first_with_key, key=key, request=request))
        except NotReachedError:
            raise TimeoutError from None

    def answered(self, key: str, answer: str | None) -> None:
        """Write the answer to a key's request, without waiting; None deletes the key.

        Where the database is not reached, the request counts as under way.
        """
        told = self._shared.run(partial(answer_key, key=key, answer=answer))
        told.add_done_callback(lambda future: future.cancelled() or future.exception())


_NUMBER = re.compile(r"\^(\w+)\$")


class BrowserCalls:
    """Calls from pages of the console, as INVITEs to admission. Lives on the event loop.

    Args:
        files: configuration and dialplan as they are now.
    """

    def __init__(
        self,
        agent: UserAgent,
        pump: MediaPump,
        files: Callable[[], tuple[Config, Dialplan]],
    ) -> None:
        self._agent = agent
        self._pump = pump
        self._files = files
        self._ends: set[BrowserEnd] = set()
        self.closes: Counter[str] = Counter()
        """WebSockets by why they were closed."""
        self.unread = self.skipped = 0
        """Frames of 20 ms: that pages did not take in time, and that came too fast to be mixed."""

    @property
    def limit(self) -> int:
        """Maximum number of calls at a time."""
        return self._files()[0].api.browser_calls

    @property
    def active(self) -> int:
        """Number of calls in progress."""
        return len(self._ends)

    def numbers(self) -> list[dict[str, str]]:
        """Return ``number`` and ``route`` of each enabled route whose ``to`` is ``^number$``."""
        _config, dialplan = self._files()
        return [
            {"number": found[1], "route": route.name}
            for route in dialplan.routes
            if route.enabled and route.to and (found := _NUMBER.fullmatch(route.to.pattern))
        ]

    def begin(
        self,
        to: str,
        caller: str,
        source: str,
        who: str,
        tell: Callable[[dict[str, Any]], None],
        hear: Callable[[], None],
    ) -> BrowserEnd:
        """Hand admission an INVITE (PCMU) from ``caller`` to ``to``; return the page's end.

        The limit is not checked here. :meth:`over` frees the place.

        Args:
            source: address and port of the browser.
            who: name of the API token.
            tell: given what the page is told of the call.
            hear: called when there is audio for the page.
        """
        invite = Invite(
            sip_call_id="",
            to_uri=f"sip:{to}@{TRANSPORT}.invalid",
            from_uri=f"sip:{caller}@{TRANSPORT}.invalid",
            to_user=to,
            from_user=caller,
            from_name="",
            source=source,
            headers={},
            offered=(Codec.PCMU,),
            attributed_by=f"token {who}",
            transport=TRANSPORT,
            there=True,
        )
        end = self._agent.take_browser(invite, tell)
        self._ends.add(end)
        self._pump.add(end.audio, hear)
        return end

    def over(self, end: BrowserEnd) -> None:
        """Free the place of a call whose page has left, and stop its audio."""
        self._ends.discard(end)
        self._pump.remove(end.audio)
        self.skipped += end.skipped

    def closed(self, reason: str, unread: int) -> None:
        """Count a closed WebSocket by reason, and the frames that its page did not take in time."""
        self.closes[reason] += 1
        self.unread += unread


DISK_SECONDS = 3.0
"""For which a request for metrics waits for the disk."""


class _OnDisk(NamedTuple):
    """What metrics read from the disk, for :meth:`Readings._kept` and `_recorded`."""

    waiting: Mapping[str, tuple[int, float | None, int]] = MappingProxyType({})
    free: float | None = None
    uploads: int | None = None


@dataclass(eq=False)
class Readings:
    """Metrics that ``/metrics`` reads at each request. Used on the event loop."""

    config: Config
    agent: UserAgent
    calls: CallRegistry
    stores: Stores
    servers: HealthChecker
    pump: MediaPump
    costs: Costs
    reloader: Reloader
    lag: Distribution
    browsers: BrowserCalls
    more: Callable[[], list[Reading]]

    def __post_init__(self) -> None:
        self.requests = RequestTimes()
        self._looking: asyncio.Task[_OnDisk] | None = None
        self._rules = Labels()
        self._names = server_names(self.config)

    def use(self, config: Config) -> None:
        """Read by a new configuration: its budget of the day, and names of its servers too."""
        self.config = config
        self._names |= server_names(config)

    async def all(self) -> list[Reading]:
        """Return all readings; those of the disk are left out where it does not answer within
        ``DISK_SECONDS``, or fails."""
        if self._looking is None or self._looking.done():  # a disk that hangs is asked once
            self._looking = asyncio.create_task(self._on_disk(), name="look at the disk")
        done, _ = await asyncio.wait([self._looking], timeout=DISK_SECONDS)
        waiting, free, uploads = self._looking.result() if done else _OnDisk()
        kept = (*self._kept(waiting, free), *self._recorded(uploads))
        parts = (self._calls_now(), self._trunks(), self._servers_now(), kept)
        return [*parts[0], *parts[1], *parts[2], *parts[3], *self._process(), *self.more()]

    async def _on_disk(self) -> _OnDisk:
        """Read the disk, on threads; nothing of it where it fails."""
        folder, hooks, store = (
            self.config.records.spool_folder,
            self.stores.webhooks,
            self.stores.uploads,
        )
        try:
            return _OnDisk(
                {} if hooks is None else await hooks.waiting(),
                None if folder is None else await asyncio.to_thread(_free, folder),
                None if store is None else await asyncio.to_thread(store.waiting),
            )
        except (OSError, sqlite3.Error):
            return _OnDisk()

    def _calls_now(self) -> Iterator[Reading]:
        """Yield calls by direction and state, their limit, refused INVITEs, the day's budget."""
        yield "calls_limit", {}, float(self.calls.max_calls)
        counts: Counter[tuple[str, str]] = Counter()
        for direction in ("inbound", "outbound"):
            for state in ("ringing", "placing", "talking", "held", "transferring"):
                counts[direction, state] = 0
        counts.update((call.record.direction, call.record.state) for call in self.calls)
        for (direction, state), count in counts.items():
            yield "calls_active", {"direction": direction, "state": state}, float(count)
        yield "drain_forced_calls", {}, float(self.calls.forced)
        for rule, count in self.agent.refusals().items():
            yield "invites_refused", {"rule": self._rules.of(_ADDRESS.sub("", rule))}, float(count)
        limit = self.config.cost.budget.per_day
        if limit:
            ratio = float(self.costs.as_json()["shared_total"]) / limit
            yield "budget_used_ratio", {"budget": "day"}, ratio

    def _trunks(self) -> Iterator[Reading]:
        """Yield for each trunk whether it is registered, if it registers, and whether it answers
        OPTIONS, if it was asked."""
        for trunk in self.agent.trunk_states():
            labels = {"trunk": trunk["name"]}
            if trunk["state"] != "static":
                yield "trunk_registered", labels, float(trunk["state"] in _UP)
            if trunk["options"]:
                up = float(str(trunk["options"])[:1].isdigit())
                yield "trunk_up", labels, up

    def _servers_now(self) -> Iterator[Reading]:
        """Yield for each server: sessions now, seconds to open them, their ends, errors."""
        active = Counter(dict.fromkeys(self._names.values(), 0))
        active.update(self._server(one.shown) for call in self.calls for one in call.servers)
        for name, count in active.items():
            yield "sessions_active", {"server": name}, float(count)
        for (url, result), seconds in self.servers.opened.items():
            labels = {"server": self._server(url), "result": result}
            yield "session_open_seconds", labels, seconds
        for (url, reason), count in self.servers.ends.items():
            yield "session_ends", {"server": self._server(url), "reason": reason}, float(count)
        for (url, kind), count in self.servers.errors.items():
            yield "server_errors", {"server": self._server(url), "class": kind}, float(count)

    def _kept(
        self, waiting: Mapping[str, tuple[int, float | None, int]], free: float | None
    ) -> Iterator[Reading]:
        """Yield figures of webhooks, rows of calls, and free disk space.

        Args:
            waiting: by endpoint: pending, since when the oldest (Unix time, s), dead.
            free: bytes; None where no folder is kept.
        """
        now = time.time()
        for endpoint, (pending, oldest, dead) in waiting.items():
            labels = {"endpoint": endpoint}
            yield "webhooks_pending", labels, float(pending)
            age = 0.0 if oldest is None else now - oldest
            yield "webhooks_oldest_pending_seconds", labels, age
            yield "webhooks_dead", labels, float(dead)
        if self.stores.webhooks is not None:
            for endpoint, seconds in self.stores.webhooks.seconds.items():
                yield "webhook_seconds", {"endpoint": endpoint}, seconds
                for result in ("delivered", "failed", "dead"):
                    count = self.stores.webhooks.results[endpoint, result]
                    yield "webhooks", {"endpoint": endpoint, "result": result}, float(count)
        if kept := self.stores.records.as_json():
            labels = {"sink": "database"}
            yield "records_pending", labels, float(kept["pending"])
            oldest_row = float(kept["oldest_pending_seconds"] or 0)
            yield "records_oldest_pending_seconds", labels, oldest_row
            yield "process_lost_calls", {}, float(kept["recovered"])
            for result in ("written", "parked", "lost", "incomplete"):
                yield "records", {**labels, "result": result}, float(kept[result])
        if free is not None:
            yield "storage_free_bytes", {"volume": "records"}, free

    def _recorded(self, waiting: int | None) -> Iterator[Reading]:
        """Yield figures of recordings, and of their uploads: ``waiting`` files; None without."""
        yield "recordings_lost_bytes", {}, float(self.stores.recordings.as_json()["lost_bytes"])
        if self.stores.uploads is not None and waiting is not None:
            yield "uploads_pending", {}, float(waiting)
            yield "uploads", {"result": "uploaded"}, float(self.stores.uploads.uploaded)
            yield "uploads", {"result": "failed"}, float(self.stores.uploads.failures)

    def _process(self) -> Iterator[Reading]:
        """Yield queues, traces, calls from pages, HTTP requests, lags and reloads."""
        traces = {"traces": (len(self.stores.tracing), self.stores.tracing.dropped)}
        queues = {**self.stores.writer.queues, **self.agent.queues, **traces}
        for result in ("exported", "failed"):
            yield "traces", {"result": result}, float(self.stores.tracing.results[result])
        for name, (items, dropped) in queues.items():
            yield "queue_items", {"queue": name}, float(items)
            yield "queue_dropped", {"queue": name}, float(dropped)
        for reason, count in self.browsers.closes.items():
            yield "browser_calls", {"closed": reason}, float(count)
        for (handler, method, status), seconds in tuple(self.requests.seconds.items()):
            labels = {"handler": handler, "method": method, "status": status}
            yield "http_request_seconds", labels, seconds
        yield "event_loop_lag_seconds", {}, self.lag
        yield "uplink_delay_seconds", {}, self.pump.delay
        yield "media_clock_lag_seconds", {}, late_beats()
        yield "media_faults", {}, float(self.pump.faults + bridge_failures())
        for result, count in self.reloader.counts.items():
            yield "config_reloads", {"result": result}, float(count)
        yield "config_last_success_timestamp_seconds", {}, self.reloader.read_at

    def _server(self, url: str) -> str:
        """Return the name of a server in metrics; ``other`` for one of no name."""
        return self._names.get(url, OTHER)


_ADDRESS = re.compile(r" to \S*[.:]\S*")
"""An address within a rule."""


def _free(folder: Path) -> float | None:
    """Return the free bytes of the disk that a folder is on; None where there is no folder."""
    return float(shutil.disk_usage(folder).free) if folder.is_dir() else None


@dataclass(eq=False)
class Api:
    """The API of the process, on ``api.listen`` and ``control.socket``.

    Args:
        state: of the process: ``state``, ``draining`` and ``health``.
        servers: the state of each realtime server.
        drain: begins the drain of the process.
        knows: whether this process has a call of this name, or remembers the outcome of one.
    """

    config: Config
    dialplan: Dialplan
    agent: UserAgent
    calls: CallRegistry
    records: RecordStore
    commands: Mapping[str, Command]
    state: Callable[[], Mapping[str, Any]]
    servers: Callable[[], list[dict[str, object]]]
    drain: Callable[[], None]
    webhooks: WebhookSender | None
    reload: Callable[[], Awaitable[Mapping[str, Any]]]
    applications: Applications
    readings: Readings
    knows: Callable[[str], bool]
    shared: SharedState
    _server: ApiServer | None = field(default=None, init=False)
    _counting: Metrics | None = field(default=None, init=False)

    def use(self, config: Config, dialplan: Dialplan) -> None:
        """Have the metrics follow a reload: new routes, names of servers, the day's budget."""
        self.dialplan = dialplan
        self.readings.use(config)
        if self._counting is not None:
            self._counting.use([route.name for route in dialplan.routes])

    async def start(self) -> None:
        """Listen on ``api.listen``; nothing where it is not set. Raises AgentError."""
        settings = self.config.api
        if settings.listen is not None:
            host, port = split_address(settings.listen)
            await self._made().listen(host, int(port))

    async def open_socket(self) -> None:
        """Listen on ``control.socket``; nothing where it is not set. Raises AgentError."""
        if self.config.control.socket is not None:
            await self._made().open_socket(self.config.control.socket)

    async def close_socket(self) -> None:
        """Stop listening on the Unix socket."""
        if self._server is not None:
            await self._server.close_socket()

    async def stop(self) -> None:
        """Stop listening on the address; what is not answered within seconds is cut off."""
        if self._server is not None:
            await self._server.stop()

    def _made(self) -> ApiServer:
        """Return the server of the API, made at first use."""
        if self._server is None:
            tokens = tuple(
                Token(one.name, Role[one.role.upper()], one.hash, one.routes)
                for one in self.config.api.token
            )
            self._server = ApiServer(self._backend(), tokens, Siblings(self.config.sibling_sockets))
        return self._server

    def _backend(self) -> Backend:
        """Make what the paths of the API need, and have the store of records feed it events."""
        feed = EventFeed(secrets.token_hex(4))
        self._counting = counting = Metrics(
            [route.name for route in self.dialplan.routes],
            [trunk.name for trunk in self.config.trunk],
        )
        self.records.listeners += [lambda event, _record: feed.add(event), counting.told]

        async def rendered() -> bytes:
            state, values = self.state(), await self.readings.all()
            values.append(("ready", {}, float(not self.not_ready())))
            values.append(("draining", {}, float(state["draining"])))
            return bytes(await asyncio.to_thread(counting.render, values))

        return Backend(
            commands=self.commands,
            live=self._live,
            record=self._record,
            database=None if self.config.records.database_url is None else self._database,
            feed=feed,
            ready=self.not_ready,
            problems=lambda: self.state()["health"]["problems"],
            metrics=rendered,
            drain=self.drain,
            requests=self.readings.requests,
            webhooks=self.webhooks,
            reload=self.reload,
            recordings=self.config.recording.folder,
            applications=self.applications,
            request_keys=RequestKeys(self.shared),
            browser_calls=self.readings.browsers,
            here=lambda call: self.knows(call) or self.applications.knows(call),
            levels=lambda: {call.record.call_id: call.levels for call in self.calls},
            progress=self._progress,
            listeners=lambda name: call_named({"call": name}, self.calls).listeners,
        )

    def _live(self) -> list[dict[str, Any]]:
        """Return the rows of calls in progress and of waiting INVITEs, the newest last."""
        now = datetime.now(UTC)
        records = sorted((*self.calls.records,), key=lambda one: one.started_at)
        return [
            {"id": one.call_id, **columns_of(one, now), "explanation": list(one.explanation)}
            for one in records
        ]

    def _record(self, call_id: str) -> dict[str, Any] | None:
        """Return the record of a call in progress; None for other calls."""
        found = (one for one in self.calls.records if one.call_id == call_id)
        return next((record.as_json() for record in found), None)

    def _progress(self, name: str, place: int, spoken: int) -> dict[str, Any]:
        """Return a call's summary and state, and what is new in timeline and transcript, masked.

        ``place`` and ``spoken`` are those of the answer before, 0 at first. Raises RefusedError.
        """
        call = call_named({"call": name}, self.calls)
        record = call.record
        entries = [] if record.transcript is None else record.transcript.as_json()
        first = max(spoken, record.transcript_dropped)
        marks, place = record.timeline_since(place)
        words = {"timeline": marks, "transcript": entries[first - record.transcript_dropped :]}
        return {
            **record.summary(),
            **record.private.masked(words),
            "state": record.state,
            "destinations": [one.name for one in call.plan.tools.transfer.destinations],
            "place": place,
            "spoken": first,
        }

    def _database(self) -> Database:
        """Return a new read-only access to the database of calls; it connects when asked."""
        return Database(self.config.records.database_url or "", read_only=True)

    def not_ready(self) -> Mapping[str, str]:
        """Return why no further call should come here, by part; empty while they should.

        Failed parts, a state other than serving, calls refused for the shared database, no trunk
        that can bring calls (if there are trunks), no realtime server up (if any is checked).
        """
        state = self.state()
        reasons = dict(state["health"]["problems"])
        if state["state"] != "serving":
            reasons["state"] = str(state["state"])
        if refusing := self.shared.refusing:
            reasons["shared"] = f"calls are refused: the database was not reached ({refusing})"
        trunks = self.agent.trunk_states()
        if trunks and not any(_may_bring_calls(one) for one in trunks):
            reasons["trunks"] = "no trunk is registered, or answers OPTIONS"
        servers = self.servers()
        if servers and all(one["state"] != "up" for one in servers):
            reasons["realtime"] = "no realtime server works"
        return reasons

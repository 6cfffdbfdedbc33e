# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP API of this process, made from its parts."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.api.backend import EventFeed
from gateway.api.server import ApiServer
from gateway.api.tokens import Role, Token
from gateway.app.applications import Applications
from gateway.app.registry import CallRegistry
from gateway.config import Config
from gateway.config.operations import split_address
from gateway.dialplan import Dialplan
from gateway.records.rows import columns_of
from gateway.records.store import RecordStore
from gateway.records.webhooks import WebhookSender
from gateway.sip.agent import UserAgent

if TYPE_CHECKING:
    from gateway.api.backend import Backend, Command
    from gateway.records.database import Database

_UP = ("registered", "static")
"""States of a trunk that takes calls, as far as is known."""


class Api:
    """What the API says of the process, on ``api.listen`` and ``control.socket``.

    Args:
        state: of the process: ``state``, ``draining`` and ``health``.
        servers: the state of each realtime server.
        drain: begins the drain of the process.
    """

    def __init__(
        self,
        config: Config,
        dialplan: Dialplan,
        agent: UserAgent,
        calls: CallRegistry,
        records: RecordStore,
        commands: Mapping[str, Command],
        state: Callable[[], Mapping[str, Any]],
        servers: Callable[[], list[dict[str, object]]],
        drain: Callable[[], None],
        webhooks: WebhookSender | None,
        reload: Callable[[], Awaitable[Mapping[str, Any]]],
        applications: Applications,
    ) -> None:
        self._config = config
        self._dialplan = dialplan
        self._agent = agent
        self._calls = calls
        self._records = records
        self._commands = commands
        self._state = state
        self._servers = servers
        self._drain = drain
        self._webhooks = webhooks
        self._reload = reload
        self._applications = applications
        self._server: ApiServer | None = None

    async def start(self) -> None:
        """Listen on the address. Raises AgentError where it cannot be had."""
        settings = self._config.api
        if settings.listen is not None:
            host, port = split_address(settings.listen)
            await (await self._made()).listen(host, int(port))

    async def open_socket(self) -> None:
        """Listen on the Unix socket. Raises AgentError where it cannot be had."""
        if self._config.control.socket is not None:
            await (await self._made()).open_socket(self._config.control.socket)

    async def close_socket(self) -> None:
        """Stop listening on the Unix socket."""
        if self._server is not None:
            await self._server.close_socket()

    async def stop(self) -> None:
        """End what is being answered."""
        if self._server is not None:
            await self._server.stop()

    async def _made(self) -> ApiServer:
        if self._server is None:
            tokens = tuple(
                Token(one.name, Role[one.role.upper()], one.hash, one.routes)
                for one in self._config.api.token
            )
            self._server = ApiServer(await self._backend(), tokens)
        return self._server

    async def _backend(self) -> Backend:
        metrics, backend = await asyncio.to_thread(_libraries)
        feed = EventFeed(secrets.token_hex(4))
        counting = metrics(
            [route.name for route in self._dialplan.routes],
            [trunk.name for trunk in self._config.trunk],
        )
        self._records.listeners += [lambda event, _record: feed.add(event), counting.told]

        async def rendered() -> bytes:
            values = list(self._gauges())
            return bytes(await asyncio.to_thread(counting.render, values))

        made: Backend = backend(
            commands=self._commands,
            live=self._live,
            database=None if self._config.records.database_url is None else self._database,
            feed=feed,
            ready=self._not_ready,
            problems=lambda: self._state()["health"]["problems"],
            metrics=rendered,
            drain=self._drain,
            webhooks=self._webhooks,
            reload=self._reload,
            applications=self._applications,
        )
        return made

    def _live(self) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        records = sorted((call.record for call in self._calls), key=lambda one: one.started_at)
        return [
            {"id": one.call_id, **columns_of(one, now), "explanation": list(one.explanation)}
            for one in records
        ]

    def _database(self) -> Database:
        from gateway.records.database import Database

        return Database(self._config.records.database_url or "", read_only=True)

    def _not_ready(self) -> Mapping[str, str]:
        state = self._state()
        reasons = dict(state["health"]["problems"])
        if state["state"] != "serving":
            reasons["state"] = str(state["state"])
        trunks = [one for one in self._agent.trunk_states() if one["state"] != "static"]
        if trunks and not any(one["state"] in _UP for one in trunks):
            reasons["trunks"] = "no trunk is registered"
        servers = self._servers()
        if servers and all(one["state"] != "up" for one in servers):
            reasons["realtime"] = "no realtime server works"
        return reasons

    def _gauges(self) -> Iterator[tuple[str, str, Mapping[str, str], float]]:
        state = self._state()
        yield "ready", "Whether calls should come here", {}, float(not self._not_ready())
        yield "draining", "Whether no further call is taken", {}, float(state["draining"])
        yield "calls_limit", "Calls that there may be", {}, float(self._calls.max_calls)
        counts: dict[tuple[str, str], int] = {
            (direction, state): 0
            for direction in ("inbound", "outbound")
            for state in ("ringing", "placing", "talking", "held", "transferring")
        }
        for call in self._calls:
            key = (call.record.direction, call.record.state)
            counts[key] = counts.get(key, 0) + 1
        for (direction, name), count in counts.items():
            labels = {"direction": direction, "state": name}
            yield "calls_active", "Calls in progress", labels, float(count)
        for trunk in self._agent.trunk_states():
            labels = {"trunk": trunk["name"]}
            if trunk["state"] != "static":
                registered = float(trunk["state"] in _UP)
                yield "trunk_registered", "Whether it is registered", labels, registered
            if trunk["options"]:
                answered = float(str(trunk["options"]).startswith(("2", "4")))
                yield "trunk_up", "Whether it answers OPTIONS", labels, answered
        for (endpoint, result), count in (self._webhooks.results if self._webhooks else {}).items():
            labels = {"endpoint": endpoint, "result": result}
            yield "webhooks", "Attempts to deliver events", labels, float(count)
        kept = self._records.as_json()
        if kept:
            labels = {"sink": "database"}
            yield "records_pending", "Rows that wait", labels, float(kept["pending"])
            lost = float(kept["recovered"])
            yield "process_lost_calls", "Calls of processes that died", {}, lost
            oldest = float(kept["oldest_pending_seconds"] or 0)
            yield "records_oldest_pending_seconds", "Age of the oldest row", labels, oldest
            for result in ("written", "parked", "lost"):
                labels = {"sink": "database", "result": result}
                yield "records", "Rows and events by result", labels, float(kept[result])
            folder = self._config.records.spool_folder
            if folder is not None and folder.is_dir():
                free = float(shutil.disk_usage(folder).free)
                yield "storage_free_bytes", "Free on the disk", {"volume": "records"}, free


def _libraries() -> tuple[Any, Any]:
    """Load what takes a while, on a thread."""
    from gateway.api.backend import Backend
    from gateway.api.metrics import Metrics

    return Metrics, Backend

# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulator, gateway and telephone in one place: real SIP, real RTP, a real WebSocket."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from gateway.config import LEDGER_NAME
from gateway.config.operations import DATABASE_NAME
from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.script import Script
from gateway.devtools.emulator.session import Session
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.realtime.wire import REQUEST_KEY
from gateway.records import black_boxes, event_logs
from gateway.records.database import Database, Filter
from gateway.records.forwarder import LOCK_NAME
from gateway.records.spool import NAME
from gateway.records.tables import CLOSED, CUT
from tests.interop.lab import ports
from tests.support.gateway_process import WITHIN_S, Gateway, Line
from tests.support.official_types import check_live_client_event
from tests.support.sip_phone import Phone, PhoneCall

API_KEY = "sk-test-5bd1e2c07f"
"""Demanded by the emulator; must show up nowhere."""

ABANDON_S = 5.0
"""For a call that a failed test has left."""

AUDIO_LIMIT = 20_000_000
"""Bytes of audio kept of a session by the emulator: forty minutes."""

CONFIG = """
[sip]
listen = {listen}
rtp_ports = [{rtp_low}, {rtp_high}]
max_calls = {max_calls}
[realtime]
url = "{url}"
api_key = "{key}"
connect_timeout = 8
{realtime}
[dialplan]
folder = "{dialplans}"
[records]
folder = "records"
{records}
[log]
level = "{log_level}"
[limits]
drain_timeout = {drain_seconds}
{more}
"""

WATCHED = (str(Path(__file__).with_name("watched_gateway.py")),)
"""``entry`` of a gateway that can be asked what it holds."""

NO_LIMITS = """
[access]
calls_per_second = 0
max_concurrent_calls = 0
"""

PATIENT = "[media]\npacket_wait_ms = 500\n"
"""More for a configuration: a busy machine that sends late makes no holes in what is said."""

AT_NOON = f'[cost]\ntimezone = "Etc/GMT{datetime.now(UTC).hour - 12:+}"\n'
"""More for a configuration: where it is noon, so that what is spent in a day is not forgotten at a
midnight in the middle of a test."""

TRUSTED = """
[[trunk]]
name = "test"
peers = ["127.0.0.1"]
"""
"""The telephone's calls are a trunk's: they are worth a greeting before their ACK."""

ROUTES = """
[[route]]
name = "plain"
to = "^plain$"
fallback = []
[route.session]
instructions = "Talk."

[[route]]
name = "greeted"
to = "^greeted$"
fallback = []
[route.greeting]
say = "Hello."
"""
"""``plain``: the caller speaks first. ``greeted``: the model does, whatever its script says."""

LOGS = (black_boxes.SUFFIX, event_logs.SUFFIX)
"""Ends of the names of files beside the records."""

_RTP_STEP = 200
_RTP_PORTS = (
    *range(6400, 8800, _RTP_STEP),
    *range(10000, 18800, _RTP_STEP),
    *range(31000, 32600, _RTP_STEP),
)
"""Below what the kernel gives out by itself (32768 and above): a telephone's ports are those. Not
among the defaults either (20000 to 29999, which demos and answering machines take, and a scripted
caller's from 30000 on), nor SIPp's (6000). Enough for ``.ci/run`` of two clones at a time, ten
processes each."""

_RTP_RANGES = 3
"""Of one process: more than it has gateways at a time, so that the RTP that still comes for one
that has ended finds nobody."""

_claims: list[tuple[int, socket.socket]] = []
"""First ports of this process's ranges, the one that was used last at the end."""


def rtp_range() -> tuple[int, int]:
    """A range of RTP ports that no gateway or Asterisk of another test process has.

    A range is claimed by a name in the kernel, which is given up when the process ends.
    """
    if len(_claims) < _RTP_RANGES:
        first = os.getpid() % len(_RTP_PORTS)
        for low in (*_RTP_PORTS[first:], *_RTP_PORTS[:first]):
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                claim.bind(f"\0gateway-tests-rtp-{low}")
            except OSError:
                claim.close()
                continue
            _claims.append((low, claim))
            return low, low + _RTP_STEP - 1
    if not _claims:
        raise OSError("no range of RTP ports is free")
    _claims.append(_claims.pop(0))
    return _claims[-1][0], _claims[-1][0] + _RTP_STEP - 1


@cache
def _empty_database() -> Path:
    """A database with its tables: making them takes a third of a gateway's start."""
    file = Path(tempfile.mkdtemp()) / DATABASE_NAME
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    database = Database(f"sqlite:///{file}")
    database.prepare()
    database.close()
    return file


def place_database(folder: Path) -> None:
    """Put a database with its tables where a gateway would make one."""
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(_empty_database(), folder / DATABASE_NAME)


class _Emulator(Emulator):
    """Whose script is another one from the next connection on, where a test says so."""

    following: list[Script]
    """One for each connection after the next."""

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        refused = super()._admit(connection, request)
        if self.following:
            self.script = self.following.pop(0)
        return refused


class GatewayStack:
    """One gateway with its emulator and a telephone.

    ``more``, ``realtime``, ``records`` and ``routes`` are TOML, added to the configuration, to its
    sections of these names and to the dialplan; ``{url}`` in a route stands for the emulator's
    address and its key, ``{port}`` and ``{key}`` for parts of these.
    ``script`` says how the emulator's next session behaves.
    """

    def __init__(
        self,
        folder: Path,
        *,
        routes: str = "",
        more: str = "",
        realtime: str = "",
        records: str = "",
        max_calls: int = 100,
        log_level: str = "debug",
        drain_seconds: float = 0,
        entry: tuple[str, ...] = ("-m", "gateway"),
        dialplans: Path | None = None,
        keep_sessions: int = 50,
        listen: tuple[str, ...] = ("udp:127.0.0.1:0",),
    ) -> None:
        self.folder = folder
        self.emulator = _Emulator(
            api_key=API_KEY, audio_limit=AUDIO_LIMIT, keep_sessions=keep_sessions
        )
        self.emulator.following = []
        self.gateway = Gateway(folder / "gateway.toml", entry)
        self.phone = Phone(("127.0.0.1", 0))
        self.lasting: list[PhoneCall] = []
        """Calls that go on from one test to another."""
        self._routes = ROUTES + routes
        # One telephone makes all the calls.
        self._more = more if "[access]" in more else more + NO_LIMITS
        self._realtime = realtime
        self._records = records
        self._max_calls = max_calls
        self._log_level = log_level
        self._drain_seconds = drain_seconds
        self._dialplans = dialplans
        self._listen = listen

    async def start(self) -> None:
        """Bring all three up."""
        await self.emulator.start()
        low, high = rtp_range()
        (self.folder / "routes").mkdir(parents=True)
        keyed = f'{self.emulator.url()}"\napi_key = "{API_KEY}'

        def placed(text: str) -> str:
            text = text.replace("{url}", keyed).replace("{port}", str(self.emulator.port))
            return text.replace("{key}", API_KEY)

        routes = placed(self._routes)
        (self.folder / "routes" / "10-routes.toml").write_text(routes)
        if "database" not in self._records:
            place_database(self.records_folder)
        config = CONFIG.format(
            listen=json.dumps(self._listen),
            rtp_low=low,
            rtp_high=high,
            max_calls=self._max_calls,
            url=self.emulator.url(),
            key=API_KEY,
            realtime=self._realtime,
            records=self._records,
            dialplans=self._dialplans or "routes",
            log_level=self._log_level,
            drain_seconds=self._drain_seconds,
            more=placed(self._more),
        )
        self.gateway.config.write_text(config)
        await self.gateway.start()
        self.phone.gateway = self.gateway.sip
        await self.phone.start()

    async def stop(self, status: int | None = None) -> None:
        """Bring all down, and assert that nothing went wrong and nothing is left."""
        try:
            if status is None:
                status = await self.gateway.stop()
        finally:
            await self.phone.stop()
            await self.emulator.stop()
        self.gateway.check(status)
        for session in self.emulator.sessions:
            if session.path.partition("?")[0].endswith("/live/sessions"):
                for event in session.client_events:
                    check_live_client_event(event.body)
        told = {line["call"]: line for line in self.gateway.all("call.summary")}
        written = {}
        assert API_KEY not in json.dumps(self.gateway.lines)
        for file in self.records_folder.glob("*"):
            assert API_KEY.encode() not in file.read_bytes()
            if file.name in (NAME, LOCK_NAME) or file.name.startswith(DATABASE_NAME):
                continue
            text = file.read_text()
            if file.name == LEDGER_NAME or file.name.endswith(LOGS):
                continue
            assert file.suffix == ".json", file
            record = json.loads(text)
            written[record["call_id"]] = record
        assert told.keys() == written.keys(), "one summary line and one record for each call"
        rows = self.rows()
        assert {one for one, revision in rows.items() if revision == CLOSED} == written.keys()
        assert set(rows.values()) <= {CLOSED, CUT}, "no row is left open"
        for call_id, record in written.items():
            of_the_file = {"timeline", "timeline_dropped", "transcript", "transcript_dropped"}
            for key in record.keys() - {"call_id", "response_times", *of_the_file}:
                assert told[call_id][key] == record[key], key

    @property
    def script(self) -> Script:
        """How the emulator's next session behaves."""
        return self.emulator.script

    @script.setter
    def script(self, script: Script) -> None:
        self.emulator.script = script

    def behave(self, **fields: Any) -> None:
        """Set the script from its fields."""
        self.emulator.script = Script.model_validate(fields)
        self.emulator.following.clear()

    def then(self, **fields: Any) -> None:
        """Set that of the connection after the next one: it may come before a test has learned
        that the first has ended."""
        self.emulator.following.append(Script.model_validate(fields))

    async def updated(self) -> None:
        """Send ``session.updated`` to the session that waits for it, with ``updated="never"``."""
        waiting: list[SessionRecord] = []

        def one_waits() -> bool:
            waiting[:] = (
                one
                for one in self.emulator.sessions
                if one.id in self.emulator.live
                and one.seen("session.update")
                and not one.sent("session.updated")
            )
            return bool(waiting)

        await eventually(one_waits, "a session that waits")
        connection = self.emulator.live[waiting[-1].id]
        session = cast(Session, connection.session)
        connection.emit({"type": "session.updated", "session": session._session_object()})

    @property
    def records_folder(self) -> Path:
        """Where the gateway writes a file for each call."""
        return self.folder / "records"

    def rows(self) -> dict[str, int]:
        """The revision of each call's row in the database."""
        file = self.records_folder / DATABASE_NAME
        if not file.exists():  # a gateway that is stopped at once may not have come to it
            return {}
        database = Database(f"sqlite:///{file}", read_only=True)
        return {row["id"]: row["revision"] for row in database.each(Filter())}

    async def dial(self, user: str = "plain", **options: Any) -> PhoneCall:
        """Place a call and wait until it is up on both sides."""
        call = self.phone.call(user, **options)
        call.invite()
        await call.answered()
        if call.acknowledge:
            await self.gateway.wait("call.confirmed", call=call.call_id)
        return call

    async def holds(self) -> Line:
        """What a gateway that is ``WATCHED`` holds now: tasks, objects of calls, ``used_kib`` of
        malloc, ``blocks`` of Python's own allocator."""
        seen = len(self.gateway.all("watch"))
        self.gateway.signal(signal.SIGRTMIN)
        return await self.gateway.wait("watch", count=seen + 1)

    async def session_of(self, call: PhoneCall) -> SessionRecord:
        """What the emulator saw of this call's session."""
        line = await self.gateway.wait("call.session_up", call=call.call_id)
        found = [one for one in self.emulator.sessions if one.id == line["session_id"]]
        assert len(found) == 1, line
        return found[0]

    async def summary(self, call: PhoneCall, within_s: float = WITHIN_S) -> dict[str, Any]:
        """The summary line of this call; there has to be one only."""
        await self.gateway.wait("call.summary", within_s, call=call.call_id)
        lines = self.gateway.all("call.summary", call=call.call_id)
        assert len(lines) == 1, lines
        return dict(lines[0])

    async def summary_at_end(self, call: PhoneCall) -> dict[str, Any]:
        """Hang up; returns the summary line, which has to say so."""
        await call.hang_up()
        summary = await self.summary(call)
        assert summary["ending"]["why"] == "remote_hangup", summary["ending"]
        return summary

    async def record(self, call: PhoneCall, within_s: float = WITHIN_S) -> dict[str, Any]:
        """The record of this call, once its file is there."""
        name = (await self.summary(call, within_s))["call"]
        files: list[Path] = []

        def there() -> bool:
            files[:] = self.records_folder.glob(f"*_{name}.json")
            return bool(files)

        await eventually(there, f"a record of {call.call_id}")
        assert len(files) == 1, files
        record: dict[str, Any] = json.loads(files[0].read_text())
        return record

    async def abandon(self) -> None:
        """End what a failed test has left, so that the next one begins with nothing."""
        self.behave()
        left = [call for call in self.phone.calls.values() if call not in self.lasting]
        await asyncio.gather(*(self._end(call) for call in left))
        for call in left:
            await self.phone.forget(call)

    async def _end(self, call: PhoneCall) -> None:
        if not call.messages or call.byes:
            return
        if call.final is None:
            call.cancel()
        elif call.final.code == 200:
            if not call.acknowledge:
                call.ack()
            call.bye()
        with suppress(AssertionError):
            await self.gateway.wait("call.summary", ABANDON_S, call=call.call_id)

    async def idle(self) -> None:
        """Assert that nothing is left of any call: no session, no RTP, no call in the gateway."""
        going_on = {(await self.session_of(call)).id for call in self.lasting}
        await eventually(lambda: set(self.emulator.live) <= going_on, "no session")
        for call in list(self.phone.calls.values()):
            if call not in self.lasting:
                if call.messages:
                    await self.gateway.wait("call.summary", call=call.call_id)
                await self.phone.forget(call)


def wishes(session: SessionRecord) -> list[dict[str, Any] | None]:
    """``response`` of each request for one, without what tells the gateway its answer."""
    return [_unmarked(event.body.get("response")) for event in session.seen("response.create")]


def _unmarked(response: dict[str, Any] | None) -> dict[str, Any] | None:
    response = response or {}
    metadata = dict(response.get("metadata") or {})
    metadata.pop(REQUEST_KEY, None)
    rest = {key: value for key, value in response.items() if key != "metadata"}
    return {**rest, **({"metadata": metadata} if metadata else {})} or None


Condition = Callable[[], bool] | Callable[[], Awaitable[bool]]


async def eventually(condition: Condition, what: str, within_s: float = WITHIN_S) -> None:
    """Wait for a condition that nothing announces: a file, a count of the kernel's, what another
    process answers."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                met = condition()
                if (await met) if isinstance(met, Awaitable) else met:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


def contents(folder: Path, pattern: str = "*") -> list[bytes]:
    """What the files below a folder have in them. A gateway renames them as they are complete: who
    finds one gone looks anew."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            return [path.read_bytes() for path in folder.rglob(pattern) if path.is_file()]
    raise AssertionError(f"files below {folder} come and go")


def closed_port() -> int:
    """A TCP port on which nobody listens."""
    return ports.free_port("127.0.0.1")

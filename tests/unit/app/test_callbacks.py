# SPDX-License-Identifier: GPL-2.0-or-later
"""Promised calls: what may be promised, what is kept of it, and when it is placed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.app import callbacks as scheduler_module
from gateway.app.callbacks import CallbackScheduler, Rules, Store, callback_of
from gateway.bridge.legs import DialRefusedError
from gateway.call.call_record import CallRecord
from gateway.config.sections import CallbackSettings
from gateway.planning.check import check
from gateway.records import shared
from gateway.records.database import Database
from gateway.tools import ToolCall, ToolError
from gateway.tools.http import HttpClient
from tests.support.harness import eventually
from tests.support.http_service import Answer, http_service

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
RULES = Rules("desk", "carrier", re.compile(r"\+49[0-9]{4,}"), 14, ZoneInfo("Europe/Berlin"))
CALL = ToolCall("c1", "schedule_callback", "{}", "call-1", "r", variables={"from": "030-123"})


@pytest.mark.parametrize(
    ("given", "at", "number"),
    [
        ({"at": "2026-11-20T14:30"}, "2026-11-20T13:30:00+00:00", "030123"),
        ({"at": "2026-11-20T14:30Z"}, "2026-11-20T14:30:00+00:00", "030123"),
        (
            {"at": "2026-11-21 09:00", "number": "+49 (30) 555"},
            "2026-11-21T08:00:00+00:00",
            "+4930555",
        ),
        ({"at": "2026-12-01T09:00", "number": "030 123"}, "2026-12-01T08:00:00+00:00", "030123"),
    ],
)
def test_what_may_be_promised(given: dict[str, Any], at: str, number: str) -> None:
    callback, _ = callback_of(given, RULES, "030-123", "call-1", NOW)
    assert (callback.at, callback.number, callback.route, callback.trunk) == (
        at,
        number,
        "desk",
        "carrier",
    )


def test_a_reason_is_a_text_that_every_database_takes() -> None:
    given = {"at": "2026-11-20T14:30", "reason": "a\0b \ud800\n c"}
    assert callback_of(given, RULES, "030-123", "call-1", NOW)[0].reason == "a\\u0000b \ufffd c"


@pytest.mark.parametrize(
    ("given", "caller", "words"),
    [
        ({"at": "soon"}, "1", "'soon' is no time; write it like"),
        ({"at": "2026-11-20T12:59"}, "1", "is in the past; it is 2026-11-20T13:00 now"),
        ({"at": "2026-12-20T12:00"}, "1", "too far ahead, at most 14 days"),
        ({"at": "2026-11-20T14:30"}, "anonymous", "the caller's is not known; ask for it"),
        ({"at": "2026-11-20T14:30", "number": "+1900123"}, "1", "may not be called"),
        ({"at": "2026-11-20T14:30", "number": "sip:x@y"}, "1", "is no telephone number"),
        ({"at": "2026-11-20T14:30", "number": "*#"}, "1", "is no telephone number"),
    ],
)
def test_what_may_not(given: dict[str, Any], caller: str, words: str) -> None:
    with pytest.raises(ToolError, match=re.escape(words)):
        callback_of(given, RULES, caller, "call-1", NOW)


class World:
    """A scheduler with a clock of its own, and calls that end as they are told to."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        settings = {"auto_dial": True, **settings}
        self.settings = CallbackSettings.model_validate(settings)
        self.now = NOW
        self.dialled: list[tuple[str, str, str, Mapping[str, str]]] = []
        self.outcomes: list[str] = []
        self.http = HttpClient(4)
        self.database = Database(f"sqlite:///{folder / 'c.sqlite3'}")
        self.names, self.away = 0, False
        self.scheduler = self.another()

    def another(self) -> CallbackScheduler:
        """A scheduler of the same database, as after a restart."""
        self.names += 1
        holder = f"process-{self.names}"
        store = Store(self.run, lambda: holder)
        return CallbackScheduler(self.settings, self.dial, self.http, store, lambda: self.now)

    async def run(self, operation: Any) -> Any:
        """Carry out an operation in the database."""
        if self.away:
            raise OSError("the database is away")
        with self.database.exclusive() as connection:
            return operation(connection)

    async def dial(
        self, to: str, route: str, trunk: str, variables: Mapping[str, str], *, parent: str
    ) -> tuple[CallRecord, asyncio.Future[CallRecord]]:
        """Place a call, as the next outcome says."""
        assert parent == "call-1"
        self.dialled.append((to, route, trunk, variables))
        outcome = self.outcomes.pop(0) if self.outcomes else "answered"
        if outcome == "refused":
            raise DialRefusedError("outbound.max_calls_per_minute = 1")
        over: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
        record = self.record = CallRecord("out-1")
        record.times.answered = 1.0 if outcome == "answered" else None
        if outcome != "lasts":
            over.set_result(record)
        return record, over

    @property
    def kept(self) -> list[dict[str, Any]]:
        """What the database has."""
        with self.database.exclusive() as connection:
            return shared.pending_callbacks(connection, 100)[1]


def at(seconds: float) -> dict[str, str]:
    """Arguments for a call then."""
    return {"at": (NOW + timedelta(seconds=seconds)).isoformat(), "reason": "a  refund"}


def test_promises_outlive_the_process_and_are_placed_once(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        await world.scheduler.start()
        told = json.loads(await world.scheduler.take(RULES, CALL, at(600)))
        assert told == {"status": "scheduled", "at": "2026-11-20 13:10", "number": "030123"}
        await world.scheduler.stop()
        again = world.another()
        world.now += timedelta(seconds=601)
        await again.start()
        await eventually(lambda: again.placed == 1, "a call")
        reason = {"callback_reason": "a refund"}
        assert world.dialled == [("030123", "desk", "carrier", reason)]
        await eventually(lambda: world.kept == [], "nothing is kept")
        nothing = {"count": 0, "waiting": [], "placed": 1, "given_up": 0}
        await eventually(lambda: again.as_json() == nothing, "nothing waits")
        await again.stop()
        await world.http.close()

    asyncio.run(main())


def test_nobody_answers_and_then_somebody_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "AGAIN_SECONDS", 0.01)

    async def main() -> None:
        world = World(tmp_path)
        world.outcomes = ["no answer", "refused", "answered"]
        await world.scheduler.start()
        await world.scheduler.take(RULES, CALL, at(1))
        for tried in (1, 2, 3):
            world.now += timedelta(seconds=2)
            world.scheduler._changed.set()
            await eventually(lambda: len(world.dialled) == tried, "a try")  # noqa: B023
            await eventually(
                lambda: world.kept == [] or world.kept[0]["claimed_by"] == "", "what came of it"
            )
        await eventually(lambda: world.scheduler.placed == 1, "it")
        assert len(world.dialled) == 3
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


def test_a_process_that_drains_leaves_callbacks_to_others(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        draining, asked = True, 0

        def drains() -> bool:
            nonlocal asked
            asked += 1
            return draining

        store = Store(world.run, lambda: "drains")
        one = CallbackScheduler(
            world.settings,
            world.dial,
            world.http,
            store,
            lambda: world.now,
            draining=drains,
        )
        await one.start()
        await one.take(RULES, CALL, at(1))
        world.now += timedelta(seconds=2)
        for _ in range(3):  # at the third look it is done with one that saw the new time
            before = asked
            one._changed.set()
            await eventually(lambda: asked > before, "a look")  # noqa: B023
        assert world.kept[0]["tries"] == 0
        draining = False
        one._changed.set()
        await eventually(lambda: one.placed == 1, "a call")
        await one.stop()
        await world.http.close()

    asyncio.run(main())


@pytest.mark.parametrize("dial", [True, False])
def test_too_late_is_given_up(tmp_path: Path, dial: bool) -> None:
    async def main() -> None:
        world = World(tmp_path, expire_after=60, auto_dial=dial)
        await world.scheduler.start()
        await world.scheduler.take(RULES, CALL, at(1))
        world.now += timedelta(seconds=90)
        await eventually(lambda: world.kept == [], "nothing is kept")
        assert world.dialled == []
        assert world.scheduler.given_up == int(dial)
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


def test_a_later_promise_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path, max_pending=1)
        await world.scheduler.start()
        await world.scheduler.take(RULES, CALL, at(600))
        told = json.loads(await world.scheduler.take(RULES, CALL, at(900)))
        assert told["status"] == "scheduled in place of the earlier one"
        (kept,) = world.kept
        assert kept["at"].isoformat() == "2026-11-20T12:15:00+00:00"
        with pytest.raises(ToolError, match="no more callbacks"):
            await world.scheduler.take(RULES, CALL, {**at(900), "number": "+4930555"})
        (listed,) = world.scheduler.as_json()["waiting"]
        assert (listed["number"], listed["tries"]) == ("030123", 0)
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


def test_the_operator_is_told_and_may_say_no(tmp_path: Path) -> None:
    async def main() -> None:
        with http_service() as service:
            headers = {"X-Key": "s3cret"}
            world = World(tmp_path, url=service.url + "/promised", headers=headers)
            await world.scheduler.start()
            await world.scheduler.take(RULES, CALL, at(600))
            (asked,) = service.asked
            assert (asked.path, asked.headers["x-key"]) == ("/promised", "s3cret")
            assert asked.json["number"] == "030123"
            assert asked.json["call"] == "call-1"
            service.answers = [Answer(409)]
            with pytest.raises(ToolError, match="could not be noted down"):
                await world.scheduler.take(RULES, CALL, {**at(600), "number": "+4930555"})
            assert len(world.kept) == 1
            await world.scheduler.stop()
            await world.http.close()

    asyncio.run(main())


def test_of_several_processes_one_places_each(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        processes = [world.scheduler, *(world.another() for _ in range(3))]
        for one in processes:
            await one.start()
        for number in range(20):
            given = {**at(1), "number": f"+49{number:05}"}
            await processes[number % 4].take(RULES, CALL, given)
        world.now += timedelta(seconds=2)
        for one in processes:
            one._changed.set()
        await eventually(lambda: world.kept == [], "it")
        assert sorted(call[0] for call in world.dialled) == [f"+49{n:05}" for n in range(20)]
        assert sum(one.placed for one in processes) == 20
        for one in processes:
            await one.stop()
        await world.http.close()

    asyncio.run(main())


def test_one_that_a_killed_process_had_taken_is_placed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claims = shared.claim_callbacks, dict[str, int]()

    def counted(connection: Any, holder: str, *given: Any) -> Any:
        found = claim(connection, holder, *given)
        claims[holder] = claims.get(holder, 0) + len(found)
        return found

    monkeypatch.setattr(shared, "claim_callbacks", counted)

    async def main() -> None:
        world = World(tmp_path)
        await world.scheduler.start()
        await world.scheduler.take(RULES, CALL, at(1))
        world.now += timedelta(seconds=2)
        with world.database.exclusive() as connection:
            assert len(claim(connection, "killed", world.now.timestamp(), 30)) == 1
        claims.clear()
        world.scheduler._changed.set()
        other = world.another()
        await other.start()
        await eventually(lambda: len(claims) == 2, "both look")
        assert set(claims.values()) == {0}
        assert world.dialled == []
        world.now += timedelta(seconds=30)
        other._changed.set()
        await eventually(lambda: other.placed == 1, "it")
        assert len(world.dialled) == 1
        await other.stop()
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


def test_who_was_reached_while_the_database_is_away_is_not_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "LOOK_SECONDS", 0.01)

    async def main() -> None:
        world = World(tmp_path)
        world.outcomes = ["lasts"]
        await world.scheduler.start()
        await world.scheduler.take(RULES, CALL, at(1))
        world.now += timedelta(seconds=2)
        world.scheduler._changed.set()
        await eventually(lambda: bool(world.dialled), "it")
        world.away = True
        world.record.times.answered = 1.0
        await eventually(lambda: world.scheduler.placed == 1, "it")
        world.away = False
        await eventually(lambda: world.kept == [], "it")
        assert len(world.dialled) == 1
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("config", "route", "words"),
    [
        ("", "", "callbacks would be lost: set records.folder or callbacks.url"),
        ("[records]\nfolder = 'r'", "route = 'x'", 'there is no route "x"'),
        ("[records]\nfolder = 'r'", "trunk = 'x'", 'there is no trunk "x"'),
        (
            "[records]\nfolder = 'r'\n[callbacks]\nauto_dial = true",
            "",
            "is needed: numbers are called",
        ),
        ("[records]\nfolder = 'r'\n[callbacks]\nauto_dial = true", "", "needs outbound.enabled"),
        (
            "[records]\nfolder = 'r'",
            "allowed_numbers = '('",
            "is not a valid regular expression",
        ),
        ("[callbacks]\nurl = 'x'", "", "must begin with http"),
    ],
)
def test_mistakes(tmp_path: Path, config: str, route: str, words: str) -> None:
    (tmp_path / "routes").mkdir()
    head = "[[route]]\nname = 'r'\n[route.schedule_callback]\nenabled = true\n"
    (tmp_path / "routes" / "r.toml").write_text(head + route)
    base = '[realtime]\nurl = "ws://127.0.0.1:1"\n[dialplan]\nfolder = "routes"\n'
    (tmp_path / "gateway.toml").write_text(base + config)
    status, told = check(tmp_path / "gateway.toml", {})
    assert status == 2
    assert words in "\n".join(told), told

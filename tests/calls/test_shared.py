# SPDX-License-Identifier: GPL-2.0-or-later
"""Several gateways on one database: one cap to the call, one budget, each callback once."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.records import shared
from gateway.records.database import Database, Filter
from gateway.records.tables import SHARED, leases, spending
from tests.calls.test_api import API, Client
from tests.calls.test_moved import _more_answers, refer, told
from tests.support import figures
from tests.support.callee import CalledPhone, free_port
from tests.support.gateway_process import Gateway
from tests.support.harness import AT_NOON, GatewayStack, eventually
from tests.support.postgres import Postgres
from tests.support.referred import dial
from tests.support.sip_phone import PhoneCall

MORE = """
[[trunk]]
name = "test"
peers = ["127.0.0.1"]
max_concurrent_calls = 10
"""
PATIENT = "[shared]\ntimeout_ms = 5000\n"
"""A busy machine takes its time."""
CALLS = int(os.environ.get("GATEWAY_TEST_CALLS", "5"))
AWAY_S = float(os.environ.get("GATEWAY_TEST_AWAY_S", "1"))
BEFORE_S = AWAY_S if AWAY_S > 1 else 0.0
"""With the database, for comparison."""
"""More of both for ``python -m tests.load.survive``."""
SPENDING = """
[[route]]
name = "thrifty"
to = "^thrifty$"
[route.greeting]
say = "Hello."
[route.budget]
per_day = 0.000001
goodbye = "Your time is up."
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as found:
        yield found


@asynccontextmanager
async def gateways(
    folder: Path, url: str, count: int, more: str = MORE, **settings: Any
) -> AsyncIterator[list[GatewayStack]]:
    """So many gateways, each with a folder of its own, on the database at ``url``."""
    made = [
        GatewayStack(
            folder / f"machine-{number}", records=f'database = "{url}"', more=more, **settings
        )
        for number in range(count)
    ]
    try:
        await asyncio.gather(*(one.start() for one in made))
        yield made
    finally:
        for one in made:
            await one.gateway.stop()
            await one.phone.stop()
            await one.emulator.stop()


def cleaned(url: str) -> Database:
    """The database, without what an earlier test has left there."""
    database = Database(url)
    with database.exclusive() as connection:
        for table in SHARED:
            connection.execute(table.delete())
    return database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'all.sqlite3'}"
    found: str = request.getfixturevalue("server").url
    cleaned(found).close()
    return found


async def decided(calls: list[PhoneCall]) -> list[int]:
    """The final responses."""
    await asyncio.gather(
        *(call.until(lambda c: c.final is not None, 30, "final response") for call in calls)
    )
    return [call.final.code for call in calls if call.final is not None]


@pytest.mark.slow
async def test_of_fifty_invites_ten_are_answered(own_folder: Path, url: str) -> None:
    async with gateways(own_folder, url, 4, PATIENT + MORE) as made:
        calls = [made[number % 4].phone.call("plain") for number in range(50)]
        for call in calls:
            call.invite()
        codes = await decided(calls)
        assert sorted(codes) == [200] * 10 + [486] * 40
        refused = [made[n % 4] for n, code in enumerate(codes) if code == 486]
        line = await refused[0].gateway.wait("call.summary", route="plain")
        assert line["ending"]["why"] == "over_capacity"
        rule = "trunk test: max_concurrent_calls = 10"
        assert rule in line["ending"]["detail"]
        assert line["explanation"][-1].startswith(f"refused by {rule} (gateway.toml:")
        # A killed process's places come back with the rows of its calls, at its next start.
        up = [call for call, code in zip(calls, codes, strict=True) if code == 200]
        killed = next(one for one in made if any(call.phone is one.phone for call in up))
        lost = [call for call in up if call.phone is killed.phone]
        killed.gateway.signal(signal.SIGKILL)
        await killed.gateway.ended()
        killed.gateway = Gateway(killed.gateway.config)
        await killed.gateway.start()
        killed.phone.gateway = killed.gateway.sip
        database = Database(url)

        def left() -> bool:
            with database.exclusive() as connection:
                rows = connection.execute(leases.select()).all()
            return len(rows) == 10 - len(lost)

        await eventually(left, "the places of the killed process")
        more = [made[number % 4].phone.call("plain") for number in range(2 * len(lost) + 4)]
        for call in more:
            call.invite()
        again = await decided(more)
        assert again.count(200) == len(lost)
        database.close()


async def test_a_budget_that_one_has_spent_is_spent_for_the_other(
    own_folder: Path, url: str
) -> None:
    async with gateways(own_folder, url, 2, PATIENT + AT_NOON, routes=SPENDING) as (first, second):
        call = first.phone.call("thrifty")
        call.invite()
        await call.answered()
        await call.hung_up()
        spent = (await first.summary(call))["cost"]["priced"]
        assert spent > 0.000001
        database = Database(url)

        def told() -> bool:
            with database.exclusive() as connection:
                sums = connection.execute(spending.select()).all()
            return [row.amount for row in sums if row.scope == "day"] == [round(spent * 10**9)]

        await eventually(told, "what was spent, in the database")  # within a second, or as it can
        other = second.phone.call("thrifty")
        other.invite()
        await other.refused()
        ending = (await second.summary(other))["ending"]
        assert (ending["why"], ending["sip_code"]) == ("budget", 480)
        assert ending["detail"] == f"route: {spent:.4f} of 0.0000"
        assert told()
        database.close()


async def test_a_caller_whose_number_no_database_takes_is_answered_and_recorded(
    own_folder: Path, server: Postgres
) -> None:
    cleaned(server.url).close()
    more = f"{PATIENT}{MORE}[cost.budget]\nper_caller = 5.0\n"
    callers: dict[str, str] = {}
    async with gateways(own_folder, server.url, 1, more, routes=SPENDING) as (world,):
        for caller, user in (("a%00b", "plain"), ("a%00b", "thrifty"), ("alice", "plain")):
            call = world.phone.call(user)
            call.caller = caller
            call.invite()
            assert await decided([call]) == [200]
            await (call.hung_up() if user == "thrifty" else call.hang_up())
            callers[call.call_id] = caller
        database = Database(server.url)

        def there() -> bool:
            rows = {row["sip_call_id"]: row for row in database.each(Filter(ended=True))}
            return {id_: rows[id_]["from_number"] for id_ in callers if id_ in rows} == callers

        await eventually(there, "their rows")
        database.close()


@pytest.mark.parametrize("fail", ["closed", "open"])
async def test_what_holds_while_the_database_is_away(
    own_folder: Path, server: Postgres, fail: str
) -> None:
    more = f'{MORE}\n{API}\n{PATIENT}fail = "{fail}"\n[cost.budget]\nper_day = 5.0\n'
    cleaned(server.url).close()
    async with gateways(own_folder, server.url, 1, more) as (world,):
        lasting = await world.dial()
        await asyncio.to_thread(server.pause, True)
        try:
            call = world.phone.call("plain")
            call.invite()
            (code,) = await decided([call])
            heard = len(lasting.rtp.packets)
            await lasting.rtp.until(lambda: len(lasting.rtp.packets) > heard + 10)
            async with Client(world, "") as http:
                ready = await http.get("/readyz")
            assert list(ready.json()["reasons"]) == (["shared"] if fail == "closed" else [])
        finally:
            await asyncio.to_thread(server.pause, False)
        await world.gateway.wait("shared.unavailable", fail=fail)
        if fail == "closed":
            assert code == 503
            ending = (await world.summary(call))["ending"]
            assert 'shared.fail = "closed"' in ending["detail"]
            by = (await world.summary(call))["explanation"][-1]
            assert 'shared.fail = "closed" (gateway.toml:' in by
        else:
            assert code == 200
            await world.gateway.wait("shared.not_asked")
        await world.gateway.wait("shared.available")
        async with Client(world, "") as http:
            assert (await http.get("/readyz")).status_code == 200
        again = world.phone.call("plain")
        again.invite()
        assert await decided([again]) == [200]


async def test_a_database_that_is_stopped_costs_no_audio_and_no_row(
    own_folder: Path, server: Postgres
) -> None:
    """Calls go on, end and begin while it is away; then each has one row."""
    more = f'{MORE.replace("10", "200")}\n[shared]\nfail = "open"\ntimeout_ms = 200\n'
    cleaned(server.url).close()
    async with gateways(own_folder, server.url, 1, more) as (world,):
        said = {"kind": "pattern", "seconds": BEFORE_S + AWAY_S + 20 + CALLS, "burst": True}
        world.behave(vad="off", answers=[said, {"kind": "silent"}])
        calls = [await world.dial("greeted") for _ in range(CALLS)]
        began = time.time()
        await asyncio.sleep(BEFORE_S)
        stopped = time.time()
        await asyncio.to_thread(server.stop)
        try:
            for call in calls[: CALLS // 5]:
                await world.summary_at_end(call)
            more_calls = [await world.dial("greeted") for _ in range(CALLS // 5)]
            await asyncio.sleep(AWAY_S)
        finally:
            await asyncio.to_thread(server.start)
        back = time.time()
        summaries = [await world.summary_at_end(call) for call in calls[CALLS // 5 :] + more_calls]
        assert [one["underruns"] for one in summaries] == [0] * len(summaries)
        for call in calls[CALLS // 5 :]:
            numbers = [packet.sequence for packet in call.rtp.packets]
            assert {(b - a) % 65536 for a, b in itertools.pairwise(numbers)} == {1}
        wanted = sorted(call.call_id for call in calls + more_calls)
        database = Database(server.url)

        def there() -> bool:
            found = [row for row in database.each(Filter()) if row["sip_call_id"] in wanted]
            ended = [row["sip_call_id"] for row in found if row["why"] == "remote_hangup"]
            return sorted(ended) == wanted and len(found) == len(wanted)

        await eventually(there, "one closed row for each call", 60)
        told = f"{len(wanted)} calls, one row each; 0 underruns, no packet missing"
        figures.show(f"PostgreSQL stopped for {AWAY_S:g} s", told)
        times = [[packet.at for packet in call.rtp.packets] for call in calls]
        for name, since, until in (("before", began, stopped), ("during", stopped, back)):
            if found := figures.gaps(times, since, until):
                figures.show(f"packets apart at callers {name} it", figures.spread(found, "ms"))
        database.close()


async def test_followed_refers_of_all_processes_share_their_places(
    own_folder: Path, server: Postgres
) -> None:
    """Of two places one is for calls that REFERs make; who gets none stays where they are."""
    callee = await CalledPhone().start()
    cleaned(server.url).close()
    more = f"""{PATIENT}
[outbound]
enabled = true
allowed_prefixes = ["ring", "answer"]
max_concurrent_calls = 2
"""
    routes = f"""
[[route]]
name = "follows"
to = "^follows$"
allowed_refer_to = 'sip:[a-z]+@127\\.0\\.0\\.1:{callee.address[1]}'
"""
    try:
        async with gateways(own_folder, server.url, 2, more, routes=routes) as (one, other):
            first, second = await dial(one, "follows"), await dial(other, "follows")
            refer(first, callee.uri("ring"), 2)
            there = await callee.called()
            refer(second, callee.uri("answer"), 2)
            await second.until(lambda c: c.answers_to("REFER"))
            assert set(second.answers_to("REFER")) == {603}
            line = await other.gateway.wait("sip.refer_declined")
            assert "half of outbound.max_concurrent_calls: 1 followed REFERs" in line["why"]
            assert set(first.answers_to("REFER")) == {202}
            assert len(callee.calls) == 1
            there.respond(486)
            await first.until(lambda c: any("486" in text for text in told(c)))
            # Its place is given back by a message of its own to the database.
            while second.answers_to("REFER")[-1] != 202:
                before = len(second.answers_to("REFER"))
                refer(second, callee.uri("answer"))
                await second.until(partial(_more_answers, before))
            await callee.called(2)
    finally:
        await callee.stop()


async def test_each_callback_is_placed_once(own_folder: Path, url: str) -> None:
    port = free_port()
    callee = await CalledPhone().start(port)
    more = f"""{PATIENT}
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["4"]
max_concurrent_calls = 4
max_calls_per_minute = 100
[callbacks]
auto_dial = true
[[trunk]]
name = "carrier"
peers = ["127.0.0.1:{port}"]
"""
    database = cleaned(url)
    try:
        async with gateways(own_folder, url, 2, more) as made:
            due = datetime.now(UTC) + timedelta(seconds=1)
            for number in range(4):
                row = {"id": f"4{number}/plain", "at": due, "number": f"4{number}"}
                row |= {"route": "plain", "trunk": "carrier", "reason": "r", "call_id": "c"}
                with database.exclusive() as connection:
                    shared.put_callback(connection, {**row, "due": due.timestamp()}, 500)
            called = []
            for number in range(4):
                there = await callee.called(number + 1)
                there.respond(200, sdp=True)
                await there.until(lambda c: c.requests("ACK"))
                called.append(there)

            def forgotten() -> bool:
                with database.exclusive() as connection:
                    return shared.pending_callbacks(connection, 1)[0] == 0

            await eventually(forgotten, "no callback is left")
            for there in called:
                there.bye()
            live = [one.emulator for one in made]
            await eventually(lambda: not any(one.live for one in live), "no call is left")
            assert sorted(one.user for one in called) == ["40", "41", "42", "43"]

            def invited() -> int:
                return sum(len(one.gateway.all("call.invite")) for one in made)

            await eventually(lambda: invited() >= 4, "the calls in the logs")
            assert invited() == 4
    finally:
        database.close()
        await callee.stop()


async def test_a_call_that_is_asked_for_twice_is_placed_once(own_folder: Path, url: str) -> None:
    """And what two processes are asked for in one moment passes no cap."""
    callee = await CalledPhone().start()
    more = f"""{PATIENT}{API}
[outbound]
enabled = true
allowed_prefixes = ["answer"]
max_concurrent_calls = 3
[access]
unknown_sources = "allow"
max_concurrent_calls = 3
[[trunk]]
name = "carrier"
peers = ["127.0.0.9"]
"""
    wanted = {"to": callee.uri("answer"), "route": "plain"}
    key = {"Idempotency-Key": "order 7"}
    try:
        async with (
            gateways(own_folder, url, 2, more) as (one, other),
            Client(one) as first,
            Client(other) as second,
        ):
            sent = [
                http.post("/api/v1/calls", json=wanted, headers=key) for http in (first, second)
            ]
            answers = await asyncio.gather(*sent)
            assert {answer.status_code for answer in answers} <= {201, 409}
            placed = next(answer for answer in answers if answer.status_code == 201)

            async def known() -> bool:
                again = await second.post("/api/v1/calls", json=wanted, headers=key)
                return again.status_code == 201 and again.json() == placed.json()

            await eventually(known, "the first answer, from the other process")
            changed = {**wanted, "route": "greeted"}
            reused = await first.post("/api/v1/calls", json=changed, headers=key)
            assert reused.json()["error"]["code"] == "idempotency_key_reused"
            # What was refused may be tried again, under the same key.
            key = {"Idempotency-Key": "order 8"}
            for _ in range(2):
                refused = await first.post(
                    "/api/v1/calls", json={**wanted, "to": "tel:900"}, headers=key
                )
                assert refused.json()["error"]["code"] == "refused"
            await callee.called()
            assert len(callee.calls) == 1
            raced = await asyncio.gather(
                *(http.post("/api/v1/calls", json=wanted) for http in (first, second) * 3)
            )
            assert sorted(one.status_code for one in raced) == [201] * 2 + [409] * 4
            calls = [world.phone.call("plain") for world in (one, other) * 4]
            for call in calls:
                call.invite()
            assert sorted(await decided(calls)) == [200] * 3 + [486] * 5
            assert len(callee.calls) == 3
    finally:
        await callee.stop()

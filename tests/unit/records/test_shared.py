# SPDX-License-Identifier: GPL-2.0-or-later
"""Caps, budgets and bans that processes share, in SQLite and in a real PostgreSQL."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from gateway.records import shared
from gateway.records.database import Database
from gateway.records.shared import LEASE_SECONDS, UNITS, Answer, Cap, Lease, LeaseRequest, Limit
from gateway.records.spool import Entry
from gateway.records.tables import bans, leases, request_keys, spending
from tests.support.postgres import Postgres

TEN = Cap("trunk", "carrier", 10, "trunk carrier: max_concurrent_calls = 10")
DAY = "2026-11-28"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Makes the database as each process has it, empty at first."""
    made: list[Database] = []

    def make() -> Database:
        url = f"sqlite:///{tmp_path / 'calls.sqlite3'}"
        if request.param == "postgresql":
            url = request.getfixturevalue("server").url
        made.append(Database(url, lasting=True))
        return made[-1]

    with make().exclusive() as connection:
        for table in (leases, spending, bans, request_keys):
            connection.execute(table.delete())
    yield make
    for one in made:
        one.close()


def admit(database: Database, holder: str, wanted: LeaseRequest) -> Answer:
    """Ask in a transaction of its own, after what this process has spent is told."""
    with database.exclusive() as connection:
        return shared.admit(connection, holder, wanted)


def test_of_fifty_at_once_from_four_processes_ten_get_in(another: Callable[[], Database]) -> None:
    processes = [another() for _ in range(4)]
    start = threading.Barrier(25)

    def call(number: int) -> Answer:
        start.wait(10)
        return admit(
            processes[number % 4], f"p{number % 4}", LeaseRequest(f"call-{number}", (TEN,))
        )

    with ThreadPoolExecutor(25) as pool:
        answers = [*pool.map(call, range(25)), *pool.map(call, range(25, 50))]
    let_in = [one for one in answers if not one.rule]
    assert len(let_in) == 10
    assert {one.rule for one in answers if one.rule} == {TEN.rule}
    with processes[0].exclusive() as connection:
        shared.release(connection, [let_in[0].leases[0].id])
    assert not admit(processes[1], "p1", LeaseRequest("next", (TEN,))).rule
    assert admit(processes[1], "p1", LeaseRequest("one more", (TEN,))).rule


def test_all_that_a_call_needs_or_nothing(another: Callable[[], Database]) -> None:
    database = another()
    none = Cap("calls", "", 0, "shared.max_calls = 0")
    assert admit(database, "p", LeaseRequest("a", (TEN, none))).rule == none.rule
    for number in range(10):
        assert not admit(database, "p", LeaseRequest(f"b{number}", (TEN,))).rule


def test_what_a_killed_process_held_comes_back(
    another: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, one = another(), Cap("outbound", "", 1, "full")
    began = time.time()
    monkeypatch.setattr(shared, "now_of", lambda _c: began)
    taken = admit(database, "killed", LeaseRequest("lost", (one,)))
    assert admit(database, "other", LeaseRequest("a", (one,))).rule == "full"
    monkeypatch.setattr(shared, "now_of", lambda _c: began + LEASE_SECONDS - 1)
    assert admit(database, "other", LeaseRequest("b", (one,))).rule == "full"
    monkeypatch.setattr(shared, "now_of", lambda _c: began + LEASE_SECONDS + 1)
    assert not admit(database, "other", LeaseRequest("c", (one,))).rule
    # It was not killed, only away: what it holds counts again, and nobody further gets in.
    with database.exclusive() as connection:
        shared.renew(connection, "killed", taken.leases)
        shared.sweep(connection, DAY)
    assert admit(database, "other", LeaseRequest("d", (one,))).rule == "full"


def test_the_row_of_a_cut_call_gives_its_place_back(another: Callable[[], Database]) -> None:
    database, one = another(), Cap("outbound", "", 1, "full")
    admit(database, "killed", LeaseRequest("cut-1", (one,)))
    body = {"id": "cut-1", "revision": 9, "schema_version": 1}
    body |= dict.fromkeys(("invited_at", "updated_at"), "2026-11-28T10:00:00+00:00")
    database.write([Entry("cut", "cut-1", body, 0.0)])
    assert not admit(database, "other", LeaseRequest("a", (one,))).rule


def test_a_lease_for_a_minute_is_not_given_back_with_the_call(
    another: Callable[[], Database],
) -> None:
    database, rate = another(), Cap("outbound_minute", "", 2, "rate", 60.0)
    for number in range(2):
        (lease,) = admit(database, "p", LeaseRequest(f"a{number}", (rate,))).leases
        assert lease.seconds == 60.0
    assert admit(database, "p", LeaseRequest("b", (rate,))).rule == "rate"


def test_a_budget_is_one_to_the_cent_for_four_processes(another: Callable[[], Database]) -> None:
    processes = [another() for _ in range(4)]
    budget, response = 10 * UNITS, 37 * UNITS // 100
    limit = Limit("day", "", budget, 0)
    spent, all_spend = [0, 0, 0, 0], threading.Barrier(4)

    def work(index: int) -> int:
        calls = 0
        while True:
            wanted = LeaseRequest(f"{index}-{calls}", limits=(limit,), day=DAY)
            with processes[index].exclusive() as connection:
                own = {("day", ""): spent[index]}
                shared.spend(connection, f"p{index}", DAY, own, ())
                answer = shared.admit(connection, f"p{index}", wanted)
                if answer.limit is not None:
                    return answer.spent
                spent[index] += response
                own = {("day", ""): spent[index]}
                shared.spend(connection, f"p{index}", DAY, own, ())
            calls += 1
            if calls == 1:
                all_spend.wait(30)

    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(work, range(4)))
    # The one that crossed the limit was the last: 28 responses of 0.37 are 10.36.
    assert sum(spent) == 28 * response == seen[0]
    assert all(spent)


def test_money_set_aside_lets_no_call_begin_that_it_would_not_cover(
    another: Callable[[], Database],
) -> None:
    database, reserve = another(), UNITS // 10
    limit = Limit("number", "+4930", UNITS, reserve)
    answers = [
        admit(database, "p", LeaseRequest(f"c{number}", limits=(limit,), day=DAY))
        for number in range(12)
    ]
    assert [one.limit is None for one in answers] == [True] * 10 + [False] * 2
    with database.exclusive() as connection:
        own = {("number", "+4930"): 3 * reserve}
        sums = shared.spend(connection, "p", DAY, own, own)
        assert (sums.others, sums.reserved) == ({}, {("number", "+4930"): UNITS})
        shared.release(connection, [one.leases[0].id for one in answers[:3]])
    assert admit(database, "p", LeaseRequest("e", limits=(limit,), day=DAY)).limit == limit
    other = Limit("number", "+4931", UNITS, reserve)
    assert admit(database, "p", LeaseRequest("f", limits=(other,), day=DAY)).limit is None
    assert admit(database, "p", LeaseRequest("g", limits=(limit,), day="2026-11-29")).limit is None


def test_sums_told_twice_count_once_and_never_fall(another: Callable[[], Database]) -> None:
    database, pair = another(), ("route", "desk")
    with database.exclusive() as connection:
        for amount in (5, 9, 9, 5):
            shared.spend(connection, "a", DAY, {pair: amount}, ())
        shared.spend(connection, "b", DAY, {pair: 1}, ())
        assert shared.spend(connection, "b", DAY, {}, [pair]).others == {pair: 9}
        assert shared.spend(connection, "c", DAY, {}, [pair]).others == {pair: 10}


def test_bans_are_told_and_end(
    another: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, now = another(), time.time()
    monkeypatch.setattr(shared, "now_of", lambda _c: now)
    with database.exclusive() as connection:
        shared.put_bans(connection, "a", [("192.0.2.1", 60.0, True), ("192.0.2.2", 5.0, False)])
        found = shared.all_bans(connection)
        assert [(source, proven) for source, _left, proven in found] == [
            ("192.0.2.1", True),
            ("192.0.2.2", False),
        ]
        assert found[0][1] == pytest.approx(60)
        monkeypatch.setattr(shared, "now_of", lambda _c: now + 10)
        assert [one[0] for one in shared.all_bans(connection)] == ["192.0.2.1"]
        shared.sweep(connection, DAY)
        monkeypatch.setattr(shared, "now_of", lambda _c: now)
        assert [one[0] for one in shared.all_bans(connection)] == ["192.0.2.1"]


def test_a_request_with_a_key_is_carried_out_once(another: Callable[[], Database]) -> None:
    processes = [another() for _ in range(4)]
    start = threading.Barrier(4)

    def ask(process: Database) -> tuple[str, str | None]:
        start.wait(10)
        with process.exclusive() as connection:
            return shared.first_with_key(connection, "k", "dial 1")

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(ask, processes)) == [("first", None)] + [("same", None)] * 3
    with processes[0].exclusive() as connection:
        shared.answer_key(connection, "k", '{"call": "1"}')
        assert shared.first_with_key(connection, "k", "dial 1") == ("same", '{"call": "1"}')
        assert shared.first_with_key(connection, "k", "dial 2") == ("other", None)
        shared.answer_key(connection, "k", None)
        assert shared.first_with_key(connection, "k", "dial 2") == ("first", None)


def test_a_lock_that_nobody_gives_back_is_told_with_its_holder(tmp_path: Path) -> None:
    """As of a process that a hung disk or a debugger has stopped: others go on without it."""
    file = tmp_path / "calls.sqlite3"
    database = Database(f"sqlite:///{file}", patience=0.1)
    database.prepare()
    told: list[str] = []

    def wait() -> None:
        try:
            with database.exclusive():
                told.append("has it")
        except OperationalError as error:
            told.append(str(error.orig))

    with Path(f"{file}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(20)
        assert told == [f"{file}.lock is held by process {os.getpid()}"]
    wait()
    assert told[1:] == ["has it"]
    database.close()


def test_an_exclusive_transaction_waits_for_another(another: Callable[[], Database]) -> None:
    first, second, order = another(), another(), list[Any]()
    second.prepare()

    def wait() -> None:
        with second.exclusive():
            order.append("second")

    with first.exclusive() as connection:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        shared.renew(connection, "p", [Lease("x", "s", "k", "c", 0)])
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]

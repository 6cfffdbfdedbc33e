# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows in a real PostgreSQL: the same upserts and queries, and what happens while it is away."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.records.database import Database, Filter
from gateway.records.forwarder import Forwarder
from gateway.records.spool import Entry, Spool
from gateway.records.tables import (
    CLOSED,
    CUT,
    HEAD,
    OPENED,
    NewerSchemaError,
    events,
    metadata,
    version_of,
)
from tests.support.harness import eventually
from tests.support.kept_rows import NOW, Kept, a_record, end, row
from tests.support.postgres import Postgres
from tests.unit.records.test_database import ORDERS


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as found:
        yield found


@pytest.fixture
def database(server: Postgres) -> Iterator[Database]:
    found = Database(server.url)
    found.prepare()
    with found._connected().begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(sa.delete(table))
    yield found
    found.close()


def test_migrations_make_the_tables_that_the_code_has(database: Database) -> None:
    engine = database._connected()
    found = sa.inspect(engine)
    for table in metadata.sorted_tables:
        there = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
        assert there == {column.name: column.nullable for column in table.columns}
        indexes = {index["name"] for index in found.get_indexes(table.name)}
        assert indexes == {index.name for index in table.indexes}
    assert version_of(engine) == HEAD


def test_many_processes_may_make_the_tables_at_once(server: Postgres) -> None:
    failed: list[BaseException] = []

    def prepare() -> None:
        try:
            Database(server.url).prepare()
        except BaseException as error:
            failed.append(error)

    with sa.create_engine(Database(server.url)._url).begin() as connection:
        metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []


def test_a_newer_schema_is_left_alone(server: Postgres, database: Database) -> None:
    with database._connected().begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        with pytest.raises(NewerSchemaError, match="9999"):
            Database(server.url).prepare()
    finally:
        with database._connected().begin() as connection:
            connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{HEAD}'"))


@pytest.mark.parametrize("order", ORDERS)
def test_rows_in_any_order_and_twice(database: Database, order: list[int]) -> None:
    for revision in order:
        one = row("c1", revision, detail=str(revision))
        entry = Entry("cut" if revision == CUT else "row", one.call_id, one.body, one.at)
        database.write([entry])
        database.write([entry])
    (found,) = database.find(Filter(), limit=10)
    assert (found["revision"], found["detail"]) == (max(order), str(max(order)))
    assert found["invited_at"] == NOW


def test_texts_that_postgresql_refuses(database: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    told = {"x": ["\0", {"\0": 1}], "y": "\ud83d"}
    spool.add([row("c1", OPENED, detail="a\0b", record=told)])
    database.write(spool.entries(10))
    found = database.get("c1")
    assert found is not None
    assert found["detail"] == "a\ufffdb"
    assert found["record"] == {"x": ["\ufffd", {"\ufffd": 1}], "y": "\ufffd"}


def test_a_row_beyond_a_limit_of_its_indexes_costs_no_other(
    server: Postgres, database: Database, tmp_path: Path
) -> None:
    """PostgreSQL counts that among its operational errors, as it does an outage."""
    spool, number = Spool(tmp_path), random.Random(1).randbytes(10_000).hex()
    spool.add([row("c1", OPENED), row("bad", OPENED, from_number=number), row("c2", OPENED)])
    forwarder = Forwarder(tmp_path, lambda: Database(server.url), lambda _event: ())
    forwarder.start()
    forwarder.stop()
    assert (forwarder.unavailable, spool.parked(), spool.pending()[0]) == ("", 1, 0)
    found = {one["id"]: one["from_number"] for one in database.each(Filter())}
    assert found == {"c1": "", "bad": number[:200], "c2": ""}


def test_numbers_are_erased_and_old_rows_stripped(database: Database) -> None:
    ended = NOW.isoformat()
    told = {"id": "e1", "call_id": "c1", "sequence": 1, "at": ended, "type": "t", "data": {}}
    database.write(
        [
            row("c1", CLOSED, ended_at=ended, from_number="+49301", record={"a": 1}),
            row("c2", CLOSED, ended_at=ended, from_number="+49302", record={"a": 1}),
            Entry("event", "c1", told, 0.0),
        ]
    )
    assert [one["id"] for one in database.of_number("+49301")] == ["c1"]
    assert database.anonymize(["c1"], "erased-1") == 1
    found = database.get("c1")
    assert found is not None
    assert (found["from_number"], found["record"], found["events"]) == ("erased-1", None, [])
    assert database.hold("c2", True)
    later = datetime(2027, 1, 1, tzinfo=UTC)
    assert database.expired(later, 10, detailed=True) == [], "one has no details, the other is held"
    assert database.expired(later, 10) == ["c1"]
    assert database.delete(["c1"]) == 1
    with database._connected().connect() as connection:
        assert connection.execute(sa.select(events)).all() == []


async def test_nothing_is_lost_or_doubled_while_it_is_away(
    server: Postgres, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.records.forwarder.LONGEST_PAUSE_SECONDS", 0.2)
    async with Kept(tmp_path, server.url) as kept:
        before = a_record("before")
        kept.store.opened(before)
        await eventually(lambda: kept.store.as_json()["written"] >= 2, "rows")
        server.stop()
        for number in range(30):
            record = a_record(f"c{number}")
            kept.store.opened(record)
            kept.store.write(end(record))
        await eventually(lambda: bool(kept.store.as_json()["unavailable"]), "an outage")
        await asyncio.to_thread(server.start)
        await eventually(lambda: kept.store.as_json()["pending"] == 0, "rows")
        kept.store.write(end(before))
    database.close()
    rows = list(database.each(Filter()))
    assert {one["id"] for one in rows} == {"before", *(f"c{number}" for number in range(30))}
    assert {one["revision"] for one in rows} == {CLOSED}
    with database._connected().connect() as connection:
        told = connection.execute(sa.select(events.c.call_id, events.c.type)).all()
    assert len(told) == len(set(told)) == 62, "each call has its first and its last event"


async def test_a_server_that_hangs_holds_nothing_up(
    server: Postgres, database: Database, tmp_path: Path
) -> None:
    async with Kept(tmp_path, server.url) as kept:
        first = a_record("first")
        kept.store.opened(first)
        await eventually(lambda: kept.store.as_json()["written"] >= 2, "rows")
        server.pause(True)
        try:
            record = a_record("hung")
            kept.store.opened(record)
            kept.store.write(end(record))
            await eventually(lambda: len(kept.store._channel) == 0, "in the spool")
        finally:
            server.pause(False)
        await eventually(lambda: kept.store.as_json()["written"] >= 6, "rows")
        kept.store.write(end(first))
    assert {one["id"] for one in database.each(Filter())} == {"first", "hung"}


def test_parts_of_records_are_read_for_a_caller_who_comes_back(database: Database) -> None:
    spoken = [{"who": "caller", "text": "Hello."}]
    at = {"answered_at": NOW.isoformat(), "ended_at": NOW.isoformat(), "direction": "inbound"}
    known = {"from_number": "+4930", "route": "r", "trunk": "t"}
    for name, trust in (("c1", "trunk"), ("c2", "any")):
        record = {"number_trust": trust, "transcript": spoken}
        database.write([row(name, CLOSED, **at, **known, record=record)])
    (found,) = database.of_caller("+4930", ["r"], NOW, 3, ("asserted", "trunk"))
    assert (found["transcript"], found["out_of_band"]) == (spoken, None)

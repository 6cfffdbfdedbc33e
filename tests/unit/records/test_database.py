# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows in SQLite: the latest of a call counts, pages, filters, and connections."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.records.database import Database, Filter
from gateway.records.spool import Entry, Spool
from gateway.records.tables import CLOSED, CUT, OPENED
from tests.support.kept_rows import NOW, row

ORDERS = [
    [OPENED, 2, CLOSED],
    [CLOSED, OPENED, 2],
    [OPENED, CUT, 2],
    [OPENED, CUT, CLOSED],
    [CUT, OPENED],
    [2, 2, OPENED],
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("one_by_one", [True, False])
def test_rows_in_any_order_and_twice(tmp_path: Path, order: list[int], one_by_one: bool) -> None:
    database = Database(f"sqlite:///{tmp_path}/c.sqlite3")
    entries = [row("c1", revision, detail=str(revision)) for revision in order]
    entries = [
        Entry("cut", one.call_id, one.body, one.at) if one.body["revision"] == CUT else one
        for one in entries
    ]
    for batch in [[one] for one in entries] if one_by_one else [entries]:
        database.write(batch)
        database.write(batch)
    (found,) = database.find(Filter(), limit=10)
    assert (found["revision"], found["detail"]) == (max(order), str(max(order)))


def test_pages_of_rows_and_filters(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/c.sqlite3")
    database.write(
        [
            row(
                f"c{number}",
                OPENED,
                invited_at=NOW.replace(minute=number).isoformat(),
                route="even" if number % 2 == 0 else "odd",
                from_number="+49301" if number < 3 else "",
            )
            for number in range(7)
        ]
    )
    first = database.find(Filter(), limit=3)
    assert [one["id"] for one in first] == ["c6", "c5", "c4"]
    second = database.find(Filter(), limit=9, after=first[-1]["id"])
    assert [one["id"] for one in second] == ["c3", "c2", "c1", "c0"]
    assert {one["id"] for one in database.find(Filter(route="odd"), limit=9)} == {"c1", "c3", "c5"}
    assert {one["id"] for one in database.find(Filter(number="+49301"), limit=9)} == {
        "c0",
        "c1",
        "c2",
    }
    late = database.find(Filter(since=NOW.replace(minute=5)), limit=9)
    assert {one["id"] for one in late} == {"c5", "c6"}
    assert [one["id"] for one in database.each(Filter(), batch=2)] == [f"c{n}" for n in range(7)]
    found = database.get("c3")
    assert found is not None
    assert database.get("c") is None, "several calls begin so"
    assert (database.get("3") or {})["id"] == "c3", "by its end"


def test_rows_go_on_where_the_last_one_of_a_page_is_deleted_meanwhile(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/c.sqlite3")
    days = [
        row(f"c{day}", OPENED, invited_at=NOW.replace(day=day).isoformat()) for day in (1, 2, 3)
    ]
    database.write(days)
    found = database.each(Filter(), batch=1)
    assert next(found)["id"] == "c1"
    database.delete(["c1"])
    assert [one["id"] for one in found] == ["c2", "c3"]


def test_a_lasting_connection_follows_a_database_that_was_replaced(tmp_path: Path) -> None:
    first, second = (Database(f"sqlite:///{tmp_path}/c.sqlite3", lasting=True) for _ in range(2))
    first.prepare()
    second.prepare()
    for path in tmp_path.iterdir():
        path.unlink()
    second.prepare()
    first.write([row("c1", OPENED)])
    assert [one["id"] for one in second.each(Filter())] == ["c1"]
    first.close()
    second.close()


def test_rows_that_nobody_writes_any_more_are_closed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/c.sqlite3")
    database.write([row("c1", 7), row("c2", 7, updated_at=NOW.replace(hour=11).isoformat())])
    assert database.close_silent(NOW.replace(minute=30), "gone") == ["c1"]
    assert database.close_silent(NOW.replace(minute=30), "gone") == []
    database.write([row("c1", CLOSED, outcome="completed")])
    found = {one["id"]: one["outcome"] for one in database.each(Filter())}
    assert found == {"c1": "completed", "c2": ""}


OTHER_PROCESS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("CREATE TABLE of_another (x)")
connection.commit()
connection.close()
"""


@pytest.mark.parametrize("kind", ["database", "spool"])
def test_further_connections_leave_the_locks_of_the_first(tmp_path: Path, kind: str) -> None:
    """The process that closes a database last removes its log: not as long as we have it open."""
    if kind == "database":
        path = tmp_path / "calls.sqlite3"
        made = [Database(f"sqlite:///{path}", lasting=True) for _ in range(2)]
        made[0].prepare()
        use: list[Callable[[], object]] = [one.held for one in made]
    else:
        spools = [Spool(tmp_path) for _ in range(2)]
        path = spools[0].path
        use = [spool.pending for spool in spools]
    for one in use:
        one()
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(path)], check=True, timeout=60)
    assert path.with_name(f"{path.name}-wal").exists()
    assert path.stat().st_mode & 0o777 == 0o600
    for one in use:
        one()

# SPDX-License-Identifier: GPL-2.0-or-later
"""From the spool to the database, through outages, rows that are refused, and other processes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy.exc import DataError
from structlog.testing import capture_logs

from gateway.cli import main
from gateway.records.database import Database, Filter
from gateway.records.forwarder import LOCK_NAME, Forwarder, Leadership, ended_event, recover
from gateway.records.spool import CallSlots, Entry, Spool
from gateway.records.tables import CLOSED, OPENED
from tests.support.harness import eventually
from tests.support.kept_rows import NOW, row


async def test_a_spool_that_cannot_be_used_is_in_the_log_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def turn(_forwarder: Forwarder) -> bool:
        tries.append(1)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Forwarder, "_turn", turn)
    monkeypatch.setattr("gateway.records.forwarder.IDLE_SECONDS", 0.001)
    monkeypatch.setattr("gateway.records.forwarder.GATHER_SECONDS", 0.001)
    forwarder = Forwarder(tmp_path, lambda: Database("sqlite://"), lambda _event: ())
    with capture_logs() as logs:
        forwarder.start()
        await eventually(lambda: len(tries) > 3, "turns")
        forwarder.stop()
    assert [one["event"] for one in logs] == ["records.spool_failed"]


def test_a_call_that_was_closed_before_the_kill_stays_closed(tmp_path: Path) -> None:
    mine = CallSlots(tmp_path)
    mine.open()
    mine.take("c1", {"route": "r"})
    spool = Spool(tmp_path)
    spool.add([row("c1", CLOSED)])
    mine.close()
    assert recover(tmp_path, spool) == []
    assert len(spool.entries(10)) == 1


def test_a_row_that_the_database_refuses_costs_no_other(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    bad = row("bad", OPENED, invited_at="no time")
    spool.add([row("c1", OPENED), bad, row("c2", OPENED, detail="nul \0 in it")])
    url = f"sqlite:///{tmp_path}/c.sqlite3"
    forwarder = Forwarder(tmp_path, lambda: Database(url), lambda _event: ())
    forwarder.start()
    forwarder.stop()
    assert sorted(one["id"] for one in Database(url).each(Filter())) == ["bad", "c1", "c2"]
    assert (forwarder.parked, spool.parked(), spool.pending()[0]) == (1, 1, 0)


class Refusing(Database):
    """Refuses a whole record, and events, of the call ``bad``."""

    def write(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.call_id == "bad" and (entry.kind == "event" or entry.body.get("record")):
                raise DataError("INSERT", {}, Exception("refused"))
        super().write(entries)


def test_a_row_whose_record_is_refused_is_written_without_it(tmp_path: Path) -> None:
    spool, url = Spool(tmp_path), f"sqlite:///{tmp_path}/c.sqlite3"
    kept = {"state": "ended", "sip_code": 200, "route": "r", "codec": "x" * 99, "mos": 4.2}
    spool.add([row("bad", CLOSED, record={"a": 1}, **kept, reason=["no text"])])
    with capture_logs() as logs:
        forwarder = Forwarder(tmp_path, lambda: Refusing(url), lambda _event: ())
        forwarder._turn()
    found = Database(url).get("bad")
    assert found is not None
    assert (found["revision"], found["record"], found["reason"]) == (CLOSED, None, "")
    assert (found["sip_code"], found["mos"], found["codec"]) == (200, 4.2, "x" * 32)
    (line,) = [one for one in logs if one["event"] == "records.parked"]
    assert (line["call"], line["without_details"]) == ("bad", True)
    assert spool.parked() == 1
    forwarder._spool.close()
    forwarder._leader.release()


def test_what_was_refused_is_written_again_on_demand(tmp_path: Path) -> None:
    """By the command, on the folder of a gateway: once the database takes it, with its details."""
    config = tmp_path / "gateway.toml"
    config.write_text('[records]\nfolder = "kept"\n')
    folder = tmp_path / "kept"

    def command(*arguments: str) -> tuple[int, str]:
        ran = CliRunner().invoke(main, ["parked", "-c", str(config), *arguments])
        return ran.exit_code, ran.output

    def forward(database: type[Database]) -> None:
        forwarder = Forwarder(folder, lambda: database(url), lambda _event: ())
        forwarder.start()
        forwarder.stop()

    assert command() == (0, "none\n")
    assert not folder.exists()
    spool, url = Spool(folder), f"sqlite:///{folder}/calls.sqlite3"
    told = ended_event("bad", row("bad", CLOSED).body)
    spool.add([row("bad", CLOSED, record={"a": 1}), row("good", CLOSED)])
    spool.add([Entry("event", "bad", told, NOW.timestamp())])
    forward(Refusing)
    assert command("--resend", "good")[0] == 1
    listed = command()[1].splitlines()
    assert [line.split("  ")[::2] for line in listed] == [
        ["bad", "row, (builtins.Exception) refused"],
        ["bad", "event, (builtins.Exception) refused"],
    ]
    assert json.loads(command("--json")[1])[0]["body"]["record"] == {"a": 1}
    assert command("--resend", "all") == (0, "to be written again: 2\n")
    forward(Refusing)
    assert spool.parked() == 2, "the cause was not gone"
    assert command("--resend", "bad") == (0, "to be written again: 2\n")
    forward(Database)
    found = Database(url).get("bad")
    assert found is not None
    assert found["record"] == {"a": 1}
    assert [one["type"] for one in found["events"]] == ["call.ended"]
    assert (spool.parked(), spool.pending()[0]) == (0, 0)
    assert command("--resend", "all") == (0, "to be written again: 0\n")
    spool.close()


def test_an_entry_that_is_no_json_holds_up_no_other(tmp_path: Path) -> None:
    spool, url = Spool(tmp_path), f"sqlite:///{tmp_path}/c.sqlite3"
    spool.add([row("bad", OPENED), row("c1", OPENED)])
    with spool._open() as connection:
        connection.execute("UPDATE entries SET body = '{' WHERE call_id = 'bad'")
    assert spool.closed_among(["bad", "c1"], OPENED) == {"c1"}
    forwarder = Forwarder(tmp_path, lambda: Database(url), lambda _event: ())
    forwarder.start()
    forwarder.stop()
    assert [one["id"] for one in Database(url).each(Filter())] == ["c1"]
    assert (spool.parked(), spool.pending()[0]) == (1, 0)
    assert (spool.unpark("*"), spool.parked()) == (0, 1), "nothing of it is lost"


def test_one_process_leads_where_the_lock_was_replaced(tmp_path: Path) -> None:
    first, second = Leadership(tmp_path), Leadership(tmp_path)
    assert first.acquire()
    (tmp_path / LOCK_NAME).unlink()
    assert second.acquire()
    assert not first.acquire()
    second.release()
    assert first.acquire()
    first.release()


def test_rows_of_others_are_not_closed_right_after_an_outage(tmp_path: Path) -> None:
    """They could not be written meanwhile: their calls may be in progress."""
    path = tmp_path / "calls.sqlite3"
    others = Database(f"sqlite:///{path}")
    others.write([row("c1", 7)])
    faulty = [OSError("away")]

    def database() -> Database:
        if faulty:
            raise faulty.pop()
        return Database(f"sqlite:///{path}")

    forwarder = Forwarder(tmp_path, database, lambda _event: ())
    assert not forwarder._turn()
    assert forwarder.unavailable
    assert not forwarder._turn()
    assert not forwarder.unavailable
    found = others.get("c1")
    assert found is not None
    assert found["ended_at"] is None
    forwarder._spool.close()
    forwarder._leader.release()


@pytest.mark.parametrize("error", [PermissionError("recordings"), ValueError("defect")])
def test_a_sweep_that_fails_is_no_outage_of_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Rows of calls of machines that are gone are closed all the same, each time."""
    monkeypatch.setattr("gateway.records.forwarder.SILENT_SECONDS", 0.0)

    def idle(_database: Database) -> None:
        raise error

    url = f"sqlite:///{tmp_path}/calls.sqlite3"
    forwarder = Forwarder(tmp_path, lambda: Database(url), lambda _event: (), idle)
    with capture_logs() as logs:
        for call_id in ("c1", "c2"):
            Database(url).write([row(call_id, 7)])
            forwarder._turn()
    assert forwarder.unavailable == ""
    assert [one["event"] for one in logs if one["log_level"] == "error"] == ["records.sweep_failed"]
    assert [one["outcome"] for one in Database(url).each(Filter())] == ["crashed"] * 2
    forwarder._spool.close()
    forwarder._leader.release()

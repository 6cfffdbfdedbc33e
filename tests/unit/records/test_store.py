# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of calls: from slot and spool to the database, through outages, kills and bad rows."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy.exc import DataError
from structlog.testing import capture_logs

from gateway.call.call_record import CallRecord
from gateway.cli import main
from gateway.ending import EndReason, ending_of
from gateway.records import files, webhooks
from gateway.records import spool as spool_module
from gateway.records import store as store_module
from gateway.records.database import Database, Filter
from gateway.records.files import BackgroundWriter, RecordFiles
from gateway.records.forwarder import LOCK_NAME, Forwarder, Leadership, ended_event, recover
from gateway.records.retention import erase, sweep_files
from gateway.records.spool import CallSlots, Delivery, Entry, Spool, cut_calls
from gateway.records.store import RecordStore
from gateway.records.tables import CLOSED, CUT, OPENED
from gateway.records.webhooks import Endpoint, WebhookSender
from tests.support.harness import eventually

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


def a_record(call_id: str = "c1", **fields: Any) -> CallRecord:
    made = CallRecord(call_id, started_at=NOW.isoformat(), route="r")
    made.from_uri, made.to_uri = "<sip:+49301234567@pbx>", "sip:100@gw"
    made.leg.source = "192.0.2.7:5060"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def end(record: CallRecord, why: EndReason = EndReason.REMOTE_HANGUP) -> CallRecord:
    record.ending = ending_of(why, answered=record.times.answered is not None)
    record.times.end = 5000.0
    return record


def row(call_id: str, revision: int, **columns: Any) -> Entry:
    body = {
        "id": call_id,
        "revision": revision,
        "schema_version": 1,
        "invited_at": NOW.isoformat(),
        "updated_at": NOW.isoformat(),
        "ended_at": None,
        **columns,
    }
    return Entry("row", call_id, body, time.time())


def delivery(name: str, endpoint: str, due: float) -> Delivery:
    return Delivery(name, endpoint, "c1", "{}", due, due)


class Kept:
    """A store on a folder, with the database that ``url`` names."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder}/calls.sqlite3"
        self.writer = BackgroundWriter()
        self.files = RecordFiles(folder, self.writer)
        self.store = RecordStore(folder, lambda: Database(self.url), self.writer, self.files)

    async def __aenter__(self) -> Kept:
        await self.store.start()
        self.writer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.writer.stop()
        await self.store.stop()

    def rows(self) -> list[dict[str, Any]]:
        """What the database has, oldest first."""
        database = Database(self.url, read_only=True)
        try:
            return list(database.each(Filter()))
        finally:
            database.close()


def _slot_files(folder: Path) -> list[Path]:
    return list(folder.glob("*.slots"))


def _modes(folder: Path) -> set[str]:
    return {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}


async def test_a_call_has_one_row_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    async with Kept(tmp_path) as kept:
        record = a_record()
        kept.store.arrived(record.call_id, {"from_uri": record.from_uri, "sip_call_id": "x@y"})
        kept.store.opened(record)
        await eventually(lambda: kept.store.forwarder.written >= 2, "rows")
        (open_row,) = kept.rows()
        assert (open_row["state"], open_row["ended_at"]) == ("ringing", None)
        assert open_row["from_number"] == "+49301234567"
        record.times.answered = 1000.0
        record.mark(1000.0, "answered")
        await eventually(lambda: kept.rows()[0]["state"] == "talking", "rows")
        kept.store.write(end(record))
    (closed,) = kept.rows()
    assert (closed["outcome"], closed["why"], closed["revision"]) == (
        "completed",
        "remote_hangup",
        CLOSED,
    )
    assert closed["answered_at"].isoformat() == "2026-11-20T10:00:01+00:00"
    database = Database(kept.url, read_only=True)
    whole = database.get("c1")
    assert whole is not None
    assert whole["record"]["call_id"] == "c1"
    assert [one["type"] for one in whole["events"]] == [
        "call.incoming",
        "call.answered",
        "call.ended",
    ]
    assert _modes(tmp_path) == {"0o600"}
    assert not _slot_files(tmp_path), "no slots are left by a process that ended"


async def test_rows_wait_for_a_database_that_is_away(tmp_path: Path) -> None:
    away = tmp_path / "elsewhere"
    away.write_text("no folder")
    async with Kept(tmp_path / "records", f"sqlite:///{away}/calls.sqlite3") as kept:
        for number in range(5):
            record = a_record(f"c{number}")
            kept.store.opened(record)
            kept.store.write(end(record))
        await eventually(lambda: kept.store.forwarder.unavailable != "", "an outage")
        await eventually(lambda: kept.store.forwarder.pending > 0, "rows that wait")
        away.unlink()
        await eventually(lambda: kept.store.as_json()["pending"] == 0, "rows")
    assert [one["outcome"] for one in kept.rows()] == ["cancelled"] * 5


async def test_a_disk_that_takes_nothing_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, full = Spool.add, True

    def refuse(spool: Spool, *given: Any) -> None:
        if full:
            raise sqlite3.OperationalError("database or disk is full")
        add(spool, *given)

    monkeypatch.setattr(Spool, "add", refuse)
    monkeypatch.setattr("gateway.records.files.RETRY_SECONDS", 0.02)
    async with Kept(tmp_path) as kept:
        record = a_record()
        kept.store.opened(record)
        kept.store.write(end(record))
        await eventually(lambda: kept.store._failing, "rows")
        full = False
    (found,) = kept.rows()
    assert found["revision"] == CLOSED


async def test_what_finds_no_room_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store_module, "QUEUE_ITEMS", 1)
    kept = Kept(tmp_path)
    for number in range(3):
        kept.store.write(end(a_record(f"c{number}")))
    assert kept.store.lost == 2
    assert "records.lost" in capsys.readouterr().out


KILLED = """
import os, signal, sys
from pathlib import Path
from gateway.records.spool import CallSlots
slots = CallSlots(Path(sys.argv[1]))
slots.open()
slots.alive(1795168810.0)
for number in range(3):
    slots.take(f"c{number}", {"invited_at": "2026-11-20T10:00:00+00:00", "route": "r"})
slots.free("c1")
print("up", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_spool_that_a_hung_disk_holds_up_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is in the middle of it: to close it would end the process."""
    adds, go_on, closed = threading.Event(), threading.Event(), list[Spool]()

    def add(_spool: Spool, _entries: object, _deliveries: object = ()) -> None:
        adds.set()
        go_on.wait(30)

    kept = Kept(tmp_path)
    await kept.store.start()
    kept.writer.start()
    monkeypatch.setattr(files, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(Spool, "add", add)
    kept.store.opened(a_record())
    await eventually(adds.is_set, "the disk")
    monkeypatch.setattr(Spool, "close", lambda spool: closed.append(spool))
    thread = kept.writer._thread
    assert thread is not None
    await kept.writer.stop()
    await kept.store.stop()
    assert kept.writer.stuck
    assert kept.store._spool not in closed
    go_on.set()
    await asyncio.to_thread(thread.join, 30)
    monkeypatch.undo()
    kept.store._spool.close()
    kept.store._slots.close()


async def test_a_call_that_was_up_at_kill_9_has_its_row(tmp_path: Path) -> None:
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path))
    assert await killed.wait() == -9
    async with Kept(tmp_path) as kept:
        await eventually(lambda: kept.store.forwarder.written >= 4, "rows")
    found = kept.rows()
    assert sorted((one["id"], one["outcome"], one["why"]) for one in found) == [
        ("c0", "crashed", "process_lost"),
        ("c2", "crashed", "process_lost"),
    ]
    assert found[0]["ended_at"] > found[0]["invited_at"]


async def test_slots_are_there_once_the_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs:
        with monkeypatch.context() as full:
            full.setattr(os, "posix_fallocate", lambda *_: (tmp_path / "no").stat())
            kept = Kept(tmp_path)
            await kept.store.start()
            kept.store._tick()
            assert not _slot_files(tmp_path)
            before = a_record("before")
            kept.store.arrived("before", {"route": "r"})
            kept.store.opened(before)
            assert kept.store.as_json()["without_slot"] == 1
        kept.store._tick()
        kept.store.arrived("c1", {"route": "r"})
        kept.store.changed(before)
        kept.store._tick()
        await kept.store.stop()
    assert [one["event"] for one in logs] == ["records.no_slots", "records.slots_opened"]
    (path,) = _slot_files(tmp_path)
    with cut_calls(path) as calls:
        assert {call.call_id for call in calls} == {"c1", "before"}


async def test_a_call_whose_row_cannot_be_made_stops_no_other_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "HEARTBEAT_SECONDS", 0.01)
    async with Kept(tmp_path) as kept:
        bad, good = a_record("bad"), a_record("good")
        for record in (bad, good):
            kept.store.opened(record)
        bad.started_at = "no time"
        revision = kept.store._live["good"].revision
        await eventually(lambda: kept.store._live["good"].revision > revision + 3, "rows")


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


def test_slots_of_a_living_process_are_its_own(tmp_path: Path) -> None:
    mine = CallSlots(tmp_path)
    mine.open()
    mine.take("c1", {"route": "r"})
    with cut_calls(mine.path) as calls:
        assert calls == [], "its process still runs"
    mine.path.unlink()
    assert mine.lost
    mine.open()
    mine.close()
    with cut_calls(mine.path) as calls:
        assert [call.call_id for call in calls] == ["c1"]
    assert not mine.path.exists()


def test_a_call_that_was_closed_before_the_kill_stays_closed(tmp_path: Path) -> None:
    mine = CallSlots(tmp_path)
    mine.open()
    mine.take("c1", {"route": "r"})
    spool = Spool(tmp_path)
    spool.add([row("c1", CLOSED)])
    mine.close()
    assert recover(tmp_path, spool) == []
    assert len(spool.entries(10)) == 1


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


async def test_a_record_that_cannot_be_made_costs_no_other_and_has_its_row(
    tmp_path: Path,
) -> None:
    async with Kept(tmp_path) as kept:
        for name in ("before", "bad", "after"):
            record = end(a_record(name))
            if name == "bad":
                record.transcript = object()  # type: ignore[assignment]
            kept.store.write(record)
    assert {one["id"]: one["outcome"] for one in kept.rows()} == dict.fromkeys(
        ("before", "bad", "after"), "cancelled"
    )
    assert (kept.store.incomplete, kept.store.lost, kept.store._channel.dropped) == (1, 0, 0)
    assert not _slot_files(tmp_path)


async def test_what_json_has_no_form_for_is_in_the_record_as_text(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    odd = {"number": Decimal("1.5"), "nan": float("nan"), "half": "\ud800", "circle": circle}
    wide = 10**400
    async with Kept(tmp_path) as kept:
        kept.store.write(end(a_record("odd", cost={**odd, "wide": wide})))
        kept.store.write(end(a_record("other")))
    found = Database(kept.url, read_only=True).get("odd")
    assert found is not None
    cost = found["record"]["cost"]
    assert (cost["number"], cost["nan"], cost["half"]) == ("1.5", None, "\ufffd")
    assert cost["wide"] == wide
    assert [one["id"] for one in kept.rows()] == ["odd", "other"]
    assert kept.store.forwarder.parked == 0


async def test_one_row_that_the_spool_refuses_is_the_only_one_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Spool.add

    def refuse(spool: Spool, entries: Iterable[Entry], *more: Any) -> None:
        entries = list(entries)
        if any(one.call_id == "bad" for one in entries):
            raise sqlite3.DataError("string or blob too big")
        add(spool, entries, *more)

    monkeypatch.setattr(Spool, "add", refuse)
    with capture_logs() as logs:
        async with Kept(tmp_path) as kept:
            for name in ("before", "bad", "after"):
                kept.store.write(end(a_record(name)))
    assert {one["id"] for one in kept.rows()} == {"before", "after"}
    assert (kept.store.lost, kept.store._channel.dropped) == (1, 0)
    (line,) = [one for one in logs if one["event"] == "records.lost"]
    assert (line["call"], line["row"]["route"]) == ("bad", "r")


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


def test_a_removed_spool_loses_nothing_that_was_parked_or_is_being_written(tmp_path: Path) -> None:
    writer, reader = Spool(tmp_path), Spool(tmp_path)
    reader.pending()
    writer.add([row("parked", OPENED), row("c1", OPENED), row("c2", OPENED)])
    writer.park(writer.entries(1)[0], "refused \ud800")
    taken = reader.entries(10)
    for path in tmp_path.iterdir():
        path.unlink()
    writer.add([row("new", OPENED)])
    reader.done(taken)
    assert [one.call_id for one in writer.entries(10)] == ["new"], "the others are written"
    assert (writer.parked(), reader.parked()) == (1, 1)
    writer.park(writer.entries(1)[0], "refused")
    assert reader.parked() == 2, "none takes the place of another"


def test_a_spool_whose_folder_is_removed_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    spool = Spool(folder)
    spool.add([row("c1", OPENED)])
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    spool.add([row("c2", OPENED)])
    assert [one.call_id for one in Spool(folder).entries(10)] == ["c1", "c2"]


def test_every_connection_follows_a_spool_that_was_replaced(tmp_path: Path) -> None:
    """The first connection that notices makes the new file; the others must not stay in the old."""
    writer, reader = Spool(tmp_path), Spool(tmp_path)
    writer.add([row("c1", OPENED)], [delivery("e1", "a", 1.0)])
    assert reader.pending()[0] == 1
    for path in tmp_path.iterdir():
        path.unlink()
    writer.add([row("c2", OPENED)])
    assert {one.call_id for one in reader.entries(10)} == {"c1", "c2"}
    assert [one.id for one in reader.due(2.0, 10)] == ["e1"], "webhooks are kept, too"


def test_what_a_removed_spool_had_survives_a_disk_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.add([row("c1", OPENED)])
    for path in tmp_path.iterdir():
        path.unlink()
    with monkeypatch.context() as full:
        full.setattr(spool_module, "create_database", lambda _path: (tmp_path / "no").stat())
        with pytest.raises(FileNotFoundError):
            spool.pending()
    assert spool.pending()[0] == 1


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


def test_an_erasure_that_fails_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows, by which files are found, are changed last."""
    database, spool = Database(f"sqlite:///{tmp_path / 'calls.db'}"), Spool(tmp_path)
    at = NOW.isoformat()
    database.write([row("c1", CLOSED, invited_at=at, ended_at=at, from_number="+49301")])
    path = tmp_path / f"{files.file_stem(NOW.isoformat(timespec='milliseconds'), 'c1')}.json"
    path.touch()
    spool.pending()
    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", lambda *_a, **_k: (tmp_path / "no").stat())
        with pytest.raises(FileNotFoundError):
            erase("+49301", database, spool, tmp_path)
    assert erase("+49301", database, spool, tmp_path)["files"] == 1
    assert not path.exists()
    assert database.of_number("+49301") == []
    spool.close()
    database.close()


def test_due_deliveries_of_one_endpoint_leave_room_for_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add([], [delivery(f"s{number}", "slow", float(number)) for number in range(20)])
    spool.add([], [delivery("q1", "quick", 50.0)])
    found = [(one.endpoint, one.id) for one in spool.due(60.0, 3)]
    assert found == [("slow", "s0"), ("slow", "s1"), ("slow", "s2"), ("quick", "q1")]
    spool.close()


async def test_a_spool_that_hangs_takes_no_thread_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the event loop's pool are few."""
    go_on = threading.Event()
    monkeypatch.setattr(Spool, "waiting", lambda _spool: (go_on.wait(30), {})[1])
    sender = WebhookSender(tmp_path, [Endpoint("a", "", (), frozenset(), {})], lambda: True)
    asked = [asyncio.create_task(sender.waiting()) for _ in range(40)]
    try:
        async with asyncio.timeout(15):
            await asyncio.sleep(0)
            assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        go_on.set()
    assert [await one for one in asked] == [{"a": (0, None, 0)}] * 40


async def test_a_spool_that_hangs_does_not_hold_up_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, closed = threading.Event(), threading.Event()

    def close(_spool: Spool) -> None:
        go_on.wait(60)
        closed.set()

    monkeypatch.setattr(webhooks, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(Spool, "close", close)
    sender = WebhookSender(tmp_path, [], lambda: False)
    await sender.start()
    await sender.stop()
    assert not closed.is_set()
    go_on.set()


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


def test_numbers_are_masked_where_a_route_says_so(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    masked = RecordStore(
        tmp_path, lambda: Database(kept.url), BackgroundWriter(), kept.files, redact={"numbers"}
    )
    masked._slots.open()
    masked.arrived("c1", {"from_uri": "sip:+49301234567@pbx", "to_uri": "sip:100@gw"})
    text = masked._slots.path.read_bytes()
    assert b"c1" in text
    assert b"1234567" not in text
    masked._slots.close()


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


def test_what_is_erased_stays_in_no_file(tmp_path: Path) -> None:
    """Neither in pages that were freed nor in a write-ahead log; both files stay open."""
    database = Database(f"sqlite:///{tmp_path / 'calls.db'}")
    database.prepare()
    spool = Spool(tmp_path)
    said = {"transcript": [{"who": "caller", "text": "My word is xylophone."}]}
    at = NOW.isoformat()
    closed = row("c1", CLOSED, invited_at=at, ended_at=at, from_number="+49301", record=said)
    database.write([closed])
    spool.add([closed])
    assert b"xylophone" in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert erase("+49301", database, spool, tmp_path)["waiting"] == 1
    for path in tmp_path.iterdir():
        assert b"xylophone" not in path.read_bytes(), path
        assert b"+49301" not in path.read_bytes(), path
    spool.close()
    database.close()


def test_a_file_that_cannot_be_deleted_keeps_no_other(tmp_path: Path) -> None:
    names = ("20200101T000000_a.json", "20200101T000000_c.json", "20209999T999999_none.json")
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "20200101T000000_b.json").mkdir()
    with pytest.raises(OSError, match=r"_b\.json"):
        sweep_files(tmp_path, NOW)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["20200101T000000_b.json", "20209999T999999_none.json"]


def test_every_file_of_a_call_on_legal_hold_stays(tmp_path: Path) -> None:
    held = ["_c1.json", "_c1.events.jsonl", "_c1.wav", "_c1-2.wav.sealed"]
    others = ["_c2.json", "_c2.events.jsonl", "_c2-2.ogg"]
    young = ["20260301T000000_c3.json", "erasure.key", "notes_c1.json.part"]
    old = [f"20260101T000000123{name}" for name in (*held, *others)]
    for name in (*old, *young):
        (tmp_path / name).touch()
    assert sweep_files(tmp_path, datetime(2026, 2, 1, tzinfo=UTC), {"c1"}) == len(others)
    assert {path.name for path in tmp_path.iterdir()} == {*old[: len(held)], *young}

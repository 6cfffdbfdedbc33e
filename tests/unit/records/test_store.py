# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of calls from slot and spool to the database, through outages, kills and bad rows."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.records import files
from gateway.records import store as store_module
from gateway.records.database import Database
from gateway.records.files import BackgroundWriter
from gateway.records.spool import Entry, Spool, cut_calls
from gateway.records.store import RecordStore
from gateway.records.tables import CLOSED
from tests.support.harness import eventually
from tests.support.kept_rows import Kept, a_record, end


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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Record files: whole, in order, bounded, and never in a call's way."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.call.call_record import MAX_TIMELINE, CallRecord, DigitRun, Interruption, LegRecord
from gateway.ending import EndReason, ending_of
from gateway.records import files
from gateway.records.files import BackgroundWriter, RecordFiles
from gateway.text import unicode_of


def _record(call_id: str, second: int = 0) -> CallRecord:
    record = CallRecord(call_id, route="r", leg=LegRecord(codec="PCMU"))
    record.started_at = f"2026-01-02T03:04:{second:02d}.567+00:00"
    record.times.ringing = 0.04
    record.times.confirmed, record.times.end = 1000.04, 4567.94
    record.actions.digits.append(DigitRun(2000.0, "42", "terminator"))
    record.actions.interruptions.append(
        Interruption(1.0, "speech", "item_1", 120, 400, 280, "truncate")
    )
    record.mark(12.345, "dtmf", digit="4")
    record.ending = ending_of(EndReason.REMOTE_HANGUP, answered=True, reason="Q.850;cause=16")
    return record


@asynccontextmanager
async def writing(folder: Path | None) -> AsyncIterator[RecordFiles]:
    """Record files with a thread of their own; at the end all is written."""
    thread = BackgroundWriter()
    made = RecordFiles(folder, thread)
    made.prepare()
    thread.start()
    yield made
    await thread.stop()


def _write(folder: Path, *records: CallRecord) -> tuple[RecordFiles, list[Any]]:
    async def scenario() -> RecordFiles:
        async with writing(folder) as writer:
            for record in records:
                writer.write(record)
        return writer

    with capture_logs() as logs:
        return asyncio.run(scenario()), list(logs)


def test_a_record_as_file(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    _write(folder, _record("abc@192.0.2.1"))
    (file,) = folder.iterdir()
    assert file.name == "20260102T030400567_abc_192.0.2.1.json"
    record = json.loads(file.read_text())
    assert record["call_id"] == "abc@192.0.2.1"
    assert record["times_ms"] == {
        "ringing": 0.0,
        "session": None,
        "answered": None,
        "confirmed": 1000.0,
        "first_audio": None,
        "end": 4567.9,
    }
    assert record["talk_ms"] == 3567.9
    assert record["ending"] == {
        "by": "caller",
        "why": "remote_hangup",
        "sip_code": 200,
        "reason": "Q.850;cause=16",
        "detail": "",
    }
    assert record["digits"] == [{"at_ms": 2000.0, "digits": "42", "ended_by": "terminator"}]
    assert record["interruptions"][0]["flushed_ms"] == 280
    assert record["timeline"] == [{"t_ms": 12.3, "event": "dtmf", "digit": "4"}]
    assert record["timeline_dropped"] == 0


@pytest.mark.parametrize(
    "call_id", ["../../etc/passwd", "/abs", "a/b\\c:d*", "", ".", "x" * 500, "ü\ud800\n", "a.part"]
)
def test_any_call_id_is_a_file_in_the_folder(tmp_path: Path, call_id: str) -> None:
    folder = tmp_path / "records"
    writer, logs = _write(folder, _record(call_id))
    (file,) = folder.iterdir()
    assert json.loads(file.read_text())["call_id"] == unicode_of(call_id)
    assert (writer.dropped, logs) == (0, [])
    assert list(tmp_path.iterdir()) == [folder]


def test_a_record_that_cannot_be_written_stops_no_other(tmp_path: Path) -> None:
    bad = _record("bad")
    bad.transcript = object()  # type: ignore[assignment]
    writer, logs = _write(tmp_path, _record("first", 1), bad, _record("last", 2))
    assert [json.loads(f.read_text())["call_id"] for f in sorted(tmp_path.glob("*.json"))] == [
        "first",
        "last",
    ]
    assert writer.dropped == 1
    (line,) = logs
    assert (line["event"], line["call"]) == ("records.dropped", "bad")
    assert "as_json" in line["error"]


async def _written(writer: RecordFiles) -> None:
    while len(writer._channel):  # noqa: ASYNC110  a thread writes them
        await asyncio.sleep(0.01)


def test_a_folder_that_goes_away_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "records"

    async def scenario() -> int:
        async with writing(folder) as writer:
            folder.rmdir()
            writer.write(_record("remade"))
            await _written(writer)
            shutil.rmtree(folder)
            folder.write_text("no folder any more")
            writer.write(_record("lost"))
        return writer.dropped

    with capture_logs() as logs:
        assert asyncio.run(scenario()) == 1
    assert [line["event"] for line in logs] == ["records.waiting", "records.dropped"]
    assert logs[1]["call"] == "lost"
    assert json.loads(logs[1]["record"])["call_id"] == "lost"


def test_a_disk_that_is_full_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, tries = files._write, iter(range(100))

    def full(folder: Path, record: CallRecord) -> None:
        if next(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, record)

    monkeypatch.setattr(files, "_write", full)
    monkeypatch.setattr(files, "RETRY_SECONDS", 0.01)

    async def scenario() -> int:
        async with writing(tmp_path) as writer:
            for number in range(3):
                writer.write(_record(f"c{number}"))
            await _written(writer)
        return writer.dropped

    with capture_logs() as logs:
        assert asyncio.run(scenario()) == 0
    assert [line["event"] for line in logs] == ["records.waiting", "records.written_again"]


def test_a_disk_that_stays_full_costs_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, record: CallRecord) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    monkeypatch.setattr(files, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(files, "KEEP_SECONDS", 0.05)

    async def scenario() -> None:
        async with writing(tmp_path) as writer:
            for number in range(3):
                writer.write(_record(f"c{number}"))
            await _written(writer)
            assert writer.dropped == 3

    with capture_logs() as logs:
        asyncio.run(scenario())
    lines = [line for line in logs if line["event"] == "records.dropped"]
    assert [json.loads(line["record"])["call_id"] for line in lines] == ["c0", "c1", "c2"]


def test_records_of_one_name_are_all_kept(tmp_path: Path) -> None:
    writer, _ = _write(tmp_path, *(_record("x" * 80 + str(number)) for number in range(20)))
    written = list(tmp_path.iterdir())
    assert (len(written), writer.dropped) == (20, 0)
    assert {json.loads(file.read_text())["call_id"][80:] for file in written} == {
        str(number) for number in range(20)
    }
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o600}


def test_a_folder_that_cannot_be_made_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        RecordFiles(tmp_path / "file" / "records", BackgroundWriter()).prepare()


def test_without_a_folder_nothing_is_written() -> None:
    async def scenario() -> int:
        async with writing(None) as writer:
            writer.write(_record("x"))
        return writer.dropped

    assert asyncio.run(scenario()) == 0


def test_a_disk_that_hangs_costs_records_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, in_hand = threading.Event(), threading.Event()
    write = files._write

    def hang(folder: Path, record: CallRecord) -> None:
        in_hand.set()
        disk.wait(30)
        write(folder, record)

    monkeypatch.setattr(files, "_write", hang)
    monkeypatch.setattr(files, "QUEUE_RECORDS", 3)

    async def scenario() -> int:
        async with writing(tmp_path) as writer:
            writer.write(_record("in_hand"))
            await asyncio.to_thread(in_hand.wait, 30)
            for number in range(5):
                writer.write(_record(f"n{number}"))
            assert writer.dropped == 2
            disk.set()
        writer.write(_record("late"))
        return writer.dropped

    with capture_logs() as logs:
        assert asyncio.run(scenario()) == 3
    assert [line["call"] for line in logs] == ["n3", "n4", "late"]
    names = {json.loads(f.read_text())["call_id"] for f in tmp_path.glob("*.json")}
    assert names == {"in_hand", "n0", "n1", "n2"}


def test_a_disk_that_hangs_at_the_end_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()
    monkeypatch.setattr(files, "_write", lambda _folder, _record: disk.wait(30))
    monkeypatch.setattr(files, "STOP_SECONDS", 0.05)

    async def scenario() -> int:
        async with writing(tmp_path) as writer:
            for number in range(3):
                writer.write(_record(f"n{number}"))
        dropped = writer._channel.dropped
        disk.set()
        return dropped

    with capture_logs() as logs:
        assert asyncio.run(scenario()) == 3
    assert [(line["event"], line["lost"]) for line in logs] == [("records.write_failed", 3)]


def test_timeline_is_bounded_and_counts_the_rest() -> None:
    record = CallRecord("x")
    for number in range(MAX_TIMELINE + 5):
        record.mark(float(number), "e")
    body = record.as_json()
    assert (len(body["timeline"]), body["timeline_dropped"]) == (MAX_TIMELINE, 5)


def test_summary_of_a_call_that_never_was_is_json() -> None:
    summary = json.loads(json.dumps(CallRecord("x").summary()))
    assert summary["ending"] is None
    assert summary["talk_ms"] == 0.0

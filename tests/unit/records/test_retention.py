# SPDX-License-Identifier: GPL-2.0-or-later
"""Uploads of recordings to an S3-compatible server over HTTP; files that are erased or kept."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from gateway.audio import Codec
from gateway.records import files, retention
from gateway.records.database import Database
from gateway.records.recordings import Options, Recordings
from gateway.records.retention import (
    Storage,
    Uploads,
    delete_uploaded,
    erase,
    sweep,
    sweep_files,
)
from gateway.records.spool import Spool
from gateway.records.tables import CLOSED
from tests.support.kept_rows import NOW, row


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    made = Storage(f"http://{host}:{port}", "calls", "2026/", "us-east-1", "key", "secret")
    made.client().make_bucket("calls")
    yield made
    server.stop()


def there(storage: Storage) -> dict[str, bytes]:
    client = storage.client()
    names = [one.object_name for one in client.list_objects(storage.bucket, recursive=True)]
    return {name: client.get_object(storage.bucket, name).read() for name in names}


def until(condition: Callable[[], Any]) -> None:
    until_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until_s, "it did not come to that"
        time.sleep(0.01)


def recording(folder: Path, name: str, data: bytes) -> Path:
    """A file that a recorder has begun."""
    (folder / "pending").mkdir(exist_ok=True)
    (folder / "pending" / name).symlink_to(Path("..", name))
    (folder / name).write_bytes(data)
    return folder / name


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_complete_files_are_uploaded_and_open_ones_wait(storage: Storage, tmp_path: Path) -> None:
    done = recording(tmp_path, "20260101T000000_done.wav", b"RIFF" * 1000)
    opened = recording(tmp_path, "20260101T000000_open.wav", b"x")
    made = Uploads(tmp_path, storage)
    with opened.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made.start()
        until(lambda: made.uploaded == 1)
        assert list(there(storage).values()) == [b"RIFF" * 1000]
        file.write(b"complete")
    until(lambda: made.uploaded == 2)
    asyncio.run(made.stop())
    assert there(storage)["2026/20260101T000000_open.wav"] == b"complete"
    assert done.exists()
    assert made.as_json() == {"uploaded": 2, "waiting": 0, "failing": ""}
    assert delete_uploaded(storage, "20260101T000000_open") == 1
    assert list(there(storage)) == ["2026/20260101T000000_done.wav"]


@pytest.mark.usefixtures("quick")
def test_a_storage_that_is_away_gets_all_of_it_later(storage: Storage, tmp_path: Path) -> None:
    path = recording(tmp_path, "20260102T000000_late.wav", b"late")
    away = Uploads(tmp_path, Storage("http://127.0.0.1:9", "calls", access_key="k", secret_key="s"))
    away.start()
    until(lambda: away.failing)
    asyncio.run(away.stop())
    assert path.exists()
    gone = Storage(storage.endpoint, "calls", "", "us-east-1", "key", "secret", keep_local=False)
    back = Uploads(tmp_path, gone)
    back.start()
    until(lambda: back.uploaded == 1)
    asyncio.run(back.stop())
    assert not path.exists()
    assert there(storage)["20260102T000000_late.wav"] == b"late"


@pytest.mark.usefixtures("quick")
def test_a_file_that_cannot_be_uploaded_holds_up_no_other(storage: Storage, tmp_path: Path) -> None:
    recording(tmp_path, "20260104T000000_good.wav", b"good")
    (tmp_path / "20260103T000000_bad.wav").mkdir()
    (tmp_path / "pending" / "20260103T000000_bad.wav").symlink_to("../20260103T000000_bad.wav")
    made = Uploads(tmp_path, storage)
    made.start()
    until(lambda: made.uploaded == 1)
    until(lambda: made.failing)
    asyncio.run(made.stop())
    assert made.failing == "IsADirectoryError"
    assert there(storage)["2026/20260104T000000_good.wav"] == b"good"
    delete_uploaded(storage, "20260104T000000_good")


class Tone:
    """A recorder with a second of sound."""

    def __init__(self) -> None:
        self.left = [b"\x9f" * 16000]

    def take(self) -> bytes:
        return self.left.pop() if self.left else b""


@pytest.mark.usefixtures("quick")
def test_a_recording_is_uploaded_once_it_is_complete(storage: Storage, tmp_path: Path) -> None:
    made = Uploads(tmp_path, storage)
    written = Recordings(Options(tmp_path, upload=True), made.wake)
    written.start()
    made.start()
    one = written.begin("c", "20260103T000000_c", Tone(), Codec.PCMA, "wav")
    until(lambda: one.path.exists() and one.path.stat().st_size > 16000)
    assert made.uploaded == 0, "it is still written to"
    written.end(one)
    until(lambda: made.uploaded == 1)
    asyncio.run(written.stop())
    asyncio.run(made.stop())
    assert there(storage)["2026/20260103T000000_c.wav"] == one.path.read_bytes()
    assert list((tmp_path / "pending").iterdir()) == []


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


def test_what_the_database_refused_goes_with_the_details(tmp_path: Path) -> None:
    spool, database = Spool(tmp_path), Database(f"sqlite:///{tmp_path}/calls.sqlite3")
    database.prepare()
    spool.add([row("c1", CLOSED, record={"transcript": ["secret"]})])
    spool.park(spool.entries(1)[0], "refused")
    for days, left in ((1, 1), (3, 0)):
        now = datetime.now(UTC) + timedelta(days=days)
        sweep(database, tmp_path, now, rows_days=9, details_days=2)
        assert spool.parked() == left
    database.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The writer of recordings: containers, encryption, files that are cut."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest
import soundfile
from structlog.testing import capture_logs

from gateway.audio import G711, Codec
from gateway.records import recording_files
from gateway.records.recording_files import RecordingError, decrypt
from gateway.records.recordings import Options, Recording, Recordings

KEY = pyrage.x25519.Identity.generate()
STEPS = b"".join(bytes([0x80 + step]) * 160 + bytes([0x10 + step]) * 160 for step in range(50))


class Tape:
    """A recorder that has these bytes, a second at a time."""

    def __init__(self, seconds: int) -> None:
        self.left = seconds

    def take(self) -> bytes:
        self.left -= 1
        return recording_files.stereo(b"\x9f" * 8000, b"\x1f" * 8000) if self.left >= 0 else b""


MARKS = (b"WAVEfmt ", b"OpusHead")
"""At the beginning of files that are not sealed: longer than what random bytes have by chance."""


def write(path: Path, format: str, codec: Codec = Codec.PCMA, sealed: bool = False) -> Recording:
    """A recording of five seconds that nobody has ended."""
    recipients = recording_files.recipients_of((str(KEY.to_public()),) if sealed else ())
    made = Recording("c", path, Tape(5), codec, format, recipients, link=False)
    for _ in range(5):
        assert not made.work()
    return made


@pytest.mark.parametrize("codec", list(G711))
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("format", ["wav", "wav_pcm", "opus"])
def test_every_file_plays(
    tmp_path: Path, format: str, sealed: bool, ended: bool, codec: Codec
) -> None:
    path = tmp_path / "call"
    made = write(path, format, codec, sealed)
    if ended:
        made.over = True
        assert made.work()
    assert path.stat().st_mode & 0o777 == 0o600
    if sealed:
        assert recording_files.stereo(b"\x9f" * 99, b"\x1f" * 99) not in path.read_bytes()
        assert not any(mark in path.read_bytes() for mark in MARKS)
        note = decrypt(path, tmp_path / "plain", [KEY])
        assert bool(note) is not ended
        path = tmp_path / "plain"
        assert any(mark in path.read_bytes() for mark in MARKS)
    with soundfile.SoundFile(path) as sound:
        assert (sound.samplerate, sound.channels) == (8000, 2)
        samples = sound.read(dtype="int16")
    if format == "opus":
        assert len(samples) > (39000 if ended else 24000)
    else:
        assert len(samples) == 40000
        linear = [
            int.from_bytes(codec.to_linear(b)[:2], "little", signed=True)
            for b in (b"\x9f", b"\x1f")
        ]
        assert samples[[0, 20000, -1]].tolist() == [list(linear)] * 3


def test_a_segment_that_is_missing_or_changed_is_told(tmp_path: Path) -> None:
    made = write(tmp_path / "call", "wav", sealed=True)
    made.over = True
    made.work()
    whole = (tmp_path / "call").read_bytes()
    start = len(recording_files.SEALED)
    length = int.from_bytes(whole[start : start + 4], "big") + 4
    for wrong in (
        whole[:start] + whole[start + length :],
        whole[: start + 200] + bytes([whole[start + 200] ^ 1]) + whole[start + 201 :],
    ):
        with pytest.raises(RecordingError, match="segment 0"):
            list(recording_files.unsealed(io.BytesIO(wrong), [KEY]))
    other = pyrage.x25519.Identity.generate()
    with pytest.raises(RecordingError, match="cannot be decrypted"):
        recording_files.decrypt(tmp_path / "call", tmp_path / "plain", [other])
    # What was refused is not in the way of the right key.
    assert recording_files.decrypt(tmp_path / "call", tmp_path / "plain", [KEY]) == ""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Recordings]:
    made = Recordings(Options(tmp_path))
    made.start()
    yield made
    assert made._thread is not None
    with made._changed:
        made._closed = True
        made._changed.notify()
    made._thread.join(30)


def until(condition: Callable[[], object]) -> None:
    """Wait for what the thread does."""
    until_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until_s, "never"
        time.sleep(0.01)


def test_the_thread_completes_or_discards_files(running: Recordings, tmp_path: Path) -> None:
    kept = running.begin("a", "20260101T000000_a", Tape(2), Codec.PCMU, "wav")
    gone = running.begin("b", "20260101T000000_b", Tape(2), Codec.PCMU, "wav")
    running.end(kept)
    running.end(gone, discard=True)
    until(lambda: not running.open)
    assert [path.name for path in tmp_path.iterdir()] == ["20260101T000000_a.wav"]


def test_a_recording_that_raises_costs_no_other(running: Recordings, tmp_path: Path) -> None:
    class Broken(Tape):
        def take(self) -> bytes:
            raise ZeroDivisionError

    with capture_logs() as logs:
        bad = running.begin("bad", "bad", Broken(2), Codec.PCMA, "wav")
        good = running.begin("good", "good", Tape(2), Codec.PCMA, "wav")
        for one in (bad, good):
            running.end(one)
        until(lambda: not running.open)
    assert [path.name for path in tmp_path.iterdir()] == ["good.wav"]
    assert [(one["event"], one["call"]) for one in logs] == [("recording.write_failed", "bad")]


def test_no_name_of_an_earlier_recording_of_a_call_is_taken_again(
    running: Recordings, tmp_path: Path
) -> None:
    """It may have been uploaded and removed: the next upload would replace it in the storage."""
    first = running.begin("a", "20260101T000000_a", Tape(2), Codec.PCMU, "wav")
    running.end(first)
    until(lambda: not running.open)
    first.path.unlink()
    second = running.begin(
        "a", "20260101T000000_a", Tape(2), Codec.PCMU, "wav", taken={first.path.name}
    )
    running.end(second)
    until(lambda: not running.open)
    assert [path.name for path in tmp_path.iterdir()] == ["20260101T000000_a-2.wav"]


def test_a_recording_that_is_erased_while_it_is_closed_is_deleted(
    running: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Recording._close

    def and_erased(made: Recording) -> None:
        close(made)
        running.erase(made)

    monkeypatch.setattr(Recording, "_close", and_erased)
    made = running.begin("a", "20260101T000000_a", Tape(2), Codec.PCMU, "wav")
    running.end(made)
    until(lambda: not running.open and not made.path.exists())
    assert list(tmp_path.iterdir()) == []


def test_a_recording_that_is_discarded_before_it_has_a_file_leaves_nothing(tmp_path: Path) -> None:
    """Nor a link, by which the storage would be asked to delete it."""
    made = Recording("a", tmp_path / "a.wav", Tape(2), Codec.PCMU, "wav", (), link=True)
    made.over = made.discarded = True
    assert made.work()
    assert made.deleted
    assert made.erase()
    assert list(tmp_path.iterdir()) == []


def test_a_deletion_that_waits_for_an_upload_is_not_forgotten_at_the_end(
    running: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase, tries = Recording.erase, list[bool]()

    def tried(made: Recording) -> bool:
        tries.append(erase(made))
        return tries[-1]

    monkeypatch.setattr(Recording, "erase", tried)
    made = running.begin("a", "20260101T000000_a", Tape(2), Codec.PCMU, "wav")
    running.end(made)
    until(lambda: not running.open)
    with recording_files.locked(made.path):
        running.erase(made)
        with running._changed:
            running._closed = True
            running._changed.notify()
        until(lambda: len(tries) > 3)
        assert not any(tries)
        assert made.path.exists()
    assert running._thread is not None
    running._thread.join(30)
    assert not made.path.exists()


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("format", ["wav", "wav_pcm", "opus"])
def test_a_disk_that_has_room_again_gets_all_of_it(
    tmp_path: Path, format: str, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is missing of what waited; of more than that there is silence."""
    room = 3000
    real = os.pwrite

    def pwrite(file: int, data: bytes, at: int) -> int:
        if at + len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    recipients = recording_files.recipients_of((str(KEY.to_public()),) if sealed else ())
    made = Recording("c", tmp_path / "r", Tape(40), Codec.PCMU, format, recipients, link=False)
    for _ in range(40):
        made.work()
    assert made.failing
    assert made.failed
    lost = made.lost_bytes
    assert (lost > 0) is (format != "opus"), "40 s of opus wait in a few kilobytes"
    made.over = True
    assert not made.work(), "there is no room for its end"
    room = 10**9
    assert made.work()
    assert not made.failing
    path = tmp_path / "r"
    if sealed:
        decrypt(path, tmp_path / "plain", [KEY])
        path = tmp_path / "plain"
    with soundfile.SoundFile(path) as sound:
        assert sound.frames == 40 * 8000 - lost // 2, "its end is missing, and nothing before"


def test_silence_stands_for_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Recording("c", tmp_path / "r", Tape(60), Codec.PCMU, "wav", (), link=False)
    with monkeypatch.context() as full:
        full.setattr(Recording, "_open", lambda _self: os.open(tmp_path / "no" / "r", 0))
        for _ in range(50):
            made.work()
    for _ in range(10):
        made.work()
    made.over = True
    assert made.work()
    data, _rate = soundfile.read(tmp_path / "r", dtype="int16")
    assert len(data) == 60 * 8000
    lost = made.lost_bytes // 2
    assert (data[30 * 8000 : 30 * 8000 + lost] == 0).all()
    assert (data[: 30 * 8000] != 0).all()
    assert (data[30 * 8000 + lost :] != 0).all()


def test_a_file_that_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "blocked").touch()
    made = Recording("c", tmp_path / "blocked" / "r", Tape(2), Codec.PCMU, "wav", (), link=False)
    made.over = True
    assert not made.work()
    assert made.work(final=True)
    assert made.lost_bytes > 16000


def test_a_disk_that_takes_nothing_loses_the_file_and_says_so(
    running: Recordings, tmp_path: Path
) -> None:
    (tmp_path / "blocked").touch()
    made = running.begin("a", "blocked/a", Tape(2), Codec.PCMU, "wav")
    running.end(made)
    until(lambda: running.as_json()["failing"])
    asyncio.run(running.stop())
    running.start()
    assert running.lost_bytes > 0


def test_old_files_are_deleted_without_a_database_too(tmp_path: Path) -> None:
    for name in ("20200101T000000_old.wav", "20200101T000000_old.ogg.sealed", "notes.txt"):
        (tmp_path / name).touch()
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    (tmp_path / f"{now}000_new.wav").touch()
    made = Recordings(Options(tmp_path, retention_days=1.0))
    made.start()
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    asyncio.run(made.stop())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{now}000_new.wav", "notes.txt"]

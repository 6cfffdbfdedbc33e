# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes recordings of calls: WAV or Ogg Opus files, encrypted with age where there are recipients.

A recorder in the media's threads keeps what both sides said (``gateway/sip/call_audio.py``); one
thread takes it from there twice a second, for all calls. Neither a slow disk nor an encoder can
hold up audio: what finds no place is counted, and silence stands in its place.

A disk without space is tried again until it takes what waits. A file that is cut short, by
``kill -9`` or such a disk, can be played up to there: the header of a
WAV file is right after each write, Ogg has no length in it, and an encrypted file is a row of small
ones, each whole.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Container
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import structlog

from gateway.audio import FRAME_MS, Codec
from gateway.records.files import private
from gateway.records.recording_files import (
    PENDING,
    OpusFile,
    RecordingError,
    SealedFile,
    Sink,
    WavFile,
    locked,
    recipients_of,
)

WRITE_SECONDS = 0.5
"""From one write to the next: as much is lost of a file whose process is killed."""
WAITING_FRAMES = 30_000 // FRAME_MS
"""Frames that wait for the thread: 30 s, 480 kB a call; a disk that hangs for longer costs some."""
MAX_WAITING_BYTES = WAITING_FRAMES * 320
"""Of a file, that wait for a disk that takes nothing; as much again may wait for the thread."""
KEEP_SECONDS = 300.0
"""Seconds after its call for which a file that cannot be written is tried again."""
STOP_SECONDS = 5.0
ERASE_SECONDS = 0.05
"""Between two tries, at the end of the process, to delete a file that is being uploaded."""
SWEEP_SECONDS = 3600.0
MAX_NAMES = 100

log = structlog.get_logger("recording")


class Source(Protocol):
    """Recorder of a call's audio: :class:`gateway.sip.call_audio.Recorder`."""

    def take(self) -> bytes:
        """Return the G.711 recorded since the last take, left and right byte by byte."""


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of the files of a process."""

    folder: Path | None = None
    recipients: tuple[str, ...] = ()
    """Public keys that they are encrypted for, age's X25519 (``age1...``) or SSH; none: plain."""
    upload: bool = False
    """Whether files are to be uploaded."""
    retention_days: float = 0.0
    """Days after which the thread deletes them; 0 if they stay, or if there is a database, whose
    sweep knows of legal holds."""


# ---- one recording


class _WriteQueue:
    """Bytes for a file, in order, that wait until the disk takes them."""

    def __init__(self) -> None:
        self.waiting = bytearray()
        self._written = 0

    def write(self, data: bytes, /) -> int:
        """Append bytes to what waits, however much; return their number."""
        self.waiting += data
        return len(data)

    def flush(self, file: int) -> None:
        """Write what waits to a file descriptor, behind what was written before. Raises OSError if
        the disk takes no more; the rest waits on."""
        while self.waiting:
            count = os.pwrite(file, self.waiting[:MAX_WAITING_BYTES], self._written)
            self._written += count
            del self.waiting[:count]


class Recording:
    """The file of one call, written by the thread.

    What cannot be written, for want of space or of the folder, waits; beyond ``MAX_WAITING_BYTES``
    it is lost, and silence stands in its place once the file can be written again.

    Args:
        source: recorder of the call's audio.
        recipients: keys that the file is encrypted for; none: it is plain.
        link: put a link to the file into ``pending``, so that it is uploaded.
    """

    def __init__(
        self,
        call: str,
        path: Path,
        source: Source,
        codec: Codec,
        format: str,
        recipients: tuple[Any, ...],
        *,
        link: bool,
    ) -> None:
        self.call, self.path = call, path
        self.over = self.discarded = False
        """Set by the event loop: the call's audio has ended; the file is to be deleted."""
        self.deleted = False
        """Whether the closed recording has left no file: it was discarded when it was closed, or
        its file could never be created, or was not yet."""
        self.lost_bytes = 0
        """Bytes that were recorded and could not be written."""
        self.failing = False
        """Whether the last write failed."""
        self._source, self._codec, self._format = source, codec, format
        self._recipients, self._link = recipients, link
        self._queue = _WriteQueue()
        self._file: BinaryIO | None = None
        self._sealed: SealedFile | None = None
        self._container: WavFile | OpusFile | None = None
        self._ended = False
        self._missing = 0
        """Bytes of audio in whose place silence is still to be written."""
        self._keep_until = 0.0

    @property
    def failed(self) -> bool:
        """Whether audio is missing in the file, or the last write failed, so that it still
        waits."""
        return self.failing or self.lost_bytes > 0

    @property
    def encrypted(self) -> bool:
        """Whether the file is encrypted."""
        return bool(self._recipients)

    @property
    def pending(self) -> Path:
        """Return the link that marks the file as not uploaded yet."""
        return self.path.parent / PENDING / self.path.name

    def work(self, *, final: bool = False) -> bool:
        """Take what was recorded and write it; return True once the file is closed. On the thread.

        Closes it once the call's audio has ended and all is written; or it is discarded, ``final``
        is set, or it could not be written for ``KEEP_SECONDS`` since: what waits then is counted in
        :attr:`lost_bytes`. A failure is logged once.

        Args:
            final: close the file even if the disk does not take all of it.
        """
        over = self.over  # before the last take
        data = self._source.take()
        if not self.discarded:
            try:
                self._write(data, over)
            except Exception as error:
                if not self.failing:
                    log.error("recording.write_failed", call=self.call, error=str(error))
                self.failing = True
        if not over:
            return False
        now = time.monotonic()
        self._keep_until = self._keep_until or now + KEEP_SECONDS
        if self.failing and not (final or self.discarded or now >= self._keep_until):
            return False
        self.lost_bytes += len(self._queue.waiting)
        self._close()
        return True

    def _write(self, data: bytes, over: bool) -> None:
        """Write silence for lost bytes, then ``data``; with ``over`` end the container, once.

        If ``MAX_WAITING_BYTES`` wait for the disk, ``data`` is counted as lost instead. Creates the
        file where that has not succeeded yet. Raises OSError, and whatever encoder and encryption
        raise.
        """
        container = self._container or self._begin()
        if self._missing and not self._ended and len(self._queue.waiting) < MAX_WAITING_BYTES:
            count = min(self._missing, MAX_WAITING_BYTES)
            container.write(self._codec.silence * count)
            self._missing -= count
        if self._missing or len(self._queue.waiting) >= MAX_WAITING_BYTES:
            self._missing += len(data)
            self.lost_bytes += len(data)
        elif data:
            container.write(data)
        if over and not self._ended:
            container.close()
        if self._sealed is not None and not self._ended:
            self._sealed.seal(last=over)
        self._ended = over
        if self._file is None:
            self._file = self._open()
        self._queue.flush(self._file.fileno())
        if self._sealed is None and isinstance(container, WavFile):
            os.pwrite(self._file.fileno(), container.header(), 0)
        if self.failing:
            self.failing = False
            log.info("recording.write_resumed", call=self.call, lost_bytes=self.lost_bytes)

    def _begin(self) -> WavFile | OpusFile:
        """Make and return the container in the recording's format, encrypted if there are
        recipients. Raises RecordingError without the package for Opus."""
        out: Sink = self._queue
        if self._recipients:
            out = self._sealed = SealedFile(out, self._recipients)
        if self._format == "opus":
            self._container = OpusFile(out, self._codec)
        else:
            linear, stream = self._format == "wav_pcm", self._sealed is not None
            self._container = WavFile(out, self._codec, linear=linear, stream=stream)
        return self._container

    def _open(self) -> BinaryIO:
        """Create the file, mode 0600, and lock it until it is closed; link it into ``pending`` if
        it is to be uploaded. Raises OSError, also if a file has its name, and leaves no file
        then."""
        folder = self.path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open(self.path, "xb", buffering=0, opener=private)  # noqa: SIM115 (closed later)
        try:
            # Whoever uploads sees by the lock that it is still written to.
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._link:
                self.pending.parent.mkdir(mode=0o700, exist_ok=True)
                self.pending.symlink_to(Path("..", self.path.name))
        except OSError:
            file.close()
            self.path.unlink()
            raise
        return cast(BinaryIO, file)

    def _close(self) -> None:
        """Close the file, which also unlocks it for the upload; if it was discarded, delete it and
        its link. Sets :attr:`deleted` then, and if there is no file."""
        if self._file is None:
            self.deleted = True
            return
        if self.discarded:
            self.path.unlink(missing_ok=True)
            self.pending.unlink(missing_ok=True)
            self.deleted = True
        try:
            self._file.close()
        except OSError as error:
            log.error("recording.write_failed", call=self.call, error=str(error))
        self._file = None

    def erase(self) -> bool:
        """Delete the closed file; if it is to be uploaded, leave a link by which the storage
        deletes it, too. Nothing if :attr:`deleted` says that there is none. On the thread.

        Returns False while the file is being uploaded, or if the disk fails, which is logged; then
        it is to be called again.
        """
        if self.deleted:
            return True
        try:
            with ExitStack() as held:
                with suppress(FileNotFoundError):  # uploaded, and not kept here
                    if not held.enter_context(locked(self.path)):
                        return False
                if self._link and not self.pending.is_symlink():
                    self.pending.symlink_to(Path("..", self.path.name))
                self.path.unlink(missing_ok=True)
        except OSError as error:
            log.error("recording.write_failed", call=self.call, error=str(error))
            return False
        return True


# ---- all of them


class Recordings:
    """Writes the recordings of a process, in a thread of its own.

    Args:
        uploads: called when files are complete or deleted. On the thread.
    """

    def __init__(self, options: Options, uploads: Callable[[], None] = lambda: None) -> None:
        self.options = options
        self.lost_bytes = 0
        """Bytes that could not be written, of recordings that are over."""
        self._wake_uploads = uploads
        self._recipients: tuple[Any, ...] = ()
        self._changed = threading.Condition()
        self._open: dict[Recording, None] = {}
        self._erased: list[Recording] = []
        """Complete files that are still to be deleted."""
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def open(self) -> int:
        """Number of files that are being written."""
        return len(self._open)

    def prepare(self) -> None:
        """Parse the recipients, and make the folder, if one is set. Raises OSError, also for a
        folder that cannot be written to, or RecordingError."""
        folder = self.options.folder
        self._recipients = recipients_of(self.options.recipients)
        if folder is not None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                said = f"recording.folder: {folder} cannot be made: {error.strerror}"
                raise OSError(said) from error
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"recording.folder: {folder} cannot be written to")

    def begin(
        self,
        call: str,
        stem: str,
        source: Source,
        codec: Codec,
        format: str,
        *,
        taken: Container[str] = (),
    ) -> Recording:
        """Begin a file with what ``source`` records from now on; the thread creates it.

        Raises RecordingError without a folder, before :meth:`start` and after :meth:`stop`, and if
        ``MAX_NAMES`` files are named ``stem``.

        Args:
            call: id of the call, for the log.
            stem: beginning of the file's name.
            codec: G.711 codec of the source.
            format: ``wav`` (G.711), ``wav_pcm`` (16 bit) or ``opus``.
            taken: names of the call's earlier recordings, which may not be created yet, or be
                uploaded and removed.
        """
        folder = self.options.folder
        if folder is None:
            raise RecordingError("no recording.folder is set")
        if self._closed or self._thread is None:
            raise RecordingError("the gateway stops")
        ending = f"{'ogg' if format == 'opus' else 'wav'}{'.sealed' if self._recipients else ''}"
        path = _free_name(folder, stem, ending, taken)
        made = Recording(
            call, path, source, codec, format, self._recipients, link=self.options.upload
        )
        with self._changed:
            self._open[made] = None
        return made

    def end(self, recording: Recording, *, discard: bool = False) -> None:
        """Have a recording completed and closed, or with ``discard`` deleted; returns at once, and
        the thread does it as soon as it can."""
        recording.discarded = discard
        recording.over = True
        with self._changed:
            self._changed.notify()

    def erase(self, recording: Recording) -> None:
        """Have a recording that has ended deleted, here and in the storage; returns at once. One
        that is still being written is deleted when it is closed."""
        recording.discarded = True
        with self._changed:
            if recording not in self._open:
                self._erased.append(recording)
            self._changed.notify()

    def start(self) -> None:
        """Start the thread; nothing if no folder is set. Raises OSError for an unusable folder or
        key."""
        if self.options.folder is None:
            return
        try:
            self.prepare()
        except RecordingError as error:
            raise OSError(f"recording.recipients: {error}") from None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="recordings", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Complete all files, delete those that are to be deleted, and end the thread; wait
        ``STOP_SECONDS`` at most, and log how many files are left (``recording.not_completed``)."""
        import asyncio

        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._closed = True
            for one in self._open:
                one.over = True
            self._changed.notify()
        await asyncio.to_thread(thread.join, STOP_SECONDS)
        if self._open or self._erased:
            log.error("recording.not_completed", files=len(self._open) + len(self._erased))

    def as_json(self) -> dict[str, int]:
        """Return for ``gateway status`` the number of files that are written (``open``), of those
        that the disk does not take now, and the lost bytes of all so far."""
        with self._changed:
            lost = self.lost_bytes + sum(one.lost_bytes for one in self._open)
            failing = sum(one.failing for one in self._open)
        return {"open": self.open, "failing": failing, "lost_bytes": lost}

    def _run(self) -> None:
        """Write all recordings every ``WRITE_SECONDS``, ended ones at once; delete what is to be
        deleted; sweep every ``SWEEP_SECONDS`` if there is a retention; until stopped and all of
        it is done. Wakes the uploads."""
        due = sweep_at = time.monotonic()
        while True:
            with self._changed:
                left = due - time.monotonic()
                ended = any(one.over and not one.failing for one in self._open)
                if left > 0 and not ended and not self._closed:
                    self._changed.wait(left)
                elif self._closed and not self._open:  # only deletions that wait for an upload
                    self._changed.wait(ERASE_SECONDS)
                closed, there, erased = self._closed, list(self._open), self._erased
                self._erased = []
            now = time.monotonic()
            all_due = now >= due or closed
            if all_due:
                due = now + WRITE_SECONDS
            done = [one for one in there if (all_due or one.over) and _worked(one, final=closed)]
            kept = [one for one in erased if not one.erase()]
            with self._changed:
                self._erased += kept
                for one in done:
                    self.lost_bytes += one.lost_bytes
                    del self._open[one]
                    if one.discarded and not one.deleted:  # by an erase() while it was closed
                        self._erased.append(one)
                over = closed and not self._open and not self._erased
            if done or len(kept) < len(erased):
                self._wake_uploads()
            if self.options.retention_days and now >= sweep_at:
                sweep_at = now + SWEEP_SECONDS
                self._sweep()
            if over:
                return

    def _sweep(self) -> None:
        """Delete recordings older than the retention allows; a failure is logged."""
        from gateway.records.retention import sweep_files

        assert self.options.folder is not None
        before = datetime.now(UTC) - timedelta(days=self.options.retention_days)
        try:
            sweep_files(self.options.folder, before)
        except Exception as error:
            log.error("recording.sweep_failed", error=str(error))


def _worked(recording: Recording, *, final: bool) -> bool:
    """Return what :meth:`Recording.work` does; one that raises is logged once, costs no other, and
    is over with its call."""
    try:
        return recording.work(final=final)
    except Exception:
        if not recording.failing:
            log.exception("recording.write_failed", call=recording.call)
        recording.failing = True
        return recording.over


def _free_name(folder: Path, stem: str, ending: str, taken: Container[str]) -> Path:
    """Return a path that no file has, and whose name is not ``taken``: ``stem.ending``, or
    ``stem-2.ending`` and so on.

    Raises RecordingError after ``MAX_NAMES``.
    """
    for number in range(1, MAX_NAMES + 1):
        path = folder / (f"{stem}.{ending}" if number == 1 else f"{stem}-{number}.{ending}")
        if path.name not in taken and not path.exists():
            return path
    raise RecordingError(f"{MAX_NAMES} recordings are named {stem}")


def seconds_of(frames: int) -> float:
    """Return the duration of ``frames`` frames of ``FRAME_MS``, in seconds."""
    return round(frames * FRAME_MS / 1000, 2)

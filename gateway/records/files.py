# SPDX-License-Identifier: GPL-2.0-or-later
"""Record files, one JSON file for each call, and the thread that writes to the disk.

The same thread writes event logs and the spool. The event loop and the SIP thread only put items
into bounded channels. What finds its channel full is dropped and counted; a disk that hangs holds
up this thread and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from gateway.call.call_record import CallRecord
from gateway.text import jsonable, unicode_in

GATHER_SECONDS = 0.1
"""From the first item to the write, so that one write takes many."""
RETRY_SECONDS = 1.0
"""Until items that could not be written are tried again."""
STOP_SECONDS = 5.0

log = structlog.get_logger("records")

T = TypeVar("T")


class Channel(Generic[T]):
    """Bounded queue of items of one kind for the writer's thread.

    Args:
        name: for log and status.
        write: called on the thread with a batch; returns the items to be tried again. If it raises,
            it is called with each item by itself; one that it raises for again is lost.
        max_items: limit of items that wait.
        max_bytes: limit of their bytes, by the sizes given to :meth:`put`; then all of them must
            come from one thread.
    """

    def __init__(
        self,
        owner: BackgroundWriter,
        name: str,
        write: Callable[[list[T]], Sequence[T]],
        max_items: int,
        max_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.dropped = 0
        """Items that were refused since the queue was full, or lost."""
        self._owner = owner
        self._write = write
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[T, int]] = deque()
        self._bytes_put = self._bytes_taken = 0
        self._in_hand = 0

    def __len__(self) -> int:
        """Return the number of items that are not written yet, with those that the thread is
        writing."""
        return len(self._waiting) + self._in_hand

    def put(self, item: T, size: int = 0) -> bool:
        """Queue an item of ``size`` bytes; return False if it is dropped, since the queue is full
        or the writer stopped. From any thread; never waits."""
        owner = self._owner
        full = len(self._waiting) >= self._max_items or (
            self._max_bytes is not None
            and self._bytes_put - self._bytes_taken + size > self._max_bytes
        )
        if full or owner.closed:
            self.dropped += 1
            return False
        self._bytes_put += size
        # Before the look at ``pending``: the thread clears that first, and then takes all there is.
        self._waiting.append((item, size))
        if not owner.pending:
            with owner.changed:
                owner.pending = True
                owner.changed.notify()
        return True

    def work(self) -> bool:
        """Write all items that wait as one batch; return True if some are to be tried again, which
        then come first. On the thread.

        An item that ``write`` raises for is lost, counted and logged.
        """
        waiting = self._waiting
        self._in_hand = len(waiting)
        batch = [waiting.popleft() for _ in range(self._in_hand)]
        if not batch:
            return False
        self._bytes_taken += sum(size for _item, size in batch)
        left = self._written([item for item, _size in batch])
        self._in_hand = 0
        if left:
            sizes = {id(item): size for item, size in batch}
            for item in reversed(left):
                size = sizes.get(id(item), 0)
                waiting.appendleft((item, size))
                self._bytes_taken -= size
        return bool(left)

    def _written(self, items: list[T]) -> Sequence[T]:
        """Write items, each by itself if ``write`` raises for all of them; return those to be tried
        again."""
        try:
            return self._write(items)
        except Exception:
            if len(items) == 1:
                self.dropped += 1
                log.exception("records.writer_failed", what=self.name, lost=1)
                return ()
        left: list[T] = []
        for item in items:
            left += [item] if left else self._written([item])
        return left


class BackgroundWriter:
    """Thread that writes the items of its channels, which are made before :meth:`start`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.pending = False
        """Whether items were put since the thread last looked. Changes under ``changed``."""
        self.closed = False
        self.stuck = False
        """Whether the thread did not end in time, so that its files may still be in use."""
        self._channels: list[Channel[Any]] = []
        self._ticks: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None

    def channel(
        self,
        name: str,
        write: Callable[[list[T]], Sequence[T]],
        max_items: int,
        max_bytes: int | None = None,
    ) -> Channel[T]:
        """Return a new :class:`Channel` of this writer; before :meth:`start`. Channels are written
        in the order in which they were made."""
        made = Channel(self, name, write, max_items, max_bytes)
        self._channels.append(made)
        return made

    def every_second(self, work: Callable[[], None]) -> None:
        """Call ``work`` on the thread about once a second from now on."""
        self._ticks.append(work)

    @property
    def queues(self) -> dict[str, tuple[int, int]]:
        """Number of items that wait, and of those dropped, by channel."""
        return {one.name: (len(one), one.dropped) for one in self._channels}

    def start(self) -> None:
        """Start the thread."""
        self.closed = False
        # A daemon: a disk that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Take no more items, write those that wait once more, and end the thread, within
        ``STOP_SECONDS``; count and log the rest as dropped, and set :attr:`stuck` if the thread
        goes on."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self.changed:
            self.closed = True
            self.changed.notify()
        await asyncio.to_thread(thread.join, STOP_SECONDS)
        self.stuck = thread.is_alive()
        for channel in self._channels:
            if len(channel):
                log.error("records.write_failed", what=channel.name, lost=len(channel))
                channel.dropped += len(channel)

    def _run(self) -> None:
        """Write the items of all channels until stopped: ``GATHER_SECONDS`` after the first, or
        ``RETRY_SECONDS`` if some are to be tried again. Ticks about once a second."""
        retry, due = False, 0.0
        while True:
            with self.changed:
                if not self.pending and not self.closed:
                    self.changed.wait(RETRY_SECONDS)
                closed, woken = self.closed, self.pending
            if woken and not closed:
                with self.changed:
                    self.changed.wait(RETRY_SECONDS if retry else GATHER_SECONDS)
            with self.changed:
                self.pending = False
            retry = False
            for channel in self._channels:
                retry = channel.work() or retry
            if time.monotonic() >= due:
                due = time.monotonic() + 1.0
                self._tick()
            if closed:
                return
            if retry:
                with self.changed:
                    self.pending = True

    def _tick(self) -> None:
        """Do the work of :meth:`every_second`; what it raises is logged."""
        for tick in self._ticks:
            try:
                tick()
            except Exception:
                log.exception("records.writer_failed", what="tick")


QUEUE_RECORDS = 1000
"""Records waiting for the disk. At 30 calls a second this is half a minute of a disk that hangs;
what comes then is dropped, counted and said in the log."""

KEEP_SECONDS = 60.0
"""How long records wait for a disk that takes none; then each is tried once more, and put into the
log whole where that fails too."""

MAX_NAMES = 100
"""Names tried for a record, where files of the same name are there already."""


class RecordFiles:
    """Writes records as files ``<start>_<call id>.json``; with a folder of None it writes nothing.

    Files have mode 0600, and none is ever overwritten.
    """

    def __init__(self, folder: Path | None, writer: BackgroundWriter) -> None:
        self._folder = folder
        self._writer = writer
        self._channel = writer.channel("record files", self._write_all, QUEUE_RECORDS)
        self._failing_since: float | None = None
        self.dropped = 0
        """Records not written."""

    def prepare(self) -> None:
        """Make the folder, if there is one. Raises OSError, with its name, if it cannot be made or
        written to."""
        if self._folder is not None:
            _prepare(self._folder)

    def write(self, record: CallRecord) -> None:
        """Queue a record for the thread; if the queue is full or the writer stopped, put it into
        the log whole."""
        if self._folder is not None and not self._channel.put(record):
            self._drop(record, "the disk is too slow, or the process ends")

    def _write_all(self, records: list[CallRecord]) -> Sequence[CallRecord]:
        """Write records in their order; return the rest, to be tried again, from the first that the
        disk does not take. On the writer's thread.

        One that cannot be written for another reason, or for too long, goes into the log.
        """
        assert self._folder is not None
        for index, record in enumerate(records):
            try:
                _write(self._folder, record)
            except Exception as error:
                if self._may_retry(error):
                    return records[index:]
                # One record that cannot be written must not cost those behind it.
                self._drop(record, str(error))
            else:
                if self._failing_since is not None:
                    self._failing_since = None
                    log.info("records.written_again")
        return ()

    def _may_retry(self, error: Exception) -> bool:
        """Return whether to try a record again: for ``KEEP_SECONDS`` since the first error of the
        disk, and not at the end of the process. Logs the first error."""
        if not isinstance(error, OSError):
            return False
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            log.warning("records.waiting", error=str(error), seconds=KEEP_SECONDS)
        return not self._writer.closed and now - self._failing_since <= KEEP_SECONDS

    def _drop(self, record: CallRecord, why: str) -> None:
        """Count a record that is not written, and put it into the log."""
        self.dropped += 1
        try:
            whole = _text_of(record)
        except Exception:
            whole = ""
        log.error(
            "records.dropped", call=record.call_id, error=why, dropped=self.dropped, record=whole
        )


def file_stem(started_at: str, call_id: str) -> str:
    """Return how the names of a call's files begin: the time of its INVITE (ISO 8601) as digits
    with a T, and its id, of 80 characters at most, with _ for what is not fit for a file's name."""
    start = re.sub(r"[^0-9T]", "", started_at.partition("+")[0])
    name = re.sub(r"[^A-Za-z0-9._-]", "_", call_id)[:80] or "unknown"
    return f"{start}_{name}"


def private(path: str, flags: int) -> int:
    """Open a file with mode 0600, as an ``opener`` for :func:`open`."""
    return os.open(path, flags, 0o600)


def append_to(path: Path, text: str) -> None:
    """Append a text to a file, made with mode 0600: all of it, or nothing. Raises OSError."""
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    with open(path, "ab", buffering=0, opener=private) as file:
        begin = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(begin)  # what comes once there is room begins a line of its own
            raise


def _prepare(folder: Path) -> None:
    """Make the folder. Raises OSError, with its name, if it cannot be made or written to."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"records.folder: {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"records.folder: {folder} cannot be written to")


def _text_of(record: CallRecord, indent: int | None = None) -> str:
    """Return a record as JSON."""
    return json.dumps(unicode_in(jsonable(record.as_json())), indent=indent)


def _write(folder: Path, record: CallRecord) -> None:
    """Write a record's file, which appears whole or not at all; make the folder again if it is
    gone. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = file_stem(record.started_at, record.call_id)
    text = _text_of(record, indent=1) + "\n"
    # Linked into place, so that whoever watches the folder reads whole files only.
    partial = folder / f"{stem}.{os.getpid()}.part"
    try:
        with open(partial, "w", encoding="utf-8", opener=private) as file:
            file.write(text)
        _link(partial, folder, stem)
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: Path, folder: Path, stem: str) -> None:
    """Give a file the name ``stem.json``, or ``stem-2.json`` and so on where that is taken. Raises
    OSError, also after ``MAX_NAMES``."""
    for number in range(1, MAX_NAMES + 1):
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            os.link(partial, path)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise
            # A file system without hard links.
            if path.exists():
                continue
            partial.replace(path)
        return
    raise FileExistsError(f"{folder}: {MAX_NAMES} records are named {stem}")


def create_database(path: Path) -> None:
    """Create an empty file for SQLite, mode 0600, and its folder, where there is none.

    A database that exists is not opened: SQLite locks by fcntl, and when a process closes any
    descriptor of a file, the locks of all its connections to it are gone. Two writers then damage
    it (sqlite.org/howtocorrupt.html, 2.2). So the file gets its name only once it is closed.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        return
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.close(private(os.fspath(path), os.O_RDWR | os.O_CREAT))
    finally:
        Path(made).unlink()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes one JSON file for each call, off the event loop, and never holds a call up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
from functools import partial
from pathlib import Path

import structlog

from gateway.call.call_record import CallRecord
from gateway.tasks import background
from gateway.text import unicode_in

QUEUE_RECORDS = 1000
"""Records waiting for the disk. At 30 calls a second this is half a minute of a disk that hangs;
what comes then is dropped, counted and said in the log."""

STOP_SECONDS = 5.0

RETRY_SECONDS = 60.0
"""How long records wait for a disk that takes none; then each is tried once more, and put into the
log whole where that fails too."""

RETRY_AFTER_SECONDS = 1.0
MAX_NAMES = 100
"""Names tried for a record, where files of the same name are there already."""

log = structlog.get_logger("records")


class RecordFiles:
    """A folder of records, ``<start>_<id of the call>.json``; a None folder writes nothing.

    Files are for the gateway's user alone (mode 0600), and none is ever overwritten.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._queue: asyncio.Queue[CallRecord | None] = asyncio.Queue(QUEUE_RECORDS)
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        """Records not written."""
        self._unwritten = 0
        self._failing_since: float | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Make the folder and begin. Raises OSError, naming it, when it cannot be written to."""
        if self._folder is None:
            return
        await asyncio.to_thread(_prepare, self._folder)
        self._task = background(partial(self._run, self._folder), "records")

    def write(self, record: CallRecord) -> None:
        """Have a record written; returns at once."""
        if self._folder is None:
            return
        if self._task is None:
            self._drop(record, "the writer has stopped")
            return
        try:
            self._queue.put_nowait(record)
        except asyncio.QueueFull:
            self._drop(record, "the disk is too slow")
        else:
            self._unwritten += 1

    async def stop(self) -> None:
        """Write what waits, at most ``STOP_SECONDS``."""
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping.set()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._queue.put(None)
                await task
        except TimeoutError:
            task.cancel()
            self.dropped += self._unwritten
            log.error("records.write_failed", lost=self._unwritten)

    async def _run(self, folder: Path) -> None:
        while (record := await self._queue.get()) is not None:
            while (error := await self._attempt(folder, record)) is not None:
                if not await self._may_retry(error):
                    # One record that cannot be written must not cost those behind it.
                    self._drop(record, str(error))
                    break
            self._unwritten -= 1

    async def _attempt(self, folder: Path, record: CallRecord) -> Exception | None:
        try:
            await asyncio.to_thread(_write, folder, record)
        except Exception as error:
            return error
        if self._failing_since is not None:
            self._failing_since = None
            log.info("records.written_again")
        return None

    async def _may_retry(self, error: Exception) -> bool:
        """Wait for the disk, if it may still come back."""
        if not isinstance(error, OSError):
            return False
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
            log.warning("records.waiting", error=str(error), seconds=RETRY_SECONDS)
        if self._stopping.is_set() or now - self._failing_since > RETRY_SECONDS:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_AFTER_SECONDS):
                await self._stopping.wait()
        return True

    def _drop(self, record: CallRecord, why: str) -> None:
        self.dropped += 1
        try:
            whole = _text_of(record)
        except (TypeError, ValueError):
            whole = ""
        log.error(
            "records.dropped", call=record.call_id, error=why, dropped=self.dropped, record=whole
        )


def file_stem(started_at: str, call_id: str) -> str:
    """Return the beginning of a call's file names: ISO time of its INVITE, and the call's id."""
    start = re.sub(r"[^0-9T]", "", started_at.partition("+")[0])
    name = re.sub(r"[^A-Za-z0-9._-]", "_", call_id)[:80] or "unknown"
    return f"{start}_{name}"


def private(path: str, flags: int) -> int:
    """An ``opener`` for files that hold what people said: for the gateway's user alone."""
    return os.open(path, flags, 0o600)


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"records.folder: {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"records.folder: {folder} cannot be written to")


def _text_of(record: CallRecord, indent: int | None = None) -> str:
    return json.dumps(unicode_in(record.as_json()), indent=indent)


def _write(folder: Path, record: CallRecord) -> None:
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
    """Give a file its name, or one with a number where that is taken. Raises OSError."""
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

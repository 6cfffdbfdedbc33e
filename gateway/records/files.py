"""Writes one JSON file for each call, off the event loop, and never holds a call up."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

import structlog

from gateway.call.record import CallRecord

QUEUE_RECORDS = 1000
"""Records waiting for the disk. At 30 calls a second this is half a minute of a disk that hangs;
what comes then is dropped, counted and said in the log."""

STOP_SECONDS = 5.0

log = structlog.get_logger("records")


class RecordFiles:
    """A folder of records, ``<start>_<call-id>.json``; a None folder writes nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._queue: asyncio.Queue[CallRecord | None] = asyncio.Queue(QUEUE_RECORDS)
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        """Records not written."""
        self._unwritten = 0

    async def start(self) -> None:
        """Make the folder and begin. Raises OSError, naming it, when it cannot be written to."""
        if self._folder is None:
            return
        await asyncio.to_thread(_prepare, self._folder)
        self._task = asyncio.create_task(self._run(self._folder), name="records")

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
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._queue.put(None)
                await task
        except TimeoutError:
            task.cancel()
            self.dropped += self._unwritten
            log.error("records.not_written", lost=self._unwritten)

    async def _run(self, folder: Path) -> None:
        while (record := await self._queue.get()) is not None:
            try:
                await asyncio.to_thread(_write, folder, record)
            except Exception as error:
                # One record that cannot be written must not cost those behind it.
                self._drop(record, str(error))
            self._unwritten -= 1

    def _drop(self, record: CallRecord, why: str) -> None:
        self.dropped += 1
        log.error("records.dropped", call=record.call_id, error=why, dropped=self.dropped)


def file_stem(started_at: str, call_id: str) -> str:
    """How the files of a call begin: ISO time of its INVITE, and its Call-ID as far as it can."""
    start = re.sub(r"[^0-9T]", "", started_at.partition("+")[0])
    name = re.sub(r"[^A-Za-z0-9._-]", "_", call_id)[:80] or "unknown"
    return f"{start}_{name}"


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"records.folder: {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"records.folder: {folder} cannot be written to")


def _write(folder: Path, record: CallRecord) -> None:
    path = folder / f"{file_stem(record.started_at, record.call_id)}.json"
    # Renamed into place, so that whoever watches the folder reads whole files only.
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(record.as_json(), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)

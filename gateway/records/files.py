# SPDX-License-Identifier: GPL-2.0-or-later
"""Record files: one JSON file for each call, written off the event loop."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from gateway.call.call_record import CallRecord
from gateway.records.background import BackgroundWriter
from gateway.text import unicode_in

QUEUE_RECORDS = 1000
"""Records waiting for the disk. At 30 calls a second this is half a minute of a disk that hangs;
what comes then is dropped, counted and said in the log."""

RETRY_SECONDS = 60.0
"""How long records wait for a disk that takes none; then each is tried once more, and put into the
log whole where that fails too."""

MAX_NAMES = 100
"""Names tried for a record, where files of the same name are there already."""

log = structlog.get_logger("records")


class RecordFiles:
    """A folder of records, ``<start>_<id of the call>.json``; a None folder writes nothing.

    Files are for the gateway's user alone (mode 0600), and none is ever overwritten.

    Args:
        writer: whose thread writes them.
    """

    def __init__(self, folder: Path | None, writer: BackgroundWriter) -> None:
        self._folder = folder
        self._writer = writer
        self._channel = writer.channel("record files", self._write_all, QUEUE_RECORDS)
        self._failing_since: float | None = None
        self.dropped = 0
        """Records not written."""

    def prepare(self) -> None:
        """Make the folder. Raises OSError, naming it, when it cannot be written to."""
        if self._folder is not None:
            _prepare(self._folder)

    def write(self, record: CallRecord) -> None:
        """Have a record written; returns at once."""
        if self._folder is not None and not self._channel.put(record):
            self._drop(record, "the disk is too slow, or the process ends")

    def _write_all(self, records: list[CallRecord]) -> Sequence[CallRecord]:
        """On the writer's thread: write them; returns those that wait for the disk."""
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
        """Whether the disk may still come back."""
        if not isinstance(error, OSError):
            return False
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            log.warning("records.waiting", error=str(error), seconds=RETRY_SECONDS)
        return not self._writer.closed and now - self._failing_since <= RETRY_SECONDS

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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Retention: deletes old calls, and all data of a number that is to be erased."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from gateway.records.database import Database
from gateway.records.files import file_stem, private
from gateway.records.recording_files import locked
from gateway.records.spool import Spool
from gateway.records.uploads import Storage, forget

BATCH = 500
QUIET_SECONDS = 60.0
"""A file that nothing was written to for so long is complete."""

_NAMED = re.compile(r"(\d{8}T\d{6})\d*_.+\.(?:json|jsonl|wav|ogg|wav\.sealed|ogg\.sealed)")
_KEY_NAME = "erasure.key"

log = structlog.get_logger("records")


def sweep(
    database: Database,
    folder: Path,
    now: datetime,
    *,
    rows_days: float,
    details_days: float,
) -> None:
    """Delete rows, and the details of those that stay, from before so many days; 0 keeps all.

    Details are the whole record with its transcript, the events, and the files.
    """
    if rows_days:
        before = now - timedelta(days=rows_days)
        while found := database.expired(before, BATCH):
            count = database.delete(found)
            log.info("records.expired", rows=count, before=before.isoformat())
    shorter = min((days for days in (rows_days, details_days) if days), default=0.0)
    if shorter:
        before = now - timedelta(days=shorter)
        while found := database.detailed(before, BATCH):
            database.strip(found)
        held = database.held()
        for path in _files_before(folder, before):
            if path.name.split("_", 1)[1].split(".")[0] not in held:
                path.unlink(missing_ok=True)


def sweep_recordings(folder: Path, before: datetime, held: Container[str] = ()) -> int:
    """Delete recordings from before then, but those of calls on hold; returns how many."""
    count = 0
    for path in _files_before(folder, before):
        if path.name.split("_", 1)[1].split(".")[0] not in held:
            path.unlink(missing_ok=True)
            count += 1
    return count


def sweep_black_boxes(folder: Path, most: int, held: Container[str] = ()) -> int:
    """Delete the oldest black boxes beyond so many; returns how many.

    Those of calls on hold and of calls in progress stay.
    """
    quiet = time.time() - QUIET_SECONDS
    named = [path for path in folder.glob("*.blackbox.jsonl") if _NAMED.fullmatch(path.name)]
    named = [path for path in named if path.stat().st_mtime < quiet]
    free = [one for one in sorted(named) if one.name.split("_", 1)[1].split(".")[0] not in held]
    surplus = free[: max(0, len(named) - most)]
    for path in surplus:
        path.unlink(missing_ok=True)
    return len(surplus)


def erase(
    number: str,
    database: Database,
    spool: Spool,
    folder: Path,
    recordings: Path | None = None,
    storage: Storage | None = None,
) -> dict[str, int]:
    """Take a number out of everything that is kept; returns how many were changed of each kind.

    Rows keep their times and cost, with the number replaced by a keyed hash; files, events and what
    waits in the spool are deleted. A second time nothing is left to do.
    """
    shared = database.erase_shared(number)
    found = database.of_number(number)
    ids = [row["id"] for row in found]
    counts = {"rows": shared, "files": 0, "waiting": 0}
    if recordings is not None:
        counts["recordings"] = 0
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        counts["waiting"] += spool.erase(batch)
        counts["rows"] += database.anonymize(batch, _pseudonym(folder, number))
    database.forget_deleted()
    for row in found:
        stem = file_stem(row["invited_at"].isoformat(timespec="milliseconds"), row["id"])
        for path in folder.glob(f"{stem}*"):
            path.unlink(missing_ok=True)
            counts["files"] += 1
        if recordings is not None:
            for path in recordings.glob(f"{stem}[.-]*"):
                _delete_unlocked(path)
                counts["recordings"] += 1
        if storage is not None:
            counts["recordings"] += forget(storage, stem)
    return counts


UPLOAD_SECONDS = 60.0
"""The longest wait (s) for the upload of a file that is to be deleted."""


def _delete_unlocked(path: Path) -> None:
    """Delete a file that nobody uploads: what arrives after its deletion would stay there."""
    until = time.monotonic() + UPLOAD_SECONDS
    while path.exists():
        with suppress(FileNotFoundError), locked(path) as mine:
            if mine or time.monotonic() >= until:
                path.unlink(missing_ok=True)
                return
        time.sleep(0.1)


def _pseudonym(folder: Path, number: str) -> str:
    """A text that stands for a number, the same each time; it cannot be turned back."""
    path = folder / _KEY_NAME
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = secrets.token_bytes(32)
        with open(path, "xb", opener=private) as file:
            file.write(key)
    return f"erased-{hmac.new(key, number.encode(), hashlib.sha256).hexdigest()[:16]}"


def _files_before(folder: Path, before: datetime) -> Iterator[Path]:
    paths: Sequence[Path] = list(folder.iterdir())
    for path in paths:
        named = _NAMED.fullmatch(path.name)
        if named is None:
            continue
        began = datetime.strptime(named[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        if began < before:
            yield path

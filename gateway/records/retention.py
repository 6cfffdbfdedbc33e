# SPDX-License-Identifier: GPL-2.0-or-later
"""Upload of recordings to S3-compatible storage, deletion of old calls, erasure of a number.

The folder of recordings is the spool of uploads: a link in its folder ``pending`` stands for each
file that is still to be uploaded, from the moment when the file is begun; a link without its file,
for one that the storage is to delete. So nothing is forgotten by a process that dies; what it left
is uploaded by the next one, or by another on the same folder.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Container, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from gateway.config.operations import UploadSettings
from gateway.records.database import Database
from gateway.records.files import file_stem, private
from gateway.records.recording_files import PENDING, locked
from gateway.records.shared import erase_number
from gateway.records.spool import Spool

LOOK_SECONDS = 30.0
"""Between two looks for files, where nobody tells of one."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""From a failure to the next try (s); each pause is twice as long."""
MAX_FAILURES = 10
"""Files that fail in one round before it ends: each may be uploaded whole for nothing."""
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
STOP_SECONDS = 5.0

log = structlog.get_logger("records")


@dataclass(frozen=True, slots=True)
class Storage:
    """S3-compatible storage for recordings (``[recording.upload]``)."""

    endpoint: str
    bucket: str
    prefix: str = ""
    region: str = ""
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    keep_local: bool = True

    @classmethod
    def of(cls, given: UploadSettings) -> Storage:
        """Return the storage that ``[recording.upload]`` names."""
        keys = (given.access_key.get_secret_value(), given.secret_key.get_secret_value())
        place = (given.endpoint, given.bucket, given.prefix, given.region)
        return cls(*place, *keys, keep_local=given.keep_local)

    def client(self) -> Any:
        """Return a new ``minio`` client of the storage. Raises ImportError without that package."""
        import urllib3
        from minio import Minio

        parts = urlsplit(self.endpoint)
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        return Minio(
            parts.netloc,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=parts.scheme == "https",
            region=self.region or None,
            # Tries again are ours: a client that sleeps on its own cannot be stopped.
            http_client=urllib3.PoolManager(timeout=timeout, retries=False),
        )


class Uploads:
    """Uploads complete recordings in a thread of its own, and tries again with growing pauses."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.uploaded = 0
        self.failures = 0
        """Number of rounds that failed."""
        self.failing = ""
        """S3 error code or exception name of the last round; empty if it succeeded."""
        self._folder, self._storage = folder, storage
        self._pending = folder / PENDING
        self._changed = threading.Condition()
        self._woken = self._closed = False
        self._pause = FIRST_PAUSE
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Look for complete files now. From any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def start(self) -> None:
        """Start the thread, which uploads at once what waits. Raises OSError without the package
        ``minio``."""
        try:
            self._storage.client()
        except ImportError:
            raise OSError("recording.upload needs the package minio (extra recording)") from None
        self._closed, self._woken = False, True
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its current file; wait for it ``STOP_SECONDS`` at most. What is left
        is uploaded by the next start."""
        import asyncio

        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(thread.join, STOP_SECONDS)

    def waiting(self) -> int:
        """Return the number of links in ``pending``: files to be uploaded, and those that the
        storage is to delete; reads the disk."""
        return len(self._links())

    def as_json(self) -> dict[str, object]:
        """Return the state for ``gateway status``."""
        return {"uploaded": self.uploaded, "waiting": self.waiting(), "failing": self.failing}

    def _run(self) -> None:
        """Upload complete files when woken, or every ``LOOK_SECONDS``, until stopped.

        After a failure, logged once, wait ``FIRST_PAUSE`` (s), doubled up to ``LONGEST_PAUSE``,
        also if woken.
        """
        while True:
            with self._changed:
                if not (self._woken and not self.failing) and not self._closed:
                    self._changed.wait(self._pause if self.failing else LOOK_SECONDS)
                if self._closed:
                    return
                self._woken = False
            try:
                self._upload_all(self._storage.client())
            except Exception as error:
                # The text of the library may have headers and keys in it.
                self.failures += 1
                reason = str(getattr(error, "code", "") or type(error).__name__)
                if not self.failing:
                    log.error("recording.upload_failed", error=reason, retry_s=self._pause)
                    self._pause = FIRST_PAUSE
                else:
                    self._pause = min(2 * self._pause, LONGEST_PAUSE)
                self.failing = reason
            else:
                if self.failing:
                    log.info("recording.upload_works")
                self.failing, self._pause = "", FIRST_PAUSE

    def _links(self) -> list[Path]:
        """Return the links in ``pending``, by name; none if there is no such folder."""
        return sorted(self._pending.glob("*")) if self._pending.is_dir() else []

    def _upload_all(self, client: Any) -> None:
        """Upload the file of each link, or delete the object of one without a file; then delete the
        link, and the file unless it is kept here.

        Skips files that are locked, as by their recording. Ends when stopped. One that fails keeps
        its link, and the first error is raised after the others; but at once if the storage cannot
        be reached, or after ``MAX_FAILURES``.
        """
        from urllib3.exceptions import HTTPError

        errors: list[Exception] = []
        for link in self._links():
            if self._closed or len(errors) >= MAX_FAILURES:
                break
            try:
                self._upload(client, link)
            except HTTPError:
                raise
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _upload(self, client: Any, link: Path) -> None:
        """Upload the file of a link, or delete the object of one without a file; then delete the
        link. Nothing while another holder has the file locked. Raises what client and disk do."""
        path, key = self._folder / link.name, self._storage.prefix + link.name
        if not path.exists():  # deleted since, perhaps after it was uploaded
            client.remove_object(self._storage.bucket, key)
            link.unlink(missing_ok=True)
            return
        with locked(path) as mine:
            if not mine or not link.is_symlink():
                return  # still written to, or in the hands of another process
            kind = _TYPES.get(path.suffix, "application/octet-stream")  # an encrypted one
            client.fput_object(self._storage.bucket, key, str(path), kind)
            link.unlink(missing_ok=True)
            if not self._storage.keep_local:
                path.unlink(missing_ok=True)
            self.uploaded += 1
            log.info("recording.uploaded", file=link.name)


_TYPES = {".wav": "audio/wav", ".ogg": "audio/ogg"}


def delete_uploaded(storage: Storage, stem: str) -> int:
    """Delete the uploaded recordings whose names begin with ``stem``; return their number."""
    client = storage.client()
    found = list(client.list_objects(storage.bucket, prefix=storage.prefix + stem))
    for one in found:
        client.remove_object(storage.bucket, one.object_name)
    return len(found)


BATCH = 500
QUIET_SECONDS = 60.0
"""A file that nothing was written to for so long is complete."""

_NAMED = re.compile(
    r"(?P<began>\d{8}T\d{6})\d*_(?P<id>[^.]+)(?:\..*)?\.(?:jsonl?|(?:wav|ogg)(?:\.sealed)?)"
)
"""Name of a call's file, as :func:`gateway.records.files.file_stem` begins it."""
_KEY_NAME = "erasure.key"


def sweep(
    database: Database,
    folder: Path,
    now: datetime,
    *,
    rows_days: float,
    details_days: float,
) -> None:
    """Delete rows of ended calls ``rows_days`` after their INVITE, and the details of those that
    stay after ``details_days``; 0 keeps them.

    Details are the whole record with its transcript, the events, the files in ``folder``, and what
    was refused and stays in its spool, of which there is a limit (:meth:`Spool.trim`); they go with
    the shorter of both. Calls on legal hold stay as they are.
    """
    if rows_days:
        before = now - timedelta(days=rows_days)
        while found := database.expired(before, BATCH):
            count = database.delete(found)
            log.info("records.expired", rows=count, before=before.isoformat())
    shorter = min((days for days in (rows_days, details_days) if days), default=0.0)
    before = now - timedelta(days=shorter)
    with closing(Spool(folder)) as spool:
        if count := spool.trim(before.timestamp() if shorter else 0.0, database.held()):
            log.warning("records.refused_dropped", count=count)
    if shorter:
        while found := database.expired(before, BATCH, detailed=True):
            database.strip(found)
        sweep_files(folder, before, database.held())


def sweep_files(folder: Path, before: datetime, held: Container[str] = ()) -> int:
    """Delete the files of calls whose INVITE, by their names, was before a time, but for the calls
    ``held``, by id (legal hold); return how many. Other files, and folders in ``folder``, stay.
    Raises OSError, after the other files."""
    expired = []
    for path in folder.iterdir():
        named = _NAMED.fullmatch(path.name)
        if named is None or _is_held(named, held):
            continue
        with suppress(ValueError):  # no time: none of ours
            began = datetime.strptime(named["began"], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
            if began < before:
                expired.append(path)
    each_tried(partial(path.unlink, missing_ok=True) for path in expired)
    return len(expired)


def each_tried(steps: Iterable[Callable[[], object]]) -> None:
    """Carry out all steps, and only then raise the first error of them."""
    errors: list[Exception] = []
    for step in steps:
        try:
            step()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _is_held(named: re.Match[str], held: Container[str]) -> bool:
    """Return whether a file is of a call on legal hold, as ``<call>-2`` for its second one is."""
    return named["id"] in held or named["id"].rpartition("-")[0] in held


def sweep_black_boxes(folder: Path, most: int, held: Container[str] = ()) -> int:
    """Delete the oldest black boxes until ``most`` are left; return how many were deleted.

    Those of the calls ``held``, by id (legal hold), are counted and stay; files written to within
    ``QUIET_SECONDS``, as of calls in progress, are not counted. Raises OSError, after the other
    files.
    """
    quiet = time.time() - QUIET_SECONDS
    named = [_NAMED.fullmatch(path.name) for path in sorted(folder.glob("*.blackbox.jsonl"))]
    complete = [one for one in named if one and (folder / one[0]).stat().st_mtime < quiet]
    free = [one[0] for one in complete if not _is_held(one, held)]
    surplus = free[: max(0, len(complete) - most)]
    each_tried(partial((folder / name).unlink, missing_ok=True) for name in surplus)
    return len(surplus)


def erase(
    number: str,
    database: Database,
    spool: Spool,
    folder: Path,
    recordings: Path | None = None,
    storage: Storage | None = None,
) -> dict[str, int]:
    """Erase a number, as caller's or called one, from the data of ended calls; return how many of
    each kind were changed.

    Callbacks and daily sums go first, then files, recordings here and in ``storage``, and per call
    the entries in the spool; rows keep their times and cost, with the number replaced by a keyed
    hash. Done twice, it changes nothing more; one that raised can be repeated. Calls on legal hold
    stay as they are.

    Args:
        folder: of the records; ``recordings`` is that of the recordings, None without any.
    """
    with database.exclusive() as connection:
        shared = erase_number(connection, number)
    found = database.of_number(number)
    ids = [row["id"] for row in found]
    counts = {"rows": shared, "files": 0, "waiting": 0}
    if recordings is not None:
        counts["recordings"] = 0
    # The rows last: what fails before is found by them when the erasure is repeated.
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
            counts["recordings"] += delete_uploaded(storage, stem)
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        counts["waiting"] += spool.erase(batch)
        counts["rows"] += database.anonymize(batch, _pseudonym(folder, number))
    database.forget_deleted()
    return counts


UPLOAD_SECONDS = 60.0
"""The longest wait (s) for the upload of a file that is to be deleted."""


def _delete_unlocked(path: Path) -> None:
    """Delete a file once no upload has it locked, or after ``UPLOAD_SECONDS``; blocks meanwhile.

    What is uploaded after its deletion would stay in the storage.
    """
    until = time.monotonic() + UPLOAD_SECONDS
    while path.exists():
        with suppress(FileNotFoundError), locked(path) as mine:
            if mine or time.monotonic() >= until:
                path.unlink(missing_ok=True)
                return
        time.sleep(0.1)


def _pseudonym(folder: Path, number: str) -> str:
    """Return a keyed hash of a number, the same each time; the key is made in ``folder`` at the
    first use."""
    path = folder / _KEY_NAME
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = secrets.token_bytes(32)
        with open(path, "xb", opener=private) as file:
            file.write(key)
    return f"erased-{hmac.new(key, number.encode(), hashlib.sha256).hexdigest()[:16]}"

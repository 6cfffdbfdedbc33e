# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls, events and deliveries on this machine's disk until the database has them, in two stages.

**Slots**, one for each call that has no closed row yet, in a memory-mapped file. Writing one copies
some hundred bytes into memory: it needs no system call and waits for no disk, so it is done before
the first provisional response. The kernel keeps the pages when the process is killed. Each process
has a file of its own and holds a lock on it; a file that nobody locks was left by a process that
died, and its slots are the calls that were cut.

**The spool**, one SQLite file (WAL) in the records' folder, shared by the processes that write
there. What was committed survives ``kill -9``. Entries are applied in their order and more than
once without harm: rows carry a revision, events an id.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import secrets
import sqlite3
import struct
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog

from gateway.records.files import create_database, private
from gateway.text import json_of, json_text, unicode_in, unicode_of

log = structlog.get_logger("records")

# ---- slots

MAGIC = b"calls-1\n"
HEADER_BYTES = 4096
SLOT_BYTES = 2048
SLOTS = 4096
"""For calls in progress, and ended ones whose rows wait for the disk; 8 MiB of file."""
MAX_TEXT = 200
"""Characters kept of one text in a slot: a URI may be longer than the slot."""

SLOTS_SUFFIX = ".slots"

_TIME = struct.Struct("<d")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class CutCall:
    """A call in progress whose process died."""

    call_id: str
    facts: Mapping[str, Any]
    """What its slot has: columns of its row."""
    alive_at: float
    """When its process is known to have run last, Unix time (s); 0.0 if not known."""


class CallSlots:
    """The slots of this process. :meth:`take` and :meth:`free` may be called from any thread.

    Args:
        folder: of the file.
        slots: number of calls; further ones have no slot, and are counted in :attr:`missed`.
    """

    def __init__(self, folder: Path, slots: int = SLOTS) -> None:
        self.missed = 0
        """Calls that had no slot."""
        self.path = folder / f"{secrets.token_hex(8)}{SLOTS_SUFFIX}"
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}
        self._without: set[str] = set()
        """Calls that have found no slot so far."""
        self._free = list(range(slots))
        self._map: mmap.mmap | None = None
        self._descriptor: int | None = None
        self._size = HEADER_BYTES + slots * SLOT_BYTES

    def open(self) -> None:
        """Create and lock the file; where it was removed, create it again with the slots of the
        old.

        Raises OSError, as for a full disk; then calls have no slot, or keep those of the removed
        file.
        """
        # Under another name until it is locked: an unlocked one is that of a dead process.
        made = self.path.with_suffix(".new")
        descriptor = private(os.fspath(made), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # With its blocks: a page of a sparse file that finds the disk full would be a SIGBUS.
            os.posix_fallocate(descriptor, 0, self._size)
            pages = mmap.mmap(descriptor, self._size)
            made.rename(self.path)
        except OSError:
            os.close(descriptor)
            made.unlink(missing_ok=True)
            raise
        with self._lock:
            old, self._map = self._map, pages
            old_descriptor, self._descriptor = self._descriptor, descriptor
            if old is not None:
                pages[:] = old[:]
                old.close()
            else:
                pages[: len(MAGIC)] = MAGIC
        if old_descriptor is not None:
            os.close(old_descriptor)

    @property
    def lost(self) -> bool:
        """Whether there is no file: it was never opened, or was removed. :meth:`open` creates it,
        with the slots of one that was removed."""
        return self._map is None or not self.path.exists()

    def take(self, call_id: str, facts: Mapping[str, Any]) -> None:
        """Write a call's facts into a free slot; nothing if the call has one.

        Without a free slot, or a file, the call is counted in :attr:`missed`, once. Never raises
        and never waits for a disk.
        """
        text = _slot_text(call_id, facts)
        with self._lock:
            pages = self._map
            if call_id in self._used:
                return
            if pages is None or not self._free:
                self.missed += call_id not in self._without
                self._without.add(call_id)
                return
            self._without.discard(call_id)
            index = self._used[call_id] = self._free.pop()
            start = HEADER_BYTES + index * SLOT_BYTES
            pages[start + _LENGTH.size : start + _LENGTH.size + len(text)] = text
            # The length last: a slot that is half written is none.
            pages[start : start + _LENGTH.size] = _LENGTH.pack(len(text))

    def lacks(self, call_id: str) -> bool:
        """Return whether a call has found no slot, but may find one now."""
        return call_id in self._without and self._map is not None

    def free(self, call_id: str) -> None:
        """Empty a call's slot, for the next call: its closed row is on the disk. Nothing if it has
        none."""
        with self._lock:
            self._without.discard(call_id)
            index = self._used.pop(call_id, None)
            if index is None or self._map is None:
                return
            start = HEADER_BYTES + index * SLOT_BYTES
            self._map[start : start + _LENGTH.size] = _LENGTH.pack(0)
            self._free.append(index)

    def alive(self, now: float) -> None:
        """Write into the file that the process still ran at ``now``, Unix time (s): a call that is
        cut is taken to have ended then."""
        with self._lock:
            if self._map is not None:
                self._map[len(MAGIC) : len(MAGIC) + _TIME.size] = _TIME.pack(now)

    def close(self) -> None:
        """Close the file and its lock, and delete it if all slots are empty; else the next start
        finds its calls cut."""
        with self._lock:
            pages, self._map = self._map, None
            descriptor, self._descriptor = self._descriptor, None
            if pages is not None:
                pages.close()
            if not self._used:
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def _slot_text(call_id: str, facts: Mapping[str, Any]) -> bytes:
    """Return a call's id and facts as JSON that fits into a slot: texts cut to ``MAX_TEXT``, the id
    alone if that is still too long."""
    kept = {
        name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in facts.items()
    }
    text = json_text(unicode_in({"call_id": call_id, **kept})).encode()
    if len(text) > SLOT_BYTES - _LENGTH.size:
        text = json.dumps({"call_id": call_id}).encode()
    return text


@contextlib.contextmanager
def cut_calls(path: Path) -> Iterator[list[CutCall]]:
    """Yield the calls in the slots of a process that has died, locked, and delete their file after
    the block.

    The file stays where the block raises. Yields none, and deletes nothing, for a file that a
    running process holds or that cannot be read.
    """
    with contextlib.ExitStack() as held:
        calls: list[CutCall] | None = None
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            calls = list(_calls_in(path.read_bytes()))
        yield calls or []
        if calls is not None:
            path.unlink(missing_ok=True)


def _calls_in(content: bytes) -> Iterator[CutCall]:
    """Yield the calls in a file of slots, none if it is not one; a slot that is not JSON is logged
    and left out."""
    if not content.startswith(MAGIC):
        return
    (alive_at,) = _TIME.unpack_from(content, len(MAGIC))
    for start in range(HEADER_BYTES, len(content) - SLOT_BYTES + 1, SLOT_BYTES):
        (length,) = _LENGTH.unpack_from(content, start)
        if not 0 < length <= SLOT_BYTES - _LENGTH.size:
            continue
        begin = start + _LENGTH.size
        try:
            facts = json.loads(content[begin : begin + length])
            call_id = str(facts.pop("call_id"))
        except (ValueError, KeyError, AttributeError):
            log.error("records.slot_unreadable", file="slots", at=start)
            continue
        yield CutCall(call_id, facts, alive_at)


# ---- spool

NAME = "spool.sqlite3"
BUSY_MS = 5000
MAX_BYTES = 4 * 1024**3
"""Limit of the file while the database is away; beyond it, writing fails as on a full disk."""

MAX_REFUSED = 10_000
"""Parked entries, and deliveries given up, that are kept, of each: else they would fill the file in
time, and nothing else could be written."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    call_id TEXT NOT NULL,
    body TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS parked (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    call_id TEXT NOT NULL,
    body TEXT NOT NULL,
    error TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS deliveries (
    id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    call_id TEXT NOT NULL,
    body TEXT NOT NULL,
    created REAL NOT NULL,
    due REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    dead INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (id, endpoint)
);
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (dead, due);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row or an event that the database does not have yet.

    ``kind`` is ``row`` (the columns of a call), ``cut`` (those of one whose process died) or
    ``event``.
    """

    kind: str
    call_id: str
    body: dict[str, Any]
    at: float
    """Unix time (s)."""
    seq: int = 0
    """Position in the spool; 0 before it is written."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event for a webhook's endpoint. ``due`` (the next try) and ``created``: Unix time (s)."""

    id: str
    endpoint: str
    call_id: str
    body: str
    created: float
    due: float
    tries: int = 0
    error: str = ""
    dead: bool = False


class Spool:
    """Connection to the spool of a folder, for one thread at a time.

    Methods raise sqlite3.Error or OSError if the disk fails, or another process writes for
    ``BUSY_MS``; after :meth:`close` the next call opens the file again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of the file that the connection has open."""
        self._rescued: dict[str, list[tuple[Any, ...]]] = {}
        """Rows of a file that was removed, by INSERT, until the new one has them."""

    def add(self, entries: Iterable[Entry], deliveries: Iterable[Delivery] = ()) -> None:
        """Commit entries, and the deliveries that tell of them, in one transaction; a delivery that
        is there already, by id and endpoint, stays as it is."""
        at_least = time.time_ns() // 1000
        with self._open() as connection:
            connection.executemany(
                _INSERT_ENTRY,
                [(at_least, one.kind, one.call_id, json_text(one.body), one.at) for one in entries],
            )
            connection.executemany(
                "INSERT OR IGNORE INTO deliveries (id, endpoint, call_id, body, created, due)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (one.id, one.endpoint, one.call_id, one.body, one.created, one.due)
                    for one in deliveries
                ],
            )

    def entries(self, count: int) -> list[Entry]:
        """Return the ``count`` oldest entries, in their order."""
        rows = self._open().execute(
            "SELECT kind, call_id, body, at, seq FROM entries ORDER BY seq LIMIT ?", (count,)
        )
        return [Entry(kind, call, _body(text), at, seq) for kind, call, text, at, seq in rows]

    def done(self, entries: Sequence[Entry]) -> None:
        """Delete entries, by their position in the spool: the database has them."""
        with self._open() as connection:
            connection.executemany(
                "DELETE FROM entries WHERE seq = ?", [(one.seq,) for one in entries]
            )

    def park(self, entry: Entry, error: str) -> None:
        """Move an entry that the database refuses to the parked ones, with its error."""
        with self._open() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO parked (seq, kind, call_id, body, error, at)"
                " SELECT seq, kind, call_id, body, ?, at FROM entries WHERE seq = ?",
                (unicode_of(error), entry.seq),
            )
            connection.execute("DELETE FROM entries WHERE seq = ?", (entry.seq,))

    def parked_entries(self) -> list[tuple[Entry, str]]:
        """Return the parked entries, oldest first, each with the error for which it was refused."""
        rows = self._open().execute(
            "SELECT kind, call_id, body, at, seq, error FROM parked ORDER BY seq"
        )
        return [
            (Entry(kind, call, _body(text), at, seq), error)
            for kind, call, text, at, seq, error in rows
        ]

    def unpark(self, call_id: str) -> int:
        """Move the parked entries of a call (``*``: all) behind all others, to be written again;
        return their number. What is no JSON stays parked."""
        wanted = [
            one for one, _ in self.parked_entries() if one.body and call_id in (one.call_id, "*")
        ]
        at_least = time.time_ns() // 1000
        with self._open() as connection:
            for one in wanted:
                # Without its details it was written, by this revision: only a later one counts.
                if isinstance(revision := one.body.get("revision"), int):
                    one.body["revision"] = revision + 1
                connection.execute(
                    _INSERT_ENTRY, (at_least, one.kind, one.call_id, json_text(one.body), one.at)
                )
                connection.execute("DELETE FROM parked WHERE seq = ?", (one.seq,))
        return len(wanted)

    def compact(self) -> None:
        """Delete entries of the kind ``row`` that a later one of the same call replaces; events and
        cut calls stay."""
        with self._open() as connection:
            connection.execute(
                "DELETE FROM entries WHERE kind = 'row' AND seq NOT IN"
                " (SELECT max(seq) FROM entries WHERE kind = 'row' GROUP BY call_id)"
            )

    def closed_among(self, call_ids: Sequence[str], revision: int) -> set[str]:
        """Return the calls, of these, whose row of the given revision waits in the spool, not those
        whose row the database has already."""
        if not call_ids:  # as for each file that a live process holds, at every turn
            return set()
        rows = self._open().execute(
            "SELECT call_id FROM entries WHERE kind = 'row'"
            " AND CASE WHEN json_valid(body) THEN json_extract(body, '$.revision') END = ?",
            (revision,),
        )
        return {row[0] for row in rows} & set(call_ids)

    def pending(self) -> tuple[int, float | None]:
        """Return the number of entries, and when the oldest was made (Unix time, s; None without
        any)."""
        count, oldest = self._open().execute("SELECT count(*), min(at) FROM entries").fetchone()
        return int(count), oldest

    def parked(self) -> int:
        """Return the number of parked entries."""
        return int(self._open().execute("SELECT count(*) FROM parked").fetchone()[0])

    def due(self, now: float, count: int) -> list[Delivery]:
        """Return the first ``count`` deliveries of each endpoint that are due at ``now`` (Unix
        time), those due for longest first; given-up ones are never due."""
        ranked = "SELECT rowid, row_number() OVER (PARTITION BY endpoint ORDER BY due) AS place"
        return self._deliveries(
            f"WHERE rowid IN (SELECT rowid FROM ({ranked} FROM deliveries"
            " WHERE dead = 0 AND due <= ?) WHERE place <= ?) ORDER BY due",
            now,
            count,
        )

    def deliveries(self, *, dead: bool, count: int = 1000) -> list[Delivery]:
        """Return the ``count`` oldest deliveries that wait, due or not, or with ``dead`` those
        given up."""
        return self._deliveries("WHERE dead = ? ORDER BY created LIMIT ?", int(dead), count)

    def waiting(self) -> dict[str, tuple[int, float | None, int]]:
        """Return by endpoint the number of deliveries that wait, when the oldest was created (Unix
        time), and the number of those given up."""
        rows = self._open().execute(
            "SELECT endpoint, sum(1 - dead), min(CASE dead WHEN 0 THEN created END), sum(dead)"
            " FROM deliveries GROUP BY endpoint"
        )
        return {endpoint: (pending, oldest, dead) for endpoint, pending, oldest, dead in rows}

    def delivered(self, delivery: Delivery) -> None:
        """Delete a delivery: its endpoint has it."""
        with self._open() as connection:
            connection.execute(
                "DELETE FROM deliveries WHERE id = ? AND endpoint = ?",
                (delivery.id, delivery.endpoint),
            )

    def failed(self, delivery: Delivery, error: str, due: float | None) -> None:
        """Count a try that failed, with its error; the next one is ``due`` (Unix time, s), None
        gives the delivery up, which stays for :meth:`resend`."""
        with self._open() as connection:
            connection.execute(
                "UPDATE deliveries SET tries = tries + 1, error = ?, dead = ?, due = ?"
                " WHERE id = ? AND endpoint = ?",
                (unicode_of(error), int(due is None), due or 0.0, delivery.id, delivery.endpoint),
            )

    def resend(self, delivery_id: str, now: float) -> int:
        """Make given-up deliveries with this id, to any endpoint (``*``: all), due at ``now``, with
        no tries and a new age; return their number."""
        with self._open() as connection:
            return connection.execute(
                "UPDATE deliveries SET dead = 0, due = ?, created = ?, tries = 0"
                " WHERE dead = 1 AND (id = ? OR ? = '*')",
                (now, now, delivery_id, delivery_id),
            ).rowcount

    def trim(self, before: float, held: Collection[str] = ()) -> int:
        """Delete parked entries and given-up deliveries that were made before a time (Unix, s), and
        the oldest of each beyond ``MAX_REFUSED``; those of the calls ``held``, by id (legal
        hold), stay. Return their number."""
        kept, count = json_text(list(held)), 0
        # A parked entry's position is its time: what stands behind its body is slow to read.
        for table, made, factor in (("parked", "seq", 1e6), ("deliveries", "created", 1.0)):
            some = f"{table}{' WHERE dead = 1' if table == 'deliveries' else ''}"
            with self._open() as connection:
                count += connection.execute(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM (SELECT rowid, {made},"
                    f" row_number() OVER (ORDER BY {made} DESC) AS place FROM {some})"
                    f" WHERE place > ? OR {made} < ?)"
                    " AND call_id NOT IN (SELECT value FROM json_each(?))",
                    (MAX_REFUSED, before * factor, kept),
                ).rowcount
        return count

    def erase(self, call_ids: Sequence[str]) -> int:
        """Delete entries, parked ones and deliveries of these calls, also from the write-ahead log;
        return their number."""
        marks = ",".join("?" * len(call_ids))
        with self._open() as connection:
            count = sum(
                connection.execute(
                    f"DELETE FROM {table} WHERE call_id IN ({marks})", tuple(call_ids)
                ).rowcount
                for table in ("entries", "parked", "deliveries")
            )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _deliveries(self, where: str, *values: object) -> list[Delivery]:
        """Return the deliveries that an SQL clause selects."""
        rows = self._open().execute(
            "SELECT id, endpoint, call_id, body, created, due, tries, error, dead"
            f" FROM deliveries {where}",
            values,
        )
        return [
            Delivery(id, endpoint, call_id, body, created, due, tries, error, bool(dead))
            for id, endpoint, call_id, body, created, due, tries, error, dead in rows
        ]

    def _open(self) -> sqlite3.Connection:
        """Return the connection, opened at the first use and after :meth:`close`.

        If the file was removed, or replaced as by another connection that saw it first, the file
        that has its name now is opened, and gets all that the old one had.
        """
        if self._connection is not None and identity_of(self.path) != self._file:
            self._rescued = {
                insert: self._connection.execute(select).fetchall() for select, insert in _RESCUED
            }
            self.close()
        if self._connection is None:
            made = _connect(self.path)
            try:
                with made:
                    for insert, rows in self._rescued.items():
                        made.executemany(insert, rows)
            except sqlite3.Error:
                made.close()
                raise
            self._connection, self._rescued = made, {}
            self._file = identity_of(self.path)
        return self._connection


_INSERT_ENTRY = (
    "INSERT INTO entries (seq, kind, call_id, body, at) VALUES (max(?, coalesce("
    "(SELECT seq + 1 FROM sqlite_sequence WHERE name = 'entries'), 0)), ?, ?, ?, ?)"
)
"""Inserts an entry behind all others; its position is a time (µs) at least, and so one that no
entry has in a file that was removed before."""

_RESCUED = tuple(
    (f"SELECT {columns} FROM {table} ORDER BY rowid", f"INSERT OR IGNORE INTO {table} ({columns})"
     f" VALUES ({', '.join('?' * len(columns.split(', ')))})")
    for table, columns in (
        ("entries", "seq, kind, call_id, body, at"),
        ("parked", "seq, kind, call_id, body, error, at"),
        ("deliveries", "id, endpoint, call_id, body, created, due, tries, error, dead"),
    )
)  # fmt: skip
"""Queries for what a removed file had, each with the INSERT for the new one."""


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, by which one that has taken its name is told apart; None
    if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _body(text: str) -> dict[str, Any]:
    """Return a body from JSON, without U+0000, which PostgreSQL does not take, and without lone
    surrogates; an empty one for what is no JSON."""
    text = text.replace("\\u0000", "\\ufffd")
    found: Any = None
    with contextlib.suppress(ValueError):
        try:
            found = orjson.loads(text)
        except ValueError:  # half of a surrogate pair, or a number that is too large
            found = json_of(text)
    return found if isinstance(found, dict) else {}


def _connect(path: Path) -> sqlite3.Connection:
    """Open the spool's SQLite file (WAL, deleted rows overwritten, ``MAX_BYTES`` at most), and
    create it and its tables if they are missing. Raises sqlite3.Error or OSError."""
    create_database(path)
    connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA max_page_count = {MAX_BYTES // 4096}")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection

# SPDX-License-Identifier: GPL-2.0-or-later
"""The spool: rows and events of calls on this machine's disk until the database has them.

One SQLite file (WAL) in the records' folder, shared by the processes that write there. What was
committed survives ``kill -9``. Entries are applied in their order and more than once without harm:
rows carry a revision, events an id.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.records.files import private
from gateway.text import unicode_in

NAME = "spool.sqlite3"
LOCK_NAME = "spool.lock"
BUSY_MS = 5000
MAX_BYTES = 4 * 1024**3
"""What it may grow to while the database is away; then it is as full as a full disk."""

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
    """Something that the database does not have yet.

    ``kind`` is ``row`` (the columns of a call), ``cut`` (those of one whose process died) or
    ``event``.
    """

    kind: str
    call_id: str
    body: dict[str, Any]
    at: float
    """Unix time (s)."""
    seq: int = 0
    """Its place; 0 before it is written."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to a webhook's endpoint. ``due`` and ``created`` are Unix time (s)."""

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
    """A connection to the spool, for one thread.

    Methods raise sqlite3.Error or OSError where the disk fails; the next call tries anew.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._connection: sqlite3.Connection | None = None

    def add(self, entries: Iterable[Entry], deliveries: Iterable[Delivery] = ()) -> None:
        """Commit entries, and the deliveries that tell of them, at once."""
        with self._open() as connection:
            connection.executemany(
                "INSERT INTO entries (kind, call_id, body, at) VALUES (?, ?, ?, ?)",
                [(one.kind, one.call_id, _text(one.body), one.at) for one in entries],
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
        """Return the ``count`` oldest entries, in the order in which they were put."""
        rows = self._open().execute(
            "SELECT kind, call_id, body, at, seq FROM entries ORDER BY seq LIMIT ?", (count,)
        )
        return [Entry(kind, call, _body(text), at, seq) for kind, call, text, at, seq in rows]

    def done(self, entries: Sequence[Entry]) -> None:
        """Delete entries: the database has them."""
        with self._open() as connection:
            connection.executemany(
                "DELETE FROM entries WHERE seq = ?", [(one.seq,) for one in entries]
            )

    def park(self, entry: Entry, error: str) -> None:
        """Put aside an entry that the database refuses, with its error."""
        with self._open() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO parked (seq, kind, call_id, body, error, at)"
                " SELECT seq, kind, call_id, body, ?, at FROM entries WHERE seq = ?",
                (error, entry.seq),
            )
            connection.execute("DELETE FROM entries WHERE seq = ?", (entry.seq,))

    def compact(self) -> None:
        """Delete rows that a later one of the same call replaces."""
        with self._open() as connection:
            connection.execute(
                "DELETE FROM entries WHERE kind = 'row' AND seq NOT IN"
                " (SELECT max(seq) FROM entries WHERE kind = 'row' GROUP BY call_id)"
            )

    def closed_among(self, call_ids: Sequence[str], revision: int) -> set[str]:
        """Return those of these calls whose closed row, of this revision, is here."""
        wanted = set(call_ids)
        rows = self._open().execute(
            "SELECT call_id FROM entries WHERE kind = 'row'"
            " AND json_extract(body, '$.revision') = ?",
            (revision,),
        )
        return wanted & {row[0] for row in rows}

    def pending(self) -> tuple[int, float | None]:
        """Return how many entries wait, and since when the oldest does (Unix time)."""
        count, oldest = self._open().execute("SELECT count(*), min(at) FROM entries").fetchone()
        return int(count), oldest

    def parked(self) -> int:
        """Return how many entries were put aside."""
        return int(self._open().execute("SELECT count(*) FROM parked").fetchone()[0])

    def due(self, now: float, count: int) -> list[Delivery]:
        """Return deliveries whose next try is due."""
        return self._deliveries("WHERE dead = 0 AND due <= ? ORDER BY due LIMIT ?", now, count)

    def deliveries(self, *, dead: bool, count: int = 1000) -> list[Delivery]:
        """Return the deliveries that wait, or that were given up; oldest first."""
        return self._deliveries("WHERE dead = ? ORDER BY created LIMIT ?", int(dead), count)

    def waiting(self) -> dict[str, tuple[int, float | None, int]]:
        """Return how many deliveries wait, since when the oldest does (Unix time), and how many
        were given up, by endpoint."""
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
        """Note a try that failed; the next one is ``due``, or there is none."""
        with self._open() as connection:
            connection.execute(
                "UPDATE deliveries SET tries = tries + 1, error = ?, dead = ?, due = ?"
                " WHERE id = ? AND endpoint = ?",
                (error, int(due is None), due or 0.0, delivery.id, delivery.endpoint),
            )

    def resend(self, delivery_id: str, now: float) -> int:
        """Make deliveries with this id, or all of ``*``, due again; returns how many were dead."""
        with self._open() as connection:
            return connection.execute(
                "UPDATE deliveries SET dead = 0, due = ?, created = ?, tries = 0"
                " WHERE dead = 1 AND (id = ? OR ? = '*')",
                (now, now, delivery_id, delivery_id),
            ).rowcount

    def erase(self, call_ids: Sequence[str]) -> int:
        """Delete everything of these calls, whose text stays in no file; returns how many rows."""
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
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _deliveries(self, where: str, *values: object) -> list[Delivery]:
        """Return deliveries that fit an SQL condition."""
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
        """The connection; a new one where the file was removed, with what the old one still had."""
        rescued: list[tuple[Any, ...]] = []
        if self._connection is not None and not self.path.exists():
            rescued = self._connection.execute(
                "SELECT kind, call_id, body, at FROM entries ORDER BY seq"
            ).fetchall()
            self.close()
        if self._connection is None:
            self._connection = _connect(self.path)
            with self._connection as connection:
                connection.executemany(
                    "INSERT INTO entries (kind, call_id, body, at) VALUES (?, ?, ?, ?)", rescued
                )
        return self._connection


def _text(body: dict[str, Any]) -> str:
    try:
        return orjson.dumps(body).decode()
    except TypeError:  # half of a surrogate pair, or a number that is too large
        return json.dumps(unicode_in(body))


def _body(text: str) -> dict[str, Any]:
    # PostgreSQL takes no U+0000.
    found: dict[str, Any] = orjson.loads(text.replace("\\u0000", "\\ufffd"))
    return found


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


def _connect(path: Path) -> sqlite3.Connection:
    """Open the spool's SQLite file, made where it is missing."""
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


class Leadership:
    """Which of the processes on one folder brings the spool to the database: who has the lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether it was this process when it was last looked at."""
        return self._descriptor is not None

    def have(self) -> bool:
        """Whether it is this process; takes the lock where nobody has it. Raises OSError."""
        if self._descriptor is not None:
            if self._path.exists():
                return True
            self.give_up()
        descriptor = private(os.fspath(self._path), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def give_up(self) -> None:
        """Release the lock, so that another process may lead."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

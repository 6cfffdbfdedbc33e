# SPDX-License-Identifier: GPL-2.0-or-later
"""Forwarder: moves the spool to the database, and closes rows of calls whose process died."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gateway.records.files import private
from gateway.records.spool import (
    SLOTS_SUFFIX,
    CutCall,
    Delivery,
    Entry,
    Spool,
    cut_calls,
    identity_of,
)
from gateway.records.tables import CLOSED, CUT, cut_columns
from gateway.text import unicode_of

if TYPE_CHECKING:
    from gateway.records.database import Database

LOCK_NAME = "spool.lock"
BATCH = 200
IDLE_SECONDS = 1.0
GATHER_SECONDS = 0.3
"""From the first entry to the write, so that one transaction takes many."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
STOP_SECONDS = 5.0
COMPACT_SECONDS = 60.0
"""How often superseded rows are taken out of the spool while the database is away."""
SILENT_SECONDS = 300.0
"""A row of a call in progress is written every ten seconds; one that was not for so long belongs to
a machine that is gone."""

_TOLD = (
    "variant",
    "direction",
    "route",
    "trunk",
    "from_number",
    "to_number",
    "duration_seconds",
    "outcome",
    "ended_by",
    "why",
    "sip_code",
    "detail",
    "disposition",
)
"""Columns that are in the data of the event ``call.ended``."""

LOST = "the process of this call ended without closing it"

log = structlog.get_logger("records")

Outgoing = Callable[[dict[str, Any]], Sequence[Delivery]]
"""Returns the deliveries to webhooks that tell of an event."""


def recover(folder: Path, spool: Spool, outgoing: Outgoing = lambda _event: ()) -> list[CutCall]:
    """Put the last row and ``call.ended`` of each call of a dead process into the spool, with its
    deliveries; return these calls. Their slots are deleted.

    A call whose last row waits in the spool is left out. Raises OSError or sqlite3.Error; what was
    not recovered is found again.
    """
    found: list[CutCall] = []
    for path in sorted(folder.glob(f"*{SLOTS_SUFFIX}")):
        with cut_calls(path) as cut:
            closed = spool.closed_among([call.call_id for call in cut], CLOSED)
            calls = [call for call in cut if call.call_id not in closed]
            entries: list[Entry] = []
            deliveries: list[Delivery] = []
            for call in calls:
                row = cut_columns(call.facts, call.alive_at, LOST)
                body = {**row, "id": call.call_id, "revision": CUT}
                entries.append(Entry("cut", call.call_id, body, time.time()))
                event = ended_event(call.call_id, row)
                entries.append(Entry("event", call.call_id, event, time.time()))
                deliveries += outgoing(event)
            if entries:
                spool.add(entries, deliveries)
        found += calls
    return found


def ended_event(call_id: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return the event ``call.ended`` for a call's columns; a call's has always the same id, so
    that the database and receivers take it once."""
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{call_id} call.ended")),
        "call_id": call_id,
        "sequence": 1_000_000,
        "at": row["ended_at"] or row["updated_at"],
        "type": "call.ended",
        "data": {"state": "ended", **{name: row.get(name) for name in _TOLD}},
    }


class Leadership:
    """Lock (flock) held by the one process, of those on a folder, that forwards the spool and sends
    webhooks; it is free when the process dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._descriptor: int | None = None
        self._file: tuple[int, int] | None = None

    @property
    def held(self) -> bool:
        """Whether this process had the lock when :meth:`acquire` was last called."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether this process has it. One whose file was
        removed is given up, and the lock of the file with its name is taken. Raises OSError."""
        if self._descriptor is not None:
            if identity_of(self._path) == self._file:
                return True
            self.release()  # its file was removed, and another process may have made a new one
        descriptor = private(os.fspath(self._path), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor, found = descriptor, os.fstat(descriptor)
        self._file = found.st_dev, found.st_ino
        return True

    def release(self) -> None:
        """Let another process have the lock; nothing if this one has not."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Forwarder:
    """Thread that writes the entries of the spool to the database, in one process of a folder.

    Args:
        folder: of the spool.
        database: makes the database. On the thread, since its library takes a while to load.
        outgoing: returns the deliveries to webhooks that tell of an event.
        idle: called about twice a minute while the spool is empty. On the thread.
    """

    def __init__(
        self,
        folder: Path,
        database: Callable[[], Database],
        outgoing: Outgoing,
        idle: Callable[[Database], None] = lambda _database: None,
    ) -> None:
        self.written = 0
        self.recovered = 0
        """Calls of dead processes whose rows were closed."""
        self.parked = 0
        """Entries put aside, since the database refused them."""
        self.pending = 0
        """Entries in the spool."""
        self.oldest_pending: float | None = None
        """Unix time (s)."""
        self.unavailable = ""
        """Error of a database that cannot be written to; empty while it can."""
        self._folder = folder
        self._open_database = database
        self._outgoing = outgoing
        self._idle = idle
        self._spool = Spool(folder)
        self._leader = Leadership(folder)
        self._database: Database | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._compacted = 0.0
        self._swept = 0.0
        self._sweep_failing = self._spool_failing = False
        self._unavailable_at = -SILENT_SECONDS
        """When the database was last found to be away (``time.monotonic()``, s)."""
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def leading(self) -> bool:
        """Whether this process, of those on its folder, is the one that forwards."""
        return self._leader.held

    def recover(self) -> None:
        """Close the rows of calls that dead processes have left on the folder; count and log each
        (``call.process_lost``).

        On the thread, or before :meth:`start`. Raises OSError or sqlite3.Error.
        """
        for call in recover(self._folder, self._spool, self._outgoing):
            self.recovered += 1
            known = {name: call.facts.get(name) for name in ("route", "invited_at", "direction")}
            log.warning("call.process_lost", call=call.call_id, **known)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look into the spool now. From any thread."""
        self._wake.set()

    def stop(self) -> None:
        """Write what the spool has, unless the database is away, and end the thread; block
        ``STOP_SECONDS`` at most. What is left stays in the spool."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        """Forward batch after batch until stopped and nothing more can be written; then close
        database, spool and lock.

        While the database is away, pause from ``FIRST_PAUSE_SECONDS``, doubled up to
        ``LONGEST_PAUSE_SECONDS``; otherwise wait to be woken, ``IDLE_SECONDS`` at most, and
        ``GATHER_SECONDS`` for further entries.
        """
        while True:
            stopping = self._stopping.is_set()
            try:
                went_on = self._turn()
                self._spool_failing = False
            except (sqlite3.Error, OSError) as error:
                # The spool itself: the writer says so, and keeps what it could not add.
                if not self._spool_failing:  # not at each turn into a log on the same full disk
                    log.warning("records.spool_failed", error=str(error))
                self._spool_failing = True
                self._spool.close()
                went_on = False
            except Exception:
                log.exception("records.forwarder_failed")
                went_on = False
            if went_on:
                continue
            if stopping:
                break
            if self.unavailable:
                self._stopping.wait(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            else:
                self._wake.wait(IDLE_SECONDS)
                self._wake.clear()
                self._stopping.wait(GATHER_SECONDS)
        if self._database is not None:
            self._database.close()
        self._spool.close()
        self._leader.release()

    def _turn(self) -> bool:
        """Forward the oldest ``BATCH`` entries; return True if they were written, so that more may
        wait.

        Nothing without the lock. First recovers cut calls; without entries it maintains; while the
        database is away it compacts the spool every ``COMPACT_SECONDS``. Raises sqlite3.Error or
        OSError of the spool.
        """
        if not self._leader.acquire():
            return False
        self.recover()
        entries = self._spool.entries(BATCH)
        self.pending, self.oldest_pending = len(entries), entries[0].at if entries else None
        if len(entries) == BATCH:
            self.pending, self.oldest_pending = self._spool.pending()
        if not self._prepare() or (entries and not self._write(entries)):
            if time.monotonic() - self._compacted > COMPACT_SECONDS:
                self._compacted = time.monotonic()
                self._spool.compact()
            return False
        if not entries:
            self._maintain()
        return bool(entries)

    def _connected(self) -> Database:
        """Return the database, made at the first use."""
        if self._database is None:
            self._database = self._open_database()
        return self._database

    def _prepare(self) -> bool:
        """Create or migrate the tables if that was not done since the database was last away;
        return whether it can be reached. Clears or sets :attr:`unavailable`."""
        try:
            self._connected().prepare()
        except Exception as error:
            return self._note_outage(error)
        if self.unavailable:
            self.unavailable = ""
            log.info("records.database_available")
        return True

    def _write(self, entries: Sequence[Entry]) -> bool:
        """Write entries to the database; return True once all are written or parked, False for an
        outage."""
        try:
            self._connected().write(entries)
        except Exception as error:
            if _is_refusal(error):
                return self._write_singly(entries, error)
            return self._note_outage(error)
        self._note_written(entries)
        return True

    def _write_singly(self, entries: Sequence[Entry], error: Exception) -> bool:
        """Write half by half, down to the single entries that are refused; park those, and log
        each. Of a row all is written that can be (:func:`gateway.records.database.reduced`).
        Returns False if an outage ends it."""
        from gateway.records.database import reduced

        if len(entries) > 1:
            half = len(entries) // 2
            return self._write(entries[:half]) and self._write(entries[half:])
        (entry,) = entries
        written = entry.kind != "event"
        if written:
            try:
                self._connected().write([reduced(entry)])
            except Exception as again:
                if not _is_refusal(again):
                    return self._note_outage(again)
                written = False
        self._spool.park(entry, str(error)[:2000])
        self.parked += 1
        told = {"what": entry.kind, "without_details": written, "error": unicode_of(str(error))}
        log.error("records.parked", call=entry.call_id, **told)
        return True

    def _note_outage(self, error: Exception) -> bool:
        """Close the database, and set :attr:`unavailable`; log it if that was empty. Returns
        False."""
        self._unavailable_at = time.monotonic()
        if self._database is not None:  # else there was not even a descriptor to load its driver
            self._database.close()
        text = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        if not self.unavailable:
            log.error("records.database_unavailable", error=text)
        self.unavailable = text or type(error).__name__
        return False

    def _note_written(self, entries: Sequence[Entry]) -> None:
        """Delete written entries from the spool, count them, and begin with the shortest pause at
        the next outage."""
        self._spool.done(entries)
        self.written += len(entries)
        self._pause = FIRST_PAUSE_SECONDS

    def _maintain(self) -> None:
        """Close rows of calls in progress that nobody has written for ``SILENT_SECONDS``, then call
        ``idle``; twice a minute, and not while stopping.

        No rows are closed for as long after an outage of the database, when others' rows are still
        to come. What ``idle`` raises is logged once and no outage; the database is opened again, so
        that one that is away shows.
        """
        if self._stopping.is_set():
            return
        if time.monotonic() - self._swept < SILENT_SECONDS / 10:
            return
        self._swept = time.monotonic()
        silent_since = datetime.fromtimestamp(time.time() - SILENT_SECONDS, UTC)
        try:
            # After an outage the rows of other machines' calls are as old, until they come.
            if self._swept - self._unavailable_at >= SILENT_SECONDS:
                for call_id in self._connected().close_silent(silent_since, LOST):
                    log.warning("call.process_lost", call=call_id)
            database = self._connected()
        except Exception as error:
            self._note_outage(error)
            return
        try:
            self._idle(database)
            self._sweep_failing = False
        except Exception as error:
            if not self._sweep_failing:
                log.error("records.sweep_failed", error=unicode_of(str(error)))
            self._sweep_failing = True
            database.close()


def _is_refusal(error: Exception) -> bool:
    """Return whether an error is about an entry's content, so that others can be written; False for
    an outage."""
    import sqlalchemy.exc as exc

    if isinstance(error, exc.DBAPIError):
        # Of class 54: beyond a limit of PostgreSQL's, as of nesting. Without a state the driver
        # itself has refused a value.
        state = getattr(error.orig, "sqlstate", None)
        unbound = state is None and isinstance(error, exc.ProgrammingError)
        refused = isinstance(error, (exc.DataError, exc.IntegrityError, exc.NotSupportedError))
        beyond = unbound or str(state).startswith("54")
        return (refused or beyond) and not error.connection_invalidated
    of_content = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
    return isinstance(error, (exc.StatementError, RecursionError, *of_content))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Record store: row, events and record file of every call, written off the event loop.

A call has a slot in a memory-mapped file before its first provisional response, a row in the spool
within some hundredths of a second, and from there a row in the database. No call waits for any of
this, and none of it is lost by ``kill -9``.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gateway.call.call_record import CallRecord
from gateway.records.files import BackgroundWriter, RecordFiles
from gateway.records.forwarder import Forwarder, Outgoing, ended_event
from gateway.records.spool import CallSlots, Delivery, Entry, Spool
from gateway.records.tables import CLOSED, OPENED, columns_of
from gateway.sip.messages.headers import number_of
from gateway.tasks import TaskSet
from gateway.text import PrivateDigits

if TYPE_CHECKING:
    from gateway.records.database import Database

QUEUE_ITEMS = 20_000
"""Entries that wait for a disk that takes none: some minutes of a hundred busy calls."""
HEARTBEAT_SECONDS = 10.0
"""Seconds between two versions of the row of a call in progress, with its cost so far."""

EVENTS: Mapping[str, str] = {
    "ringing": "call.ringing",
    "answered": "call.answered",
    "held": "call.held",
    "holding": "call.held",
    "resumed": "call.resumed",
    "hold_ended": "call.resumed",
    "transfer_ringing": "call.transferring",
    "transfer_progress": "call.transferring",
    "transfer_answered": "call.transferred",
    "transfer_failed": "call.transfer_failed",
    "bridged": "call.transferred",
    "budget_warning": "call.budget",
    "budget_exceeded": "call.budget",
    "session_lost": "call.trouble",
    "session_replaced": "call.trouble",
    "response_failures_exceeded": "call.trouble",
}
"""Entries of a record's timeline that are events for webhooks, too, by the event's type."""

log = structlog.get_logger("records")


@dataclass(slots=True)
class _Live:
    """A call in progress, with the last revision of its row and sequence number of its events."""

    record: CallRecord
    revision: int = OPENED
    sequence: int = 0


@dataclass(slots=True)
class _Item:
    """Entries on their way to the spool; with ``closed``, the last ones of a call."""

    entries: tuple[Entry, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    closed: CallRecord | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = False
    """Whether the entries have the last row of ``closed``; it is made on the writer's thread."""


class RecordStore:
    """Writes rows, events and files of calls. Lives on the event loop.

    Args:
        folder: of spool and slots; None writes record files only.
        database: makes the database. On a thread.
        writer: thread that writes the spool.
        files: gets each record that is complete.
        redact: fields that are masked in slots, those of all routes.
        instance: name of this process in rows.
        outgoing: returns the deliveries to webhooks that tell of an event.
        idle: called about twice a minute while nothing waits for the database. On a thread.
    """

    def __init__(
        self,
        folder: Path | None,
        database: Callable[[], Database],
        writer: BackgroundWriter,
        files: RecordFiles,
        redact: Collection[str] = (),
        instance: str = "",
        outgoing: Outgoing = lambda _event: (),
        idle: Callable[[Database], None] = lambda _database: None,
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._files = files
        self._private = PrivateDigits(redact)
        self._instance = instance
        self._outgoing = outgoing
        self._live: dict[str, _Live] = {}
        self._tasks = TaskSet()
        self._failing = False
        self._without_slots = False
        self.listeners: list[Callable[[dict[str, Any], CallRecord], None]] = []
        """Called with each event and its call's record."""
        self.lost = 0
        """Last rows that are only in the log."""
        self.incomplete = 0
        """Last rows without the whole record, which could not be made."""
        if folder is None:
            return
        self._slots = CallSlots(folder)
        self._spool = Spool(folder)
        self._channel = writer.channel("rows", self._write, QUEUE_ITEMS)
        self.forwarder = Forwarder(folder, database, outgoing, idle)

    # ---- life

    async def start(self) -> None:
        """Make the folders, close the rows of calls of dead processes, and begin to forward and to
        write rows of calls in progress every ``HEARTBEAT_SECONDS``.

        Called before the writer's start. Raises OSError for a folder that cannot be made or written
        to.
        """
        await asyncio.to_thread(self._files.prepare)
        if self._folder is None:
            return
        await asyncio.to_thread(self._prepare, self._folder)
        self._writer.every_second(self._tick)
        self.forwarder.start()
        self._tasks.serve(self._beat, "record heartbeat")

    async def stop(self) -> None:
        """Forward the spool to the database for ``STOP_SECONDS`` of the forwarder at most, and
        close the files; called after the writer's stop. What the writer may still use stays
        open."""
        if self._folder is None:
            return
        await self._tasks.cancel()
        await asyncio.to_thread(self.forwarder.stop)
        if not self._writer.stuck:
            self._spool.close()
            self._slots.close()

    # ---- what happens to calls

    def arrived(self, call_id: str, facts: Mapping[str, Any]) -> None:
        """Write a call's slot, before its first provisional response; nothing if it has one. From
        any thread.

        ``facts`` are columns of its row; numbers come from the URIs in it, masked as any route
        wants.
        """
        if self._folder is None:
            return
        known = {"instance": self._instance, "invited_at": datetime.now(UTC).isoformat(), **facts}
        for name in ("from", "to"):
            known[f"{name}_number"] = number_of(str(known.get(f"{name}_uri", "")))
        numbers = ("from_uri", "to_uri", "from_number", "to_number")
        known |= self._private.masked({name: known.get(name, "") for name in numbers})
        self._slots.take(call_id, known)

    def opened(self, record: CallRecord) -> None:
        """Write the slot and first row of a call, and the event ``call.incoming`` or
        ``call.dialing``; from now on entries of its timeline are events, too."""
        live = self._live[record.call_id] = _Live(record)
        record.on_mark = partial(self._marked, live)
        if self._folder is not None:
            columns = columns_of(record, datetime.now(UTC))
            self._take_slot(record, columns)
            self._put_row(live, columns)
        incoming = record.direction == "inbound"
        self._tell(live, "call.incoming" if incoming else "call.dialing", {})

    def changed(self, record: CallRecord) -> None:
        """Queue the row of a call in progress again, with the next revision; nothing for a call
        that was not opened or is over."""
        live = self._live.get(record.call_id)
        if live is not None and self._folder is not None:
            live.revision += 1
            columns = columns_of(record, datetime.now(UTC))
            if self._slots.lacks(record.call_id):
                self._take_slot(record, columns)
            self._put_row(live, columns)

    def write(self, record: CallRecord) -> None:
        """Write record file, last row and the event ``call.ended`` of a call that is over, or was
        refused and never :meth:`opened` (``refused`` in the event).

        If the queue is full, or the writer has stopped, the row goes into the log
        (``records.lost``), and the slot stays for the next start.
        """
        self._files.write(record)
        live = self._live.pop(record.call_id, None)
        record.on_mark = None
        columns = columns_of(record, datetime.now(UTC))
        event = ended_event(record.call_id, columns)
        event["data"]["refused"] = live is None
        self._notify(event, record)
        if self._folder is None:
            return
        item = _Item(
            (Entry("event", record.call_id, event, time.time()),),
            tuple(self._outgoing(event)),
            record,
            columns,
        )
        if not self._channel.put(item):
            self._lose(item)

    def uncounted(self, call_id: str) -> None:
        """Empty the slot of an INVITE that gets no row, since refusals like it are only counted."""
        if self._folder is not None:
            self._slots.free(call_id)

    def announce(self, kind: str, data: Mapping[str, Any]) -> None:
        """Send an event of the type ``kind``, which belongs to no call, to webhooks that have
        subscribed to it; it is not in the database. Dropped if the queue is full."""
        at = datetime.now(UTC).isoformat()
        event = {"id": str(uuid.uuid4()), "call_id": "", "at": at, "type": kind, "data": data}
        if self._folder is not None and (deliveries := tuple(self._outgoing(event))):
            self._channel.put(_Item((), deliveries))

    def as_json(self) -> dict[str, Any]:
        """Return the state of spool and database, for ``gateway status``."""
        if self._folder is None:
            return {}
        forwarder = self.forwarder
        oldest = forwarder.oldest_pending
        return {
            "pending": forwarder.pending + len(self._channel),
            "oldest_pending_seconds": None if oldest is None else round(time.time() - oldest, 1),
            "written": forwarder.written,
            "parked": forwarder.parked,
            "recovered": forwarder.recovered,
            "lost": self.lost,
            "incomplete": self.incomplete,
            "without_slot": self._slots.missed,
            "unavailable": forwarder.unavailable,
        }

    # ---- how

    def _prepare(self, folder: Path) -> None:
        """Make the folder, close the rows of calls of dead processes, and open the slots; a spool
        or slots that fail are logged. Raises OSError for the folder. On a thread."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self.forwarder.recover()
        except (OSError, sqlite3.Error) as error:
            log.error("records.spool_failed", error=str(error))
        self._open_slots()

    def _open_slots(self) -> None:
        """Open the slots, or create their removed file again; log the first failure, and that it
        is over."""
        try:
            self._slots.open()
        except OSError as error:
            if not self._without_slots:
                log.error("records.no_slots", error=str(error))
            self._without_slots = True
        else:
            if self._without_slots:
                log.info("records.slots_opened")
            self._without_slots = False

    def _tick(self) -> None:
        """Write the time into the file of slots, created if there is none. On the writer's thread,
        about once a second."""
        self._slots.alive(time.time())
        if self._slots.lost:
            if not self._without_slots:
                log.error("records.slots_removed", file=str(self._slots.path))
            self._open_slots()

    async def _beat(self) -> None:
        """Write the rows of all calls in progress every ``HEARTBEAT_SECONDS``."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for live in tuple(self._live.values()):
                try:
                    self.changed(live.record)
                except Exception:  # of one call: the rows of the others would look abandoned
                    log.exception("records.row_failed", call=live.record.call_id)

    def _marked(self, live: _Live, event: str, fields: Mapping[str, Any]) -> None:
        """Write row and event for an entry of a call's timeline that is in :data:`EVENTS`; nothing
        for another."""
        kind = EVENTS.get(event)
        if kind is None:
            return
        self.changed(live.record)
        self._tell(live, kind, {"event": event, **fields})

    def _take_slot(self, record: CallRecord, columns: Mapping[str, Any]) -> None:
        """Write the slot of a call with these columns; nothing if it has one."""
        self.arrived(record.call_id, {name: columns[name] for name in _IN_SLOT})

    def _put_row(self, live: _Live, columns: Mapping[str, Any]) -> None:
        """Queue a row of a call in progress, unless the queue is half full: the next one has all
        that it has."""
        entry = self._row(live.record, columns, live.revision)
        # Half of the room is for the last rows of calls: what is dropped here comes again.
        if len(self._channel) < QUEUE_ITEMS // 2:
            self._channel.put(_Item((entry,)))

    def _tell(self, live: _Live, kind: str, fields: Mapping[str, Any]) -> None:
        """Pass an event of a call to the listeners, and queue it for the database and webhooks.

        Numbers and ``fields`` are masked as the route wants. In a queue that is half full, an event
        that no webhook wants is dropped; in a full one any.
        """
        record = live.record
        live.sequence += 1
        event = {
            "id": str(uuid.uuid4()),
            "call_id": record.call_id,
            "sequence": live.sequence,
            "at": datetime.now(UTC).isoformat(),
            "type": kind,
            "data": {
                "state": record.state,
                "direction": record.direction,
                "route": record.route,
                "trunk": record.leg.trunk,
                "variant": record.variant,
                **record.private.masked(
                    {
                        "from_number": number_of(record.from_uri),
                        "to_number": number_of(record.to_uri),
                        **fields,
                    }
                ),
            },
        }
        self._notify(event, record)
        if self._folder is None:
            return
        deliveries = tuple(self._outgoing(event))
        if deliveries or len(self._channel) < QUEUE_ITEMS // 2:
            self._channel.put(
                _Item((Entry("event", record.call_id, event, time.time()),), deliveries)
            )

    def _notify(self, event: dict[str, Any], record: CallRecord) -> None:
        """Pass an event to the listeners; one that raises is logged."""
        for listener in self.listeners:
            try:
                listener(event, record)
            except Exception:
                log.exception("records.listener_failed", what=event["type"])

    # ---- on the writer's thread

    def _write(self, items: list[_Item]) -> Sequence[_Item]:
        """Write queued items to the spool in one transaction; return all of them if the disk fails,
        to be tried again.

        The last row of a call is made here, since its record is large. While the disk fails, one
        item is tried before the rest. Wakes the forwarder. Raises what the spool does for a reason
        other than its disk; the last row of a call that comes alone goes into the log then.
        """
        for item in items:
            if item.closed is not None and not item.complete:
                item.entries = (*item.entries, self._last_row(item))
                item.complete = True
        try:
            if self._failing:
                # One is enough to see that the disk still takes none.
                self._add(items[:1])
                items = items[1:]
            self._add(items)
        except Exception as error:
            if not isinstance(error, OSError | sqlite3.Error) or isinstance(error, _OF_CONTENT):
                if len(items) > 1 or items[0].closed is None:
                    raise
                self._lose(items[0])
                return ()
            if not self._failing:
                self._failing = True
                log.error("records.spool_failed", error=str(error), waiting=len(items))
            self._spool.close()
            return items
        if self._failing:
            self._failing = False
            log.info("records.spool_works")
        self.forwarder.wake()
        return ()

    def _add(self, items: Sequence[_Item]) -> None:
        """Commit items to the spool, of a call's rows only the last; empty the slots of calls whose
        last row is among them. Raises OSError or sqlite3.Error."""
        entries = [entry for item in items for entry in item.entries]
        # Of several rows of a call the last has all that the others have.
        last = {one.call_id: one for one in entries if one.kind == "row"}
        self._spool.add(
            [one for one in entries if one.kind != "row" or last[one.call_id] is one],
            [delivery for item in items for delivery in item.deliveries],
        )
        for item in items:
            if item.closed is not None:
                self._slots.free(item.closed.call_id)

    def _last_row(self, item: _Item) -> Entry:
        """Return the last row of an item's call, with the whole record; without one that cannot be
        made, which is counted and logged."""
        assert item.closed is not None
        record: dict[str, Any] | None = None
        try:
            record = item.closed.as_json()
        except Exception:
            self.incomplete += 1
            log.exception("records.incomplete", call=item.closed.call_id)
        return self._row(item.closed, {**item.columns, "state": "ended", "record": record}, CLOSED)

    def _row(self, record: CallRecord, columns: Mapping[str, Any], revision: int) -> Entry:
        """Return an entry with the columns of a call, for the spool."""
        known = {"id": record.call_id, "revision": revision, "instance": self._instance}
        return Entry("row", record.call_id, {**columns, **known}, time.time())

    def _lose(self, item: _Item) -> None:
        """Count and log, with its columns, a call whose last row could not be queued or written."""
        self.lost += 1
        assert item.closed is not None
        row = dict(item.columns)
        log.error("records.lost", call=item.closed.call_id, lost=self.lost, row=row)


_OF_CONTENT = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.NotSupportedError,
)
"""Errors of the spool that are not its disk's: the same entry fails again."""

_IN_SLOT = (
    *("sip_call_id", "direction", "from_uri", "to_uri", "trunk", "source", "route"),
    *("transport", "invited_at"),
)
"""Columns that the slot of a call in progress has."""

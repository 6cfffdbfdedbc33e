# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of calls, and a store that keeps them, for tests of records."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.call.call_record import CallRecord
from gateway.ending import EndReason, ending_of
from gateway.records.database import Database, Filter
from gateway.records.files import BackgroundWriter, RecordFiles
from gateway.records.spool import Entry
from gateway.records.store import RecordStore

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


def a_record(call_id: str = "c1", **fields: Any) -> CallRecord:
    made = CallRecord(call_id, started_at=NOW.isoformat(), route="r")
    made.from_uri, made.to_uri = "<sip:+49301234567@pbx>", "sip:100@gw"
    made.leg.source = "192.0.2.7:5060"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def end(record: CallRecord, why: EndReason = EndReason.REMOTE_HANGUP) -> CallRecord:
    record.ending = ending_of(why, answered=record.times.answered is not None)
    record.times.end = 5000.0
    return record


def row(call_id: str, revision: int, **columns: Any) -> Entry:
    body = {
        "id": call_id,
        "revision": revision,
        "schema_version": 1,
        "invited_at": NOW.isoformat(),
        "updated_at": NOW.isoformat(),
        "ended_at": None,
        **columns,
    }
    return Entry("row", call_id, body, time.time())


class Kept:
    """A store on a folder, with the database that ``url`` names."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder}/calls.sqlite3"
        self.writer = BackgroundWriter()
        self.files = RecordFiles(folder, self.writer)
        self.store = RecordStore(folder, lambda: Database(self.url), self.writer, self.files)

    async def __aenter__(self) -> Kept:
        await self.store.start()
        self.writer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.writer.stop()
        await self.store.stop()

    def rows(self) -> list[dict[str, Any]]:
        """What the database has, oldest first."""
        database = Database(self.url, read_only=True)
        try:
            return list(database.each(Filter()))
        finally:
            database.close()

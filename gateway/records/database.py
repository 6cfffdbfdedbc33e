# SPDX-License-Identifier: GPL-2.0-or-later
"""The database of calls: its tables, guarded upserts, and queries. SQLite or PostgreSQL.

Used from threads: by the forwarder, and for queries of the API and the command line. Imported
only by those, since SQLAlchemy takes a while to load.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from gateway.records.files import create_database
from gateway.records.shared import CanaryState, canary_of, release_calls
from gateway.records.spool import Entry, identity_of
from gateway.records.tables import (
    CUT,
    HEAD,
    LOCK_SECONDS,
    TIMES,
    UtcTime,
    calls,
    events,
    insert_into,
    locked,
    metadata,
    upgrade,
    version_of,
)
from gateway.text import json_text

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 30.0
BUSY_SECONDS = 10
EXCLUSIVE_KEY = 0x676C7263
"""Key of PostgreSQL's advisory lock for :meth:`Database.exclusive`."""


_EMPTY: Final[Mapping[str, Any]] = {
    column.name: None if column.nullable or column.server_default is None else ""
    for column in calls.columns
    if column.name != "legal_hold"
}
"""The columns that are written, with their values where nothing is known."""
_CUT = (
    "revision",
    "ended_at",
    "updated_at",
    "duration_seconds",
    "state",
    "outcome",
    "ended_by",
    "why",
    "detail",
)
"""Columns that change in the row of a call whose process died."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Criteria for calls; None and "" match any. ``number`` is that of caller or called."""

    since: datetime | None = None
    until: datetime | None = None
    number: str = ""
    route: str = ""
    trunk: str = ""
    direction: str = ""
    outcome: str = ""
    why: str = ""
    sip_call_id: str = ""
    ended: bool | None = None


class Database:
    """Calls and their events in the database at ``url``. Methods raise SQLAlchemy's errors.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://user:password@host/name``; ``sqlite://`` is in
            memory, and gone with the process.
        read_only: open for queries only.
        patience: deadline (s) of a statement, and of connecting to PostgreSQL.
        lasting: keep SQLite's connection between uses. When the last one is closed, SQLite writes
            its log into the database, which takes a while.
    """

    def __init__(
        self,
        url: str,
        *,
        read_only: bool = False,
        patience: float = STATEMENT_SECONDS,
        lasting: bool = False,
    ) -> None:
        self._url = _driver_url(url)
        backend, database = self._url.get_backend_name(), self._url.database
        self.file = Path(database) if backend == "sqlite" and database else None
        """SQLite's file; None for PostgreSQL, and in memory."""
        self._in_memory = backend == "sqlite" and not database
        self._read_only = read_only
        self._patience = patience
        self._lasting = lasting
        self._engine: sa.Engine | None = None
        self._ready = False
        self._identity: tuple[int, int] | None = None
        """Device and inode of SQLite's file, once it has its tables."""
        # Made once: making a statement takes longer than carrying it out.
        self._upsert_row = self._upsert(_EMPTY.keys() - {"id"})
        self._upsert_cut = self._upsert(_CUT)
        self._insert_event = insert_into(events, backend).on_conflict_do_nothing(
            index_elements=["id"]
        )

    def exists(self) -> bool:
        """Return whether there are tables; a gateway makes them when it first runs. Makes no
        file."""
        if self.file is not None and not self.file.exists():
            return False
        with self._connected().connect() as connection:
            return bool(sa.inspect(connection).has_table(calls.name))

    def prepare(self) -> None:
        """Create or migrate the tables, unless this was done since :meth:`close`, or ``read_only``
        is set. SQLite's file is made again if it was removed, and opened if it was replaced."""
        if self._ready and self.file is not None and identity_of(self.file) != self._identity:
            self.close()
        if self._ready or self._read_only:
            return
        engine = self._connected()
        if self._in_memory:
            metadata.create_all(engine)
        elif version_of(engine) != HEAD:
            upgrade(engine)
        self._ready = True
        self._identity = None if self.file is None else identity_of(self.file)

    def write(self, entries: Sequence[Entry]) -> None:
        """Write rows and events in one transaction, in any order and again without harm.

        A row, also of a cut call, is written only if its revision is newer than that in the
        database; an event only if its id is new. The leases of cut calls are deleted.
        """
        self.prepare()
        rows: dict[str, dict[str, Any]] = {}
        cut: dict[str, dict[str, Any]] = {}
        told: dict[str, dict[str, Any]] = {}
        for entry in entries:
            if not entry.body:
                raise ValueError("its text in the spool is no JSON")
            if entry.kind == "event":
                told[entry.body["id"]] = _typed(entry.body, ("at",))
                continue
            known = cut if entry.kind == "cut" else rows
            before = known.get(entry.call_id)
            if before is None or before["revision"] < entry.body["revision"]:
                known[entry.call_id] = _typed(entry.body, TIMES)
        with self._connected().begin() as connection:
            if rows:
                connection.execute(self._upsert_row, [{**_EMPTY, **row} for row in rows.values()])
            if cut:
                release_calls(connection, cut)
                connection.execute(self._upsert_cut, [{**_EMPTY, **row} for row in cut.values()])
            if told:
                connection.execute(self._insert_event, list(told.values()))

    def close(self) -> None:
        """Close the connections; the next use opens others, as it has to after a failure."""
        self._ready = False
        if self._engine is not None:
            self._engine.dispose()

    def close_silent(self, before: datetime, detail: str) -> list[str]:
        """Close, as crashed, the rows of calls in progress that were not written since ``before``;
        return the ids of the calls.

        A later row of such a call has no effect but for its last one. ``detail`` is for their rows.
        """
        self.prepare()
        ended = {
            "revision": CUT,
            "state": "ended",
            "outcome": "crashed",
            "ended_by": "gateway",
            "why": "process_lost",
            "detail": detail,
            "ended_at": calls.c.updated_at,
        }
        silent = sa.and_(calls.c.ended_at.is_(None), calls.c.updated_at < before)
        with self._connected().begin() as connection:
            update = sa.update(calls).where(silent).values(ended).returning(calls.c.id)
            return list(connection.execute(update).scalars())

    def find(
        self, wanted: Filter, *, limit: int, after: str = "", newest_first: bool = True
    ) -> list[dict[str, Any]]:
        """Return up to ``limit`` rows, without the whole records, in the order of their INVITEs.

        Args:
            after: id of the last call of the page before, "" for the first page; none are found
                after one that is deleted meanwhile.
        """
        last: tuple[datetime, str] | None = None
        if after:
            by_id = sa.select(calls.c.invited_at, calls.c.id).where(calls.c.id == after)
            with self._connected().connect() as connection:
                found = connection.execute(by_id).first()
            if found is None:
                return []
            last = (found[0], found[1])
        return self._page(wanted, limit, last, newest_first=newest_first)

    def each(self, wanted: Filter, batch: int = 500) -> Iterator[dict[str, Any]]:
        """Yield all rows that a filter matches, oldest first, page by page."""
        last: tuple[datetime, str] | None = None
        while found := self._page(wanted, batch, last, newest_first=False):
            yield from found
            last = (found[-1]["invited_at"], found[-1]["id"])

    def _page(
        self, wanted: Filter, limit: int, last: tuple[datetime, str] | None, *, newest_first: bool
    ) -> list[dict[str, Any]]:
        """Return up to ``limit`` rows, without the whole records, in the order of their INVITEs.

        Args:
            last: time of the INVITE and id of the last call of the page before, which may be
                deleted meanwhile; None for the first page.
        """
        columns = [column for column in calls.c if column.name != "record"]
        query = sa.select(*columns).where(*_conditions(wanted))
        order = (calls.c.invited_at, calls.c.id)
        if last is not None:
            key = sa.tuple_(*order)
            bound = sa.tuple_(sa.bindparam("a", last[0], type_=UtcTime), sa.bindparam("b", last[1]))
            query = query.where(key < bound if newest_first else key > bound)
        query = query.order_by(*(sa.desc(one) if newest_first else one for one in order))
        with self._connected().connect() as connection:
            return [dict(row) for row in connection.execute(query.limit(limit)).mappings()]

    def get(self, call_id: str) -> dict[str, Any] | None:
        """Return the row of a call with its whole record and its ``events`` in their order; None
        without one.

        ``call_id`` is tried as the id, the beginning and the end of an id where only one call's is
        so, then as SIP Call-ID: of the newest call with it.
        """
        with self._connected().connect() as connection:
            query = sa.select(calls).where(calls.c.id == call_id)
            row = connection.execute(query).mappings().first()
            for part in (calls.c.id.startswith, calls.c.id.endswith):
                if row is None and call_id:
                    query = sa.select(calls).where(part(call_id, autoescape=True)).limit(2)
                    found = connection.execute(query).mappings().all()
                    row = found[0] if len(found) == 1 else None
            if row is None and call_id:
                query = sa.select(calls).where(calls.c.sip_call_id == call_id)
                query = query.order_by(calls.c.invited_at.desc()).limit(1)
                row = connection.execute(query).mappings().first()
            if row is None:
                return None
            told = connection.execute(
                sa.select(events).where(events.c.call_id == row["id"]).order_by(events.c.sequence)
            ).mappings()
            return {**row, "events": [dict(one) for one in told]}

    def canary(self, route: str) -> CanaryState | None:
        """Return the state of a route's canary; None if it has had none."""
        with self._connected().connect() as connection:
            return canary_of(connection, route)

    def expired(self, before: datetime, limit: int, *, detailed: bool = False) -> list[str]:
        """Return the ids, ``limit`` at most, of ended calls whose INVITE was before a time, without
        those on legal hold.

        With ``detailed``, only those that still have their whole record.
        """
        query = sa.select(calls.c.id).where(
            calls.c.invited_at < before,
            calls.c.ended_at.is_not(None),
            calls.c.legal_hold == sa.false(),
        )
        if detailed:
            query = query.where(calls.c.record.is_not(None))
        with self._connected().connect() as connection:
            return list(connection.execute(query.limit(limit)).scalars())

    def strip(self, call_ids: Sequence[str]) -> None:
        """Delete the whole records, details of the end and the events of these calls; their rows
        stay."""
        with self._connected().begin() as connection:
            connection.execute(sa.delete(events).where(events.c.call_id.in_(call_ids)))
            update = sa.update(calls).where(calls.c.id.in_(call_ids))
            connection.execute(update.values(record=sa.null(), detail=""))

    def held(self) -> set[str]:
        """Return the ids of calls on legal hold."""
        with self._connected().connect() as connection:
            return set(
                connection.execute(
                    sa.select(calls.c.id).where(calls.c.legal_hold == sa.true())
                ).scalars()
            )

    def of_number(self, number: str) -> list[dict[str, Any]]:
        """Return ``id`` and ``invited_at`` of ended calls from or to a number, without those on
        legal hold."""
        query = sa.select(calls.c.id, calls.c.invited_at).where(
            sa.or_(calls.c.from_number == number, calls.c.to_number == number),
            calls.c.ended_at.is_not(None),
            calls.c.legal_hold == sa.false(),
        )
        with self._connected().connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def of_caller(
        self, number: str, routes: Sequence[str], since: datetime, limit: int, trust: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return the latest answered inbound calls from a number on these routes, the newest first.

        They have ``out_of_band`` and ``transcript`` of the whole record, None without one.

        Args:
            trust: accepted values of ``number_trust`` in the record.
        """
        columns = (calls.c.id, calls.c.invited_at, calls.c.outcome, calls.c.disposition)
        parts = [calls.c.record[name].label(name) for name in ("out_of_band", "transcript")]
        query = sa.select(*columns, *parts).where(
            calls.c.from_number == number,
            calls.c.direction == "inbound",
            calls.c.route.in_(routes),
            calls.c.invited_at >= since,
            calls.c.answered_at.is_not(None),
            calls.c.ended_at.is_not(None),
            calls.c.record["number_trust"].as_string().in_(trust),
        )
        with self._connected().connect() as connection:
            newest = query.order_by(calls.c.invited_at.desc()).limit(limit)
            return [dict(row) for row in connection.execute(newest).mappings()]

    def delete(self, call_ids: Sequence[str]) -> int:
        """Delete the rows and events of these calls; return the number of rows."""
        with self._connected().begin() as connection:
            connection.execute(sa.delete(events).where(events.c.call_id.in_(call_ids)))
            return connection.execute(sa.delete(calls).where(calls.c.id.in_(call_ids))).rowcount

    def anonymize(self, call_ids: Sequence[str], replacement: str) -> int:
        """Replace numbers and URIs of these calls, and delete name, SIP Call-ID, detail, record and
        events; times and cost stay.

        Returns the number of rows.
        """
        bare = dict.fromkeys(("from_uri", "to_uri", "from_number", "to_number"), replacement)
        with self._connected().begin() as connection:
            connection.execute(sa.delete(events).where(events.c.call_id.in_(call_ids)))
            update = sa.update(calls).where(calls.c.id.in_(call_ids))
            changed = update.values(
                **bare, from_name="", record=sa.null(), detail="", sip_call_id=""
            )
            return connection.execute(changed).rowcount

    def forget_deleted(self) -> None:
        """Empty SQLite's write-ahead log, in which the text of deleted rows would stay; nothing for
        PostgreSQL."""
        if self.file is not None:
            with self._connected().connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def hold(self, call_id: str, held: bool) -> bool:
        """Set or end the legal hold of a call; return whether there is such a call."""
        with self._connected().begin() as connection:
            update = sa.update(calls).where(calls.c.id == call_id)
            return connection.execute(update.values(legal_hold=held)).rowcount > 0

    # ---- how

    def _upsert(self, changed: Iterable[str]) -> Any:
        """Return a statement that inserts a call's row, or sets these columns of a row with an
        older revision."""
        insert = insert_into(calls, self._url.get_backend_name())
        return insert.on_conflict_do_update(
            index_elements=["id"],
            set_={name: insert.excluded[name] for name in changed},
            where=insert.excluded.revision > calls.c.revision,
        )

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[sa.Connection]:
        """Yield a connection in a transaction that overlaps no other one of this method, in any
        process; committed after the block, rolled back if it raises. Waits for the others,
        within the statement's deadline, with SQLite ``LOCK_SECONDS`` at most."""
        self.prepare()
        with contextlib.ExitStack() as held:
            if self.file is not None:
                # SQLite's own wait is sleep after sleep: with many processes somebody starves.
                held.enter_context(locked(self.file, min(LOCK_SECONDS, self._patience)))
            connection = held.enter_context(self._connected().begin())
            if self._url.get_backend_name() == "postgresql":
                lock = sa.text("SELECT pg_advisory_xact_lock(:key)")
                connection.execute(lock, {"key": EXCLUSIVE_KEY})
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def _connected(self) -> sa.Engine:
        """Return the engine, made at the first use."""
        if self._engine is None:
            if self._in_memory:
                options = {"check_same_thread": False}
                self._engine = sa.create_engine(
                    self._url, poolclass=sa.StaticPool, connect_args=options
                )
            else:
                pool = sa.QueuePool if self._lasting else sa.NullPool
                self._engine = _engine(
                    self._url, self.file, pool, self._patience, read_only=self._read_only
                )
        return self._engine


def _driver_url(url: str) -> URL:
    """Return the URL, of PostgreSQL with the driver that is installed (psycopg)."""
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def _engine(
    url: URL, file: Path | None, pool: type[sa.Pool], patience: float, *, read_only: bool
) -> sa.Engine:
    """Return a SQLAlchemy engine: for PostgreSQL if ``file`` is None, with deadlines from
    ``patience`` (s); otherwise for SQLite's file, made where it is missing unless ``read_only``."""
    if file is None:
        return sa.create_engine(
            url,
            json_serializer=json_text,
            pool_size=2,
            max_overflow=2,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": max(2, min(CONNECT_SECONDS, round(patience))),
                # A pooler in front may give each transaction another connection.
                "prepare_threshold": None,
                # A transaction that its process has left alone must not hold up the others.
                "options": f"-c statement_timeout={round(patience * 1000)}"
                f" -c idle_in_transaction_session_timeout={round(patience * 1000)}",
                "application_name": "gateway",
                # A server that is gone without a word is noticed.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,
            },
        )
    if read_only:
        target = f"sqlite:///file:{file}?mode=ro&uri=true"
        return sa.create_engine(target, poolclass=sa.NullPool)
    engine = sa.create_engine(
        url,
        json_serializer=json_text,
        poolclass=pool,
        connect_args={"timeout": min(BUSY_SECONDS, patience), "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "do_connect")
    def made(_dialect: Any, _record: Any, _args: Any, _kwargs: Any) -> None:
        create_database(file)

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")

    return engine


REDUCED_TEXT = 200
"""Characters of a text that stay in a row without details."""


def reduced(entry: Entry) -> Entry:
    """Return the entry of a call's row with what a database takes of any call: without the whole
    record, with texts cut, and of other columns only values of their type; a time that there has to
    be is the entry's."""
    body: dict[str, Any] = {}
    for column in calls.columns:
        value, kind = entry.body.get(column.name), column.type
        if isinstance(kind, UtcTime):
            try:
                body[column.name] = datetime.fromisoformat(value or "").isoformat()
            except (TypeError, ValueError):
                if not column.nullable:
                    body[column.name] = datetime.fromtimestamp(entry.at, UTC).isoformat()
        elif isinstance(kind, sa.String):
            if isinstance(value, str):
                body[column.name] = value[: kind.length or REDUCED_TEXT]
        elif isinstance(value, int | float) and not isinstance(kind, sa.JSON):
            body[column.name] = value
    return replace(entry, body=body)


def _typed(body: Mapping[str, Any], times: Sequence[str]) -> dict[str, Any]:
    """Return a body with those columns that are times as datetime."""
    return {
        name: datetime.fromisoformat(value) if name in times and isinstance(value, str) else value
        for name, value in body.items()
    }


def _conditions(wanted: Filter) -> list[Any]:
    """Return a filter as SQL conditions."""
    found: list[Any] = []
    if wanted.since is not None:
        found.append(calls.c.invited_at >= wanted.since)
    if wanted.until is not None:
        found.append(calls.c.invited_at < wanted.until)
    if wanted.number:
        found.append(
            sa.or_(calls.c.from_number == wanted.number, calls.c.to_number == wanted.number)
        )
    for name in ("route", "trunk", "direction", "outcome", "why", "sip_call_id"):
        if value := getattr(wanted, name):
            found.append(calls.c[name] == value)
    if wanted.ended is not None:
        found.append(calls.c.ended_at.is_not(None) if wanted.ended else calls.c.ended_at.is_(None))
    return found

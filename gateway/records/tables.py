# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of the database and their migrations (Alembic); the columns of a call, from its record."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gateway.call.call_record import CallRecord
from gateway.ending import EndReason, Party
from gateway.sip.messages.headers import number_of


class UtcTime(sa.TypeDecorator[datetime]):
    """Column type of a time with its zone, which is stored in UTC: SQLite keeps no zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return a time in UTC, for the database."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return a time of the database in UTC, with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData()

# None is NULL, and not the JSON value null.
_json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("instance", sa.Text, nullable=False, server_default=""),
    sa.Column("sip_call_id", sa.Text, nullable=False, server_default=""),
    sa.Column("session_id", sa.Text, nullable=False, server_default=""),
    sa.Column("direction", sa.String(16), nullable=False, server_default=""),
    sa.Column("from_uri", sa.Text, nullable=False, server_default=""),
    sa.Column("to_uri", sa.Text, nullable=False, server_default=""),
    sa.Column("from_number", sa.Text, nullable=False, server_default=""),
    sa.Column("from_name", sa.Text, nullable=False, server_default=""),
    sa.Column("to_number", sa.Text, nullable=False, server_default=""),
    sa.Column("trunk", sa.Text, nullable=False, server_default=""),
    sa.Column("source", sa.Text, nullable=False, server_default=""),
    sa.Column("route", sa.Text, nullable=False, server_default=""),
    sa.Column("transport", sa.String(16), nullable=False, server_default=""),
    sa.Column("codec", sa.String(32), nullable=False, server_default=""),
    sa.Column("security", sa.Text, nullable=False, server_default=""),
    sa.Column("invited_at", UtcTime, nullable=False),
    sa.Column("ringing_at", UtcTime),
    sa.Column("answered_at", UtcTime),
    sa.Column("ended_at", UtcTime),
    sa.Column("updated_at", UtcTime, nullable=False),
    sa.Column("duration_seconds", sa.Float),
    sa.Column("talk_seconds", sa.Float),
    sa.Column("state", sa.String(32), nullable=False, server_default=""),
    sa.Column("outcome", sa.String(32), nullable=False, server_default=""),
    sa.Column("ended_by", sa.String(32), nullable=False, server_default=""),
    sa.Column("why", sa.String(64), nullable=False, server_default=""),
    sa.Column("sip_code", sa.Integer),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    sa.Column("disposition", sa.Text, nullable=False, server_default=""),
    sa.Column("parent_id", sa.String(64), nullable=False, server_default=""),
    sa.Column("variant", sa.String(16), nullable=False, server_default=""),
    sa.Column("interruptions", sa.Integer),
    sa.Column("transfers", sa.Integer),
    sa.Column("response_p50_ms", sa.Float),
    sa.Column("response_p95_ms", sa.Float),
    sa.Column("cost", sa.Float),
    sa.Column("currency", sa.String(8), nullable=False, server_default=""),
    sa.Column("mos", sa.Float),
    sa.Column("legal_hold", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("record", _json),
    sa.Index("calls_invited_at", "invited_at", "id"),
    sa.Index("calls_from_number", "from_number"),
    sa.Index("calls_to_number", "to_number"),
    sa.Index("calls_sip_call_id", "sip_call_id"),
    sa.Index("calls_parent_id", "parent_id"),
)

events = sa.Table(
    "call_events",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("call_id", sa.String(64), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("data", _json),
    sa.Index("call_events_call_id", "call_id", "sequence"),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("scope", sa.String(32), nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("call_id", sa.String(64), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Index("leases_scope_key", "scope", "key"),
    sa.Index("leases_call_id", "call_id"),
)

spending = sa.Table(
    "spending",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("scope", sa.String(32), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("holder", sa.String(64), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

callbacks = sa.Table(
    "callbacks",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("number", sa.Text, nullable=False),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("trunk", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("call_id", sa.String(64), nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("due", sa.Float, nullable=False),
    sa.Column("claimed_by", sa.String(64), nullable=False),
    sa.Column("claimed_until", sa.Float, nullable=False),
    sa.Index("callbacks_due", "due"),
)

bans = sa.Table(
    "bans",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("proven", sa.Boolean, nullable=False),
    sa.Column("holder", sa.String(64), nullable=False),
)

request_keys = sa.Table(
    "request_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("answer", sa.Text),
    sa.Column("at", sa.Float, nullable=False),
)

canaries = sa.Table(
    "canaries",
    metadata,
    sa.Column("route", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.String(16), nullable=False),
    sa.Column("began_at", UtcTime, nullable=False),
    sa.Column("stopped_by", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

SHARED = (leases, spending, callbacks, bans, request_keys, canaries)
"""Tables of the state that processes share."""


LOCK_KEY = 0x67617465
"""Key of PostgreSQL's advisory lock while tables are made or changed."""

_FOLDER = Path(__file__).parent / "migrations"


HEAD: Final = "0001"
"""The newest migration; a database that has it needs none."""


class NewerSchemaError(Exception):
    """The database was made by a newer version of the gateway."""


def version_of(engine: sa.Engine) -> str:
    """Return the number of a database's newest migration; "" for one without tables."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return ""
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        return str(found or "")


def upgrade(engine: sa.Engine) -> None:
    """Apply the migrations that are missing, in one transaction, while no other process does; waits
    for one that does, ``LOCK_SECONDS`` at most with SQLite: callers take that for an outage, and
    come again.

    Raises NewerSchemaError for a database whose migration this version does not know, and
    SQLAlchemyError.
    """
    from alembic import command  # not at the top: most starts find nothing to do
    from alembic.config import Config

    with _migration(engine) as connection:
        found = version_of(engine)
        known = {path.name[:4] for path in (_FOLDER / "versions").glob("[0-9]*.py")}
        if found and found not in known:
            raise NewerSchemaError(f"the database has schema {found}, this gateway knows {HEAD}")
        config = Config()
        config.set_main_option("script_location", str(_FOLDER))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextlib.contextmanager
def _migration(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection in a transaction, while no other process migrates."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
            yield connection
        return
    with locked(Path(engine.url.database or "")), engine.begin() as connection:
        yield connection


LOCK_SECONDS = 10.0
LOCK_PAUSE_SECONDS = 0.005
"""Between two tries for a lock that is held: always the same, so that who has waited long tries no
more seldom than who has just come."""


@contextlib.contextmanager
def locked(database: Path, patience: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock (flock) of a SQLite database, a file ``.lock`` beside it, for the block.

    Raises OperationalError where others hold it for ``patience`` (s).
    """
    descriptor = os.open(f"{database}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    why = TimeoutError(f"{database}.lock is held by {_holder_of(descriptor)}")
                    raise sa.exc.OperationalError("flock", None, why) from None
            time.sleep(LOCK_PAUSE_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _holder_of(descriptor: int) -> str:
    """Return the process that holds the flock of an open file, as far as proc_locks(5) tells it."""
    file = os.fstat(descriptor)
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            _, *held = line.split()
            if held[0] == "FLOCK" and held[4] == place:
                return f"process {held[3]}"
    return "another process"


def insert_into(table: sa.Table, dialect: str) -> Any:
    """Return an INSERT that can have ON CONFLICT; ``dialect`` is sqlite or postgresql."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


SCHEMA_VERSION = 1

OPENED, CUT, CLOSED = 1, 1_000_000_000, 1_000_000_001
"""Revisions of a row: the first, that of a call whose process died, and the last. Those of updates
lie between the first two; a later revision replaces an earlier one, never the other way round."""

TIMES = ("invited_at", "ringing_at", "answered_at", "ended_at", "updated_at")
"""Columns that are times; ISO 8601 in the spool."""

_FAILED = frozenset(
    {
        EndReason.CALL_FAILED,
        EndReason.SESSION_ERROR,
        EndReason.SESSION_LOST,
        EndReason.SESSION_SILENT,
        EndReason.SESSION_UNREACHABLE,
        EndReason.SESSION_REFUSED,
        EndReason.LEG_TIMEOUT,
        EndReason.RTP_TIMEOUT,
        EndReason.RESPONSE_FAILURES,
        EndReason.INTERNAL_ERROR,
    }
)
_UNANSWERED = {
    EndReason.BUSY: "busy",
    EndReason.DECLINED: "refused",
    EndReason.NO_ANSWER: "no_answer",
    EndReason.NO_SUCH_NUMBER: "failed",
    EndReason.FORBIDDEN: "failed",
    EndReason.CANCELLED: "cancelled",
    EndReason.REMOTE_HANGUP: "cancelled",
}


def outcome_of(record: CallRecord) -> str:
    """Return the column ``outcome`` of a call; "" while it is in progress.

    transferred, crashed and failed go by its end reason; any other call that was answered is
    completed, and one that was not is busy, no_answer, cancelled, refused or failed.
    """
    ending = record.ending
    if ending is None:
        return ""
    if ending.why is EndReason.TRANSFERRED:
        return "transferred"
    if ending.why is EndReason.PROCESS_LOST:
        return "crashed"
    if ending.why in _FAILED:
        return "failed"
    if record.times.answered is not None:
        return "completed"
    return _UNANSWERED.get(ending.why, "refused")


def columns_of(record: CallRecord, now: datetime) -> dict[str, Any]:
    """Return the columns of a call as JSON values, masked as its route wants, without ``record``.

    Args:
        now: time of the update, with its zone.
    """
    times, ending = record.times, record.ending
    began = datetime.fromisoformat(record.started_at)
    cost, waits = record.cost, record.response_ms
    quality = record.media.quality
    plain = {
        "from_uri": record.from_uri,
        "from_name": record.from_name,
        "to_uri": record.to_uri,
        "from_number": number_of(record.from_uri),
        "to_number": number_of(record.to_uri),
        "detail": "" if ending is None else ending.detail,
        "reason": "" if ending is None else ending.reason,
        "disposition": record.disposition,
    }
    return {
        **record.private.masked(plain),
        "schema_version": SCHEMA_VERSION,
        "sip_call_id": record.sip_call_id,
        "direction": record.direction,
        "trunk": record.leg.trunk,
        "source": record.leg.source,
        "route": record.route,
        "transport": record.leg.transport,
        "codec": record.leg.codec,
        "security": record.leg.security,
        "session_id": record.session.session_id,
        "invited_at": record.started_at,
        "ringing_at": _at(began, times.ringing),
        "answered_at": _at(began, times.answered),
        "ended_at": _at(began, times.end),
        "updated_at": now.astimezone(UTC).isoformat(),
        "duration_seconds": None if times.end is None else round(times.end / 1000, 3),
        "talk_seconds": None if times.end is None else round(record.talk_ms / 1000, 3),
        "state": record.state,
        "outcome": outcome_of(record),
        "ended_by": "" if ending is None else ending.by.value,
        "why": "" if ending is None else ending.why.value,
        "sip_code": None if ending is None else ending.sip_code,
        "parent_id": record.parent_id,
        "variant": record.variant,
        "interruptions": len(record.actions.interruptions),
        "transfers": len(record.actions.transfers),
        "response_p50_ms": waits.get("p50"),
        "response_p95_ms": waits.get("p95"),
        "cost": cost.get("priced"),
        "currency": cost.get("currency", ""),
        "mos": _mos(quality),
    }


def cut_columns(facts: Mapping[str, Any], alive_at: float, detail: str) -> dict[str, Any]:
    """Return the last columns of a call whose process died: it ended, as crashed, when the process
    is known to have run last, or with its INVITE if that is later.

    Args:
        facts: columns from its slot.
        alive_at: when the process is known to have run last (Unix time, s); 0.0 if not known.
    """
    ended = datetime.fromtimestamp(alive_at, UTC) if alive_at else None
    invited = facts.get("invited_at") or datetime.now(UTC).isoformat()
    if ended is None or ended < datetime.fromisoformat(invited):
        ended = datetime.fromisoformat(invited)  # cut in its first second
    began = datetime.fromisoformat(invited)
    return {
        **facts,
        "schema_version": SCHEMA_VERSION,
        "invited_at": invited,
        "ended_at": ended.isoformat(),
        "updated_at": ended.isoformat(),
        "duration_seconds": round((ended - began).total_seconds(), 3),
        "state": "ended",
        "outcome": "crashed",
        "ended_by": Party.GATEWAY.value,
        "why": EndReason.PROCESS_LOST.value,
        "detail": detail,
    }


def _at(began: datetime, ms: float | None) -> str | None:
    """Return the time ``ms`` after ``began`` in ISO 8601; None for None."""
    return None if ms is None else (began + timedelta(milliseconds=ms)).isoformat()


def _mos(quality: Mapping[str, Any]) -> float | None:
    """Return the lower mean MOS of both directions; None without any."""
    scores = [
        score["mean"]
        for way in ("rx", "tx")
        if (score := (quality.get(way) or {}).get("mos")) and score.get("mean") is not None
    ]
    return min(scores) if scores else None

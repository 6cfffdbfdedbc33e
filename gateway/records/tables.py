# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of the database, and the migrations that make them (Alembic)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql


class UtcTime(sa.TypeDecorator[datetime]):
    """A time with its zone; SQLite keeps none, so it is UTC there."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """To the database: UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """From the database: with its zone."""
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
"""Tables of what processes share."""


LOCK_KEY = 0x67617465
"""Of PostgreSQL's advisory lock while tables are made or changed."""

_FOLDER = Path(__file__).parent / "migrations"


class NewerSchemaError(Exception):
    """The database was made by a newer version of the gateway."""


def upgrade(engine: sa.Engine, head: str, version_of: Callable[[sa.Engine], str]) -> None:
    """Apply the migrations that are missing, while no other process does.

    Args:
        head: the schema's version that this gateway knows.
        version_of: that of a database.

    Raises NewerSchemaError for a database that this version does not know, and SQLAlchemyError.
    """
    with _locked(engine) as connection:
        found = version_of(engine)
        known = {path.name[:4] for path in (_FOLDER / "versions").glob("[0-9]*.py")}
        if found and found not in known:
            raise NewerSchemaError(f"the database has schema {found}, this gateway knows {head}")
        config = Config()
        config.set_main_option("script_location", str(_FOLDER))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextlib.contextmanager
def _locked(engine: sa.Engine) -> Iterator[sa.Connection]:
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
            yield connection
        return
    descriptor = os.open(f"{engine.url.database}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with engine.begin() as connection:
            yield connection
    finally:
        os.close(descriptor)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls and their events; state that processes share."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)


def _key(name: str, kind: sa.types.TypeEngine[str] | None = None) -> sa.Column[str]:
    return sa.Column(name, kind or sa.Text(), primary_key=True)


def _text(name: str, kind: sa.types.TypeEngine[str] | None = None) -> sa.Column[str]:
    return sa.Column(name, kind or sa.Text(), nullable=False)


def _text_or_empty(name: str, kind: sa.types.TypeEngine[str] | None = None) -> sa.Column[str]:
    return sa.Column(name, kind or sa.Text(), nullable=False, server_default="")


def upgrade() -> None:
    """Make the tables."""
    _make_calls()
    _make_shared()


def _make_calls() -> None:
    op.create_table(
        "calls",
        _key("id", sa.String(64)),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        _text_or_empty("instance"),
        _text_or_empty("sip_call_id"),
        _text_or_empty("session_id"),
        _text_or_empty("direction", sa.String(16)),
        _text_or_empty("from_uri"),
        _text_or_empty("to_uri"),
        _text_or_empty("from_number"),
        _text_or_empty("from_name"),
        _text_or_empty("to_number"),
        _text_or_empty("trunk"),
        _text_or_empty("source"),
        _text_or_empty("route"),
        _text_or_empty("transport", sa.String(16)),
        _text_or_empty("codec", sa.String(32)),
        _text_or_empty("security"),
        sa.Column("invited_at", _TIME, nullable=False),
        sa.Column("ringing_at", _TIME),
        sa.Column("answered_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("duration_seconds", sa.Float),
        sa.Column("talk_seconds", sa.Float),
        _text_or_empty("state", sa.String(32)),
        _text_or_empty("outcome", sa.String(32)),
        _text_or_empty("ended_by", sa.String(32)),
        _text_or_empty("why", sa.String(64)),
        sa.Column("sip_code", sa.Integer),
        _text_or_empty("reason"),
        _text_or_empty("detail"),
        _text_or_empty("disposition"),
        _text_or_empty("parent_id", sa.String(64)),
        _text_or_empty("variant", sa.String(16)),
        sa.Column("interruptions", sa.Integer),
        sa.Column("transfers", sa.Integer),
        sa.Column("response_p50_ms", sa.Float),
        sa.Column("response_p95_ms", sa.Float),
        sa.Column("cost", sa.Float),
        _text_or_empty("currency", sa.String(8)),
        sa.Column("mos", sa.Float),
        sa.Column("legal_hold", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("record", _JSON),
    )
    op.create_index("calls_invited_at", "calls", ["invited_at", "id"])
    op.create_index("calls_from_number", "calls", ["from_number"])
    op.create_index("calls_to_number", "calls", ["to_number"])
    op.create_index("calls_sip_call_id", "calls", ["sip_call_id"])
    op.create_index("calls_parent_id", "calls", ["parent_id"])
    op.create_table(
        "call_events",
        _key("id", sa.String(64)),
        _text("call_id", sa.String(64)),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        _text("type", sa.String(64)),
        sa.Column("data", _JSON),
    )
    op.create_index("call_events_call_id", "call_events", ["call_id", "sequence"])


def _make_shared() -> None:
    op.create_table(
        "leases",
        _key("id", sa.String(64)),
        _text("scope", sa.String(32)),
        _text("key"),
        _text("holder", sa.String(64)),
        _text("call_id", sa.String(64)),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("leases_scope_key", "leases", ["scope", "key"])
    op.create_index("leases_call_id", "leases", ["call_id"])
    op.create_table(
        "spending",
        _key("day", sa.String(10)),
        _key("scope", sa.String(32)),
        _key("key"),
        _key("holder", sa.String(64)),
        sa.Column("amount", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "callbacks",
        _key("id"),
        sa.Column("at", _TIME, nullable=False),
        _text("number"),
        _text("route"),
        _text("trunk"),
        _text("reason"),
        _text("call_id", sa.String(64)),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        _text("claimed_by", sa.String(64)),
        sa.Column("claimed_until", sa.Float, nullable=False),
    )
    op.create_index("callbacks_due", "callbacks", ["due"])
    op.create_table(
        "bans",
        _key("source", sa.String(64)),
        sa.Column("until", sa.Float, nullable=False),
        sa.Column("proven", sa.Boolean, nullable=False),
        _text("holder", sa.String(64)),
    )
    op.create_table(
        "request_keys",
        _key("id"),
        _text("request"),
        sa.Column("answer", sa.Text),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "canaries",
        _key("route"),
        _text("fingerprint", sa.String(16)),
        sa.Column("began_at", _TIME, nullable=False),
        _text("stopped_by"),
        _text("why"),
    )


TABLES = (
    "canaries",
    "request_keys",
    "bans",
    "callbacks",
    "spending",
    "leases",
    "call_events",
    "calls",
)


def downgrade() -> None:
    """Remove the tables."""
    for table in TABLES:
        op.drop_table(table)

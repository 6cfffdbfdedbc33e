# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls and their events."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)


def _text(name: str, kind: sa.types.TypeEngine[str] | None = None) -> sa.Column[str]:
    return sa.Column(name, kind or sa.Text(), nullable=False, server_default="")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "calls",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        _text("instance"),
        _text("sip_call_id"),
        _text("session_id"),
        _text("direction", sa.String(16)),
        _text("from_uri"),
        _text("to_uri"),
        _text("from_number"),
        _text("to_number"),
        _text("trunk"),
        _text("source"),
        _text("route"),
        _text("transport", sa.String(16)),
        _text("codec", sa.String(32)),
        _text("security"),
        sa.Column("invited_at", _TIME, nullable=False),
        sa.Column("ringing_at", _TIME),
        sa.Column("answered_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("duration_seconds", sa.Float),
        sa.Column("talk_seconds", sa.Float),
        _text("state", sa.String(32)),
        _text("outcome", sa.String(32)),
        _text("ended_by", sa.String(32)),
        _text("why", sa.String(64)),
        sa.Column("sip_code", sa.Integer),
        _text("reason"),
        _text("detail"),
        _text("disposition"),
        sa.Column("cost", sa.Float),
        _text("currency", sa.String(8)),
        sa.Column("mos", sa.Float),
        sa.Column("legal_hold", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("record", _JSON),
    )
    op.create_index("calls_invited_at", "calls", ["invited_at", "id"])
    op.create_index("calls_from_number", "calls", ["from_number"])
    op.create_index("calls_to_number", "calls", ["to_number"])
    op.create_index("calls_sip_call_id", "calls", ["sip_call_id"])
    op.create_table(
        "call_events",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("call_id", sa.String(64), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("data", _JSON),
    )
    op.create_index("call_events_call_id", "call_events", ["call_id", "sequence"])


def downgrade() -> None:
    """Remove the tables."""
    op.drop_table("call_events")
    op.drop_table("calls")

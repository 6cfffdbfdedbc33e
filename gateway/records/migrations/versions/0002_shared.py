# SPDX-License-Identifier: GPL-2.0-or-later
"""State that processes share; what reports need of calls."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)


def _key(name: str, kind: sa.types.TypeEngine[str] | None = None) -> sa.Column[str]:
    return sa.Column(name, kind or sa.Text(), primary_key=True)


def _text(name: str, kind: sa.types.TypeEngine[str] | None = None) -> sa.Column[str]:
    return sa.Column(name, kind or sa.Text(), nullable=False)


def upgrade() -> None:
    """Make the tables, and the columns of calls."""
    op.add_column("calls", sa.Column("parent_id", sa.String(64), nullable=False, server_default=""))
    op.add_column("calls", sa.Column("interruptions", sa.Integer))
    op.add_column("calls", sa.Column("transfers", sa.Integer))
    op.add_column("calls", sa.Column("response_p50_ms", sa.Float))
    op.add_column("calls", sa.Column("response_p95_ms", sa.Float))
    op.create_index("calls_parent_id", "calls", ["parent_id"])
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


def downgrade() -> None:
    """Remove them."""
    for table in ("request_keys", "bans", "callbacks", "spending", "leases"):
        op.drop_table(table)
    op.drop_index("calls_parent_id", "calls")
    for name in ("response_p95_ms", "response_p50_ms", "transfers", "interruptions", "parent_id"):
        op.drop_column("calls", name)

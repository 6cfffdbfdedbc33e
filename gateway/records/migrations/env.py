# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs migrations on the connection that :mod:`gateway.records.tables` gives (Alembic's hook)."""

from alembic import context

from gateway.records.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()

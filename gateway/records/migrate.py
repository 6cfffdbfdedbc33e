# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings the tables of the database to this version, by Alembic."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

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

# SPDX-License-Identifier: GPL-2.0-or-later
"""``[records]``, ``[api]``, ``[[webhook]]``: what is kept of calls, and who is told of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, ValidationInfo, model_validator

from gateway.config.source import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import FilePath, Flag, SecondsOrOff

Redacted = Literal["numbers", "dtmf"]
"""Kinds of data to mask: telephone numbers but for their last digits, and DTMF digits."""

DATABASE_NAME = "calls.sqlite3"

Days = SecondsOrOff
"""Days; 0 for any number of them."""


def _database(value: SecretStr, info: ValidationInfo) -> SecretStr:
    url = value.get_secret_value()
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        folder = (info.context or {}).get("folder")
        path = Path(url.removeprefix("sqlite:///")).expanduser()
        return SecretStr(f"sqlite:///{path if folder is None else Path(folder, path)}")
    if not re.match(r"postgres(ql)?://[^/]*/.", url):
        raise ValueError('must be "sqlite:///FILE" or "postgresql://USER:PASSWORD@HOST/NAME"')
    return value


class RecordSettings(Section):
    """``[records]``: what is kept of calls, where, and for how long (days)."""

    folder: FilePath | None = None
    database: Annotated[SecretStr, AfterValidator(_database)] | None = None
    events: Flag = False
    redact: tuple[Redacted, ...] = ()
    retention_days: Days = 0.0
    details_retention_days: Days = 0.0

    @model_validator(mode="after")
    def _spool_has_a_folder(self) -> Self:
        if self.database is not None and self.spool_folder is None:
            raise MisplacedError(
                ("folder",), "missing: records wait there while the database is away"
            )
        return self

    @property
    def database_url(self) -> str | None:
        """Where rows are kept: ``database``, or else a SQLite file in the folder."""
        if self.database is not None:
            return self.database.get_secret_value()
        return None if self.folder is None else f"sqlite:///{self.folder / DATABASE_NAME}"

    @property
    def spool_folder(self) -> Path | None:
        """Where rows wait for the database: the folder, or that of SQLite's file."""
        url = "" if self.database is None else self.database.get_secret_value()
        if self.folder is None and url.startswith("sqlite:///"):
            return Path(url.removeprefix("sqlite:///")).parent
        return self.folder

    def secrets(self) -> tuple[str, ...]:
        """The password of the database, alone and in its URL."""
        url = "" if self.database is None else self.database.get_secret_value()
        password = urlsplit(url).password
        return (url, password) if password else ()

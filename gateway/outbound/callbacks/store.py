# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps callbacks in a JSON file, which is replaced as a whole at each change."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import structlog

from gateway.outbound.callbacks.scheduled import ScheduledCallback

log = structlog.get_logger("callbacks")

_FIELDS = {field.name for field in fields(ScheduledCallback)}


class Store:
    """Reads and writes the file, in a thread; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = asyncio.Lock()

    async def load(self) -> list[ScheduledCallback]:
        """Read the file; one that cannot be read is renamed, and logged as an error."""
        if self._path is None:
            return []
        return await asyncio.to_thread(_load, self._path)

    async def save(self, callbacks: Iterable[ScheduledCallback]) -> None:
        """Write all callbacks, and wait for the disk. Raises OSError."""
        if self._path is None:
            return
        text = json.dumps([one.as_json() for one in callbacks], indent=1, ensure_ascii=False)
        async with self._lock:
            await asyncio.to_thread(_save, self._path, text)


def _load(path: Path) -> list[ScheduledCallback]:
    try:
        found = json.loads(path.read_text("utf-8"))
        callbacks = [
            ScheduledCallback(**{name: value for name, value in one.items() if name in _FIELDS})
            for one in found
        ]
        for callback in callbacks:
            assert callback.due.tzinfo is not None
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
        bad = path.with_name(path.name + ".bad")
        log.error(
            "callback.file_unreadable",
            file=str(path),
            why=type(error).__name__,
            kept=str(bad),
        )
        try:
            path.replace(bad)
        except OSError:
            log.error("callback.file_unreadable", file=str(path), why="it cannot be put aside")
        return []
    return callbacks


def _save(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    # It has numbers of callers, and what they want.
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)

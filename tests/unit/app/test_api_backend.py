# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics of a process whose disk hangs or fails."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.app import api_backend
from gateway.app.api_backend import Readings
from gateway.measures import Reading


class OfTheDisk(Readings):
    """Has the readings of the disk only, for a webhook that ``waiting`` tells of."""

    def __init__(self, waiting: Any) -> None:
        self.config: Any = SimpleNamespace(records=SimpleNamespace(spool_folder=None))
        self.stores: Any = SimpleNamespace(webhooks=SimpleNamespace(waiting=waiting), uploads=None)
        self._looking = None
        for part in ("_calls_now", "_trunks", "_servers_now", "_process"):
            setattr(self, part, lambda: iter(()))
        self.more = list

    def _kept(self, waiting: Mapping[str, Any], free: float | None) -> Any:
        return iter([("webhooks_pending", {"endpoint": name}, 1.0) for name in waiting])

    def _recorded(self, waiting: int | None) -> Any:
        return iter(())


PENDING: list[Reading] = [("webhooks_pending", {"endpoint": "a"}, 1.0)]


async def test_a_disk_that_hangs_is_asked_once_and_holds_no_reading_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_backend, "DISK_SECONDS", 0.01)
    go_on, asked = asyncio.Event(), list[bool]()

    async def waiting() -> dict[str, Any]:
        asked.append(True)
        await go_on.wait()
        return {"a": (1, None, 0)}

    readings = OfTheDisk(waiting)
    async with asyncio.timeout(15):
        assert [await readings.all() for _ in range(3)] == [[]] * 3
        assert len(asked) == 1
        go_on.set()
        monkeypatch.setattr(api_backend, "DISK_SECONDS", 15.0)
        assert await readings.all() == PENDING


async def test_a_spool_that_fails_costs_its_own_readings_only() -> None:
    async def waiting() -> dict[str, Any]:
        raise sqlite3.OperationalError("database or disk is full")

    assert await OfTheDisk(waiting).all() == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""The thread that asks the database that processes share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DataError

from gateway.app import shared_state
from gateway.app.shared_state import SharedState
from gateway.billing.ledger import Pair
from gateway.records import shared
from gateway.records.shared import Cap, LeaseRequest
from gateway.records.tables import spending
from tests.support.harness import eventually


async def test_a_defect_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out, defects = SharedState._carry_out, [ValueError("defect")]

    def broken(state: SharedState, batch: Any) -> None:
        if defects:
            raise defects.pop()
        carry_out(state, batch)

    monkeypatch.setattr(SharedState, "_carry_out", broken)
    config = SimpleNamespace(records=SimpleNamespace(database_url=None))
    state = SharedState(cast(Any, config), cast(Any, None))
    async with asyncio.timeout(30):
        with pytest.raises(ValueError, match="defect"):
            await state.run(lambda _connection: "first")
        assert await state.run(lambda _connection: "second") == "second"
        await state.stop()


BAD: Pair = ("number", "a\0b")
DAY = "2026-11-28"


class Costs:
    """In place of what a process knows of its costs."""

    holder, left = "p0", None

    def __init__(self) -> None:
        self.sums: dict[Pair, Decimal] = {}
        self.today = lambda: DAY
        self.others_spent = lambda _sums, _reserved: None

    def watched(self) -> set[Pair]:
        """Nothing."""
        return set()

    def pending_sums(self) -> dict[Pair, Decimal]:
        """What was not shared yet."""
        return dict(self.sums)

    def said(self, _day: str, sums: dict[Pair, Decimal]) -> None:
        """These were shared."""
        for pair in sums:
            del self.sums[pair]


def _refuse_bad(found: bool) -> None:
    """Raise as PostgreSQL does."""
    if found:
        raise DataError("INSERT", {}, Exception("cannot contain NUL (0x00) bytes"))


@asynccontextmanager
async def strict(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fail: str = "closed"
) -> AsyncIterator[tuple[SharedState, Costs]]:
    """State in a database that refuses a NUL in any key."""
    spend, admit, renew = shared.spend, shared.admit, shared.renew

    def checked_spend(connection: Connection, *given: Any, **more: Any) -> Any:
        amounts = more["amounts"] if "amounts" in more else given[2]
        _refuse_bad(any("\0" in key for _scope, key in amounts))
        return spend(connection, *given, **more)

    def checked_admit(connection: Connection, holder: str, wanted: LeaseRequest) -> Any:
        _refuse_bad(any("\0" in one.key for one in wanted.caps))
        return admit(connection, holder, wanted)

    def checked_renew(connection: Connection, *given: Any, **more: Any) -> None:
        held = more["held"] if "held" in more else given[1]
        _refuse_bad(any("\0" in one.key for one in held))
        renew(connection, *given, **more)

    for name, checked in (
        ("spend", checked_spend),
        ("admit", checked_admit),
        ("renew", checked_renew),
    ):
        monkeypatch.setattr(shared, name, checked)
    config = SimpleNamespace(
        records=SimpleNamespace(database_url=f"sqlite:///{folder / 'calls.sqlite3'}"),
        shared=SimpleNamespace(fail=fail, timeout_ms=30_000),
        access=SimpleNamespace(ban_after=None),
    )
    costs = Costs()
    state = SharedState(cast(Any, config), cast(Any, costs))
    try:
        yield state, costs
    finally:
        await state.stop()


def sums_of(connection: Connection) -> dict[Pair, int]:
    """What is in the database, by scope and key."""
    rows = connection.execute(spending.select())
    return {(row.scope, row.key): row.amount for row in rows}


@pytest.mark.parametrize(("fail", "rule"), [("closed", 'shared.fail = "closed"'), ("open", "")])
async def test_a_reservation_that_is_refused_is_decided_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: str, rule: str
) -> None:
    async with strict(tmp_path, monkeypatch, fail) as (state, _costs):
        told = await state.admit(LeaseRequest("c1", (Cap("source", "a\0b", 1, "rule"),)))
        assert told.endswith(rule)
        assert bool(told) == bool(rule)
        assert state.as_json()["leases"] == 0
        assert not state.unavailable
        assert await state.admit(LeaseRequest("c2", (Cap("source", "ab", 1, "rule"),))) == ""


async def test_a_sum_that_is_refused_is_dropped_and_the_others_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_state, "TICK_SECONDS", 0.01)
    async with strict(tmp_path, monkeypatch) as (state, costs):
        costs.sums = {("day", ""): Decimal(3), BAD: Decimal(1), ("number", "b"): Decimal(2)}
        await state.start()
        await eventually(lambda: not costs.sums, "all sums shared or dropped")
        units = shared.UNITS
        assert await state.run(sums_of) == {("day", ""): 3 * units, ("number", "b"): 2 * units}
        assert await state.admit(LeaseRequest("c1", (Cap("source", "ab", 1, "rule"),))) == ""


async def test_leases_are_renewed_whatever_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TICK_SECONDS", "RENEW_SECONDS"):
        monkeypatch.setattr(shared_state, name, 0.01)
    renewed: list[object] = []
    async with strict(tmp_path, monkeypatch) as (state, _costs):
        renew = shared.renew

        def counted(*given: Any, **more: Any) -> None:
            renewed.append(more["held"] if "held" in more else given[2])
            renew(*given, **more)

        monkeypatch.setattr(shared, "renew", counted)
        monkeypatch.setattr(shared, "sweep", lambda *_, **__: _refuse_bad(True))
        monkeypatch.setattr(state, "_spent", lambda: _refuse_bad(True))
        state._held["c1"] += shared.leases_of(LeaseRequest("c1", (Cap("source", "a", 1, ""),)))
        await state.start()
        await eventually(lambda: len(renewed) > 5, "further renewals")

# SPDX-License-Identifier: GPL-2.0-or-later
"""The sums of a day on the disk: over a restart, and among workers."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.billing.ledger import Ledger, LedgerStore, files_of_other_workers, read_sums

DAY = ("day", "")


def _spend(ledger: Ledger, amount: str, day: str = "d") -> Ledger:
    ledger.add(day, "r", "+49", Decimal(amount))
    return ledger


async def _kept(path: Path, ledger: Ledger) -> Ledger:
    keeper = LedgerStore(path, ledger)
    await keeper.start()
    await keeper.stop()
    return ledger


def test_a_restart_goes_on_with_the_days_sums(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "new" / "today.cost"
        first = Ledger()
        keeper = LedgerStore(path, first)
        await keeper.start()
        _spend(first, "0.0069656")
        await keeper.stop()
        assert path.stat().st_mode & 0o077 == 0
        second = await _kept(path, Ledger())
        assert second.spent("d", DAY) == Decimal("0.0069656")
        _spend(second, "1")
        assert second.spent("d", ("number", "+49")) == Decimal("1.0069656")
        _spend(second, "2", "the next day")
        assert (second.spent("d", DAY), second.spent("the next day", DAY)) == (
            Decimal(0),
            Decimal(2),
        )

    asyncio.run(run())


def test_workers_read_each_others_sums(tmp_path: Path) -> None:
    async def run() -> None:
        for worker, amount in enumerate(("1", "2", "4")):
            keeper = LedgerStore(tmp_path / f"today-{worker}.cost", ledger := Ledger())
            await keeper.start()
            _spend(ledger, amount)
            await keeper.stop()
        (tmp_path / "today-x.cost").write_text("other")
        (tmp_path / "today-9.cost").write_text("{broken")
        again = await _kept(tmp_path / "today-1.cost", Ledger())
        assert again.own.total == 2
        assert again.spent("d", DAY) == 7

    asyncio.run(run())
    alone = tmp_path / "today.cost"
    assert files_of_other_workers(alone) == []


@pytest.mark.parametrize("text", ["{", "[]", "\xff", json.dumps({"day": 1})])
def test_a_broken_file_is_left_behind(tmp_path: Path, text: str) -> None:
    path = tmp_path / "today.cost"
    path.write_bytes(text.encode("latin-1"))

    async def run() -> None:
        keeper = LedgerStore(path, ledger := Ledger())
        await keeper.start()
        assert ledger.spent("d", DAY) == 0
        _spend(ledger, "3")
        await keeper.stop()

    asyncio.run(run())
    sums = read_sums(path)
    assert sums is not None
    assert sums.total == 3


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def run() -> None:
        keeper = LedgerStore(tmp_path / "file" / "today.cost", ledger := Ledger())
        await keeper.start()
        _spend(ledger, "3")
        await keeper.stop()
        assert ledger.spent("d", DAY) == 3
        assert ledger.changed

    asyncio.run(run())


def test_nowhere_to_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = _spend(Ledger(), "3")

    async def run() -> None:
        keeper = LedgerStore(None, ledger)
        await keeper.start()
        await keeper.stop()

    asyncio.run(run())
    assert ledger.spent("d", DAY) == Decimal(3), "they hold for this process"
    assert list(tmp_path.iterdir()) == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""The sums of one day: all calls, each route, each calling number; and the file that keeps them.

Workers that share a machine have a file each, and read those of the others: so their budgets hold
for all of them together, a few seconds behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import structlog

from gateway.tasks import background

MAX_NUMBERS = 20_000
"""Calling numbers kept of a day. Money that further ones spend is in the other sums only."""


Pair = tuple[str, str]
"""A sum's scope (``day``, ``route``, ``number``) and its key; that of the day is empty."""


@dataclass(slots=True)
class DaySums:
    """Amounts that one process has spent on one day."""

    day: str = ""
    """ISO date."""
    total: Decimal = Decimal(0)
    calls: int = 0
    unpriced: int = 0
    """Responses and transcriptions of models that have no price."""
    routes: dict[str, Decimal] = field(default_factory=dict)
    numbers: dict[str, Decimal] = field(default_factory=dict)
    numbers_left_out: int = 0
    holder: str = ""
    """Which process's they are, in the database that processes share."""

    def pairs(self) -> dict[Pair, Decimal]:
        """Every sum, by scope and key."""
        return {
            ("day", ""): self.total,
            **{("route", name): amount for name, amount in self.routes.items()},
            **{("number", name): amount for name, amount in self.numbers.items()},
        }

    def as_json(self) -> dict[str, Any]:
        """The sums, decimals as text: they are exact."""
        return {
            "day": self.day,
            "total": str(self.total),
            "calls": self.calls,
            "unpriced": self.unpriced,
            "routes": {name: str(amount) for name, amount in self.routes.items()},
            "numbers": {name: str(amount) for name, amount in self.numbers.items()},
            "numbers_left_out": self.numbers_left_out,
        }

    @staticmethod
    def from_json(data: Any) -> DaySums:
        """Read what :meth:`as_json` wrote. Raises ValueError."""
        try:
            return DaySums(
                str(data["day"]),
                _amount(data["total"]),
                int(data["calls"]),
                int(data["unpriced"]),
                _amounts(data["routes"]),
                _amounts(data["numbers"]),
                int(data.get("numbers_left_out", 0)),
                str(data.get("holder", "")),
            )
        except (KeyError, TypeError, AttributeError, InvalidOperation) as error:
            raise ValueError(f"is no ledger: {type(error).__name__} {error}") from None


def _amount(value: Any) -> Decimal:
    amount = Decimal(value)
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"is no ledger: {value!r} is no amount")
    return amount


def _amounts(values: Mapping[str, Any]) -> dict[str, Decimal]:
    return {str(name): _amount(value) for name, value in values.items()}


class Ledger:
    """Today's sums of this process, beside those of other processes that share its budgets."""

    def __init__(self) -> None:
        self.own = DaySums()
        self.others: tuple[DaySums, ...] = ()
        self.changed = False
        """Since somebody last set it to False, who keeps the sums on the disk."""
        self.touched: set[Pair] = set()
        """Sums of our own that are not in the database as they are now."""

    def restore(self, sums: DaySums) -> None:
        """Go on from these, kept from before a restart."""
        self.own = sums
        self.touched = set(sums.pairs())

    def begin(self, day: str) -> None:
        self._turn(day)
        self.own.calls += 1
        self.changed = True

    def add(self, day: str, route: str, number: str, amount: Decimal | None) -> None:
        """Add an amount; None counts as usage without a price."""
        self._turn(day)
        own = self.own
        self.changed = True
        if amount is None:
            own.unpriced += 1
            return
        own.total += amount
        own.routes[route] = own.routes.get(route, Decimal(0)) + amount
        self.touched |= {("day", ""), ("route", route), ("number", number)}
        if number in own.numbers or len(own.numbers) < MAX_NUMBERS:
            own.numbers[number] = own.numbers.get(number, Decimal(0)) + amount
        else:
            own.numbers_left_out += 1

    def own_sum(self, day: str, pair: Pair) -> Decimal:
        scope, key = pair
        if self.own.day != day:
            return Decimal(0)
        if scope == "day":
            return self.own.total
        sums = self.own.routes if scope == "route" else self.own.numbers
        return sums.get(key, Decimal(0))

    def day(self, day: str) -> Decimal:
        return sum((sums.total for sums in self._of(day)), Decimal(0))

    def route(self, day: str, route: str) -> Decimal:
        """Amount spent by calls of one route on this day."""
        return sum((sums.routes.get(route, Decimal(0)) for sums in self._of(day)), Decimal(0))

    def number(self, day: str, number: str) -> Decimal:
        """Amount spent by calls of one number on this day."""
        return sum((sums.numbers.get(number, Decimal(0)) for sums in self._of(day)), Decimal(0))

    def _of(self, day: str) -> list[DaySums]:
        return [sums for sums in (self.own, *self.others) if sums.day == day]

    def _turn(self, day: str) -> None:
        if self.own.day != day:
            self.own = DaySums(day)
            self.touched.clear()


EVERY_SECONDS = 5.0
"""Between two looks at the files; what a crash forgets at most."""
STOP_SECONDS = 5.0
MAX_FILE_BYTES = 16 * 1024 * 1024

log = structlog.get_logger("cost")


class LedgerStore:
    """Keeps ``ledger`` at ``path``; None keeps it nowhere.

    A path whose name ends in a worker's number (``cost-0.ledger``) has brothers, which are read,
    unless the processes tell each other what they spend by a database (``alone``). There a process
    has the name :attr:`holder` from its start to its end, and the file has what a killed one may
    not have told: :attr:`left`.
    """

    def __init__(self, path: Path | None, ledger: Ledger, *, alone: bool = False) -> None:
        self.holder = secrets.token_hex(8)
        self._path = path
        self._ledger = ledger
        self._alone = alone
        self.left: DaySums | None = None
        """The sums of the process before this one, by its name."""
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    async def start(self) -> None:
        """Read what was kept, and begin. A file that cannot be read is left behind, and said."""
        if self._path is None:
            return
        try:
            kept = await asyncio.to_thread(read_sums, self._path)
            if kept is not None and self._alone and kept.holder:
                self.left, self._ledger.others = kept, (kept,)
            elif kept is not None:
                self._ledger.restore(kept)
        except (OSError, ValueError) as error:
            log.error("cost.state_unreadable", file=str(self._path), error=str(error))
        await self._look()
        self._task = background(self._run, "cost ledger")

    async def stop(self) -> None:
        """Keep the last sums; within ``STOP_SECONDS``."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._look()
        except TimeoutError:
            log.error("cost.state_write_failed", file=str(self._path))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self._look()

    async def _look(self) -> None:
        """Write the ledger if it has changed, and read those of other workers."""
        assert self._path is not None
        ledger = self._ledger
        told = {"holder": self.holder, **ledger.own.as_json()}
        text = json.dumps(told) if ledger.changed else None
        ledger.changed = False
        try:
            others = await asyncio.to_thread(_exchange, self._path, text, alone=self._alone)
            if not self._alone:
                ledger.others = others
            self._failing = False
        except OSError as error:
            ledger.changed = ledger.changed or text is not None
            if not self._failing:
                log.error("cost.state_write_failed", file=str(self._path), error=str(error))
            self._failing = True


def read_sums(path: Path) -> DaySums | None:
    """The sums in a file; None when there is none. Raises OSError and ValueError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    return DaySums.from_json(json.loads(raw))


def files_of_other_workers(path: Path) -> list[Path]:
    named = re.fullmatch(r"(.+)-\d+", path.stem)
    if named is None:
        return []
    shape = re.compile(re.escape(named[1]) + r"-\d+" + re.escape(path.suffix))
    return sorted(
        file for file in path.parent.iterdir() if file != path and shape.fullmatch(file.name)
    )


def _exchange(path: Path, text: str | None, *, alone: bool) -> tuple[DaySums, ...]:
    """Write our sums, if there is something new, and read the others'."""
    if text is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place, so that the others read whole files only.
        partial = path.with_name(f".{path.name}.part")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.chmod(0o600)  # it has telephone numbers in it
        os.replace(partial, path)  # noqa: PTH105
    found: list[DaySums] = []
    for file in files_of_other_workers(path) if path.parent.is_dir() and not alone else []:
        try:
            sums = read_sums(file)
        except (OSError, ValueError):
            continue  # its owner says so
        if sums is not None:
            found.append(sums)
    return tuple(found)

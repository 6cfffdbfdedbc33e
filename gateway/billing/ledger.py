# SPDX-License-Identifier: GPL-2.0-or-later
"""Money spent on one day, in all, by route and by calling number; and the file that keeps it.

Workers on one machine have a file each, and read those of the others: so their budgets hold for all
of them together, a few seconds behind.
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
"""Calling numbers with a sum on one day. What further ones spend is in the other sums only."""


Pair = tuple[str, str]
"""Scope of a sum (``day``, ``route`` or ``number``) and its key: "", a route, a number."""


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
    """Name of the process that spent them, in the database that processes share."""

    def pairs(self) -> dict[Pair, Decimal]:
        """Return every sum by scope and key."""
        return {
            ("day", ""): self.total,
            **{("route", name): amount for name, amount in self.routes.items()},
            **{("number", name): amount for name, amount in self.numbers.items()},
        }

    def amount(self, pair: Pair) -> Decimal:
        """Return the sum of one scope and key; 0 without one."""
        scope, key = pair
        if scope == "day":
            return self.total
        return (self.routes if scope == "route" else self.numbers).get(key, Decimal(0))

    def as_json(self) -> dict[str, Any]:
        """Return the sums; amounts are text, which is exact."""
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
    """Return an amount from JSON. Raises ValueError or InvalidOperation for none, or a negative
    one."""
    amount = Decimal(value)
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"is no ledger: {value!r} is no amount")
    return amount


def _amounts(values: Mapping[str, Any]) -> dict[str, Decimal]:
    """Return amounts by name from a JSON object: see :func:`_amount`."""
    return {str(name): _amount(value) for name, value in values.items()}


class Ledger:
    """Today's sums of this process, beside those of other processes that share its budgets."""

    def __init__(self) -> None:
        self.own = DaySums()
        self.others: tuple[DaySums, ...] = ()
        self.changed = False
        """Whether the sums differ from those on the disk; :class:`LedgerStore` sets it to False."""
        self.touched: set[Pair] = set()
        """Sums of this process that have changed since the shared database got them."""

    def restore(self, sums: DaySums) -> None:
        """Continue with the sums of this process from before a restart."""
        self.own = sums
        self.touched = set(sums.pairs())

    def begin(self, day: str) -> None:
        """Count a call that begins on a day; a new day begins with sums of 0."""
        self._begin_day(day)
        self.own.calls += 1
        self.changed = True

    def add(self, day: str, route: str, number: str, amount: Decimal | None) -> None:
        """Add what a call has spent on a day, a new one beginning with 0; None counts usage of a
        model that has no price.

        Beyond ``MAX_NUMBERS`` numbers, what a further one spends is in the sums of route and day
        only.
        """
        self._begin_day(day)
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
        """Return what this process has spent on a day; 0 for another day than that of its sums."""
        return self.own.amount(pair) if self.own.day == day else Decimal(0)

    def spent(self, day: str, pair: Pair) -> Decimal:
        """Return what all processes have spent on a day."""
        every = (self.own, *self.others)
        return sum((sums.amount(pair) for sums in every if sums.day == day), Decimal(0))

    def _begin_day(self, day: str) -> None:
        """Drop the sums of an earlier day, with what was not shared of them; nothing on the same
        day."""
        if self.own.day != day:
            self.own = DaySums(day)
            self.touched.clear()


EVERY_SECONDS = 5.0
"""Between two looks at the files; what a crash forgets at most."""
STOP_SECONDS = 5.0
MAX_FILE_BYTES = 16 * 1024 * 1024

log = structlog.get_logger("cost")


class LedgerStore:
    """Writes a ledger to a file every ``EVERY_SECONDS``, and reads those of other workers.

    Args:
        path: the file; None writes nothing. If its name ends in a worker's number
            (``cost-0.ledger``), those that differ in the number are the other workers'.
        alone: read no other files, since processes share what they spend by a database.
    """

    def __init__(self, path: Path | None, ledger: Ledger, *, alone: bool = False) -> None:
        self.holder = secrets.token_hex(8)
        """Name of this process in the shared database, new at each start."""
        self._path = path
        self._ledger = ledger
        self._alone = alone
        self.left: DaySums | None = None
        """Sums of the process before this one, which may not be in the shared database yet."""
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    async def start(self) -> None:
        """Read the file, and begin to write it; one that cannot be read is logged and replaced.
        Nothing without a path.

        Sums there are continued; but those of a process that shared them by a database are
        :attr:`left`, beside those of this process, which begin at 0.
        """
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
        await self._exchange()
        self._task = background(self._run, "cost ledger")

    async def stop(self) -> None:
        """Write the last sums, within ``STOP_SECONDS``, and write no more; nothing if it was not
        started."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._exchange()
        except TimeoutError:
            log.error("cost.state_write_failed", file=str(self._path))

    async def _run(self) -> None:
        """Exchange with the files every ``EVERY_SECONDS``, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self._exchange()

    async def _exchange(self) -> None:
        """Write the ledger if it has changed, and take those of other workers unless ``alone``; a
        failure is logged once and tried again at the next exchange."""
        assert self._path is not None
        ledger = self._ledger
        told = {"holder": self.holder, **ledger.own.as_json()}
        text = json.dumps(told) if ledger.changed else None
        ledger.changed = False
        try:
            others = await asyncio.to_thread(_exchange_files, self._path, text, alone=self._alone)
            if not self._alone:
                ledger.others = others
            self._failing = False
        except OSError as error:
            ledger.changed = ledger.changed or text is not None
            if not self._failing:
                log.error("cost.state_write_failed", file=str(self._path), error=str(error))
            self._failing = True


def read_sums(path: Path) -> DaySums | None:
    """Read the sums in a file; None if there is no file. Raises OSError or ValueError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    return DaySums.from_json(json.loads(raw))


def files_of_other_workers(path: Path) -> list[Path]:
    """Return the files beside ``path`` whose names differ from it only in the worker's number; none
    if its name has no number. Raises OSError."""
    named = re.fullmatch(r"(.+)-\d+", path.stem)
    if named is None:
        return []
    shape = re.compile(re.escape(named[1]) + r"-\d+" + re.escape(path.suffix))
    return sorted(
        file for file in path.parent.iterdir() if file != path and shape.fullmatch(file.name)
    )


def _exchange_files(path: Path, text: str | None, *, alone: bool) -> tuple[DaySums, ...]:
    """Write ``text``, if there is any, to ``path``, and read the files of other workers.

    Raises OSError. A file of theirs that cannot be read is left out.
    """
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

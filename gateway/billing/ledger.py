# SPDX-License-Identifier: GPL-2.0-or-later
"""The sums of one day: all calls, each route, each calling number. Pure: the day is passed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

MAX_NUMBERS = 20_000
"""Calling numbers kept of a day. Money that further ones spend is in the other sums only."""


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

    def restore(self, sums: DaySums) -> None:
        """Go on from these, kept from before a restart."""
        self.own = sums

    def begin(self, day: str) -> None:
        """A call begins."""
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
        if number in own.numbers or len(own.numbers) < MAX_NUMBERS:
            own.numbers[number] = own.numbers.get(number, Decimal(0)) + amount
        else:
            own.numbers_left_out += 1

    def day(self, day: str) -> Decimal:
        """Amount spent on this day."""
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

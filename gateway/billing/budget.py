# SPDX-License-Identifier: GPL-2.0-or-later
"""Budgets: what may be spent, and when a call is told. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar

from gateway.call.plan import BudgetPlan
from gateway.config import Config
from gateway.dialplan import Route
from gateway.text import money


class Scope(StrEnum):
    """What a budget limits."""

    CALL = "call"
    NUMBER = "number"
    """The calls of one calling number on one day."""
    ROUTE = "route"
    """The calls of one route on one day."""
    DAY = "day"
    """The calls of one day."""


class Level(StrEnum):
    """Thresholds of a budget."""

    WARN = "warn"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Reached:
    """A budget is spent, or nearly."""

    level: Level
    scope: Scope
    spent: Decimal
    limit: Decimal

    def __str__(self) -> str:
        return f"{self.scope.value}: {money(self.spent)} of {money(self.limit)}"


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits in the currency of the prices; None is no limit."""

    call: Decimal | None = None
    number: Decimal | None = None
    route: Decimal | None = None
    day: Decimal | None = None
    warning_threshold: Decimal = Decimal("0.8")
    """The part of a limit at which a call is warned; 1 never warns."""

    def limit(self, scope: Scope) -> Decimal | None:
        """The limit of one scope."""
        found: Decimal | None = getattr(self, scope.value)
        return found


class Watch:
    """Says once for a call that a budget is nearly spent, and once that it is."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._told: set[Level] = set()

    def look(self, spent: dict[Scope, Decimal]) -> Reached | None:
        """Return what has been reached, given the amount spent by scope; the limit goes first."""
        for level in (Level.LIMIT, Level.WARN):
            if level in self._told or Level.LIMIT in self._told:
                continue
            for scope, amount in spent.items():
                limit = self._budgets.limit(scope)
                if limit is None:
                    continue
                if amount >= (
                    limit if level is Level.LIMIT else limit * self._budgets.warning_threshold
                ):
                    self._told.add(level)
                    return Reached(level, scope, amount, limit)
        return None


_T = TypeVar("_T")


def budgets_of(config: Config, route: Route) -> Budgets:
    """Return the budgets of a call on ``route``."""
    base, own = config.cost.budget, route.budget
    return Budgets(
        call=_limit(_either(own.per_call, base.per_call)),
        number=_limit(_either(own.per_caller, base.per_caller)),
        route=_limit(own.per_day or 0.0),
        day=_limit(base.per_day),
        warning_threshold=Decimal(str(_either(own.warning_threshold, base.warning_threshold))),
    )


def budget_plan(config: Config, route: Route) -> BudgetPlan:
    """Return the warning, goodbye and transfer of a call's budgets."""
    base, own = config.cost.budget, route.budget
    return BudgetPlan(
        warning_message=_either(own.warning_message, base.warning_message),
        warning_response=_either(own.warning_response, base.warning_response),
        goodbye=_either(own.goodbye, base.goodbye),
        transfer_to=own.transfer_to or "",
    )


def transcriber_of(session: Any) -> str:
    """The model that transcribes the caller, of a session object; empty without one."""
    for key in ("audio", "input", "transcription", "model"):
        session = session.get(key) if isinstance(session, dict) else None
    return session if isinstance(session, str) else ""


def _limit(amount: float) -> Decimal | None:
    return Decimal(str(amount)) if amount else None


def _either(first: _T | None, second: _T) -> _T:
    return second if first is None else first

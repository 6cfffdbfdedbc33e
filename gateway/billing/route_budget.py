"""The budgets of a route. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeVar

from gateway.billing.budget import Budgets
from gateway.call.plan import BudgetPlan
from gateway.config import Config
from gateway.dialplan import Route

_T = TypeVar("_T")


def budgets_of(config: Config, route: Route) -> Budgets:
    """What calls of ``route`` may spend."""
    base, own = config.cost.budget, route.budget
    return Budgets(
        call=_limit(_either(own.call, base.call)),
        number=_limit(_either(own.number, base.number)),
        route=_limit(own.day or 0.0),
        day=_limit(base.day),
        warn_at=Decimal(str(_either(own.warn_at, base.warn_at))),
    )


def budget_plan(config: Config, route: Route) -> BudgetPlan:
    """What is said and done about them in a call."""
    base, own = config.cost.budget, route.budget
    return BudgetPlan(
        warn=_either(own.warn, base.warn),
        warn_respond=_either(own.warn_respond, base.warn_respond),
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

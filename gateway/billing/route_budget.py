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
        call=_limit(_either(own.per_call, base.per_call)),
        number=_limit(_either(own.per_caller, base.per_caller)),
        route=_limit(own.per_day or 0.0),
        day=_limit(base.per_day),
        warn_at=Decimal(str(_either(own.warning_threshold, base.warning_threshold))),
    )


def budget_plan(config: Config, route: Route) -> BudgetPlan:
    """What is said and done about them in a call."""
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

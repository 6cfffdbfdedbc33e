"""``[cost]``: prices, the sums of a day, and budgets."""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, Strict

from gateway.config.validate import Section
from gateway.config.values import FilePath, Flag, Text, Typed

Money = Annotated[float, Strict(), Field(ge=0), Typed]
Part = Annotated[float, Strict(), Field(gt=0, le=1), Typed]

WRAP_UP = (
    "The time for this phone call is nearly used up. Bring the conversation to a good end within "
    "your next answers, and do not begin anything new."
)
GOODBYE = "I am sorry, the time for this call is used up. Thank you for calling. Goodbye."


def _zone(value: str) -> str:
    if value:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError('is no known time zone; names look like "Europe/Berlin"') from None
    return value


class BudgetSettings(Section):
    """``[cost.budget]``: what may be spent, in the currency of the prices; 0 is no limit."""

    per_call: Money = 0.0
    per_caller: Money = 0.0
    per_day: Money = 0.0
    warning_threshold: Part = 0.8
    warning_message: Text = WRAP_UP
    warning_response: Flag = False
    goodbye: Text = GOODBYE


class CostSettings(Section):
    """``[cost]``: the prices, and where the sums of a day are kept."""

    prices: FilePath | None = None
    state_file: FilePath | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = ""
    budget: BudgetSettings = Field(default_factory=BudgetSettings)

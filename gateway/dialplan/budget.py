"""``[route.budget]`` and ``[route.records]``."""

from __future__ import annotations

from typing import Literal

from gateway.config.budget import Money, Part
from gateway.config.validate import Section
from gateway.config.values import Flag, Text


class RouteBudget(Section):
    """In place of ``[cost.budget]``, for this route; ``per_day`` is for all calls of this route."""

    per_call: Money | None = None
    per_caller: Money | None = None
    per_day: Money | None = None
    warning_threshold: Part | None = None
    warning_message: Text | None = None
    warning_response: Flag | None = None
    goodbye: Text | None = None
    transfer_to: Text | None = None


class RouteRecords(Section):
    """In place of ``[records]``, for this route."""

    events: Flag | None = None
    redact: tuple[Literal["numbers", "dtmf"], ...] | None = None

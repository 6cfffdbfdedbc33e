# SPDX-License-Identifier: GPL-2.0-or-later
"""The function behind a route's tool ``schedule_callback``."""

from __future__ import annotations

from functools import partial

from gateway.call.tools import definitions
from gateway.dialplan import Route
from gateway.outbound.callbacks.scheduled import Rules
from gateway.outbound.callbacks.scheduler import CallbackScheduler
from gateway.planning.tools import schedule_plan
from gateway.tools.functions import Function


def function_of(route: Route, scheduler: CallbackScheduler, timeout: float) -> Function | None:
    """Return the function behind the route's tool; None where the route has none."""
    given = route.schedule_callback
    told = definitions.schedule_callback(schedule_plan(route), given.description)
    if told is None:
        return None
    rules = Rules(
        route=given.route or route.name,
        trunk=given.trunk or "",
        allow=given.allowed_numbers,
        max_days=given.max_days,
        zone=route.timezone,
    )
    return Function(
        name=told["name"],
        description=told["description"],
        parameters=told["parameters"],
        run=partial(scheduler.take, rules),
        timeout=timeout,
        max_result_chars=1000,
    )

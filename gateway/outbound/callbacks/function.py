"""The tool ``schedule_callback`` of each route, and what is wrong with how it is written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from gateway.call.tools import definitions
from gateway.config import Config
from gateway.config.problems import Problem
from gateway.config.validate import suggestion
from gateway.dialplan import Dialplan, Route
from gateway.dialplan.load import Origin
from gateway.outbound.callbacks.scheduled import Rules
from gateway.outbound.callbacks.scheduler import CallbackScheduler
from gateway.planning.tools import schedule_plan
from gateway.tools.functions import Function


def function_of(route: Route, book: CallbackScheduler, timeout: float) -> Function | None:
    """What the route's tool runs; None where it does not have it."""
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
        run=partial(book.take, rules),
        timeout=timeout,
        max_result_chars=1000,
    )


def problems(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """What keeps promises from being kept."""
    settings = config.callbacks
    names = [route.name for route in dialplan.routes]
    trunks = [trunk.name for trunk in config.trunk]
    for route in dialplan.routes:
        given = route.schedule_callback
        if not given.enabled:
            continue
        wrong = partial(_problem, route, dialplan.origins[route.name])
        if not (settings.file or settings.url):
            yield wrong("", "promises go nowhere: set callbacks.file or callbacks.url")
        if given.route is not None and given.route not in names:
            message = f'there is no route "{given.route}"' + suggestion(given.route, names)
            yield wrong(".route", message)
        if given.trunk is not None and given.trunk not in trunks:
            message = f'there is no trunk "{given.trunk}"' + suggestion(given.trunk, trunks)
            yield wrong(".trunk", message)
        if settings.auto_dial and given.trunk is None:
            yield wrong(
                ".trunk", "is needed: numbers are called through a trunk (callbacks.auto_dial)"
            )
        if not (config.outbound.allowed_prefixes or given.allowed_numbers is not None):
            message = "needs outbound.allowed_prefixes: anybody can write any number into From"
            yield wrong("", message)
        if settings.auto_dial and not config.outbound.enabled:
            yield wrong("", "callbacks.auto_dial needs outbound.enabled")


def _problem(route: Route, origin: Origin, key: str, message: str) -> Problem:
    where = f"route {route.name}, schedule_callback{key}"
    return Problem(origin.file, origin.line, where, message)

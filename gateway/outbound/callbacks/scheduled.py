# SPDX-License-Identifier: GPL-2.0-or-later
"""One scheduled callback: what the model may ask for, and what is kept. Pure."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from gateway.call.tools.arguments import NUMBER
from gateway.tools.api import ToolError

MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Rules:
    """What a route allows: see :class:`gateway.dialplan.tool_sections.ScheduleCallback`."""

    route: str
    """Of the call to be placed."""
    trunk: str
    allow: re.Pattern[str] | None
    max_days: int
    zone: tzinfo | None
    """Of times that name no offset; None is the machine's."""


@dataclass(frozen=True, slots=True)
class ScheduledCallback:
    """A call to be placed at its time."""

    id: str
    at: str
    """UTC, ISO 8601."""
    number: str
    route: str
    trunk: str
    reason: str
    call: str
    """In which it was scheduled."""
    tries: int = 0

    @property
    def due(self) -> datetime:
        """The time at which it is to be placed."""
        return datetime.fromisoformat(self.at)

    def as_json(self) -> dict[str, Any]:
        """Return it for the file, the operator's service, and ``gateway status``."""
        return asdict(self)


def callback_of(
    given: dict[str, Any], rules: Rules, caller: str, call: str, now: datetime
) -> tuple[ScheduledCallback, str]:
    """Return the callback that the model asks for, and its time in the route's time zone.

    Args:
        given: arguments that fit the tool's schema.
        caller: the number that calls now, as the route's variable ``from`` has it.
        call: the id of that call.
        now: with a time zone.

    Raises ToolError, with what is wrong.
    """
    due = _time(str(given["at"]), rules, now)
    number = _number(str(given.get("number") or ""), rules, caller)
    # One call to a number: a later callback takes the place of an earlier one.
    callback = ScheduledCallback(
        id=f"{number}/{rules.route}",
        at=due.astimezone(UTC).isoformat(timespec="seconds"),
        number=number,
        route=rules.route,
        trunk=rules.trunk,
        reason=" ".join(str(given.get("reason") or "").split())[:MAX_REASON],
        call=call,
    )
    return callback, f"{due.astimezone(rules.zone):%Y-%m-%d %H:%M}"


def _time(text: str, rules: Rules, now: datetime) -> datetime:
    try:
        due = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ToolError(f"at: {text!r} is no time; write it like 2026-11-20T14:30") from None
    if due.tzinfo is None:
        due = due.astimezone() if rules.zone is None else due.replace(tzinfo=rules.zone)
    if due <= now:
        local = now.astimezone(rules.zone)
        raise ToolError(f"at: {text} is in the past; it is {local:%Y-%m-%dT%H:%M} now")
    if due > now + timedelta(days=rules.max_days):
        raise ToolError(f"at: {text} is too far ahead, at most {rules.max_days} days")
    return due


def _number(wanted: str, rules: Rules, caller: str) -> str:
    number = _plain(wanted) or _plain(caller)
    if not NUMBER.fullmatch(number) or not any(char.isdigit() for char in number):
        raise ToolError(
            f"number: {wanted!r} is no telephone number"
            if wanted
            else "number: the caller's is not known; ask for it"
        )
    if number != _plain(caller) and not (rules.allow and rules.allow.fullmatch(number)):
        raise ToolError(f"number: {number} may not be called; the caller's own may")
    return number


def _plain(number: str) -> str:
    return re.sub(r"[\s()./-]", "", number)

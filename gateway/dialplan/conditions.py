# SPDX-License-Identifier: GPL-2.0-or-later
"""What routes can match: the facts of an INVITE, and conditions on hours, headers and networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainSerializer

from gateway.config.source import MisplacedError, Section
from gateway.config.values import Network, Regex, Text, network_of


@dataclass(frozen=True, slots=True)
class InviteFacts:
    """Properties of an INVITE that conditions of routes can match.

    Users are decoded (no percent signs, no parameters); ``at`` must have a time zone. ``headers``
    has a tuple of values for each name, in any case. ``pai`` are the numbers that are asserted,
    ``diversion`` those that the call was diverted from, the last one first.
    """

    to_user: str
    from_user: str
    to_uri: str
    from_uri: str
    source_ip: str
    at: datetime
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    trunk: str | None = None
    to_name: str = ""
    from_name: str = ""
    call_id: str = ""
    """The gateway's own id of the call."""
    sip_call_id: str = ""
    pai: tuple[str, ...] = ()
    pai_name: str = ""
    diversion: tuple[str, ...] = ()
    diversion_reason: str = ""


def header_conditions(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse a malformed or repeated name of a SIP header in ``headers``. Raises MisplacedError."""
    names = [name.lower() for name in value]
    for name in value:
        if not re.fullmatch(r"[!%*+.`'~_\-0-9A-Za-z]+", name):
            raise MisplacedError((name,), "is not a valid SIP header name")
        if names.count(name.lower()) > 1:
            raise MisplacedError((name,), "is used twice (header names do not tell case apart)")
    return MappingProxyType(dict(value))


def networks_of(value: object) -> tuple[Network, ...]:
    """Parse ``source``: one address or network, or a list. Raises ValueError."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("an empty list matches nobody; leave the key out to match everybody")
    expected = 'must be an address or network like "192.0.2.0/24"'
    networks: list[Network] = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{expected}, or a list of them")
        networks.append(network_of(text, expected))
    return tuple(networks)


def hours_of(value: object) -> tuple[Hours, ...]:
    """Parse ``hours``: one span, or a list. Raises ValueError."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("an empty list never matches; leave the key out to match at all times")
    return tuple(parse_hours(text) for text in texts)


def timezone_of(value: object) -> ZoneInfo:
    """Parse ``timezone``: a name of the IANA database. Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError('must be a time zone\'s name like "Europe/Berlin"')
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError('is not a known time zone; an example is "Europe/Berlin"') from None


DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WRITTEN = re.compile(
    r"(?:(?P<days>[a-z,\- ]+?)\s+)?(?P<start>\d\d?:\d\d)\s*-\s*(?P<end>\d\d?:\d\d)"
)


@dataclass(frozen=True, slots=True)
class Hours:
    """One span of the day, on some weekdays (0 is Monday); minutes count from midnight.

    The first minute belongs to it, the last does not. When ``end`` is not after ``start`` the
    span goes on past midnight and belongs to the day on which it began.
    """

    days: frozenset[int]
    start: int
    end: int
    written: str

    def hold(self, at: datetime, zone: ZoneInfo) -> bool:
        """Return whether ``at`` (with time zone) is in this span on a wall clock in ``zone``."""
        local = at.astimezone(zone)
        minute = local.hour * 60 + local.minute
        today = local.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        yesterday = (today - 1) % 7
        return (today in self.days and minute >= self.start) or (
            yesterday in self.days and minute < self.end
        )


def parse_hours(text: object) -> Hours:
    """Read ``[DAYS ]HH:MM-HH:MM``; raises ValueError saying what cannot be read."""
    match = _WRITTEN.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    if match is None:
        raise ValueError('must be like "mon-fri 08:00-18:00", "sat,sun 10:00-14:00", "22:00-06:00"')
    start, end = _minute(match["start"]), _minute(match["end"])
    if start == end:
        raise ValueError("begin and end at the same minute; a whole day is 00:00-24:00")
    if start == 24 * 60:
        raise ValueError("24:00 can only be an end")
    return Hours(_days(match["days"]), start, end, match.string)


def _minute(text: str) -> int:
    hour, minute = (int(part) for part in text.split(":"))
    if minute > 59 or hour * 60 + minute > 24 * 60:
        raise ValueError(f"{text} is no time of day")
    return hour * 60 + minute


def _days(text: str | None) -> frozenset[int]:
    """Parse ``mon-fri`` or ``sat,sun`` to numbers of weekdays. Raises ValueError."""
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = (name.strip() for name in part.partition("-"))
        begin = _day(first)
        final = _day(last) if dash else begin
        days.update((begin + step) % 7 for step in range((final - begin) % 7 + 1))
    return frozenset(days)


def _day(name: str) -> int:
    if name not in DAYS:
        raise ValueError(f"{name!r} is not a weekday; use {', '.join(DAYS)}")
    return DAYS.index(name)


class RouteConditions(Section):
    """Which calls a route takes: its keys of ``[[route]]``. All that are given must hold."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    to: Regex | None = None
    from_: Annotated[Regex | None, Field(alias="from")] = None
    pai: Regex | None = None
    diversion: Regex | None = None
    headers: Annotated[
        Mapping[str, Regex],
        AfterValidator(header_conditions),
        PlainSerializer(lambda value: dict(value)),
    ] = Field(default_factory=lambda: MappingProxyType({}))
    source: Annotated[tuple[Network, ...], BeforeValidator(networks_of)] = ()
    trunk: Text | None = None
    hours: Annotated[tuple[Hours, ...], BeforeValidator(hours_of)] = ()
    timezone: Annotated[ZoneInfo | None, BeforeValidator(timezone_of)] = None

    def variable_names(self) -> list[str]:
        """Return the named groups of all conditions, which become variables of a call."""
        regexes = [self.to, self.from_, self.pai, self.diversion, *self.headers.values()]
        return [name for regex in regexes if regex is not None for name in regex.groupindex]

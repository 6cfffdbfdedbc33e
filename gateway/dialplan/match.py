# SPDX-License-Identifier: GPL-2.0-or-later
"""Matching of calls and routes. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from zoneinfo import ZoneInfo

from gateway.dialplan.conditions import DAYS
from gateway.dialplan.models import Route
from gateway.dialplan.variables import values_of
from gateway.text import searched


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


@dataclass(frozen=True, slots=True)
class Match:
    """The route of a call, with the named groups of its regular expressions.

    ``values`` has what each variable stands for in this call's texts; ``cleaned`` names those of
    which something had to be taken away (:func:`gateway.dialplan.variables.clean`).
    """

    route: Route
    variables: Mapping[str, str]
    values: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cleaned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first condition of a route that does not hold: its key, its text, what was there."""

    condition: str
    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Verdict of one route on a call: ``refusal`` is None when it would take it."""

    route: Route
    refusal: Refusal | None

    def __str__(self) -> str:
        if self.refusal is None:
            return f"{self.route.name}: matches"
        return (
            f"{self.route.name}: {self.refusal.condition} wants {self.refusal.wanted}, "
            f"is {self.refusal.found}"
        )


def judge(route: Route, facts: InviteFacts) -> Match | Refusal:
    """Try the conditions of ``route`` in the order of their keys in the manual."""
    if not route.enabled:
        return Refusal("enabled", "true", "false")
    variables: dict[str, str] = {}
    for key, regex, texts in (
        ("to", route.to, (facts.to_user,)),
        ("from", route.from_, (facts.from_user,)),
        ("pai", route.pai, facts.pai),
        ("diversion", route.diversion, facts.diversion),
    ):
        if regex is not None and not _search(regex, texts, variables):
            return Refusal(key, repr(regex.pattern), ", ".join(map(repr, texts)) or "absent")
    if route.headers:
        present = {name.lower(): values for name, values in facts.headers.items()}
        for name, regex in route.headers.items():
            values = present.get(name.lower(), ())
            if not _search(regex, values, variables):
                found = ", ".join(map(repr, values)) or "absent"
                return Refusal(f"headers.{name}", repr(regex.pattern), found)
    if route.source and not _within(route, facts.source_ip):
        return Refusal("source", ", ".join(map(str, route.source)), facts.source_ip)
    if route.trunk is not None and route.trunk != facts.trunk:
        return Refusal("trunk", route.trunk, facts.trunk or "none")
    if route.timezone is not None and route.hours and not _open(route, route.timezone, facts):
        local = facts.at.astimezone(route.timezone)
        wanted = ", ".join(hours.written for hours in route.hours)
        found = f"{DAYS[local.weekday()]} {local:%H:%M}"
        return Refusal("hours", f"{wanted} ({route.timezone})", found)
    known, cleaned = values_of(
        route.name, facts, variables, route.timezone, route.header_variables()
    )
    return Match(route, MappingProxyType(variables), MappingProxyType(known), cleaned)


def _open(route: Route, zone: ZoneInfo, facts: InviteFacts) -> bool:
    return any(hours.hold(facts.at, zone) for hours in route.hours)


def _search(regex: re.Pattern[str], texts: tuple[str, ...], variables: dict[str, str]) -> bool:
    """Whether one of ``texts`` matches; its named groups (absent ones empty) become variables."""
    for text in texts:
        if (match := searched(regex, text)) is not None:
            variables.update(match.groupdict(default=""))
            return True
    return False


def _within(route: Route, source_ip: str) -> bool:
    try:
        address = ipaddress.ip_address(source_ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # an IPv4 caller on a dual-stack socket
    return any(address in network for network in route.source)

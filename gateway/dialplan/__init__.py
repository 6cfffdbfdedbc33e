# SPDX-License-Identifier: GPL-2.0-or-later
"""Dialplans: :func:`load_dialplan` reads the routes of a folder, and :meth:`Dialplan.match` finds
the one that takes a call; ``route`` has what a route may contain.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ValidationError

from gateway.config.source import (
    ConfigError,
    KeyPath,
    Problem,
    TomlSource,
    dotted,
    known_keys,
    plain,
    problems_of,
    read_toml,
    suggestion,
)
from gateway.dialplan.conditions import DAYS, InviteFacts
from gateway.dialplan.route import Route, call_settings
from gateway.dialplan.route_session import LIVE_SET_BY_GATEWAY, SET_BY_GATEWAY, judge_live
from gateway.dialplan.session_settings import judge_session
from gateway.dialplan.tool_sections import ARGUMENT, WebTool
from gateway.dialplan.variables import BUILT_IN, names_in, values_of
from gateway.text import searched

__all__ = [
    "Dialplan",
    "Explanation",
    "InviteFacts",
    "Match",
    "Origin",
    "Refusal",
    "Route",
    "call_settings",
    "dialplan_files",
    "load_dialplan",
]


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
    """The first condition of a route that does not hold: key, expected value, value in the call."""

    condition: str
    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether a route matches a call; ``refusal`` is None if it does."""

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
    """Return the match of a call with a route, or its first condition that does not hold."""
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
    """Return whether one of ``texts`` matches; adds its named groups to ``variables``."""
    for text in texts:
        if (match := searched(regex, text)) is not None:
            variables.update(match.groupdict(default=""))
            return True
    return False


def _within(route: Route, source_ip: str) -> bool:
    """Return whether a source address is in one of a route's networks."""
    try:
        address = ipaddress.ip_address(source_ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # an IPv4 caller on a dual-stack socket
    return any(address in network for network in route.source)


class Origin(NamedTuple):
    """File and line (from 1) of a route."""

    file: Path
    line: int
    lines: Mapping[KeyPath, int] = MappingProxyType({})
    """Lines of its keys, by their path in the route."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Dialplan:
    """Routes in order; the first that matches takes the call."""

    routes: tuple[Route, ...]
    origins: Mapping[str, Origin] = field(default_factory=lambda: MappingProxyType({}))
    """Place of each route, by its name."""
    tools: tuple[WebTool, ...] = ()
    """Functions that routes may name: the ``[[tool]]`` of all files."""
    unsure: tuple[Problem, ...] = ()
    """Session fields that this gateway does not know and passes on: they may be newer than it."""

    def problem(self, route: str, path: KeyPath, message: str) -> Problem:
        """Return a problem at ``path`` in a route, with the line of that key or the table."""
        origin, near = self.origins[route], path
        while near and near not in origin.lines:
            near = near[:-1]
        line = origin.lines.get(near, origin.line)
        return Problem(origin.file, line, f"route {route}, {dotted(path)}", message)

    def match(self, facts: InviteFacts, others: list[Explanation] | None = None) -> Match | None:
        """Return the first route that matches; None where the call gets a 404 (RFC 3261 21.4.5).

        ``others`` gets the routes before it, with the conditions that do not hold.
        """
        for route in self.routes:
            verdict = judge(route, facts)
            if isinstance(verdict, Match):
                return verdict
            if others is not None:
                others.append(Explanation(route, verdict))
        return None

    def explain(self, facts: InviteFacts) -> tuple[Explanation, ...]:
        """Return whether and why not each route matches, those behind the first match, too."""
        verdicts = ((route, judge(route, facts)) for route in self.routes)
        return tuple(
            Explanation(route, verdict if isinstance(verdict, Refusal) else None)
            for route, verdict in verdicts
        )

    def secrets(self) -> tuple[str, ...]:
        """Return every secret text of routes and tools, for a log filter that lets none through."""
        return tuple(secret for one in (*self.routes, *self.tools) for secret in one.secrets())


def dialplan_files(folder: Path) -> list[Path]:
    """Return the ``*.toml`` of a folder by name, without hidden ones, which editors leave.

    Raises ConfigError for a folder that cannot be read.
    """
    try:
        found = sorted(folder.iterdir(), key=lambda file: file.name)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError([Problem(folder, 1, "", "is no folder")]) from None
    except OSError as error:
        said = f"cannot be read: {error.strerror}"
        raise ConfigError([Problem(folder, 1, "", said)]) from None
    return [one for one in found if one.name.endswith(".toml") and one.name[0] != "."]


def load_dialplan(
    folder: Path,
    environ: Mapping[str, str] | None = None,
    unknown: Literal["warn", "error"] = "warn",
) -> Dialplan:
    """Read every ``*.toml`` of ``folder``; ``environ`` stands in for the process's environment.

    ``unknown`` says whether settings of a session that this gateway does not know are mistakes.
    Raises ConfigError with every problem of every file.
    """
    problems: list[Problem] = []
    routes: list[Route] = []
    origins: dict[str, Origin] = {}
    tools: dict[str, WebTool] = {}
    unsure: list[Problem] = []
    for file in dialplan_files(folder):
        try:
            source = read_toml(file, environ)
        except ConfigError as error:
            problems += error.problems
            continue
        routes += _routes_of(source, origins)
        _add_tools(source, tools)
        for problem, is_new in _judge_sessions(source):
            (unsure if is_new and unknown == "warn" else problems).append(problem)
        problems += source.problems
    if problems:
        raise ConfigError(problems)
    return Dialplan(tuple(routes), MappingProxyType(origins), tuple(tools.values()), tuple(unsure))


_M = TypeVar("_M", bound=BaseModel)


def _valid(source: TomlSource, key: str, model: type[_M]) -> Iterator[tuple[KeyPath, _M]]:
    """Yield path and model of each valid ``[[key]]`` of one file; report what is wrong with others
    to ``source``."""
    tables = source.data.get(key, [])
    if not isinstance(tables, list):
        source.report((key,), f"must be an array of tables: write [[{key}]]")
        return
    for index, table in enumerate(tables):
        try:
            made = model.model_validate(table, context={"folder": source.file.absolute().parent})
        except ValidationError as error:
            source.problems.extend(problems_of(error, model, source, (key, index)))
        else:
            yield (key, index), made


def _header(name: str, value: object) -> str:
    """Return ``: [name]`` for a table, ``: [[name]]`` for an array of tables, "" for a value."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return f": [[{name}]]"
    return f": [{name}]" if isinstance(value, dict) else ""


def _routes_of(source: TomlSource, origins: dict[str, Origin]) -> list[Route]:
    """Return the valid routes of one file; report what is wrong with others to ``source``."""
    for key in source.data:
        if key not in ("route", "tool"):
            header = _header(f"route.{key}", source.data[key])
            home = f"; it belongs to a route{header}, below its [[route]]"
            other = suggestion(key, ["route", "tool"])
            source.report((key,), "unknown key" + (home if key in known_keys(Route) else other))
    routes: list[Route] = []
    for path, route in _valid(source, "route", Route):
        if route.name in origins:
            message = f"the name {route.name!r} is already taken at {origins[route.name]}"
            source.report((*path, "name"), message)
            continue
        lines = {key[2:]: line for key, line in source.lines.items() if key[:2] == path}
        origins[route.name] = Origin(source.file, source.line(path), lines)
        routes.append(route)
    return routes


def _judge_sessions(source: TomlSource) -> Iterator[tuple[Problem, bool]]:
    """Yield problems of session objects, and whether the field may be newer than the gateway."""
    tables = source.data.get("route", [])
    for index, table in enumerate(tables if isinstance(tables, list) else []):
        canary = table.get("canary") if isinstance(table, dict) else None
        for (holder, above), (key, judge, set_by_gateway) in product(
            ((table, ()), (canary, ("canary",))),
            (
                ("session", judge_session, SET_BY_GATEWAY),
                ("live", judge_live, LIVE_SET_BY_GATEWAY),
            ),
        ):
            session = holder.get(key) if isinstance(holder, dict) else None
            if not isinstance(session, dict):
                continue
            for finding in judge(plain(session)):
                path = ("route", index, *above, key, *finding.path)
                ours = finding.path in set_by_gateway  # said of it already, and better
                if not ours and not any(path[: len(bad)] == bad for bad in source.unresolved):
                    said, name = finding.message, str(finding.path[0])
                    if finding.unknown and len(finding.path) == 1 and name in known_keys(Route):
                        said = f"is a key of the route, and stands above [route.{key}]"
                    yield source.problem(path, said), finding.unknown


def _add_tools(source: TomlSource, tools: dict[str, WebTool]) -> None:
    """Add the ``[[tool]]`` of one file to ``tools``; report what is wrong to ``source``."""
    for path, tool in _valid(source, "tool", WebTool):
        unknown = [
            name
            for name in names_in(tool.url)
            if name not in BUILT_IN and not name.startswith(ARGUMENT)
        ]
        if unknown:
            message = f"there is no variable {{{unknown[0]}}}" + suggestion(unknown[0], BUILT_IN)
            source.report((*path, "url"), message)
        if tool.name in tools:
            source.report((*path, "name"), f"the name {tool.name!r} is already taken")
        tools[tool.name] = tool

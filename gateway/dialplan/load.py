"""The routes of a folder, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pydantic import ValidationError

from gateway.config.problems import ConfigError, Problem
from gateway.config.source import TomlSource, read_toml
from gateway.config.validate import problems_of, suggestion

from .match import Explanation, InviteFacts, Match, Refusal, judge
from .models import Route


class Origin(NamedTuple):
    """Where a route is written; lines count from 1."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Dialplan:
    """Routes in order; the first that matches takes the call."""

    routes: tuple[Route, ...]
    origins: Mapping[str, Origin] = field(default_factory=lambda: MappingProxyType({}))
    """Where each route is written, by its name."""

    def match(self, facts: InviteFacts) -> Match | None:
        """The first route that takes the call, or None: 404 (RFC 3261 section 21.4.5)."""
        for route in self.routes:
            verdict = judge(route, facts)
            if isinstance(verdict, Match):
                return verdict
        return None

    def explain(self, facts: InviteFacts) -> tuple[Explanation, ...]:
        """Every route's verdict in order, those after the one that takes the call too."""
        verdicts = ((route, judge(route, facts)) for route in self.routes)
        return tuple(
            Explanation(route, verdict if isinstance(verdict, Refusal) else None)
            for route, verdict in verdicts
        )

    def secrets(self) -> tuple[str, ...]:
        """Every secret text of the routes, for a log filter that must let none of them through."""
        return tuple(secret for route in self.routes for secret in route.secrets())


def dialplan_files(folder: Path) -> list[Path]:
    """The files of a dialplan folder in order of their names; hidden ones are an editor's."""
    return sorted(
        (file for file in folder.glob("*.toml") if not file.name.startswith(".")),
        key=lambda file: file.name,
    )


def load_dialplan(folder: Path, environ: Mapping[str, str] | None = None) -> Dialplan:
    """Read every ``*.toml`` of ``folder``; ``environ`` stands in for the process's environment.

    Raises ConfigError with every problem of every file.
    """
    problems: list[Problem] = []
    if not folder.is_dir():
        raise ConfigError([Problem(folder, 1, "", "is no folder")])
    routes: list[Route] = []
    origins: dict[str, Origin] = {}
    for file in dialplan_files(folder):
        try:
            source = read_toml(file, environ)
        except ConfigError as error:
            problems += error.problems
            continue
        routes += _routes_of(source, origins)
        problems += source.problems
    if problems:
        raise ConfigError(problems)
    return Dialplan(tuple(routes), MappingProxyType(origins))


def _routes_of(source: TomlSource, origins: dict[str, Origin]) -> list[Route]:
    """The good routes of one file; the others are reported to ``source``."""
    for key in source.data:
        if key != "route":
            source.report((key,), "unknown key" + suggestion(key, ["route"]))
    tables = source.data.get("route", [])
    if not isinstance(tables, list):
        source.report(("route",), "must be an array of tables: write [[route]]")
        return []
    routes: list[Route] = []
    for index, table in enumerate(tables):
        path = ("route", index)
        try:
            route = Route.model_validate(table, context={"folder": source.file.absolute().parent})
        except ValidationError as error:
            source.problems.extend(problems_of(error, Route, source, path))
            continue
        if route.name in origins:
            message = f"the name {route.name!r} is already taken at {origins[route.name]}"
            source.report((*path, "name"), message)
            continue
        origins[route.name] = Origin(source.file, source.line(path))
        routes.append(route)
    return routes

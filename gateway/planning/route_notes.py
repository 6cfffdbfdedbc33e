"""Notes of ``gateway check`` on the conditions of routes: patterns of another syntax, expressions
without anchors, routes that an earlier one hides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gateway.dialplan import Route

_LITERAL = re.compile(r"\^?((?:[0-9A-Za-z_-]|\\[+*.])+)\$?")
"""An expression that stands for one number or name, with or without anchors."""

_ASTERISK = re.compile(r"\^?_[0-9XZN*#+.!\[\]-]+\$?")
_GLOB = re.compile(r"\^?\+?[0-9]+\*\$?")
_CLASSES = {"X": "[0-9]", "Z": "[1-9]", "N": "[2-9]", ".": ".+", "!": ".*", "+": "\\+", "*": "\\*"}


def route_notes(routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each condition that probably means something else. Only enabled routes."""
    for route in routes:
        for key, regex in (("to", route.to), ("from", route.from_)):
            note = None if regex is None else pattern_note(regex.pattern)
            if note is not None:
                yield f"route {route.name}, {key}: {note}"
    yield from _hidden(routes)


def pattern_note(text: str) -> str | None:
    """Return what is odd about a regular expression on a number, and the one that is meant."""
    if _ASTERISK.fullmatch(text):
        meant = "".join(_CLASSES.get(char, char) for char in text.strip("^$")[1:])
        return f'"{text}" looks like an Asterisk pattern; as a regular expression: "^{meant}$"'
    if _GLOB.fullmatch(text):
        start = text.strip("^$").rstrip("*")
        plain = start.replace("+", "\\+")
        return (
            f'"{text}" matches {start[:-1]} and then any number of {start[-1]}; numbers that begin '
            f'with {start}: "^{plain}"'
        )
    literal = _LITERAL.fullmatch(text)
    if literal and literal[1][:1].isdigit() and not (text.startswith("^") and text.endswith("$")):
        meant = f"^{literal[1]}$"
        if text.startswith("^"):
            return f'"{text}" matches every number that begins so; only this one: "{meant}"'
        if text.endswith("$"):
            return f'"{text}" matches every number that ends so; only this one: "{meant}"'
        number = literal[1]
        return f'"{text}" matches 1{number}2, too; only this number: "{meant}"'
    return None


def _hidden(routes: Sequence[Route]) -> Iterator[str]:
    """Routes that can take no call, since an earlier one takes each of theirs."""
    told: set[str] = set()
    for index, route in enumerate(routes):
        hidden = [later for later in routes[index + 1 :] if later.name not in told]
        hidden = [later for later in hidden if _covers(route, later)]
        told.update(later.name for later in hidden)
        names = ", ".join(later.name for later in hidden)
        if hidden and not _conditions(route):
            yield f"route {route.name} takes every call, none is left for {names}"
        elif hidden:
            yield f"route {route.name} comes first and takes every call of {names}"


def _conditions(route: Route) -> dict[str, object]:
    """Conditions that a route sets, comparable with those of another one."""
    set_ = {
        "to": route.to and route.to.pattern,
        "from": route.from_ and route.from_.pattern,
        "pai": route.pai and route.pai.pattern,
        "diversion": route.diversion and route.diversion.pattern,
        "source": route.source,
        "trunk": route.trunk,
        "hours": route.hours and (route.hours, route.timezone),
    }
    headers = {f"header {name.lower()}": regex.pattern for name, regex in route.headers.items()}
    return {key: value for key, value in {**set_, **headers}.items() if value}


def _covers(route: Route, later: Route) -> bool:
    """Whether each call that ``later`` matches is matched by ``route``, as far as can be told."""
    theirs = _conditions(later)
    for key, value in _conditions(route).items():
        if theirs.get(key) == value:
            continue
        regex = {"to": route.to, "from": route.from_}.get(key)
        other = {"to": later.to, "from": later.from_}.get(key)
        if regex is None or other is None:
            return False
        text = other.pattern
        literal = _LITERAL.fullmatch(text)
        whole = text.startswith("^") and text.endswith("$")
        if literal is None or not whole or not regex.search(literal[1].replace("\\", "")):
            return False
    return True

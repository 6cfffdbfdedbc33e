# SPDX-License-Identifier: GPL-2.0-or-later
"""``{variables}`` in the texts of a route: what there is, how it is written, what it becomes.

A placeholder is ``{name}`` or ``{name|default}``, its name letters, digits, ``_``, ``.`` and
``-``, a letter or underline first. ``{{name}}`` stands for the characters ``{name}``. Every other
brace is itself, so JSON and regular expressions in a text stay as they are.

Nearly all values are chosen by whoever calls. They come into a text once and are never read for
placeholders again; they are one line of bounded length, with no character that cannot be seen and
no double quote, so that a value between quotes stays between them (:func:`clean`). ``{data.…}`` are
those that ``[route.data]`` fetches for each call (:class:`RouteData`).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal
from urllib.parse import quote
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, PlainSerializer, Strict

from gateway.config.source import KeyPath, MisplacedError, Section, plain
from gateway.config.values import Count, Flag, HttpHeaders, HttpUrl, Seconds, Typed
from gateway.dialplan.conditions import InviteFacts

MAX_VALUE = 256
"""Characters of a value that are kept: URIs and tracking ids fit, a speech does not."""
MAX_NAME = 64
"""The same for display names, where nothing long is meant."""

HEADER = "header."

CLOCK = ("date", "time", "weekday", "part_of_day")
BUILT_IN = (
    "to",
    "to_name",
    "to_uri",
    "from",
    "from_name",
    "from_uri",
    "pai",
    "pai_name",
    "diversion",
    "diversion_reason",
    "diverted_first",
    "trunk",
    "source",
    "call_id",
    "sip_call_id",
    "route",
    "callback_reason",
    *CLOCK,
)
"""Variables of every call; the named groups of a route's regular expressions come on top."""

LAST_CALL = (
    "last_call.date",
    "last_call.time",
    "last_call.outcome",
    "last_call.disposition",
    "last_call.summary",
)
"""Variables of the caller's last call, where ``[route.caller_history]`` is enabled."""

AS_WRITTEN = frozenset({"authorization", "headers"})
"""Keys of a session object whose texts are credentials: nothing is filled in there."""

_NAME = r"[A-Za-z_][\w.\-]*"
_PLACEHOLDER = re.compile(
    rf"\{{\{{(?P<literal>{_NAME}(?:\|[^{{}}]*)?)\}}\}}|\{{(?P<name>{_NAME})(?:\|(?P<default>[^{{}}]*))?\}}",
    re.ASCII,
)
_UNSEEN = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
_DOUBLE_QUOTES = str.maketrans(dict.fromkeys('"“”„‟«»＂', "'"))  # noqa: RUF001


def names_in(text: str) -> list[str]:
    """Return the names of the placeholders in ``text``, in their order."""
    return [found["name"] for found in _PLACEHOLDER.finditer(text) if found["name"]]


def is_known(name: str, groups: frozenset[str]) -> bool:
    """Return whether a variable is built in, of a header, or one of the named ``groups``."""
    if name.startswith(HEADER):
        return len(name) > len(HEADER)
    return name in BUILT_IN or name in groups


def render(text: str, values: Mapping[str, str]) -> str:
    """Return ``text`` with values for its placeholders; without a value, with their defaults."""

    def fill(found: re.Match[str]) -> str:
        if found["literal"] is not None:
            return "{" + found["literal"] + "}"
        return values.get(key_of(found["name"]), "") or found["default"] or ""

    return _PLACEHOLDER.sub(fill, text)


def render_all(value: Any, values: Mapping[str, str]) -> Any:
    """Return a copy of a session object with every text rendered, except credentials."""
    if isinstance(value, Mapping):
        return {
            name: inner if name in AS_WRITTEN else render_all(inner, values)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [render_all(inner, values) for inner in value]
    return render(value, values) if isinstance(value, str) else value


def texts_in(
    value: Any, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield every text of a session object that :func:`render_all` renders, with its path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in AS_WRITTEN:
                yield from texts_in(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from texts_in(inner, (*path, index))
    elif isinstance(value, str):
        yield path, value


def key_of(name: str) -> str:
    """Return the name of a variable: names of header fields are case-insensitive."""
    return name.lower() if name.startswith(HEADER) else name


def clean(value: str, limit: int = MAX_VALUE) -> str:
    """Return a caller's text on one line, bounded, without control characters and double quotes."""
    seen = "".join(
        "" if kind == "Cf" else " " if kind in _UNSEEN else char
        for char in value[: 8 * limit]
        for kind in (unicodedata.category(char),)
    )
    text = " ".join(seen.split()).translate(_DOUBLE_QUOTES)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def values_of(
    route: str,
    facts: InviteFacts,
    groups: Mapping[str, str],
    zone: ZoneInfo | None,
    headers: frozenset[str] = frozenset(),
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the value of each variable of a call, and the names of those that were cleaned.

    ``headers`` are the names of header fields that the route's texts ask for.
    """
    given = {
        **_known(route, facts),
        **_clock(facts.at.astimezone(zone)),
        **groups,
        **_headers(facts, headers),
    }
    values = {
        name: clean(value, MAX_NAME if name.endswith("_name") else MAX_VALUE)
        for name, value in given.items()
    }
    return values, tuple(name for name, value in given.items() if values[name] != value.strip())


def _known(route: str, facts: InviteFacts) -> dict[str, str]:
    """Return the variables that every call has."""
    return {
        "to": facts.to_user,
        "to_name": facts.to_name,
        "to_uri": facts.to_uri,
        "from": facts.from_user,
        "from_name": facts.from_name,
        "from_uri": facts.from_uri,
        "pai": facts.pai[0] if facts.pai else "",
        "pai_name": facts.pai_name,
        "diversion": facts.diversion[0] if facts.diversion else "",
        "diversion_reason": facts.diversion_reason,
        "diverted_first": facts.diversion[-1] if facts.diversion else "",
        "trunk": facts.trunk or "",
        "source": facts.source_ip,
        "call_id": facts.call_id,
        "sip_call_id": facts.sip_call_id,
        "route": route,
        "callback_reason": "",
    }


def _clock(local: datetime) -> dict[str, str]:
    """Return the variables of date and time."""
    # Not strftime's names, which are of whatever language the machine is set to.
    weekdays = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    parts = ((5, "night"), (12, "morning"), (18, "afternoon"), (22, "evening"), (24, "night"))
    return {
        "date": f"{local:%Y-%m-%d}",
        "time": f"{local:%H:%M}",
        "weekday": weekdays[local.weekday()],
        "part_of_day": next(name for until, name in parts if local.hour < until),
    }


def _headers(facts: InviteFacts, names: frozenset[str]) -> dict[str, str]:
    if not names:
        return {}
    present = {name.lower(): values for name, values in facts.headers.items()}
    return {name: ", ".join(present.get(name.removeprefix(HEADER), ())) for name in names}


def _defaults(value: Mapping[str, Any], path: KeyPath = ()) -> Mapping[str, Any]:
    """Refuse defaults that are no texts, numbers, flags or lists."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            _defaults(inner, (*path, name))
        elif not isinstance(inner, str | int | float | list):
            raise MisplacedError((*path, name), "must be a text, a number, true, false or a list")
    return MappingProxyType(plain(value))


DATA = "data."
"""Prefix of the variables."""


class RouteData(Section):
    """One request for each call, its deadline (s), and what is done without an answer."""

    url: HttpUrl
    method: Literal["GET", "POST"] = "GET"
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    timeout: Annotated[Seconds, Field(le=30)] = 2.0
    retries: Annotated[int, Strict(), Field(ge=0, le=3), Typed] = 0
    on_failure: Literal["continue", "reject"] = "continue"
    defaults: Annotated[
        Mapping[str, Any], AfterValidator(_defaults), PlainSerializer(lambda value: dict(value))
    ] = Field(default_factory=lambda: MappingProxyType({}))
    max_value_chars: Annotated[Count, Field(le=100_000)] = 2000
    preserve_newlines: Flag = False

    def address(self, values: Mapping[str, str]) -> str:
        """Return the URL for a call, with the values of its variables percent-encoded."""
        return render(self.url, {name: quote(value, safe="") for name, value in values.items()})

    def values(self, names: Iterable[str], answer: Any) -> dict[str, str]:
        """Return the values of variables in the service's JSON (None for none), or ``defaults``."""
        return {
            name: self._text(_at(answer, name)) or self._text(_at(self.defaults, name))
            for name in names
        }

    def _text(self, value: Any) -> str:
        """Return a JSON value as text of at most ``max_value_chars``; other than text as JSON."""
        if value is None:
            return ""
        if not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            return str(value)[: self.max_value_chars]
        return (
            _lines(value, self.max_value_chars)
            if self.preserve_newlines
            else clean(value, self.max_value_chars)
        )


def _at(value: Any, name: str) -> Any:
    """Return the value at a dotted name of the data, or None."""
    for step in name.removeprefix(DATA).split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _lines(value: str, limit: int) -> str:
    """Return a text of several lines, bounded, without control characters but newlines."""
    seen = "".join(
        char
        for char in value.replace("\r\n", "\n")[: 2 * limit]
        if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    ).strip()
    return seen if len(seen) <= limit else seen[: limit - 1] + "…"

# SPDX-License-Identifier: GPL-2.0-or-later
"""``[route.data]``: what is asked of an HTTP service before a call is answered. Pure.

Its answer is a JSON object. ``{data.customer.name}`` in a text is what stands at that path of it;
a number in a path counts in a list, from 0. An object or a list is given as JSON.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field, PlainSerializer, Strict

from gateway.config.problems import KeyPath, MisplacedError
from gateway.config.source import plain
from gateway.config.validate import Section
from gateway.config.values import Count, Flag, HttpHeaders, HttpUrl, Seconds, Typed
from gateway.dialplan.variables import clean, render

DATA = "data."
"""Prefix of the variables."""


def _defaults(value: Mapping[str, Any], path: KeyPath = ()) -> Mapping[str, Any]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            _defaults(inner, (*path, name))
        elif not isinstance(inner, str | int | float | list):
            raise MisplacedError((*path, name), "must be a text, a number, true, false or a list")
    return MappingProxyType(plain(value))


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
        """The URL for a call with these variables; what they stand for cannot leave its place."""
        return render(self.url, {name: quote(value, safe="") for name, value in values.items()})

    def values(self, names: Iterable[str], answer: Any) -> dict[str, str]:
        """Return the values of the variables ``names``; ``answer`` is None where there was none."""
        return {
            name: self._text(_at(answer, name)) or self._text(_at(self.defaults, name))
            for name in names
        }

    def _text(self, value: Any) -> str:
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
    for step in name.removeprefix(DATA).split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _lines(value: str, limit: int) -> str:
    """A text of several lines: as it is, without what cannot be seen."""
    seen = "".join(
        char
        for char in value.replace("\r\n", "\n")[: 2 * limit]
        if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    ).strip()
    return seen if len(seen) <= limit else seen[: limit - 1] + "…"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses in header fields, each character looked at once. Pure: RFC 3261 section 20.10.

A stranger writes these fields: a regular expression that tries its alternatives again may take
minutes for a few kilobytes, and all calls with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_FIELD = 1024
"""Characters of one address, or of one field, that is read. Real ones have a few hundred."""


@dataclass(frozen=True, slots=True)
class NameAddr:
    """A display name without its quotes, a URI, and what follows them, each empty for none."""

    name: str = ""
    uri: str = ""
    parameters: str = ""
    """Without the first semicolon."""


def name_addr_of(text: str) -> NameAddr:
    """One address, with or without angle brackets; all empty where it is none, or too long."""
    text = text.strip()
    if len(text) > MAX_FIELD:
        return NameAddr()
    rest, quoted = text, None
    if text.startswith('"'):
        end = _end_of_quotes(text)
        if end < 0:
            return NameAddr()
        quoted, rest = _unescaped(text[1:end]), text[end + 1 :]
    before, bracket, inside = rest.partition("<")
    if not bracket:
        uri, _, parameters = ("", "", "") if quoted is not None else rest.partition(";")
        return NameAddr("", uri.strip(), parameters)
    uri, closed, after = inside.partition(">")
    if not closed:
        return NameAddr()
    name = before.strip() if quoted is None else quoted.strip()
    return NameAddr(name, uri, after.strip().removeprefix(";"))


def split_list(text: str, separator: str = ",") -> Iterator[str]:
    """The parts between separators that stand neither in quotes nor in angle brackets."""
    inside, quoted, start, skip = False, False, 0, False
    for at, char in enumerate(text):
        if skip:
            skip = False
        elif quoted:
            skip = char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char == "<":
            inside = True
        elif char == ">":
            inside = False
        elif char == separator and not inside:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def parameter_of(parameters: str, name: str) -> str | None:
    """The value of a parameter, without quotes; empty where it has none, None without it."""
    for part in split_list(parameters, ";"):
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            value = value.strip()
            quoted = len(value) > 1 and value.startswith('"') and value.endswith('"')
            return _unescaped(value[1:-1]) if quoted else value
    return None


def _end_of_quotes(text: str) -> int:
    """Where the quotes that ``text`` begins with are closed; -1 when nowhere."""
    skip = False
    for at in range(1, len(text)):
        if skip:
            skip = False
        elif text[at] == "\\":
            skip = True
        elif text[at] == '"':
            return at
    return -1


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    kept: list[str] = []
    escaped = False
    for char in text:
        if char == "\\" and not escaped:
            escaped = True
        else:
            kept.append(char)
            escaped = False
    return "".join(kept)

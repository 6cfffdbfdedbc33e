# SPDX-License-Identifier: GPL-2.0-or-later
"""Cleans texts from outside before they are stored, matched or shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

_SURROGATES = re.compile(r"[\ud800-\udfff]")


def unicode_of(text: str) -> str:
    """``text`` with U+FFFD for what is no character: bytes that were no UTF-8, half a pair.

    pjsua2 hands such bytes on as lone surrogates, JSON may have them as escapes; no encoder takes
    them.
    """
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Controls of terminals (C0, C1), of lines and of the direction of writing; lone surrogates."""


def printable(text: str) -> str:
    """``text`` on one line, for a terminal, a page or a log that people read.

    White space becomes spaces. What else would move the cursor, turn the writing around or be read
    as a command stands as ``\\u001b``, which JSON reads as the same character.
    """
    return text if text.isprintable() else _UNSHOWN.sub(_shown, text)


def unicode_in(value: Any) -> Any:
    """Return a JSON value with :func:`unicode_of` applied to its texts."""
    return _each_text(value, unicode_of)


def printable_in(value: Any) -> Any:
    """Return a JSON value with :func:`printable` applied to its texts."""
    return _each_text(value, printable)


def json_of(text: str | bytes) -> Any:
    """A stranger's JSON, with :func:`unicode_of` all its texts.

    Raises ValueError, also where it is nested too deeply.
    """
    try:
        return unicode_in(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): _each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each_text(inner, change) for inner in value]
    return value


def _shown(found: re.Match[str]) -> str:
    char = found[0]
    if char in "\t\n\v\f\r\x85\u2028\u2029":
        return " "
    return "\ufffd" if "\ud800" <= char <= "\udfff" else f"\\u{ord(char):04x}"


MAX_SUBJECT = 256
"""Characters of a number, URI or header field that is matched; a longer one matches nothing."""


def searched(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return ``pattern.search(text)``; None for a text that is too long."""
    return pattern.search(text) if len(text) <= MAX_SUBJECT else None


def matched(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return ``pattern.fullmatch(text)``; None for a text that is too long."""
    return pattern.fullmatch(text) if len(text) <= MAX_SUBJECT else None


def money(amount: Decimal) -> str:
    """Return an amount with at least two and at most seven digits behind the point."""
    whole, _, part = f"{amount:.7f}".partition(".")
    return f"{whole}.{part.rstrip('0').ljust(2, '0')}"


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, without case and punctuation, keeping hyphens inside a word."""
    return tuple(re.findall(r"\w+(?:[-'\u2019]\w+)*", text.casefold()))

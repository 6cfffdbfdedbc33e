# SPDX-License-Identifier: GPL-2.0-or-later
"""Regular expressions in configuration and dialplans.

:func:`gateway.text.searched` and :func:`gateway.text.matched` apply them.
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Annotated, Any

from pydantic import BeforeValidator

_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT)
_MANY = 16
"""A repetition that may go on for longer counts as endless."""


def pattern_of(text: str) -> re.Pattern[str]:
    """The compiled expression. Raises ValueError, saying what is wrong.

    A repetition in a repetition with nothing fixed between them, as in ``(\\d+)+``, is refused: it
    takes twice as long for each character more of a text that does not match.
    """
    try:
        compiled = re.compile(text)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos + 1}"
        raise ValueError(f"is no regular expression: {error.msg}{where}") from None
    if _runs_away(parser.parse(text)):
        raise ValueError(
            "may take for ever: it repeats a repetition with nothing fixed between, as (\\d+)+ does"
        )
    return compiled


def _runs_away(parts: Any) -> bool:
    for code, value in parts:
        if code in _REPEATS and value[1] > _MANY and _is_loose(value[2]) and _has_endless(value[2]):
            return True
        if any(_runs_away(inner) for inner in _inside(code, value)):
            return True
    return False


def _is_loose(parts: Any) -> bool:
    """Return whether nothing in it has to occur exactly once."""
    return all(
        code is codes.AT
        or (code in _REPEATS and (value[0] == 0 or value[1] > _MANY))
        or (code is codes.SUBPATTERN and _is_loose(value[-1]))
        or (code is codes.BRANCH and any(_is_loose(one) for one in value[1]))
        for code, value in parts
    )


def _has_endless(parts: Any) -> bool:
    return any(
        (code in _REPEATS and value[1] > _MANY)
        or any(_has_endless(inner) for inner in _inside(code, value))
        for code, value in parts
    )


def _inside(code: Any, value: Any) -> tuple[Any, ...]:
    if code in _REPEATS:
        return (value[2],)
    if code is codes.SUBPATTERN:
        return (value[-1],)
    if code is codes.BRANCH:
        return tuple(value[1])
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return (value[1],)
    return ()


def _regex(value: object) -> re.Pattern[str]:
    if isinstance(value, re.Pattern):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a regular expression, as a string")
    return pattern_of(value)


Regex = Annotated[re.Pattern[str], BeforeValidator(_regex)]

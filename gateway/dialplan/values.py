"""Kinds of value that only dialplans have."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator


def _regex(value: object) -> re.Pattern[str]:
    if isinstance(value, re.Pattern):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a regular expression, as a string")
    try:
        return re.compile(value)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos + 1}"
        raise ValueError(f"is no regular expression: {error.msg}{where}") from None


Regex = Annotated[re.Pattern[str], BeforeValidator(_regex)]

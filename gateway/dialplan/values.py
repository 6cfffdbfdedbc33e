"""Kinds of value that only dialplans have."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

from gateway.config.patterns import pattern_of


def _regex(value: object) -> re.Pattern[str]:
    if isinstance(value, re.Pattern):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a regular expression, as a string")
    return pattern_of(value)


Regex = Annotated[re.Pattern[str], BeforeValidator(_regex)]

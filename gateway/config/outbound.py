"""``[outbound]``: the calls that the gateway places, and what keeps them from costing a fortune."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from .validate import Section
from .values import Count, Flag, Seconds


def _prefixes(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        if not re.fullmatch(r"\+?[0-9A-Za-z_.*#\-]*", one):
            raise ValueError(f'{one!r} is no beginning of a number, like "+49" or "00"')
    return value


Prefixes = Annotated[tuple[str, ...], AfterValidator(_prefixes)]


class OutboundSettings(Section):
    """``[outbound]``: caps on every call that is placed, and settings of ``gateway dial``."""

    enabled: Flag = False
    allowed: Prefixes = ()
    forbidden: Prefixes = ()
    max_concurrent: Count = 4
    per_minute: Count = 10
    max_call_seconds: Seconds = 1800.0
    ring_seconds: Seconds = 45.0
    early_media: Flag = False

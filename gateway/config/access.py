"""``[access]`` and ``[control]``: who gets in, and who may ask."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from .validate import Section
from .values import FilePath, Typed

Rate = Annotated[float, Strict(), Field(ge=0), Typed]
"""Per second; 0 is no limit."""
CountOrOff = Annotated[int, Strict(), Field(ge=0), Typed]
"""0 is no limit."""


class AccessSettings(Section):
    """``[access]``: calls from no known trunk, and how many of them one source may make."""

    unknown: Literal["auto", "allow", "refuse", "drop"] = "auto"
    calls_per_second: Rate = 0.0
    burst: Annotated[int, Strict(), Field(ge=1), Typed] = 10
    concurrent_calls: CountOrOff = 0


class ControlSettings(Section):
    """``[control]``: the socket that ``gateway status`` asks."""

    socket: FilePath | None = None

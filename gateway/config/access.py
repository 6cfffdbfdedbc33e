"""``[access]`` and ``[control]``: who gets in, and who may ask."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict

from gateway.config.validate import Section
from gateway.config.values import FilePath, Seconds, Typed

Rate = Annotated[float, Strict(), Field(ge=0), Typed]
"""Per second; 0 is no limit."""
CountOrOff = Annotated[int, Strict(), Field(ge=0), Typed]
"""0 is no limit."""


def _realm(value: str) -> str:
    if not re.fullmatch(r"[ !#-\[\]-~]+", value):
        raise ValueError("must be printable ASCII without quotes and backslashes")
    return value


def _different(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("has an algorithm twice")
    return value


class AccessSettings(Section):
    """``[access]``: calls from no known trunk, and how many of them one source may make."""

    unknown_sources: Literal["auto", "allow", "reject", "drop"] = "auto"
    calls_per_second: Rate = 10.0
    burst: Annotated[int, Strict(), Field(ge=1), Typed] = 10
    max_concurrent_calls: CountOrOff | None = None
    realm: Annotated[str, AfterValidator(_realm)] = "sip-realtime-gateway"
    auth_algorithms: Annotated[
        tuple[Literal["MD5", "SHA-256"], ...], Field(min_length=1), AfterValidator(_different)
    ] = ("MD5", "SHA-256")
    nonce_lifetime: Seconds = 32.0
    ban_after: CountOrOff = 20
    ban_window: Seconds = 60.0
    ban_seconds: Seconds = 600.0

    def concurrent_of(self, max_calls: int) -> int:
        """Calls that one source of no trunk may have at a time, 0 for any number."""
        return (
            -(-max_calls // 2) if self.max_concurrent_calls is None else self.max_concurrent_calls
        )


class ControlSettings(Section):
    """``[control]``: the socket that ``gateway status`` asks."""

    socket: FilePath | None = None

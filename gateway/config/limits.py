# SPDX-License-Identifier: GPL-2.0-or-later
"""``[access]``, ``[control]``, ``[outbound]``, ``[cost]``: who may call or be called; costs."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import phonenumbers
from pydantic import AfterValidator, Field, Strict, model_validator

from gateway.config.numbers import NumberClass
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section, suggestion
from gateway.config.values import Count, FilePath, Flag, Seconds, Text, Typed

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
        """Calls that one source of no trunk may have at a time; 0 for any number."""
        return (
            -(-max_calls // 2) if self.max_concurrent_calls is None else self.max_concurrent_calls
        )


class ControlSettings(Section):
    """``[control]``: the socket that ``gateway status`` asks."""

    socket: FilePath | None = None


def _prefixes(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        if not re.fullmatch(r"\+?[0-9A-Za-z_.*#\-]*", one):
            raise ValueError(f'{one!r} is no beginning of a number, like "+49" or "00"')
    return value


def _country(value: str) -> str:
    if value and value not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f'{value!r} is no country of ISO 3166, like "DE"')
    return value


def _classes(value: tuple[str, ...]) -> tuple[str, ...]:
    known = get_args(NumberClass)
    for one in value:
        if one not in known:
            raise ValueError(f"{one!r} is no class of numbers{suggestion(one, known)}")
    return value


Prefixes = Annotated[tuple[str, ...], AfterValidator(_prefixes)]


class OutboundSettings(Section):
    """``[outbound]``: caps on every call that is placed, and settings of ``gateway dial``."""

    enabled: Flag = False
    country: Annotated[str, AfterValidator(_country)] = ""
    allowed_prefixes: Prefixes = ()
    denied_prefixes: Prefixes = ()
    allowed_classes: Annotated[tuple[str, ...], AfterValidator(_classes)] = ()
    max_concurrent_calls: Count = 4
    max_calls_per_minute: Count = 10
    max_call_duration: Seconds = 1800.0
    ring_timeout: Seconds = 45.0
    early_media: Flag = False

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.enabled and not self.allowed_prefixes:
            raise MisplacedError(
                ("allowed_prefixes",),
                'missing: with outbound.enabled, say where calls may go, like ["+49"]',
            )
        return self


Money = Annotated[float, Strict(), Field(ge=0), Typed]
Part = Annotated[float, Strict(), Field(gt=0, le=1), Typed]

WRAP_UP = (
    "The time for this phone call is nearly used up. Bring the conversation to a good end within "
    "your next answers, and do not begin anything new."
)
GOODBYE = "I am sorry, the time for this call is used up. Thank you for calling. Goodbye."


def _zone(value: str) -> str:
    if value:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError('is no known time zone; names look like "Europe/Berlin"') from None
    return value


class BudgetSettings(Section):
    """``[cost.budget]``: what may be spent, in the currency of the prices; 0 is no limit."""

    per_call: Money = 0.0
    per_caller: Money = 0.0
    per_day: Money = 0.0
    warning_threshold: Part = 0.8
    warning_message: Text = WRAP_UP
    warning_response: Flag = False
    goodbye: Text = GOODBYE


class CostSettings(Section):
    """``[cost]``: the prices, and where the sums of a day are kept."""

    prices: FilePath | None = None
    state_file: FilePath | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = ""
    budget: BudgetSettings = Field(default_factory=BudgetSettings)

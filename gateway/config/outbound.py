"""``[outbound]``: the calls that the gateway places, and what keeps them from costing a fortune."""

from __future__ import annotations

import re
from typing import Annotated, Self, get_args

import phonenumbers
from pydantic import AfterValidator, model_validator

from gateway.config.numbers import NumberClass
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section, suggestion
from gateway.config.values import Count, Flag, Seconds


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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments of the gateway's own tools: models, checks, and messages for what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway.call.plan import CollectPlan, Destination, LanguagePlan, TransferPlan

PAUSES = {"w": 0.5, "W": 1.0, ",": 2.0}
"""Pauses (s) between digits, as in Asterisk's dial strings."""

MAX_KEYS = 64

NUMBER = re.compile(r"\+?[0-9*#]{1,32}")
"""Numbers that may become part of an address, whatever a route allows."""


class ToolCallError(Exception):
    """A tool call cannot be carried out; the message tells the model why."""


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_M = TypeVar("_M", bound=_Arguments)


class TransferArguments(_Arguments):
    """Arguments of ``transfer_call``."""

    destination: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class PressArguments(_Arguments):
    """Arguments of ``send_dtmf``."""

    digits: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class HoldArguments(_Arguments):
    """Arguments of ``hold``."""

    seconds: Annotated[float, Field(gt=0)]


class LanguageArguments(_Arguments):
    """Arguments of ``set_language``."""

    language: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class CollectArguments(_Arguments):
    """Arguments of ``collect_digits``."""

    digits: Annotated[int, Field(ge=1)] | None = None
    terminator: Annotated[str, StringConstraints(pattern=r"^[0-9*#]?$")] | None = None
    seconds: Annotated[float, Field(ge=1, le=120)] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Transfer target: an allowed destination, and the URI to call."""

    destination: Destination
    uri: str


def transfer_target(arguments: str, plan: TransferPlan) -> Target:
    """Return the allowed target that these arguments (JSON text) name. Raises ToolCallError."""
    wanted = _parsed(TransferArguments, arguments).destination
    for one in plan.destinations:
        if one.allowed_numbers is None and one.name.casefold() == wanted.casefold():
            return Target(one, one.to)
    number = re.sub(r"[\s()./-]", "", wanted)
    if NUMBER.fullmatch(number):
        for one in plan.destinations:
            if one.allowed_numbers is not None and one.allowed_numbers.fullmatch(number):
                return Target(one, one.to.replace("{number}", number.replace("#", "%23")))
    names = ", ".join(repr(one.name) for one in plan.destinations)
    raise ToolCallError(f"destination {wanted!r} is not allowed; there are: {names}")


def key_steps(arguments: str) -> tuple[str | float, ...]:
    """Return digits and pauses (s) in order. Raises ToolCallError."""
    digits = _parsed(PressArguments, arguments).digits
    keys = re.sub(r"[\s-]", "", digits)
    wrong = sorted(set(re.sub(r"[0-9*#A-Da-dwW,]", "", keys)))
    if wrong:
        raise ToolCallError(
            f"digits: {wrong[0]!r} is no key; there are 0-9, *, #, A-D, and between them "
            "w (half a second), W (a second) and , (two seconds)"
        )
    if len(keys) > MAX_KEYS:
        raise ToolCallError(f"digits: {len(keys)} are too many, {MAX_KEYS} go at a time")
    if not keys.strip("wW,"):
        raise ToolCallError("digits: there is no key in it")
    return tuple(PAUSES[key] if key in PAUSES else key.upper() for key in keys)


def hold_seconds(arguments: str, longest: float) -> float:
    """Return how long to hold (s). Raises ToolCallError."""
    seconds = _parsed(HoldArguments, arguments).seconds
    if seconds > longest:
        raise ToolCallError(f"seconds: {seconds:g} is too long, at most {longest:g}")
    return seconds


def language_of(arguments: str, plan: LanguagePlan) -> str:
    """Return the code of the language to change to. Raises ToolCallError."""
    wanted = _parsed(LanguageArguments, arguments).language
    for code, name in plan.names.items():
        if wanted.casefold() in (code.casefold(), name.casefold()):
            return code
    raise ToolCallError(f"language {wanted!r} is not offered; there are: {', '.join(plan.names)}")


def collect_wanted(arguments: str, plan: CollectPlan) -> tuple[int, str, float]:
    """Return most digits, the key that ends them, seconds for each. Raises ToolCallError."""
    wanted = _parsed(CollectArguments, arguments)
    most = wanted.digits or plan.max_digits
    if most > plan.max_digits:
        raise ToolCallError(f"digits: at most {plan.max_digits}")
    terminator = "#" if wanted.terminator is None else wanted.terminator
    return most, terminator, wanted.seconds or plan.timeout


def _parsed(model: type[_M], arguments: str) -> _M:
    try:
        return model.model_validate_json(arguments.strip() or "{}")
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)
        ]
        raise ToolCallError("; ".join(told[:5])) from None

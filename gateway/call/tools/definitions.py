# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway's own tools: their definitions for the model, and the check of its arguments.

The functions named like a tool return its definition for ``tools`` of the session object;
``description`` is what the model is told of it. Those that take ``arguments`` parse the JSON text
of a tool call, and raise ToolCallError, with words for the model, for JSON that cannot be parsed
and for arguments that are unknown, missing or not allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway.call.tools.commands import (
    CollectPlan,
    Destination,
    DispositionPlan,
    HoldPlan,
    LanguagePlan,
    RecordingPlan,
    SchedulePlan,
    SendDtmfPlan,
    TransferPlan,
)
from gateway.text import mistakes_of

END_CALL = "end_call"
TRANSFER_CALL = "transfer_call"
SEND_DTMF = "send_dtmf"
HOLD = "hold"
SET_LANGUAGE = "set_language"
COLLECT_DIGITS = "collect_digits"
SCHEDULE_CALLBACK = "schedule_callback"
RECORD_CALL = "record_call"
SET_DISPOSITION = "set_disposition"

OWN = frozenset(
    {
        END_CALL,
        TRANSFER_CALL,
        SEND_DTMF,
        HOLD,
        SET_LANGUAGE,
        COLLECT_DIGITS,
        SCHEDULE_CALLBACK,
        RECORD_CALL,
        SET_DISPOSITION,
    }
)
"""The gateway's own tools; no other tool may have one of these names."""

TRANSFER_DESCRIPTION = (
    "Transfer the caller to a person or department. Say first, in one short sentence, that you "
    "are connecting them. If it fails you are told why, and the caller is back with you."
)
SEND_DTMF_DESCRIPTION = (
    "Press keys on the telephone keypad, for a voice menu at the other end of the call. "
    "Between keys, w waits half a second, W a second, a comma two seconds."
)
HOLD_DESCRIPTION = (
    "Let the caller hear music for some seconds while they wait. Tell them so first. "
    "The music ends by itself, or as soon as you speak."
)

DISPOSITION_DESCRIPTION = (
    "Note how this call went, once you know. Say nothing about it. A later note replaces it."
)

LANGUAGE_DESCRIPTION = (
    "Change the language of this call. Use it when the caller speaks, or asks for, another one."
)
COLLECT_DESCRIPTION = (
    "Wait for the caller to enter digits on the telephone keypad, and get them. Ask for them "
    "first, and say how many or which key ends them. Digits that you wait for are not otherwise "
    "told to you."
)
RECORD_DESCRIPTION = (
    "Start, stop, pause or resume the recording of this call, or stop it and delete what was "
    "recorded. Delete it when the caller objects to being recorded."
)
SCHEDULE_DESCRIPTION = (
    "Have the caller called back at a time that you agreed on. Repeat the time to them before."
)


def end_call(description: str) -> dict[str, Any]:
    """Return the tool ``end_call``, without arguments, with which the model hangs up."""
    return _tool_object(END_CALL, description, {})


_BRIEFING = (
    "What your colleague is told before they take the call, in at most three short sentences: who "
    "calls, what they want, and what was done so far"
)

MAX_BRIEFING = 1000
"""Characters of a briefing that are read out; the rest is cut off."""


def transfer_call(plan: TransferPlan, description: str) -> dict[str, Any] | None:
    """Return the tool ``transfer_call``: the destinations by name, as an enum unless one of them
    takes numbers. Where one is briefed in the model's words, the tool also has the argument
    ``briefing``, which the model must then give for every destination. None without
    destinations."""
    if not plan.destinations:
        return None
    lines = [
        f"- {one.name}"
        + (f": {one.description}" if one.description else "")
        + ("" if one.allowed_numbers is None else " (give the number itself)")
        for one in plan.destinations
    ]
    destination: dict[str, Any] = {
        "type": "string",
        "description": "\n".join(["Where to:", *lines]),
    }
    if all(one.allowed_numbers is None for one in plan.destinations):
        destination["enum"] = [one.name for one in plan.destinations]
    properties = {"destination": destination}
    briefed = [one for one in plan.destinations if one.briefing is not None]
    if any(one.briefing is not None and not one.briefing.text for one in briefed):
        properties["briefing"] = {"type": "string", "description": _BRIEFING}
    return _tool_object(TRANSFER_CALL, description, properties)


def send_dtmf(plan: SendDtmfPlan, description: str) -> dict[str, Any] | None:
    """Return the tool ``send_dtmf`` (``digits``); None where the route does not enable it."""
    if not plan.enabled:
        return None
    digits = {"type": "string", "description": "Keys 0-9, *, #, A-D, with w, W or , as pauses"}
    return _tool_object(SEND_DTMF, description, {"digits": digits})


def hold(plan: HoldPlan, description: str) -> dict[str, Any] | None:
    """Return the tool ``hold`` (``seconds``, at most ``max_duration``); None where the route does
    not enable it."""
    if not plan.enabled:
        return None
    seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": plan.max_duration}
    return _tool_object(HOLD, description, {"seconds": seconds})


def set_disposition(plan: DispositionPlan, description: str) -> dict[str, Any] | None:
    """Return the tool ``set_disposition``, with the route's values as an enum; None without
    any."""
    if not plan.values:
        return None
    values = {"type": "string", "enum": list(plan.values)}
    return _tool_object(SET_DISPOSITION, description, {"disposition": values})


def set_language(plan: LanguagePlan, description: str) -> dict[str, Any] | None:
    """Return the tool ``set_language``, with the codes of the route's languages as an enum; None
    without any."""
    if not plan.updates:
        return None
    known = ", ".join(f"{code}: {name}" for code, name in plan.names.items())
    language = {"type": "string", "enum": list(plan.updates), "description": known}
    return _tool_object(SET_LANGUAGE, description, {"language": language})


KINDS = ("digits", "card_number", "expiry", "security_code")
"""What can be asked for as sensitive digits."""

_LENGTHS = {"digits": (1, 128), "card_number": (12, 19), "expiry": (4, 4), "security_code": (3, 4)}
"""Fewest and most digits of each kind."""


def most_digits(kind: str) -> int:
    """Return the most digits that an entry of this kind (one of ``KINDS``) may have."""
    return _LENGTHS[kind][1]


def entry_problem(kind: str, digits: str, year: int, month: int) -> str:
    """Return the first thing that is wrong with sensitive digits, in words for the model that do
    not repeat them; "" for nothing.

    Checked are, in this order: digits only (no * and #), their number, of a card number its check
    digit (Luhn, ISO/IEC 7812-1), of an expiry (MMYY) the month, that it is not over (the month
    itself still counts), and at most 20 years ahead.

    Args:
        kind: one of ``KINDS``.
        year, month: today's; ``year`` with four digits.
    """
    fewest, most = _LENGTHS[kind]
    if not digits.isdecimal():
        return "other keys than digits were pressed"
    if not fewest <= len(digits) <= most:
        return f"{len(digits)} digits were entered"
    if kind == "card_number":
        doubled = (int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits)))
        if sum(sum(divmod(value, 10)) for value in doubled) % 10:
            return "this is no valid card number; a digit is probably wrong"
    if kind == "expiry":
        until_month, until_year = int(digits[:2]), 2000 + int(digits[2:])
        if not 1 <= until_month <= 12:
            return "the first two digits are no month"
        if (until_year, until_month) < (year, month):
            return "the card has expired"
        if until_year > year + 20:
            return "the year is too far ahead"
    return ""


def collect_digits(plan: CollectPlan, description: str) -> dict[str, Any] | None:
    """Return the tool ``collect_digits``, all of whose arguments may be left out: ``digits`` (how
    many), ``terminator``, ``seconds`` (for each), and for sensitive digits ``kind``. None where the
    route does not enable it."""
    if not plan.enabled:
        return None
    digits = {
        "type": "integer",
        "minimum": 1,
        "maximum": plan.max_digits,
        "description": "How many; leave it out where a key ends them",
    }
    ends = {
        "type": "string",
        "enum": list("#*0123456789"),
        "description": "The key that ends them and is not one of them; # if left out",
    }
    seconds = {
        "type": "number",
        "minimum": 1,
        "maximum": 120,
        "description": f"How long to wait for each; {plan.timeout:g} if left out",
    }
    given = {"digits": digits, "terminator": ends, "seconds": seconds}
    if plan.sensitive:
        what = "What they are; they are checked. You get a token in place of them"
        given["kind"] = {"type": "string", "enum": list(KINDS), "description": what}
    return {**_tool_object(COLLECT_DIGITS, description, given), "parameters": _with_optional(given)}


def schedule_callback(plan: SchedulePlan, description: str) -> dict[str, Any] | None:
    """Return the tool ``schedule_callback``: ``at`` (ISO 8601), and if wanted ``number`` and
    ``reason``. None where the route does not enable it."""
    if not plan.enabled:
        return None
    at = {
        "type": "string",
        "description": "ISO 8601, like 2026-11-20T14:30; local to the route where it names no "
        f"offset. At most {plan.max_days} days from now",
    }
    number = {
        "type": "string",
        "description": "With area code; leave it out to call the number that calls now",
    }
    reason = {"type": "string", "maxLength": 500, "description": "What it is to be about"}
    given = {"at": at, "number": number, "reason": reason}
    return {
        **_tool_object(SCHEDULE_CALLBACK, description, given),
        "parameters": {**_with_optional(given), "required": ["at"]},
    }


def record_call(plan: RecordingPlan, description: str) -> dict[str, Any] | None:
    """Return the tool ``record_call`` (``action``); None where the route records nothing or does
    not offer the tool."""
    if plan.mode == "off" or not plan.tool:
        return None
    action = {"type": "string", "enum": ["start", "stop", "pause", "resume", "delete"]}
    return _tool_object(RECORD_CALL, description, {"action": action})


def _with_optional(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object with these properties and no others, none of them
    required."""
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _tool_object(name: str, description: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function tool for the session's ``tools``, whose arguments are ``properties`` (JSON
    schemas by name) and no others; all are required."""
    parameters = {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }
    if properties:
        parameters["required"] = list(properties)
    return {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": parameters,
    }


PAUSES = {"w": 0.5, "W": 1.0, ",": 2.0}
"""Pauses (s) between digits, as in Asterisk's dial strings."""

MAX_KEYS = 64
"""DTMF digits and pauses in one call of ``send_dtmf``."""

NUMBER = re.compile(r"\+?[0-9*#]{1,32}")
"""Numbers that may become part of an address, whatever a route allows."""


class ToolCallError(Exception):
    """Says why a tool call cannot be carried out, in words that the model gets as the error."""


class _Arguments(BaseModel):
    """Base of the arguments of a tool call, as the model sends them; unknown ones are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_M = TypeVar("_M", bound=_Arguments)


class TransferArguments(_Arguments):
    """Arguments of ``transfer_call``: name of a destination, or number; and the briefing."""

    destination: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    briefing: Annotated[str, StringConstraints(strip_whitespace=True)] = ""


class PressArguments(_Arguments):
    """Arguments of ``send_dtmf``: DTMF digits and pauses, not checked yet."""

    digits: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class HoldArguments(_Arguments):
    """Arguments of ``hold``: more than 0 seconds."""

    seconds: Annotated[float, Field(gt=0)]


class LanguageArguments(_Arguments):
    """Arguments of ``set_language``: code or name of a language."""

    language: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class DispositionArguments(_Arguments):
    """Arguments of ``set_disposition``: one of the route's values, not checked yet."""

    disposition: str


def disposition_of(arguments: str, plan: DispositionPlan) -> str:
    """Return the disposition in the arguments (JSON text) of ``set_disposition``. Raises
    ToolCallError where the route does not list it."""
    wanted = _parse_arguments(DispositionArguments, arguments).disposition
    if wanted not in plan.values:
        raise ToolCallError(f"disposition: must be one of {', '.join(plan.values)}")
    return wanted


class RecordArguments(_Arguments):
    """Arguments of ``record_call``: what is to be done with the recording."""

    action: Literal["start", "stop", "pause", "resume", "delete"]


def record_action(arguments: str) -> str:
    """Return the action in the arguments (JSON text) of ``record_call``: start, stop, pause, resume
    or delete. Raises ToolCallError for any other."""
    return _parse_arguments(RecordArguments, arguments).action


class CollectArguments(_Arguments):
    """Arguments of ``collect_digits``; None: left out. The terminator "" means that none ends
    them."""

    digits: Annotated[int, Field(ge=1)] | None = None
    terminator: Annotated[str, StringConstraints(pattern=r"^[0-9*#]?$")] | None = None
    seconds: Annotated[float, Field(ge=1, le=120)] | None = None
    kind: Literal["digits", "card_number", "expiry", "security_code"] = "digits"


@dataclass(frozen=True, slots=True)
class Target:
    """Target of a transfer: a destination of the route, and the URI to call, which it allows."""

    destination: Destination
    uri: str
    briefing: str = ""
    """What the target is told before it takes the call, where the destination's briefing has no
    text of its own; "" for a summary by the model."""


def transfer_target(arguments: str, plan: TransferPlan) -> Target:
    """Return the target in the arguments (JSON text) of ``transfer_call``.

    It is the destination without ``allowed_numbers`` that has the given name, upper or lower case.
    Without such a one, what was given is taken as a number, without spaces and -./(), that must
    match :data:`NUMBER`; it is the first destination whose ``allowed_numbers`` match the whole
    number, which is put into the destination's ``to``. A briefing is cut to ``MAX_BRIEFING``
    characters. Raises ToolCallError where neither is found, or the arguments are wrong.
    """
    given = _parse_arguments(TransferArguments, arguments)
    wanted, briefing = given.destination, given.briefing[:MAX_BRIEFING]
    for one in plan.destinations:
        if one.allowed_numbers is None and one.name.casefold() == wanted.casefold():
            return Target(one, one.to, briefing)
    number = re.sub(r"[\s()./-]", "", wanted)
    if NUMBER.fullmatch(number):
        for one in plan.destinations:
            if one.allowed_numbers is not None and one.allowed_numbers.fullmatch(number):
                uri = one.to.replace("{number}", number.replace("#", "%23"))
                return Target(one, uri, briefing)
    names = ", ".join(repr(one.name) for one in plan.destinations)
    raise ToolCallError(f"destination {wanted!r} is not allowed; there are: {names}")


def key_steps(arguments: str) -> tuple[str | float, ...]:
    """Return the DTMF digits (str) and pauses (float, s) in the arguments (JSON text) of
    ``send_dtmf``, in order; spaces and hyphens are dropped, and a-d become A-D.

    Raises ToolCallError for other characters, for more than ``MAX_KEYS`` digits and pauses
    together, and where there is no digit.
    """
    digits = _parse_arguments(PressArguments, arguments).digits
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
    """Return the seconds in the arguments (JSON text) of ``hold``. Raises ToolCallError unless they
    are more than 0 and at most ``longest``."""
    seconds = _parse_arguments(HoldArguments, arguments).seconds
    if seconds > longest:
        raise ToolCallError(f"seconds: {seconds:g} is too long, at most {longest:g}")
    return seconds


def language_of(arguments: str, plan: LanguagePlan) -> str:
    """Return the code of the language in the arguments (JSON text) of ``set_language``, given there
    by code or name, in any case. Raises ToolCallError where the route does not have it."""
    wanted = _parse_arguments(LanguageArguments, arguments).language
    for code, name in plan.names.items():
        if wanted.casefold() in (code.casefold(), name.casefold()):
            return code
    raise ToolCallError(f"language {wanted!r} is not offered; there are: {', '.join(plan.names)}")


def collect_wanted(arguments: str, plan: CollectPlan) -> tuple[int, str, float, str]:
    """Return number of digits, terminator, seconds for each digit, and kind, from the arguments
    (JSON text) of ``collect_digits``.

    Where the model leaves one out, it is, in this order: the most digits that route and kind allow,
    "#", the route's ``timeout``, and ``digits``. With the terminator "" no key ends the digits.
    Raises ToolCallError, also for more digits than the route allows.
    """
    wanted = _parse_arguments(CollectArguments, arguments)
    most = wanted.digits or min(plan.max_digits, most_digits(wanted.kind))
    if most > plan.max_digits:
        raise ToolCallError(f"digits: at most {plan.max_digits}")
    terminator = "#" if wanted.terminator is None else wanted.terminator
    return most, terminator, wanted.seconds or plan.timeout, wanted.kind


def _parse_arguments(model: type[_M], arguments: str) -> _M:
    """Return the arguments (JSON text, "" for none) as an instance of ``model``. Raises
    ToolCallError with the first five things that are wrong."""
    try:
        return model.model_validate_json(arguments.strip() or "{}")
    except ValidationError as error:
        raise ToolCallError(mistakes_of(error)) from None


def calls_of(output: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the function calls among the items of a response, in order; of those with the same
    ``call_id`` only the last, while those without one are all kept."""
    calls = [item for item in output if item.get("type") == "function_call"]
    return list({call_id_of(call) or str(at): call for at, call in enumerate(calls)}.values())


def call_id_of(call: Mapping[str, Any]) -> str:
    """Return the ``call_id`` of a function call; "" where it has none."""
    return str(call.get("call_id", ""))

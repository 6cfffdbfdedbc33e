# SPDX-License-Identifier: GPL-2.0-or-later
"""What the emulator says: fixed rules that make a phone call worth trying.

It knows what was put into the conversation since its last answer (a :class:`Turn`) and says it
back: instructions, texts, digits one by one, and how long the caller spoke, with the caller's own
voice after it. It understands nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.devtools.emulator.espeak import words_of_keys

GREETING = (
    "Hello. You are talking to the emulator, not to a real model. "
    "Say something, or press some keys."
)
FAREWELL = "Thank you for calling. Goodbye."
STILL_THERE = "Are you still there?"
END_CALL = "end_call"

_EXACTLY = re.compile(r"\bsay\s+(?:exactly|the following|this)\b[^:]*:\s*(.+)", re.I | re.S)
_PRESSED = re.compile(r"\bpressed\s+((?:[0-9A-D*#]\s*)+)(?![\w])")
_BYE = re.compile(r"\bgood\s?-?bye\b|\bhang up\b", re.I)
_QUOTES = "\"'“”„«»"


@dataclass(slots=True)
class Turn:
    """What an answer is to: everything since the last one."""

    instructions: str | None = None
    """Of this ``response.create``, not of the session."""
    texts: list[str] = field(default_factory=list)
    caller_spoke: bool = False
    spoken_ms: int = 0
    outputs: list[str] = field(default_factory=list)
    """Results of function calls."""
    idle: bool = False
    first: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """An answer: words to speak, the caller's audio to play after them, functions to call."""

    text: str
    play_caller: bool = False
    calls: tuple[tuple[str, str], ...] = ()


def plan(turn: Turn, tools: Sequence[Mapping[str, Any]]) -> Plan:
    """The answer to ``turn``; ``tools`` are the function tools in force."""
    if turn.instructions:
        exact = _EXACTLY.search(turn.instructions)
        text = exact.group(1) if exact else turn.instructions
        return Plan(text.strip().strip(_QUOTES).strip())
    if turn.texts:
        return _to_texts(turn.texts, tools)
    if turn.caller_spoke:
        seconds = f"{turn.spoken_ms / 1000:.1f}"
        return Plan(f"You spoke for {seconds} seconds. This is what I heard.", play_caller=True)
    if turn.outputs:
        return Plan(f"The function answered: {turn.outputs[-1][:300]}")
    if turn.idle:
        return Plan(STILL_THERE)
    return Plan(GREETING if turn.first else "I am still here.")


def _to_texts(texts: Sequence[str], tools: Sequence[Mapping[str, Any]]) -> Plan:
    said = []
    for text in texts:
        pressed = _PRESSED.search(text)
        keys = re.sub(r"\s", "", pressed.group(1)) if pressed else ""
        if keys in ("0", "0#") or _BYE.search(text):
            return farewell(tools)
        said.append(f"You pressed {words_of_keys(keys)}." if keys else f"You wrote: {text}")
    return Plan(" ".join(said))


def farewell(tools: Sequence[Mapping[str, Any]], text: str = FAREWELL) -> Plan:
    """Say goodbye, and call :data:`END_CALL` where the session has it."""
    return Plan(text, calls=end_call(tools))


def end_call(tools: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """The call of :data:`END_CALL` with arguments that its schema wants, if it is a tool."""
    for tool in tools:
        if tool.get("type") == "function" and tool.get("name") == END_CALL:
            return ((END_CALL, json.dumps(_arguments(tool.get("parameters") or {}))),)
    return ()


def _arguments(schema: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    properties = schema.get("properties") or {}
    for name in schema.get("required") or []:
        kind = properties.get(name) or {}
        values = kind.get("enum")
        if values:
            arguments[name] = values[0]
        elif kind.get("type", "string") == "string":
            arguments[name] = "The caller said goodbye."
        else:
            arguments[name] = {"boolean": True, "integer": 0, "number": 0, "array": []}.get(
                kind["type"], {}
            )
    return arguments

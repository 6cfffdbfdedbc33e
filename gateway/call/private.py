"""Digits that were collected as private: masked wherever they come back.

The model reads them back, says them in words or in groups, hands them to a tool: "4242", "42 42",
"4-2-4-2", "four two four two". What was written before they were known has none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "****"

FEWEST = 3
"""Digits; of fewer every other number would be masked, and a single key is no secret."""

_WORDS = {
    "0": "zero|null|oh|zéro|cero|nul",
    "1": "one|eins|ein|un|uno|een",
    "2": "two|zwei|zwo|deux|dos|due|twee",
    "3": "three|drei|trois|tres|tre|drie",
    "4": "four|vier|quatre|cuatro|quattro",
    "5": "five|fünf|cinq|cinco|cinque|vijf",
    "6": "six|sechs|seis|sei|zes",
    "7": "seven|sieben|sept|siete|sette|zeven",
    "8": "eight|acht|huit|ocho|otto",
    "9": "nine|neun|neuf|nueve|nove|negen",
}

_NAMES = frozenset({"id", "started_at", "file", "source", "type", "name", "t_ms"})
"""Keys of values that nobody says; masking them would only break them."""


class PrivateDigits:
    """Those of one call."""

    def __init__(self) -> None:
        self._patterns: list[re.Pattern[str]] = []

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def add(self, digits: str) -> None:
        """Mask these from now on."""
        digits = "".join(digit for digit in digits if digit in _WORDS)
        if len(digits) < FEWEST:
            return
        each = (rf"(?:{digit}|(?:{_WORDS[digit]})(?!\w))" for digit in digits)
        self._patterns.append(re.compile(r"[\W_]{0,3}".join(each), re.IGNORECASE))

    def masked(self, value: Any) -> Any:
        """A copy of a value of JSON with :data:`MASK` in place of the digits."""
        if not self._patterns:
            return value
        if isinstance(value, str):
            for pattern in self._patterns:
                value = pattern.sub(MASK, value)
            return value
        if isinstance(value, Mapping):
            return {
                key: inner if key in _NAMES or str(key).endswith("_id") else self.masked(inner)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.masked(inner) for inner in value]
        return value

    def masked_event(self, event: Mapping[str, Any]) -> Any:
        """As :meth:`masked`, for an event of a session: parts of words have only their length."""
        delta = event.get("delta")
        if self._patterns and isinstance(delta, str):
            event = {**event, "delta": {"chars": len(delta)}}
        return self.masked(event)

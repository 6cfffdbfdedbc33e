"""What records, event logs and log lines do not tell: numbers, keys, and private digits.

Digits that were collected as private are masked wherever they come back.
The model reads them back, says them in words or in groups, hands them to a tool: "4242", "42 42",
"4-2-4-2", "four two four two". What was written before they were known has none of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

MASK = "****"

FEWEST = 3
"""Digits; fewer are masked only where they stand alone, as figures or as two words in a row: else
they would be masked within other numbers, and every "one" of a sentence."""

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

_NAMES = frozenset(
    {"id", "call", "session", "event", "started_at", "timestamp", "file", "source", "type", "name"}
)
"""Keys of values that nobody says; masking them would only break them."""


_NUMBERS = re.compile(
    r"(?i)(?<=sip:)\+?[\d.\-()]{4,24}(?=@)|(?<=sips:)\+?[\d.\-()]{4,24}(?=@)"
    r"|(?<=tel:)\+?[\d.\-()]{4,24}"
    r"|(?<![\w.:-])\+\d[\d \-/()]{4,22}\d(?![\w:-])"
    r"|(?<![\w.:-])\d{6,18}(?![\w:-])"
)
"""Telephone numbers: the users of URIs, and what looks like one in a text."""

SHOWN = 3
"""Digits of a number that stay, the last ones."""

_KEYS = frozenset({"digit", "digits", "keys"})
"""Names of values that hold keys which somebody pressed."""

_KEYS_IN_TEXT = re.compile(r'(\\?"(?:digits?|keys)\\?"\s*:\s*\\?")([0-9*#A-D]+)')


def _masked_number(found: re.Match[str]) -> str:
    number = found[0]
    hidden = sum(char.isdigit() for char in number) - SHOWN
    told = []
    for char in number:
        told.append("*" if char.isdigit() and hidden > 0 else char)
        hidden -= char.isdigit()
    return "".join(told)


def _masked_keys(text: str) -> str:
    return re.sub(r"[0-9*#A-D]", "*", text)


class PrivateDigits:
    """Those of one call, and what else is masked of it.

    Args:
        redact: "numbers", "dtmf", both or nothing.
    """

    def __init__(self, redact: Collection[str] = ()) -> None:
        self._patterns: list[re.Pattern[str]] = []
        self.numbers = self.dtmf = False
        self.redact(redact)

    def __bool__(self) -> bool:
        return bool(self._patterns) or self.numbers or self.dtmf

    def redact(self, what: Collection[str]) -> None:
        """Mask these from now on."""
        self.numbers, self.dtmf = "numbers" in what, "dtmf" in what

    def pressed(self, digits: str) -> None:
        """The caller's keys, not asked for as private ones."""
        if self.dtmf:
            self.add(digits)

    def add(self, digits: str) -> None:
        """Mask these from now on."""
        digits = "".join(digit for digit in digits if digit in _WORDS)
        if not digits:
            return
        if len(digits) < FEWEST:
            figures = r"[\W_]{0,3}".join(digits)
            words = r"[\W_]{1,3}".join(f"(?:{_WORDS[digit]})" for digit in digits)
            alone = figures if len(digits) == 1 else f"(?:{figures}|{words})"
            # Not in 14:30, 4.5 or +49: a figure of another number is none of these.
            found = rf"(?<![\w+])(?<!\d[.,:/-]){alone}(?![.,:/-]?\d)(?!\w)"
            self._patterns.append(re.compile(found, re.IGNORECASE))
            return
        each = (rf"(?:{digit}|(?:{_WORDS[digit]})(?!\w))" for digit in digits)
        self._patterns.append(re.compile(r"[\W_]{0,3}".join(each), re.IGNORECASE))

    def masked(self, value: Any) -> Any:
        """A copy of a value of JSON with :data:`MASK` in place of the digits."""
        if not self:
            return value
        if isinstance(value, str):
            return self._masked_text(value)
        if isinstance(value, Mapping):
            return {key: self._masked_value(str(key), inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.masked(inner) for inner in value]
        return value

    def _masked_value(self, key: str, value: Any) -> Any:
        if key in _NAMES or key.endswith("_id"):
            return value
        if self.dtmf and key in _KEYS and isinstance(value, str):
            return _masked_keys(value)
        return self.masked(value)

    def _masked_text(self, text: str) -> str:
        for pattern in self._patterns:
            text = pattern.sub(MASK, text)
        if self.dtmf:
            text = _KEYS_IN_TEXT.sub(lambda found: found[1] + _masked_keys(found[2]), text)
        return _NUMBERS.sub(_masked_number, text) if self.numbers else text

    def masked_event(self, event: Mapping[str, Any]) -> Any:
        """As :meth:`masked`, for an event of a session: parts of words have only their length."""
        delta = event.get("delta")
        if self and isinstance(delta, str):
            event = {**event, "delta": {"chars": len(delta)}}
        return self.masked(event)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts from outside: cleaned before they are stored, matched or shown; private digits masked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from pydantic import ValidationError

_SURROGATES = re.compile(r"[\ud800-\udfff]")


def unicode_of(text: str) -> str:
    """Return the text with U+FFFD in place of lone surrogates, which no encoder accepts.

    pjsua2 makes them of bytes that are not UTF-8; JSON may have them as escapes.
    """
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def path_of(text: str) -> Path:
    """Return the path that a text names; ``~`` is a home folder.

    Raises ValueError where there is no such home, as for many services, and for what is no path.
    """
    if "\0" in text:
        raise ValueError("has a character that no path has")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~, and no such home folder is known") from None


_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Controls of terminals (C0, C1), of lines and of the direction of writing; lone surrogates."""


def printable(text: str) -> str:
    """Return the text on one line and without control characters, for people to read.

    White space becomes spaces; other characters that control a terminal or the direction of writing
    become ``\\u001b`` and the like, as JSON escapes them.
    """
    return text if text.isprintable() else _UNSHOWN.sub(_shown, text)


def unicode_in(value: Any) -> Any:
    """Return a JSON value with :func:`unicode_of` applied to its texts."""
    return _each_text(value, unicode_of)


def printable_in(value: Any) -> Any:
    """Return a JSON value with :func:`printable` applied to its texts."""
    return _each_text(value, printable)


def json_of(text: str | bytes) -> Any:
    """Parse JSON from outside, and apply :func:`unicode_of` to its texts.

    Raises ValueError, also where it is nested too deeply.
    """
    try:
        return unicode_in(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_text(value: Any) -> str:
    """Return a value as JSON on one line, :func:`jsonable` where it has to be. Lone surrogates,
    which become ASCII escapes, and integers of more than 64 bits are written, too."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(jsonable(value), separators=(",", ":"))


MAX_NESTED = 100
"""Levels of a value that are written as JSON."""


def jsonable(value: Any, depth: int = 0) -> Any:
    """Return a value with what JSON can say of it: null for a number that is not finite, ``...``
    for what is nested deeper than ``MAX_NESTED``, and the ``str`` of what JSON has no form for."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return str(value)
    if depth == MAX_NESTED:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner, depth + 1) for key, inner in value.items()}
    return [jsonable(inner, depth + 1) for inner in value]


def text_or_json(value: object) -> str:
    """Return a text as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): _each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each_text(inner, change) for inner in value]
    return value


def _shown(found: re.Match[str]) -> str:
    """Return what :func:`printable` puts in place of a character."""
    char = found[0]
    if char in "\t\n\v\f\r\x85\u2028\u2029":
        return " "
    return "\ufffd" if "\ud800" <= char <= "\udfff" else f"\\u{ord(char):04x}"


def whole_number(text: str, digits: int = 9) -> int | None:
    """Return the number in a text of at most ``digits`` ASCII digits; None for any other text.

    ``str.isdigit`` alone is true of "²", and ``int`` raises on 4,301 digits.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None


def mistakes_of(error: ValidationError) -> str:
    """Return the first five things that are wrong with arguments, for the model."""
    told = [
        f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}"
        for one in error.errors(include_url=False, include_input=False)
    ]
    return "; ".join(told[:5])


MAX_SUBJECT = 256
"""Characters of a number, URI or header field that is matched; a longer one matches nothing."""


def searched(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return ``pattern.search(text)``; None for a text that is too long."""
    return pattern.search(text) if len(text) <= MAX_SUBJECT else None


def matched(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return ``pattern.fullmatch(text)``; None for a text that is too long."""
    return pattern.fullmatch(text) if len(text) <= MAX_SUBJECT else None


def money(amount: Decimal) -> str:
    """Return an amount with at least two and at most seven digits behind the point."""
    whole, _, part = f"{amount:.7f}".partition(".")
    return f"{whole}.{part.rstrip('0').ljust(2, '0')}"


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case, without punctuation but for hyphens and apostrophes
    inside a word."""
    return tuple(re.findall(r"\w+(?:[-'\u2019]\w+)*", text.casefold()))


def has_words(text: str, wanted: str) -> bool:
    """Return whether the text contains the words of ``wanted``, one after the other."""
    return contains_phrase(words_of(text), words_of(wanted))


def contains_phrase(words: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    """Return whether ``phrase`` is a run of successive ``words``."""
    size = len(phrase)
    return any(words[at : at + size] == phrase for at in range(len(words) - size + 1))


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

_TEENS = {
    "0": "ten|zehn|dix",
    "1": "eleven|elf|onze",
    "2": "twelve|zwölf|douze",
    "3": "thirteen|dreizehn|treize",
    "4": "fourteen|vierzehn|quatorze",
    "5": "fifteen|fünfzehn|quinze",
    "6": "sixteen|sechzehn|seize",
    "7": "seventeen|siebzehn|dix-sept",
    "8": "eighteen|achtzehn|dix-huit",
    "9": "nineteen|neunzehn|dix-neuf",
}
"""From ten to nineteen, by their second digit."""

_TENS = {
    "2": "twenty|zwanzig|vingt|veinte|venti",
    "3": "thirty|dreißig|dreissig|trente|treinta|trenta",
    "4": "forty|vierzig|quarante|cuarenta|quaranta",
    "5": "fifty|fünfzig|cinquante|cincuenta|cinquanta",
    "6": "sixty|sechzig|soixante|sesenta|sessanta",
    "7": "seventy|siebzig|setenta|settanta",
    "8": "eighty|achtzig|quatre-vingts|quatre-vingt|ochenta|ottanta",
    "9": "ninety|neunzig|noventa|novanta",
}

_BETWEEN = re.compile(
    r"[\W_]{0,8}(?:(?:and|then|the|a|und|dann|et|puis|y)[\W_]{1,8}){0,3}", re.IGNORECASE
)
"""What stands between two digits that are read out: white space, signs, a few words."""

_FULL_WIDTH = {0xFF10 + figure: str(figure) for figure in range(10)}

_NAMES = frozenset(
    {"id", "call", "session", "event", "started_at", "timestamp", "file", "source", "type", "name"}
)
"""Keys of texts that nobody says; masking them would only break them."""


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
    """Return a telephone number with all but its last digits masked."""
    number = found[0]
    hidden = sum(char.isdigit() for char in number) - SHOWN
    told = []
    for char in number:
        told.append("*" if char.isdigit() and hidden > 0 else char)
        hidden -= char.isdigit()
    return "".join(told)


def _masked_keys(text: str) -> str:
    """Return DTMF digits with a star for each."""
    return re.sub(r"[0-9*#A-D]", "*", text)


def _values_of_words() -> dict[str, str]:
    """Return the digits that each number word stands for."""
    values = {word: digit for digit, words in _WORDS.items() for word in words.split("|")}
    values |= {word: f"1{unit}" for unit, words in _TEENS.items() for word in words.split("|")}
    return values


_VALUES = _values_of_words()
_TEN_VALUES = {word: ten for ten, words in _TENS.items() for word in words.split("|")}
_ONE = "|".join(
    word for digit, words in _WORDS.items() if digit != "0" for word in words.split("|")
)
_SPOKEN = re.compile(
    rf"(?P<figure>\d)|(?<![^\W\d_])(?:(?P<first>{_ONE})und(?P<second>{'|'.join(_TEN_VALUES)})"
    rf"|(?P<ten>{'|'.join(_TEN_VALUES)})(?:[\s-]{{1,2}}(?P<unit>{_ONE}))?"
    rf"|(?:double|doppel[nt]?)[\s-]{{0,2}}(?P<twice>\d|{_ONE})"
    rf"|(?P<word>{'|'.join(sorted(_VALUES, key=len, reverse=True))}))(?![^\W_])",
    re.IGNORECASE,
)
"""A digit, or a number below a hundred in words."""


def _digits_of(found: re.Match[str]) -> str:
    """Return the digits of a match of :data:`_SPOKEN`; "?" for letters of unusual case."""
    said = {name: value.casefold() for name, value in found.groupdict().items() if value}
    if "figure" in said:
        return str(int(said["figure"]))  # of any script
    if "word" in said:
        return _VALUES.get(said["word"], "?")
    if "twice" in said:
        return _VALUES.get(said["twice"], said["twice"][:1]) * 2
    ten = _TEN_VALUES.get(said.get("ten") or said["second"], "?")
    unit = said.get("unit") or said.get("first")
    return ten + (_VALUES.get(unit, "?") if unit else "0")


def _mask_digits(text: str, secrets: Collection[str]) -> str:
    """Return the text with :data:`MASK` in place of these digits, however they are read out."""
    told: list[str] = []
    run: list[re.Match[str]] = []
    end = 0

    def close() -> None:
        nonlocal end
        owners = [found for found in run for _ in _digits_of(found)]
        digits = "".join(_digits_of(found) for found in run)
        at = 0
        while at < len(digits):
            secret = next((one for one in secrets if digits.startswith(one, at)), "")
            if secret and owners[at].start() >= end:
                told.extend((text[end : owners[at].start()], MASK))
                end = owners[at + len(secret) - 1].end()
            at += len(secret) or 1

    for found in _SPOKEN.finditer(text):
        if run and not _BETWEEN.fullmatch(text, run[-1].end(), found.start()):
            close()
            run = []
        run.append(found)
    close()
    return "".join((*told, text[end:]))


_CARDS = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBANS = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}(?!\w)")
_EMAILS = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
"""Each takes time in proportion to the text: every repetition has a small bound."""


def _is_card(text: str) -> bool:
    """Return whether these digits end with a card's check digit (Luhn, ISO/IEC 7812)."""
    digits = [int(char) for char in text]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(digits) >= 13 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_iban(text: str) -> bool:
    """Return whether this has an IBAN's check digits (ISO 13616)."""
    figures = "".join(str(int(one, 36)) for one in text[4:] + text[:4])
    return len(text) >= 15 and int(figures) % 97 == 1


def _masked_run(found: re.Match[str], fits: Callable[[str], bool]) -> str:
    """Return a run of groups with its longest beginning that fits masked: more may follow it."""
    text = found[0]
    ends = [at.start() for at in re.finditer("[ -]", text)]
    for end in (len(text), *reversed(ends)):
        if fits(re.sub("[ -]", "", text[:end])):
            return MASK + text[end:]
    return text


def _masked_email(found: re.Match[str]) -> str:
    """Return an e-mail address masked; the one in a SIP URI is none."""
    before = found.string[max(0, found.start() - 5) : found.start()].lower()
    return found[0] if before.endswith(("sip:", "sips:")) else MASK


_KINDS: dict[str, Callable[[str], str]] = {
    "ibans": lambda text: _IBANS.sub(lambda one: _masked_run(one, _is_iban), text),
    "cards": lambda text: _CARDS.sub(lambda one: _masked_run(one, _is_card), text),
    "emails": lambda text: text if "@" not in text else _EMAILS.sub(_masked_email, text),
    "numbers": lambda text: _NUMBERS.sub(_masked_number, text),
}
"""What is masked by its form, in this order: a card is no telephone number."""


@lru_cache(maxsize=1000)
def redaction(pattern: str) -> Any:
    """Return what an operator's pattern masks, as a compiled expression of RE2.

    RE2 takes time in proportion to the text, whatever the pattern. Raises ValueError.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        found = re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args else "is wrong"
        raise ValueError(f"is not a regular expression of RE2: {why}") from None
    if found.search("") is not None:
        raise ValueError("matches everything: it matches an empty text")
    return found


class PrivateDigits:
    """Masks private digits and other private text in the records of one call.

    Args:
        redact: kinds of text: "numbers", "dtmf", "cards", "ibans", "emails".
    """

    def __init__(self, redact: Collection[str] = ()) -> None:
        self._patterns: list[re.Pattern[str]] = []
        self._rules: list[Any] = []
        self._kinds: list[Callable[[str], str]] = []
        self._secrets: list[str] = []
        self.dtmf = False
        self.redact(redact)

    def __bool__(self) -> bool:
        return bool(self._patterns or self._secrets or self._kinds or self._rules) or self.dtmf

    def redact(self, what: Collection[str], patterns: Collection[str] = ()) -> None:
        """Mask these kinds, and what these patterns match, as ``[records]`` says."""
        self.dtmf = "dtmf" in what
        self._kinds = [_KINDS[kind] for kind in _KINDS if kind in what]
        self._rules = [redaction(one) for one in patterns]

    def pressed(self, digits: str) -> None:
        """Note keys that were not asked for as private ones; masked where all keys are."""
        if self.dtmf:
            self.add(digits)

    def add(self, digits: str) -> None:
        """Mask these digits from now on, in figures and in words."""
        digits = "".join(digit for digit in digits if digit in _WORDS)
        if not digits:
            return
        if len(digits) < FEWEST:
            figures = r"[\W_]{0,3}".join(digits)
            words = r"[\W_]{1,3}".join(f"(?:{_WORDS[digit]})" for digit in digits)
            alone = figures if len(digits) == 1 else f"(?:{figures}|{words})"
            # Not in 14:30, 4.5 or +49: a figure of another number is none of these.
            found = rf"(?<![\w+])(?<!\d[.,:/-]){alone}(?![.,:/-]?\d)(?!\w)"
            pattern = re.compile(found, re.IGNORECASE)
            if pattern not in self._patterns:
                self._patterns.append(pattern)
            return
        self._secrets = sorted({*self._secrets, digits}, key=len, reverse=True)

    def masked(self, value: Any, kept: str = "") -> Any:
        """Return a copy of a JSON value with :data:`MASK` in place of the digits; values of the key
        ``kept`` stay."""
        if not self:
            return value
        if isinstance(value, str):
            return self._masked_text(value)
        if isinstance(value, Mapping):
            return {key: self._masked_value(str(key), inner, kept) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.masked(inner, kept) for inner in value]
        return value

    def _masked_value(self, key: str, value: Any, kept: str) -> Any:
        # An event or a session as a whole has such a key, too.
        if isinstance(value, str) and (key in _NAMES or key == kept or key.endswith("_id")):
            return value
        if self.dtmf and key in _KEYS and isinstance(value, str):
            return _masked_keys(value)
        return self.masked(value, kept)

    def _masked_text(self, text: str) -> str:
        if self._patterns or self._secrets:
            text = text.translate(_FULL_WIDTH)
        if self._secrets:
            text = _mask_digits(text, self._secrets)
        for pattern in self._patterns:
            text = pattern.sub(MASK, text)
        if self.dtmf:
            text = _KEYS_IN_TEXT.sub(lambda found: found[1] + _masked_keys(found[2]), text)
        if self._rules:
            text = unicode_of(text)
        for rule in self._rules:
            text = rule.sub(MASK, text)
        for kind in self._kinds:
            text = kind(text)
        return text

    def masked_event(self, event: Mapping[str, Any]) -> Any:
        """Return a masked event of a session; parts of words keep their length only."""
        delta = event.get("delta")
        if self and isinstance(delta, str):
            event = {**event, "delta": {"chars": len(delta)}}
        return self.masked(event)

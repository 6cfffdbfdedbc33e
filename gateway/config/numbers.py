# SPDX-License-Identifier: GPL-2.0-or-later
"""Telephone numbers as they are compared: read as E.164, and by what a call to them may cost.

A number can be written in many ways that a carrier takes for the same (``+49900…``, ``0049900…``,
``0900…``, ``+49 (0) 900``, ``%30900``); where it can be read in several ways, all of them count.
The plans of all countries come from the ``phonenumbers`` library.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

import phonenumbers
from phonenumbers import PhoneMetadata, PhoneNumber, PhoneNumberType, ShortNumberCost
from phonenumbers import shortnumberinfo as short_numbers

NumberClass = Literal[
    "premium_rate",
    "shared_cost",
    "personal_number",
    "pager",
    "satellite",
    "international",
    "emergency",
]
"""Classes of numbers that cost more than a domestic call, or that a machine must not call."""

_CLASSES: dict[int, NumberClass] = {
    PhoneNumberType.PREMIUM_RATE: "premium_rate",
    PhoneNumberType.SHARED_COST: "shared_cost",
    PhoneNumberType.PERSONAL_NUMBER: "personal_number",
    PhoneNumberType.PAGER: "pager",
}
_COUNTRY_CODES: dict[int, NumberClass] = {
    870: "satellite",
    881: "satellite",
    882: "satellite",
    883: "satellite",
    878: "personal_number",
    979: "premium_rate",
}
"""Codes of no country (ITU-T E.164): Inmarsat, satellite systems, international networks ..."""

_ANY_PREFIX = re.compile(r"0{2,}|011")
"""International prefixes of most countries; a carrier may accept each of them anywhere."""

_SEPARATORS = re.compile(r"[\s()./\-_\u00ad\u2010-\u2015\u200b-\u200f\u2060\ufeff]")
_NUMBER = re.compile(r"\+?[0-9*#]+")
_SHORT = 6
"""Digits of an extension or short code at most; what is longer can be a number of a country."""

_PLAIN_PARAMETERS = frozenset(
    {"phone-context", "isub", "isub-encoding", "ext", "cpc", "oli", "user"}
)
"""Parameters of a number that do not change who is called or who carries the call. ``rn`` and
``cic`` do (RFC 4694), as do ``tgrp`` (RFC 4904) and ``postd``; of others it is not known."""

_MAX_LENGTH = 40
_E164_DIGITS = 15
"""Digits of a number at most (ITU-T E.164); networks do not look at those behind them."""

_DEAR_PREFIXES: dict[int, tuple[str, ...]] = {
    33: ("118",),
    34: ("118",),
    41: ("118", "18"),
    43: ("118",),
    44: ("118",),
    49: ("118", "12", "19"),
}
"""Country code → how national numbers begin that cost more and are of no class of the library's:
directory enquiries, innovative services, numbers of single networks."""

_CARRIER_SELECTION = {49: re.compile(r"010(?:0\d\d|\d\d)(?=\d{3})"), 1: re.compile(r"1010\d{3}")}
"""Country code → what chooses another carrier for the number that follows."""

_NAME = re.compile(r"[A-Za-z](?:[A-Za-z._\-]|[0-9](?![0-9]{3}))*")
"""A user that is no number: begins with a letter, and has no four digits in a row."""


@dataclass(frozen=True, slots=True)
class Called:
    """The number or name that a URI calls.

    ``dialled`` is its user or number without escapes and separators; ``readings`` are the E.164
    numbers that it can stand for, the likeliest first, none for an extension or a name.
    """

    dialled: str
    readings: tuple[str, ...]
    classes: frozenset[NumberClass]
    international: bool
    """Written with ``+`` or an international prefix."""
    unclear: bool
    """Neither a number nor a name, longer than a number can be, or with a parameter that may say
    otherwise: who is called is not known."""


@lru_cache(maxsize=512)
def called(uri: str, country: str = "") -> Called:
    """Return the number or name that a URI calls, its possible E.164 readings and its classes.

    Args:
        uri: a sip or tel URI, or a number by itself.
        country: where it is dialled, like DE (ISO 3166); empty when that is not known.
    """
    user, context, diverted = _dialled(uri)
    readings: list[str] = []
    for one in _behind_carrier(_dial_strings(user), country):
        for reading in _readings(one, context, country):
            if reading not in readings:
                readings.append(reading)
    classes: set[NumberClass] = set()
    for one in _dial_strings(user):
        classes |= _short_classes(one, country)
    for index, reading in enumerate(readings):
        found = _classes_of(reading, country)
        # Which country it is in is a question for the likeliest reading only.
        classes |= found if index == 0 else found - {"international"}
    abroad = user.startswith("+") or bool(_ANY_PREFIX.match(user))
    unclear = diverted or _is_unclear(user, readings)
    return Called(user, tuple(readings), frozenset(classes), abroad, unclear)


def _is_unclear(user: str, readings: list[str]) -> bool:
    if _NUMBER.fullmatch(user) is None:
        return _NAME.fullmatch(user) is None
    digits = sum(char.isdigit() for char in user)
    too_long = any(len(reading) > _E164_DIGITS + 1 for reading in readings[:1])
    return too_long or (digits > _SHORT and not readings and not re.search("[*#]", user))


def _behind_carrier(strings: list[str], country: str) -> list[str]:
    """Return the dial strings, and first those without a carrier selection code (010, 1010)."""
    codes = (phonenumbers.country_code_for_region(country),) if country else (49, 1)
    behind: list[str] = []
    for one in strings:
        for code in codes:
            pattern = _CARRIER_SELECTION.get(code)
            chosen = pattern.match(one) if pattern is not None else None
            if chosen is not None:
                behind.append(one[chosen.end() :])
    return [*behind, *strings] if country else [*strings, *behind]


def matches(number: Called, prefix: str, country: str, *, all_readings: bool) -> bool:
    """Return whether a number begins with ``prefix``, both compared as E.164 where possible.

    Args:
        all_readings: any reading is enough, as is what was dialled: for prefixes that are denied.
            For those that are permitted, only the likeliest reading counts.
    """
    plain = _SEPARATORS.sub("", prefix)
    if not plain:
        return True
    as_e164 = prefix_as_e164(plain, country)
    if all_readings and any(
        one.startswith(plain) for one in (number.dialled, *_dial_strings(number.dialled))
    ):
        return True
    if as_e164 == "+":
        if not all_readings:
            return bool(number.readings)
        return "international" in number.classes
    if as_e164:
        some = number.readings if all_readings else number.readings[:1]
        return any(reading.startswith(as_e164) for reading in some)
    if all_readings and not country and plain.startswith("0"):
        # National, of a country that nobody has named: of any.
        return any(_national(reading).startswith(plain) for reading in number.readings)
    return not number.international and number.dialled.startswith(plain)


def prefix_as_e164(prefix: str, country: str) -> str:
    """Return a dialled prefix in E.164: ``0900`` in DE as ``+49900``, ``00`` as ``+``; else ""."""
    if prefix.startswith("+"):
        return prefix
    abroad = re.match(r"00|011(?!\d*$)" if not country else _abroad(country), prefix)
    if abroad is not None:
        return "+" + prefix[abroad.end() :]
    trunk = _trunk_prefix(country)
    if trunk and prefix.startswith(trunk):
        return f"+{phonenumbers.country_code_for_region(country)}{prefix[len(trunk) :]}"
    return ""


def named_country(prefixes: tuple[str, ...], number: Called, country: str) -> bool:
    """Return whether one of ``prefixes`` has the number's own country code, not only ``+``."""
    if not number.readings:
        return False
    reading = number.readings[0]
    parsed = _parsed(reading)
    code = 0 if parsed is None else parsed.country_code or 0
    own = phonenumbers.country_code_for_region(country)
    # +1 and +44 are several countries' codes: there, more than the code has to be named.
    least = len(f"+{code}") + (code == own)
    return any(
        reading.startswith(one) and len(one) >= least
        for one in (prefix_as_e164(_SEPARATORS.sub("", prefix), country) for prefix in prefixes)
        if one
    )


def _dialled(uri: str) -> tuple[str, str, bool]:
    """The user or number, plain, the digits of its ``phone-context`` (RFC 3966), and whether
    another parameter may lead elsewhere."""
    rest = re.sub(r"^\s*(?:tel|sips?):", "", uri, flags=re.IGNORECASE)
    user, at, host = rest.partition("@")
    if not at:
        user = rest.partition("?")[0]
    diverted = "@" in host  # one reads the first, another the last as the end of the user
    for _ in range(3):  # a proxy on the way may undo escapes that were escaped
        user = unquote(user)
    number, *parameters = user.split(";")
    context = ""
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not equals and re.search(r"\d{3}", name):
            number += f";{name}"  # no parameter of a number: a PBX may dial it all
        if name.strip().lower() == "phone-context" and value.strip().startswith("+"):
            context = re.sub(r"\D", "", value)
        diverted = diverted or name.strip().lower() not in _PLAIN_PARAMETERS
    number = number.strip()
    plain = _plain(number)[:_MAX_LENGTH]
    user = plain if _NUMBER.fullmatch(plain) else number
    return user, context[:_MAX_LENGTH], diverted


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    text = "".join(str(unicodedata.digit(one, one)) for one in text)
    return re.sub(r"^\+0+", "+", _SEPARATORS.sub("", text))


def _dial_strings(user: str) -> list[str]:
    """Return the digits that a PBX may dial: all, and those after a feature code (``*31#``)."""
    found = _NUMBER.match(_plain(user))
    if found is None or (found.end() < len(user) and len(found[0]) <= _SHORT):
        return []
    whole = found[0].rstrip("*#")
    pieces = [piece for piece in re.split(r"[*#]", whole) if piece]
    return [whole] if pieces == [whole] else [whole, *pieces]


def _readings(number: str, context: str, country: str) -> Iterator[str]:
    """Yield the E.164 numbers that a dialled number may stand for."""
    if number.startswith("+"):
        yield from _e164(number, "")
        return
    if not number.isdigit():
        return
    if context:
        whole = f"+{context}{number.lstrip('0')}"
        yield from _e164(whole, "")
        parsed = _parsed(whole)
        if parsed is not None:  # the context may name more than a country
            yield from _e164(f"+{parsed.country_code}{number.lstrip('0')}", "")
    abroad = re.match(_abroad(country), number) if country else _ANY_PREFIX.match(number)
    if abroad is not None:
        yield from _e164("+" + number[abroad.end() :], "")
    trunk = _trunk_prefix(country)
    if country and trunk and number.startswith(trunk):
        yield from _e164(number, country)
    elif len(number) > _SHORT:
        at_home = _parsed(number, country) if country and not trunk else None
        if at_home is not None and phonenumbers.is_valid_number(at_home):
            yield from _e164(number, country)
        elif not number.startswith("0"):
            # Carriers take E.164 without "+" where a number at home would begin with 0.
            yield from _e164(f"+{number}", "")
    other = _ANY_PREFIX.match(number)
    if other is not None and len(number) > _SHORT:
        yield from _e164("+" + number[other.end() :], "")


def _e164(number: str, country: str) -> Iterator[str]:
    """Yield a number in E.164, as dialled in a country."""
    parsed = _parsed(number, country)
    if parsed is None:
        digits = re.sub(r"\D", "", number)
        if number.startswith("+") and digits:
            yield f"+{digits}"
        return
    code = parsed.country_code
    national = phonenumbers.national_significant_number(parsed)
    region = phonenumbers.region_code_for_country_code(code or 0)
    trunk = _trunk_prefix(region)
    if trunk == "0":  # +49 (0) 900, by however many zeros
        national = national.lstrip("0")
    selection = _CARRIER_SELECTION.get(code or 0)
    chosen = selection.match(trunk + national) if selection is not None else None
    if chosen is not None:
        rest = (trunk + national)[chosen.end() :]
        if rest.startswith(trunk or "1"):
            yield from _e164(rest, region)
    over = len(re.sub(r"\D", "", number)) - _E164_DIGITS
    yield f"+{code}{national}" + ("0" * over if over > 0 else "")


def _parsed(number: str, country: str = "") -> PhoneNumber | None:
    try:
        return phonenumbers.parse(number[: _E164_DIGITS + 1], country or None)
    except phonenumbers.NumberParseException:
        return None


def _trunk_prefix(country: str) -> str:
    """Return the national (trunk) prefix of a country, 0 in Germany; "" without one."""
    metadata = PhoneMetadata.metadata_for_region(country) if country else None
    prefix = "" if metadata is None else metadata.national_prefix or ""
    return "" if prefix == "1" else prefix


def _abroad(country: str) -> str:
    metadata = PhoneMetadata.metadata_for_region(country) if country else None
    prefix = "" if metadata is None else metadata.international_prefix or ""
    return f"(?:{prefix})" if prefix else "(?!)"


def _national(reading: str) -> str:
    """Return an E.164 number as it is dialled in its own country."""
    parsed = _parsed(reading)
    if parsed is None:
        return ""
    region = phonenumbers.region_code_for_country_code(parsed.country_code or 0)
    return _trunk_prefix(region) + phonenumbers.national_significant_number(parsed)


def _short_classes(number: str, country: str) -> set[NumberClass]:
    """Return the classes of a number of at most 6 digits, such as ``emergency``."""
    found: set[NumberClass] = set()
    if not country or len(number) > _SHORT or not number.isdigit():
        return found
    if short_numbers.connects_to_emergency_number(number, country):
        found.add("emergency")
    code = phonenumbers.country_code_for_region(country)
    if len(number) > 4 and number.startswith(_DEAR_PREFIXES.get(code, ())):
        found.add("premium_rate")
    parsed = _parsed(number, country)
    if parsed is not None:
        cost = short_numbers.expected_cost_for_region(parsed, country)
        if cost == ShortNumberCost.PREMIUM_RATE:
            found.add("premium_rate")
    return found


def _classes_of(reading: str, country: str) -> set[NumberClass]:
    """Return the classes of an E.164 number, such as ``premium_rate``, ``international``."""
    found: set[NumberClass] = set()
    parsed = _parsed(reading)
    if parsed is None:
        return {"international"} if country else found
    code = parsed.country_code or 0
    if code in _COUNTRY_CODES:
        found.add(_COUNTRY_CODES[code])
    likely = _completed(reading, parsed)
    national = phonenumbers.national_significant_number(parsed).lstrip("0")
    if national.startswith(_DEAR_PREFIXES.get(code, ())):
        found.add("premium_rate")
    kind = _CLASSES.get(phonenumbers.number_type(likely))
    if kind is not None:
        found.add(kind)
    if country:
        own = phonenumbers.country_code_for_region(country)
        region = phonenumbers.region_code_for_number(likely)
        if code != own or (region is not None and region != country):
            found.add("international")
        else:
            found |= _short_classes(phonenumbers.national_significant_number(parsed), country)
    return found


def _completed(reading: str, parsed: PhoneNumber) -> PhoneNumber:
    """Return the valid number that a network would route one of a wrong length to.

    It is routed by how it begins: digits too many are not looked at, and what is too short begins
    like a longer one.
    """
    if phonenumbers.is_valid_number(parsed):
        return parsed
    shorter = (reading[:length] for length in range(len(reading) - 1, 5, -1))
    longer = (reading + digit * more for more in range(1, 8) for digit in "1234567890")
    usual: PhoneNumber | None = None
    for one in (*shorter, *longer):
        other = _parsed(one) if len(one) <= 17 else None
        if other is None or not phonenumbers.is_valid_number(other):
            continue
        if phonenumbers.number_type(other) in _CLASSES:
            return other
        usual = usual or other
    return usual or parsed

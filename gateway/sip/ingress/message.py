# SPDX-License-Identifier: GPL-2.0-or-later
"""What the gateway reads of a SIP message besides what pjsip has parsed (RFC 3261, 4566)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from gateway.sip.ingress.nameaddr import MAX_FIELD, name_addr_of
from gateway.text import unicode_of

_COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
}
_LINE_END = re.compile(r"\r\n|\n|\r")
_FOLD = re.compile(r"(?:\r\n|\n|\r)[ \t]+")
_EMPTY_LINE = re.compile(r"\r\n\r\n|\n\n|\r\r")


def text_of(value: object) -> str:
    """A text of pjsua2's, decoded once and for all: what was no UTF-8 in it is U+FFFD."""
    return unicode_of(str(value))


def headers_of(message: str) -> Mapping[str, tuple[str, ...]]:
    """Header fields of a SIP message by lower-case full name, repeats kept in order.

    What is no field is left out, whatever comes behind it is not.
    """
    head = _FOLD.sub(" ", _EMPTY_LINE.split(message, 1)[0])
    fields: dict[str, list[str]] = {}
    for line in _LINE_END.split(head)[1:]:
        name, colon, value = line.partition(":")
        key = name.strip().lower()
        if colon and key:
            fields.setdefault(_COMPACT.get(key, key), []).append(value.strip())
    return {key: tuple(values) for key, values in fields.items()}


def body_of(message: str) -> str:
    """What follows the header, empty when nothing does."""
    parts = _EMPTY_LINE.split(message, 1)
    return parts[1] if len(parts) > 1 else ""


def request_uri_of(message: str) -> str:
    """The Request-URI of a request, empty when the start line is not one."""
    parts = _LINE_END.split(message, 1)[0].split(" ")
    return parts[1] if len(parts) == 3 and parts[2].startswith("SIP/") else ""


def uri_of(field: str) -> str:
    """The URI inside a From, To or Contact field, with or without angle brackets."""
    return name_addr_of(field).uri


def user_of(uri: str) -> str:
    """The user of a sip URI, or the number of a tel URI; empty when there is none.

    Without a password, without a telephone number's parameters (``;phone-context=``), and with
    escapes undone, as ``%2B49`` and ``+49`` are the same user (RFC 3261 section 19.1.4).
    """
    scheme, _, rest = uri[:MAX_FIELD].partition(":")
    if scheme.lower() not in ("sip", "sips", "tel"):
        return ""
    # An "@" elsewhere is escaped in both the user and what follows the host.
    user, at, _host = rest.partition("@")
    if scheme.lower() != "tel" and not at:
        return ""
    for end in ":;?" if at else ";?":
        user = user.partition(end)[0]
    return unquote(user)


def display_name_of(field: str) -> str:
    """The display name before the angle bracket, without quotes; empty when there is none."""
    return name_addr_of(field).name


def reason_of(headers: Mapping[str, tuple[str, ...]]) -> str:
    """The Reason header of a BYE or CANCEL (RFC 3326), empty without one."""
    return ", ".join(headers.get("reason", ()))

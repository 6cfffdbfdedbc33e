# SPDX-License-Identifier: GPL-2.0-or-later
"""Header fields and addresses of a SIP message (RFC 3261 sections 7.3, 20.10), and the parties that
an INVITE names. Pure.

Each character is looked at once. Strangers write these fields: a regular expression that tries its
alternatives again may take minutes for a few kilobytes, and all calls with it.

A Refer-To (RFC 3515, RFC 3891) has to be of a plain form: pjsip puts header fields of its URI into
the INVITE, and goes where ``maddr`` says; a Route there would take the call, and what it offers,
elsewhere.

P-Asserted-Identity is RFC 3325, Diversion RFC 5806, History-Info RFC 7044. Any peer can write
them: use them on routes of a trunk that removes them from what its own callers send.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from gateway.sip import Trunk
from gateway.sip.leg import Invite
from gateway.sip.messages.sdp import offered_codecs
from gateway.text import unicode_of

MAX_FIELD = 1024
"""Characters of one address, or of one field, that is read. Real ones have a few hundred."""


@dataclass(frozen=True, slots=True)
class NameAddr:
    """A display name without its quotes, a URI, and what follows them, each empty for none."""

    name: str = ""
    uri: str = ""
    parameters: str = ""
    """Without the first semicolon."""

    @property
    def number(self) -> str:
        """User of the URI, or the number of a tel URI, as :func:`user_of`; "" without one."""
        return user_of(self.uri)


def name_addr_of(text: str) -> NameAddr:
    """Parse one address, with or without angle brackets; all fields are empty if it is malformed,
    or longer than ``MAX_FIELD``.

    Without brackets, what follows a semicolon are parameters of the field, not of the URI (RFC 3261
    section 20.10).
    """
    text = text.strip()
    if len(text) > MAX_FIELD:
        return NameAddr()
    rest, quoted = text, None
    if text.startswith('"'):
        end = _end_of_quotes(text)
        if end < 0:
            return NameAddr()
        quoted, rest = _unescaped(text[1:end]), text[end + 1 :]
    before, bracket, inside = rest.partition("<")
    # Not one that is quoted, in a parameter: sip:a@h;+sip.instance="<urn:uuid:1>"
    if not bracket or (quoted is None and before.count('"') % 2):
        uri, _, parameters = ("", "", "") if quoted is not None else rest.partition(";")
        return NameAddr("", uri.strip(), parameters)
    uri, closed, after = inside.partition(">")
    if not closed:
        return NameAddr()
    name = before.strip() if quoted is None else quoted.strip()
    return NameAddr(name, uri, after.strip().removeprefix(";"))


def split_list(text: str, separator: str = ",") -> Iterator[str]:
    """Yield the parts between separators that are neither in quotes nor in angle brackets, as they
    stand; at least one."""
    inside, quoted, start, skip = False, False, 0, False
    for at, char in enumerate(text):
        if skip:
            skip = False
        elif quoted:
            skip = char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char == "<":
            inside = True
        elif char == ">":
            inside = False
        elif char == separator and not inside:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def parameter_of(parameters: str, name: str) -> str | None:
    """Return the value of the first parameter of this name (in lower case), without quotes; "" if
    it has none, None if it is absent. ``parameters`` are separated by semicolons."""
    for part in split_list(parameters, ";"):
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            value = value.strip()
            quoted = len(value) > 1 and value.startswith('"') and value.endswith('"')
            return _unescaped(value[1:-1]) if quoted else value
    return None


def _end_of_quotes(text: str) -> int:
    """Return the index of the quote that closes the string at the start of ``text``; -1 for
    none."""
    skip = False
    for at in range(1, len(text)):
        if skip:
            skip = False
        elif text[at] == "\\":
            skip = True
        elif text[at] == '"':
            return at
    return -1


def _unescaped(text: str) -> str:
    """Return a quoted string's text with backslash escapes resolved (RFC 3261 section 25.1)."""
    if "\\" not in text:
        return text
    kept: list[str] = []
    escaped = False
    for char in text:
        if char == "\\" and not escaped:
            escaped = True
        else:
            kept.append(char)
            escaped = False
    return "".join(kept)


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
    """Return a value of pjsua2's as text, with U+FFFD for bytes that are not UTF-8."""
    return unicode_of(str(value))


def headers_of(message: str) -> Mapping[str, tuple[str, ...]]:
    """Return the header fields of a SIP message by lower-case full name, repeats in order. A folded
    line is one, a compact name is written out.

    Lines that are no fields, and the first line, are skipped.
    """
    head = _FOLD.sub(" ", _EMPTY_LINE.split(message, 1)[0])
    fields: dict[str, list[str]] = {}
    for line in _LINE_END.split(head)[1:]:
        name, colon, value = line.partition(":")
        key = name.strip().lower()
        if colon and key:
            fields.setdefault(_COMPACT.get(key, key), []).append(value.strip())
    return {key: tuple(values) for key, values in fields.items()}


def session_interval(message: bytes) -> float:
    """Return the Session-Expires (s) of a request whose Supported has ``timer``, so that a 422 with
    Min-SE helps (RFC 4028 section 9); else inf."""
    headers = headers_of(message.decode("utf-8", "replace"))
    supported = ",".join(headers.get("supported", ())).lower().replace(" ", "").split(",")
    interval = re.match(r"\d{1,9}", first_of(headers, "session-expires"))
    return int(interval[0]) if interval is not None and "timer" in supported else float("inf")


def first_of(headers: Mapping[str, Sequence[str]], name: str) -> str:
    """Return the first value of a header field (lower-case full name), or ""."""
    return next(iter(headers.get(name, ())), "")


def body_of(message: str) -> str:
    """Return what follows the first empty line of a message, or ""."""
    parts = _EMPTY_LINE.split(message, 1)
    return parts[1] if len(parts) > 1 else ""


def start_line_of(message: str) -> str:
    """Return the request line or status line."""
    return _LINE_END.split(message, maxsplit=1)[0]


def request_uri_of(message: str) -> str:
    """Return the Request-URI of a request; "" for another start line."""
    parts = start_line_of(message).split(" ")
    return parts[1] if len(parts) == 3 and parts[2].startswith("SIP/") else ""


def uri_of(field: str) -> str:
    """Return the URI of a From, To or Contact field, with or without angle brackets; "" if it is
    malformed."""
    return name_addr_of(field).uri


def user_of(uri: str) -> str:
    """Return the user of a sip URI, or the number of a tel URI; "" when there is none.

    Without password and without parameters of a telephone number (``;phone-context=``); escapes are
    resolved, since ``%2B49`` and ``+49`` are the same user (RFC 3261 section 19.1.4). U+FFFD stands
    for U+0000, which PostgreSQL does not take, and for lone surrogates.
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
    return unicode_of(unquote(user)).replace("\0", "\ufffd")


def display_name_of(field: str) -> str:
    """Return the display name before the angle bracket, without quotes; "" when there is none."""
    return name_addr_of(field).name


def reason_of(headers: Mapping[str, tuple[str, ...]]) -> str:
    """Return the Reason header fields of a BYE or CANCEL (RFC 3326), separated by commas, or ""."""
    return ", ".join(headers.get("reason", ()))


MAX_REFER_TO = 1000
"""Characters of a Refer-To field that is read."""

_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.\-]*[A-Za-z0-9])?)"
_SIP = re.compile(
    rf"sips?:(?:[!$&'()*+,;=A-Za-z0-9\-_.~/:#%]+@)?{_HOST}(?::[0-9]{{1,5}})?"
    r"((?:;[A-Za-z0-9\-_.!~*'()%\[\]/:&+$=]+)*)"
    r"(?:\?([^?\s<>\"]+))?",
    re.IGNORECASE,
)
_TEL = re.compile(r"tel:\+?[0-9A-Fa-f*#\-.()]+(?:;[A-Za-z0-9\-.=+%]+)*()()", re.IGNORECASE)
_CALL_ID = r"[!-+\--:<-~]+"
"""Any printable but comma and semicolon."""
_TAG = r"[A-Za-z0-9\-.!%*_+`'~]+"
_REPLACES = re.compile(
    rf"{_CALL_ID}(?:;(?:to-tag|from-tag)={_TAG}|;early-only){{2,3}}", re.IGNORECASE
)
GOES_ELSEWHERE = {"maddr", "lr", "method", "ttl"}
"""Parameters that change where, or what, is sent."""


@dataclass(frozen=True, slots=True)
class ReferTo:
    """What a Refer-To asks for. ``uri`` is without header fields, "" if it cannot be read; ``flaw``
    says why it may not be followed, "" if it may."""

    uri: str
    flaw: str = ""


def refer_to_of(field: str) -> ReferTo:
    """Parse a Refer-To field: a bare sip or tel URI, or one in angle brackets with or without a
    name. A flaw are parameters that lead elsewhere (``maddr``, ``lr``, ...) and header fields but
    Replaces."""
    text = field.strip()
    if len(text) > MAX_REFER_TO:
        return ReferTo("", "too long")
    if text.endswith(">"):
        name, bracket, uri = text[:-1].rpartition("<")
        if not bracket or set(name.replace('\\"', "")) & set("<>;?"):
            return ReferTo("", "not one address")
    elif set(text) & set("<>;?,"):
        # Bare, what follows belongs to the field (RFC 3261 section 20.10); pjsip thinks otherwise.
        return ReferTo("", "parameters of an address without brackets")
    else:
        uri = text
    found = _SIP.fullmatch(uri) or _TEL.fullmatch(uri)
    if found is None:
        return ReferTo("", "not a sip or tel URI")
    plain = uri.partition("?")[0]
    for parameter in (found[1] or "").split(";"):
        name = unquote(parameter.partition("=")[0]).lower()
        if name in GOES_ELSEWHERE:
            return ReferTo(plain, f"parameter {name}")
    return ReferTo(plain, _header_flaw(found[2] or ""))


def sip_target(uri: str, trunk: Trunk, source: str) -> str:
    """Return a tel URI as a sip URI at a trunk (RFC 3261 section 19.1.6): at its registrar, else
    its first single peer, else ``source``, else its proxy. Others unchanged.

    PBXs refuse a REFER to a tel URI, Asterisk with 400.

    Args:
        source: ``host:port`` that the trunk's call came from, where it came in.
    """
    if not uri.lower().startswith("tel:"):
        return uri
    number, semicolon, parameters = uri[4:].partition(";")
    user = re.sub(r"[-.()]", "", number)
    if not user.startswith("+"):
        user += semicolon + parameters  # a local number means nothing without its context
    single = next((peer.host_port for peer in trunk.peers if peer.host_port), source)
    host = trunk.registrar or single or trunk.outbound_proxy
    return f"sip:{user}@{host}{trunk.uri_parameters};user=phone"


def _header_flaw(headers: str) -> str:
    """Return the flaw of the header fields in a URI (the text after "?"), or "": only a well-formed
    Replaces, and ``Require: replaces``, are allowed."""
    if not headers:
        return ""
    for header in headers.split("&"):
        name, _, value = header.partition("=")
        name, value = unquote(name).lower(), unquote(value)
        if name == "replaces":
            if not _REPLACES.fullmatch(value):
                return "header Replaces that names no call"
        elif (name, value.lower()) != ("require", "replaces"):
            return f"header {name}"
    return ""


_USER = re.compile(r"(?:.*<)?(?:sips?|tel):([^@;>]+)", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s().\-]")


def number_of(uri: str) -> str:
    """Return the user part of a sip or tel URI, "" without one; a telephone number without spaces,
    dots, dashes and parentheses."""
    found = _USER.match(uri)
    user = found[1] if found else ""
    bare = _SEPARATORS.sub("", user)
    return bare if re.fullmatch(r"\+?[0-9*#]+", bare) else user


_NUMBERS = ("expires", "min-expires", "min-se", "session-expires", "retry-after")
"""Fields that begin with a number, and that a call can do without."""

_NUMBER_FIELD = re.compile(
    rb"(?:expires|min-expires|min-se|session-expires|x|retry-after)[ \t]*:", re.I
)
_FIELD = re.compile(rb"[\w.!%*+`'~-]{1,256}[ \t]*:")
_BEGINS_WITH_NUMBER = re.compile(r"\s*[0-9]{1,10}\s*(?:[;(].*)?", re.DOTALL)


def has_unreadable_number(headers: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether a value of Expires, Min-Expires, Min-SE, Session-Expires or Retry-After does
    not begin with a number."""
    return any(
        _BEGINS_WITH_NUMBER.fullmatch(value) is None
        for name in _NUMBERS
        for value in headers.get(name, ())
    )


def without_unreadable(request: bytes) -> bytes:
    """Return a request without lines that are no header field, and without fields of
    :data:`_NUMBERS` that begin with no number.

    Malformed fields that are not needed are to be ignored (RFC 3261 section 8.2). Empty where all
    lines can be read.
    """
    head, end, body = request.partition(b"\r\n\r\n")
    first, *lines = re.split(rb"\r\n(?![ \t])", head)
    kept = [line for line in lines if _is_readable(line)]
    return b"" if len(kept) == len(lines) else b"\r\n".join([first, *kept]) + end + body


def _is_readable(line: bytes) -> bool:
    """Return whether a line is a header field, beginning with a number where it is one of
    :data:`_NUMBERS`."""
    if _NUMBER_FIELD.match(line) is None:
        return _FIELD.match(line) is not None
    value = line.partition(b":")[2].decode("latin-1")
    return _BEGINS_WITH_NUMBER.fullmatch(value) is not None


MAX_PARTIES = 16
"""Entries read of one header; a call that was diverted more often is in a loop."""

_REASONS = {
    "302": "unconditional",
    "486": "user-busy",
    "408": "no-answer",
    "480": "deflection",
    "487": "deflection",
    "503": "unavailable",
    "404": "unknown",
}
"""Causes of RFC 4458 in the words of RFC 5806."""


@dataclass(frozen=True, slots=True)
class Diverted:
    """Who diverted the call: ``numbers``, the last diversion first."""

    numbers: tuple[str, ...] = ()
    reason: str = ""
    """Of the last diversion, in the words of RFC 5806: user-busy, no-answer, unconditional ..."""


def _numbered(headers: Mapping[str, tuple[str, ...]], name: str) -> tuple[NameAddr, ...]:
    """Return the entries with a number of a header field that is a list of addresses, in order.

    At most the first ``MAX_PARTIES``; a field of more than ``MAX_FIELD`` characters is skipped.
    """
    fields = (field for field in headers.get(name, ()) if len(field) <= MAX_FIELD)
    entries = (entry for field in fields for entry in split_list(field) if entry.strip())
    parsed = map(name_addr_of, itertools.islice(entries, MAX_PARTIES))
    return tuple(one for one in parsed if one.number)


def asserted(headers: Mapping[str, tuple[str, ...]]) -> tuple[NameAddr, ...]:
    """Return the entries of P-Asserted-Identity (RFC 3325 section 9.1) that have a number, in their
    order."""
    return _numbered(headers, "p-asserted-identity")


def diverted(headers: Mapping[str, tuple[str, ...]]) -> Diverted:
    """Return who diverted the call, the last diversion first, by Diversion (RFC 5806); without one
    by History-Info (RFC 7044), whose last entry is where the call goes now."""
    entries = _numbered(headers, "diversion")
    if entries:
        reason = parameter_of(entries[0].parameters, "reason") or ""
        return Diverted(tuple(party.number for party in entries), reason)
    history = _numbered(headers, "history-info")
    if not history:
        return Diverted()
    now = history[-1]
    before = [party.number for party in reversed(history) if party.number != now.number]
    reason = _REASONS.get(_cause_of(now.uri), "") if before else ""
    return Diverted(tuple(dict.fromkeys(before)), reason)


def _cause_of(uri: str) -> str:
    """Return the ``cause`` parameter of a URI (RFC 4458), three characters at most; "" without
    one."""
    for part in uri.replace("?", ";").replace("&", ";").split(";"):
        name, _, value = part.partition("=")
        if name.lower() == "cause":
            return value[:3]
    return ""


def invite_of(message: str, source: str) -> Invite:
    """Parse an INVITE that came from ``source`` (``host:port``). The dialled URI is the
    Request-URI, or To where that cannot be read. Trunk and transport are left open."""
    headers = headers_of(message)
    to_field = first_of(headers, "to")
    from_field = first_of(headers, "from")
    to_uri = request_uri_of(message) or uri_of(to_field)
    from_uri = uri_of(from_field)
    return Invite(
        sip_call_id=first_of(headers, "call-id"),
        to_uri=to_uri,
        from_uri=from_uri,
        to_user=user_of(to_uri),
        from_user=user_of(from_uri),
        from_name=display_name_of(from_field),
        source=source,
        headers=headers,
        offered=offered_codecs(message),
    )

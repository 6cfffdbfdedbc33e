"""What pjsip takes for granted in a message that its parser let through. Pure.

pjsip casts the URIs of Route, Record-Route and Contact to sip URIs without a look at their scheme,
and some of its assertions can be met by what a peer sends (a host of 300 characters in SDP): one
datagram would end the process and every call in it. And a host name in SDP it looks up in DNS
while all signalling waits. What is looked at here is only that, and what the RFCs want there
anyway; all else is the library's to judge.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BAD_REQUEST, UNSUPPORTED_SCHEME, NOT_ACCEPTABLE = 400, 416, 488

MAX_STREAMS = 16
"""``m=`` lines of a description; each gets sockets of its own while it is offered."""

MAX_HEADERS = 128
"""Header fields of one message. A real one has some thirty; each costs pjsip memory and time."""

_SIP_ONLY = ("route", "record-route", "contact", "path", "service-route", "refer-to")
_ADDRESSES = ("from", "to")
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.\-]*):")
_HOST = re.compile(
    r"(?:[^@<>\s]*@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.\-_]*[A-Za-z0-9.])?)"
    r"(?::(\d{1,5}))?(?=[;?>\s]|$)"
)
_ADDRESS_LINE = re.compile(
    r"^(?:c=|a=rtcp:[0-9]*[ \t]+)(?P<type>IN[ \t]+IP[46])[ \t]+(?P<address>[^\s/]+)", re.MULTILINE
)
_ANY_ADDRESS_LINE = re.compile(r"^(?:c=|a=rtcp:[0-9]*[ \t])", re.MULTILINE)
_STREAM = re.compile(r"^m=", re.MULTILINE)
_NUMBER = re.compile(r"\s*(\d{1,10})\s")
_TAG = re.compile(r";\s*tag\s*(?:=\s*([^;,\s]*))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a message is not let through; ``code`` answers a request."""

    code: int
    what: str


def flaw_of(start_line: str, headers: Mapping[str, tuple[str, ...]]) -> Flaw | None:
    """What is wrong with a message, of which ``headers`` are by lower-case full name."""
    count = sum(len(values) for values in headers.values())
    if count > MAX_HEADERS:
        return Flaw(BAD_REQUEST, f"more than {MAX_HEADERS} header fields")
    for name in ("from", "to", "call-id", "cseq"):
        if len(headers.get(name, ())) > 1:
            return Flaw(BAD_REQUEST, f"more than one {name}")
    for name in _SIP_ONLY:
        for value in headers.get(name, ()):
            for address in addresses_of(value):
                found = _uri_flaw(name, address)
                if found is not None:
                    return found
    for name in _ADDRESSES:
        for value in headers.get(name, ()):
            uri = uri_in(value)
            scheme = _SCHEME.match(uri)
            if scheme is None:
                return Flaw(BAD_REQUEST, f"no URI in {name}")
            if scheme[1].lower() not in ("sip", "sips", "tel"):
                return Flaw(UNSUPPORTED_SCHEME, f"URI scheme in {name}")
            if any(not match[1] for match in _TAG.finditer(_parameters(value))):
                return Flaw(BAD_REQUEST, f"empty tag in {name}")
    for value in headers.get("cseq", ()):
        number = _NUMBER.match(value)
        if number is None or int(number[1]) >= 2**31:
            return Flaw(BAD_REQUEST, "CSeq number")  # RFC 3261 section 8.1.1.5
        if not start_line.startswith(("SIP/", value[number.end() :].strip() + " ")):
            return Flaw(BAD_REQUEST, "CSeq of another method")
    return _line_flaw(start_line)


def body_flaw(body: str) -> Flaw | None:
    """What is wrong with a body, wherever in it session descriptions are (RFC 4566)."""
    text = body.replace("\r", "\n")
    if len(_STREAM.findall(text)) > MAX_STREAMS:
        return Flaw(NOT_ACCEPTABLE, f"more than {MAX_STREAMS} streams")
    found = list(_ADDRESS_LINE.finditer(text))
    if len(found) != len(_ANY_ADDRESS_LINE.findall(text)):
        return Flaw(NOT_ACCEPTABLE, "address in SDP")
    for line in found:
        try:
            version = ipaddress.ip_address(line["address"]).version
        except ValueError:
            return Flaw(NOT_ACCEPTABLE, "address in SDP")
        if not line["type"].endswith(str(version)):
            return Flaw(NOT_ACCEPTABLE, "address in SDP")
    return None


def addresses_of(value: str) -> Iterator[str]:
    """The addresses of a field that may have several, split at commas that separate them."""
    depth, quoted, start, skip = 0, False, 0, False
    for at, char in enumerate(value):
        if skip:
            skip = False
        elif quoted:
            skip = char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char == "<":
            depth += 1
        elif char == ">":
            depth -= 1
        elif char == "," and depth <= 0:
            yield value[start:at]
            start = at + 1
    yield value[start:]


def uri_in(address: str) -> str:
    """The URI of one address, with or without angle brackets."""
    bare = re.sub(r'^\s*"(?:[^"\\]|\\.)*"', "", address)
    _before, bracket, inside = bare.partition("<")
    return inside.partition(">")[0] if bracket else bare.partition(";")[0].strip()


def _parameters(address: str) -> str:
    bare = re.sub(r'^\s*"(?:[^"\\]|\\.)*"', "", address)
    after = bare.partition(">")[2] if "<" in bare else bare.partition(";")[2]
    return after if "<" in bare else ";" + after


def _uri_flaw(name: str, address: str) -> Flaw | None:
    if name == "contact" and address.strip() == "*":
        return None
    uri = uri_in(address)
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return Flaw(BAD_REQUEST, f"no URI in {name}")
    if scheme[1].lower() not in ("sip", "sips"):
        if name == "refer-to":
            return None  # tel: is fine there (RFC 3515 section 2.1)
        return Flaw(BAD_REQUEST, f"URI scheme in {name}")
    host = _HOST.match(uri, scheme.end())
    if host is None or (host[2] is not None and int(host[2]) > 65535):
        return Flaw(BAD_REQUEST, f"host in {name}")
    return None


def _line_flaw(start_line: str) -> Flaw | None:
    if start_line.startswith("SIP/"):
        return None
    words = start_line.split(" ")
    uri = words[1] if len(words) > 1 else ""
    scheme = _SCHEME.match(uri)
    if scheme is None or scheme[1].lower() not in ("sip", "sips", "tel"):
        return Flaw(UNSUPPORTED_SCHEME, "scheme of the Request-URI")
    return None

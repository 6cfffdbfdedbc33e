# SPDX-License-Identifier: GPL-2.0-or-later
"""What pjsip takes for granted in a message that its parser let through. Pure.

pjsip casts the URIs of Route, Record-Route and Contact to sip URIs without a look at their scheme,
and some of its assertions can be met by what a peer sends (a host of 300 characters in SDP): one
datagram would end the process and every call in it. And a host name in SDP it looks up in DNS
while all signalling waits. What is looked at here is only that, and what the RFCs want there
anyway; all else is the library's to judge.

What its parser rejected is repaired, or reduced to the fields that can be read.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gateway.addresses import IPAddress, address_of, bracketed, host_of
from gateway.sip.messages.headers import (
    MAX_FIELD,
    body_of,
    headers_of,
    name_addr_of,
    parameter_of,
    split_list,
    start_line_of,
)
from gateway.sip.messages.replies import MAX_VIAS, NAMES, ONCE, method_of

BAD_REQUEST, NOT_ACCEPTED, UNSUPPORTED_MEDIA = 400, 406, 415
UNSUPPORTED_SCHEME, NOT_ACCEPTABLE = 416, 488

_SDP = "application/sdp"

MAX_HEADERS = 128
"""Header fields of one message. A real one has some thirty; each costs pjsip memory and time."""

_SIP_ONLY = ("route", "record-route", "contact", "path", "service-route", "refer-to")
_ADDRESSES = ("from", "to")
_WORD = frozenset("-.!%*_+`'~()<>:\\\"/[]?{}")
"""What a Call-ID may have besides letters, digits and one ``@`` (RFC 3261 section 25.1)."""

_HOST_MARKS = frozenset(".-_")
_IPV6 = frozenset("0123456789abcdefABCDEF:.")


_RTP_ADDRESS = re.compile(
    r"^(?:c=|a=rtcp:[0-9]{1,5}[ \t]{1,9})IN[ \t]{1,9}IP[46][ \t]{1,9}"
    r"([0-9A-Fa-f.:]{2,45})(?![0-9A-Fa-f.:])",
    re.MULTILINE,
)
_NOBODY = tuple(map(ipaddress.IPv4Network, ("0.0.0.0/8", "240.0.0.0/4")))


RTP_ADDRESS = "RTP to an address that is not allowed"


@dataclass(frozen=True, slots=True)
class InvalidMessage:
    """Why a message is not let through; ``code`` answers a request."""

    code: int
    what: str
    """Counted by, so one of a few texts: nothing of the message stands in it."""
    header: tuple[str, str] | None = None
    """A field of the answer: what would do instead."""
    detail: str = ""
    """What of the message is wrong, for the log line."""


def message_flaw(start_line: str, headers: Mapping[str, tuple[str, ...]]) -> InvalidMessage | None:
    """Return the first flaw of a message's start line and header fields, or None.

    Checked in this order: number of fields, fields that occur twice, Call-ID, URIs of Route,
    Contact and the like, From and To, CSeq, scheme of the Request-URI (416).

    Args:
        headers: by lower-case full name.
    """
    count = sum(len(values) for values in headers.values())
    if count > MAX_HEADERS:
        return InvalidMessage(BAD_REQUEST, f"more than {MAX_HEADERS} header fields")
    for name in ONCE:
        if len(headers.get(name, ())) > 1:
            return InvalidMessage(BAD_REQUEST, f"more than one {name}")
    for value in headers.get("call-id", ()):
        if not is_call_id(value):
            return InvalidMessage(BAD_REQUEST, "Call-ID")
    for name in _SIP_ONLY:
        for value in headers.get(name, ()):
            for one in split_list(value):
                found = _uri_flaw(name, one)
                if found is not None:
                    return found
    for name in _ADDRESSES:
        for value in headers.get(name, ()):
            address = name_addr_of(value)
            scheme = _scheme_of(address.uri)
            if not scheme:
                return InvalidMessage(BAD_REQUEST, f"no URI in {name}")
            if scheme not in ("sip", "sips", "tel"):
                return InvalidMessage(UNSUPPORTED_SCHEME, f"URI scheme in {name}")
            if parameter_of(address.parameters, "tag") == "":
                return InvalidMessage(BAD_REQUEST, f"empty tag in {name}")
    for value in headers.get("cseq", ()):
        number, _, method = value[:MAX_FIELD].strip().replace("\t", " ").partition(" ")
        if not (number.isascii() and number.isdigit() and len(number) <= 10) or (
            int(number) >= 2**31
        ):
            return InvalidMessage(BAD_REQUEST, "CSeq number")  # RFC 3261 section 8.1.1.5
        if not start_line.startswith(("SIP/", method.strip() + " ")):
            return InvalidMessage(BAD_REQUEST, "CSeq of another method")
    return _request_uri_flaw(start_line)


def multipart_flaw(headers: Mapping[str, tuple[str, ...]], body: str) -> InvalidMessage | None:
    """Return 400 for a multipart body without its boundary, which the library would take for no
    body; or None."""
    for value in headers.get("content-type", ()):
        kind, _, parameters = value[:MAX_FIELD].partition(";")
        if kind.strip().lower().startswith("multipart/"):
            boundary = parameter_of(parameters, "boundary")
            if not boundary or f"--{boundary}" not in body:
                return InvalidMessage(BAD_REQUEST, "multipart body without its parts")
    return None


def is_call_id(value: str) -> bool:
    """Return whether a Call-ID is a valid one: ``word [ "@" word ]`` (RFC 3261 section 25.1)."""
    words = value.split("@")
    return (
        len(value) <= MAX_FIELD
        and value.isascii()
        and len(words) <= 2
        and all(word and all(c.isalnum() or c in _WORD for c in word) for word in words)
    )


def _scheme_of(uri: str) -> str:
    """Return the scheme of a URI in lower case, "" where there is none."""
    scheme, colon, _ = uri[:MAX_FIELD].lstrip().partition(":")
    good = colon and scheme.isascii() and all(c.isalnum() or c in "+-." for c in scheme)
    return scheme.lower() if good and scheme[:1].isalpha() else ""


def _uri_flaw(name: str, text: str) -> InvalidMessage | None:
    """Return the flaw of the URI in a header field's entry: none, another scheme than sip and sips
    (Refer-To may have any), or a malformed host; or None. ``*`` is a Contact."""
    if name == "contact" and text.strip() == "*":
        return None
    uri = name_addr_of(text).uri.strip()
    scheme = _scheme_of(uri)
    if not scheme:
        return InvalidMessage(BAD_REQUEST, f"no URI in {name}")
    if scheme not in ("sip", "sips"):
        if name == "refer-to":
            return None  # tel: is fine there (RFC 3515 section 2.1)
        return InvalidMessage(BAD_REQUEST, f"URI scheme in {name}")
    rest = uri.partition(":")[2]
    user, at, host = rest.partition("@")
    if at and not any(c in "<>" or c.isspace() for c in user) and _is_host(host):
        return None
    return None if _is_host(rest) else InvalidMessage(BAD_REQUEST, f"host in {name}")


def _is_host(text: str) -> bool:
    """Return whether ``text`` is a host with an optional port, up to ";", "?", ">" or white space
    (RFC 3261 section 25.1)."""
    end = next((at for at, c in enumerate(text) if c in ";?>" or c.isspace()), len(text))
    text = text[:end]
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        good = bool(closed and host) and _IPV6.issuperset(host)
    else:
        host, colon, port = text.partition(":")
        port = colon + port
        good = host.isascii() and all(c.isalnum() or c in _HOST_MARKS for c in host)
        good = good and host[:1].isalnum() and (host[-1].isalnum() or host[-1] == ".")
    if not port:
        return good
    digits = port[1:]
    return (
        good
        and port[0] == ":"
        and digits.isascii()
        and digits.isdigit()
        and len(digits) <= 5
        and int(digits) <= 65535
    )


def _request_uri_flaw(start_line: str) -> InvalidMessage | None:
    """Return 416 for a request whose Request-URI has another scheme than sip, sips or tel; or
    None."""
    if start_line.startswith("SIP/"):
        return None
    words = start_line.split(" ")
    uri = words[1] if len(words) > 1 else ""
    if _scheme_of(uri) not in ("sip", "sips", "tel"):
        return InvalidMessage(UNSUPPORTED_SCHEME, "scheme of the Request-URI")
    return None


def forbidden_rtp_address(body: str, source: str) -> str:
    """Return the first address in ``body`` (its ``c=`` and ``a=rtcp`` lines) that RTP must not be
    sent to; "" when all are allowed.

    Anyone can write a description. Multicast and broadcast would multiply what we send; loopback is
    this machine, which only its own programs may name. 0.0.0.0 means that nothing is sent: the call
    is on hold (RFC 3264 section 8.4), even in a first offer (RFC 3725 section 4.1).

    Args:
        source: IP literal that the message came from.
    """
    sender = address_of(source)
    outside = sender is None or not sender.is_loopback
    for text in _RTP_ADDRESS.findall(body.replace("\r", "\n")):
        address = address_of(text)
        if address is None:
            continue  # no address at all, which is for others to say
        if address.is_unspecified:
            continue
        if _is_forbidden(address) or (address.is_loopback and outside):
            return str(address)
    return ""


def _is_forbidden(address: IPAddress) -> bool:
    """Return whether an address is multicast, broadcast or reserved (IPv4: 0.0.0.0/8,
    240.0.0.0/4)."""
    if address.is_multicast:
        return True
    return address.version == 4 and any(address in network for network in _NOBODY)


def request_flaw(
    message: str, headers: Mapping[str, tuple[str, ...]], source: str
) -> InvalidMessage | None:
    """Return the first flaw of a request, or None: of its header fields, a multipart body, an RTP
    address (488), or encoding and accepted types. ``source`` is an IP literal."""
    body = body_of(message)
    flaw = message_flaw(start_line_of(message), headers) or multipart_flaw(headers, body)
    if flaw is None and (address := forbidden_rtp_address(body, source)):
        return InvalidMessage(NOT_ACCEPTABLE, RTP_ADDRESS, detail=address)
    return flaw or _content_flaw(start_line_of(message).partition(" ")[0], headers, body)


def _content_flaw(
    method: str, headers: Mapping[str, tuple[str, ...]], body: str
) -> InvalidMessage | None:
    """Return 415 for a body in an encoding, but of a BYE, CANCEL or ACK; 406 for an INVITE whose
    Accept excludes SDP; or None (RFC 3261 section 21.4.13)."""
    coding = ",".join(headers.get("content-encoding", ()))[:MAX_FIELD].strip().lower()
    if body and method not in REDUCIBLE and coding not in ("", "identity"):
        return InvalidMessage(
            UNSUPPORTED_MEDIA, "Content-Encoding", ("Accept-Encoding", "identity")
        )
    wanted = headers.get("accept")
    if method != "INVITE" or wanted is None:
        return None
    kinds = {one.partition(";")[0].strip().lower() for one in ",".join(wanted).split(",")}
    if kinds.isdisjoint((_SDP, "application/*", "*/*")):
        return InvalidMessage(NOT_ACCEPTED, f"Accept without {_SDP}", ("Accept", _SDP))
    return None


REDUCIBLE = frozenset({"BYE", "CANCEL", "ACK"})
"""Requests that say all that they have to with the fields that name their dialog."""

_ADDRESS_NAMES = {
    "from": "from",
    "f": "from",
    "to": "to",
    "t": "to",
    "contact": "contact",
    "m": "contact",
}
_NO_USER = re.compile(r"(sips?:)(?::[^@<>;,\s]{0,200})?@", re.IGNORECASE)
"""An empty user, perhaps with a password, before the host."""
_NO_HOST = re.compile(r"(sips?:)(?=[>;,?\s]|$)", re.IGNORECASE)
_TAG = re.compile(r";[ \t]{0,9}tag[ \t]{0,9}=[ \t]{0,9}([^\s;,>]{1,200})", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,10}")
_LAST_NUMBER = 2**31 - 1
_ANONYMOUS = "anonymous.invalid"
"""RFC 3323 section 4.1.1.3."""


def with_user_and_host(data: bytes, source: str, port: int) -> bytes:
    """Return the message with user and host where From, To and Contact lack them, and without an
    empty user in the first line; empty if nothing is changed.

    ``From: <sip:@host>`` is what some PBXs send for a withheld number: the caller becomes anonymous
    (RFC 3323). A Contact without a host becomes the address that the message came from, which
    ``source`` and ``port`` are.
    """
    text = data.decode("latin-1")
    lines = text.split("\n")
    host = bracketed(source)
    for number, line in enumerate(lines):
        if not line.strip("\r"):
            break
        if number == 0:
            lines[0] = _NO_USER.sub(r"\1", line[:MAX_FIELD]) + line[MAX_FIELD:]
            continue
        name, colon, value = line.partition(":")
        field = _ADDRESS_NAMES.get(name.strip().lower(), "")
        if not field or len(value) > MAX_FIELD:
            continue
        user = "anonymous@" if field == "from" else ""
        nobody = f"{host}:{port}" if field == "contact" else f"{user}{_ANONYMOUS}"
        value = _NO_HOST.sub(rf"\g<1>{nobody}", _NO_USER.sub(r"\1@", value).replace(":@>", ":>"))
        lines[number] = name + colon + re.sub(r"(sips?:)@", rf"\g<1>{user}", value, flags=re.I)
    changed = "\n".join(lines)
    return b"" if changed == text else changed.encode("latin-1")


def reduced_requests(data: bytes, source: str, port: int, transport: str) -> Iterator[bytes]:
    """Yield a BYE, CANCEL or ACK with fewer and fewer fields, down to those that name its dialog.

    The sender takes the call for ended, whatever else is wrong in the message. Nothing is yielded
    where Call-ID or tags cannot be read.
    """
    method = method_of(data)
    headers = headers_of(data.decode("latin-1"))
    if method not in REDUCIBLE:
        return
    host = bracketed(source)
    # Of a field that is there more than once, the library has taken one.
    values = [headers.get(name, ("",)) for name in ONCE]
    for told in itertools.product(*(dict.fromkeys((one[0], one[-1])) for one in values)):
        yield from _reduced(method, told, headers, data, f"{transport.upper()} {host}:{port}")


def without_bad_via(response: bytes) -> bytes:
    """Return a response without ``received`` and ``rport`` in its Vias (RFC 3581), if one of the
    first Via is invalid; empty if all are valid, and for a request.

    pjsip takes ``received`` for our own address: it would register a Contact that is no URI, and
    read from it where there is nothing.
    """
    vias = headers_of(response.decode("latin-1")).get("via", ())
    if not (response.startswith(b"SIP/") and vias):
        return b""
    by, *parameters = vias[0].partition(",")[0].split(";")
    sent_by = address_of(host_of(by.strip().rpartition(" ")[2]))
    if all(_can_be_ours(one, sent_by) for one in parameters):
        return b""
    head, end, body = response.partition(b"\r\n\r\n")
    return _OURS.sub(b"", head) + end + body


_OURS = re.compile(
    rb";\s{0,9}(?:received|rport)(?![\w-])(?:\s{0,9}=\s{0,9}[^;,\s]{0,4096})?", re.IGNORECASE
)


def _can_be_ours(parameter: str, sent_by: IPAddress | None) -> bool:
    """Return whether a parameter of our Via is valid: ``received`` an address of our family,
    perhaps with a port, and ``rport`` a port (RFC 3581)."""
    name, _, value = (part.strip() for part in parameter.partition("="))
    if name.lower() == "rport":
        number = value[:6]
        return not value or (number.isascii() and number.isdigit() and int(number) <= 65535)
    if name.lower() != "received":
        return True
    six = sent_by is not None and sent_by.version == 6
    found = (_RECEIVED_6 if six else _RECEIVED_4).fullmatch(value)
    address = None if found is None else address_of(found[found.lastindex or 0])
    return address is not None and (sent_by is None or address.version == sent_by.version)


_RECEIVED_4 = re.compile(r"([0-9.]{7,15})(?::[0-9]{1,5})?")
_RECEIVED_6 = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})")
"""Some registrars add the port."""


_FINAL = re.compile(rb"SIP/2\.0 ([2-6]\d\d)([^\r\n]{0,200})[\r\n]")
_KEPT = {
    "www-authenticate": "WWW-Authenticate",
    "proxy-authenticate": "Proxy-Authenticate",
    "authentication-info": "Authentication-Info",
    "expires": "Expires",
    "min-expires": "Min-Expires",
    "retry-after": "Retry-After",
    "min-se": "Min-SE",
    "unsupported": "Unsupported",
    "warning": "Warning",
    "reason": "Reason",
}
"""What a final response says besides its code."""

_KEPT_URIS = {
    "contact": "Contact",
    "record-route": "Record-Route",
    "service-route": "Service-Route",
}
"""And where it leads, of a 200; each field that can be read."""

_MAX_KEPT = 10
"""Of each."""


def reduced_response(data: bytes, source: str, port: int) -> bytes:
    """Return a final response without body and malformed fields; empty for anything else, and where
    its transaction cannot be read. ``source`` and ``port`` are where it came from.

    The code alone refuses a call: a Contact of another scheme (RFC 3261 section 21.3) must not make
    it go on until a timeout. A 200 to an INVITE is acknowledged, and the call ended, at the address
    that it came from if its Contact names none.
    """
    start = _FINAL.match(data)
    if start is None:
        return b""
    headers = headers_of(data.decode("latin-1"))
    vias = headers.get("via", ())[:MAX_VIAS]
    if not vias or any(not headers.get(name) for name in ONCE):
        return b""
    lines = [
        f"SIP/2.0 {start[1].decode()} {start[2].decode('latin-1').strip() or 'As told'}",
        *(f"Via: {via}" for via in vias),
    ]
    lines += [f"{NAMES[name]}: {headers[name][0]}" for name in ONCE]
    lines += [
        f"{name}: {value}"
        for key, name in _KEPT.items()
        for value in headers.get(key, ())[:_MAX_KEPT]
    ]
    if start[1].startswith(b"2"):
        led = {key: _with_valid_uris(key, headers.get(key, ())) for key in _KEPT_URIS}
        if not led["contact"] and headers["cseq"][0].upper().endswith("INVITE"):
            led["contact"] = [f"<sip:{bracketed(source)}:{port}>"]
        lines += [f"{_KEPT_URIS[key]}: {value}" for key, values in led.items() for value in values]
    return ("\r\n".join([*lines, "Content-Length: 0"]) + "\r\n\r\n").encode("latin-1")


def _with_valid_uris(name: str, values: Iterable[str]) -> list[str]:
    """Return the values of a header field whose URIs are valid, at most ``_MAX_KEPT``."""
    good = (one for one in values if all(_uri_flaw(name, uri) is None for uri in split_list(one)))
    return list(itertools.islice(good, _MAX_KEPT))


def _reduced(
    method: str,
    told: tuple[str, ...],
    headers: Mapping[str, tuple[str, ...]],
    data: bytes,
    came_by: str,
) -> Iterator[bytes]:
    """Yield the message made of these From, To, Call-ID and CSeq: with its Vias and Reason, then
    with bare addresses, then with neither URI, Vias nor Reason. Nothing without Call-ID, From tag,
    To tag (but for a CANCEL), or an ACK's number.

    Args:
        told: From, To, Call-ID, CSeq.
        headers: all fields of the message.
        data: the message, for its Request-URI.
        came_by: transport, host and port, for a Via where there is none.
    """
    sender, recipient, call_id, cseq = told
    tags = [_TAG.search(one.rpartition(">")[2] or one) for one in (sender, recipient)]
    number = _NUMBER.match(cseq)
    if not call_id or tags[0] is None:
        return
    if (tags[1] is None and method != "CANCEL") or (number is None and method == "ACK"):
        return
    vias = [f"Via: {via}" for via in headers.get("via", ())[:MAX_VIAS]]
    branch = re.search(r"branch=([\w.-]{1,200})", " ".join(vias)[:MAX_FIELD])
    via = f"Via: SIP/2.0/{came_by};rport;branch="
    via += branch[1] if branch else f"z9hG4bK{secrets.token_hex(8)}"
    ends = [f"<sip:{_ANONYMOUS}>" + (f";tag={tag[1]}" if tag else "") for tag in tags]
    count = min(int(number[0]) if number else _LAST_NUMBER, _LAST_NUMBER)
    uri = data.split(b" ", 2)[1].decode("latin-1")
    reason = [f"Reason: {value}" for value in headers.get("reason", ())[:1]]
    for target, way, (one, other), more in (
        (uri, vias, (sender, recipient), reason),
        (uri, vias, ends, reason),
        (f"sip:{_ANONYMOUS}", [via], ends, []),
    ):
        lines = (
            f"{method} {target} SIP/2.0",
            *way,
            f"From: {one}",
            f"To: {other}",
            f"Call-ID: {call_id}",
            f"CSeq: {count} {method}",
            "Max-Forwards: 70",
            *more,
            "Content-Length: 0",
        )
        yield ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

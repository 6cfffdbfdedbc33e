# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests that pjsip's parser gave up, mended, or stripped of what cannot be read. Pure."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

from gateway.sip.messages.headers import MAX_FIELD, headers_of
from gateway.sip.messages.replies import method_of

MAX_VIAS = 16

STRIPPED = frozenset({"BYE", "CANCEL", "ACK"})
"""Requests that say all that they have to with the fields that name their dialog."""

_ONCE = ("from", "to", "call-id", "cseq")
_ADDRESSES = {
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


def mended(data: bytes, source: str, port: int) -> bytes:
    """The message with a user and a host in addresses that lack them; empty where none does.

    ``From: <sip:@host>`` is what some PBXs send of a caller who is withheld: the caller becomes
    anonymous (RFC 3323). A Contact without a host becomes where the message came from.
    """
    text = data.decode("latin-1")
    lines = text.split("\n")
    host = f"[{source}]" if ":" in source else source
    for number, line in enumerate(lines):
        if not line.strip("\r"):
            break
        if number == 0:
            lines[0] = _NO_USER.sub(r"\1", line[:MAX_FIELD]) + line[MAX_FIELD:]
            continue
        name, colon, value = line.partition(":")
        field = _ADDRESSES.get(name.strip().lower(), "")
        if not field or len(value) > MAX_FIELD:
            continue
        user = "anonymous@" if field == "from" else ""
        nobody = f"{host}:{port}" if field == "contact" else f"{user}{_ANONYMOUS}"
        value = _NO_HOST.sub(rf"\g<1>{nobody}", _NO_USER.sub(r"\1@", value).replace(":@>", ":>"))
        lines[number] = name + colon + re.sub(r"(sips?:)@", rf"\g<1>{user}", value, flags=re.I)
    changed = "\n".join(lines)
    return b"" if changed == text else changed.encode("latin-1")


def stripped(data: bytes, source: str, port: int, transport: str) -> Iterator[bytes]:
    """A BYE, CANCEL or ACK with less and less of what came, down to what names its dialog.

    Whoever sends it takes the call for ended, whatever else is wrong in it. None where Call-ID or
    tags cannot be read.
    """
    method = method_of(data)
    headers = headers_of(data.decode("latin-1"))
    told = {name: next(iter(headers.get(name, ())), "") for name in _ONCE}
    tags = [_TAG.search(told[name].rpartition(">")[2] or told[name]) for name in ("from", "to")]
    number = _NUMBER.match(told["cseq"])
    if method not in STRIPPED or not told["call-id"] or tags[0] is None:
        return
    if (tags[1] is None and method != "CANCEL") or (number is None and method == "ACK"):
        return
    vias = [f"Via: {via}" for via in headers.get("via", ())[:MAX_VIAS]]
    branch = re.search(r"branch=([\w.-]{1,200})", " ".join(vias)[:MAX_FIELD])
    host = f"[{source}]" if ":" in source else source
    via = f"Via: SIP/2.0/{transport.upper()} {host}:{port};rport;branch="
    via += branch[1] if branch else f"z9hG4bK{secrets.token_hex(8)}"
    ends = [f"<sip:{_ANONYMOUS}>" + (f";tag={tag[1]}" if tag else "") for tag in tags]
    count = min(int(number[0]) if number else _LAST_NUMBER, _LAST_NUMBER)
    uri = data.split(b" ", 2)[1].decode("latin-1")
    reason = [f"Reason: {value}" for value in headers.get("reason", ())[:1]]
    for target, way, (one, other), more in (
        (uri, vias, (told["from"], told["to"]), reason),
        (uri, vias, ends, reason),
        (f"sip:{_ANONYMOUS}", [via], ends, []),
    ):
        lines = (
            f"{method} {target} SIP/2.0",
            *way,
            f"From: {one}",
            f"To: {other}",
            f"Call-ID: {told['call-id']}",
            f"CSeq: {count} {method}",
            "Max-Forwards: 70",
            *more,
            "Content-Length: 0",
        )
        yield ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers to requests that pjsip's parser gave up, made of what can be read of them. Pure."""

from __future__ import annotations

import secrets

from gateway.sip.ingress.message import headers_of
from gateway.sip.ingress.nameaddr import MAX_FIELD

MAX_VIAS = 16

_REASONS = {400: "Bad Request", 403: "Forbidden", 513: "Message Too Large"}
_ONCE = ("from", "to", "call-id", "cseq")
_NAMES = {"from": "From", "to": "To", "call-id": "Call-ID", "cseq": "CSeq"}


def method_of(data: bytes) -> str:
    """The method of a request; empty for a response, and for what is no SIP message."""
    words = data[:MAX_FIELD].split(b"\n", 1)[0].strip().split(b" ")
    name = words[0].decode("ascii", "replace")
    known = len(words) >= 3 and words[-1].upper().startswith(b"SIP/") and name.isalpha()
    return name if known else ""


def answer_to(data: bytes, code: int, source: str, port: int) -> bytes:
    """A response to the request in ``data``; empty where there is nothing to answer.

    It goes to where the request came from; the fields that name its transaction are sent back as
    they came (RFC 3261 section 8.2.6.2, RFC 3581 section 4), as far as it has them. It is never
    longer than they are, but for a few words: nobody is flooded through us.
    """
    method = method_of(data)
    if not method or method == "ACK":
        return b""
    # One character a byte, so that what is no text goes back as it came.
    headers = headers_of(data.decode("latin-1"))
    vias = headers.get("via", ())
    fields = {name: headers.get(name, ()) for name in _ONCE}
    if not vias or len(vias) > MAX_VIAS or any(len(values) > 1 for values in fields.values()):
        return b""
    if not fields["cseq"] and not fields["call-id"]:
        return b""
    told = {name: values[0] for name, values in fields.items() if values}
    if any(len(one) > MAX_FIELD for one in (*vias, *told.values())):
        return b""
    if "to" in told and ";tag=" not in told["to"].lower():
        told["to"] += f";tag={secrets.token_hex(4)}"
    lines = [
        f"SIP/2.0 {code} {_REASONS[code]}",
        f"Via: {_received(vias[0], source, port)}",
        *(f"Via: {via}" for via in vias[1:]),
        *(f"{_NAMES[name]}: {value}" for name, value in told.items()),
        "Content-Length: 0",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _received(via: str, source: str, port: int) -> str:
    parts = via.split(";")
    told = [f"rport={port}" if part.strip().lower() == "rport" else part for part in parts]
    return ";".join([*told, f"received={source}"])

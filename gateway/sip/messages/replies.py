# SPDX-License-Identifier: GPL-2.0-or-later
"""Replies to requests that lead to no call: other methods, INFO, and what cannot be read. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.sip.messages.headers import MAX_FIELD, first_of, headers_of

ALLOWED = "INVITE, ACK, BYE, CANCEL, OPTIONS, INFO, UPDATE, PRACK, REFER, NOTIFY"

_HANDLED_BELOW = frozenset({"INVITE", "ACK", "CANCEL"})
_INSIDE_ONLY = frozenset({"BYE", "INFO", "UPDATE", "PRACK", "NOTIFY"})
_NOT_HERE = frozenset({"REGISTER", "PUBLISH", "MESSAGE", "SUBSCRIBE", "REFER"})
_KNOWN = _HANDLED_BELOW | _INSIDE_ONLY | _NOT_HERE | {"OPTIONS"}


def known_method(method: str) -> str:
    """Return the method if it is a known one, else "unknown", for use in the names of rules."""
    return method if method in _KNOWN else "unknown"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, with one header field of its own where the code wants one."""

    code: int
    header: tuple[str, str] | None = None
    challenges: tuple[str, ...] = ()
    """The values of WWW-Authenticate, of a 401."""


_ALLOW = ("Allow", ALLOWED)
_NOT_ALLOWED = Reply(405, _ALLOW)
"""RFC 3261 section 21.4.6."""

_NO_DIALOG = Reply(481)
_UNKNOWN = Reply(501, _ALLOW)
"""RFC 3261 section 21.5.2."""

_BAD_EVENT = Reply(489, ("Allow-Events", "refer"))
"""RFC 6665 section 8.3.2."""

_BAD_PACKAGE = Reply(469, ("Recv-Info", ""))
"""RFC 6086 section 4.2.2: no package is taken."""

EXTENSIONS = frozenset({"100rel", "norefersub", "replaces", "timer"})
"""Option tags that the library says it supports (RFC 3261 section 20.37)."""


def reply_outside_dialog(method: str) -> Reply | None:
    """Return the reply to a request outside of dialogs by its method: 481 for one that needs a
    dialog, 405 for REGISTER, SUBSCRIBE and the like, 501 for an unknown one; None where pjsua
    handles it."""
    if method in _INSIDE_ONLY:
        return _NO_DIALOG
    if method in _NOT_HERE:
        return _NOT_ALLOWED
    return None if method in _KNOWN else _UNKNOWN


def reply_to_required(method: str, required: Iterable[str]) -> Reply | None:
    """Return 420 for a request that requires an extension not in ``EXTENSIONS`` (RFC 3261 section
    8.2.2.3), naming it; else None.

    ACK and CANCEL are exempt; for a new INVITE the library replies. ``required`` are the Require
    fields.
    """
    tags = [tag.strip() for field in required for tag in field[:MAX_FIELD].split(",")]
    unknown = [tag for tag in tags if tag and tag.lower() not in EXTENSIONS]
    if method in ("ACK", "CANCEL") or not unknown:
        return None
    return Reply(420, ("Unsupported", ", ".join(unknown)))


def reply_in_dialog(method: str, headers: Mapping[str, tuple[str, ...]], body: str) -> Reply | None:
    """Return the reply to a request inside a dialog; None where the library replies, or
    :func:`info_status` does.

    200 to OPTIONS, 489 to SUBSCRIBE, 481 to a NOTIFY but of ``refer``, 469 to an INFO of a package,
    415 to a re-INVITE or UPDATE with a body that is no SDP, 405 or 501 to other methods. The
    library gets the NOTIFYs of transfers, since it knows the subscriptions (RFC 6665 section
    4.1.3).
    """

    def first(name: str) -> str:
        return media_type(first_of(headers, name))

    kind = first("content-type")
    if method == "OPTIONS":
        return Reply(200, _ALLOW)
    if method == "SUBSCRIBE":
        return _BAD_EVENT
    if method == "NOTIFY" and first("event") != "refer":
        return _NO_DIALOG
    if method == "INFO" and first("info-package") and kind not in (RELAY, PLAIN):
        return _BAD_PACKAGE
    if method in ("INVITE", "UPDATE") and body.strip() and not _may_be_description(kind, headers):
        return _NO_DESCRIPTION
    if method in ("MESSAGE", "REGISTER", "PUBLISH"):
        return _NOT_ALLOWED
    return None if method in _KNOWN else _UNKNOWN


_NO_DESCRIPTION = Reply(415, ("Accept", "application/sdp"))
"""RFC 3261 section 21.4.13."""


def _may_be_description(kind: str, headers: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether a body may be SDP by its type (none, SDP, multipart), or may be ignored by its
    Content-Disposition (``handling=optional``). ``kind`` is the type in lower case."""
    disposition = ",".join(headers.get("content-disposition", ()))[:MAX_FIELD].lower()
    optional = "handling=optional" in disposition.replace(" ", "")
    return kind in ("", "application/sdp") or kind.startswith("multipart/") or optional


RELAY = "application/dtmf-relay"
PLAIN = "application/dtmf"
"""Keys in INFO (RFC 2976): the one has lines ``Signal=5`` and ``Duration=160``, the other is the
key alone. Some write the event's number (RFC 4733 section 3.2): 10 is the star, 11 the hash."""

MAX_BODY = 1024
"""Characters of a body that are read. One with a key has some thirty."""

KEYS = frozenset("0123456789*#ABCD")
"""All the keys that there are; a hook flash is none."""
_BY_NUMBER = {"10": "*", "11": "#", "12": "A", "13": "B", "14": "C", "15": "D"}
_ANSWERED_BY_PJSUA = frozenset(
    {RELAY, "application/media_control+xml", "application/trickle-ice-sdpfrag"}
)


def info_digit(content_type: str, body: str) -> str | None:
    """Return the DTMF digit of an INFO request, one of ``0-9 * # A-D``: of ``Signal=`` in
    application/dtmf-relay or application/dtmf, or the latter's whole body. None without one."""
    kind = media_type(content_type)
    if kind not in (RELAY, PLAIN):
        return None
    body = body[:MAX_BODY]
    value = _signal_in(body)
    if value is None and kind == PLAIN:
        value = body.strip()
    if value is None:
        return None
    value = _BY_NUMBER.get(value, value.upper())
    return value if value in KEYS else None


def _signal_in(body: str) -> str | None:
    """Return the value of the first ``Signal=`` line of a body, or None."""
    for line in body.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip().lower() == "signal":
            return value.strip()
    return None


def media_type(content_type: str) -> str:
    """Return type and subtype of a Content-Type in lower case, without parameters."""
    return content_type[:MAX_BODY].partition(";")[0].strip().lower()


def info_status(content_type: str, body: str) -> int:
    """Return the status for an INFO request that pjsua leaves to us: 200 for an empty one or a
    digit, 400 for application/dtmf without a digit, 415 for other types; 0 where pjsua replies.

    Without a reply its dialog would answer 500. An empty INFO asks whether the call still exists.
    """
    kind = media_type(content_type)
    if kind in _ANSWERED_BY_PJSUA:
        return 0
    if not body.strip():
        return 200
    if kind != PLAIN:
        return 415
    return 200 if info_digit(content_type, body) is not None else 400


MAX_VIAS = 16
"""Via fields that are copied into a response; a request with more has passed no real network."""

_REASONS = {400: "Bad Request", 403: "Forbidden", 513: "Message Too Large"}
NAMES = {"from": "From", "to": "To", "call-id": "Call-ID", "cseq": "CSeq"}
ONCE = tuple(NAMES)
"""Fields that a message has exactly once (RFC 3261 section 8.1.1), by lower-case name."""


def method_of(data: bytes) -> str:
    """Return the method of a request; "" for a response or anything else."""
    words = data[:MAX_FIELD].split(b"\n", 1)[0].strip().split(b" ")
    name = words[0].decode("ascii", "replace")
    known = len(words) >= 3 and words[-1].upper().startswith(b"SIP/") and name.isalpha()
    return name if known else ""


def response_to_unparsed(data: bytes, code: int, source: str, port: int) -> bytes:
    """Return a response with ``code`` (400, 403 or 513) to the malformed request in ``data``; empty
    where none is due: to a response, an ACK, or without Via, or with fields that occur twice or are
    too long.

    It is for the address that the request came from, with the fields of its transaction copied (RFC
    3261 section 8.2.6.2, RFC 3581 section 4). It is hardly longer than the request, so that nobody
    can be flooded through us.
    """
    method = method_of(data)
    if not method or method == "ACK":
        return b""
    # One character a byte, so that what is no text goes back as it came.
    headers = headers_of(data.decode("latin-1"))
    vias = headers.get("via", ())
    fields = {name: headers.get(name, ()) for name in ONCE}
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
        *(f"{NAMES[name]}: {value}" for name, value in told.items()),
        "Content-Length: 0",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _received(via: str, source: str, port: int) -> str:
    """Return a Via with ``received`` added, and ``rport`` filled in where it is there (RFC 3581
    section 4)."""
    parts = via.split(";")
    told = [f"rport={port}" if part.strip().lower() == "rport" else part for part in parts]
    return ";".join([*told, f"received={source}"])

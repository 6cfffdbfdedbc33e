"""The INVITE of a test: from a file with a SIP message, or from options. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from datetime import datetime
from urllib.parse import quote

from gateway.sip.ingress.invite import invite_of
from gateway.sip.ingress.message import headers_of
from gateway.sip.types import Invite

DEFAULT_SOURCE = "127.0.0.1:5060"
_URI = re.compile(r"(?:sips?|tel):", re.IGNORECASE)
_HEADER = re.compile(r"\s*([!%*+.`'~_\-0-9A-Za-z]+)\s*:\s*([^\r\n]*)")
_VIA_HOST = re.compile(r"SIP/2\.0/\w+\s+(\[[^\]]+\]|[^\s:;,]+)(?::(\d+))?", re.IGNORECASE)


class GivenError(ValueError):
    """What was given is no INVITE; the message says what is wrong with it."""


def invite_from_options(
    to: str, from_: str, headers: Iterable[str], source: str | None, codec: str
) -> Invite:
    """An INVITE for ``to`` by ``from_``: numbers, addresses, or ``"Name" <sip:...>``."""
    payload = {"PCMU": "0", "PCMA": "8"}[codec]
    lines = [
        f"INVITE {_uri(to)} SIP/2.0",
        f"To: {_field(to)}",
        f"From: {_field(from_)};tag=route-test",
        "Call-ID: route-test",
        *header_lines(headers),
        "",
        f"m=audio 4000 RTP/AVP {payload}",
    ]
    return invite_of("\r\n".join(lines), full_source(source or DEFAULT_SOURCE))


def invite_from_message(message: str, headers: Iterable[str], source: str | None) -> Invite:
    """The INVITE of a SIP message, whatever its line ends; ``headers`` are added to its own."""
    text = re.sub(r"\r?\n", "\r\n", message.lstrip())
    start, _, rest = text.partition("\r\n")
    if not re.fullmatch(r"INVITE \S+ SIP/2\.0", start.strip()):
        raise GivenError("is no INVITE: it has to begin like INVITE sip:100@example.com SIP/2.0")
    text = "\r\n".join([start.strip(), *header_lines(headers), rest])
    return invite_of(text, full_source(source or _via(text) or DEFAULT_SOURCE))


def header_lines(headers: Iterable[str]) -> list[str]:
    """Header fields as ``Name: value``. Raises GivenError for one that is none."""
    lines = []
    for header in headers:
        found = _HEADER.fullmatch(header)
        if found is None:
            raise GivenError(f"--header {header!r}: must be like 'X-Name: value'")
        lines.append(f"{found[1]}: {found[2].strip()}")
    return lines


def full_source(source: str) -> str:
    """``address`` or ``address:port`` as ``address:port``. Raises GivenError."""
    host, port = source, "5060"
    if (found := re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d+)", source)) is not None:
        host, port = found[1], found[2]
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise GivenError(f"--source {source!r}: must be an address like 192.0.2.1") from None
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def moment(text: str | None) -> datetime:
    """``2026-11-20 18:30`` on this machine's wall clock, unless it has an offset; now for None.

    Raises GivenError.
    """
    if text is None:
        return datetime.now().astimezone()
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise GivenError(f"--at {text!r}: must be like '2026-11-20 18:30'") from None
    return at.astimezone()


def _via(message: str) -> str:
    vias = headers_of(message).get("via", ())
    found = _VIA_HOST.match(vias[0]) if vias else None
    if found is None:
        return ""
    received = re.search(r";received=([^;,\s]+)", vias[0])
    try:
        return full_source(f"{received[1] if received else found[1]}")
    except GivenError:
        return ""


def _uri(text: str) -> str:
    inside = re.search(r"<([^>]+)>", text)
    bare = inside[1] if inside else text.strip()
    if _URI.match(bare):
        return bare
    return f"sip:{bare}" if "@" in bare else f"sip:{quote(bare, safe='+*#-_.!~()&=$,;?/')}@gateway"


def _field(text: str) -> str:
    name, bracket, _ = text.partition("<")
    return f"{name}<{_uri(text)}>" if bracket else f"<{_uri(text)}>"

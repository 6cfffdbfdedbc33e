# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a REFER may send us: what is looked at is what will be dialled (RFC 3515, RFC 3891). Pure.

pjsip puts header fields of a Refer-To URI into the INVITE, and goes where ``maddr`` says: a Route
there would take the call, and what it offers, elsewhere. So a Refer-To has to be of a plain form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from gateway.sip.settings import Trunk

MAX_BYTES = 1000

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
    """``uri`` is without header fields; ``flaw`` says why it may not be followed."""

    uri: str
    flaw: str = ""


def refer_to_of(field: str) -> ReferTo:
    """Read a Refer-To field: a URI in angle brackets, with a name before it or not, or bare."""
    text = field.strip()
    if len(text) > MAX_BYTES:
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
    """A tel URI as a sip URI of a trunk (RFC 3261 section 19.1.6); all else as it is.

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
    """What is wrong with the header fields of a URI: only what replaces a call may be there."""
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

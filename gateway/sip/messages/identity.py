# SPDX-License-Identifier: GPL-2.0-or-later
"""Who calls and who diverted the call, as proxies on the way say it.

P-Asserted-Identity is RFC 3325, Diversion RFC 5806, History-Info RFC 7044. None of them is better
than the peer that sent it: ask for them on routes of a trunk that takes them out of what its own
callers send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.sip.messages.headers import (
    MAX_FIELD,
    display_name_of,
    first_of,
    headers_of,
    name_addr_of,
    parameter_of,
    request_uri_of,
    split_list,
    uri_of,
    user_of,
)
from gateway.sip.messages.sdp import offered_codecs
from gateway.sip.types import Invite

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
class Party:
    """One name-addr: ``number`` is the user of its URI, or the number of a tel URI."""

    number: str
    name: str
    uri: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Diverted:
    """Who diverted the call: ``numbers``, the last diversion first."""

    numbers: tuple[str, ...] = ()
    reason: str = ""
    """Of the last diversion, in the words of RFC 5806: user-busy, no-answer, unconditional ..."""


def parties_of(fields: Iterable[str]) -> tuple[Party, ...]:
    """Return the entries of header fields with name-addr lists, in order; at most ``MAX_PARTIES``.

    A field of more than ``MAX_FIELD`` characters is skipped.
    """
    found: list[Party] = []
    for field in fields:
        if len(field) > MAX_FIELD:
            continue
        for entry in split_list(field):
            if entry.strip() and len(found) < MAX_PARTIES:
                read = name_addr_of(entry)
                found.append(Party(user_of(read.uri), read.name, read.uri, read.parameters))
    return tuple(found)


def asserted(headers: Mapping[str, tuple[str, ...]]) -> tuple[Party, ...]:
    """Return the entries of P-Asserted-Identity (RFC 3325 section 9.1) that have a number."""
    return tuple(party for party in _of(headers, "p-asserted-identity") if party.number)


def diverted(headers: Mapping[str, tuple[str, ...]]) -> Diverted:
    """Return who diverted the call, by Diversion (RFC 5806) or else by History-Info (RFC 7044)."""
    entries = [party for party in _of(headers, "diversion") if party.number]
    if entries:
        reason = parameter_of(entries[0].parameters, "reason") or ""
        return Diverted(tuple(party.number for party in entries), reason)
    history = [party for party in _of(headers, "history-info") if party.number]
    if not history:
        return Diverted()
    now = history[-1]
    before = [party.number for party in reversed(history) if party.number != now.number]
    reason = _REASONS.get(_cause_of(now.uri), "") if before else ""
    return Diverted(tuple(dict.fromkeys(before)), reason)


def _of(headers: Mapping[str, tuple[str, ...]], name: str) -> tuple[Party, ...]:
    return parties_of(headers.get(name, ()))


def _cause_of(uri: str) -> str:
    """Return the ``cause`` parameter of a URI (RFC 4458), "" without one."""
    for part in uri.replace("?", ";").replace("&", ";").split(";"):
        name, _, value = part.partition("=")
        if name.lower() == "cause":
            return value[:3]
    return ""


def invite_of(message: str, source: str) -> Invite:
    """Parse an INVITE that came from ``source`` (``host:port``)."""
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

"""Who calls and who diverted the call, as proxies on the way say it.

P-Asserted-Identity is RFC 3325, Diversion RFC 5806, History-Info RFC 7044. None of them is better
than the peer that sent it: ask for them on routes of a trunk that takes them out of what its own
callers send.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.sip.message import display_name_of, uri_of, user_of

MAX_PARTIES = 16
"""Entries read of one header; a call that was diverted more often is in a loop."""

_ENTRY = re.compile(r'(?:"(?:[^"\\]|\\.)*"|<[^>]*>|[^,"<])+')
_REASON = re.compile(r';\s*reason\s*=\s*("(?:[^"\\]|\\.)*"|[^;,\s]+)', re.IGNORECASE)
_CAUSE = re.compile(r"[;?&]cause=(\d{3})", re.IGNORECASE)
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
    """One entry: ``number`` is the user of its URI, or the number of a tel URI."""

    number: str
    name: str
    uri: str
    field: str


@dataclass(frozen=True, slots=True)
class Diverted:
    """``numbers`` that the call was diverted from, the last one first."""

    numbers: tuple[str, ...] = ()
    reason: str = ""
    """Of the last diversion, in the words of RFC 5806: user-busy, no-answer, unconditional ..."""


def parties_of(fields: Iterable[str]) -> tuple[Party, ...]:
    """The entries of header fields that hold name-addr lists, in their order."""
    found: list[Party] = []
    for field in fields:
        for entry in _ENTRY.findall(field):
            if entry.strip() and len(found) < MAX_PARTIES:
                uri = uri_of(entry)
                found.append(Party(user_of(uri), display_name_of(entry), uri, entry))
    return tuple(found)


def asserted(headers: Mapping[str, tuple[str, ...]]) -> tuple[Party, ...]:
    """P-Asserted-Identity, at most a sip and a tel URI."""
    return tuple(party for party in _of(headers, "p-asserted-identity") if party.number)


def diverted(headers: Mapping[str, tuple[str, ...]]) -> Diverted:
    """Who diverted the call: by Diversion, or else by History-Info."""
    entries = [party for party in _of(headers, "diversion") if party.number]
    if entries:
        found = _REASON.search(entries[0].field)
        reason = found[1].strip('"') if found else ""
        return Diverted(tuple(party.number for party in entries), reason)
    history = [party for party in _of(headers, "history-info") if party.number]
    if not history:
        return Diverted()
    now = history[-1]
    before = [party.number for party in reversed(history) if party.number != now.number]
    cause = _CAUSE.search(now.uri)
    reason = _REASONS.get(cause[1], "") if cause and before else ""
    return Diverted(tuple(dict.fromkeys(before)), reason)


def _of(headers: Mapping[str, tuple[str, ...]], name: str) -> tuple[Party, ...]:
    return parties_of(headers.get(name, ()))

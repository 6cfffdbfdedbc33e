# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys in INFO requests (RFC 2976), in the two forms that telephones use. Pure.

``application/dtmf-relay`` has lines ``Signal=5`` and ``Duration=160``; ``application/dtmf`` is the
key alone. Some write the event's number (RFC 4733 section 3.2), 10 for the star and 11 for the
hash, in either.
"""

from __future__ import annotations

RELAY = "application/dtmf-relay"
PLAIN = "application/dtmf"

MAX_BODY = 1024
"""Characters of a body that are read. One with a key has some thirty."""

KEYS = frozenset("0123456789*#ABCD")
"""All the keys that there are; a hook flash is none."""
_BY_NUMBER = {"10": "*", "11": "#", "12": "A", "13": "B", "14": "C", "15": "D"}
_ANSWERED_BY_PJSUA = frozenset(
    {RELAY, "application/media_control+xml", "application/trickle-ice-sdpfrag"}
)


def digit_of(content_type: str, body: str) -> str | None:
    """The key of an INFO request, one of ``0-9 * # A-D``; None when there is none in it."""
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
    for line in body.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip().lower() == "signal":
            return value.strip()
    return None


def media_type(content_type: str) -> str:
    """Type and subtype in lower case, without parameters."""
    return content_type[:MAX_BODY].partition(";")[0].strip().lower()


def answer_to(content_type: str, body: str) -> int:
    """The response to an INFO request that pjsua leaves to us; 0 where it answers by itself.

    Unanswered, its dialog would say 500. An empty one asks whether the call is still there.
    """
    kind = media_type(content_type)
    if kind in _ANSWERED_BY_PJSUA:
        return 0
    if not body.strip():
        return 200
    if kind != PLAIN:
        return 415
    return 200 if digit_of(content_type, body) is not None else 400

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a request gets whose method leads to no call: pjsip leaves some of them without an answer,
and says 500 to others. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

ALLOWED = "INVITE, ACK, BYE, CANCEL, OPTIONS, INFO, UPDATE, PRACK, REFER, NOTIFY"

_HANDLED_BELOW = frozenset({"INVITE", "ACK", "CANCEL"})
_INSIDE_ONLY = frozenset({"BYE", "INFO", "UPDATE", "PRACK", "NOTIFY"})
_NOT_HERE = frozenset({"REGISTER", "PUBLISH", "MESSAGE", "SUBSCRIBE", "REFER"})
_KNOWN = _HANDLED_BELOW | _INSIDE_ONLY | _NOT_HERE | {"OPTIONS"}


def name_of(method: str) -> str:
    """The method, or "unknown": what strangers make up is no rule's name."""
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


def reply_outside(method: str) -> Reply | None:
    """For a new request outside of any dialog; None where pjsua has to see it."""
    if method in _INSIDE_ONLY:
        return _NO_DIALOG
    if method in _NOT_HERE:
        return _NOT_ALLOWED
    return None if method in _KNOWN else _UNKNOWN


def reply_inside(method: str, event: str) -> Reply | None:
    """For a request inside a dialog of ours; ``event`` is its Event field (RFC 6665)."""
    package = event.partition(";")[0].strip().lower()
    if method == "OPTIONS":
        return Reply(200, _ALLOW)
    if method == "SUBSCRIBE" or (method == "NOTIFY" and package != "refer"):
        return _BAD_EVENT
    if method in ("MESSAGE", "REGISTER", "PUBLISH"):
        return _NOT_ALLOWED
    return None if method in _KNOWN else _UNKNOWN

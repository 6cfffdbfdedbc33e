# SPDX-License-Identifier: GPL-2.0-or-later
"""When to register, and when to try again (RFC 3261 section 10). Pure: time and chance come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

FIRST_RETRY_SECONDS = 2.0
LAST_RETRY_SECONDS = 60.0
"""A registrar that comes back is noticed within a minute (and a quarter)."""

REJECTED_RETRY_SECONDS = 60.0
LAST_REJECTED_RETRY_SECONDS = 900.0
"""A password does not get right by trying; registrars lock out who does so too often."""

RECONNECT_SECONDS = 1.0
RECONNECT_PAUSE_SECONDS = 30.0
"""Connections that end may be anybody's: a registrar is not asked more often because of them."""

JITTER = 0.25
"""So that a thousand gateways do not come back in one moment."""

_REJECTIONS = frozenset({401, 403, 404, 405, 407, 423, 603})


class State(Enum):
    """Where a registration is."""

    TRYING = "trying"
    REGISTERED = "registered"
    FAILED = "failed"
    LEAVING = "leaving"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Change:
    """A line for the log: what the state is now, and why."""

    state: State
    code: int = 0
    reason: str = ""
    seconds: float = 0.0
    """Until it expires, or until the next try."""


class Registration:
    """One trunk's registration: told what came, it says what to do.

    Args:
        chance: evenly distributed between 0 and 1; for the jitter.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._failures = 0
        self.state = State.TRYING
        self.since = 0.0
        self.next_try: float | None = 0.0
        """When to send REGISTER; None while an answer or a refresh is awaited."""
        self.expires_at: float | None = None
        self.last_error = ""
        self._renewed = 0.0
        self._rejected = False

    def due(self, now: float) -> bool:
        """Whether REGISTER is to be sent now; if so, it counts as sent."""
        if self.next_try is None or now < self.next_try:
            return False
        self.next_try = None
        return True

    def succeeded(self, expires: float, now: float) -> Change | None:
        """A 200, for ``expires`` seconds; a refresh is no change."""
        fresh = self.state is not State.REGISTERED
        self._failures, self.next_try, self.last_error = 0, None, ""
        self._renewed = now
        self.expires_at = now + expires
        if self.state is State.LEAVING or not fresh:
            return None
        self.state, self.since = State.REGISTERED, now
        return Change(State.REGISTERED, 200, "", expires)

    def disconnected(self, now: float, *, surely: bool) -> None:
        """The connection that calls come back through has ended (``surely``), or may have.

        A registrar that was restarted forgets connections, and sometimes registrations, and we
        would be out of reach until the next refresh.
        """
        if self.state is State.REGISTERED and self.next_try is None:
            soon = now + RECONNECT_SECONDS * (1 + self._chance())
            self.next_try = soon if surely else max(soon, self._renewed + RECONNECT_PAUSE_SECONDS)

    def reachable(self, now: float) -> None:
        """The registrar answers again after a silence: it may have been restarted, and have
        forgotten us; or it waits for a try of ours that is far off."""
        told = self.state is State.REGISTERED and self.next_try is None
        waits = self.state is State.FAILED and self.next_try is not None and not self._rejected
        if told or waits:
            self.next_try = now

    def failed(self, code: int, reason: str, now: float) -> Change | None:
        """No 200: refused, no answer, no connection. Says so once, until it changes."""
        rejected = self._rejected = code in _REJECTIONS
        first = REJECTED_RETRY_SECONDS if rejected else FIRST_RETRY_SECONDS
        last = LAST_REJECTED_RETRY_SECONDS if rejected else LAST_RETRY_SECONDS
        wait = min(last, first * 2.0 ** min(self._failures, 16))
        wait *= 1 + JITTER * (2 * self._chance() - 1)
        self._failures += 1
        self.next_try = now + wait
        self.expires_at = None
        error = f"{code} {reason}".strip()
        known = self.state is State.FAILED and self.last_error == error
        if self.state is State.LEAVING:
            self.next_try = None
            return None
        if self.state is not State.FAILED:
            self.since = now
        self.state, self.last_error = State.FAILED, error
        return None if known else Change(State.FAILED, code, reason, round(wait, 1))

    def leave(self, now: float) -> bool:
        """No more of it; True when the registrar has to be told."""
        told = self.state is State.REGISTERED
        self.state = State.LEAVING if told else State.GONE
        self.next_try, self.since = None, now
        return told

    def left(self, now: float) -> None:
        """The registrar has answered the goodbye."""
        self.state, self.since, self.expires_at = State.GONE, now, None

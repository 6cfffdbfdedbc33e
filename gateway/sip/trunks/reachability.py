# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a trunk is there: registration (RFC 3261 section 10), and OPTIONS (section 11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import structlog

from gateway.sip.settings import Trunk
from gateway.sip.signalling import Signalling

log = structlog.get_logger("sip")


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


TLS_KEYS = "sip.tls.ca, sip.tls.verify_server"
"""What to check where the other side's certificate is not accepted."""


def keys_to_check(code: int, trunk: Trunk) -> str:
    """Return the keys to check after a request to a trunk has failed; empty for none.

    Args:
        code: its final response; 0 where nobody answered.
    """
    if code in (401, 407):
        return "trunk.username, trunk.password, trunk.realm"
    if code == 403 and trunk.registrar:
        return "trunk.username, trunk.password, trunk.realm"
    if code == 404 and trunk.registrar:
        return "trunk.username, trunk.registrar"
    if code:
        return ""
    known = (("outbound_proxy", trunk.outbound_proxy), ("registrar", trunk.registrar))
    address = next((f"trunk.{key}" for key, value in known if value), "trunk.peers")
    return f"{address}, {TLS_KEYS if trunk.transport == 'tls' else 'trunk.transport'}"


class State(Enum):
    """State of a registration; ``LEAVING``: the REGISTER that ends it is sent."""

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
        """Return whether a REGISTER is to be sent now; if so, it counts as sent. ``now`` in s."""
        if self.next_try is None or now < self.next_try:
            return False
        self.next_try = None
        return True

    def succeeded(self, expires: float, now: float) -> Change | None:
        """Handle a 200 valid for ``expires`` seconds; a refresh returns None."""
        fresh = self.state is not State.REGISTERED
        self._failures, self.next_try, self.last_error = 0, None, ""
        self._renewed = now
        self.expires_at = now + expires
        if self.state is State.LEAVING or not fresh:
            return None
        self.state, self.since = State.REGISTERED, now
        return Change(State.REGISTERED, 200, "", expires)

    def disconnected(self, now: float, *, surely: bool) -> None:
        """Register again because the connection for incoming calls has ended (``surely``) or may
        have.

        A restarted registrar forgets connections, and sometimes registrations; without this, calls
        would not arrive until the next refresh.
        """
        if self.state is State.REGISTERED and self.next_try is None:
            soon = now + RECONNECT_SECONDS * (1 + self._chance())
            self.next_try = soon if surely else max(soon, self._renewed + RECONNECT_PAUSE_SECONDS)

    def reachable(self, now: float) -> None:
        """Register soon, since the registrar answers again after a silence: it may have
        restarted."""
        told = self.state is State.REGISTERED and self.next_try is None
        waits = self.state is State.FAILED and self.next_try is not None and not self._rejected
        if told or waits:
            self.next_try = now

    def renew(self) -> None:
        """Register at the next tick, whether it has failed or is good for longer."""
        if self.state in (State.REGISTERED, State.FAILED):
            self.next_try = 0.0

    def failed(self, code: int, reason: str, now: float) -> Change | None:
        """Handle a failed REGISTER; return the change to log, None while it is the same as before.

        ``code`` is 0 where nobody answered.
        """
        rejected = self._rejected = code in _REJECTIONS
        first = REJECTED_RETRY_SECONDS if rejected else FIRST_RETRY_SECONDS
        last = LAST_REJECTED_RETRY_SECONDS if rejected else LAST_RETRY_SECONDS
        wait = min(last, first * 2.0 ** min(self._failures, 16))
        wait *= 1 + JITTER * (2 * self._chance() - 1)
        self._failures += 1
        self.next_try = now + wait
        self.expires_at = None
        error = f"{code or ''} {reason}".strip()
        known = self.state is State.FAILED and self.last_error == error
        if self.state is State.LEAVING:
            self.next_try = None
            return None
        if self.state is not State.FAILED:
            self.since = now
        self.state, self.last_error = State.FAILED, error
        return None if known else Change(State.FAILED, code, reason, round(wait, 1))

    def leave(self, now: float) -> bool:
        """Register no more; return whether an unregistration has to be sent."""
        told = self.state is State.REGISTERED
        self.state = State.LEAVING if told else State.GONE
        self.next_try, self.since = None, now
        return told

    def left(self, now: float) -> None:
        """Handle the registrar's response to the unregistration."""
        self.state, self.since, self.expires_at = State.GONE, now, None


def target_of(trunk: Trunk) -> str:
    """Return the URI that OPTIONS go to: proxy, registrar or only address of the trunk; "" for
    none."""
    address = trunk.outbound_proxy or trunk.registrar
    if not address and trunk.peers:
        address = trunk.peers[0].host_port
    return f"sip:{address}{trunk.uri_parameters}" if address else ""


class OptionsPinger:
    """Sends OPTIONS to trunks (RFC 3261 section 11).

    Made and used on the SIP thread; ``results`` may be read from others.

    Args:
        account_of: pjsua's number of a trunk's account.
        on_back: called with each trunk that answers after it did not.
    """

    def __init__(
        self,
        signalling: Signalling,
        trunks: tuple[Trunk, ...],
        account_of: Callable[[Trunk], int],
        on_back: Callable[[Trunk], None] = lambda _trunk: None,
    ) -> None:
        self.results: dict[str, str] = {}
        """Last answer of each trunk that is asked: a code, or ``no answer``."""
        self._trunks = [trunk for trunk in trunks if trunk.options_interval and target_of(trunk)]
        self._account_of = account_of
        self._on_back = on_back
        self._due: dict[str, float] = {}
        signalling.on_options = self._on_options
        self._signalling = signalling

    def tick(self, now: float) -> None:
        """Send the OPTIONS that are due. To be called about once a second."""
        for index, trunk in enumerate(self._trunks):
            if now >= self._due.get(trunk.name, 0.0):
                self._due[trunk.name] = now + trunk.options_interval
                self._ask(index, trunk)

    def _ask(self, index: int, trunk: Trunk) -> None:
        status = self._signalling.send_options(self._account_of(trunk), target_of(trunk), index)
        if status != 0:
            self._note(trunk, f"cannot be sent ({status})")

    def _on_options(self, index: int, status: int) -> None:
        self._note(self._trunks[index], str(status) if status else "no answer")

    def _note(self, trunk: Trunk, result: str) -> None:
        """Keep the result of an OPTIONS, and log its change."""
        before = self.results.get(trunk.name)
        self.results[trunk.name] = result
        if result == before:
            return
        if result[:1].isdigit():  # whatever it says, somebody is there
            log.info("trunk.reachable", trunk=trunk.name, code=int(result))
            if before is not None and not before[:1].isdigit():
                self._on_back(trunk)
        else:
            check = keys_to_check(0, trunk)
            log.warning("trunk.unreachable", trunk=trunk.name, error=result, check=check)

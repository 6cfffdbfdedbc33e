"""A 503 with Retry-After where pjsua would say something else by itself, and for what comes twice.

* The INVITE that finds every call of the library taken, or no handle for its sockets: pjsua would
  say 486. RFC 3261 section 21.5.4 wants 503, so that a proxy or trunk tries another gateway.
* The INVITE that came already is absorbed (:mod:`gateway.sip.ingress.arrivals`).
* OPTIONS while the gateway drains: pjsua would say 200, and a dispatcher would go on sending calls.
  While every call is taken it stays 200: a dispatcher that took a full gateway out would lose it
  for longer than it is full, and single calls that find no place are refused one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.sip.ingress.arrivals import Arrivals
from gateway.sip.ingress.message import headers_of
from gateway.sip.signalling import DROP, PASS, Decision, Received


class Admission:
    """Answers new INVITEs while ``full()``, and OPTIONS while ``draining()``.

    Made and used on the SIP thread.

    Args:
        full: whether the library has no call left; asked for each new INVITE.
        draining: whether no new call is wanted; asked for each OPTIONS outside of dialogs.
        arrivals: what the INVITEs before say about the next one.
        retry_after: seconds for the Retry-After header.
        on_refused: told the message of each refused INVITE.
    """

    def __init__(
        self,
        full: Callable[[], bool],
        draining: Callable[[], bool],
        arrivals: Arrivals,
        retry_after: int,
        on_refused: Callable[[str], None],
    ) -> None:
        self._full = full
        self._draining = draining
        self._arrivals = arrivals
        self._on_refused = on_refused
        self._unavailable = Decision(503, (("Retry-After", str(retry_after)),))

    def decide(self, received: Received) -> Decision:
        """On a new request outside of dialogs."""
        if received.method == "INVITE":
            return self._on_invite(received.message.decode("utf-8", "replace"))
        if received.method == "OPTIONS" and self._draining():
            return self._unavailable
        return PASS

    def _on_invite(self, message: str) -> Decision:
        now = time.monotonic()
        identity = _identity_of(message)
        if identity and self._arrivals.is_repeat(identity, now):
            return DROP
        if not self._full() and not self._arrivals.exhausted(now):
            self._arrivals.admit(now)
            return PASS
        self._on_refused(message)
        return self._unavailable


def _identity_of(message: str) -> str:
    """What two copies of one INVITE have in common and no other has; empty when unknown."""
    headers = headers_of(message)
    if any(name not in headers for name in ("via", "from", "call-id", "cseq")):
        return ""
    return "\n".join(headers[name][0] for name in ("via", "from", "call-id", "cseq"))

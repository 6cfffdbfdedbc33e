"""A 503 with Retry-After where pjsua would say something else by itself, and for what comes twice.

* The INVITE that finds every call of the library taken, or no handle for its sockets: pjsua would
  say 486. RFC 3261 section 21.5.4 wants 503, so that a proxy or trunk tries another gateway.
* The INVITE that came already is absorbed (:mod:`gateway.sip.arrivals`).
* OPTIONS while the gateway drains: pjsua would say 200, and a dispatcher would go on sending calls.
  While every call is taken it stays 200: a dispatcher that took a full gateway out would lose it
  for longer than it is full, and single calls that find no place are refused one by one.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from gateway.sip.arrivals import Arrivals
from gateway.sip.filter import HANDLED, PASS, RequestFilter
from gateway.sip.message import headers_of

_SERVICE_UNAVAILABLE = 503
_LOOK_FOR_MESSAGE_BYTES = 4000
"""A received message lies inside pjsip's rx_data, a few hundred bytes from its head; its struct is
larger than this, so looking this far reads nothing that is not ours."""


class Admission:
    """Answers new INVITEs while ``full()``, and OPTIONS while ``draining()``.

    Made, opened and used on the SIP thread.

    Args:
        full: whether the library has no call left; asked for each new INVITE.
        draining: whether no new call is wanted; asked for each OPTIONS outside of dialogs.
        arrivals: what the INVITEs before say about the next one.
        retry_after: seconds for the Retry-After header.
        on_refused: told the message (empty when it could not be read) of each refused INVITE.
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
        self._invites = RequestFilter("INVITE", self._on_invite, retry_after)
        self._probes = RequestFilter("OPTIONS", self._on_probe, retry_after)

    def open(self) -> None:
        """Register with the endpoint. Raises OSError when pjsip refuses.

        It stays registered for the endpoint's life; keep this object as long.
        """
        self._invites.open()
        self._probes.open()

    def _on_invite(self, rdata: int) -> int:
        now = time.monotonic()
        message = _message_of(rdata)
        identity = _identity_of(message)
        if identity and self._arrivals.is_repeat(identity, now):
            return HANDLED
        if not self._full() and not self._arrivals.exhausted(now):
            self._arrivals.admit(now)
            return PASS
        self._invites.refuse(rdata, _SERVICE_UNAVAILABLE)
        self._on_refused(message)
        return HANDLED

    def _on_probe(self, rdata: int) -> int:
        if not self._draining():
            return PASS
        self._probes.refuse(rdata, _SERVICE_UNAVAILABLE)
        return HANDLED


def _message_of(rdata: int) -> str:
    raw = ctypes.string_at(rdata, _LOOK_FOR_MESSAGE_BYTES)
    start = raw.find(b"INVITE ")
    if start < 0:
        return ""
    message = raw[start:].split(b"\0", 1)[0].decode("utf-8", "replace")
    return message if "call-id" in headers_of(message) else ""


def _identity_of(message: str) -> str:
    """What two copies of one INVITE have in common and no other has; empty when unknown."""
    headers = headers_of(message)
    if not message or any(name not in headers for name in ("via", "from", "call-id", "cseq")):
        return ""
    return "\n".join(headers[name][0] for name in ("via", "from", "call-id", "cseq"))

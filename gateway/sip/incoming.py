# SPDX-License-Identifier: GPL-2.0-or-later
"""Incoming requests just before pjsua takes them, and the legs of new calls.

:class:`CapacityCheck` answers where the library has no call left, or the gateway drains:

* The INVITE that finds every call of the library taken, or no handle for its sockets: pjsua would
  say 486. RFC 3261 section 21.5.4 wants 503, so that a proxy or trunk tries another gateway.
  A socket that was closed holds its place in pjlib's queue of handles for half a second more: where
  calls come and go faster than that, the queue is full long before the calls are, and pjlib ends
  the process. Even a call that is refused has had two sockets, for RTP and RTCP.
* An INVITE that comes once more after its 200 was acknowledged meets no transaction any more.
  RFC 6026 section 7.1 lets it be absorbed for 64 * T1; without that it would be a second call.
* OPTIONS while the gateway drains, or lacks a server or a database that calls need: pjsua would say
  200, and a dispatcher would go on sending calls. While every call is taken it stays 200: one that
  took a full gateway out would lose it for longer than it is full, and single calls that find
  no place are refused one by one.

:class:`Incoming` finds the trunk and the account of the others, and makes a leg of each new call.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pjsua2 as pj
import structlog

from gateway.addresses import bracketed
from gateway.audio import G711, Codec
from gateway.ending import refusal_code
from gateway.sip.access_control import AccessControl, party_of
from gateway.sip.accounts import Account, Accounts
from gateway.sip.active_calls import CallServices
from gateway.sip.leg import Invite, Leg, RejectedInvite
from gateway.sip.messages.headers import headers_of, invite_of, request_uri_of, text_of
from gateway.sip.messages.sdp import MediaLine, SdpRejection, offered_codecs
from gateway.sip.signalling import DROP, PASS, Decision, ReceivedMessage
from gateway.sip.sip_call import NOTHING_FREE, SipCall
from gateway.sip.trunks import Attribution, Trunks

log = structlog.get_logger("sip")


_UNREADABLE = (400, 500)
"""What pjsua says to an INVITE or a description that it cannot make sense of."""

_UNAVAILABLE = 503

_PROVEN = ("registration", "authentication")
"""Only who was told something of us can be found so."""


@dataclass(frozen=True, slots=True)
class InviteCallbacks:
    """Callbacks about INVITEs."""

    on_arrival: Callable[[Invite], None]
    """Called on the SIP thread with each that pjsua takes, before anything is sent. No waiting."""
    on_invite: Callable[[Leg], None]
    """Told, on the event loop, of each new leg."""
    on_refused: Callable[[RejectedInvite], None]
    """Told there of each that was refused below the application."""


@dataclass(eq=False)
class Incoming:
    """Handles requests while pjsua looks at them: accounts, connections, refusals, and a leg for
    each new call. On the SIP thread."""

    services: CallServices
    access: AccessControl
    accounts: Accounts
    trunks: Trunks
    callbacks: InviteCallbacks

    def on_full(self, message: str) -> None:
        """Report a new INVITE (its text) that got 503, as the library had no call left for it."""
        self._refused(RejectedInvite(invite_of(message, ""), _UNAVAILABLE, NOTHING_FREE))

    def on_sdp_rejected(self, received: ReceivedMessage, rejection: SdpRejection) -> None:
        """Report a new INVITE whose offer was refused (``on_refused``), with code and end reason of
        the rejection."""
        message = received.message.decode("utf-8", "replace")
        invite = self._facts_of(message, f"{bracketed(received.source)}:{received.port}")
        self._refused(
            RejectedInvite(invite, refusal_code(rejection.why), rejection.text, rejection.why)
        )

    def on_rejected(self, prm: Any) -> None:
        """Report an INVITE that pjsua has refused by itself; a 503 as no call or RTP port being
        free."""
        message = text_of(prm.rdata.wholeMsg)
        invite = self._facts_of(message, text_of(prm.rdata.srcAddress)) if message else None
        code, reason = int(prm.statusCode), text_of(prm.reason)
        if code == _UNAVAILABLE:
            reason = NOTHING_FREE
        self._refused(RejectedInvite(invite, code, reason))

    def _refused(self, refused: RejectedInvite) -> None:
        """Report a refusal below the application to ``on_refused``, on the event loop. One with 400
        or 500 is of a request that could not be read, and is only counted and logged."""
        if refused.code in _UNREADABLE:
            source = "" if refused.invite is None else refused.invite.source.rpartition(":")[0]
            rule = f"INVITE that cannot be read: {refused.code}"
            self.access.refusals.note(rule, source, time.monotonic(), code=refused.code)
        else:
            self.services.thread.to_loop(self.callbacks.on_refused, refused)

    def on_connection(self, prm: Any) -> None:
        """Handle a TCP or TLS connection that was opened or closed: tell the accounts, and count
        it; an incoming one that is not allowed is closed."""
        self.accounts.on_connection(prm)
        handle = int(prm.hnd)
        if prm.state != pj.PJSIP_TP_STATE_CONNECTED:
            self.access.connections.closed(handle)
        elif source := str(pj.nativeConnectedFrom(handle)):
            self.access.on_connection(handle, source, pj.nativeShutConnection)

    def account_for(self, rdata: Any) -> Account:
        """Return the account that answers an incoming request, and set the codecs of the SDP of its
        call: the first of the trunk's that is offered; without an offer all of the trunk's; for no
        trunk G.711."""
        message, source = text_of(rdata.wholeMsg), text_of(rdata.srcAddress)
        found = self._attribute(message, source)
        trunk = None if found is None else found.trunk
        offered = self._offered(message)
        if trunk is not None and offered is not None:
            self.services.codecs.offer([codec for codec in trunk.codecs if codec in offered][:1])
        elif trunk is not None:
            self.services.codecs.offer(list(trunk.codecs))
        else:
            self.services.codecs.offer(list(G711))
        current = self.access.current
        if current is None:
            return self.accounts.of(trunk)
        return self.accounts.of(trunk, current.local, current.transport)

    def _attribute(self, message: str, source: str) -> Attribution | None:
        """Return the trunk that a request is attributed to, as access control has found it; else by
        source and Request-URI. None for an unknown source."""
        if self.access.current is not None:
            return self.access.found
        host, _, port = source.rpartition(":")
        return self.trunks.attribute(host, int(port or 0), False, request_uri_of(message))

    def _offered(self, message: str) -> tuple[Codec, ...] | None:
        """Return the codecs of the audio line that will be answered, or else those of the whole
        offer; None without an offer."""
        chosen = self.access.chosen
        if self.access.current is not None and isinstance(chosen, MediaLine):
            return chosen.codecs
        return offered_codecs(message)

    def _facts_of(self, message: str, source: str) -> Invite:
        """Return the :class:`Invite` of a message that pjsua handles, with its trunk. ``offered``
        has only codecs that the trunk allows, in the trunk's order; for no trunk G.711 in the order
        of the offer."""
        found = self._attribute(message, source)
        current = self.access.current
        how = "" if found is None else found.how
        invite = replace(
            invite_of(message, source),
            transport="" if current is None else current.transport,
            there=(current is not None and current.reliable) or how in _PROVEN,
            offered=self._offered(message),
        )
        codecs = invite.offered
        if found is None:
            known = None if codecs is None else tuple(c for c in codecs if c in invite.codecs)
            return replace(invite, offered=known)
        return replace(
            invite,
            trunk=found.trunk.name,
            attributed_by=found.how,
            codecs=found.trunk.codecs,
            offered=None if codecs is None else tuple(c for c in found.trunk.codecs if c in codecs),
        )

    def on_call(self, account: Account, prm: Any) -> None:
        """Create and announce the leg of an INVITE for which pjsua has made a call.

        An exception ends the call with 500, and the call is reported as refused.
        """
        call = SipCall(self.services, account, prm.callId)
        try:
            self._announce(call, text_of(prm.rdata.wholeMsg), text_of(prm.rdata.srcAddress))
        except Exception as error:
            log.exception("sip.callback_failed", callback="onIncomingCall", call=call.name)
            if not call.party:
                self.services.calls.add(call, "?")
            call.fail()
            info = call.getInfo()
            # Not by _facts_of, which may be what raised.
            invite = Invite(
                sip_call_id=text_of(info.callIdString),
                to_uri=text_of(info.localUri),
                from_uri=text_of(info.remoteUri),
                to_user="",
                from_user="",
                from_name="",
                source=text_of(prm.rdata.srcAddress),
                headers={},
                offered=None,
            )
            refused = RejectedInvite(invite, 500, f"{type(error).__name__}: {error}")
            self.services.thread.to_loop(self.callbacks.on_refused, refused)

    def _announce(self, call: SipCall, message: str, source: str) -> None:
        """Bind a call to a new leg, count it with its party, send 100 Trying, and report the leg
        (``on_arrival`` at once, ``on_invite`` on the event loop). RTP may be sent before the ACK
        only to a source that has registered us or shown credentials."""
        found = self._attribute(message, source)
        invite = self._facts_of(message, source)
        self.callbacks.on_arrival(invite)
        host = invite.source.rpartition(":")[0].strip("[]")
        self.services.calls.add(call, party_of(found, host))
        leg = Leg(self.services.thread, invite)
        call.bind(leg)
        call.respond(100)  # only now: pjsua sends none by itself (config_site.h)
        if invite.attributed_by in _PROVEN:
            pj.nativeOpenGate(call.getId())
        self.services.thread.to_loop(self.callbacks.on_invite, leg)


class Endpoint(pj.Endpoint):  # type: ignore[misc]
    """Callbacks of pjsua that concern no call. Each passes to ``incoming``, and does nothing while
    that is None."""

    incoming: Incoming | None = None
    """Who answers; None while the library is being set up."""

    def onRejectedIncomingCall(self, prm: Any) -> None:  # noqa: N802
        """Handle pjsua's report that it has refused an INVITE by itself."""
        self._guard("onRejectedIncomingCall", lambda incoming: incoming.on_rejected(prm))

    def onSelectAccount(self, prm: Any) -> None:  # noqa: N802
        """Choose the account for a request outside of a dialog, and with it the codecs of its
        SDP."""

        def select(incoming: Incoming) -> None:
            prm.accountIndex = incoming.account_for(prm.rdata).getId()

        self._guard("onSelectAccount", select)

    def onTransportState(self, prm: Any) -> None:  # noqa: N802
        """Handle a TCP or TLS connection that was opened or closed."""
        self._guard("onTransportState", lambda incoming: incoming.on_connection(prm))

    def _guard(self, callback: str, run: Callable[[Incoming], None]) -> None:
        """Run a callback; an exception is logged and goes no further."""
        try:
            if self.incoming is not None:
                run(self.incoming)
        except Exception:
            log.exception("sip.callback_failed", callback=callback)


HANDLE_REST_SECONDS = 0.6
"""pjlib's ``PJ_IOQUEUE_KEY_FREE_DELAY`` is 0.5 s; the rest is for a thread that comes late."""

REPEAT_SECONDS = 32.0
"""64 * T1 (RFC 6026 section 7.1)."""

MAX_REMEMBERED = 16_384
"""INVITEs remembered for being repeated: 500 a second. Beyond, the oldest is forgotten first."""

_SOCKETS_PER_CALL = 2


class RecentInvites:
    """Remembers new INVITEs before a call is made of them: how many lately, for the library's
    socket handles, and which, for repeats.

    Args:
        handles: sockets that the library's media queue holds.
        capacity: calls that the library carries.
    """

    def __init__(self, handles: int, capacity: int) -> None:
        # Calls that hold sockets now were up when the rest began, or have come since.
        self._most = max(1, handles // _SOCKETS_PER_CALL - capacity - 1)
        self._admitted: deque[float] = deque()
        self._seen: OrderedDict[str, float] = OrderedDict()

    def exhausted(self, now: float) -> bool:
        """Return whether one more call might find no handle for its sockets: of the calls admitted
        within ``HANDLE_REST_SECONDS``, too many may still hold theirs. ``now`` in s."""
        while self._admitted and self._admitted[0] <= now - HANDLE_REST_SECONDS:
            self._admitted.popleft()
        return len(self._admitted) >= self._most

    def admit(self, now: float) -> None:
        """Count a call that is about to be made. ``now`` in s."""
        self._admitted.append(now)

    def is_repeat(self, identity: str, now: float) -> bool:
        """Return whether this INVITE came within ``REPEAT_SECONDS`` (RFC 6026 section 7.1);
        remember it if not. ``identity`` is of :func:`_identity_of`, ``now`` in s."""
        while self._seen:
            oldest, at = next(iter(self._seen.items()))
            if at > now - REPEAT_SECONDS and len(self._seen) < MAX_REMEMBERED:
                break
            del self._seen[oldest]
        if identity in self._seen:
            return True
        self._seen[identity] = now
        return False


class CapacityCheck:
    """Answers new INVITEs while ``full()``, and OPTIONS while ``unready()``.

    Made and used on the SIP thread.

    Args:
        full: whether the library has no call left; asked for each new INVITE.
        unready: whether no new call is wanted; asked for each OPTIONS outside of dialogs.
        arrivals: what the INVITEs before say about the next one.
        retry_after: seconds for the Retry-After header.
        on_refused: told the message of each refused INVITE.
    """

    def __init__(
        self,
        full: Callable[[], bool],
        unready: Callable[[], bool],
        arrivals: RecentInvites,
        retry_after: int,
        on_refused: Callable[[str], None],
    ) -> None:
        self._full = full
        self._unready = unready
        self._arrivals = arrivals
        self._on_refused = on_refused
        self._unavailable = Decision(503, (("Retry-After", str(retry_after)),))

    def decide(self, received: ReceivedMessage) -> Decision:
        """Decide on a new request outside of dialogs: an INVITE by :meth:`_on_invite`; an OPTIONS
        gets 503 while ``unready()``; anything else passes."""
        if received.method == "INVITE":
            return self._on_invite(received.message.decode("utf-8", "replace"))
        if received.method == "OPTIONS" and self._unready():
            return self._unavailable
        return PASS

    def _on_invite(self, message: str) -> Decision:
        """Drop a repeated INVITE; refuse a new one with 503 and Retry-After, and report it
        (``on_refused``), where no call or socket handle is free; else count it and pass it."""
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
    """Return what identifies the copies of one INVITE: its first Via, From, Call-ID and CSeq; empty
    when one of them is missing."""
    headers = headers_of(message)
    if any(name not in headers for name in ("via", "from", "call-id", "cseq")):
        return ""
    return "\n".join(headers[name][0] for name in ("via", "from", "call-id", "cseq"))

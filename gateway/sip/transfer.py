# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers of a call in progress: REFER in both directions (RFC 3515), and Replaces (RFC 3891)."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

import pjsua2 as pj
import structlog

from gateway.addresses import host_of
from gateway.audio import Codec
from gateway.sip.accounts import Account
from gateway.sip.active_calls import Calls, CallServices, ReferPermit
from gateway.sip.conference import ConferenceLink
from gateway.sip.leg import Invite, Leg, ReferProgress
from gateway.sip.library import SipThread
from gateway.sip.messages.headers import (
    first_of,
    headers_of,
    refer_to_of,
    sip_target,
    text_of,
    uri_of,
)
from gateway.sip.rtp import QualityMeter
from gateway.sip.signalling import Signalling
from gateway.sip.source_limits import TokenBucket
from gateway.text import matched

log = structlog.get_logger("sip")

_UNAVAILABLE = 503
REMARKS_PER_SECOND, REMARKS_AT_ONCE = 0.2, 10
"""Log lines about requests within one call, of which twenty a second are processed."""

DECLINED = 603
"""To a REFER that the route does not take."""

_EVENT_ID = re.compile(r";\s*id\s*=\s*([^;\s]+)", re.IGNORECASE)

_F = TypeVar("_F", bound=Callable[..., None])


def contain_errors(callback: _F) -> _F:
    """Decorate a pjsua2 callback: log its exception, and end only the call that it concerns.

    SWIG would print the exception and go on; the call would stay up without audio.
    """

    @functools.wraps(callback)
    def run(self: Any, *args: Any) -> None:
        try:
            callback(self, *args)
        except Exception:
            log.exception("sip.callback_failed", callback=callback.__name__, call=self.name)
            self.fail()

    return run  # type: ignore[return-value]


class ReferQueue:
    """Delays REFERs of peers until the limits of all processes permit the calls that they cause.

    pjsip places such a call within its callback, so the REFER is kept, unanswered, before pjsip has
    it. Used on the SIP thread.
    """

    def __init__(self, thread: SipThread, calls: Calls, signalling: Signalling) -> None:
        self._thread = thread
        self._calls = calls
        self._signalling = signalling
        self._delayed: dict[tuple[str, str], int] = {}

    def delays(self, headers: Mapping[str, Sequence[str]]) -> bool:
        """Return whether the current REFER is kept until a permit comes, so that it must be dropped
        now; asks for the permit, once.

        True for its retransmissions, too. False, so that it is processed at once, where permits are
        not asked for, the call is unknown or may not be referred, or too many messages are kept.
        """
        ask = self._calls.permit_followed
        sip_call_id = first_of(headers, "call-id")
        key = (sip_call_id, first_of(headers, "cseq"))
        if key in self._delayed:
            return True
        call = None if ask is None else self._calls.live_call(sip_call_id)
        if ask is None or call is None or call.leg is None or call.leg.allowed_refer_to is None:
            return False
        number = self._signalling.keep_message()
        if not number:
            return False
        self._delayed[key] = number
        name = call.name

        def on_permit(permit: ReferPermit) -> None:
            self._thread.post(lambda: self._resume(key, permit))

        self._thread.to_loop(ask, name, on_permit)
        return True

    def _resume(self, key: tuple[str, str], permit: ReferPermit) -> None:
        """Have pjsip process a kept REFER, with ``calls.permit`` set meanwhile. A permit that made
        no call (declined, or the REFER is kept no more) is given back."""
        self._calls.permit = permit
        try:
            self._signalling.process_kept(self._delayed.pop(key))
        finally:
            if self._calls.permit is not None:  # it was not followed
                self._calls.permit = None
                self._thread.to_loop(functools.partial(permit.give_back, unused=True))


class ReferSubscriptions:
    """Tells whether the status of a REFER of ours is about the call's last one. Each REFER is a
    subscription of its own, whose id is the number in its CSeq (RFC 3515 section 2.4.6).

    pjsip gives a NOTIFY with id to the first subscription that has none yet, so that its
    subscriptions cannot tell.
    """

    def __init__(self) -> None:
        self._earlier: set[str] = set()
        """Ids of the REFERs before the last one."""
        self._sent = self._named = ""
        """CSeq number of the last REFER, and the id that the peer gives to it; "" before they are
        known."""
        self._target = ""
        """Refer-To of the last REFER."""
        self._has_response = False
        """The last REFER has its final response."""
        self._about: str | None = None
        """Id that the next status has; None where no message has brought it."""

    def begin(self) -> None:
        """Expect the CSeq of another REFER; what comes for those before counts no more."""
        self._earlier |= {self._sent, self._named} - {""}
        self._sent = self._named = ""
        self._has_response = False

    def on_sent(self, number: str, target: str) -> None:
        """Note the CSeq number of a REFER that is sent: the one begun, or one that is sent again
        with credentials, which is told by its Refer-To (``target``), as pjsip does not tell of the
        401 or 407 before it."""
        if not self._sent:
            self._target = target
        if target == self._target:
            self._sent, self._has_response = number, False
        else:
            self._earlier.add(number)

    def on_response(self, number: str) -> None:
        """Note the final response to the REFER of this number, or that none came: the next status
        tells it, if pjsip tells it at all (no 202 after that of an open subscription)."""
        self._about = number
        if number == self._sent:
            self._has_response = True

    def on_notify(self, event_id: str) -> None:
        """Note a NOTIFY with this id in its Event header, "" without one: the next status is its
        sipfrag's."""
        self._about = event_id
        if event_id and event_id not in self._earlier:
            self._named = event_id

    def take(self) -> tuple[bool, str]:
        """Return whether the status that has come now is about the last REFER, and its id.

        Many peers give no id at all. A NOTIFY without one counts for the last REFER unless that has
        no response yet, or the peer names it by an id: then it is the first one's. Where no message
        has brought the status (a subscription has expired), it counts only if no other REFER was
        sent before.
        """
        about, self._about = self._about, None
        if not self._earlier:
            current = True
        elif about == "":
            current = self._has_response and not self._named
        else:
            current = about is not None and about not in self._earlier
        return current, about or ""


class TransferableCall(pj.Call):  # type: ignore[misc]
    """A pjsua2 call that can be transferred by REFER, and replaced by another (RFC 3515, RFC 3891).

    Base of :class:`gateway.sip.sip_call.SipCall`. Lives on the SIP thread.

    Args:
        call_id: pjsua2's, of a call that came in; None for one that is to be placed.
    """

    def __init__(
        self, services: CallServices, account: Account, call_id: int | None = None
    ) -> None:
        super().__init__(account, *(() if call_id is None else (call_id,)))
        self.services = services
        self.account = account
        self.leg: Leg | None = None
        wait, trunk = services.packet_wait_ms, account.trunk
        if trunk is not None and trunk.packet_wait_ms is not None:
            wait = trunk.packet_wait_ms
        self.link = ConferenceLink(services.sounds, services.pool, wait, may_send=call_id is None)
        self._remarks = TokenBucket(REMARKS_PER_SECOND, REMARKS_AT_ONCE)
        self.ended = False
        self.held = False
        """The peer holds us (RFC 3264 section 8.4)."""
        self.codec: Codec | None = None
        """Of its audio; None before media is up."""
        self.meter = QualityMeter()
        """RTP quality, also of the calls that this one has taken the place of."""
        self.party = ""
        """Whose calls this one is counted with."""
        self.followed = False
        """A REFER made this call."""
        self.give_back: Callable[[], None] = lambda: None
        """Called once a call that a REFER made is counted as such no more."""
        self._on_refer: Callable[[ReferProgress], None] | None = None
        self._subscriptions = ReferSubscriptions()
        self._predecessor: TransferableCall | None = None
        """The call that this one is to take the place of, once it is answered."""
        self._followers: list[TransferableCall] = []
        """Calls that REFERs of our peer made; pjsua2 may name them while it is there."""

    def remark(self, level: str, event: str, **fields: Any) -> None:
        """Log the result of a peer's request, with these fields; dropped beyond
        ``REMARKS_PER_SECOND`` within one call."""
        if self._remarks.take(time.monotonic()):
            getattr(log, level)(event, call=self.name, **fields)

    def bind(self, leg: Leg) -> None:
        """Attach the call to its leg. To be called before the leg is announced."""
        self.leg, leg.call = leg, self

    def release(self) -> None:
        """Detach call and leg from each other, so that both can be freed; a command to the leg does
        nothing then."""
        if self.leg is not None:
            self.leg.call = None
            self.leg = None

    @property
    def name(self) -> str:
        """The gateway's id of the call, for logs; ``?`` without a leg."""
        return self.leg.call_id if self.leg is not None else "?"

    def end(self, code: int, reason: str) -> None:
        """Release what the call holds, and report its end, once."""
        raise NotImplementedError

    def refer(self, target: str, on_progress: Callable[[ReferProgress], None]) -> None:
        """Send REFER to ``target`` (blind transfer); call ``on_progress`` on the event loop for its
        response and each NOTIFY.

        A tel URI becomes a sip URI of the call's trunk; other URIs, and all of a call without
        trunk, stay as they are.
        """
        trunk, leg = self.account.trunk, self.leg
        if trunk is not None and leg is not None:
            target = sip_target(target, trunk, leg.invite.source)
        self._refer(on_progress, lambda param: self.xfer(target, param))

    def refer_to(
        self, other: TransferableCall, on_progress: Callable[[ReferProgress], None]
    ) -> None:
        """Send REFER with Replaces (attended transfer): the peer takes the place of our leg in
        another call of ours. ``on_progress`` as of :meth:`refer`."""
        self._refer(on_progress, lambda param: self.xferReplaces(other, param))

    def _refer(
        self, on_progress: Callable[[ReferProgress], None], send: Callable[[Any], None]
    ) -> None:
        """Send a REFER by ``send``, and have its progress reported to ``on_progress`` instead of an
        earlier one's; an error is reported as a final progress with status 500."""
        self._on_refer = on_progress
        self._subscriptions.begin()
        try:
            send(pj.CallOpParam())
        except Exception as error:
            self._on_refer = None
            why = text_of(error.info()) if isinstance(error, pj.Error) else type(error).__name__
            progress = ReferProgress(500, why, True)
            self.services.thread.to_loop(on_progress, progress)

    def note_refer(self, state: Any) -> None:
        """Note of which REFER of ours the next status is, by a ``TsxStateEvent``: its transaction,
        or a NOTIFY. pjsua tells the call of transactions before it tells the status."""
        tsx = state.tsx
        method = text_of(tsx.method)
        if method == "REFER" and tsx.role == pj.PJSIP_ROLE_UAC:
            headers = headers_of(text_of(tsx.lastTx.wholeMsg))
            number = first_of(headers, "cseq").partition(" ")[0]
            if tsx.state == pj.PJSIP_TSX_STATE_CALLING:
                self._subscriptions.on_sent(number, first_of(headers, "refer-to"))
            elif tsx.state >= pj.PJSIP_TSX_STATE_COMPLETED > state.prevState:
                self._subscriptions.on_response(number)
        elif method == "NOTIFY" and tsx.state == pj.PJSIP_TSX_STATE_TRYING:
            event = first_of(headers_of(text_of(state.src.rdata.wholeMsg)), "event")
            found = _EVENT_ID.search(event)
            self._subscriptions.on_notify("" if found is None else found[1])

    @contain_errors
    def onCallTransferStatus(self, prm: Any) -> None:  # noqa: N802
        """Report the response to our REFER, or the status in a NOTIFY about it (RFC 3515 section
        2.4.5), to who sent it; nothing after a final one. What is about a REFER before the last one
        is only logged."""
        current, event_id = self._subscriptions.take()
        on_progress = self._on_refer
        if on_progress is None:
            return  # of a call that had this library slot before
        if not current:
            code = int(prm.statusCode)
            self.remark("info", "sip.refer_status_dropped", code=code, event_id=event_id[:40])
            return
        progress = ReferProgress(int(prm.statusCode), text_of(prm.reason), bool(prm.finalNotify))
        if progress.final:
            self._on_refer = None
        self.services.thread.to_loop(on_progress, progress)

    @contain_errors
    def onCallTransferRequest(self, prm: Any) -> None:  # noqa: N802
        """Handle the peer's REFER (RFC 3515): place the call that it asks for, whose leg takes this
        one's place once answered; or decline with 603.

        Followed only if the Refer-To can be read, ``allowed_refer_to`` matches it, no other REFER
        of this call is being followed, the outbound rules and the permit of all processes allow it,
        and its host is known; a name that is not is looked up for the next try. ``leg.on_refer`` is
        told the target either way.
        """
        target = refer_to_of(text_of(prm.dstUri))
        uri, why = target.uri, target.flaw
        leg, services = self.leg, self.services
        if leg is not None and leg.on_refer is not None:
            services.thread.to_loop(leg.on_refer, uri or text_of(prm.dstUri))
        permit, free = services.calls.permit, None
        allowed = None if leg is None else leg.allowed_refer_to
        if leg is None or leg.on_replaced is None or allowed is None:
            why = "allowed_refer_to is not set"
        elif not why and not matched(allowed, uri):
            why = "allowed_refer_to does not match"
        elif not why and any(not one.ended for one in self._followers):
            why = "another one of this call is being followed"
        elif not why and services.calls.permit_followed is not None and permit is None:
            why = "outbound: others could not be asked"
        elif not why and permit is not None and permit.rule:
            why = f"outbound: {permit.rule}"
        elif not why and not services.names.known(host_of(uri)):
            # pjsip places the call in this very callback, and no name is looked up meanwhile.
            why = "unknown host"
            services.thread.to_loop(services.names.resolve_soon, host_of(uri))
        elif not why:  # last, as it counts the call
            free = services.calls.may_follow_refer(uri)
            why = "" if free is not None else "outbound"
        if leg is None or free is None:
            shown = text_of(prm.dstUri)[:200]
            self.remark("info", "sip.refer_declined", target=shown, why=why)
            prm.statusCode = DECLINED
            return
        log.info("sip.refer_followed", call=self.name, target=uri)
        try:
            successor = self._successor(replace(leg.invite, sip_call_id="", to_uri=uri))
            successor.followed = True
            services.calls.count_followed(successor)
        finally:
            free()
        if permit is not None:
            services.calls.permit = None
            successor.give_back = functools.partial(services.thread.to_loop, permit.give_back)
        successor._predecessor = self
        self._followers.append(successor)
        prm.newCall = successor  # pjsua places the call, and tells the peer how it goes
        self.services.thread.post(successor.see_begun)

    def see_begun(self) -> None:
        """End a call that pjsua could not begin, or has refused itself, with 503: no state callback
        comes for it."""
        if self.getId() == pj.INVALID_ID or self.is_over():
            self.end(_UNAVAILABLE, "cannot be begun")

    def is_over(self) -> bool:
        """Return whether the library's dialog of the call is disconnected, or the library knows the
        call no more."""
        try:
            return bool(self.getInfo().state == pj.PJSIP_INV_STATE_DISCONNECTED)
        except pj.Error:
            return True

    @contain_errors
    def onCallReplaceRequest(self, prm: Any) -> None:  # noqa: N802
        """Handle an INVITE with Replaces for this call (RFC 3891): a new leg takes this one's place
        once pjsua has answered it. 603 where the owner takes no successor, or the call is joined
        with another leg.

        Only who was told the dialog's tags can send it.
        """
        leg = self.leg
        if leg is None or leg.on_replaced is None or self.link.partner is not None:
            prm.statusCode = DECLINED
            return
        message = text_of(prm.rdata.wholeMsg)
        fields = headers_of(message)
        sender = uri_of(first_of(fields, "from"))
        sip_call_id = first_of(fields, "call-id")
        successor = self._successor(replace(leg.invite, sip_call_id=sip_call_id, from_uri=sender))
        successor._predecessor = self
        prm.newCall = successor  # pjsua answers it, then ends this one; or refuses it
        self.services.thread.post(successor.see_begun)

    def _successor(self, invite: Invite) -> Self:
        """Make the call that takes this one's place, counted with the same party, with a new leg
        for ``invite`` and the same gateway id; its owner gets it by :meth:`take_over`."""
        successor = type(self)(self.services, self.account)
        leg = Leg(self.services.thread, invite)
        if self.leg is not None:
            leg.call_id = self.leg.call_id
        successor.bind(leg)
        self.services.calls.add(successor, self.party)
        return successor

    def succeed(self) -> None:
        """Take over from the predecessor, if there is one, once, unless that has ended: a call that
        a REFER made was answered, or we have answered one with Replaces."""
        predecessor, self._predecessor = self._predecessor, None
        if predecessor is not None and not predecessor.ended:
            self.take_over(predecessor)

    def leave_followers(self) -> None:
        """Hang up the calls that REFERs of our peer made, but one that has taken over: this call
        has ended, and nobody is there to own them."""
        for one in self._followers:
            if one._predecessor is self and one.leg is not None:
                one.leg.hang_up({"Reason": 'SIP;cause=487;text="Referrer left"'})

    def take_over(self, other: TransferableCall) -> None:
        """Take over audio, bridge port, partner, sound and RTP counts of the other call, and its
        place among those that we place, if it has one.

        Its owner is told the new leg (``on_replaced``): it sets the handler there and hangs up the
        old leg. The handler is then told the codec, if known, and whether the peer holds us, if
        that differs.
        """
        mine, theirs = self.leg, other.leg
        assert mine is not None
        assert theirs is not None
        mine.audio, theirs.audio = theirs.audio, None
        if theirs.placed:  # its handler, which comes along, counts one leg
            mine.placed = True
            self.services.calls.uncount_followed(self)
        self.link.take_over(other.link)
        self.meter, other.meter = other.meter, self.meter
        self.meter.begin_stream()  # which may have had more packets than the other call's
        if theirs.on_replaced is not None:
            self.services.thread.to_loop(theirs.on_replaced, mine)
        # What the owner knows is of the other call; what came before it had this leg was dropped.
        codec, held = self.codec, self.held
        if codec is not None:
            mine.tell(lambda handler: handler.on_media(codec))
        if held is not other.held:
            mine.tell(lambda handler: handler.on_hold(held))

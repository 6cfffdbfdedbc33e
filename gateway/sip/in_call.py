# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call in progress can do besides talking: be transferred, be joined with another, hear
music, send and take keys by INFO. The part of :class:`gateway.sip.leg.SipCall` for that.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import pjsua2 as pj
import structlog

from gateway.addresses import host_of
from gateway.sip.media.ports import Port
from gateway.sip.messages.headers import body_of, headers_of, text_of, uri_of
from gateway.sip.messages.refer_to import refer_to_of, sip_target
from gateway.sip.messages.replies import info_digit, info_status
from gateway.text import matched

if TYPE_CHECKING:
    from gateway.sip.agent import UserAgent
    from gateway.sip.leg import Leg
    from gateway.sip.types import Invite

log = structlog.get_logger("sip")

_UNAVAILABLE = 503
DECLINED = 603
"""To a REFER that the route does not take."""


_F = TypeVar("_F", bound=Callable[..., None])


def contain_errors(callback: _F) -> _F:
    """Log what a pjsua2 callback raises, with its call, and end that call only.

    SWIG prints such an exception and forgets it; the call would stay up, deaf.
    """

    @functools.wraps(callback)
    def run(self: Any, *args: Any) -> None:
        try:
            callback(self, *args)
        except Exception:
            log.exception("sip.callback_failed", callback=callback.__name__, call=self.name)
            self.fail()

    return run  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class ReferProgress:
    """The response to our REFER (100 stands for 202), or the status line of a NOTIFY (RFC 3515
    section 2.4.5); ``final``: the subscription is over."""

    code: int
    phrase: str
    final: bool


class InCall(pj.Call):  # type: ignore[misc]
    """Lives on the SIP thread. ``SipCall`` sets up what is only declared here."""

    agent: UserAgent
    leg: Leg | None
    ended: bool
    party: str
    may_send: bool
    """The peer is there: it has acknowledged the call, or is whom we called."""
    may_send_early: bool
    """Early media may go where the peer's description says."""
    _port: Port | None

    def __init__(self, account: Any, *args: Any) -> None:
        super().__init__(account, *args)
        self.account = account
        self._media: Any = None
        """The call's stream in the bridge, while it has one."""
        self._partner: InCall | None = None
        self._listened_to = True
        self._stream = 0
        """pjmedia's, while there is one."""
        self._send_held = False
        self._sound = ""
        self._playing: Any = None
        self._player: Any = None
        self._on_refer: Callable[[ReferProgress], None] | None = None
        self.followed = False
        """A REFER made this call; it counts among those that we place."""
        self._predecessor: InCall | None = None
        """The call that this one is to take the place of, once it is answered."""
        self._followers: list[InCall] = []
        """Calls that REFERs of our peer made; pjsua2 may name them while it is there."""

    def end(self, code: int, reason: str) -> None:
        """The call is over, by this status."""
        raise NotImplementedError

    # ---- media

    def wire(self, media: Any) -> None:
        """The stream is up, perhaps anew: join it with all that it belongs to."""
        self._media = media
        self._playing = None
        self._connect()
        self.play(self._sound)

    def let_send(self, *, early: bool = False) -> None:
        """There is somebody to hear us."""
        self.may_send_early = True
        self.may_send = self.may_send or not early
        self.gate()

    def gate(self) -> None:
        """Let RTP go out, or hold it: silence that nobody asked for is traffic, too."""
        held = not (self.may_send or (self.may_send_early and self._playing is not None))
        if self._stream and held is not self._send_held:
            self._send_held = held
            pj.nativeHoldStream(self._stream, held)

    @contain_errors
    def onStreamCreated(self, prm: Any) -> None:  # noqa: N802
        """A stream stands; it sends from its first frame on unless it is held."""
        self._stream, self._send_held = int(prm.stream), False
        self.gate()

    @contain_errors
    def onStreamDestroyed(self, prm: Any) -> None:  # noqa: N802
        """A stream is gone."""
        if int(prm.stream) == self._stream:
            self._stream = 0

    def unwire(self) -> None:
        """The call is over; pjsua has removed its stream, and what was joined with it."""
        self._media = self._playing = self._predecessor = None
        self.agent.sounds.give_back(self._sound, self._player)
        self._sound, self._player = "", None
        partner, self._partner = self._partner, None
        if partner is not None:
            partner._partner = None

    def play(self, sound: str) -> None:
        """Let the peer hear this sound, beside all else; "" ends it."""
        if sound != self._sound or self._player is None:
            self.agent.sounds.give_back(self._sound, self._player)
            self._player = self.agent.sounds.take(sound) if sound else None
        self._sound, player = sound, self._player
        if self._media is None or player is self._playing:
            return
        if self._playing is not None:
            self._playing.stopTransmit(self._media)
        self._playing = player
        if player is not None:
            player.startTransmit(self._media)
        self.gate()

    def join(self, other: InCall, listen: bool) -> None:
        """Let both peers hear each other; our own port hears both, or nobody (``listen``)."""
        self._partner, other._partner = other, self
        self._listened_to = listen
        self._connect()

    def _connect(self) -> None:
        media, partner, port = self._media, self._partner, self._port
        if media is None:
            return
        other = None if partner is None else partner._media
        if other is not None:
            media.startTransmit(other)
            other.startTransmit(media)
        if port is not None and partner is not None and not self._listened_to:
            media.stopTransmit(port)
            port.stopTransmit(media)
        elif port is not None:
            media.startTransmit(port)
            port.startTransmit(media)
            if other is not None:
                other.startTransmit(port)
        if partner is not None and partner._port is not None and partner._listened_to:
            media.startTransmit(partner._port)

    # ---- keys

    def press(self, digit: str, how: str) -> None:
        """Send one key, by RFC 4733 or INFO; ``auto`` takes INFO where the peer knows no other."""
        if how != "info":
            try:
                self.dialDtmf(digit)
                return
            except pj.Error as error:
                if how == "rfc4733":
                    log.warning("sip.dtmf_not_sent", call=self.name, error=error.info())
                    return
        param = pj.CallSendDtmfParam()
        param.method, param.digits, param.duration = pj.PJSUA_DTMF_METHOD_SIP_INFO, digit, 200
        try:
            self.sendDtmf(param)
        except pj.Error as error:
            log.warning("sip.dtmf_not_sent", call=self.name, error=error.info())

    def take_info(self, rdata: Any) -> str | None:
        """An INFO request came: answer it where pjsua does not; returns the key in it."""
        message = text_of(rdata.wholeMsg)
        content_type = next(iter(headers_of(message).get("content-type", ())), "")
        body = body_of(message)
        code = info_status(content_type, body)
        if code:
            pj.nativeRespond(rdata, code)
        return info_digit(content_type, body)

    # ---- transfers

    def refer(self, target: str, told: Callable[[ReferProgress], None]) -> None:
        """REFER the peer to ``target``; ``told`` of all that comes of it, on the loop.

        A tel URI becomes a sip URI of the call's trunk, all else goes as it is.
        """
        trunk, leg = self.account.trunk, self.leg
        if trunk is not None and leg is not None:
            target = sip_target(target, trunk, leg.invite.source)
        self._refer(told, lambda param: self.xfer(target, param))

    def refer_to(self, other: InCall, told: Callable[[ReferProgress], None]) -> None:
        """REFER the peer to the peer of another call of ours, which it is to replace."""
        self._refer(told, lambda param: self.xferReplaces(other, param))

    def _refer(self, told: Callable[[ReferProgress], None], send: Callable[[Any], None]) -> None:
        self._on_refer = told
        try:
            send(pj.CallOpParam())
        except Exception as error:
            self._on_refer = None
            why = text_of(error.info()) if isinstance(error, pj.Error) else type(error).__name__
            progress = ReferProgress(500, why, True)
            self.agent.to_loop(lambda: told(progress))

    @contain_errors
    def onCallTransferStatus(self, prm: Any) -> None:  # noqa: N802
        """The REFER was answered, or a NOTIFY came."""
        told = self._on_refer
        if told is None:
            return  # of a call that had this library slot before
        progress = ReferProgress(int(prm.statusCode), text_of(prm.reason), bool(prm.finalNotify))
        if progress.final:
            self._on_refer = None
        self.agent.to_loop(lambda: told(progress))

    @contain_errors
    def onCallTransferRequest(self, prm: Any) -> None:  # noqa: N802
        """The peer wants us to call somewhere, and leave it then (RFC 3515)."""
        target = refer_to_of(text_of(prm.dstUri))
        uri, why = target.uri, target.flaw
        leg = self.leg
        allowed = None if leg is None else leg.follow_refer
        if leg is None or leg.on_moved is None or allowed is None:
            why = "allowed_refer_to is not set"
        elif not why and not matched(allowed, uri):
            why = "allowed_refer_to does not match"
        elif not why and any(one.followed for one in self._followers):
            why = "another one of this call is being followed"
        elif not why and not self.agent.may_follow(uri):
            why = "outbound"
        elif not why and not self.agent.names.known(host_of(uri)):
            # pjsip places the call in this very callback, and no name is looked up meanwhile.
            why = "unknown host"
            self.agent.to_loop(lambda: self.agent.names.note(host_of(uri)))
        if leg is None or why:
            shown = text_of(prm.dstUri)[:200]
            log.info("sip.refer_declined", call=self.name, target=shown, why=why)
            prm.statusCode = DECLINED
            return
        log.info("sip.refer_followed", call=self.name, target=uri)
        successor = self._successor(replace(leg.invite, sip_call_id="", to_uri=uri))
        successor.followed = True
        self.agent.calls.followed += 1
        successor._predecessor = self
        self._followers.append(successor)
        prm.newCall = successor  # pjsua places the call, and tells the peer how it goes
        self.agent.post(lambda: self._see_placed(successor))

    def _see_placed(self, successor: InCall) -> None:
        """A call that pjsua could not even begin has no state that it would tell of."""
        if successor.getId() == pj.INVALID_ID:
            successor.end(_UNAVAILABLE, "cannot be sent")

    @contain_errors
    def onCallReplaceRequest(self, prm: Any) -> None:  # noqa: N802
        """Somebody is to take the peer's place (RFC 3891); only who was told its tags can ask."""
        leg = self.leg
        if leg is None or leg.on_moved is None or self._partner is not None:
            prm.statusCode = DECLINED
            return
        message = text_of(prm.rdata.wholeMsg)
        fields = headers_of(message)
        sender = uri_of(next(iter(fields.get("from", ())), ""))
        sip_call_id = next(iter(fields.get("call-id", ())), "")
        successor = self._successor(replace(leg.invite, sip_call_id=sip_call_id, from_uri=sender))
        successor.take_over(self)  # pjsua ends this call before the other one is confirmed
        prm.newCall = successor

    def _successor(self, invite: Invite) -> InCall:
        successor: Any = type(self)(self.agent, self.account)
        leg = type(self.leg)(self.agent, invite)  # type: ignore[misc]
        if self.leg is not None:
            leg.call_id = self.leg.call_id
        successor.leg = leg
        leg.bind(successor)
        self.agent.calls.hold(successor, self.party)
        return successor  # type: ignore[no-any-return]

    def confirmed(self) -> None:
        """The call is up: if it was made in another's place, that place is taken now."""
        predecessor, self._predecessor = self._predecessor, None
        if predecessor is not None and not predecessor.ended:
            self.take_over(predecessor)

    def take_over(self, other: InCall) -> None:
        """Have the other call's port and owner from now on."""
        mine, theirs = self.leg, other.leg
        assert mine is not None
        assert theirs is not None
        port, other._port = other._port, None
        if port is not None and other._media is not None:
            other._media.stopTransmit(port)
            port.stopTransmit(other._media)
        self._port, mine.audio = port, theirs.audio
        self._connect()
        told = theirs.on_moved
        if told is not None:
            self.agent.to_loop(lambda: told(mine))


class InCallCommands:
    """The part of :class:`gateway.sip.leg.Leg` for the same; for the event loop."""

    _command: Callable[[Callable[[Any], None]], None]
    _call: Any
    follow_refer: re.Pattern[str] | None = None
    """URIs that the peer may send us to by REFER; none by default."""
    on_moved: Callable[[Leg], None] | None = None
    """Told, on the event loop, which leg has taken the place of this one."""

    def play(self, sound: str) -> None:
        """Let the peer hear a sound over and over; "" ends it."""
        self._command(lambda call: call.play(sound))

    def press(self, digit: str, how: str = "auto") -> None:
        """Send one key: ``how`` is auto, rfc4733 or info."""
        self._command(lambda call: call.press(digit, how))

    def refer(self, target: str, told: Callable[[ReferProgress], None]) -> None:
        """Blind transfer to a sip or tel URI."""
        self._command(lambda call: call.refer(target, told))

    def refer_to(self, other: Leg, told: Callable[[ReferProgress], None]) -> None:
        """Attended transfer: the peer is to take over our call ``other``."""

        def run(call: Any) -> None:
            if other._call is None or other._call.ended:
                self_told = ReferProgress(481, "the other call is over", True)
                call.agent.to_loop(lambda: told(self_told))
            else:
                call.refer_to(other._call, told)

        self._command(run)

    def join(self, other: Leg, listen: bool) -> None:
        """Let the peers of both legs hear each other; the session listens to both, or to none."""

        def run(call: Any) -> None:
            if other._call is not None and not other._call.ended:
                call.join(other._call, listen)

        self._command(run)

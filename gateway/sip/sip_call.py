# SPDX-License-Identifier: GPL-2.0-or-later
"""The pjsua2 call of a leg: answering and ending it, its media, its keys. On the SIP thread."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pjsua2 as pj
import structlog

from gateway.audio import G711, Codec
from gateway.sip.accounts import Account, header_vector
from gateway.sip.active_calls import CallServices
from gateway.sip.leg import LegEnd, LegHandler
from gateway.sip.messages.headers import body_of, first_of, headers_of, reason_of, text_of
from gateway.sip.messages.replies import KEYS, info_digit, info_status
from gateway.sip.rtp import counters_of
from gateway.sip.source_limits import TokenBucket
from gateway.sip.transfer import TransferableCall, contain_errors
from gateway.sip.trunks import TLS_KEYS, ChallengedCall, keys_to_check

log = structlog.get_logger("sip")

_IS_UPDATE = 1
"""PJMEDIA_STREAM_DTMF_IS_UPDATE: a further packet of an event already reported."""

_REQUEST_TIMEOUT, _REQUEST_TERMINATED, _NOT_ACCEPTABLE = 408, 487, 488
_GATEWAY_ERROR, _UNAVAILABLE = 500, 503

_SYSTEM_ERRORS = 120_000
"""pjlib's ``PJ_ERRNO_START_SYS``: from here on its codes are errnos of the system."""
_EXHAUSTED = frozenset(
    _SYSTEM_ERRORS + number
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRINUSE)
)
NOTHING_FREE = "no call of the library, RTP port or descriptor is free"

MAX_URI = 200
"""Characters that are told of where others send our calls."""

_IN_USE = (
    pj.PJSUA_CALL_MEDIA_ACTIVE,
    pj.PJSUA_CALL_MEDIA_REMOTE_HOLD,
    pj.PJSUA_CALL_MEDIA_LOCAL_HOLD,
)


def _tell_media(handler: LegHandler, codec: Codec) -> None:
    """Report media to a handler; a function, since a lambda would see the loop's last codec."""
    handler.on_media(codec)


def _has_media(info: Any) -> bool:
    """Return whether a ``pj.CallInfo`` has media, of any kind, that is active or on hold by either
    side."""
    # `info` is the caller's, and outlives what it hands out.
    return any(info.media[index].status in _IN_USE for index in range(len(info.media)))


KEYS_PER_SECOND, KEYS_AT_ONCE = 20.0, 40
"""Keys that one call takes; a telephone that dials by itself presses some 12 a second. Each is a
line of the log, and may be a message of the conversation."""

KEYS_TIMEOUT = 10.0
"""Seconds that playout waits for keys agreed in media: DTLS repeats a message that is lost after
1, 2 and 4 s (RFC 6347 section 4.2.4.1)."""

_SRTP_STATUS = re.compile(r"SRTP status: (Active|Not active) Crypto-suite: (\S*)")

_PLAIN_RTP = "rtp"


def media_security(call: Any, stream: Any) -> str:
    """Return how media is secured: ``rtp``, or as ``srtp sdes AES_CM_128_HMAC_SHA1_80``.

    Empty while DTLS, which begins with the answer, has not agreed keys. Read from the library's
    description of the call.

    Args:
        stream: the call's ``StreamInfo``.
    """
    by_dtls = int(stream.proto) & pj.PJMEDIA_TP_PROTO_DTLS
    match = _SRTP_STATUS.search(str(call.dump(True, "")))
    if match is None or match[1] != "Active":
        return "" if by_dtls else _PLAIN_RTP
    return f"srtp {'dtls' if by_dtls else 'sdes'} {match[2]}"


@dataclass(slots=True)
class _Ending:
    """What is known of a call's end before it has come."""

    local: bool = False
    bye: int = 0
    """The number of our BYE, once one is on its way."""
    method: str = ""
    """BYE or CANCEL, of the peer."""
    reason_header: str = ""
    """Reason header (RFC 3326) of the peer's BYE or CANCEL."""
    fault: tuple[int, str] | None = None
    """Why we gave the dialog up, if the peer made us."""


class SipCall(TransferableCall):
    """The pjsua2 call of a leg: its answer and end, media, DTMF, quality. Lives on the SIP thread
    from first to last."""

    def __init__(
        self, services: CallServices, account: Account, call_id: int | None = None
    ) -> None:
        super().__init__(services, account, call_id)
        self.answered = self.acknowledged = False
        self._ending = _Ending()
        self._last_event: tuple[str, int] | None = None
        """The last telephone-event: its key, and when it began by the clock of the RTP, in ms."""
        self._keys = TokenBucket(KEYS_PER_SECOND, KEYS_AT_ONCE)
        self._keys_dropped = False
        self._stream_is_new = False
        self._audio_index = 0
        """Which ``m=`` line is the call's audio."""
        self._keys_until = 0.0
        """When playout waits no longer for the keys of SRTP (s)."""
        self._rtp_name = ""
        """``host:port`` of our RTP, once its peer knows it."""
        self._peer_sends = True
        """What the peer's description says of its direction."""

    @property
    def sip_call_id(self) -> str:
        """The SIP Call-ID: that of the leg's INVITE, else the library's; empty where there is none
        yet."""
        known = "" if self.leg is None else self.leg.invite.sip_call_id
        if known:
            return known
        try:
            return str(self.getInfo().callIdString)
        except pj.Error:
            return ""

    def challenged(self) -> ChallengedCall:
        """Return what :class:`Challenges` has to know when a 401 or 407 to this call comes: its
        trunk, To URI, and whether a REFER made it."""
        to_uri = "" if self.leg is None else self.leg.invite.to_uri
        return ChallengedCall(self.account.trunk, to_uri, self.followed)

    def run(self, command: Callable[[SipCall], None]) -> None:
        """Run a command of the event loop on this call; an exception ends the leg.

        A ``pj.Error`` is logged, and ends it with 503 where RTP ports, descriptors or memory are
        used up, else with 500; only logged if the dialog is over meanwhile. Any other exception
        ends it with 500 or BYE (see :meth:`fail`).
        """
        try:
            command(self)
        except pj.Error as error:
            log.warning("sip.command_refused", call=self.name, error=error.info())
            if not self.ended and not self.is_over():
                self.fail(_UNAVAILABLE if int(error.status) in _EXHAUSTED else _GATEWAY_ERROR)
        except Exception:
            log.exception("sip.call_failed", call=self.name)
            self.fail()

    def respond(self, code: int) -> None:
        """Answer the INVITE with ``code``: 100, 180, 183 or 200. Where the INVITE had no offer, SDP
        offers the codecs of its trunk."""
        self.answered = code == pj.PJSIP_SC_OK
        param = pj.CallOpParam()
        param.statusCode = code
        if self.leg is not None and self.leg.invite.offered is None:
            self.services.codecs.offer(list(self.leg.invite.codecs))
        self.answer(param)

    def finish(self, code: int, headers: Mapping[str, str]) -> None:
        """End the leg: before the ACK with final response ``code`` (0: CANCEL, or 603) and these
        headers, after it with BYE, whose outcome the end of the call waits for. The end counts as
        ours (``LegEnd.local``)."""
        self._ending.local = True
        param = pj.CallOpParam()
        if code:
            param.statusCode = code
        param.txOption.headers = header_vector(headers)
        if self.acknowledged:
            self._ending.bye = self.services.byes.watch(self)
        self.hangup(param)

    def rtp_source(self) -> str:
        """Return the ``address:port`` that RTP comes from; empty before any came, and once the call
        has ended."""
        try:
            return "" if self.ended else str(self.getMedTransportInfo(self._audio_index).srcRtpName)
        except pj.Error:
            return ""

    def play(self, sound: str) -> None:
        """Play a sound (a built-in one's name or a WAV file's path) to the peer in a loop, in the
        place of the one before; "" stops it."""
        self.link.play(sound)

    def join(self, other: SipCall, listen: bool, level: float | None) -> None:
        """Let both peers hear each other; see :meth:`ConferenceLink.join`. Without ``level`` the
        other leg loses its own audio, and with it its session."""
        if other.leg is not None and level is None:
            other.leg.audio = None  # it had its own, to be briefed
        self.link.join(other.link, listen, level)

    def press(self, digit: str, how: str) -> None:
        """Send one DTMF digit. ``how`` is ``rfc4733``, ``info`` (INFO, 200 ms), or ``auto``: RFC
        4733, and INFO where that cannot be sent. What cannot be sent is logged."""
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

    def hold(self, held: bool) -> None:
        """Send a re-INVITE that puts the peer on hold (True), or takes it off hold (RFC 3264
        section 8.4)."""
        param = pj.CallOpParam(True)
        param.opt.audioCount, param.opt.videoCount = 1, 0
        if held:
            self.setHold(param)
        else:
            param.opt.flag |= pj.PJSUA_CALL_UNHOLD
            self.reinvite(param)

    def offer(self, codecs: list[Codec]) -> None:
        """Send a re-INVITE that offers these codecs only, in their order."""
        self.services.codecs.offer(codecs)
        param = pj.CallOpParam(True)
        param.opt.audioCount, param.opt.videoCount = 1, 0
        self.reinvite(param)

    def take_info(self, rdata: Any) -> str | None:
        """Answer an INFO request unless pjsua does; return the DTMF digit in it, one of ``0-9 * #
        A-D``, or None."""
        message = text_of(rdata.wholeMsg)
        content_type = first_of(headers_of(message), "content-type")
        body = body_of(message)
        code = info_status(content_type, body)
        if code:
            pj.nativeRespond(rdata, code)
        return info_digit(content_type, body)

    def fail(self, code: int = _GATEWAY_ERROR) -> None:
        """End the leg after an error, with a Reason: ``code`` before the ACK, BYE after it. Nothing
        if it has ended. Where not even that works and the dialog is over, the end is reported."""
        text = "Gateway error" if code == _GATEWAY_ERROR else NOTHING_FREE
        try:
            if not self.ended:
                self.finish(code, {"Reason": f'SIP;cause={code};text="{text}"'})
        except Exception:
            log.exception("sip.call_stuck", call=self.name)
            if self.is_over():
                self.end(code, text)

    def _tell(self, event: Callable[[LegHandler], None]) -> None:
        """Call ``event`` with the handler of the call's leg, on the event loop; nothing without leg
        or handler. See :meth:`Leg.tell`."""
        if self.leg is not None:
            self.leg.tell(event)

    @contain_errors
    def onCallState(self, prm: Any) -> None:  # noqa: N802
        """Handle a change of the dialog's state.

        A 200 of ours was sent: take over from the call that the INVITE replaces. Confirmed (ACK
        received or sent): allow RTP, take over from one that was referred, then ``on_confirmed``;
        without usable media the call is ended instead, as 488. Early, for a call that we placed:
        ``on_ringing`` with the provisional code. Disconnected: :meth:`end`.
        """
        info = self.getInfo()
        if info.state == pj.PJSIP_INV_STATE_CONFIRMED:
            self.acknowledged = True
            if _has_media(info):
                self.link.allow_sending()
                self.succeed()
                self._tell(lambda handler: handler.on_confirmed())
            else:
                where = "answer" if info.role == pj.PJSIP_ROLE_UAC else "ACK"
                self._ending.fault = (
                    _NOT_ACCEPTABLE,
                    f"no description that can be used in the {where}",
                )
                self.finish(0, {"Reason": f'SIP;cause={_NOT_ACCEPTABLE};text="No answer"'})
        elif info.state == pj.PJSIP_INV_STATE_CONNECTING and info.role == pj.PJSIP_ROLE_UAS:
            self.succeed()  # before the ACK: pjsua ends the predecessor next
        elif info.state == pj.PJSIP_INV_STATE_EARLY and info.role == pj.PJSIP_ROLE_UAC:
            code = int(info.lastStatusCode)
            self._tell(lambda handler: handler.on_ringing(code))
        elif info.state == pj.PJSIP_INV_STATE_DISCONNECTED:
            code, reason = int(info.lastStatusCode), text_of(info.lastReason)
            if info.role == pj.PJSIP_ROLE_UAC and not self.acknowledged:
                code, reason = self._why_not_answered(prm.e, code, reason)
            self.end(code, reason)

    def _why_not_answered(self, event: Any, code: int, reason: str) -> tuple[int, str]:
        """Return code and reason of a call that we placed and that failed: code 0 where transport
        failed or no response came, so that nobody answered; for 0, 401 and 407, and for TLS, the
        reason names the configuration keys to check.

        The library's own 503 stands for connections, TLS handshakes and sockets that failed, its
        408 for timer B of RFC 3261 section 17.1.1.2.
        """
        transition = event.body.tsxState.type if event.type == pj.PJSIP_EVENT_TSX_STATE else None
        if transition == pj.PJSIP_EVENT_TRANSPORT_ERROR:
            code = 0
        elif transition == pj.PJSIP_EVENT_TIMER and code == _REQUEST_TIMEOUT:
            code, reason = 0, "nobody answered the INVITE"
        trunk = self.account.trunk
        keys = "" if trunk is None or code not in (0, 401, 407) else keys_to_check(code, trunk)
        if not keys and "TLS" in reason:
            keys = TLS_KEYS
        return code, f"{reason}; check {keys}" if keys else reason

    def end(self, code: int, reason: str) -> None:
        """Release what the call holds (bridge port, player, a REFER's permit, RTP ports, which go
        into quarantine), hang up what REFERs of the peer made, and report its end with this status;
        only the first call counts.

        A fault noted before (a 3xx, no usable media) replaces code and reason, and makes the end
        the peer's. A CANCEL that lost against our 200 is not reported.
        """
        if self.ended:
            return
        self.ended = True
        self.services.calls.retire(self)
        code, reason = self._ending.fault or (code, reason)
        crossed = self._ending.method == "CANCEL" and code != _REQUEST_TERMINATED
        self._tell_ended(
            LegEnd(
                code=code,
                reason=reason,
                method="" if crossed else self._ending.method,
                reason_header="" if crossed else self._ending.reason_header,
                local=self._ending.local and self._ending.fault is None,
            )
        )
        self._predecessor = None
        self.leave_followers()
        self.link.close()
        if self._rtp_name:
            calls = self.services.calls.live
            self.services.rtp_ports.take_over(self._rtp_name, calls, time.monotonic())

    def _tell_ended(self, end: LegEnd) -> None:
        """Report the end of the leg to its handler; after a BYE of ours only once its outcome is
        known, at most 3 s later. A BYE that was not taken is logged and noted in
        ``undelivered``."""
        leg, name = self.leg, self.name

        def tell(undelivered: str) -> None:
            if undelivered:
                log.warning("sip.bye_undelivered", call=name, error=undelivered)
            told = replace(end, undelivered=undelivered)
            if leg is not None:
                leg.tell(lambda handler: handler.on_ended(told))

        if self._ending.bye:
            self.services.byes.wait(self._ending.bye, tell)
        else:
            tell("")

    @contain_errors
    def onCallTsxState(self, prm: Any) -> None:  # noqa: N802
        """Handle a transaction within the dialog: note of which REFER of ours the next status is
        (:meth:`note_refer`), take the DTMF digit of the peer's INFO, and keep method and Reason
        header of its BYE or CANCEL for the report of the end."""
        event = prm.e
        if event.type != pj.PJSIP_EVENT_TSX_STATE:
            return
        state = event.body.tsxState
        self.note_refer(state)
        if state.type != pj.PJSIP_EVENT_RX_MSG or state.tsx.role != pj.PJSIP_ROLE_UAS:
            return
        method = text_of(state.tsx.method)
        if method == "INFO" and state.tsx.state == pj.PJSIP_TSX_STATE_TRYING:
            key = self.take_info(state.src.rdata)
            if key is not None:
                self._pressed(key)
        # A CANCEL that crossed our 200 has no effect; the BYE that follows it is the end.
        if method in ("BYE", "CANCEL"):
            self._ending.method = method
            self._ending.reason_header = reason_of(headers_of(text_of(state.src.rdata.wholeMsg)))

    def onCallRedirected(self, prm: Any) -> int:  # noqa: N802
        """Refuse to follow a 3xx to a call that we placed (RFC 3261 section 8.1.3.4): its targets
        were allowed by nobody. The call ends with the 3xx's code."""
        self._note_redirection(prm)
        return int(pj.PJSIP_REDIRECT_STOP)

    @contain_errors
    def _note_redirection(self, prm: Any) -> None:
        """Note code, phrase and target of the first 3xx as the reason why the call failed."""
        # The library would end the call with a code of its own, as if we had given up.
        tsx = prm.e.body.tsxState.tsx
        reason = f"{text_of(tsx.statusText)}: {text_of(prm.targetUri)[:MAX_URI]} is not followed"
        self._ending.fault = self._ending.fault or (int(tsx.statusCode), reason)

    @contain_errors
    def onCallMediaState(self, _prm: Any) -> None:  # noqa: N802
        """Handle media that came up or changed: report hold or resumption by the peer; for the
        first active audio line take a bridge port for the leg's audio, connect the stream, note how
        media is secured, and report ``on_media`` with the codec.

        While DTLS has no keys, playout is paused, for at most ``KEYS_TIMEOUT``. Nothing without a
        leg or after the end.
        """
        info = self.getInfo()
        leg = self.leg
        if leg is None or self.ended:
            return
        for place in range(len(info.media)):
            media = info.media[place]
            index = int(media.index)  # lines of other kinds than audio, video and text are left out
            if media.type != pj.PJMEDIA_TYPE_AUDIO or media.status not in _IN_USE:
                continue  # other lines, and audio that is disabled, have no transport
            self._audio_index = index
            self._rtp_name = str(self.getMedTransportInfo(index).localRtpName)
            self._peer_sends = bool(media.dir & pj.PJMEDIA_DIR_DECODING)
            self._note_hold(media.status == pj.PJSUA_CALL_MEDIA_REMOTE_HOLD)
            if media.status != pj.PJSUA_CALL_MEDIA_ACTIVE:
                continue
            stream = self.getStreamInfo(index)
            codec = next(one for one in Codec if one.upper() == str(stream.codecName).upper())
            self.codec = codec
            audio = self.getAudioMedia(place)
            if leg.audio is not None:
                self.link.take_port(leg.audio)
            self.link.wire(audio)
            leg.security = media_security(self, stream)
            self.link.await_keys(not leg.security)
            if not leg.security and self not in self.services.calls.awaiting_keys:
                self._keys_until = time.monotonic() + KEYS_TIMEOUT
                self.services.calls.awaiting_keys.append(self)
            self._tell(partial(_tell_media, codec=codec))
            return

    def _note_hold(self, held: bool) -> None:
        """Report to the handler (``on_hold``) that the peer holds or resumes us, if that is new;
        while it holds, the session hears silence."""
        # While the peer holds, its stream is not joined again: what it sends then is its music,
        # and the session gets silence.
        if held is not self.held:
            self.held = held
            self.link.hold(held)
            self._tell(lambda handler: handler.on_hold(held))

    @contain_errors
    def onStreamCreated(self, prm: Any) -> None:  # noqa: N802
        """Connect a new media stream with playout and uplink of the leg's audio, or with the packet
        log of a leg without audio."""
        self.link.logged = None if self.leg is None else self.leg.logged
        self.link.stream_created(int(prm.stream))

    @contain_errors
    def onStreamDestroyed(self, prm: Any) -> None:  # noqa: N802
        """Detach the link from a media stream that the library removes, after a last look for keys
        that were awaited."""
        if self in self.services.calls.awaiting_keys:
            self.keys_known()
        self.link.stream_destroyed(int(prm.stream))

    @contain_errors
    def onStreamPreCreate(self, _prm: Any) -> None:  # noqa: N802
        """Note that a stream is about to be created: its first telephone-event may be the end of
        one already counted."""
        self._stream_is_new = True

    @contain_errors
    def onCallRxOffer(self, prm: Any) -> None:  # noqa: N802
        """Check the offer of a re-INVITE or UPDATE: answer 488 where it has no audio line that can
        be accepted (the library would say 500); else prefer the codec in use, so that it stays if
        it is offered."""
        text, leg = text_of(prm.offer.wholeSdp), self.leg
        trunk, local = self.account.trunk, self.account.host
        rejection = self.services.negotiation.rejection(text, trunk, local)
        if rejection is not None:
            prm.statusCode = _NOT_ACCEPTABLE
            self.remark("warning", "sip.offer_refused", code=488, reason=rejection.text)
        elif leg is not None and leg.audio is not None:
            # The codec of the session, where the offer has it: nothing is transcoded then.
            self.services.codecs.offer(
                list(dict.fromkeys((leg.audio.codec, *leg.invite.codecs, *G711)))
            )

    @contain_errors
    def onDtmfEvent(self, prm: Any) -> None:  # noqa: N802
        """Handle a telephone-event packet (RFC 4733): a digit is reported once, when it begins, not
        for its later packets, nor again after a re-INVITE. Digits in INFO come by
        :meth:`onCallTsxState`."""
        if prm.method != pj.PJSUA_DTMF_METHOD_RFC2833:
            return  # an INFO, which is read as it comes
        event = (str(prm.digit), int(prm.timestamp))
        # A stream made anew by a re-INVITE takes the end of an event for another beginning.
        known = self._stream_is_new and event == self._last_event
        self._stream_is_new, self._last_event = False, event
        if not known and not prm.flags & _IS_UPDATE and event[0] in KEYS:
            self._pressed(event[0])

    def _pressed(self, key: str) -> None:
        """Report a DTMF digit (``on_digit``), unless the peer sends more than ``KEYS_PER_SECOND``:
        then it is dropped, and the first drop of the call is logged."""
        if self._keys.take(time.monotonic()):
            self._tell(lambda handler: handler.on_digit(key))
            return
        if not self._keys_dropped:
            log.warning("sip.keys_dropped", call=self.name, most_per_second=KEYS_PER_SECOND)
        self._keys_dropped = True

    def keys_known(self) -> bool:
        """Return whether no SRTP keys have to be waited for any more, and pause or resume playout
        accordingly.

        True also without a port or stream, after the end, and ``KEYS_TIMEOUT`` after the media came
        up, which is logged. Sets ``leg.security``; see :func:`media_security`.
        """
        if self.link.port is None or self.ended or self.leg is None:
            return True
        try:
            self.leg.security = media_security(self, self.getStreamInfo(self._audio_index))
        except pj.Error:
            return True
        late = time.monotonic() >= self._keys_until
        if late and not self.leg.security:
            log.warning("sip.no_keys", call=self.name, seconds=KEYS_TIMEOUT)
        known = bool(self.leg.security) or late
        self.link.await_keys(not known)
        return known

    def poll_quality(self) -> None:
        """Report the RTP counters (``on_quality``); nothing without a stream, or after the end."""
        if self.link.media is None or self.ended:
            return
        try:
            counters = counters_of(self.getStreamStat(self._audio_index))
        except pj.Error:
            return
        quality = replace(self.meter.read(counters, self.link.uplink), expected=self._peer_sends)
        self._tell(lambda handler: handler.on_quality(quality))

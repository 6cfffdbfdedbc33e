# SPDX-License-Identifier: GPL-2.0-or-later
"""The SIP legs of one call: the caller's, and the B-leg of a transfer.

Executes the machine's outputs for legs and feeds what happens to them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gateway.audio import FRAME_MS, G711, Codec
from gateway.bridge.machine_driver import CallHost, CallPart, entry, entry_task
from gateway.call import inputs, outputs
from gateway.call.call_record import BLeg as BLegRecord
from gateway.call.transfer import MAX_BRIEFING_SECONDS
from gateway.sip.active_calls import GiveBack, no_place
from gateway.sip.call_audio import CallAudio, Source
from gateway.sip.leg import Leg, LegEnd, LegHandler, ReferProgress
from gateway.sip.rtp import CallQuality, RtpQuality
from gateway.tasks import TaskSet


class DialRefusedError(Exception):
    """A call may not be placed; the text names the rule."""


class Dialer(Protocol):
    """Function that places a call, and returns its leg at once, before any answer. Raises
    DialRefusedError.

    Its arguments are those of :meth:`gateway.app.outbound_calls.OutboundLimiter.dial`.
    """

    def __call__(
        self,
        uri: str,
        handler: LegHandler,
        audio: CallAudio | None,
        codecs: list[Codec],
        trunk: str,
        by_pattern: bool = False,
        caller_id: str = "",
    ) -> Leg: ...


PermitDial = Callable[[str], Awaitable[GiveBack]]
"""Awaits a place within the limits that processes share, for the call of this id; returns what
frees it. Raises DialRefusedError."""


@dataclass(frozen=True, slots=True)
class OutboundTarget:
    """Whom to call, for a call that the gateway places."""

    uri: str
    trunk: str
    codecs: tuple[Codec, ...]


class Legs(CallPart):
    """Executes outputs for the legs of one call, and feeds what happens to them.

    Args:
        main: the leg that came in, or the target to call.
        audio: of the caller.
        dial: places calls; None where none may be placed.
        allowed_refer_to: targets to which the caller's side may move the call by REFER.
        permit_refer: gets the URI, and whether it is a number that was chosen in the call
            (``by_pattern``); raises DialRefusedError where the caller may not be sent there.
        permit_dial: awaited before a B-leg is dialled; None without limits that processes share.
        tell_quality: feed :class:`inputs.LineQuality` of both directions, too.
    """

    def __init__(
        self,
        host: CallHost,
        main: Leg | OutboundTarget,
        audio: CallAudio,
        dial: Dialer | None = None,
        allowed_refer_to: re.Pattern[str] | None = None,
        permit_refer: Callable[[str, bool], None] = lambda _uri, _by_pattern: None,
        permit_dial: PermitDial | None = None,
        *,
        tell_quality: bool = False,
    ) -> None:
        super().__init__(host)
        self._target = main if isinstance(main, OutboundTarget) else None
        self._main = None if isinstance(main, OutboundTarget) else main
        self._handler = _MainLeg(host, self)
        self._audio = audio
        self._dial = dial
        self._allowed_refer_to = allowed_refer_to
        self._permit_refer = permit_refer
        self._permit_dial = permit_dial
        self.tell_quality = tell_quality
        self._hung_up: Mapping[str, str] | None = None
        """Headers with which the caller's leg was ended from this side; None before."""
        self._asking = TaskSet()
        self._b_legs: list[_BLeg] = []
        """All B-legs so far; the last one is the current one."""
        self.b_leg_ending = False
        """The call has ended before a B-leg: its BYE is still unanswered."""
        self.log_packets: Callable[[CallAudio], None] | None = None
        """Starts the log of RTP headers of an audio; None without a black box."""
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.Ring: lambda _out: self._leg.ring(),
            outputs.Progress: lambda _out: self._leg.progress(),
            outputs.Answer: lambda _out: self._leg.answer(),
            outputs.Reject: self._refuse,
            outputs.HangUp: self._hang_up,
            outputs.Dial: self._dial_main,
            outputs.PlaySound: self._play_sound,
            outputs.Refer: self._refer,
            outputs.DialBLeg: self._dial_b_leg,
            outputs.PlayBriefing: self._play_briefing,
            outputs.HangUpBLeg: self._hang_up_b_leg,
            outputs.BridgeLegs: self._join,
            outputs.SendDtmf: self._press,
        }

    def take(self) -> None:
        """Become the handler of the leg that came in; nothing for a call that is placed."""
        if self._main is not None:
            self._main.handler, self._main.audio = self._handler, self._audio
            self._watch(self._main)

    def _watch(self, leg: Leg) -> None:
        """Have a leg follow the REFERs that the route allows, and tell us which leg replaces it."""
        leg.allowed_refer_to, leg.on_replaced = self._allowed_refer_to, self._on_replaced

    @entry
    def _on_replaced(self, successor: Leg) -> None:
        """Replace the caller's leg by ``successor`` (INVITE with Replaces, RFC 3891, or a REFER
        that was followed), which has the audio already: hang up the old one, and feed
        :class:`inputs.CallerReplaced` with the new party's URI.

        If the old leg was being ended by us, the successor is hung up, too; its end is the call's.
        """
        old, self._main = self._main, successor
        # The old one's counts a placed leg: its place goes to the successor.
        successor.handler = self._handler if old is None else old.handler
        self._watch(successor)
        if old is not None:
            old.handler = None
            old.hang_up({"Reason": 'SIP;cause=200;text="Call moved"'})
        if self._hung_up is not None or self._host.is_over():
            successor.hang_up(self._hung_up or {})
        there = successor.invite
        self._host.feed(
            inputs.CallerReplaced(there.to_uri if not there.sip_call_id else there.from_uri)
        )

    def release(self, code: int, headers: dict[str, str]) -> None:
        """End caller's leg and B-leg in any state: BYE or CANCEL; an INVITE that was not answered
        is rejected with ``code``. Nothing is waited for."""
        self._hung_up = headers
        if self._main is not None:
            self._main.refuse(code, headers)
        if self._b_leg is not None:
            self._b_leg.hang_up(headers)

    def finish(self) -> None:
        """Complete the record at the end of the call: Call-ID of the caller's (last) leg, and each
        B-leg; later events of B-legs change nothing in it."""
        if self._main is not None:
            self._host.record.sip_call_id = self._main.invite.sip_call_id
        for b_leg in self._b_legs:
            self.b_leg_ending = b_leg.finish() or self.b_leg_ending

    @property
    def caller_gone(self) -> bool:
        """Whether the caller's leg has ended."""
        return self._handler.over

    @property
    def security(self) -> str:
        """Media security of the caller's leg: ``rtp``, or the negotiated SRTP; "" until it is
        known."""
        return "" if self._main is None else self._main.security

    @property
    def on_wire(self) -> list[tuple[Leg, CallAudio | None]]:
        """The caller's present leg, then all B-legs that were dialled, each with the audio that
        logs its packets; None where none does."""
        legs = [(self._main, self._audio)] if self._main is not None else []
        return [*legs, *((one.leg, one.leg.logged) for one in self._b_legs if one.leg is not None)]

    @property
    def _b_leg(self) -> Leg | None:
        """The last B-leg, also after its end; None before it is dialled."""
        return self._b_legs[-1].leg if self._b_legs else None

    @property
    def _leg(self) -> Leg:
        """The caller's leg. Raises RuntimeError before an outbound call is dialled."""
        if self._main is None:
            raise RuntimeError("nobody was called yet")
        return self._main

    def _refuse(self, output: outputs.Reject) -> None:
        """Reject the caller's INVITE with code and headers of ``output``."""
        self._hung_up = output.headers
        self._leg.refuse(output.code, output.headers)

    def _hang_up(self, output: outputs.HangUp) -> None:
        """Send BYE to the caller, or CANCEL to a callee who has not answered."""
        self._hung_up = output.headers
        self._leg.hang_up(output.headers)

    def _dial_main(self, _output: outputs.Dial) -> None:
        """Dial the target of an outbound call; where our limits forbid it, feed the end of the leg
        with 403."""
        assert self._target is not None
        assert self._dial is not None
        way = self._target
        try:
            self._main = main = self._dial(
                way.uri, self._handler, self._audio, list(way.codecs), way.trunk
            )
            main.call_id = self._host.record.call_id
            self._watch(main)
        except DialRefusedError as refused:
            self._host.feed(inputs.LegEnded(403, str(refused), "", "", True))

    def _refer(self, output: outputs.Refer) -> None:
        """Send REFER to the caller's side: to a URI, or with Replaces to the B-leg (nothing if it
        was not dialled). Progress is fed as :class:`inputs.ReferProgress`; where our limits forbid
        the URI, as a final 403 ``by_us``, and nothing is sent."""
        if not output.replaces:
            try:
                self._permit_refer(output.target, output.by_pattern)
            except DialRefusedError as refused:
                self._host.feed(inputs.ReferProgress(403, str(refused), True, by_us=True))
                return
            self._leg.refer(output.target, self._on_refer)
        elif self._b_leg is not None:
            self._leg.refer_to(self._b_leg, self._on_refer)

    @entry
    def _on_refer(self, progress: ReferProgress) -> None:
        """Feed the response to a REFER, or the status of a NOTIFY."""
        self._host.feed(inputs.ReferProgress(progress.code, progress.phrase, progress.final))

    def _dial_b_leg(self, output: outputs.DialBLeg) -> None:
        """Add a B-leg to the record, make it the current one, and dial it: at once, or once the
        limits that processes share permit it. Feed its end with 403 where this gateway places no
        calls."""
        record = BLegRecord(
            output.uri,
            parent_id=self._host.record.call_id,
            trunk=output.trunk,
            dialled_ms=round(self._host.now_ms(), 1),
        )
        self._host.record.actions.b_legs.append(record)
        b_leg = _BLeg(self._host, record, self._feed_if_current)
        self._b_legs.append(b_leg)
        if self._dial is None:
            b_leg.refused(DialRefusedError("this gateway places no calls"))
            return
        if self._permit_dial is None:
            self._place_b_leg(b_leg, output)
        else:
            self._asking.spawn(
                self._dial_permitted(b_leg, output, self._permit_dial), "ask to dial"
            )

    @entry_task
    async def _dial_permitted(
        self, b_leg: _BLeg, output: outputs.DialBLeg, permit: PermitDial
    ) -> None:
        """Await the permit for a B-leg, then dial it; feed its end with 403 where it is refused.

        If the leg was hung up meanwhile, give the permit back, and feed its end with 487; if the
        call is over, only give it back.
        """
        try:
            b_leg.release = await permit(self._host.record.call_id)
        except DialRefusedError as refused:
            b_leg.refused(refused)
            return
        if not b_leg.given_up and not self._host.is_over():
            self._place_b_leg(b_leg, output)
            return
        b_leg.release(unused=True)
        if b_leg.given_up:
            b_leg.on_ended(LegEnd(487, "Given up", "", "", local=True))

    def _place_b_leg(self, b_leg: _BLeg, output: outputs.DialBLeg) -> None:
        """Dial a B-leg, with audio of its own where it is briefed or interpreted; offer the
        caller's codec first (PCMU for a wide one), and the other G.711 ones. Feed its end with 403
        where our limits forbid it."""
        assert self._dial is not None
        first = self._audio.codec
        codecs = list(dict.fromkeys((first.narrow, *G711)))
        if output.briefed or output.interpreted:
            frames = MAX_BRIEFING_SECONDS * 1000 // FRAME_MS
            if output.interpreted:
                frames = max(frames, self._audio.playout.max_frames)
            b_leg.audio = CallAudio(first, frames)
            b_leg.audio.own_source = Source.NOBODY
        logged = b_leg.audio
        if self.log_packets is not None:
            logged = logged or CallAudio(first, 1)  # nothing is ever played from it
            self.log_packets(logged)
        try:
            b_leg.leg = leg = self._dial(
                output.uri,
                b_leg,
                b_leg.audio,
                codecs,
                output.trunk,
                output.by_pattern,
                output.caller_id,
            )
            leg.call_id, leg.logged = self._host.record.call_id, logged
        except DialRefusedError as refused:
            b_leg.release(unused=True)
            b_leg.refused(refused)

    def _feed_if_current(self, b_leg: _BLeg, input: inputs.Input) -> None:
        """Feed an input of a B-leg; nothing once another was dialled after it."""
        if b_leg is self._b_legs[-1]:
            self._host.feed(input)

    def _hang_up_b_leg(self, _output: outputs.HangUpBLeg) -> None:
        """Hang up the last B-leg, or abandon it while it waits for its permit; nothing without
        one."""
        if self._b_leg is not None:
            self._b_leg.hang_up()
        elif self._b_legs:
            self._b_legs[-1].given_up = True

    def _play_sound(self, output: outputs.PlaySound) -> None:
        """Play a sound to the caller, or with ``b_leg`` to the B-leg, in a loop; "" stops it."""
        leg = self._b_leg if output.b_leg else self._leg
        if leg is not None:
            leg.play(output.name)

    @property
    def b_leg_audio(self) -> CallAudio | None:
        """The own audio of the last B-leg; None unless it is briefed or interpreted."""
        return self._b_legs[-1].audio if self._b_legs else None

    def _play_briefing(self, output: outputs.PlayBriefing) -> None:
        """Queue audio of a briefing for the B-leg; without audio, drop what is queued. Nothing for
        a B-leg without audio of its own."""
        audio = self.b_leg_audio
        if audio is not None and output.audio:
            audio.playout.put(output.audio)  # there is room for the longest
        elif audio is not None:
            audio.playout.flush()

    def _join(self, output: outputs.BridgeLegs) -> None:
        """Bridge caller and B-leg: they hear each other, and with ``listen`` the session goes on
        hearing both. With ``original_db`` they hear each other at that level (dB, 0 for full
        volume), and each leg keeps its own audio. Nothing without a B-leg."""
        if self._b_leg is not None:
            level = None if output.original_db is None else 10 ** (output.original_db / 20)
            self._leg.join(self._b_leg, output.listen, level)

    def hear_fully(self, listener: str) -> None:
        """Let ``listener``, caller or callee, hear the other at full volume; nothing for a callee
        whose leg was not dialled."""
        leg = self._leg if listener == "caller" else self._b_leg
        if leg is not None:
            leg.hear_fully()

    def _press(self, output: outputs.SendDtmf) -> None:
        """Send a DTMF digit to the caller, or with ``b_leg`` to the B-leg, in the way that ``how``
        names."""
        if not output.b_leg:
            self._leg.press(output.digit, output.how)
        elif self._b_leg is not None:
            self._b_leg.press(output.digit, output.how)


class _MainLeg(CallPart):
    """Handler of the caller's leg, or of the callee's in an outbound call. Nothing is fed or
    recorded once the call is finished."""

    def __init__(self, host: CallHost, legs: Legs) -> None:
        super().__init__(host)
        self._legs = legs
        self._quality = CallQuality()
        self.over = False

    @entry
    def on_ringing(self, code: int) -> None:
        """Feed a provisional response of the callee to an outbound call, from 180 on."""
        if code >= 180:
            self._host.feed(inputs.RemoteRinging(code))

    @entry
    def on_media(self, codec: Codec) -> None:
        """Feed media that came up, and note in the record how it is secured; nothing once the call
        is finished."""
        if self._host.is_over():
            return  # the record is written
        self._host.record.leg.security = self._legs.security
        self._host.feed(inputs.MediaUp(codec))

    @entry
    def on_confirmed(self) -> None:
        """Feed that the dialog is confirmed: the ACK came, or was sent."""
        self._host.feed(inputs.Confirmed())

    @entry
    def on_hold(self, held: bool) -> None:
        """Feed that the caller holds us, or no more."""
        self._host.feed(inputs.HoldChanged(held))

    @entry
    def on_digit(self, digit: str) -> None:
        """Feed a DTMF digit of the caller."""
        self._host.feed(inputs.DigitPressed(digit))

    @entry
    def on_quality(self, quality: RtpQuality) -> None:
        """Feed the RTP counters, once a second, and note them in the record; with
        ``tell_quality``, feed the line's quality in each direction that is known. Nothing once
        the call is finished."""
        if self._host.is_over():
            return  # the record is written
        record = self._host.record
        record.leg.security = self._legs.security
        record.media.rtp = quality_of(quality)
        record.media.quality = self._quality.add(quality)
        self._host.feed(inputs.RtpStats(quality.rx_packets, quality.expected))
        if self._legs.tell_quality:
            for side, heard in (("from_caller", quality.rx), ("to_caller", quality.tx)):
                if heard is not None:
                    told = (heard.loss_percent, heard.jitter_ms, heard.mos)
                    self._host.feed(inputs.LineQuality(side, *told))

    @entry
    def on_ended(self, end: LegEnd) -> None:
        """Feed the end of the caller's leg; note how its media was secured, and whether our BYE
        went unanswered. Nothing once the call is finished."""
        if self._host.is_over():
            return  # the record is written
        self.over = True
        record = self._host.record
        record.leg.security = self._legs.security
        record.leg.bye_undelivered = end.undelivered
        ended = inputs.LegEnded(end.code, end.reason, end.method, end.reason_header, end.local)
        self._host.feed(ended)


class _BLeg(CallPart):
    """Handler of a B-leg; keeps its record, which outlives it.

    Args:
        tell: feeds an input of this leg, if it is the current one.
    """

    def __init__(
        self,
        host: CallHost,
        record: BLegRecord,
        tell: Callable[[_BLeg, inputs.Input], None],
    ) -> None:
        super().__init__(host)
        self.leg: Leg | None = None
        self.audio: CallAudio | None = None
        """Its own audio, where it is briefed or interpreted."""
        self.given_up = False
        """Hung up before it was dialled, while it waited for its permit."""
        self.release: GiveBack = no_place
        """Frees its place in the count that all processes share."""
        self._record = record
        self._tell = tell

    def refused(self, why: DialRefusedError) -> None:
        """End the leg with 403, without dialling it: note that in its record, and feed it."""
        self._record.sip_code = 403
        self._record.ended_ms = round(self._host.now_ms(), 1)
        self._tell(self, inputs.BLegEnded(403, str(why), "", True))

    def finish(self) -> bool:
        """Complete the leg's record, which ends now if it has not ended; later events do not change
        it. Return whether the leg is still up."""
        up = self.leg is not None and self._record.ended_ms is None
        if self._record.ended_ms is None:
            self._record.ended_ms = round(self._host.now_ms(), 1)
        self._record = replace(self._record)
        return up

    @entry
    def on_ringing(self, code: int) -> None:
        """Note the Call-ID; feed a provisional response of the callee from 180 on."""
        self._name()
        if code >= 180:
            self._tell(self, inputs.BLegRinging(code))

    @entry
    def on_media(self, codec: Codec) -> None:
        """Note the codec of the callee in the leg's record."""
        self._record.codec = codec.value

    @entry
    def on_confirmed(self) -> None:
        """Feed the answer of the callee, and note the time of the first in the leg's record
        (ms)."""
        self._name()
        if self._record.answered_ms is None:
            self._record.answered_ms = round(self._host.now_ms(), 1)
        self._tell(self, inputs.BLegAnswered())

    def on_hold(self, held: bool) -> None:
        """Ignore holds of the B-leg: its music is passed on."""

    @entry
    def on_digit(self, digit: str) -> None:
        """Feed a DTMF digit of the callee."""
        self._tell(self, inputs.BLegDigit(digit))

    @entry
    def on_quality(self, quality: RtpQuality) -> None:
        """Note the latest RTP counters in the leg's record."""
        self._record.rtp = quality_of(quality)

    @entry
    def on_ended(self, end: LegEnd) -> None:
        """Feed the end of the B-leg, note its time (ms) and SIP code, and give back its permit."""
        self._name()
        self.release()
        self._record.ended_ms = round(self._host.now_ms(), 1)
        self._record.sip_code = end.code
        self._tell(self, inputs.BLegEnded(end.code, end.reason, end.method, end.local))

    def _name(self) -> None:
        """Note the Call-ID of the dialog in the leg's record."""
        if self.leg is not None:
            self._record.sip_call_id = self.leg.invite.sip_call_id


def quality_of(quality: RtpQuality) -> dict[str, float]:
    """Return RTP counters in the form of the record: packets and lost ones, jitter in ms."""
    return {
        "rx_packets": quality.rx_packets,
        "rx_lost": quality.rx_lost,
        "rx_jitter_ms": round(quality.rx_jitter_ms, 2),
        "tx_packets": quality.tx_packets,
    }

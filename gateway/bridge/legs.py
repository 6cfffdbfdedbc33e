"""The telephone side of one call: its own leg, and the second one where somebody is called for the
caller. Carries out what the machine says of them; decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gateway.audio.g711 import Codec
from gateway.bridge.entries import entry
from gateway.call import inputs, outputs
from gateway.call.record import BLeg as SecondRecord
from gateway.call.record import CallRecord
from gateway.sip.in_call import ReferProgress
from gateway.sip.leg import Leg
from gateway.sip.media.ports import CallAudio
from gateway.sip.types import LegEnd, LegHandler, RtpQuality


class DialRefusedError(Exception):
    """A rule of ours does not let this call be placed; the text names it."""


class Dialer(Protocol):
    """Places calls. Raises DialRefusedError."""

    def __call__(
        self,
        uri: str,
        handler: LegHandler,
        audio: CallAudio | None,
        codecs: list[Codec],
        trunk: str,
        by_pattern: bool = False,
    ) -> Leg: ...


@dataclass(frozen=True, slots=True)
class OutboundTarget:
    """Where a call of ours goes to."""

    uri: str
    trunk: str
    codecs: tuple[Codec, ...]


class Legs:
    """Lives as long as its call.

    Args:
        main: the leg that came in; None where ``outward`` says whom to call.
        handler: told what happens to the main leg.
        feed: takes what the machine is to know of the second leg, and of transfers.
        now_ms: ms since the call began.
        on_fault: told of a defect of ours; ends the call.
    """

    def __init__(
        self,
        main: Leg | None,
        outward: OutboundTarget | None,
        handler: LegHandler,
        audio: CallAudio,
        record: CallRecord,
        dial: Dialer | None,
        feed: Callable[[inputs.Input], None],
        now_ms: Callable[[], float],
        on_fault: Callable[[Exception], None],
        follow_refer: re.Pattern[str] | None = None,
        permit_refer: Callable[[str, bool], None] = lambda _uri, _by_pattern: None,
    ) -> None:
        self._permit_refer = permit_refer
        self._main = main
        self._follow_refer = follow_refer
        self._outward = outward
        self._handler = handler
        self._audio = audio
        self._record = record
        self._dial = dial
        self._feed = feed
        self._now_ms = now_ms
        self._on_fault = on_fault
        self._second: _Second | None = None
        self._seconds: list[_Second] = []
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.Ring: lambda _out: self._leg.ring(),
            outputs.Progress: lambda _out: self._leg.progress(),
            outputs.Answer: lambda _out: self._leg.answer(),
            outputs.Reject: lambda out: self._leg.refuse(out.code, out.headers),
            outputs.HangUp: lambda out: self._leg.hang_up(out.headers),
            outputs.Dial: self._dial_main,
            outputs.PlaySound: lambda out: self._leg.play(out.name),
            outputs.Refer: self._refer,
            outputs.DialBLeg: self._dial_second,
            outputs.HangUpBLeg: self._hang_up_second,
            outputs.BridgeLegs: self._join,
            outputs.SendDtmf: self._press,
        }

    def take(self) -> None:
        """Begin with the leg that came in."""
        if self._main is not None:
            self._main.handler, self._main.audio = self._handler, self._audio
            self._watch(self._main)

    def _watch(self, leg: Leg) -> None:
        leg.follow_refer, leg.on_moved = self._follow_refer, self._on_moved

    def on_fault(self, error: Exception) -> None:
        """As :class:`gateway.bridge.entries.HasFaults`."""
        self._on_fault(error)

    @entry
    def _on_moved(self, successor: Leg) -> None:
        """Another leg is the caller's now; it has the audio already."""
        old, self._main = self._main, successor
        successor.handler = self._handler
        self._watch(successor)
        if old is not None:
            old.handler = None
            old.hang_up({"Reason": 'SIP;cause=200;text="Call moved"'})
        there = successor.invite
        self._feed(inputs.CallerReplaced(there.to_uri if not there.sip_call_id else there.from_uri))

    def let_go(self, code: int, headers: dict[str, str]) -> None:
        """End both legs, whatever state they are in: with ``code`` what was not answered."""
        if self._main is not None:
            self._main.refuse(code, headers)
        if self._second is not None and self._second.leg is not None:
            self._second.leg.hang_up(headers)

    def finish(self) -> None:
        """The call is over: complete the record."""
        if self._main is not None:
            self._record.sip_call_id = self._main.invite.sip_call_id
        for second in self._seconds:
            second.finish()

    @property
    def security(self) -> str:
        """What SRTP was negotiated on the main leg."""
        return "" if self._main is None else self._main.security

    @property
    def _leg(self) -> Leg:
        if self._main is None:
            raise RuntimeError("nobody was called yet")
        return self._main

    def _dial_main(self, _output: outputs.Dial) -> None:
        assert self._outward is not None
        assert self._dial is not None
        way = self._outward
        try:
            self._main = main = self._dial(
                way.uri, self._handler, self._audio, list(way.codecs), way.trunk
            )
            main.call_id = self._record.call_id
            self._watch(main)
        except DialRefusedError as refused:
            self._feed(inputs.LegEnded(403, str(refused), "", "", True))

    def _refer(self, output: outputs.Refer) -> None:
        if not output.replaces:
            try:
                self._permit_refer(output.target, output.by_pattern)
            except DialRefusedError as refused:
                self._feed(inputs.ReferProgress(403, str(refused), True, by_us=True))
                return
            self._leg.refer(output.target, self._on_refer)
        elif self._second is not None and self._second.leg is not None:
            self._leg.refer_to(self._second.leg, self._on_refer)

    @entry
    def _on_refer(self, progress: ReferProgress) -> None:
        self._feed(inputs.ReferProgress(progress.code, progress.phrase, progress.final))

    def _dial_second(self, output: outputs.DialBLeg) -> None:
        record = SecondRecord(output.uri)
        self._record.second_legs.append(record)
        self._second = second = _Second(record, self._of_second, self._now_ms, self._on_fault)
        self._seconds.append(second)
        if self._dial is None:
            second.refused(DialRefusedError("this gateway places no calls"))
            return
        first = self._audio.codec
        codecs = [first, *(codec for codec in Codec if codec is not first)]
        try:
            second.leg = leg = self._dial(
                output.uri, second, None, codecs, output.trunk, output.by_pattern
            )
            leg.call_id = self._record.call_id
        except DialRefusedError as refused:
            second.refused(refused)

    def _of_second(self, second: _Second, input: inputs.Input) -> None:
        if second is self._second:
            self._feed(input)

    def _hang_up_second(self, output: outputs.HangUpBLeg) -> None:
        if self._second is not None and self._second.leg is not None:
            self._second.leg.hang_up(output.headers)

    def _join(self, output: outputs.BridgeLegs) -> None:
        if self._second is not None and self._second.leg is not None:
            self._leg.join(self._second.leg, output.listen)

    def _press(self, output: outputs.SendDtmf) -> None:
        if not output.second:
            self._leg.press(output.digit, output.how)
        elif self._second is not None and self._second.leg is not None:
            self._second.leg.press(output.digit, output.how)


class _Second:
    """Told what happens to a second leg; keeps its record, which outlives it."""

    def __init__(
        self,
        record: SecondRecord,
        tell: Callable[[_Second, inputs.Input], None],
        now_ms: Callable[[], float],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self.leg: Leg | None = None
        self._record = record
        self._tell = tell
        self._now_ms = now_ms
        self._on_fault = on_fault

    def on_fault(self, error: Exception) -> None:
        """As :class:`gateway.bridge.entries.HasFaults`."""
        self._on_fault(error)

    def refused(self, why: DialRefusedError) -> None:
        """It is not even dialled."""
        self._record.sip_code = 403
        self._tell(self, inputs.BLegEnded(403, str(why), "", True))

    def finish(self) -> None:
        """The call is over, and its record complete: what comes now is not written any more."""
        if self._record.ended_ms is None:
            self._record.ended_ms = round(self._now_ms(), 1)
        self._record = replace(self._record)

    @entry
    def on_ringing(self, code: int) -> None:
        """It rings."""
        self._name()
        if code >= 180:
            self._tell(self, inputs.BLegRinging(code))

    @entry
    def on_media(self, codec: Codec) -> None:
        """RTP flows."""
        self._record.codec = codec.value

    @entry
    def on_confirmed(self) -> None:
        """It has answered."""
        self._name()
        if self._record.answered_ms is None:
            self._record.answered_ms = round(self._now_ms(), 1)
        self._tell(self, inputs.BLegAnswered())

    def on_hold(self, held: bool) -> None:
        """Its music is for whoever listens."""

    @entry
    def on_digit(self, digit: str) -> None:
        """A key."""
        self._tell(self, inputs.BLegDigit(digit))

    @entry
    def on_quality(self, quality: RtpQuality) -> None:
        """RTP counters."""
        self._record.rtp = quality_of(quality)

    @entry
    def on_ended(self, end: LegEnd) -> None:
        """It is over."""
        self._name()
        self._record.ended_ms = round(self._now_ms(), 1)
        self._record.sip_code = end.code
        self._tell(self, inputs.BLegEnded(end.code, end.reason, end.method, end.local))

    def _name(self) -> None:
        if self.leg is not None:
            self._record.sip_call_id = self.leg.invite.sip_call_id


def quality_of(quality: RtpQuality) -> dict[str, float]:
    """RTP counters, as a record has them."""
    return {
        "rx_packets": quality.rx_packets,
        "rx_lost": quality.rx_lost,
        "rx_jitter_ms": round(quality.rx_jitter_ms, 2),
        "tx_packets": quality.tx_packets,
    }

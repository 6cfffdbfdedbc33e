"""The leg in the life of a call: ringing, media, the ACK, hold, keys, and RTP."""

from __future__ import annotations

from gateway.call import inputs, outputs
from gateway.call.context import CallContext
from gateway.call.session.lifecycle import SessionEvents
from gateway.call.states import State

HELD = "The caller has put this call on hold, and hears nothing until they come back."
RESUMED = "The caller is back from hold."
"""For the model."""


class LegEvents:
    """One part of :class:`gateway.call.machine.CallMachine`. Methods take the time (s)."""

    def __init__(self, call: CallContext, session: SessionEvents) -> None:
        self._call = call
        self._session = session
        self._codec = call.plan.codec
        self._listening_early = False

    def on_ringing_there(self, input: inputs.RemoteRinging, now: float) -> list[outputs.Output]:
        if self._call.state is not State.DIALLING or self._call.record.times.ringing is not None:
            return []
        self._call.record.times.ringing = self._call.timeline.ms(now)
        return [self._call.timeline.note(now, "ringing", "info", code=input.code)]

    def on_media_up(self, input: inputs.MediaUp, now: float) -> list[outputs.Output]:
        if self._call.state is State.DIALLING and self._call.plan.outbound is not None:
            if not self._call.plan.outbound.early_media or self._listening_early:
                return []
            self._listening_early = True
            return [
                self._call.timeline.note(now, "early_media", "info"),
                outputs.StartMedia(playout=False),
            ]
        if input.codec is self._codec or not (
            self._call.live or self._call.state is State.CONNECTING
        ):
            return []
        self._codec = input.codec
        self._call.record.codec = input.codec.value
        # The session keeps its law. What lies between the two sides is linear, so each is right
        # in its own; a change in the session would meet answers that are on their way in the old.
        return [self._call.timeline.note(now, "codec_changed", "info", codec=input.codec.value)]

    def on_confirmed(self, _input: inputs.Confirmed, now: float) -> list[outputs.Output]:
        if self._call.state is State.CONNECTING and self._call.opening.at_once:
            self._call.record.times.confirmed = self._call.timeline.ms(now)
            self._call.timers.confirmed(now, held=self._call.held)
            self._call.opening.on_confirmed(now)
            if self._call.session_up:
                self._call.opening.heard_out(now)
            return [self._call.timeline.note(now, "confirmed", "info")]
        if self._call.state is State.DIALLING:
            self._call.record.times.answered = self._call.timeline.ms(now)
        elif self._call.state is not State.ANSWERED:
            return []
        self._call.state = State.TALKING
        self._call.record.times.confirmed = self._call.timeline.ms(now)
        self._call.timers.confirmed(now, held=self._call.held)
        note = self._call.timeline.note(now, "confirmed", "info")
        todo: list[outputs.Output] = [note, outputs.StartMedia()]
        todo += self._session.recovery.answered(now)
        return todo + self._session.confirmed(now)

    def on_held(self, input: inputs.HoldChanged, now: float) -> list[outputs.Output]:
        if (
            not (self._call.live or self._call.state is State.CONNECTING)
            or input.held is self._call.held
        ):
            return []
        self._call.held = input.held
        if self._call.record.times.confirmed is not None:
            self._call.timers.held(now, input.held)
        note = self._call.timeline.note(now, "held" if input.held else "resumed", "info")
        if self._call.state is not State.TALKING or not self._call.session_up:
            return [note]
        return [note, *self._call.conversation.talk.tell(HELD if input.held else RESUMED)]

    def on_digit(self, input: inputs.DigitPressed, now: float) -> list[outputs.Output]:
        if not (
            self._call.session_up
            or self._session.recovery.active
            or self._call.state is State.BRIDGED
        ):
            return []
        return self._call.conversation.on_digit(input.digit, now, in_band=input.in_band)

    def on_second_digit(self, input: inputs.BLegDigit, now: float) -> list[outputs.Output]:
        return [outputs.SendDtmf(input.digit)] if self._call.state is State.BRIDGED else []

    def on_rtp(self, input: inputs.RtpStats, now: float) -> list[outputs.Output]:
        confirmed = self._call.record.times.confirmed is not None
        if not self._call.held and confirmed and self._call.state is not State.ENDING:
            self._call.timers.packets(input.packets, now, expected=input.expected)
        return []

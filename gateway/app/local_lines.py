# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines to test with, without a session: what the caller says comes back, or a tone is heard."""

from __future__ import annotations

import asyncio

import structlog

from gateway.app.registry import CallRegistry
from gateway.audio.g711 import Codec
from gateway.audio.sounds import ECHO
from gateway.bridge.legs import quality_of
from gateway.call.call_record import CallRecord
from gateway.ending import EndReason, ending_of, reason_header
from gateway.sip.leg import Leg
from gateway.sip.types import LegEnd, RtpQuality

log = structlog.get_logger("gateway")


class LocalLine:
    """Handler of a caller's leg on a route with ``test_line``. Lives on the event loop.

    Args:
        sound: what the caller hears: :data:`gateway.audio.sounds.ECHO`, or a built-in sound.
        seconds: after which it hangs up.
    """

    def __init__(
        self, leg: Leg, record: CallRecord, sound: str, seconds: float, calls: CallRegistry
    ) -> None:
        self._leg, self._record, self._sound, self._calls = leg, record, sound, calls
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._why: EndReason | None = None
        calls.begin_line(record, self.end)
        self._log = log.bind(call=record.call_id, route=record.route)
        self._log.info(
            "call.invite",
            **record.private.masked({"from": record.from_uri, "to": record.to_uri}),
            sip_call_id=record.sip_call_id,
            source=record.leg.source,
            codec=record.leg.codec,
        )
        leg.handler = self
        self._limit = self._loop.call_later(seconds, self.end, EndReason.MAX_DURATION)
        leg.play(sound)
        leg.answer()
        record.times.answered = self._ms()
        self._log.info("call.answered")

    def _ms(self) -> float:
        return round((self._loop.time() - self._began) * 1000, 1)

    def end(self, why: EndReason) -> None:
        """Hang up."""
        if self._why is None:
            self._why = why
            self._leg.hang_up({"Reason": reason_header(why)})

    def on_ringing(self, code: int) -> None:
        """Of calls that are placed."""

    def on_media(self, codec: Codec) -> None:
        """The codec is known; what is heard has been chosen before."""
        self._record.leg.codec = codec.value
        self._record.leg.security = self._leg.security

    def on_confirmed(self) -> None:
        """The ACK has come."""
        self._record.times.confirmed = self._ms()
        self._log.info("call.confirmed")

    def on_hold(self, held: bool) -> None:
        """Nothing is played to a caller who holds; the library sees to that."""

    def on_digit(self, digit: str) -> None:
        """An echo returns keys, too."""
        if self._sound == ECHO:
            self._leg.press(digit)

    def on_quality(self, quality: RtpQuality) -> None:
        """RTP counters."""
        self._record.media.rtp = quality_of(quality)

    def on_ended(self, end: LegEnd) -> None:
        """The call is over: write its record."""
        self._limit.cancel()
        record = self._record
        confirmed = record.times.confirmed is not None
        why = self._why or (EndReason.REMOTE_HANGUP if end.method else EndReason.LEG_TIMEOUT)
        if not confirmed:
            record.times.answered = None
        reason = end.reason_header if end.method else None
        record.ending = ending_of(why, answered=confirmed, reason=reason)
        record.leg.bye_undelivered = end.undelivered
        record.times.end = self._ms()
        record.mark(record.times.end, "end", by=record.ending.by.value, why=why.value)
        summary = {key: value for key, value in record.summary().items() if key != "call_id"}
        log.info("call.summary", call=record.call_id, **summary)
        self._calls.end_line(record)

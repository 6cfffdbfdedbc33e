# SPDX-License-Identifier: GPL-2.0-or-later
"""Test calls that the gateway makes to itself at set intervals, and lines to call for a test.

A synthetic call goes through the gateway's own SIP port. It has to be answered, and the agent to be
heard, in time. Synthetic calls are marked in record, row and event, and count in no report and no
budget but the day's. A test line has no session: what the caller says comes back, or a tone is
heard.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from random import uniform

import structlog

from gateway.app.registry import CallRegistry
from gateway.audio.codecs import Codec
from gateway.audio.sounds import ECHO
from gateway.bridge.legs import quality_of
from gateway.call.call_record import CallRecord
from gateway.config.operations import SyntheticCall
from gateway.dialplan import Dialplan, Match
from gateway.ending import EndReason, ending_of, reason_header
from gateway.measures import Reading
from gateway.planning.call_plan import placed_match
from gateway.records.report import SYNTHETIC
from gateway.records.store import RecordStore
from gateway.sip.agent import UserAgent
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import IgnoringHandler, Invite, Leg, LegEnd
from gateway.sip.rtp import RtpQuality
from gateway.tasks import TaskSet, wait_any

FIRST_SECONDS = 2.0
"""Until the first call after the start; one more for each before it."""

LOUD = 500
"""Peak of 32,767 from which the agent is heard: noise of an idle line is far below."""

LOOK_SECONDS = 0.05
END_SECONDS = 5.0
"""How long the end of a call is waited for."""

PLAYOUT_FRAMES = 50

log = structlog.get_logger("synthetic")


class _Caller(IgnoringHandler):
    """Handler of the caller's leg."""

    def __init__(self, settings: SyntheticCall) -> None:
        self.settings = settings
        self.record: CallRecord | None = None
        """Of the call as it came in."""
        self.answered = asyncio.Event()
        self.ended = asyncio.Event()
        self.code = 0
        """Of the final response, or of the end."""

    def on_confirmed(self) -> None:
        """Note that the call was answered."""
        self.answered.set()

    def on_ended(self, end: LegEnd) -> None:
        """Note that the call has ended or was refused."""
        self.code = end.code
        self.ended.set()

    @property
    def how(self) -> str:
        """Return how the call ended: the code, and the reason that its record has."""
        ending = None if self.record is None else self.record.ending
        return f"SIP {self.code}" if ending is None else f"SIP {self.code}, {ending.why}"


@dataclass(slots=True)
class _Result:
    """What came of the calls of one name."""

    up: bool | None = None
    heard_seconds: float | None = None
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class SyntheticCalls:
    """Makes them, and knows those in progress. Lives on the event loop.

    Args:
        agent: dials, and is dialled.
        records: tells webhooks of what failed, and of what works again.
    """

    settings: Sequence[SyntheticCall]
    dialplan: Dialplan
    agent: UserAgent
    records: RecordStore

    def __post_init__(self) -> None:
        self._legs: dict[Leg, _Caller] = {}
        self._results = {one.name: _Result() for one in self.settings}
        self._tasks = TaskSet()

    def use(self, dialplan: Dialplan) -> None:
        """Apply a new dialplan to further calls."""
        self.dialplan = dialplan

    async def start(self) -> None:
        """Start a task for each ``[[synthetic_call]]``, which repeats its call."""
        for number, one in enumerate(self.settings):
            self._tasks.serve(partial(self._repeat, number, one), f"synthetic {one.name}")

    async def stop(self) -> None:
        """Make no further call, and end those in progress."""
        await self._tasks.cancel()

    def readings(self) -> Iterator[Reading]:
        """Yield what ``/metrics`` reads."""
        for name, result in self._results.items():
            labels = {"name": name}
            if result.up is not None:
                yield "synthetic_up", labels, float(result.up)
            if result.heard_seconds is not None:
                yield "synthetic_heard_seconds", labels, result.heard_seconds
            for outcome in ("passed", "failed"):
                told = {**labels, "result": outcome}
                yield "synthetic_calls", told, float(result.counts[outcome])

    def mark(self, invite: Invite, record: CallRecord) -> Match | None:
        """Mark the record of an INVITE that a synthetic call has sent, known by its Call-ID.

        Returns the match of the route that it names; None for other calls, and where it names none.
        """
        made = (
            one for leg, one in self._legs.items() if leg.invite.sip_call_id == invite.sip_call_id
        )
        caller = next(made, None)
        if caller is None:
            return None
        caller.record, settings = record, caller.settings
        record.variant = SYNTHETIC
        record.explanation.append(f"synthetic call {settings.name}")
        route = next((one for one in self.dialplan.routes if one.name == settings.route), None)
        if route is None:
            return None
        return placed_match(route, invite.to_uri, invite.trunk, {}, datetime.now(UTC))

    async def _repeat(self, number: int, settings: SyntheticCall) -> None:
        """Place one synthetic call after another at its interval."""
        pause = FIRST_SECONDS + number
        while True:
            await asyncio.sleep(pause)
            pause = settings.interval_minutes * 60 * uniform(0.95, 1.05)
            why, heard = await self._call(settings)
            self._tell(settings.name, why, heard)

    def _tell(self, name: str, why: str, heard: float | None) -> None:
        """Count and log the outcome of a synthetic call."""
        result = self._results[name]
        before, result.up, result.heard_seconds = result.up, not why, heard
        outcome = "failed" if why else "passed"
        result.counts[outcome] += 1
        told = {"name": name, "why": why, "heard_ms": None if heard is None else round(heard * 1e3)}
        (log.warning if why else log.info)(f"synthetic.{outcome}", **told)
        if why or before is False:
            self.records.announce(f"synthetic.{outcome}", told)

    async def _call(self, settings: SyntheticCall) -> tuple[str, float | None]:
        """Make one call; return why it has failed, or "", and when the agent was heard (s)."""
        address = self._address()
        if address is None:
            return "there is no listener by UDP or TCP to call", None
        caller, audio = _Caller(settings), CallAudio(Codec.PCMU, PLAYOUT_FRAMES)
        clock = asyncio.get_running_loop().time
        began = clock()
        uri = f"sip:{settings.to or SYNTHETIC}@{address}"
        leg = self.agent.dial(uri, caller, audio, [Codec.PCMU])
        self._legs[leg] = caller
        try:
            await wait_any(settings.answer_within, caller.answered, caller.ended)
            if caller.ended.is_set():
                return f"not answered: {caller.how}", None
            if not caller.answered.is_set():
                return f"not answered within {settings.answer_within:g} s", None
            until = clock() + settings.heard_within
            while clock() < until and not caller.ended.is_set():
                if audio.levels[0] >= LOUD:
                    return "", clock() - began
                await asyncio.sleep(LOOK_SECONDS)
            if caller.ended.is_set():
                return f"ended before the agent was heard: {caller.how}", None
            return f"the agent was not heard within {settings.heard_within:g} s", None
        finally:
            leg.hang_up()
            await wait_any(END_SECONDS, caller.ended)
            del self._legs[leg]

    def _address(self) -> str | None:
        """Return host and port of a listener of ours, in the form of a URI."""
        for wanted in ("udp", "tcp"):
            for address in self.agent.addresses:
                transport, _, place = address.partition(":")
                if transport == wanted:
                    host, _, port = place.rpartition(":")
                    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
                    return f"{host}:{port}" + (";transport=tcp" if wanted == "tcp" else "")
        return None


class LocalLine(IgnoringHandler):
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
        """Hang up, with ``why`` in the Reason header; only the first reason counts."""
        if self._why is None:
            self._why = why
            self._leg.hang_up({"Reason": reason_header(why)})

    def on_media(self, codec: Codec) -> None:
        """Note the codec; the audio to play was chosen before."""
        self._record.leg.codec = codec.value
        self._record.leg.security = self._leg.security

    def on_confirmed(self) -> None:
        """Start to play after the ACK."""
        self._record.times.confirmed = self._ms()
        self._log.info("call.confirmed")

    def on_digit(self, digit: str) -> None:
        """Send a DTMF digit back, where the line is an echo."""
        if self._sound == ECHO:
            self._leg.press(digit)

    def on_quality(self, quality: RtpQuality) -> None:
        self._record.media.rtp = quality_of(quality)

    def on_ended(self, end: LegEnd) -> None:
        """Write the record of the call."""
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

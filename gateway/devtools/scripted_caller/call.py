# SPDX-License-Identifier: GPL-2.0-or-later
"""One scripted call: what SIP says about it on one side, the steps of its script on the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.audio.g711 import FRAME_BYTES, FRAME_MS, Codec
from gateway.devtools.scripted_caller.script import (
    AnyStep,
    CallReport,
    Digits,
    EndReport,
    ExpectEnd,
    HangUp,
    Listen,
    Outcome,
    Play,
    Say,
    Script,
    Span,
    StepReport,
    Wait,
    WaitAnswer,
    WaitSilence,
    WaitSpeech,
)
from gateway.devtools.scripted_caller.sound import Clip, Hearing, Tape
from gateway.sip.leg import Leg
from gateway.sip.types import LegEnd, RtpQuality

END_SECONDS = 6.0
"""After a hang-up: how long the other side may take to answer a BYE or CANCEL."""

DIGIT_MS = 320
"""Between keys. pjmedia sends a key for 200 ms and its end three times (RFC 4733 section 2.5.1.4),
260 ms in all; the next key, and the end of the step, come after it."""

MEDIA_SECONDS = 3.0
"""How long after the answer audio may take to flow."""

SETTLE_MS = 100
"""Silence sent before the first sound. A jitter buffer that has had no packet yet conceals a loss,
and the concealment is faded into the first frame that comes: that one had better be silence."""

CLOCK_SECONDS = 5.0
"""What playing may take longer than the sound is: the media clock stands still then."""


class _EndedError(Exception):
    """The call ended while a step was going on."""


class _InterruptedError(Exception):
    """The user wants to hang up."""


@dataclass(slots=True)
class _Played:
    name: str
    first: int
    count: int


class ScriptedCall:
    """A leg's handler that follows a script. Lives on the event loop."""

    def __init__(
        self, uri: str, script: Script, clips: dict[int, Clip], on_progress: Callable[[str], None]
    ) -> None:
        self.uri = uri
        self.script = script
        self.tape = Tape(Codec.PCMU)
        self.report: CallReport | None = None
        self._clips = clips
        self._progress = on_progress
        self._leg: Leg | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._hearing = Hearing()
        self._dialled_at = 0.0
        self._started_at = datetime.now(UTC)
        self._times: dict[str, float] = {}
        self._codec: Codec | None = None
        self._end: LegEnd | None = None
        self._interrupted = False
        self._hung_up = False
        self._steps: list[StepReport] = []
        self._played: list[_Played] = []
        self._queued_frames = 0
        self._digits_sent = ""
        self._digits_received = ""
        self._quality: RtpQuality | None = None

    # ---- LegHandler

    def on_ringing(self, code: int) -> None:
        """180, or another provisional response."""
        if code >= 180 and "ringing" not in self._times:
            self._mark("ringing")
            self._progress(f"{code} from the other side")

    def on_media(self, codec: Codec) -> None:
        """The codec is known."""
        self._codec = codec
        self.tape.negotiated(codec)
        self._wake()

    def on_hold(self, held: bool) -> None:
        """Held by the other side: its audio stops by itself, and comes back."""
        self._progress("held by the other side" if held else "taken back from hold")

    def on_confirmed(self) -> None:
        """Answered."""
        self._mark("answered")
        self._progress("answered")
        self._wake()

    def on_digit(self, digit: str) -> None:
        """The other side pressed a key."""
        self._digits_received += digit
        self._progress(f"heard the key {digit}")

    def on_quality(self, quality: RtpQuality) -> None:
        """RTP counters."""
        self._quality = quality

    def on_ended(self, end: LegEnd) -> None:
        """The call is over."""
        self._mark("ended")
        self._end = end
        self._wake()

    # ---- the owner's side

    def on_audio(self) -> None:
        """Ticks wait on the tape."""
        self._hearing.add(self.tape.collect())
        if "media" not in self._times and self.tape.first_at is not None:
            self._times["media"] = (self.tape.first_at - self._dialled_at) * 1000
        self._wake()

    def interrupt(self) -> None:
        """Hang up at once."""
        self._interrupted = True
        self._wake()

    async def run(self, dial: Callable[[], Leg], first_codec: Codec) -> None:
        """Dial, go through the steps, hang up; ``report`` is there afterwards."""
        loop = asyncio.get_running_loop()
        self.tape.negotiated(first_codec)
        self._started_at = datetime.now(UTC)
        self._dialled_at = loop.time()
        self._leg = dial()
        try:
            outcome, message = await self._follow()
        finally:
            await self._hang_up()
        self.on_audio()
        self.report = self._make_report(outcome, message)

    async def _follow(self) -> tuple[Outcome, str]:
        step: AnyStep | None = None
        try:
            async with asyncio.timeout(self.script.max_seconds):
                for number, step in enumerate(self.script.steps, start=1):
                    await self._do(number, step)
        except TimeoutError:
            return self._missed(step)
        except _InterruptedError:
            return Outcome.INTERRUPTED, "interrupted by the user"
        except _EndedError:
            return self._over_in(step)
        if self._end is not None and not self._end.local:
            return Outcome.COMPLETED, "as scripted, ended by the other side"
        return Outcome.COMPLETED, "as scripted"

    async def _do(self, number: int, step: AnyStep) -> None:
        began = self._since_dial()
        done = False
        if not isinstance(step, WaitAnswer):
            self._progress(step.note or str(step))
        try:
            await self._step(number, step)
            done = True
        finally:
            took = self._since_dial() - began
            self._steps.append(
                StepReport(
                    number=number,
                    step=str(step),
                    began_ms=round(began, 1),
                    took_ms=round(took, 1),
                    done=done,
                )
            )

    async def _step(self, number: int, step: AnyStep) -> None:
        match step:
            case WaitAnswer():
                await self._until(lambda: "answered" in self._times, step.within)
                await self._until(lambda: self.tape.now_ms >= SETTLE_MS, MEDIA_SECONDS)
            case WaitSpeech():
                heard = self._hearing.speech(step.threshold_dbfs)
                await self._until(lambda: heard.ms >= step.ms, step.within)
            case WaitSilence():
                await self._until(
                    lambda: self._hearing.quiet_for(step.ms, step.threshold_dbfs), step.within
                )
            case Play() | Say():
                await self._play(self._clips[number], step.background)
            case Digits():
                await self._press(step.keys)
            case Wait():
                await self._pass_time(step.seconds)
            case Listen():
                until = self._times.get("answered", 0.0) + step.seconds * 1000
                try:
                    await self._pass_time((until - self._since_dial()) / 1000)
                except _EndedError:
                    if self._lost():
                        raise
            case ExpectEnd():
                await self._until(lambda: self._end is not None, step.within)
                if step.code is not None and self._end and self._end.code != step.code:
                    raise _EndedError
            case HangUp():
                await self._hang_up()

    async def _play(self, clip: Clip, background: bool) -> None:
        assert self._codec is not None
        frames = clip.frames(self._codec)
        count = len(frames) // FRAME_BYTES
        # The queue holds two of the longest sounds; a third in the background waits for a place.
        await self._until(lambda: not self._waits() or self._fits(count), clip.ms / 1000 + 1200)
        self.tape.playout.put(frames)
        self._played.append(_Played(clip.name, self._queued_frames, count))
        self._queued_frames += count
        if background:
            return
        last = self._queued_frames
        await self._until(
            lambda: self.tape.playout.frames_played >= last,
            self.tape.playout.queued_ms / 1000 + CLOCK_SECONDS,
        )
        # The frame just taken goes out at the end of its tick; the next tick proves that.
        await self._ticks(1)

    def _waits(self) -> bool:
        return len(self.tape.playout) > 0

    def _fits(self, count: int) -> bool:
        return len(self.tape.playout) + count <= self.tape.playout.max_frames

    async def _press(self, keys: str) -> None:
        assert self._leg is not None
        for key in keys:
            self._leg.press(key, "rfc4733")
            self._digits_sent += key
            await self._ticks(DIGIT_MS // FRAME_MS)

    async def _ticks(self, count: int) -> None:
        target = self.tape.ticks + count
        await self._until(
            lambda: self.tape.ticks >= target, count * FRAME_MS / 1000 + CLOCK_SECONDS
        )

    async def _pass_time(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await self._until(lambda: False, max(seconds, 0.0))

    async def _until(self, condition: Callable[[], bool], within: float) -> None:
        """Wait for a condition, looked at after every tick and event.

        Raises TimeoutError, _EndedError when the call ends before, _InterruptedError.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(within):
            while not condition():
                if self._interrupted:
                    raise _InterruptedError
                if self._end is not None:
                    raise _EndedError
                self._waiter = loop.create_future()
                await self._waiter

    async def _hang_up(self) -> None:
        leg = self._leg
        if leg is None or self._end is not None:
            return
        self._hung_up = True
        leg.hang_up()
        try:
            async with asyncio.timeout(END_SECONDS):
                while self._end is None:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError:
            self._progress(f"no answer to the hang-up within {END_SECONDS:g} s")

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ---- what it was

    def _lost(self) -> bool:
        return self._end is not None and self._end.method != "BYE"

    def _missed(self, step: AnyStep | None) -> tuple[Outcome, str]:
        if isinstance(step, WaitAnswer) and "answered" not in self._times:
            return Outcome.NO_ANSWER, f"no answer within {step.within:g} s"
        if isinstance(step, WaitAnswer):
            return Outcome.LOST, f"answered, but no audio within {MEDIA_SECONDS:g} s"
        number = len(self._steps)
        if self._since_dial() >= self.script.max_seconds * 1000:
            limit = f"the call's {self.script.max_seconds:g} s were over"
        else:
            limit = f"its {getattr(step, 'within', 0):g} s passed"
        return Outcome.STEP_MISSED, f"step {number} ({step}): {limit} before it was done"

    def _over_in(self, step: AnyStep | None) -> tuple[Outcome, str]:
        end, number = self._end, len(self._steps)
        assert end is not None
        if end.code == 0:
            return Outcome.FAILED, f"the call could not be placed: {end.reason}"
        if "answered" not in self._times:
            if isinstance(step, ExpectEnd):
                wanted = f"{end.code} {end.reason} instead of {step.code}"
                return Outcome.STEP_MISSED, f"step {number} ({step}): {wanted}"
            if end.code == 408:
                return Outcome.NO_ANSWER, "no answer: 408, the other side is not there"
            return Outcome.REFUSED, f"refused: {end.code} {end.reason}"
        how = "was hung up by the other side" if end.method == "BYE" else f"ended ({end.reason})"
        return Outcome.LOST, f"step {number} ({step}): the call {how} in the middle of it"

    def _end_report(self) -> EndReport | None:
        end = self._end
        if end is None:
            return None
        by = "caller" if end.local else "callee"
        if not end.local and "answered" in self._times and end.method != "BYE":
            by = "network"
        return EndReport(
            by=by,
            code=end.code,
            reason=end.reason,
            method=end.method,
            reason_header=end.reason_header,
        )

    def _make_report(self, outcome: Outcome, message: str) -> CallReport:
        played = []
        for part in self._played:
            span = self.tape.spoken_ms(part.first, part.count)
            if span is not None:
                played.append(Span(from_ms=span[0], to_ms=span[1], what=part.name))
        quality = self._quality
        moments = {f"{name}_ms": round(at, 1) for name, at in self._times.items()}
        return CallReport(
            uri=self.uri,
            outcome=outcome,
            message=message,
            exit_code=outcome.exit_code,
            started_at=self._started_at,
            codec=self._codec.value if self._codec else None,
            steps=self._steps,
            played=played,
            heard=self._hearing.spans(),
            digits_sent=self._digits_sent,
            digits_received=self._digits_received,
            recorded_ms=len(self.tape.heard_track) * FRAME_MS // FRAME_BYTES,
            lost_ticks=self.tape.lost,
            rtp_received=quality.rx_packets if quality else 0,
            rtp_lost=quality.rx_lost if quality else 0,
            rtp_sent=quality.tx_packets if quality else 0,
            end=self._end_report(),
            **moments,
        )

    def _mark(self, name: str) -> None:
        self._times.setdefault(name, self._since_dial())

    def _since_dial(self) -> float:
        return (asyncio.get_running_loop().time() - self._dialled_at) * 1000

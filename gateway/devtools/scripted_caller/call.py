# SPDX-License-Identifier: GPL-2.0-or-later
"""One scripted call: follows the steps of a script, by the events of its SIP leg."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from gateway.audio import FRAME_BYTES, FRAME_MS, PCM_FRAME_BYTES, Codec
from gateway.devtools.scripted_caller import (
    AnyStep,
    BadLine,
    CallReport,
    ChangeCodec,
    Dialling,
    Digits,
    EndReport,
    ExpectEnd,
    HangUp,
    Hold,
    Interrupt,
    Line,
    Listen,
    Noise,
    Outcome,
    Play,
    Resume,
    Say,
    Script,
    Span,
    StepReport,
    Wait,
    WaitAnswer,
    WaitSilence,
    WaitSpeech,
)
from gateway.devtools.scripted_caller.sound import (
    Clip,
    Hearing,
    Played,
    Tape,
    WhiteNoise,
    key_tones,
)
from gateway.sip.leg import Leg, LegEnd
from gateway.sip.rtp import RtpQuality

END_SECONDS = 6.0
"""After a hang-up: how long the other side may take to answer a BYE or CANCEL."""

DIGIT_MS = 320
"""Between keys. pjmedia sends a key for 200 ms and its end three times (RFC 4733 section 2.5.1.4),
260 ms in all; the next key, and the end of the step, come after it."""

MEDIA_SECONDS = 3.0
"""How long after the answer audio may take to flow."""

ONSET_MS = 60
"""Sound of the other side by which an interruption knows that it has begun to speak."""

HOLD_SECONDS = 0.3
"""Time given to a re-INVITE that holds: nothing tells that it was answered."""

NOISE_FRAMES = 5
"""Noise that is queued ahead, and that a sound comes late by."""

SETTLE_MS = 100
"""Silence sent before the first sound. A jitter buffer that has had no packet yet conceals a loss,
and the concealment is faded into the first frame that comes: that one had better be silence."""

CLOCK_SECONDS = 5.0
"""What playing may take longer than the sound is: the media clock stands still then."""


class EndedError(Exception):
    """The call ended during a step."""


class _InterruptedError(Exception):
    """The user has interrupted the call (Ctrl-C)."""


class ScriptedCall:
    """Follows a script as the handler of a leg. Used on the event loop."""

    def __init__(
        self,
        uri: str,
        script: Script,
        clips: dict[int, Clip],
        on_progress: Callable[[str], None],
        dialling: Dialling | None = None,
    ) -> None:
        self.uri = uri
        self.script = script
        self.dialling = dialling or Dialling()
        self.steps: list[StepReport] = []
        """Those done so far."""
        self.tape = Tape(Codec.PCMU)
        if self.dialling.line != BadLine() or any(isinstance(one, Line) for one in script.steps):
            self._set_line(self.dialling.line)
        self.report: CallReport | None = None
        self._clips = clips
        self.progress = on_progress
        self.leg: Leg | None = None
        self._first_leg: Leg | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.hearing = Hearing()
        self._dialled_at = 0.0
        self._started_at = datetime.now(UTC)
        self._times: dict[str, float] = {}
        self._codec: Codec | None = None
        self.end: LegEnd | None = None
        self._interrupted = False
        self._noise: WhiteNoise | None = None
        self._medias = 0
        self._held: list[Span] = []
        self._refers: list[str] = []
        self._played: list[Played] = []
        self.queued_frames = 0
        self._digits_sent = ""
        self._digits_received = ""
        self.quality: RtpQuality | None = None

    # ---- LegHandler

    def on_ringing(self, code: int) -> None:
        """180, or another provisional response."""
        if code >= 180 and "ringing" not in self._times:
            self._mark("ringing")
            self.progress(f"{code} from the other side")

    def on_media(self, codec: Codec) -> None:
        self._codec = codec
        self._medias += 1
        self.tape.negotiated(codec)
        self._wake()

    def on_hold(self, held: bool) -> None:
        """Report that the other side holds us, or no more."""
        self.progress("held by the other side" if held else "taken back from hold")

    def on_confirmed(self) -> None:
        self._mark("answered")
        self.progress("answered")
        self._wake()

    def on_digit(self, digit: str) -> None:
        """The other side pressed a key."""
        self._digits_received += digit
        self.progress(f"heard the key {digit}")

    def on_quality(self, quality: RtpQuality) -> None:
        self.quality = quality

    def on_ended(self, end: LegEnd) -> None:
        self._mark("ended")
        self.end = end
        self._wake()

    # ---- the owner's side

    def on_audio(self) -> None:
        """Take the frames that were heard since the last call, and check waiting steps."""
        self.hearing.add(self.tape.collect())
        if "media" not in self._times and self.tape.first_at is not None:
            self._times["media"] = (self.tape.first_at - self._dialled_at) * 1000
        if self._noise is not None and self._codec and len(self.tape.playout) < NOISE_FRAMES:
            size = NOISE_FRAMES * PCM_FRAME_BYTES
            self.tape.playout.put(self.tape.codec.from_linear(self._noise.take(size)))
            self.queued_frames += NOISE_FRAMES
        self._wake()

    @property
    def sip_call_id(self) -> str:
        """The Call-ID of the INVITE; empty before it was sent."""
        return "" if self._first_leg is None else self._first_leg.invite.sip_call_id

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
        self._first_leg = dial()
        self._use_leg(self._first_leg)
        try:
            outcome, message = await self._follow()
        finally:
            await self._hang_up()
        self.on_audio()
        self.report = self._make_report(outcome, message)

    def _use_leg(self, leg: Leg) -> None:
        """Make ``leg`` the leg of this call: the first one, or that of a followed REFER."""
        self.leg = leg
        leg.on_refer = self._on_refer
        if self.dialling.follow is not None:
            leg.allowed_refer_to, leg.on_replaced = self.dialling.follow, self._on_replaced

    def _on_refer(self, target: str) -> None:
        self._refers.append(target)
        self.progress(f"referred to {target}")

    def _on_replaced(self, successor: Leg) -> None:
        """A REFER was followed: the new leg has the audio, and the old one is left."""
        old, successor.handler = self.leg, self
        self._use_leg(successor)
        if old is not None:
            old.handler = None
            old.hang_up()

    async def converse(self) -> None:
        """Run after the steps; for subclasses."""

    async def _follow(self) -> tuple[Outcome, str]:
        step: AnyStep | None = None
        try:
            async with asyncio.timeout(self.script.max_seconds):
                for number, step in enumerate(self.script.steps, start=1):
                    await self._report_step(number, step)
                await self.converse()
        except TimeoutError:
            return self._timed_out(step)
        except _InterruptedError:
            return Outcome.INTERRUPTED, "interrupted by the user"
        except EndedError:
            return self._ended_during(step)
        if self.end is not None and not self.end.local:
            return Outcome.COMPLETED, "as scripted, ended by the other side"
        return Outcome.COMPLETED, "as scripted"

    async def _report_step(self, number: int, step: AnyStep) -> None:
        """Run a step, and add it to the report."""
        if not isinstance(step, WaitAnswer):
            self.progress(step.note or str(step))
        with self.noted(str(step)):
            await self._step(number, step)

    @contextlib.contextmanager
    def noted(self, step: str) -> Iterator[None]:
        """Add the step that runs meanwhile to the report, as not done where it raises."""
        began, done = self.since_dial, False
        try:
            yield
            done = True
        finally:
            self.steps.append(
                StepReport(
                    number=len(self.steps) + 1,
                    step=step,
                    began_ms=round(began, 1),
                    took_ms=round(self.since_dial - began, 1),
                    done=done,
                )
            )

    async def _step(self, number: int, step: AnyStep) -> None:
        match step:
            case WaitAnswer():
                await self.until(lambda: "answered" in self._times, step.within)
                await self.until(lambda: self.tape.now_ms >= SETTLE_MS, MEDIA_SECONDS)
            case WaitSpeech():
                heard = self.hearing.speech(step.threshold_dbfs)
                await self.until(lambda: heard.ms >= step.ms, step.within)
            case WaitSilence():
                await self.until(
                    lambda: self.hearing.quiet_for(step.ms, step.threshold_dbfs), step.within
                )
            case Play() | Say():
                await self.play(self._clips[number], step.background)
            case Interrupt():
                await self._begin_of_speech(step)
                await self.play(self._clips[number], False, interrupts=True)
            case Digits(how="inband"):
                self._digits_sent += step.keys
                await self.play(key_tones(step.keys), False)
            case Digits():
                await self._press(step.keys, step.how)
            case Hold() | Resume():
                await self._hold(step)
            case ChangeCodec():
                await self._change_codec(step)
            case Noise():
                self._noise = None if step.dbfs == "off" else WhiteNoise(step.dbfs)
            case Line():
                self._set_line(step)
            case Wait():
                await self._pass_time(step.seconds)
            case Listen():
                until = self._times.get("answered", 0.0) + step.seconds * 1000
                try:
                    await self._pass_time((until - self.since_dial) / 1000)
                except EndedError:
                    if self.lost:
                        raise
            case ExpectEnd():
                await self.until(lambda: self.end is not None, step.within)
                if step.code is not None and self.end and self.end.code != step.code:
                    raise EndedError
            case HangUp():
                await self._hang_up()

    def _set_line(self, line: BadLine) -> None:
        """Set loss and jitter of the call's RTP."""
        self.tape.audio.spoil(line.loss_percent, line.jitter_ms)

    async def _begin_of_speech(self, step: Interrupt) -> None:
        """Wait for ``step.after_ms`` of speech of the other side, and out of a pause."""
        heard = self.hearing.speech(step.threshold_dbfs)
        await self.until(lambda: heard.ms >= ONSET_MS, step.within)
        left = step.after_ms - ONSET_MS
        if left > 0:
            await self._ticks(left // FRAME_MS)
        # Not in a pause between two sentences.
        await self.until(
            lambda: not self.hearing.quiet_for(ONSET_MS, step.threshold_dbfs), step.within
        )

    async def _hold(self, step: Hold | Resume) -> None:
        assert self.leg is not None
        held = isinstance(step, Hold)
        now, known = self.tape.now_ms, self._medias
        self.leg.hold(held)
        if held:
            self._held.append(Span(from_ms=now, to_ms=now))
            await self._pass_time(HOLD_SECONDS)
        else:
            assert isinstance(step, Resume)
            await self.until(lambda: self._medias > known, step.within)
            if self._held:
                self._held[-1] = Span(from_ms=self._held[-1].from_ms, to_ms=self.tape.now_ms)

    async def _change_codec(self, step: ChangeCodec) -> None:
        assert self.leg is not None
        known = self._medias
        self.leg.offer([step.codec])
        await self.until(lambda: self._medias > known and self._codec is step.codec, step.within)

    async def play(self, clip: Clip, background: bool = False, interrupts: bool = False) -> None:
        """Play a clip to its end, or in the ``background``, which returns once it is queued."""
        codec = self.tape.codec  # also where the call has changed to another
        frames = clip.frames(codec)
        if self._noise is not None:
            frames = self._noise.under(frames, codec)
        count = len(frames) // FRAME_BYTES
        # The queue holds two of the longest sounds; a third in the background waits for a place.
        playout = self.tape.playout
        await self.until(
            lambda: not len(playout) or len(playout) + count <= playout.max_frames,
            clip.ms / 1000 + 1200,
        )
        playout.put(frames)
        loud = clip.loud(codec)
        self._played.append(Played(clip.name, self.queued_frames, count, loud, interrupts))
        self.queued_frames += count
        if background:
            return
        last = self.queued_frames
        await self.until(
            lambda: playout.frames_played >= last,
            playout.queued_ms / 1000 + CLOCK_SECONDS,
        )
        # The frame just taken goes out at the end of its tick; the next tick proves that.
        await self._ticks(1)

    async def _press(self, keys: str, how: str) -> None:
        assert self.leg is not None
        for key in keys:
            self.leg.press(key, how)
            self._digits_sent += key
            await self._ticks(DIGIT_MS // FRAME_MS)

    async def _ticks(self, count: int) -> None:
        target = self.tape.ticks + count
        await self.until(lambda: self.tape.ticks >= target, count * FRAME_MS / 1000 + CLOCK_SECONDS)

    async def _pass_time(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await self.until(lambda: False, max(seconds, 0.0))

    async def until(self, condition: Callable[[], bool], within: float) -> None:
        """Wait for a condition, looked at after every tick and event.

        Raises TimeoutError, EndedError when the call ends before, _InterruptedError.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(within):
            while not condition():
                if self._interrupted:
                    raise _InterruptedError
                if self.end is not None:
                    raise EndedError
                self._waiter = loop.create_future()
                await self._waiter

    async def _hang_up(self) -> None:
        leg = self.leg
        if leg is None or self.end is not None:
            return
        leg.hang_up()
        try:
            async with asyncio.timeout(END_SECONDS):
                while self.end is None:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError:
            self.progress(f"no answer to the hang-up within {END_SECONDS:g} s")

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ---- what it was

    @property
    def lost(self) -> bool:
        """Whether the call ended other than by BYE."""
        return self.end is not None and self.end.method != "BYE"

    def _timed_out(self, step: AnyStep | None) -> tuple[Outcome, str]:
        """Return outcome and message of a step whose deadline has passed."""
        if isinstance(step, WaitAnswer) and "answered" not in self._times:
            return Outcome.NO_ANSWER, f"no answer within {step.within:g} s"
        if isinstance(step, WaitAnswer):
            return Outcome.LOST, f"answered, but no audio within {MEDIA_SECONDS:g} s"
        number = len(self.steps)
        if self.since_dial >= self.script.max_seconds * 1000:
            limit = f"the call's {self.script.max_seconds:g} s were over"
        else:
            limit = f"its {getattr(step, 'within', 0):g} s passed"
        return Outcome.STEP_MISSED, f"step {number} ({step}): {limit} before it was done"

    def _ended_during(self, step: AnyStep | None) -> tuple[Outcome, str]:
        """Return outcome and message of a call that ended during a step."""
        end, number = self.end, len(self.steps)
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

    def _make_report(self, outcome: Outcome, message: str) -> CallReport:
        quality = self.quality
        answered = "answered" in self._times
        found: dict[str, Any] = {f"{name}_ms": round(at, 1) for name, at in self._times.items()}
        found |= self.spans()
        return CallReport(
            uri=self.uri,
            outcome=outcome,
            message=message,
            exit_code=outcome.exit_code,
            started_at=self._started_at,
            codec=self._codec.value if self._codec else None,
            steps=self.steps,
            held=self._held,
            refers=self._refers,
            sip_call_id=self.sip_call_id,
            heard=self.hearing.spans(),
            digits_sent=self._digits_sent,
            digits_received=self._digits_received,
            recorded_ms=len(self.tape.heard_track) * FRAME_MS // FRAME_BYTES,
            lost_ticks=self.tape.lost,
            rtp_received=quality.rx_packets if quality else 0,
            rtp_lost=quality.rx_lost if quality else 0,
            rtp_sent=quality.tx_packets if quality else 0,
            end=None if self.end is None else EndReport.of(self.end, answered),
            **found,
        )

    def spans(self) -> dict[str, list[Span]]:
        """Where the sounds of the steps lie in the recording."""
        return self.tape.spans_of(self._played)

    def _mark(self, name: str) -> None:
        self._times.setdefault(name, self.since_dial)

    @property
    def since_dial(self) -> float:
        """Time since the INVITE, ms."""
        return (asyncio.get_running_loop().time() - self._dialled_at) * 1000

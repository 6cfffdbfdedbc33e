# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio of one call between leg and session: moved by a pump that all calls share, analysed for
what the machine is told of it (sounds, levels, DTMF tones), and played.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import structlog

from gateway.audio import FRAME_BYTES, FRAME_MS, SAMPLE_RATE, Codec
from gateway.audio.tone_detection import Beep, DtmfDetector, ToneAnalyzer
from gateway.bridge.machine_driver import CallHost, CallPart
from gateway.call import inputs, outputs
from gateway.call.inputs import BeepHeard, CallerLevel, CallerSounds, DigitPressed, SoundHeard
from gateway.call.plan import CallPlan
from gateway.measures import LAG, Distribution
from gateway.sip import call_audio, library
from gateway.sip.call_audio import CallAudio

log = structlog.get_logger("media")

AHEAD_MS = 5000
"""Caller audio that may come at once (ms), after a network has held it back."""

FASTEST = 1.05
"""Speed of caller audio at most, in multiples of real time: a fast clock is not 5 % fast."""

WITHHELD_MS = 2500
"""Length of withheld audio that is sent once the session may hear it (ms): audio is analysed by the
second, and a word may begin in the second before."""


class MediaPump:
    """Calls the ``move`` of each call that has caller audio or a change of playout. One for all
    calls of the process."""

    def __init__(self) -> None:
        self._moves: dict[int, Callable[[], None]] = {}
        self._last_tick = self._beats = 0
        self._faulty: set[int] = set()
        self.delay = Distribution(LAG)
        """Seconds from the receipt of a caller's packet to the ``move`` of its call."""
        self.faults = 0
        """Exceptions of ``move``; each is a defect."""

    @property
    def beats(self) -> int:
        """Count of media clock ticks (20 ms) in which a call was served; it stands still when no
        audio moves. Without any call, the clock's own count."""
        return self._beats if self._moves else library.beats()

    def add(self, audio: CallAudio, move: Callable[[], None]) -> None:
        """Call ``move`` whenever this call has audio or a change of playout; it replaces an earlier
        one of this audio."""
        self._moves[audio.uplink.id] = move

    def remove(self, audio: CallAudio) -> None:
        """Stop moving the audio of a call that has ended; nothing if it was not added."""
        self._moves.pop(audio.uplink.id, None)
        self._faulty.discard(audio.uplink.id)

    def serve(self, calls: Iterable[int]) -> None:
        """Call ``move`` of these calls, given by the ids of their uplinks; others than those added
        are passed over.

        An exception of ``move`` ends neither the pump nor other calls: it is counted, and logged
        once a call.
        """
        tick = library.beats()
        if tick != self._last_tick:
            self._last_tick = tick
            self._beats += 1
        self.delay.observe(call_audio.waited())
        for call in calls:
            move = self._moves.get(call)
            if move is None:
                continue  # its call has not begun, or has ended
            try:
                move()
            except Exception:
                # One call's defect must not silence the others; said once, not every 20 ms.
                self.faults += 1
                if call not in self._faulty:
                    self._faulty.add(call)
                    log.exception("media.fault")


LOUD = 500
"""Amplitude, of 32,768 (-36 dBFS), above which a sample is not noise of a quiet line."""

LOUD_SHARE = 0.1
"""Share of loud samples in a second from which the caller is heard; speech has a third."""

FAINT = 100
"""Amplitude (-50 dBFS) above which a sample may be of a soft voice."""

FAINT_RANGE = 4.0
"""Ratio of amplitudes of the loudest and the softest quarter of a second, from which it is a voice:
noise of a line, a fan or a road does not vary by 12 dB."""

PAUSE_SECONDS = 0.4
"""Pause after which loud audio counts as new speech; pauses within words are shorter."""


Found = DigitPressed | SoundHeard | BeepHeard | CallerSounds | CallerLevel


class LevelMeter:
    """Measures how loud a caller speaks, from G.711 audio, second by second."""

    def __init__(self, codec: Codec) -> None:
        linear = np.frombuffer(codec.to_linear(bytes(range(256))), np.int16).astype(np.float64)
        self._squares = (linear / 32768) ** 2
        self._second = bytearray()

    def feed(self, audio: bytes) -> float | None:
        """Take audio of any length; where that completes a second, return the level (dBFS) of the
        louder half of its frames, else None."""
        self._second += audio
        if len(self._second) < SAMPLE_RATE:
            return None
        power = self._squares[np.frombuffer(self._second[:SAMPLE_RATE], np.uint8)]
        del self._second[:SAMPLE_RATE]
        frames = np.sort(power.reshape(-1, FRAME_BYTES).mean(axis=1))
        return round(10 * float(np.log10(frames[len(frames) // 2 :].mean() + 1e-10)), 1)


class InboundAudioAnalyzer:
    """Detects sound in the caller's audio and, where the route asks, DTMF tones, beeps and music,
    and how loud the caller speaks."""

    def __init__(self, plan: CallPlan) -> None:
        codec = plan.codec.narrow
        self._narrow = call_audio.narrowing() if plan.codec.wide else None
        """Makes a copy at 8 kHz to analyse; None for a call at 8 kHz."""
        self._keys = DtmfDetector(codec) if plan.dtmf.inband else None
        listens = plan.machine_detection.listens or plan.hold_wait.enabled
        self._sounds = ToneAnalyzer(codec) if listens else None
        self._level = LevelMeter(codec) if plan.line.enabled and plan.line.min_level else None
        self._searches = any(one is not None for one in (self._keys, self._sounds, self._level))
        self._held = False
        self._quiet, self._still = codec.quieter_than(LOUD), codec.quieter_than(FAINT)
        self._amplitudes = np.abs(
            np.frombuffer(codec.to_linear(bytes(range(256))), np.int16).astype(np.float32)
        )
        self._second = bytearray()
        self._loud = 0
        self.since: float | None = None
        """When the caller's present speech began to arrive (monotonic, s)."""
        self.until: float | None = None
        """When the last loud audio arrived (monotonic, s)."""

    def feed(self, audio: bytes, *, held: bool) -> Sequence[Found]:
        """Take audio in the call's codec; return the inputs for the machine that it causes. Note in
        ``since`` and ``until`` when the caller speaks.

        On hold (``held``) only DTMF tones are detected: the caller's side may play music.
        """
        if self._narrow is not None:
            audio = self._narrow(audio)
        loud = len(audio.translate(None, self._quiet))
        self._loud += loud
        self._second += audio
        if loud and loud >= LOUD_SHARE * len(audio) and not held:
            now = time.monotonic()
            if self.until is None or now - self.until > PAUSE_SECONDS:
                self.since = now
            self.until = now
        if len(self._second) < SAMPLE_RATE and not self._searches:
            return ()
        return self._found(audio, held)

    def _soft_voice(self) -> bool:
        """Return whether the last second, which is not loud, has a soft voice in it: enough samples
        above ``FAINT``, and a level that varies by ``FAINT_RANGE``."""
        second = self._second
        if len(second.translate(None, self._still)) < LOUD_SHARE * len(second):
            return False
        frames = np.frombuffer(second, np.uint8)[: len(second) // FRAME_BYTES * FRAME_BYTES]
        levels = np.sort(self._amplitudes[frames].reshape(-1, FRAME_BYTES).mean(axis=1))
        quarter = len(levels) // 4
        return bool(levels[-quarter:].mean() >= FAINT_RANGE * levels[:quarter].mean())

    def _found(self, audio: bytes, held: bool) -> list[Found]:
        """Run the detectors on audio at 8 kHz, and return what they found; first of all, if a
        second is complete, whether it was loud (:class:`CallerSounds`) or had a soft voice
        (``faint``).

        On hold there is none of it but DTMF, and search for beeps and music begins anew after it.
        """
        heard: list[Found] = []
        if len(self._second) >= SAMPLE_RATE:
            if self._loud >= LOUD_SHARE * len(self._second):
                heard += [] if held else [CallerSounds()]
            elif not held and self._soft_voice():
                heard.append(CallerSounds(faint=True))
            self._second.clear()
            self._loud = 0
        if self._keys is not None:
            heard += [DigitPressed(digit, in_band=True) for digit in self._keys.feed(audio)]
        if self._level is not None and not held:
            dbfs = self._level.feed(audio)
            heard += [] if dbfs is None else [CallerLevel(dbfs)]
        if self._sounds is None:
            return heard
        if held != self._held:
            self._held = held
            self._sounds.reset()
        for sound in () if held else self._sounds.feed(audio):
            if isinstance(sound, Beep):
                heard.append(BeepHeard(sound.hz, sound.ms))
            else:
                heard.append(SoundHeard(sound.sounding, sound.held, sound.change))
        return heard


class CallMedia(CallPart):
    """Moves audio between leg and session, and feeds the machine what it detects on the way.
    Playout is paused until :class:`outputs.StartMedia`.

    Args:
        feed_first: feeds an input to the machine before all others that wait.
        send: sends caller audio to the session.
        feed_at: feeds an input that happened at that time of the event loop (s).
        on_conceal: called with True when the caller's audio is hidden from the session, since
            sensitive digits are entered, and with False when it is shown again.
    """

    def __init__(
        self,
        host: CallHost,
        plan: CallPlan,
        audio: CallAudio,
        pump: MediaPump,
        send: Callable[[bytes], None],
        feed_first: Callable[[inputs.Input], None],
        feed_at: Callable[[inputs.Input, float], None],
        on_conceal: Callable[[bool], None] = lambda _concealed: None,
    ) -> None:
        super().__init__(host)
        self._audio = audio
        self._pump = pump
        self._send = send
        self._feed_first = feed_first
        self._feed_at = feed_at
        self._on_conceal = on_conceal
        self._analyzer = InboundAudioAnalyzer(plan)
        self._hold: outputs.Hold | None = None
        self._streaming = self._concealed = self._muted = False
        self._bytes_per_ms = plan.codec.bytes_per_ms
        self._room, self._heard_at = float(AHEAD_MS * self._bytes_per_ms), time.monotonic()
        self._too_fast = 0
        """Bytes dropped because they came faster than real time."""
        self._withheld: bytearray | None = None
        """The latest caller audio, while it is withheld from the session; else None."""
        self._paused: set[str] = {"not started"}
        """Reasons for which playout is paused."""
        audio.playout.pause(True)
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.StartMedia: self._start,
            outputs.Hold: self._on_hold,
            outputs.Mute: self._on_mute,
            outputs.Withhold: self._on_withhold,
            outputs.Pause: lambda output: self._pause("paused", output.paused),
            outputs.Play: self._play,
            outputs.Conceal: self._conceal,
        }

    def redirect(self, send: Callable[[bytes], None]) -> None:
        """Send caller audio to this function, of another session, from now on."""
        self._send = send

    def stop(self) -> None:
        """Move no more audio of the call, and analyse none; what is queued is still played."""
        self._pump.remove(self._audio)

    def finish(self) -> None:
        """Drop what is queued for playout, and write the figures of the call's audio into its
        record."""
        playout, record = self._audio.playout, self._host.record
        playout.flush()
        record.media.underruns = playout.underruns
        record.media.underrun_ms = playout.underrun_frames * FRAME_MS
        record.media.refused_playout_frames = playout.frames_refused
        counts = self._audio.uplink.counts
        record.media.dropped_uplink_frames = -(-counts.dropped_ms // FRAME_MS)
        record.media.dropped_uplink_frames += self._too_fast // (FRAME_MS * self._bytes_per_ms)
        record.media.uplink = asdict(counts)

    @property
    def heard(self) -> tuple[float | None, float | None]:
        """When the caller's present speech began, and when they were last loud (event loop's time,
        s); None before the first."""
        return self._analyzer.since, self._analyzer.until

    def _move(self) -> None:
        """Take what the caller has sent since the last time: feed what is detected in it, and send
        it to the session once there was :class:`outputs.StartMedia`; then feed changes of playout.
        Fifty times a second.

        The session gets silence or nothing on hold, mute and sensitive digits, and silence while
        audio is withheld, which is kept (``WITHHELD_MS``). An exception ends the call.
        """
        try:  # as entry does: this runs fifty times a second
            audio, moved = self._audio.uplink.take()
            if audio:
                audio = self._as_fast_as_real(audio)
                for heard in self._analyzer.feed(audio, held=self._hold is not None):
                    self._host.feed(heard)
                if self._hold is not None or self._concealed or self._muted:
                    audio = self._in_place_of(audio)
                if self._withheld is not None:
                    self._withheld += audio
                    del self._withheld[: -WITHHELD_MS * self._bytes_per_ms]
                    audio = self._audio.codec.silence * len(audio)
                if audio and self._streaming:
                    self._send(audio)
            if moved:
                self._note_transitions()
        except Exception as error:
            self.on_fault(error)

    def _as_fast_as_real(self, audio: bytes) -> bytes:
        """Return caller audio without its end that comes faster than real time, and would be
        billed: ``AHEAD_MS`` may come at once, and more at ``FASTEST``. What is left out is counted,
        and logged the first time."""
        now = time.monotonic()
        passed = (now - self._heard_at) * 1000 * FASTEST * self._bytes_per_ms
        room = min(AHEAD_MS * self._bytes_per_ms, self._room + passed)
        self._heard_at = now
        if len(audio) > room:
            if not self._too_fast:
                log.warning("call.audio_too_fast", call=self._host.record.call_id)
            kept = int(room) - int(room) % (self._bytes_per_ms // 8)
            self._too_fast += len(audio) - kept
            audio = audio[:kept]
        self._room = room - len(audio)
        return audio

    def _in_place_of(self, audio: bytes) -> bytes:
        """Return what the session gets in place of audio on hold, mute or sensitive digits: as much
        silence; on a hold that is not ``silent``, nothing."""
        if self._hold is not None and not self._hold.silent:
            return b""
        return self._audio.codec.silence * len(audio)

    def _note_transitions(self) -> None:
        """Feed each start and end of playout with its time (s); an end only if nothing is queued
        now."""
        playout = self._audio.playout
        while (transition := playout.transition()) is not None:
            if transition.playing:
                self._feed_at(inputs.PlayoutStarted(), transition.at)
            elif not playout:
                # What was queued since has its own start to come; only a queue that is still
                # empty has drained.
                self._feed_at(inputs.PlayoutDrained(), transition.at)

    def _start(self, output: outputs.StartMedia) -> None:
        """Send caller audio to the session from now on; the first time, drop what came before. With
        ``playout`` end that reason for its pause, else set it."""
        if not self._streaming:  # else it is in the middle of what a callee says
            self._audio.uplink.take()  # what came before the ACK is older than the conversation
        self._streaming = True
        self._pause("not started", not output.playout)
        self._pump.add(self._audio, self._move)

    def _on_hold(self, output: outputs.Hold) -> None:
        """Pause playout, and keep caller audio from the session; or end that."""
        self._hold = output if output.held else None
        self._pause("held", output.held)

    def _conceal(self, output: outputs.Conceal) -> None:
        """Give the session silence in place of caller audio, or end that; tell ``on_conceal``."""
        self._concealed = output.concealed
        self._on_conceal(output.concealed)

    def _on_mute(self, output: outputs.Mute) -> None:
        """Give the session silence in place of caller audio from now on, or end that."""
        self._muted = output.muted

    def _on_withhold(self, output: outputs.Withhold) -> None:
        """Withhold caller audio from the session from now on: it gets silence. Or end that, and
        send the withheld audio (``WITHHELD_MS`` at most) at once."""
        kept, self._withheld = self._withheld, bytearray() if output.withheld else None
        if kept and self._streaming and not output.withheld:
            self._send(bytes(kept))

    def _pause(self, why: str, paused: bool) -> None:
        """Set or end one reason for a pause; playout is paused while there is any.

        Args:
            why: held, paused or not started.
        """
        (self._paused.add if paused else self._paused.discard)(why)
        self._audio.playout.pause(bool(self._paused))

    def _play(self, output: outputs.Play) -> None:
        """Queue audio for playout, in whole frames, all or none; feed
        :class:`inputs.PlayoutRefused` with their number if they do not fit. ``more`` says whether a
        queue that runs empty is an underrun; that is set without audio, too."""
        playout = self._audio.playout
        playout.expecting = output.more
        if output.audio:
            refused = playout.put(output.audio)
            if refused:
                self._feed_first(inputs.PlayoutRefused(refused))

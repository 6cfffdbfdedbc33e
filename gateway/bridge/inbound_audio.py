# SPDX-License-Identifier: GPL-2.0-or-later
"""Detects in the caller's audio what the machine is told: sounds, levels, DTMF tones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from gateway.audio.codecs import FRAME_BYTES, SAMPLE_RATE, Codec
from gateway.audio.tone_detection import Beep, InBandDetector, Listener
from gateway.call.inputs import BeepHeard, CallerLevel, CallerSounds, DigitPressed, SoundHeard
from gateway.call.plan import CallPlan
from gateway.sip import call_audio

LOUD = 500
"""Amplitude, of 32,768 (-36 dBFS), above which a sample is not noise of a quiet line."""

LOUD_SHARE = 0.1
"""Share of loud samples in a second from which the caller is heard; speech has a third."""

FAINT = 100
"""The same (-50 dBFS) of a soft voice."""

FAINT_RANGE = 4.0
"""How many times the amplitude of its softer quarter the louder quarter of a second has, where it
is a voice: noise of a line, a fan or a road does not rise and fall by 12 dB."""

PAUSE_SECONDS = 0.4
"""Quiet for so long, what is loud next begins a new stretch: within words pauses are shorter."""


Found = DigitPressed | SoundHeard | BeepHeard | CallerSounds | CallerLevel


class LevelMeter:
    """Measures how loud a caller speaks: the level of the louder half of each second."""

    def __init__(self, codec: Codec) -> None:
        linear = np.frombuffer(codec.to_linear(bytes(range(256))), np.int16).astype(np.float64)
        self._squares = (linear / 32768) ** 2
        self._second = bytearray()

    def feed(self, audio: bytes) -> float | None:
        """Return the level (dBFS) of the louder half of a second, once the second is complete."""
        self._second += audio
        if len(self._second) < SAMPLE_RATE:
            return None
        power = self._squares[np.frombuffer(self._second[:SAMPLE_RATE], np.uint8)]
        del self._second[:SAMPLE_RATE]
        frames = np.sort(power.reshape(-1, FRAME_BYTES).mean(axis=1))
        return round(10 * float(np.log10(frames[len(frames) // 2 :].mean() + 1e-10)), 1)


class InboundAudioAnalyzer:
    """Detects sound in the caller's audio and, where the route asks, DTMF tones, beeps and
    music."""

    def __init__(self, plan: CallPlan) -> None:
        codec = plan.codec.narrow
        self._narrow = call_audio.narrowing() if plan.codec.wide else None
        """Makes the copy at 8 kHz that is looked at."""
        self._keys = InBandDetector(codec) if plan.dtmf.inband else None
        listens = plan.machine_detection.listens or plan.hold_wait.enabled
        self._sounds = Listener(codec) if listens else None
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
        """First loud audio of the present stretch, as it came from the network (s)."""
        self.until: float | None = None
        """The last."""

    def feed(self, audio: bytes, *, held: bool) -> Sequence[Found]:
        """Return what is detected in these bytes of the call's codec.

        On hold only DTMF tones are detected: the caller's side may play music.
        """
        if self._narrow is not None:
            audio = self._narrow(audio)
        loud = len(audio.translate(None, self._quiet))
        self._loud += loud
        self._second += audio
        if loud >= LOUD_SHARE * len(audio) and not held:
            now = time.monotonic()
            if self.until is None or now - self.until > PAUSE_SECONDS:
                self.since = now
            self.until = now
        if len(self._second) < SAMPLE_RATE and not self._searches:
            return ()
        return self._found(audio, held)

    def _soft_voice(self) -> bool:
        """Return whether a second that is not loud has a soft voice in it."""
        second = self._second
        if len(second.translate(None, self._still)) < LOUD_SHARE * len(second):
            return False
        frames = np.frombuffer(second, np.uint8)[: len(second) // FRAME_BYTES * FRAME_BYTES]
        levels = np.sort(self._amplitudes[frames].reshape(-1, FRAME_BYTES).mean(axis=1))
        quarter = len(levels) // 4
        return bool(levels[-quarter:].mean() >= FAINT_RANGE * levels[:quarter].mean())

    def _found(self, audio: bytes, held: bool) -> list[Found]:
        """Run the detectors on a piece of audio."""
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Analyse the caller's audio: the share of music in each second, and beeps.

Music holds its tones and hardly ever pauses; a voice glides, and is noise or silence in between.
So a moment counts as *held* when it sounds, is tonal (the energy stands in few frequencies) and has
the spectrum of 80 ms before. A *beep* is one tone, alone, that ends in silence. Measured figures
are in ``docs/dialplans.md``; a test holds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.audio.g711 import SAMPLE_RATE, Codec

Array = NDArray[np.float64]

WINDOW = 512
"""Samples looked at together, 64 ms: tells tones 30 Hz apart."""

HOP = 160
"""Samples from one look to the next, 20 ms."""

BLOCK = 10
"""Looks that are computed at once, 200 ms: a beep is known that late at worst."""

_LOOKS = SAMPLE_RATE // HOP
"""In a second."""

_LAG = 4
"""Looks back that a spectrum is compared with, 80 ms: a spoken sound is another one by then."""

_BAND = slice(10, 230)
"""156 to 3,594 Hz: what every telephone lets through, without the hum of mains."""

_FLOOR_DB = -45.0
"""Level below which audio is silence, of full scale."""

_RANGE_DB = 24.0
"""Level below the recent maximum that counts as a pause, as a radio behind a speaker does."""

_FADE_DB = 0.004
"""By which the loudest of late is forgotten with each look: 0.2 dB a second."""

_RISE_DB = 2.0
"""By which it is raised at most: a click is not what is loud."""

_FLAT = 0.25
"""Spectral flatness from which a sound is noise (white noise through G.711: 0.56)."""

_SAME = 0.7
"""Correlation of two spectra from which they are the same tones."""

_PURE = 0.9
"""Share of a beep's tone in the energy."""

_BEEP_HZ = (300.0, 2500.0)
_BEEP_LOOKS = (6, 100)
"""Duration of a beep in looks: 120 ms to 2 s; longer ones are tones of the network."""

_DRIFT_HZ = 20.0
_DROP_DB = 15.0
"""By which it is softer right after a beep."""

_CADENCE_LOOKS = 5 * _LOOKS
"""The same tone again in so many looks (5 s) is a busy tone's, and no beep."""


@dataclass(frozen=True, slots=True)
class Second:
    """One second of sound; parts of it, 0 to 1."""

    sounding: float
    held: float
    """Tones that stand, as music has them."""
    change: float
    """Difference of its tones from those of the second before; those of a hum are the same."""


@dataclass(frozen=True, slots=True)
class Beep:
    """One tone that has just ended."""

    hz: float
    ms: int


class Listener:
    """Listens to one call. Feed it all of the caller's audio, in order."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._bytes = bytearray()
        self.reset()

    def reset(self) -> None:
        """Forget what came before."""
        self._bytes.clear()
        self._tail: Array = np.zeros(WINDOW - HOP)
        self._spectra: Array = np.zeros((_LAG, _BAND.stop - _BAND.start))
        self._loudest = _FLOOR_DB
        self._looks = self._sounding = self._held = 0
        self._sum: Array = np.zeros(_BAND.stop - _BAND.start)
        self._before: Array | None = None
        self._tone: list[float] = []
        """Frequencies of the tone that is being heard, and its level."""
        self._tone_db = 0.0
        self._since_beep = _CADENCE_LOOKS
        self._beep_hz = 0.0

    def feed(self, audio: bytes) -> list[Second | Beep]:
        """Return what these G.711 bytes complete; usually nothing."""
        self._bytes += audio
        found: list[Second | Beep] = []
        size = HOP * BLOCK
        while len(self._bytes) >= size:
            pcm = self._codec.to_linear(bytes(self._bytes[:size]))
            del self._bytes[:size]
            found += self._block(np.frombuffer(pcm, np.int16) / 32768)
        return found

    def _block(self, samples: Array) -> list[Second | Beep]:
        joined = np.concatenate((self._tail, samples))
        self._tail = joined[-(WINDOW - HOP) :]
        frames = np.lib.stride_tricks.sliding_window_view(joined, WINDOW)[::HOP]
        power = np.abs(np.fft.rfft(frames * _SHAPE)) ** 2 + 1e-9
        newest = samples.reshape(BLOCK, HOP)
        levels = 10 * np.log10(np.mean(newest**2, axis=1) + 1e-10)

        band = power[:, _BAND]
        flat = np.exp(np.mean(np.log(band), axis=1)) / np.mean(band, axis=1)
        shape = np.sqrt(band)
        shape /= np.linalg.norm(shape, axis=1, keepdims=True)
        history = np.concatenate((self._spectra, shape))
        same = np.sum(shape * history[:BLOCK], axis=1)
        self._spectra = history[-_LAG:]

        peaks = np.argmax(band, axis=1) + _BAND.start
        found: list[Second | Beep] = []
        for look in range(BLOCK):
            level = float(levels[look])
            self._loudest = max(self._loudest - _FADE_DB, min(level, self._loudest + _RISE_DB))
            sounds = level > max(_FLOOR_DB, self._loudest - _RANGE_DB)
            self._sounding += sounds
            self._held += bool(sounds and flat[look] < _FLAT and same[look] > _SAME)
            if sounds:
                self._sum += shape[look]
            beep = self._look_for_beep(power[look], int(peaks[look]), level)
            if beep is not None:
                found.append(beep)
            self._looks += 1
            if self._looks == _LOOKS:
                found.append(self._second())
        return found

    def _second(self) -> Second:
        size = float(np.linalg.norm(self._sum))
        mean = self._sum / size if size else None
        change = 0.0
        if mean is not None and self._before is not None:
            change = 1.0 - float(mean @ self._before)
        second = Second(self._sounding / _LOOKS, self._held / _LOOKS, round(change, 3))
        self._before = mean
        self._sum = np.zeros_like(self._sum)
        self._looks = self._sounding = self._held = 0
        return second

    def _look_for_beep(self, power: Array, peak: int, level: float) -> Beep | None:
        self._since_beep += 1
        near = power[peak - 3 : peak + 4]
        hz = float(near @ np.arange(peak - 3, peak + 4) / near.sum()) * SAMPLE_RATE / WINDOW
        pure = (
            level > _FLOOR_DB
            and _BEEP_HZ[0] <= hz <= _BEEP_HZ[1]
            and near.sum() >= _PURE * power[2:].sum()
        )
        if pure and (not self._tone or abs(hz - self._tone[0]) <= _DRIFT_HZ):
            self._tone.append(hz)
            self._tone_db = max(self._tone_db, level) if len(self._tone) > 1 else level
            if len(self._tone) > _BEEP_LOOKS[1]:
                del self._tone[1:-1]  # a tone of the network; its length does not matter
                self._since_beep, self._beep_hz = 0, hz
            return None
        if not self._tone:
            return None
        if level > self._tone_db - _DROP_DB:
            self._tone = [hz] if pure else []
            return None
        looks, mean = len(self._tone), float(np.mean(self._tone))
        self._tone = []
        if looks < _BEEP_LOOKS[0]:
            return None
        again = self._since_beep < _CADENCE_LOOKS and abs(mean - self._beep_hz) <= _DRIFT_HZ
        self._since_beep, self._beep_hz = 0, mean
        return None if again else Beep(round(mean), looks * 1000 // _LOOKS)


_SHAPE = np.hanning(WINDOW)

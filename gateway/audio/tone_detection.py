# SPDX-License-Identifier: GPL-2.0-or-later
"""Find DTMF tones, beeps and music in the caller's audio.

DTMF (ITU-T Q.23) is found with the Goertzel algorithm, for callers whose side signals no digits. A
digit counts when both of its tones stand out of all else for some 40 ms, as ITU-T Q.24 asks of a
receiver: that is what tells a digit from speech.

Music holds its tones and hardly ever pauses; a voice glides, and is noise or silence in between.
So a moment counts as *held* when it sounds, is tonal (the energy stands in few frequencies) and has
the spectrum of 80 ms before. A *beep* is one tone, alone, that ends in silence.

Measured figures are in ``docs/transfer.md`` (DTMF) and ``docs/dialplans.md``; tests hold them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.audio import SAMPLE_RATE, Codec

_LOW = (697.0, 770.0, 852.0, 941.0)
_HIGH = (1209.0, 1336.0, 1477.0, 1633.0)
_KEYS = ("123A", "456B", "789C", "*0#D")

_DTMF_WINDOW = 240
"""Samples looked at together, 30 ms: as long as it takes to tell neighbours 73 Hz apart."""

_DTMF_HOP = 40
"""Samples from one look to the next."""

_LOOKS_TO_BEGIN = 4
"""Looks in a row with the same key make a key: all but the edges of 45 ms of tone."""

_LOOKS_TO_END = 4
"""Successive frames without the key after which it counts as pressed again."""

_LEAST_LEVEL = 10 ** (-36 / 20)
"""Lowest level of each tone, of full scale; receivers of networks work down to 6 dB above."""

_SHARE = 0.58
"""Least share of the two tones in the energy of a look; speech has energy elsewhere, too."""

_TWIST_DB = (9.0, 7.0)
"""How much stronger the low tone may be than the high one, and the other way round: a little more
than networks make of it."""

_NEXT_DB = 4.0
"""Level of each tone above the next strongest one of its group."""

_HARMONIC_DB = 14.0
"""How far the high one stands above its own second harmonic, which a voice has and a keypad has
not. (The harmonic of the low one lies among the high tones.)"""


def _matrix() -> NDArray[np.complex128]:
    """Return filters for the eight tones of DTMF and the harmonics of the high ones, a row each."""
    time = np.arange(_DTMF_WINDOW) / SAMPLE_RATE
    shape = np.hamming(_DTMF_WINDOW)
    tones = [*_LOW, *_HIGH, *(2 * hz for hz in _HIGH)]
    rows = [shape * np.exp(-2j * np.pi * hz * time) for hz in tones]
    return np.asarray(rows, np.complex128) * (2 / float(shape.sum()))


_FILTERS = _matrix()
_DTMF_SHAPE = np.hamming(_DTMF_WINDOW)
_SHAPE_POWER = float(np.mean(_DTMF_SHAPE**2))


class DtmfDetector:
    """Detects DTMF digits in one call's audio. Feed it all of the audio, in order."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._rest = np.zeros(0)
        self._key = ""
        """The key that is being heard."""
        self._candidate = ""
        self._looks = 0
        self._misses = 0

    def feed(self, audio: bytes) -> str:
        """Return the digits that are recognised with these G.711 bytes, usually none."""
        linear = np.frombuffer(self._codec.to_linear(audio), "<i2") / 32768
        samples = np.concatenate((self._rest, linear))
        found = []
        start = 0
        while start + _DTMF_WINDOW <= len(samples):
            key = self._step(_key_of(samples[start : start + _DTMF_WINDOW]))
            if key:
                found.append(key)
            start += _DTMF_HOP
        self._rest = samples[start:]
        return "".join(found)

    def _step(self, heard: str) -> str:
        """Return a DTMF digit that begins with this evaluation, or ""."""
        if heard and heard == self._key:
            self._misses = 0
            return ""
        if self._key:
            self._misses += 1
            if self._misses >= _LOOKS_TO_END:
                self._key = ""
        if heard and heard == self._candidate:
            self._looks += 1
        else:
            self._candidate, self._looks = heard, int(bool(heard))
        if self._looks < _LOOKS_TO_BEGIN:
            return ""
        self._key, self._misses, self._looks = heard, 0, 0
        return heard


def _key_of(samples: NDArray[np.float64]) -> str:
    """Return the DTMF digit whose two tones are in these samples, or "" (ITU-T Q.23, Q.24)."""
    power = np.abs(_FILTERS @ samples) ** 2
    low, high = power[:4], power[4:8]
    row, column = int(low.argmax()), int(high.argmax())
    strong_low, strong_high = float(low[row]), float(high[column])
    if min(strong_low, strong_high) < _LEAST_LEVEL**2:
        return ""
    twist = 10 * np.log10(strong_low / strong_high)
    if not -_TWIST_DB[1] <= twist <= _TWIST_DB[0]:
        return ""
    near = 10 ** (-_NEXT_DB / 10)
    if np.sort(low)[-2] > near * strong_low or np.sort(high)[-2] > near * strong_high:
        return ""
    total = 2 * float(np.mean((samples * _DTMF_SHAPE) ** 2)) / _SHAPE_POWER
    if strong_low + strong_high < _SHARE * total:
        return ""
    harmonic = 10 ** (-_HARMONIC_DB / 10)
    if power[8 + column] > harmonic * strong_high:
        return ""
    return _KEYS[row][column]


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
"""By which the maximum rises at most with each look, so that a click does not set it."""

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
class SecondOfAudio:
    """Features of one second of sound; the parts are 0 to 1."""

    sounding: float
    held: float
    """Tones that stand, as music has them."""
    change: float
    """Difference (0 to 1) from the tones of the second before; a hum has 0."""


@dataclass(frozen=True, slots=True)
class Beep:
    """One tone that has just ended."""

    hz: float
    ms: int


class ToneAnalyzer:
    """Finds beeps, and how musical each second is, in one call's audio. Feed it all, in order."""

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

    def feed(self, audio: bytes) -> list[SecondOfAudio | Beep]:
        """Return what these G.711 bytes complete; usually nothing."""
        self._bytes += audio
        found: list[SecondOfAudio | Beep] = []
        size = HOP * BLOCK
        while len(self._bytes) >= size:
            pcm = self._codec.to_linear(bytes(self._bytes[:size]))
            del self._bytes[:size]
            found += self._block(np.frombuffer(pcm, np.int16) / 32768)
        return found

    def _block(self, samples: Array) -> list[SecondOfAudio | Beep]:
        """Analyse a block of samples; return a beep or the figures of a second that it
        completes."""
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
        found: list[SecondOfAudio | Beep] = []
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

    def _second(self) -> SecondOfAudio:
        """Return the figures of a complete second."""
        size = float(np.linalg.norm(self._sum))
        mean = self._sum / size if size else None
        change = 0.0
        if mean is not None and self._before is not None:
            change = 1.0 - float(mean @ self._before)
        second = SecondOfAudio(self._sounding / _LOOKS, self._held / _LOOKS, round(change, 3))
        self._before = mean
        self._sum = np.zeros_like(self._sum)
        self._looks = self._sounding = self._held = 0
        return second

    def _look_for_beep(self, power: Array, peak: int, level: float) -> Beep | None:
        """Return a beep that ends with this block, or None."""
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

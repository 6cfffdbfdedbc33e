# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys heard in the audio: DTMF tones (ITU-T Q.23), found with the Goertzel algorithm.

For callers whose side signals no keys. A key counts when both of its tones stand out of all else
for some 40 ms, as ITU-T Q.24 asks of a receiver: that is what tells a key from speech. Measured
figures are in ``docs/transfer.md``; a test holds them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.audio.g711 import SAMPLE_RATE, Codec

_LOW = (697.0, 770.0, 852.0, 941.0)
_HIGH = (1209.0, 1336.0, 1477.0, 1633.0)
_KEYS = ("123A", "456B", "789C", "*0#D")

WINDOW = 240
"""Samples looked at together, 30 ms: as long as it takes to tell neighbours 73 Hz apart."""

HOP = 40
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
not. (That of the low one lies among the high tones.)"""


def _matrix() -> NDArray[np.complex128]:
    time = np.arange(WINDOW) / SAMPLE_RATE
    shape = np.hamming(WINDOW)
    tones = [*_LOW, *_HIGH, *(2 * hz for hz in _HIGH)]
    rows = [shape * np.exp(-2j * np.pi * hz * time) for hz in tones]
    return np.asarray(rows, np.complex128) * (2 / float(shape.sum()))


_FILTERS = _matrix()
_SHAPE = np.hamming(WINDOW)
_SHAPE_POWER = float(np.mean(_SHAPE**2))


class InBandDetector:
    """Finds the keys in one call's audio. Feed it all of it, in order."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._rest = np.zeros(0)
        self._key = ""
        """The key that is being heard."""
        self._candidate = ""
        self._looks = 0
        self._misses = 0

    def feed(self, audio: bytes) -> str:
        """The keys that are recognised with these G.711 bytes, as a rule none."""
        linear = np.frombuffer(self._codec.to_linear(audio), "<i2") / 32768
        samples = np.concatenate((self._rest, linear))
        found = []
        start = 0
        while start + WINDOW <= len(samples):
            key = self._step(_key_of(samples[start : start + WINDOW]))
            if key:
                found.append(key)
            start += HOP
        self._rest = samples[start:]
        return "".join(found)

    def _step(self, heard: str) -> str:
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
    total = 2 * float(np.mean((samples * _SHAPE) ** 2)) / _SHAPE_POWER
    if strong_low + strong_high < _SHARE * total:
        return ""
    harmonic = 10 ** (-_HARMONIC_DB / 10)
    if power[8 + column] > harmonic * strong_high:
        return ""
    return _KEYS[row][column]

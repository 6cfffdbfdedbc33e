# SPDX-License-Identifier: GPL-2.0-or-later
"""Sounds made for tests, 8 kHz, -1 to 1: tones, and music that was never played elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.audio import SAMPLE_RATE, Codec
from tests.support.rtp_end import RtpEnd, Sender

Array = NDArray[np.float64]

_SCALE = (262.0, 294.0, 330.0, 349.0, 392.0, 440.0, 494.0, 523.0)


def g711(samples: Array, codec: Codec) -> bytes:
    """As it goes over the line."""
    return codec.from_linear((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes())


def tone(hz: float, ms: int, level: float = 0.2) -> Array:
    """One tone; ``level`` is its amplitude."""
    time = np.arange(ms * SAMPLE_RATE // 1000) / SAMPLE_RATE
    wave: Array = level * np.sin(2 * np.pi * hz * time)
    return wave


def beep(end: RtpEnd, hz: float, ms: int) -> None:
    """Send a tone between pauses, at once: no busy machine makes a hole in it. The telephone's own
    stream ends with it."""
    pause = b"\xff" * (SAMPLE_RATE // 4)
    Sender(end).burst(pause + g711(tone(hz, ms), Codec.PCMU) + pause)


def melody(
    seconds: float,
    *,
    beat: float = 0.25,
    decay: float = 2.0,
    drums: bool = True,
    chords: bool = True,
) -> Array:
    """A melody of struck notes with overtones, a note each ``beat`` (s), the same each time."""
    dice = np.random.default_rng(1)
    sound = np.zeros(round((seconds + 5 * beat + 2) * SAMPLE_RATE))
    for number in range(round(seconds / beat)):
        start = round(number * beat * SAMPLE_RATE)
        note = 0.08 * _note(dice.choice(_SCALE), 1.5, decay)
        sound[start : start + len(note)] += note
        if chords and number % 4 == 0:
            for interval in (0.5, 0.63, 0.75):
                root = 262 * interval * dice.choice([1, 1.12, 1.33])
                chord = 0.05 * _note(root, beat * 5, 0.8)
                sound[start : start + len(chord)] += chord
        if drums and number % 2 == 0:
            time = np.arange(round(0.06 * SAMPLE_RATE)) / SAMPLE_RATE
            sound[start : start + len(time)] += (
                0.15 * dice.standard_normal(len(time)) * np.exp(-60 * time)
            )
    return sound[: round(seconds * SAMPLE_RATE)] * 0.6


def _note(hz: float, seconds: float, decay: float) -> Array:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * hz * n * time + n) / n for n in range(1, 6) if hz * n < 3800]
    shape: Array = np.exp(-time * decay) * np.minimum(1, time / 0.01)
    note: Array = np.sum(tones, axis=0) * shape
    return note

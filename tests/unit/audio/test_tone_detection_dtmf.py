# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys in the audio: found where a receiver has to find them, and not in speech or noise."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from gateway.audio import FRAME_BYTES, G711, Codec
from gateway.audio.tone_detection import DtmfDetector
from gateway.devtools.speech import synthesise

LOW, HIGH = (697, 770, 852, 941), (1209, 1336, 1477, 1633)
PAD = ("123A", "456B", "789C", "*0#D")
KEYS = "".join(PAD)
TEXT = (
    "The quick brown fox jumps over the lazy dog, and nobody at the front desk answers the phone "
    "before nine. Please hold the line while I look for your booking, number four two seven. "
)


def tone(key: str, ms: int, level_db: float, twist_db: float, off: float) -> NDArray[np.float64]:
    """A key as a keypad sends it; ``twist_db`` more of the low tone, frequencies ``off``."""
    row = next(index for index, keys in enumerate(PAD) if key in keys)
    column = PAD[row].index(key)
    time = np.arange(ms * 8) / 8000
    low, high = (np.sin(2 * np.pi * hz * (1 + off) * time) for hz in (LOW[row], HIGH[column]))
    level: float = 10 ** (level_db / 20)
    twist = 10 ** (twist_db / 40)
    return level * (low * twist + high / twist)


def heard(samples: NDArray[np.float64], codec: Codec = Codec.PCMU) -> str:
    """What is found when it comes frame by frame."""
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    audio = codec.from_linear(pcm)
    detector = DtmfDetector(codec)
    frames = range(0, len(audio) - FRAME_BYTES + 1, FRAME_BYTES)
    return "".join(detector.feed(audio[at : at + FRAME_BYTES]) for at in frames)


@pytest.mark.parametrize(
    ("ms", "gap_ms", "level_db", "twist_db", "off", "noise_db"),
    [
        (100, 100, -10, 0, 0, None),
        (50, 50, -10, 0, 0, None),
        (45, 45, -10, 0, 0, None),
        (80, 80, -3.5, 0, 0, None),
        (80, 80, -30, 0, 0, None),
        (80, 80, -10, 6, 0, None),
        (80, 80, -10, -4, 0, None),
        (80, 80, -10, 0, 0.015, None),
        (80, 80, -10, 0, -0.015, None),
        (80, 80, -10, 0, 0, 15),
    ],
)
@pytest.mark.parametrize("codec", list(G711))
def test_every_key_is_found_once(
    codec: Codec,
    ms: int,
    gap_ms: int,
    level_db: float,
    twist_db: float,
    off: float,
    noise_db: float | None,
) -> None:
    chance = np.random.default_rng(ms)
    keys = "".join(KEYS[i] for i in chance.integers(0, 16, 40)) + "5555" + KEYS
    parts = [np.zeros(163)]
    for key in keys:
        pause = np.zeros(gap_ms * 8 + int(chance.integers(0, 80)))
        parts += [tone(key, ms, level_db, twist_db, off), pause]
    samples = np.concatenate(parts)
    if noise_db is not None:
        samples = samples + chance.normal(0, 10 ** ((level_db - noise_db) / 20), len(samples))
    assert heard(samples, codec) == keys


def test_a_key_held_long_is_one_key() -> None:
    assert heard(np.concatenate([tone("8", 3000, -10, 0, 0), np.zeros(800)])) == "8"


def test_what_is_too_short_or_too_far_off_is_no_key() -> None:
    for ms, off in [(20, 0.0), (100, 0.035), (100, -0.035)]:
        parts = [np.concatenate([tone(key, ms, -10, 0, off), np.zeros(800)]) for key in KEYS]
        assert heard(np.concatenate(parts)) == ""


def test_one_tone_alone_is_no_key() -> None:
    time = np.arange(8000) / 8000
    for hz in (*LOW, *HIGH, 425, 350, 440):
        assert heard(0.3 * np.sin(2 * np.pi * hz * time)) == ""


def test_noise_and_speech_are_no_keys() -> None:
    assert heard(np.random.default_rng(3).normal(0, 0.1, 8000 * 10)) == ""
    for voice in ("marin", "cedar", "coral", "shimmer"):
        pcm, rate = synthesise(TEXT, voice)
        speech = soxr.resample(np.frombuffer(pcm, "<i2") / 32768, rate, 8000)
        assert len(speech) > 8000 * 5
        assert heard(speech) == "", voice


def test_a_key_over_speech_that_is_quieter() -> None:
    pcm, rate = synthesise(TEXT, "cedar")
    speech = soxr.resample(np.frombuffer(pcm, "<i2") / 32768, rate, 8000)[:8000]
    speech = speech / np.abs(speech).max() * 0.05
    speech[2000:2800] += tone("7", 100, -10, 0, 0)
    assert heard(speech) == "7"

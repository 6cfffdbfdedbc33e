# SPDX-License-Identifier: GPL-2.0-or-later
"""What the machine is told of a second of the caller's audio."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.audio.codecs import SAMPLE_RATE, Codec
from gateway.bridge.inbound_audio import InboundAudioAnalyzer
from gateway.call.inputs import CallerSounds
from gateway.call.plan import CallPlan
from gateway.devtools.emulator.speech import resample, synthesise

STEADY = np.random.default_rng(7).normal(0, 1, SAMPLE_RATE)
_PCM, _RATE = synthesise("I would like to change the address of my next delivery to another one.")
WORDS = np.frombuffer(resample(_PCM, _RATE, SAMPLE_RATE), np.int16)[: 3 * SAMPLE_RATE].astype(float)
FAINT = CallerSounds(faint=True)


def at(dbfs: float, samples: np.ndarray) -> np.ndarray:
    """The same at this level (RMS)."""
    factor = 32768 * 10 ** (dbfs / 20) / float(np.sqrt((samples**2).mean()))
    return samples * factor


@pytest.mark.parametrize("codec", [Codec.PCMU, Codec.PCMA])
@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (at(-20, WORDS), {CallerSounds()}),
        (at(-43, WORDS), {FAINT}),
        (at(-46, WORDS), {FAINT}),
        (at(-44, WORDS) + at(-60, np.resize(STEADY, len(WORDS))), {FAINT}),
        (at(-20, STEADY), {CallerSounds()}),
        (at(-42, STEADY), set()),
        (at(-42, STEADY) + at(-42, WORDS)[:SAMPLE_RATE] / 4, set()),
        (at(-65, WORDS), set()),
        (np.zeros(SAMPLE_RATE), set()),
    ],
)
def test_sounds_of_a_caller(codec: Codec, samples: np.ndarray, told: set[CallerSounds]) -> None:
    analyzer = InboundAudioAnalyzer(CallPlan("route", codec))
    audio = codec.from_linear(np.clip(samples, -32768, 32767).astype(np.int16).tobytes())
    found = {
        one
        for start in range(0, len(audio), 160)
        for one in analyzer.feed(audio[start : start + 160], held=False)
    }
    assert found == told
    assert not [*analyzer.feed(audio, held=True)]

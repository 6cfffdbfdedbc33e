# SPDX-License-Identifier: GPL-2.0-or-later
"""Sound for softphones, and what they heard: 16-bit PCM at 8 kHz."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.devtools.speech import PCMU, pattern

RATE = 8000
FRAME = 160
SILENCE_S = 120
"""Silence after everything that is said: baresip hangs up at the end of a WAV."""
_HEADER = 44

Samples = npt.NDArray[np.int16]


def write_wav(path: Path, pcm: bytes) -> None:
    """A WAV, 8 kHz mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm)


class Heard:
    """What baresip's sndfile module wrote so far; a call that is held is in several files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def files(self) -> list[Path]:
        """The recordings, oldest first."""
        found = self._folder.glob("dump-*-dec.wav")
        return sorted(found, key=lambda path: path.stat().st_ctime_ns)

    def pcm(self) -> bytes:
        """All of it. The length in the header is right only when the call is over."""
        return b"".join(path.read_bytes()[_HEADER:] for path in self.files)

    def samples(self) -> Samples:
        """All of it as numbers."""
        pcm = self.pcm()
        return np.frombuffer(pcm[: len(pcm) // 2 * 2], dtype="<i2")

    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples()) / RATE

    def ulaw(self) -> bytes:
        """All of it in u-law, as it came if it came in u-law."""
        return PCMU.encode(self.pcm(), RATE)

    def has(self, agent: bytes, *, but_first_ms: int = 60) -> bool:
        """Whether the agent's bytes were heard, unchanged and without a gap.

        A PBX may lose the first frames, which come while it joins both sides.
        """
        return agent[but_first_ms * 8 :] in self.ulaw()


def noise(seed: int, seconds: float) -> bytes:
    """U-law bytes of no order, to be known again; never the emulator's own."""
    return pattern(2_000_000 + seed, int(seconds * RATE))


def pcm(ulaw: bytes) -> bytes:
    """U-law as 16-bit PCM."""
    return PCMU.decode(ulaw)


def tone_share(samples: Samples, hz: float) -> float:
    """How much of the power is within 30 Hz of a tone, 0 to 1; 0 for silence."""
    if not len(samples) or not np.any(samples):
        return 0.0
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)
    return float(power[np.abs(frequencies - hz) < 30].sum() / power.sum())

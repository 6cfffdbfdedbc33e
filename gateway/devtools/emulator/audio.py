# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio formats of a realtime session: lengths, conversion, and test signals.

``audio/pcmu`` and ``audio/pcma`` are G.711 at 8 kHz, one byte a sample; ``audio/pcm`` is 16-bit
little-endian mono at 24 kHz.
"""

from __future__ import annotations

import audioop
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr

G711_RATE = 8000
PCM_RATE = 24000


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """One of the three formats of the protocol."""

    type: str
    rate: int
    bytes_per_ms: int

    def length_ms(self, byte_count: int) -> int:
        """Whole milliseconds in ``byte_count`` bytes."""
        return byte_count // self.bytes_per_ms

    def bytes_for(self, ms: float) -> int:
        """Bytes of ``ms`` milliseconds, whole samples."""
        width = 2 if self.type == "audio/pcm" else 1
        return int(ms * self.bytes_per_ms) // width * width

    def decode(self, data: bytes) -> bytes:
        """16-bit PCM at :attr:`rate` of ``data`` in this format (an odd last byte is left out)."""
        if self.type == "audio/pcmu":
            return audioop.ulaw2lin(data, 2)
        if self.type == "audio/pcma":
            return audioop.alaw2lin(data, 2)
        return data[: len(data) // 2 * 2]

    def encode(self, pcm: bytes, rate: int) -> bytes:
        """16-bit PCM of ``rate`` Hz in this format."""
        pcm = resample(pcm, rate, self.rate)
        if self.type == "audio/pcmu":
            return audioop.lin2ulaw(pcm, 2)
        if self.type == "audio/pcma":
            return audioop.lin2alaw(pcm, 2)
        return pcm

    def silence(self, ms: int) -> bytes:
        """``ms`` milliseconds of silence."""
        return self.encode(bytes(2 * self.rate * ms // 1000), self.rate)


PCMU = AudioFormat("audio/pcmu", G711_RATE, 8)
PCMA = AudioFormat("audio/pcma", G711_RATE, 8)
PCM = AudioFormat("audio/pcm", PCM_RATE, 48)
FORMATS = {format_.type: format_ for format_ in (PCMU, PCMA, PCM)}


def resample(pcm: bytes, rate: int, to_rate: int) -> bytes:
    """16-bit PCM of ``rate`` Hz as 16-bit PCM of ``to_rate`` Hz."""
    if rate == to_rate or not pcm:
        return pcm
    samples = np.frombuffer(pcm, dtype="<i2")
    converted: bytes = soxr.resample(samples, rate, to_rate).astype("<i2").tobytes()
    return converted


def pattern(seed: int, count: int) -> bytes:
    """``count`` bytes that depend on ``seed`` alone; a longer pattern begins with a shorter one.

    A test can tell from them that audio passed unchanged, and which part of it. 0x7F never
    occurs: u-law has two zeros, and a codec on the way may turn that one into the other (0xFF).
    """
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(count).replace(b"\x7f", b"\xff")


def tones(frequencies_hz: Sequence[float], seconds: float, level_dbfs: float) -> bytes:
    """16-bit PCM at 24 kHz: each frequency in turn for ``seconds``, ``level_dbfs`` at its peak."""
    count = round(seconds * PCM_RATE)
    time = np.arange(count) / PCM_RATE
    peak = 32767 * 10 ** (level_dbfs / 20)
    parts = [peak * np.sin(2 * np.pi * frequency * time) for frequency in frequencies_hz]
    return np.concatenate(parts).astype("<i2").tobytes() if parts else b""

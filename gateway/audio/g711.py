# SPDX-License-Identifier: GPL-2.0-or-later
"""G.711 (ITU-T G.711, RFC 3551 section 4.5.14): the two codecs and the sizes that follow from them.

One byte a sample, 8,000 samples a second: 20 ms are 160 bytes, a millisecond is 8.
"""

from __future__ import annotations

import audioop
from enum import StrEnum

SAMPLE_RATE = 8000
"""Samples, and G.711 bytes, a second."""

FRAME_MS = 20
"""The ptime this gateway works in, ms."""

FRAME_BYTES = SAMPLE_RATE * FRAME_MS // 1000
"""G.711 bytes in one frame."""

PCM_FRAME_BYTES = FRAME_BYTES * 2
"""The same frame as 16-bit linear samples in host byte order."""

BYTES_PER_MS = SAMPLE_RATE // 1000


class Codec(StrEnum):
    """A G.711 codec, by its SDP encoding name; logs and records have the same value."""

    PCMU = "PCMU"
    PCMA = "PCMA"

    @property
    def session_format(self) -> str:
        """The realtime protocol's name of the format: ``audio/pcmu`` or ``audio/pcma``."""
        return f"audio/{self.value.lower()}"

    @property
    def silence(self) -> bytes:
        """One byte of silence: linear zero in this codec."""
        return b"\xff" if self is Codec.PCMU else b"\xd5"

    def to_linear(self, audio: bytes) -> bytes:
        """G.711 bytes to 16-bit samples in host byte order (two bytes for each)."""
        if self is Codec.PCMU:
            return audioop.ulaw2lin(audio, 2)
        return audioop.alaw2lin(audio, 2)

    def from_linear(self, pcm: bytes) -> bytes:
        """16-bit samples in host byte order to G.711 bytes.

        Exact on what :meth:`to_linear` gave, but for u-law's two zeros: 0x7f comes back as 0xff.
        """
        if self is Codec.PCMU:
            return audioop.lin2ulaw(pcm, 2)
        return audioop.lin2alaw(pcm, 2)

# SPDX-License-Identifier: GPL-2.0-or-later
"""G.711 (ITU-T G.711, RFC 3551 section 4.5.14): the two codecs and the sizes that follow from them.

One byte a sample, 8,000 samples a second: 20 ms are 160 bytes, a millisecond is 8. G.722 (section
4.5.2) has as many bytes, each of them two samples at 16 kHz: queues and counts are the same.
"""

from __future__ import annotations

import audioop
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

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
    """A codec of calls, by its SDP encoding name; logs and records have the same value."""

    PCMU = "PCMU"
    PCMA = "PCMA"
    G722 = "G722"

    @property
    def narrow(self) -> Codec:
        """The G.711 codec for what is kept, measured or joined at 8 kHz."""
        return Codec.PCMU if self is Codec.G722 else self

    @property
    def session_format(self) -> str:
        """The realtime protocol's name of the format: ``audio/pcmu`` or ``audio/pcma``; it has none
        for G.722, which is never on the wire."""
        return f"audio/{self.value.lower()}"

    @property
    def silence(self) -> bytes:
        """One byte of silence: linear zero in this codec.

        For G.722 it is one that no encoder has: our decoder's memory passes it by.
        """
        return _SILENCE[self]

    def quieter_than(self, level: int) -> bytes:
        """The bytes of samples below an amplitude, of 32,768; of G.722 only its zero."""
        if self is Codec.G722:
            return self.silence
        linear = memoryview(self.to_linear(bytes(range(256)))).cast("h")
        return bytes(byte for byte, sample in enumerate(linear) if abs(sample) < level)

    def to_linear(self, audio: bytes) -> bytes:
        """G.711 bytes to 16-bit samples in host byte order (two bytes for each). Not for G.722."""
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


G711 = (Codec.PCMU, Codec.PCMA)
"""What calls speak unless a trunk's ``codecs`` say otherwise."""

_SILENCE = {Codec.PCMU: b"\xff", Codec.PCMA: b"\xd5", Codec.G722: b"\0"}


class G722Coder(Protocol):
    """One direction of G.722, whose bytes and samples go through it in their order."""

    def decode(self, audio: bytes) -> bytes:
        """16-bit samples at 16 kHz in host byte order, four bytes for each byte."""

    def encode(self, pcm: bytes) -> bytes:
        """G.722 of such samples; what is no whole pair of them is left out."""

    def narrow(self, audio: bytes) -> bytes:
        """The same as PCMU, one byte for each; what is above 4 kHz is left out."""


def _no_coder() -> G722Coder:
    raise RuntimeError("G.722 is coded by the SIP library, which is not loaded")


g722_coder: list[Callable[[], G722Coder]] = [_no_coder]
"""Makes a coder: the last one, which :mod:`gateway.sip.media.ports` adds when it is imported."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio of calls: their codecs, and the sizes that follow from them.

G.711 (RFC 3551 section 4.5.14) has one byte a sample and 8,000 samples a second: 20 ms are 160
bytes, a millisecond is 8. The queues of a call in G.722 (section 4.5.2) or Opus (RFC 7587) have
linear samples at 24 kHz instead, 48 bytes in a millisecond.
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
    """A codec of calls, by its SDP encoding name; logs and records have the same value."""

    PCMU = "PCMU"
    PCMA = "PCMA"
    G722 = "G722"
    OPUS = "opus"

    @property
    def wide(self) -> bool:
        """Whether its calls have sound above 4 kHz; their audio is linear samples at 24 kHz."""
        return self not in G711

    @property
    def rtpmap(self) -> str:
        """Value of its rtpmap in SDP (RFC 4566): encoding, clock rate and, if not 1, channels."""
        return "opus/48000/2" if self is Codec.OPUS else f"{self.value}/{SAMPLE_RATE}"

    @property
    def narrow(self) -> Codec:
        """The codec where only 8 kHz are used (recordings, analysis): itself, or PCMU."""
        return Codec.PCMU if self.wide else self

    @property
    def session_format(self) -> str:
        """The realtime protocol's name of the format: ``audio/pcmu`` or ``audio/pcma``; it has none
        for the others, which are never on the wire."""
        return f"audio/{self.value.lower()}"

    @property
    def bytes_per_ms(self) -> int:
        """Bytes of a call's audio in a millisecond."""
        return BYTES_PER_MS * 6 if self.wide else BYTES_PER_MS

    @property
    def frame_bytes(self) -> int:
        """Bytes of a call's audio in a frame."""
        return self.bytes_per_ms * FRAME_MS

    @property
    def silence(self) -> bytes:
        """One byte of silence: linear zero in this codec."""
        return _SILENCE.get(self, b"\0")

    def quieter_than(self, level: int) -> bytes:
        """Return the G.711 bytes whose samples are below ``level`` (of 32,768); for wide codecs the
        zero byte only."""
        if self.wide:
            return self.silence
        linear = memoryview(self.to_linear(bytes(range(256)))).cast("h")
        return bytes(byte for byte, sample in enumerate(linear) if abs(sample) < level)

    def to_linear(self, audio: bytes) -> bytes:
        """Decode G.711 bytes to 16-bit samples in host byte order."""
        if self is Codec.PCMU:
            return audioop.ulaw2lin(audio, 2)
        return audioop.alaw2lin(audio, 2)

    def from_linear(self, pcm: bytes) -> bytes:
        """Encode 16-bit samples in host byte order as G.711 bytes.

        Exact on what :meth:`to_linear` gave, but for u-law's two zeros: 0x7f comes back as 0xff.
        """
        if self is Codec.PCMU:
            return audioop.lin2ulaw(pcm, 2)
        return audioop.lin2alaw(pcm, 2)


G711 = (Codec.PCMU, Codec.PCMA)
"""Codecs of calls unless a trunk's ``codecs`` are others."""

_SILENCE = {Codec.PCMU: b"\xff", Codec.PCMA: b"\xd5"}

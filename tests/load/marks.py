# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio that says which frame it is: a call and a sequence number in the bytes of G.711 frames.

The gateway passes G.711 through unchanged but for u-law's 0x7f, which is used nowhere here. The
mark stands at the end of its frame: where it has arrived, all of the frame has.

Through G.722 no byte stays as it was. There a frame is a chord: each of sixteen tones is a bit,
and a frame is known by what is in its middle (:class:`Wide`).
"""

from __future__ import annotations

import binascii
import random
import re
from collections.abc import Iterator

import numpy as np
import pjsua2 as pj

FRAME = 160
"""G.711 bytes of 20 ms."""

_MAGIC = b"\x55\x2a\x6b\x13"
_CALL_NIBBLES, _SEQUENCE_NIBBLES = 3, 5
_SIZE = len(_MAGIC) + _CALL_NIBBLES + _SEQUENCE_NIBBLES
_PATTERN = re.compile(re.escape(_MAGIC) + b"[\x80-\x8f]{8}", re.S)
# Loud, and without a byte of the marks.
_SPEECH = bytes(random.Random(1).choices(range(0x90, 0xD0), k=FRAME - _SIZE))
SILENCE = b"\xff" * FRAME


def frame(call: int, sequence: int) -> bytes:
    """20 ms of u-law that say they are frame ``sequence`` of ``call``."""
    number = f"{call & 0xFFF:03x}{sequence & 0xFFFFF:05x}"
    return _SPEECH + _MAGIC + bytes(0x80 | int(digit, 16) for digit in number)


def speech(frames: int) -> bytes:
    """Audio without marks."""
    return (_SPEECH + _SPEECH[:_SIZE]) * frames


def find(audio: bytes) -> Iterator[tuple[int, int]]:
    """``(call, sequence)`` of each mark in ``audio``."""
    for match in _PATTERN.finditer(audio):
        digits = "".join(f"{byte & 0x0F:x}" for byte in match.group()[len(_MAGIC) :])
        yield int(digits[:_CALL_NIBBLES], 16), int(digits[_CALL_NIBBLES:], 16)


class Finder:
    """Finds marks in a stream that comes in pieces of any size."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, audio: bytes) -> list[tuple[int, int]]:
        """Marks that are complete with this piece."""
        whole = self._tail + audio
        found = list(find(whole))
        last = max((match.end() for match in _PATTERN.finditer(whole)), default=0)
        self._tail = whole[max(last, len(whole) - _SIZE + 1) :]
        return found


def decoded(encoded: str) -> bytes:
    """Audio out of an event's base64."""
    return binascii.a2b_base64(encoded)


class Wide:
    """The same for linear PCM at ``rate`` Hz: the end of a stream that comes in pieces of any size.

    Frames begin where the stream does. Four bits are of the call, ten of the sequence number (what
    is above goes by what came before), one is always there, and one makes their number even.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.samples = rate // 50
        times = np.arange(self.samples) / rate
        tones = 400 + 200 * np.arange(16)
        self._tones = np.cos(2 * np.pi * np.outer(tones, times) + np.arange(16)[:, None] ** 2)
        edge = np.minimum(1, np.minimum(times, times[::-1]) / 0.001)
        self._tones *= 1800 * edge
        # A coder is late by 1.4 ms, two by twice that: 15 ms are looked at, three waves of 200 Hz.
        self._first = int(rate * 0.004)
        middle = times[self._first : self._first + int(rate * 0.015)]
        self._waves = np.exp(-2j * np.pi * np.outer(middle, tones)) * 2 / len(middle)
        self._rest = b""
        self._latest = 0

    def frame(self, call: int, sequence: int) -> bytes:
        """20 ms that say they are frame ``sequence`` of ``call``."""
        bits = call & 15 | (sequence & 1023) << 4 | 1 << 14
        bits |= (bits.bit_count() & 1) << 15
        chosen = [tone for tone in range(16) if bits >> tone & 1]
        return np.asarray(self._tones[chosen].sum(axis=0)).astype("<i2").tobytes()

    def speech(self, frames: int) -> bytes:
        """Audio without marks: the tone that is in each of them is not."""
        return np.asarray(self._tones[:4].sum(axis=0)).astype("<i2").tobytes() * frames

    def feed(self, audio: bytes) -> list[tuple[int, int]]:
        """Marks of frames that are complete with this piece."""
        self._rest += audio
        size = 2 * self.samples
        found: list[tuple[int, int]] = []
        while len(self._rest) >= size:
            piece, self._rest = np.frombuffer(self._rest[:size], "<i2"), self._rest[size:]
            middle = piece[self._first :][: len(self._waves)]
            # No matrix product: its library would take all cores for the smallest one.
            heard = np.abs((middle[:, None] * self._waves).sum(axis=0))
            bits = sum(1 << tone for tone in range(16) if heard[tone] > 900)
            if bits >> 14 & 1 and not bits.bit_count() & 1:
                ahead = ((bits >> 4 & 1023) - self._latest + 512) % 1024 - 512
                self._latest += ahead
                found.append((bits & 15, self._latest))
        return found


class G722:
    """What a telephone in G.722 says and hears, frame by frame."""

    def __init__(self) -> None:
        self._says, self._hears = Wide(16000), Wide(16000)
        self._encoder, self._decoder = pj.NativeG722(), pj.NativeG722()

    def frame(self, call: int, sequence: int) -> bytes:
        """As :func:`frame`."""
        return bytes(self._encoder.encode(self._says.frame(call, sequence)))

    def find(self, payload: bytes) -> Iterator[tuple[int, int]]:
        """As :func:`find`, of payloads in their order."""
        yield from self._hears.feed(self._decoder.decode(payload))

    def speech(self, frames: int) -> bytes:
        """As :func:`speech`."""
        return bytes(self._encoder.encode(self._says.speech(frames)))

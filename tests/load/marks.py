# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio that says which frame it is: a call and a sequence number in the bytes of G.711 frames.

The gateway passes G.711 through unchanged but for u-law's 0x7f, which is used nowhere here. The
mark stands at the end of its frame: where it has arrived, all of the frame has.
"""

from __future__ import annotations

import binascii
import random
import re
from collections.abc import Iterator

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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The two laws of G.711: exact both ways but for u-law's second zero."""

from __future__ import annotations

import pytest

from gateway.audio import BYTES_PER_MS, FRAME_BYTES, FRAME_MS, G711, PCM_FRAME_BYTES, Codec

ALL = bytes(range(256))


def test_sizes() -> None:
    assert (FRAME_MS, FRAME_BYTES, PCM_FRAME_BYTES, BYTES_PER_MS) == (20, 160, 320, 8)


@pytest.mark.parametrize("codec", G711)
def test_every_byte_comes_back(codec: Codec) -> None:
    linear = codec.to_linear(ALL)
    assert len(linear) == 512
    expected = ALL.replace(b"\x7f", b"\xff") if codec is Codec.PCMU else ALL
    assert codec.from_linear(linear) == expected


@pytest.mark.parametrize(
    ("codec", "silence", "loudest", "name"),
    [
        (Codec.PCMU, b"\xff", (b"\x80", 32124), "audio/pcmu"),
        (Codec.PCMA, b"\xd5", (b"\xaa", 32256), "audio/pcma"),
    ],
)
def test_levels(codec: Codec, silence: bytes, loudest: tuple[bytes, int], name: str) -> None:
    assert codec.silence == silence
    assert codec.session_format == name
    quiet = memoryview(codec.to_linear(silence)).cast("h")[0]
    assert abs(quiet) <= 8
    byte, level = loudest
    assert memoryview(codec.to_linear(byte)).cast("h")[0] == level

# SPDX-License-Identifier: GPL-2.0-or-later
"""Opus by the system's libopus, as a telephone has it: packets of linear samples, and back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

RATE = 48000
STEP = RATE // 50
"""Samples, and RTP timestamp units, of 20 ms."""

_VOIP = 2048
_SET_BITRATE, _SET_INBAND_FEC, _SET_PACKET_LOSS_PERC, _SET_DTX = 4002, 4012, 4014, 4016


@cache
def _library() -> Any:
    library = ctypes.CDLL("libopus.so.0")
    for make in (library.opus_encoder_create, library.opus_decoder_create):
        make.restype = ctypes.c_void_p
    return library


class Encoder:
    """Encodes 48 kHz samples of one channel, or of two by turns.

    Args:
        ms: length of a packet; 2.5, 5, 10, 20, 40 or 60.
        fec: packets tell of the ones before them.
        dtx: nothing is made of silence.
    """

    def __init__(
        self, ms: float = 20, *, fec: bool = False, dtx: bool = False, channels: int = 1
    ) -> None:
        error = ctypes.c_int()
        made = _library().opus_encoder_create(RATE, channels, _VOIP, ctypes.byref(error))
        assert error.value == 0
        self._state, self._samples = ctypes.c_void_p(made), int(RATE * ms / 1000)
        self._bytes = self._samples * channels * 2
        for request, value in (
            (_SET_BITRATE, 32000),
            (_SET_INBAND_FEC, int(fec)),
            (_SET_PACKET_LOSS_PERC, 20 if fec else 0),
            (_SET_DTX, int(dtx)),
        ):
            assert _library().opus_encoder_ctl(self._state, request, ctypes.c_int(value)) == 0

    def encode(self, pcm: bytes) -> list[bytes]:
        """Packets of these samples; the last one is filled up."""
        made = []
        for at in range(0, len(pcm), self._bytes):
            piece = pcm[at : at + self._bytes]
            out = ctypes.create_string_buffer(1500)
            size = _library().opus_encode(
                self._state, piece + bytes(self._bytes - len(piece)), self._samples, out, 1500
            )
            assert size > 0
            made.append(out.raw[:size])
        return made


def decoded(packets: Sequence[bytes]) -> bytes:
    """48 kHz samples of one channel of these packets, in their order; asserts that each is one."""
    error = ctypes.c_int()
    state = ctypes.c_void_p(_library().opus_decoder_create(RATE, 1, ctypes.byref(error)))
    out, pcm = ctypes.create_string_buffer(2 * 6 * STEP), b""
    for packet in packets:
        samples = _library().opus_decode(state, packet, len(packet), out, 6 * STEP, 0)
        assert samples > 0
        pcm += out.raw[: 2 * samples]
    _library().opus_decoder_destroy(state)
    return pcm

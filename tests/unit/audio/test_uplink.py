# SPDX-License-Identifier: GPL-2.0-or-later
"""What the caller says, from the media clock to the event loop: in order, exact, bounded."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio.g711 import FRAME_BYTES, Codec
from gateway.sip.media.ports import MAX_UPLINK_FRAMES, CallAudio


def _frame(number: int) -> bytes:
    """A frame of G.711 that carries its number (0x7f avoided: it has no way back)."""
    return bytes([number // 100 + 0x80, number % 100, *([0x55] * (FRAME_BYTES - 2))])


def _numbers(audio: bytes) -> list[int]:
    frames = [audio[i : i + FRAME_BYTES] for i in range(0, len(audio), FRAME_BYTES)]
    assert all(frame == _frame((frame[0] - 0x80) * 100 + frame[1]) for frame in frames)
    return [(frame[0] - 0x80) * 100 + frame[1] for frame in frames]


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_frames_come_out_as_they_went_in(codec: Codec, count: int) -> None:
    uplink = CallAudio(codec, 1).uplink
    for number in range(count):
        uplink.push(codec.to_linear(_frame(number)))
    assert _numbers(uplink.drain()) == list(range(count))
    assert uplink.drain() == b""
    assert (uplink.frames, uplink.dropped) == (count, 0)


def test_a_loop_that_hangs_loses_the_oldest() -> None:
    uplink = CallAudio(Codec.PCMU, 1).uplink
    for number in range(MAX_UPLINK_FRAMES + 30):
        uplink.push(Codec.PCMU.to_linear(_frame(number)))
    assert uplink.dropped == 30
    assert _numbers(uplink.drain()) == list(range(30, MAX_UPLINK_FRAMES + 30))
    uplink.push(Codec.PCMU.to_linear(_frame(5)))
    assert _numbers(uplink.drain()) == [5]


@given(st.lists(st.integers(0, 40), max_size=12))
def test_order_and_count_at_any_rhythm(bursts: list[int]) -> None:
    uplink, sent, got = CallAudio(Codec.PCMA, 1).uplink, 0, list[int]()
    for burst in bursts:
        for _ in range(burst):
            uplink.push(Codec.PCMA.to_linear(_frame(sent)))
            sent += 1
        got += _numbers(uplink.drain())
    assert got == list(range(sent))
    assert uplink.dropped == 0


def test_every_frame_is_delivered_or_counted_while_two_threads_work() -> None:
    total = 12_000
    uplink = CallAudio(Codec.PCMU, 1).uplink
    frames = [Codec.PCMU.to_linear(_frame(number)) for number in range(total)]
    done = threading.Event()

    def push() -> None:
        for frame in frames:
            uplink.push(frame)
        done.set()

    thread = threading.Thread(target=push)
    got: list[int] = []
    thread.start()
    finished = False
    while not finished:
        finished = done.is_set()
        got += _numbers(uplink.drain())
    thread.join()
    assert len(got) + uplink.dropped == uplink.frames == total
    assert got == sorted(set(got))

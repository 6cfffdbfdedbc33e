# SPDX-License-Identifier: GPL-2.0-or-later
"""What the caller says, from pjmedia's threads to the event loop: exact, bounded, announced."""

from __future__ import annotations

import select
import threading

import pytest

from gateway.audio import FRAME_BYTES, G711, Codec
from gateway.sip.call_audio import (
    MAX_UPLINK_FRAMES,
    CallAudio,
    Source,
    note_ready,
    ready_fd,
    take_ready,
)


def _frame(number: int) -> bytes:
    """A frame of G.711 that carries its number (0x7f avoided: it has no way back)."""
    return bytes([number // 100 + 0x80, number % 100, *([0x55] * (FRAME_BYTES - 2))])


def _numbers(audio: bytes) -> list[int]:
    frames = [audio[i : i + FRAME_BYTES] for i in range(0, len(audio), FRAME_BYTES)]
    assert all(frame == _frame((frame[0] - 0x80) * 100 + frame[1]) for frame in frames)
    return [(frame[0] - 0x80) * 100 + frame[1] for frame in frames]


def _audio(codec: Codec = Codec.PCMU, source: Source = Source.BRIDGE) -> CallAudio:
    audio = CallAudio(codec, 1)
    audio.uplink.listen(source)
    return audio


@pytest.mark.parametrize("codec", G711)
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_frames_of_the_bridge_come_out_as_they_went_in(codec: Codec, count: int) -> None:
    uplink = _audio(codec).uplink
    for number in range(count):
        uplink.push(codec.to_linear(_frame(number)))
    assert _numbers(uplink.drain()) == list(range(count))
    assert uplink.drain() == b""
    assert uplink.counts.dropped_ms == 0


@pytest.mark.parametrize("source", [Source.BRIDGE, Source.PACKETS])
def test_a_loop_that_hangs_loses_the_oldest(source: Source) -> None:
    audio = _audio(source=source)
    for number in range(MAX_UPLINK_FRAMES + 30):
        if source is Source.BRIDGE:
            audio.uplink.push(Codec.PCMU.to_linear(_frame(number)))
        else:
            audio.queues.receive(20_000 * number, 1, number, 160 * number, _frame(number), 0)
    assert audio.uplink.counts.dropped_ms == 600
    assert _numbers(audio.uplink.drain()) == list(range(30, MAX_UPLINK_FRAMES + 30))


def test_every_frame_is_delivered_or_counted_while_two_threads_work() -> None:
    total = 12_000
    uplink = _audio().uplink
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
    assert len(got) + uplink.counts.dropped_ms // 20 == total
    assert got == sorted(set(got))


def _readable() -> bool:
    return bool(select.select([ready_fd()], [], [], 0)[0])


def test_calls_that_have_audio_are_announced_once_until_they_are_drained() -> None:
    take_ready()
    note_ready()
    calls = [_audio().uplink for _ in range(3)]
    assert not _readable()
    for uplink in (calls[0], calls[2], calls[0]):
        uplink.push(b"")
    assert _readable()
    note_ready()
    assert not _readable()
    assert take_ready() == [calls[0].id, calls[2].id]
    calls[0].push(b"")  # it has not been drained
    assert not _readable()
    assert len(calls[0].drain()) == 3 * FRAME_BYTES
    calls[0].push(b"")
    assert _readable()
    note_ready()
    assert take_ready() == [calls[0].id]

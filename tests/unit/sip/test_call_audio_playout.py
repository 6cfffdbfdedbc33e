# SPDX-License-Identifier: GPL-2.0-or-later
"""The playout queue: every frame is played or flushed, never both, never neither."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio import FRAME_BYTES, G711, Codec
from gateway.sip.call_audio import CallAudio, Playout


def _frames(first: int, count: int) -> bytes:
    """Frames of u-law that carry their numbers (0x80 to 0xff: they come back as they are)."""
    return b"".join(
        bytes([0x80 + n // 100 // 100, 0x80 + n // 100 % 100, 0x80 + n % 100]) + b"\xff" * 157
        for n in range(first, first + count)
    )


def _number(pcm: bytes) -> int:
    audio = Codec.PCMU.from_linear(pcm)
    assert len(audio) == FRAME_BYTES
    assert audio[3:] == b"\xff" * 157
    high, middle, low = (byte - 0x80 for byte in audio[:3])
    return (high * 100 + middle) * 100 + low


def _transitions(playout: Playout) -> list[bool]:
    found = []
    while (transition := playout.transition()) is not None:
        found.append(transition.playing)
    return found


@pytest.mark.parametrize("codec", G711)
def test_frames_are_played_as_they_came(codec: Codec) -> None:
    playout = CallAudio(codec, 10).playout
    audio = bytes(range(256)) + bytes(64)
    assert playout.put(audio) == 0
    assert (len(playout), playout.queued_ms) == (2, 40)
    pulled = [playout.pull() for _ in range(3)]
    assert pulled == [codec.to_linear(audio[:160]), codec.to_linear(audio[160:]), None]
    assert playout.frames_played == 2


def test_full_queue_refuses_all_of_a_put() -> None:
    playout = CallAudio(Codec.PCMU, 5).playout
    assert playout.put(_frames(0, 3)) == 0
    assert playout.put(_frames(3, 3)) == 3
    assert playout.frames_refused == 3
    assert playout.put(_frames(6, 2)) == 0
    assert [_number(playout.pull() or b"") for _ in range(5)] == [0, 1, 2, 6, 7]


def test_starts_and_stops_are_told_once_each() -> None:
    playout = CallAudio(Codec.PCMU, 100).playout
    assert playout.pull() is None
    assert _transitions(playout) == []
    playout.put(_frames(0, 2))
    playout.pull()
    playout.pull()
    assert _transitions(playout) == [True]
    playout.pull()
    playout.pull()
    assert _transitions(playout) == [False]
    playout.put(_frames(0, 1))
    playout.pull()
    playout.pull()
    assert _transitions(playout) == [True, False]


def test_an_answer_right_behind_a_flush_has_a_start_of_its_own() -> None:
    playout = CallAudio(Codec.PCMU, 100).playout
    playout.put(_frames(0, 5))
    playout.pull()
    assert _transitions(playout) == [True]
    assert playout.flush() == 4
    playout.put(_frames(10, 1))  # before the clock has seen the empty queue
    playout.pull()
    playout.pull()
    assert _transitions(playout) == [True, False]


def test_a_flush_is_no_end_that_was_heard() -> None:
    playout = CallAudio(Codec.PCMU, 100).playout
    playout.put(_frames(0, 5))
    playout.pull()
    playout.flush()
    playout.pull()
    assert _transitions(playout) == [True]
    assert playout.flush() == 0


def test_underruns_are_empty_queues_in_the_middle_of_a_part() -> None:
    playout = CallAudio(Codec.PCMU, 100).playout
    playout.expecting = True
    playout.put(_frames(0, 1))
    for _ in range(4):
        playout.pull()
    assert (playout.underruns, playout.underrun_frames) == (1, 3)
    playout.put(_frames(1, 1))
    playout.pull()
    playout.expecting = False
    playout.pull()
    playout.pull()
    assert (playout.underruns, playout.underrun_frames) == (1, 3)
    playout.expecting = True
    playout.put(_frames(2, 2))
    playout.pull()
    playout.flush()
    playout.pull()
    assert (playout.underruns, playout.underrun_frames) == (1, 3)
    assert playout.frames_played == 3


def test_a_pause_keeps_the_queue() -> None:
    playout = CallAudio(Codec.PCMU, 100).playout
    playout.expecting = True
    playout.pause(True)
    playout.put(_frames(0, 2))
    assert [playout.pull() for _ in range(3)] == [None] * 3
    assert (playout.underrun_frames, _transitions(playout)) == (0, [])
    playout.pause(False)
    assert _number(playout.pull() or b"") == 0


@given(st.lists(st.tuples(st.sampled_from(["put", "pull", "flush"]), st.integers(1, 12))))
def test_any_order_of_puts_pulls_and_flushes(steps: list[tuple[str, int]]) -> None:
    playout, queue, sent = CallAudio(Codec.PCMU, 30).playout, list[int](), 0
    refused = played = 0
    transitions: list[bool] = []
    for step, count in steps:
        if step == "put":
            expected = count if len(queue) + count > 30 else 0
            assert playout.put(_frames(sent, count)) == expected
            refused += expected
            if not expected:
                queue += range(sent, sent + count)
            sent += count
        elif step == "flush":
            assert playout.flush() == len(queue)
            queue.clear()
        else:
            for _ in range(count):
                pcm = playout.pull()
                assert (None if pcm is None else _number(pcm)) == (queue.pop(0) if queue else None)
                played += pcm is not None
                transitions += _transitions(playout)
    assert (playout.frames_refused, playout.frames_played, len(playout)) == (
        refused,
        played,
        len(queue),
    )
    # An end is told only of what had begun; after a flush a start follows a start.
    assert transitions[:1] != [False]
    assert all(a or b for a, b in pairwise(transitions))


@pytest.fixture
def _nervous_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_nervous_threads")
def test_pulled_and_flushed_are_what_was_put_while_two_threads_work() -> None:
    """A clock in its own thread, pulling while the loop puts and flushes: every flush exact."""
    playout = CallAudio(Codec.PCMU, 10_000).playout
    chance = random.Random(7)
    pulled: list[int] = []
    beats, ticked = threading.Semaphore(0), threading.Semaphore(0)
    over = threading.Event()

    def clock() -> None:
        while True:
            beats.acquire()
            if over.is_set():
                return
            pcm = playout.pull()
            if pcm is not None:
                pulled.append(_number(pcm))
            ticked.release()

    thread = threading.Thread(target=clock)
    thread.start()
    sent = flushed = cut_in_the_middle = 0
    rounds = 300
    try:
        for _ in range(rounds):
            base, before = sent, len(pulled)
            counts = [chance.randint(1, 20) for _ in range(chance.randint(1, 4))]
            ticks = chance.randint(1, sum(counts))
            beats.release(ticks)
            for count in counts:
                assert playout.put(_frames(sent, count)) == 0
                sent += count
            for _ in range(chance.randrange(ticks)):
                assert ticked.acquire(timeout=10)
                ticks -= 1
            # The clock has beats left, and goes on while this thread flushes.
            taken = playout.flush()
            flushed += taken
            for _ in range(ticks):
                assert ticked.acquire(timeout=10)
            # What the flush did not take, the clock has taken: the first ones, and all of them.
            assert pulled[before:] == list(range(base, sent - taken))
            cut_in_the_middle += 0 < taken < sent - base
    finally:
        over.set()
        beats.release()
        thread.join()
    assert len(pulled) + flushed == sent
    assert playout.frames_played == len(pulled)
    assert cut_in_the_middle > 0


@pytest.mark.usefixtures("_nervous_threads")
def test_a_flush_in_the_middle_of_a_pull_counts_no_frame_twice() -> None:
    """Both ends at the same few frames, thousands of times."""
    playout = CallAudio(Codec.PCMU, 10_000).playout
    stop = threading.Event()
    pulled = 0

    def clock() -> None:
        nonlocal pulled
        while not stop.is_set():
            pulled += playout.pull() is not None

    audio = _frames(0, 2)
    sent = flushed = 0
    thread = threading.Thread(target=clock)
    thread.start()
    try:
        for _ in range(100_000):
            playout.put(audio)
            flushed += playout.flush()
            sent += 2
    finally:
        stop.set()
        thread.join()
    assert pulled > 0
    assert pulled + flushed == sent
    assert playout.frames_played == pulled


@pytest.mark.parametrize("audio", [b"", bytes(FRAME_BYTES - 1)])
def test_less_than_a_frame_is_nothing_whatever_was_there_before(audio: bytes) -> None:
    """Before the first frame, between two, and behind the last."""
    playout = CallAudio(Codec.PCMU, 10).playout
    assert playout.put(audio) == 0
    assert len(playout) == 0
    playout.put(_frames(1, 1))
    assert playout.put(audio) == 0
    assert len(playout) == 1
    assert playout.flush() == 1
    assert playout.put(audio) == 0


def test_nothing_is_played_before_there_are_keys() -> None:
    """A pause of its own, beside that of the call."""
    playout = CallAudio(Codec.PCMU, 10).playout
    playout.await_keys(True)
    playout.expecting = True
    playout.put(_frames(1, 2))
    assert playout.pull() is None
    playout.pause(True)
    playout.await_keys(False)
    assert playout.pull() is None
    playout.pause(False)
    assert [_number(pcm) for pcm in (playout.pull(), playout.pull()) if pcm] == [1, 2]
    assert playout.underruns == 0


def test_audio_waits_for_the_end_of_a_sound_and_for_keys() -> None:
    playout = CallAudio(Codec.PCMU, 10).playout
    playout.await_sound(True)
    playout.await_keys(True)
    playout.put(_frames(1, 1))
    playout.await_keys(False)
    assert playout.pull() is None
    playout.await_keys(True)
    playout.await_sound(False)
    assert playout.pull() is None
    playout.await_keys(False)
    assert _number(playout.pull() or b"") == 1

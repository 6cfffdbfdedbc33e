# SPDX-License-Identifier: GPL-2.0-or-later
"""The tracker against a model that knows of every byte whose it is and whether it was heard."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from gateway.audio import FRAME_BYTES, G711, Codec
from gateway.call.conversation.playout_tracker import MAX_PARTS, Heard, PartKey, PlayoutTracker
from gateway.sip.call_audio import CallAudio

PAD = b"\xff"


def _audio(number: int, size: int) -> bytes:
    """Bytes that differ from their neighbours and from silence."""
    return bytes((number + i) % 251 for i in range(size))


@dataclass
class _Part:
    response: str
    received: int = 0
    heard: int = 0
    done: bool = False
    cut: bool = False


class LedgerAgainstModel(RuleBasedStateMachine):
    """The model keeps the queue as frames, each with its owner, and plays it itself."""

    keys = st.tuples(st.sampled_from(["a1", "a2", "b1"]), st.integers(0, 1))

    @initialize()
    def begin(self) -> None:
        self.tracker = PlayoutTracker(PAD)
        self.parts: dict[PartKey, _Part] = {}
        self.frames: list[tuple[PartKey, bytes]] = []
        self.owner: PartKey = ("", 0)
        self.open = b""
        self.sent = 0
        self.dropped = 0

    # ---- the model

    def _fill(self) -> int:
        if not self.open:
            return 0
        self.frames.append((self.owner, self.open))
        self.open = b""
        return 1

    def _expect(self, due: bytes, new: int) -> None:
        frames = self.frames[len(self.frames) - new :]
        assert due == b"".join(audio.ljust(FRAME_BYTES, PAD) for _, audio in frames)

    def _refuse(self, new: int) -> None:
        cut = {owner for owner, _ in self.frames[-new:]}
        del self.frames[-new:]
        self.tracker.on_refused(new)
        for key in cut:
            self.parts[key].cut = True
        if self.owner in cut:
            self.open = b""

    def _check(self, heard: list[Heard]) -> None:
        for one in heard:
            part = self.parts[(one.item_id, one.content_index)]
            assert one.response_id == part.response
            assert one.played_ms == part.heard // 8
            assert one.received_ms == part.received // 8
            assert one.played_ms <= one.received_ms
            assert one.complete == (part.done and part.heard == part.received)
            of_item = [part for key, part in self.parts.items() if key[0] == one.item_id]
            assert one.item_played_ms == sum(part.heard for part in of_item) // 8
            assert one.item_received_ms == sum(part.received for part in of_item) // 8
        keys = [(one.item_id, one.content_index) for one in heard]
        assert len(keys) == len(set(keys))

    # ---- what can happen

    @rule(key=keys, size=st.integers(0, 700), refuse=st.integers(0, 19))
    def delta(self, key: PartKey, size: int, refuse: int) -> None:
        response = key[0][0]
        audio = _audio(self.sent, size)
        self.sent += size
        due = self.tracker.receive(response, key, audio)
        part = self.parts.get(key)
        if part is not None and part.cut:
            self.dropped += size
            assert due == b""
            return
        new = 0
        if size:
            part = self.parts.setdefault(key, _Part(response))
            part.received += size
            part.done = False
            if self.owner != key:
                new += self._fill()
            self.owner = key
            self.open += audio
            while len(self.open) >= FRAME_BYTES:
                self.frames.append((key, self.open[:FRAME_BYTES]))
                self.open = self.open[FRAME_BYTES:]
                new += 1
        self._expect(due, new)
        if new and refuse == 0:
            self._refuse(new)

    @rule(key=keys)
    def done(self, key: PartKey) -> None:
        due = self.tracker.finish(key)
        if key in self.parts:
            self.parts[key].done = True
        self._expect(due, self._fill() if self.owner == key else 0)

    @rule(response=st.sampled_from("ab"))
    def response_done(self, response: str) -> None:
        due = self.tracker.finish_response(response)
        for part in self.parts.values():
            if part.response == response:
                part.done = True
        self._expect(due, self._fill() if self.owner[0][:1] == response else 0)

    @rule(frames=st.integers(1, 8))
    def play(self, frames: int) -> None:
        for _ in range(min(frames, len(self.frames))):
            owner, audio = self.frames.pop(0)
            self.parts[owner].heard += len(audio)

    @precondition(lambda self: not self.frames)
    @rule()
    def drained(self) -> None:
        refused = {
            key for key, part in self.parts.items() if part.cut and part.heard != part.received
        }
        heard = self.tracker.on_drained()
        self._check(heard)
        # Only what did not fit the queue is worth telling: all else was heard, or is still to come.
        assert {(one.item_id, one.content_index) for one in heard} <= refused
        assert not any(one.complete for one in heard)

    @rule()
    def flush(self) -> None:
        unplayed = len(self.frames)
        self.frames.clear()
        self.open = b""
        heard = self.tracker.flush(unplayed)
        self._check(heard)
        told = {(one.item_id, one.content_index) for one in heard}
        for key, part in self.parts.items():
            if not part.cut and not (part.done and part.heard == part.received):
                assert key in told
        for key in told:
            self.parts[key].cut = True
        assert self.tracker.flush(0) == []
        assert not self.tracker.unfinished

    @invariant()
    def dropped_bytes_are_counted(self) -> None:
        assert self.tracker.dropped_bytes == self.dropped
        for key in self.parts:
            assert self.tracker.knows(key[0])


LedgerAgainstModel.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
test_ledger_against_model: Any = LedgerAgainstModel.TestCase


def _heard(heard: list[Heard]) -> list[tuple[str, int, int, int, bool]]:
    return [
        (one.item_id, one.content_index, one.played_ms, one.received_ms, one.complete)
        for one in heard
    ]


def test_cut_in_the_middle() -> None:
    tracker = PlayoutTracker(PAD)
    assert len(tracker.receive("r", ("i", 0), bytes(1000))) == 960
    assert _heard(tracker.flush(4)) == [("i", 0, 40, 125, False)]
    assert tracker.receive("r", ("i", 0), bytes(500)) == b""
    assert tracker.dropped_bytes == 500
    assert tracker.finish(("i", 0)) == b""


@pytest.mark.parametrize("codec", [Codec.PCMU, Codec.OPUS])
def test_milliseconds_are_those_of_the_codec(codec: Codec) -> None:
    tracker = PlayoutTracker(codec.silence, codec.bytes_per_ms)
    tracker.receive("r", ("i", 0), bytes(10 * codec.bytes_per_ms))
    assert tracker.response_received_ms("r") == tracker.received_ms("i") == 10
    assert len(tracker.finish(("i", 0))) == codec.frame_bytes
    assert _heard(tracker.flush(0)) == [("i", 0, 10, 10, True)]
    assert tracker.heard_ms("r") == 10


def test_padding_does_not_count_as_heard() -> None:
    tracker = PlayoutTracker(PAD)
    assert tracker.receive("r", ("i", 0), bytes(170)) == bytes(160)
    assert tracker.finish(("i", 0)) == bytes(10) + PAD * 150
    assert _heard(tracker.flush(0)) == [("i", 0, 21, 21, True)]


def test_what_still_plays_of_a_session_that_is_over_is_not_taken_for_the_next_ones() -> None:
    """Also in the session after that."""
    tracker = PlayoutTracker(PAD)
    sent = b""
    for _session in range(3):
        sent += tracker.receive("r", ("i", 0), bytes(800))
        sent += tracker.receive("r", ("j", 0), bytes(200))
        assert (tracker.received_ms("i"), tracker.response_received_ms("r")) == (100, 125)
        sent += tracker.finish_all()
        assert (tracker.knows("i"), tracker.is_queued("r")) == (False, False)
        assert tracker.is_queued("past/r")
    assert len(sent) == 3 * (800 + 320)
    tracker.receive("r", ("i", 0), bytes(800))
    heard = tracker.flush(10)
    assert [one.past for one in heard] == [3, 3, 2, 2, 1, 1, 0]
    assert _heard(heard) == [
        *2 * (("i", 0, 100, 100, True), ("j", 0, 25, 25, True)),
        ("i", 0, 40, 100, False),
        ("j", 0, 0, 25, False),
        ("i", 0, 0, 100, False),
    ]
    tracker.finish_all()
    assert tracker.receive("r", ("i", 0), bytes(800)), "what was cut was of another session"


def test_a_part_that_is_interrupted_by_another_counts_as_one() -> None:
    tracker = PlayoutTracker(PAD)
    tracker.receive("r", ("i", 0), bytes(240))
    tracker.receive("s", ("j", 0), bytes(160))
    tracker.receive("r", ("i", 0), bytes(800))
    # 30 ms of i in two frames, 20 ms of j, and 60 of 100 ms of i in five frames.
    assert _heard(tracker.flush(2)) == [("i", 0, 90, 130, False), ("j", 0, 20, 20, False)]


def test_what_was_heard_before_a_drain_still_counts() -> None:
    tracker = PlayoutTracker(PAD)
    tracker.receive("r", ("i", 0), bytes(320))
    assert tracker.on_drained() == []
    assert tracker.unfinished
    tracker.receive("r", ("i", 0), bytes(320))
    assert _heard(tracker.flush(1)) == [("i", 0, 60, 80, False)]


def test_heard_to_the_end_is_nothing_to_tell() -> None:
    tracker = PlayoutTracker(PAD)
    tracker.receive("r", ("i", 0), bytes(320))
    tracker.finish(("i", 0))
    assert tracker.first_item == "i"
    assert tracker.on_drained() == []
    assert not tracker.unfinished
    assert tracker.first_item == ""
    assert tracker.flush(0) == []


def test_a_done_that_comes_after_the_last_frame_was_heard_settles_the_part() -> None:
    tracker = PlayoutTracker(PAD)
    tracker.receive("r", ("i", 0), bytes(320))
    tracker.on_drained()
    assert tracker.finish_response("r") == b""
    assert not tracker.unfinished


def test_an_answer_too_long_for_the_queue_is_told_when_the_rest_was_heard() -> None:
    tracker = PlayoutTracker(PAD)
    tracker.receive("r", ("i", 0), bytes(320))
    tracker.receive("r", ("i", 0), bytes(500))
    tracker.on_refused(3)
    assert tracker.receive("r", ("i", 0), bytes(160)) == b""
    assert _heard(tracker.on_drained()) == [("i", 0, 40, 102, False)]
    assert tracker.on_drained() == []
    assert not tracker.unfinished


def test_second_part_of_an_item_whose_first_was_heard() -> None:
    tracker = PlayoutTracker(PAD)
    tracker.receive("r", ("i", 0), bytes(160))
    tracker.finish(("i", 0))
    tracker.on_drained()
    tracker.receive("r", ("i", 1), bytes(160))
    tracker.receive("r", ("j", 0), bytes(160))
    one, two = tracker.flush(2)
    assert (one.item_id, one.played_ms, one.item_played_ms) == ("i", 0, 20)
    assert (two.item_id, two.played_ms, two.item_played_ms) == ("j", 0, 0)


def test_parts_of_a_long_call_are_bounded() -> None:
    tracker = PlayoutTracker(PAD)
    for number in range(3 * MAX_PARTS):
        key = (f"i{number}", 0)
        tracker.receive("r", key, bytes(200))
        tracker.finish(key)
        if number % 2:
            tracker.on_drained()
    assert tracker.knows(f"i{3 * MAX_PARTS - 1}")
    assert not tracker.knows("i0")
    # The oldest go first, but none that is still to be heard.
    tracker.receive("r", ("early", 0), bytes(320))
    for number in range(2 * MAX_PARTS):
        tracker.receive("r", (f"k{number}", 0), b"")
        tracker.receive("r", (f"k{number}", 0), bytes(160))
        tracker.finish((f"k{number}", 0))
        if number == 10:
            tracker.on_drained()
    assert ("early", 0, 40, 40, False) in _heard(tracker.flush(0))


@pytest.fixture
def _nervous_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_nervous_threads")
@pytest.mark.parametrize("codec", G711)
def test_truncation_is_what_a_real_clock_thread_has_taken(codec: Codec) -> None:
    """Tracker and playout queue together, a second thread pulling while this one puts and cuts."""
    chance = random.Random(11)
    tracker, playout = PlayoutTracker(codec.silence), CallAudio(codec, 10_000).playout
    taken: list[bytes] = []
    beats, ticked = threading.Semaphore(0), threading.Semaphore(0)
    over = threading.Event()

    def clock() -> None:
        while True:
            beats.acquire()
            if over.is_set():
                return
            pcm = playout.pull()
            if pcm is not None:
                taken.append(codec.from_linear(pcm))
            ticked.release()

    thread = threading.Thread(target=clock)
    thread.start()
    partly = 0
    rounds = 200
    try:
        for number in range(rounds):
            key = (f"item_{number}", number % 2)
            audio = bytes(chance.choice((3, 5, 7, 11)) for _ in range(chance.randint(800, 9000)))
            first = len(taken)
            ticks = chance.randint(2, len(audio) // FRAME_BYTES)
            beats.release(ticks // 2)
            at = 0
            while at < len(audio):
                step = chance.randint(1, 1200)
                assert playout.put(tracker.receive("r", key, audio[at : at + step])) == 0
                at += step
            if number % 3:
                assert playout.put(tracker.finish(key)) == 0
            beats.release(ticks - ticks // 2)
            for _ in range(chance.randrange(ticks)):
                assert ticked.acquire(timeout=10)
                ticks -= 1
            # The clock has some beats left, and goes on while this thread flushes.
            unplayed = playout.flush()
            (heard,) = tracker.flush(unplayed)
            for _ in range(ticks):
                assert ticked.acquire(timeout=10)
            whole = -(-len(audio) // FRAME_BYTES) if number % 3 else len(audio) // FRAME_BYTES
            assert len(taken) == first + whole - unplayed
            spoken = b"".join(taken[first:])[: len(audio)]
            assert audio.startswith(spoken)
            assert heard.played_ms == len(spoken) // 8
            assert heard.received_ms == len(audio) // 8
            partly += unplayed > 0
    finally:
        over.set()
        beats.release()
        thread.join()
    assert partly > 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""The native recorder of a call: both sides on the clock of playout, without a network."""

from __future__ import annotations

import struct
import time

from gateway.audio import Codec
from gateway.sip.call_audio import CallAudio, Recorder

FRAME = 160
QUIET = 0xFF


def tone(number: int) -> bytes:
    """A frame of PCMU that no other number below 100 has, and that no zero is in."""
    return bytes([0x80 + number % 100]) * FRAME


class Line:
    """A call's audio with a clock that stands until it is told to beat."""

    def __init__(self, max_frames: int = 1000) -> None:
        self.audio = CallAudio(Codec.PCMU, 1000)
        self.recorder: Recorder = self.audio.recorder
        self.now = 1_000_000
        self.seq = 0
        self.recorder.start(max_frames)
        self.audio.queues.restart(self.now)
        self.audio.queues.tick(self.now)

    def beat(self, said: bytes | None = None, heard: bytes | None = None) -> None:
        """20 ms: the caller's packet, then the clock, then what the stream sends."""
        if said is not None:
            self.audio.queues.receive(self.now, 7, self.seq, self.seq * FRAME, said, 0)
        self.seq += 1
        self.now += 20_000
        self.audio.queues.tick(self.now)
        if heard is not None:
            self.audio.queues.sent(Codec.PCMU.to_linear(heard))

    def frames(self) -> list[tuple[int, int]]:
        """The first byte of each side, of each recorded frame; all of a frame have to agree."""
        taken = self.recorder.take()
        assert len(taken) % (2 * FRAME) == 0
        found = []
        for at in range(0, len(taken), 2 * FRAME):
            left, right = taken[at : at + 320 : 2], taken[at + 1 : at + 320 : 2]
            assert len(set(left)) == len(set(right)) == 1
            found.append((left[0], right[0]))
        return found


def heard(frames: list[tuple[int, int]]) -> list[int]:
    return [right for _, right in frames]


def test_each_frame_that_was_sent_stands_at_its_beat() -> None:
    line = Line()
    # Two sentences with a pause, as an interruption leaves them.
    sent = [tone(n) if n < 20 or n > 31 else None for n in range(60)]
    for frame in sent:
        line.beat(heard=frame)
    line.recorder.end()
    found = heard(line.frames())
    assert found[1:] == [QUIET if frame is None else frame[0] for frame in sent]


def test_the_caller_stands_beside_what_they_heard() -> None:
    line = Line()
    for n in range(50):
        line.beat(said=tone(n), heard=tone(n))
    line.recorder.end()
    both = line.frames()
    assert [left for left, _ in both[:50]] == [tone(n)[0] for n in range(50)]
    assert [right for _, right in both[1:]] == [tone(n)[0] for n in range(50)]


def test_late_packets_of_the_caller_move_nothing() -> None:
    line = Line()
    waiting: list[bytes] = []
    for n in range(50):
        waiting.append(tone(n))
        if 20 <= n < 23:  # 60 ms late
            line.beat(heard=tone(n))
            continue
        at = line.seq
        for back, packet in enumerate(reversed(waiting[:-1]), 1):
            line.audio.queues.receive(line.now, 7, at - back, (at - back) * FRAME, packet, 0)
        line.beat(said=tone(n), heard=tone(n))
        waiting = []
    line.recorder.end()
    said = [left for left, _ in line.frames()]
    assert [said[n] for n in (*range(20), *range(30, 50))] == [
        tone(n)[0] for n in (*range(20), *range(30, 50))
    ]


def test_silenced_keeps_the_time_and_nothing_of_it() -> None:
    line = Line()
    for n in range(20):
        line.beat(said=tone(n), heard=tone(n))
    line.recorder.silence(True)
    for n in range(20, 40):
        line.beat(said=tone(n), heard=tone(n))
    line.recorder.silence(False)
    for n in range(40, 60):
        line.beat(said=tone(n), heard=tone(n))
    line.recorder.end()
    found = line.frames()
    secret = {tone(n)[0] for n in range(20, 40)}
    assert not secret & {byte for frame in found for byte in frame}
    assert found[-1][1] == tone(59)[0]
    assert line.recorder.counts.silenced >= 20


def test_a_writer_that_hangs_costs_frames_and_no_time() -> None:
    line = Line(max_frames=20)
    for n in range(60):
        line.beat(heard=tone(n))
    first = line.frames()
    for n in range(60, 90):
        line.beat(heard=tone(n))
        if n % 5 == 0:
            first += line.frames()
    line.recorder.end()
    found = heard(first + line.frames())
    assert found[81:91] == [tone(n)[0] for n in range(80, 90)]
    assert line.recorder.counts.dropped == sum(byte == QUIET for byte in found[1:])
    assert line.recorder.counts.frames == len(found)


def test_packets_of_40_ms() -> None:
    line = Line()
    linear = struct.unpack(f"={FRAME}h", Codec.PCMU.to_linear(tone(3)))
    for n in range(20):
        line.beat()
        if n % 2:
            line.audio.queues.sent(struct.pack("=320h", *linear, *linear))
    line.recorder.end()
    assert heard(line.frames())[1:] == [tone(3)[0]] * 20


def test_those_who_listen_in_have_a_queue_of_their_own() -> None:
    line = Line()
    for _ in range(20):
        line.beat(heard=tone(1))
    line.audio.monitor.start(100)
    for number in range(40):
        line.beat(heard=tone(number))
    line.audio.monitor.silence(True)
    for _ in range(20):
        line.beat(heard=tone(2))
    line.audio.monitor.end()
    both = line.audio.monitor.take()
    sides = [both[at + 1] for at in range(0, len(both), 320)]
    assert sides[-20:] == [QUIET] * 20, "silence is for those who listen only"
    assert [tone(number)[0] for number in range(30)] == [one for one in sides if one != QUIET][:30]
    line.audio.monitor.start(10)
    for _ in range(60):
        line.beat(heard=tone(3))
    counts = line.audio.monitor.counts
    assert (counts.dropped, len(line.audio.monitor.take())) == (counts.frames - 10, 10 * 320)
    line.recorder.end()
    assert heard(line.frames())[-15:] == [tone(3)[0]] * 15
    assert line.recorder.counts.dropped == 0


def test_levels_of_both_sides() -> None:
    audio = CallAudio(Codec.PCMU, 10)
    assert audio.levels == (0, 0)
    loud, soft = Codec.PCMU.to_linear(b"\x80")[:2], Codec.PCMU.to_linear(b"\xa0")[:2]
    now = time.monotonic_ns() // 1000
    audio.queues.receive(now, 7, 0, 0, b"\xa0" * FRAME, 0)
    audio.queues.sent(loud * FRAME)
    caller, agent = audio.levels
    assert (caller, agent) == tuple(struct.unpack("<hh", soft + loud))
    audio.queues.receive(now - 1_000_000, 7, 1, FRAME, b"\xa0" * FRAME, 0)
    assert audio.levels[0] == 0, "nothing has come for a while"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of the caller's packets on their way to the session, on a virtual clock."""

from __future__ import annotations

import random
import subprocess
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audio import G711, Codec
from gateway.sip.call_audio import CallAudio, Source

PCMU, PCMA, NO_AUDIO = 0, 1, -1
ROOT = Path(__file__).resolve().parents[3]
WAIT_MS = 60
"""The default of ``media.packet_wait_ms``."""


class Line:
    """A caller's stream. Times in ms; the media clock ticks every 20 ms, between packets."""

    def __init__(self, codec: Codec = Codec.PCMU, ptime: int = 20) -> None:
        self.audio = CallAudio(codec, 1)
        self.audio.uplink.listen(Source.PACKETS)
        self.audio.queues.restart(0)
        self.silence = codec.silence
        self.size = ptime * 8
        self.now = 0.0
        self.ssrc, self.seq, self.timestamp = 1, 1000, 5000
        self.sent = bytearray()
        self.received = bytearray()
        self.arrivals: list[tuple[float, int]] = []
        """When the session got how many bytes."""
        self._tick = 7.0
        self._random = random.Random(7)

    def until(self, now: float) -> None:
        """Let time pass."""
        while self._tick <= now:
            self.audio.queues.tick(round(self._tick * 1000))
            self._collect(self._tick)
            self._tick += 20
        self.now = now

    def _collect(self, at: float) -> None:
        audio = self.audio.uplink.drain()
        if audio:
            self.received += audio
            self.arrivals.append((at, len(audio)))

    def packet(self) -> tuple[int, int, int, bytes]:
        """The next one of the sender; its audio has no silence in it."""
        audio = bytes(self._random.choices(range(0x80, 0xD0), k=self.size))
        made = (self.ssrc, self.seq & 0xFFFF, self.timestamp & 0xFFFFFFFF, audio)
        self.seq += 1
        self.timestamp += self.size
        self.sent += audio
        return made

    def arrive(self, packet: tuple[int, int, int, bytes], law: int = PCMU) -> None:
        """Have it come now."""
        self.audio.queues.receive(round(self.now * 1000), *packet, law)
        self._collect(self.now)

    def say(self, packets: int) -> None:
        """In real time, from now."""
        for _ in range(packets):
            self.until(self.now + self.size / 8)
            self.arrive(self.packet())

    def marker(self, *, samples: int = 0) -> None:
        """A packet without audio: an event, or comfort noise."""
        self.arrive((self.ssrc, self.seq & 0xFFFF, self.timestamp & 0xFFFFFFFF, b""), NO_AUDIO)
        self.seq += 1
        self.timestamp += samples

    def counts(self, **expected: int) -> None:
        """Asserts these counts, and that all others that tell of trouble are 0."""
        found = asdict(self.audio.uplink.counts)
        quiet = {name: 0 for name in found if name != "packets"}
        assert {name: found[name] for name in quiet} == {**quiet, **expected}

    @property
    def said(self) -> bytes:
        """What was received, without silence."""
        return bytes(self.received).replace(self.silence, b"")


@pytest.mark.parametrize("ptime", [5, 10, 20, 30, 40, 60])
def test_packets_in_order_go_on_at_once_as_they_are(ptime: int) -> None:
    line = Line(ptime=ptime)
    line.say(100)
    assert line.received == line.sent
    assert line.arrivals == [((n + 1) * ptime, ptime * 8) for n in range(100)]
    line.counts()


@pytest.mark.parametrize("ptime", [5, 20, 60])
def test_one_length_after_another(ptime: int) -> None:
    line = Line(ptime=ptime)
    for length in (ptime, 20, ptime, 30, 10):
        line.size = length * 8
        line.say(10)
    assert line.received == line.sent
    line.counts()


@pytest.mark.parametrize("late_ms", [1, 25, 45, 59])
def test_a_packet_that_is_overtaken_is_put_into_its_place(late_ms: int) -> None:
    line = Line()
    line.say(5)
    line.until(line.now + 20)
    overtaken, next_one = line.packet(), line.packet()
    line.arrive(next_one)
    came = line.now
    line.until(came + late_ms)
    assert len(line.received) == 5 * 160
    line.arrive(overtaken)
    assert line.received == line.sent
    line.counts(reordered=1)


def test_what_stands_behind_a_gap_waits_for_so_long_and_no_longer() -> None:
    line = Line()
    line.say(5)
    line.until(line.now + 20)
    lost = line.packet()
    before = len(line.received)
    line.say(3)
    assert len(line.received) == before
    line.say(3)
    place = line.silence * 160
    assert line.received == line.sent.replace(lost[3], place)
    line.arrive(lost)
    line.say(1)
    assert line.received == line.sent.replace(lost[3], place)
    assert max(at for at, size in line.arrivals if size > 160) == 6 * 20 + 20 + WAIT_MS
    line.counts(lost=1, late=1, filled_ms=20)


def test_several_gaps_are_each_filled_in_their_place() -> None:
    line, lost = Line(), list[bytes]()
    line.say(10)
    for number in range(200):
        line.until(line.now + 20)
        packet = line.packet()
        if number % 7 in (2, 3, 5) and number < 190:
            lost.append(packet[3])
        else:
            line.arrive(packet)
    line.say(10)
    wanted = bytes(line.sent)
    for audio in lost:
        wanted = wanted.replace(audio, line.silence * 160)
    assert line.received == wanted
    line.counts(lost=len(lost), filled_ms=20 * len(lost))


def test_twice_is_once() -> None:
    line = Line()
    line.say(3)
    for _ in range(20):
        line.until(line.now + 20)
        packet = line.packet()
        line.arrive(packet)
        line.arrive(packet)
    held = [line.packet() for _ in range(3)]
    for packet in (held[2], held[2], held[1], held[0], held[1]):
        line.arrive(packet)
    assert line.received == line.sent
    line.counts(duplicates=22, reordered=2)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, 50), st.integers(0, 8))
def test_any_jitter_below_the_wait_changes_nothing(seed: int, jitter_ms: int, twice: int) -> None:
    """Packets come late by up to so much, and overtake each other; some come twice."""
    line, dice = Line(), random.Random(seed)
    coming = []
    for number in range(60):
        packet, due = line.packet(), 20.0 * (number + 1)
        late = dice.uniform(0, jitter_ms) if number else 0.0
        coming.append((due + late, number, packet))
        if dice.randrange(60) < twice:
            coming.append((due + late + dice.uniform(0, 50), number, packet))
    for at, _, packet in sorted(coming):
        line.until(at)
        line.arrive(packet)
    line.until(line.now + 30)
    assert line.received == line.sent
    counts = line.audio.uplink.counts
    assert (counts.lost, counts.late, counts.standing_in_ms, counts.filled_ms) == (0, 0, 0, 0)


def _goes_elsewhere(**changes: int) -> Callable[[Line], None]:
    def go(line: Line) -> None:
        for name, value in changes.items():
            setattr(line, name, getattr(line, name) + value)

    return go


def _at(**values: int) -> Callable[[Line], None]:
    def go(line: Line) -> None:
        for name, value in values.items():
            setattr(line, name, value)

    return go


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        *((_goes_elsewhere(timestamp=by), {"timestamp_jumps": 1})
          for by in (-480_000, -4000, -1, 4000, 240_000, 2**31 - 1, -(2**31))),
        *((_goes_elsewhere(timestamp=by), {}) for by in (1, 80, 159)),
        (_goes_elsewhere(ssrc=1), {"source_changes": 1}),
        (_goes_elsewhere(ssrc=1, seq=12_345, timestamp=99_999), {"source_changes": 1}),
        (_goes_elsewhere(ssrc=1, seq=-50), {"source_changes": 1}),
        (_goes_elsewhere(seq=20_000), {"source_changes": 1}),
        (_goes_elsewhere(seq=-20_000), {"source_changes": 1}),
        (_goes_elsewhere(seq=2000), {"source_changes": 1}),
        (_goes_elsewhere(seq=-30, timestamp=77), {"source_changes": 1}),
        *((_goes_elsewhere(seq=seq, timestamp=by), {"source_changes": 1})
          for seq in (-2, -30, -99) for by in (-480_000, -(2**30), -(2**31))),
        *((_goes_elsewhere(seq=seq, timestamp=160 * seq + by), {"source_changes": 1})
          for seq in (-2, -30, -99) for by in (0, -7, -80_000)),
        (_at(seq=0, timestamp=0), {"source_changes": 1}),
    ],
)  # fmt: skip
def test_numbers_that_go_elsewhere(change: Callable[[Line], None], counts: dict[str, int]) -> None:
    """What is said arrives whole, without a gap."""
    line = Line()
    line.say(100)
    change(line)
    line.say(100)
    assert line.received == line.sent
    line.counts(**counts)


def test_all_numbers_wrap() -> None:
    line = Line()
    line.seq, line.timestamp = 2**16 - 50, 2**32 - 50 * 160 - 7
    line.say(100)
    late = line.packet()
    line.say(1)
    line.arrive(late)
    assert line.received == line.sent
    line.counts(reordered=1)


def test_a_sender_of_timestamps_that_mean_nothing() -> None:
    line = Line()
    for number in range(200):
        line.timestamp = 4711 + number % 7 * 12_340
        line.say(1)
    assert line.received == line.sent


def test_two_sources_at_a_time_are_not_mixed() -> None:
    """The one that came last is followed, for as long as it speaks."""
    line, former = Line(), Line()
    line.say(10)
    former.seq, line.ssrc = 30_000, 2
    for _ in range(20):
        line.until(line.now + 20)
        line.arrive(line.packet())
        line.arrive(former.packet())
    assert line.received == line.sent
    line.counts(source_changes=1, foreign=20)


def test_a_packet_with_a_number_far_from_all_others_is_left_out() -> None:
    line = Line()
    line.say(10)
    line.arrive((1, 40_000, 5, b"\x90" * 160))
    line.say(10)
    assert line.received == line.sent
    line.counts(foreign=1)


def real_time(line: Line, begin: float, end: float) -> None:
    """Asserts that bytes came at 8 a millisecond between these times, and never in a burst."""
    got = [(at, size) for at, size in line.arrivals if begin < at <= end]
    assert max(size for _, size in got) <= 160
    assert abs(sum(size for _, size in got) - 8 * (end - begin)) <= 160


@pytest.mark.parametrize("pause_ms", [100, 200, 1000, 60_000])
@pytest.mark.parametrize("noise", [None, 0, 200])
def test_a_pause_is_silence_in_real_time(pause_ms: int, noise: int | None) -> None:
    """By silence suppression: the sequence goes on, the clock stands for the pause. With comfort
    noise (RFC 3389) or without."""
    line = Line()
    line.say(20)
    stopped = line.now
    for at in range(noise or pause_ms, pause_ms, noise or pause_ms):
        line.until(stopped + at)
        line.marker(samples=8 * (noise or 0))
    if noise is not None:
        line.marker()
    line.timestamp = 5000 + 20 * 160 + 8 * pause_ms
    line.until(stopped + pause_ms)
    assert len(line.received) <= 20 * 160 + 8 * (pause_ms - WAIT_MS + 20)
    if pause_ms > 200:
        real_time(line, stopped + WAIT_MS + 20, stopped + pause_ms)
    line.say(20)
    first, second = line.sent[: 20 * 160], line.sent[20 * 160 :]
    assert line.received == first + line.silence * (8 * pause_ms) + second
    counts = line.audio.uplink.counts
    assert counts.standing_in_ms + counts.filled_ms == pause_ms
    assert (counts.lost, counts.timestamp_jumps, counts.source_changes) == (0, 0, 0)


def test_a_sender_that_never_begins_or_stops_is_silence_in_real_time() -> None:
    line = Line()
    line.until(5000)
    real_time(line, WAIT_MS, 5000)
    line.say(10)
    stopped = line.now
    line.until(stopped + 5000)
    real_time(line, stopped + WAIT_MS + 20, stopped + 5000)
    assert line.said == line.sent


def test_a_stalled_network_loses_nothing() -> None:
    """Silence stands in while nothing comes; what was late is heard all the same, and what was too
    much is counted."""
    line = Line()
    line.say(50)
    line.until(line.now + 500)
    stalled = len(line.received)
    for _ in range(25):
        line.arrive(line.packet())
    line.say(50)
    assert line.said == line.sent
    inserted = len(line.received) - len(line.sent)
    assert 400 * 8 <= inserted == stalled - 50 * 160 <= 460 * 8
    line.counts(standing_in_ms=inserted // 8, overtaken_ms=inserted // 8)


@pytest.mark.parametrize("late_ms", [10, 40, 60, 75])
def test_no_silence_for_a_frame_that_is_only_late(late_ms: int) -> None:
    line = Line()
    line.say(10)
    for _ in range(10):
        line.until(line.now + late_ms)
        for _ in range(max(1, late_ms // 20)):
            line.arrive(line.packet())
    assert line.received == line.sent
    line.counts()


@pytest.mark.parametrize("per_burst", [2, 5, 10])
def test_a_sender_in_bursts_gets_no_silence_between_them(per_burst: int) -> None:
    line = Line()
    for _ in range(500):
        line.until(line.now + 20 * per_burst)
        for _ in range(per_burst):
            line.arrive(line.packet())
    first = line.sent[:160]
    assert line.received[line.received.index(first) :] == line.sent


@pytest.mark.parametrize("parts_per_million", [-500, -100, 100, 500])
def test_an_hour_of_a_clock_that_differs(parts_per_million: int) -> None:
    """Neither grows nor shrinks what is sent up, and a stop is noticed as early as at first."""
    line = Line()
    packets = 180_000
    step = 20 * (1 - parts_per_million / 1e6)
    queues = line.audio.queues
    audio, taken, tick = b"\x90" * 160, 0, 7.0
    for number in range(packets):
        now = (number + 1) * step
        while tick <= now:
            queues.tick(round(tick * 1000))
            tick += 20
        seq, stamp = number & 0xFFFF, number * 160 & 0xFFFFFFFF
        queues.receive(round(now * 1000), 1, seq, stamp, audio, PCMU)
        if number % 200 == 199:
            taken += len(line.audio.uplink.drain())
    assert taken == packets * 160
    line.counts()
    line._tick, line.now = tick, packets * step
    stopped = line.now
    line.until(stopped + 1000)
    assert line.arrivals[0][0] <= stopped + WAIT_MS + 45


def test_events_among_the_packets() -> None:
    """RFC 4733: they have numbers of their own; the audio's clock may stand still or go on."""
    line = Line()
    line.say(10)
    for _ in range(8):  # beside the audio
        line.marker()
        line.say(1)
    assert line.received == line.sent
    line.counts()
    before, spoken = line.now, len(line.sent)
    for _ in range(10):  # in its place, for 200 ms
        line.until(line.now + 20)
        line.marker()
    for _ in range(2):  # its end, twice more
        line.marker()
    line.timestamp += 1600
    line.say(10)
    assert line.said == line.sent
    assert len(line.received) - len(line.sent) == 1600
    assert line.now - before == 400
    assert line.received[:spoken] == line.sent[:spoken]
    assert line.audio.uplink.counts.lost == 0


@pytest.mark.parametrize("codec", G711)
def test_both_laws_in_one_stream(codec: Codec) -> None:
    """Bytes of the session's law pass as they are, the other's are translated."""
    line, spoken = Line(codec), bytes(range(160))
    own, (other,) = [PCMU, PCMA][codec is Codec.PCMA], [one for one in G711 if one is not codec]
    for law in (own, 1 - own, own):
        line.until(line.now + 20)
        line.arrive((1, line.seq, line.timestamp, spoken), law)
        line.seq += 1
        line.timestamp += 160
    assert line.received[:160] == line.received[320:] == spoken
    translated = np.frombuffer(codec.to_linear(bytes(line.received[160:320])), np.int16)
    wanted = np.frombuffer(other.to_linear(spoken), np.int16).astype(int)
    assert np.all(abs(translated - wanted) <= 8 + abs(wanted) / 16)


def test_packets_behind_a_gap_are_bounded() -> None:
    line = Line()
    line.say(1)
    for number in range(2000):
        line.arrive((1, line.seq + 2 * number + 1, 0, b"\x90" * 160))
    assert len(line.audio.uplink.drain()) + len(line.received) > 160 * 100


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 200),
            st.sampled_from([1, 2]),
            st.integers(0, 65535),
            st.integers(0, 2**32 - 1),
            st.integers(0, 400),
            st.sampled_from([PCMU, PCMA, NO_AUDIO]),
        ),
        max_size=60,
    )
)
def test_whatever_comes_time_is_not_run_ahead_of(packets: Iterable[Any]) -> None:
    """Of any numbers: silence is bounded by the time that has passed."""
    line, audio = Line(), 0
    for after, ssrc, seq, timestamp, size, law in packets:
        line.until(line.now + after)
        line.arrive((ssrc, seq, timestamp, b"\x90" * size), law)
        audio += size
    line.until(line.now + 500)
    counts = line.audio.uplink.counts
    assert len(line.received) + counts.dropped_ms * 8 <= audio + 8 * (2 * line.now + 1200 * 62)


def test_any_sender_in_cpp_with_sanitizers(tmp_path: Path) -> None:
    """The driver beside this file aborts where a rule is broken, or memory is misused."""
    program, native = tmp_path / "sequencer_fuzz", ROOT / "deploy" / "pjsua2" / "native"
    sources = [Path(__file__).with_name("sequencer_fuzz.cpp"), native / "sequencer.cpp"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    headers = [f"-I{folder}" for folder in (native, sysconfig.get_path("include"))]
    built = subprocess.run(
        ["g++", "-std=c++17", "-O1", "-g", *sanitize, *headers, *sources, "-o", program],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    first = random.randrange(1 << 31)
    run = subprocess.run([program, str(first), "200"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr

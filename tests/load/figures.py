# SPDX-License-Identifier: GPL-2.0-or-later
"""From times to figures: pure functions, and the dataclasses that a run's JSON is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

NS = 1e6
"""Nanoseconds in a millisecond."""

Sent = Iterable[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A set of times in ms; all zero when there were none."""

    count: int
    p50: float
    p95: float
    p99: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The quantiles of ``values`` (nearest rank)."""
        ordered = sorted(values)
        if not ordered:
            return cls(0, 0.0, 0.0, 0.0, 0.0)

        def rank(share: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

        return cls(len(ordered), rank(0.5), rank(0.95), rank(0.99), round(ordered[-1], 2))


NONE = Spread(0, 0.0, 0.0, 0.0, 0.0)


@dataclass(slots=True)
class Cpu:
    """Processor time over one window, percent of one core."""

    total: float
    threads: dict[str, float]


@dataclass(slots=True)
class Level:
    """Everything about one subject at one number of calls."""

    subject: str
    calls: int
    measured: int
    conditions: str = ""
    """What is not as usual; such levels have a table of their own."""
    cpu: list[Cpu] = field(default_factory=list)
    """One for each repetition."""
    helpers: dict[str, float] = field(default_factory=dict)
    """Percent of a core that the load itself took, by process."""
    foreign_cpu: list[float] = field(default_factory=list)
    """Percent of a core that everything else on the machine took, in each window."""
    load_average: float = 0.0
    up: Spread = NONE
    down: Spread = NONE
    down_steady: Spread = NONE
    spacing: Spread = NONE
    barge_in: Spread = NONE
    barge_packets: int = 0
    """Most packets of speech after one ``speech_started``."""
    barge_late_heard: int = 0
    """Packets of the audio that came after its response was cut."""
    truncation_ms: Spread = NONE
    """|audio_end_ms - what the phone heard|."""
    truncations: int = 0
    setup: Spread = NONE
    lost_up: int = 0
    lost_down: int = 0
    sent_up: int = 0
    sent_down: int = 0
    messages_up: float = 0.0
    """Messages a second and bulk session at the endpoint."""
    messages_down: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)
    underruns: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    tester_late: dict[str, float] = field(default_factory=dict)
    """p99 of how late the load's own clocks were, ms."""

    @property
    def cpu_per_call(self) -> float:
        """Median over the repetitions, percent of a core."""
        return median(one.total for one in self.cpu) / self.calls if self.cpu else 0.0

    @property
    def threads(self) -> dict[str, float]:
        """Median by thread, percent of a core in all."""
        names = {name for one in self.cpu for name in one.threads}
        return {
            name: round(median(one.threads.get(name, 0.0) for one in self.cpu), 2)
            for name in sorted(names)
        }


def delays_ms(
    sent: Sent, heard: Iterable[tuple[int, int, int]], window: tuple[int, int]
) -> tuple[list[float], int, int]:
    """Delays of the frames sent in ``window``; how many of them never came, and how many there are.

    ``sent`` has ``(call, sequence, at)``, ``heard`` the same at the other end.
    """
    left = {(call, number): at for call, number, at in sent if window[0] <= at < window[1]}
    total = len(left)
    found: list[float] = []
    for call, number, at in heard:
        sent_at = left.pop((call, number), None)
        if sent_at is not None:
            found.append((at - sent_at) / NS)
    return found, len(left), total


def spacing_ms(heard: Iterable[Sequence[int]], window: tuple[int, int]) -> list[float]:
    """Between packets of the same call, in the order they came: ``(call, at, …)``."""
    last: dict[int, int] = {}
    found: list[float] = []
    for call, at, *_rest in sorted(heard, key=lambda entry: entry[1]):
        if not window[0] <= at < window[1]:
            continue
        if call in last:
            found.append((at - last[call]) / NS)
        last[call] = at
    return found


@dataclass(slots=True)
class Interruptions:
    """What interruptions did, one entry for each."""

    last_ms: list[float] = field(default_factory=list)
    packets: list[int] = field(default_factory=list)
    late_heard: int = 0
    truncation_error_ms: list[float] = field(default_factory=list)


def interruptions(
    cut: Iterable[Sequence[Any]], heard: Iterable[Sequence[int]], commands: Iterable[Sequence[Any]]
) -> Interruptions:
    """How long speech went on after ``speech_started``, and whether the truncation is true.

    ``cut`` has ``(call, first, next, at, item)``: the answer was frames ``first`` to ``next`` and
    frame ``next`` was sent after the interruption. ``heard`` has ``(call, at, _, sequence)``,
    ``commands`` ``(call, type, at, {"audio_end_ms": …, "item_id": …})``.
    """
    by_call: dict[int, list[tuple[int, int]]] = {}
    for call, at, _sequence, mark in heard:
        if mark >= 0:
            by_call.setdefault(call, []).append((mark, at))
    said = {
        fields.get("item_id"): int(fields.get("audio_end_ms", 0))
        for _call, kind, _at, fields in commands
        if kind in ("conversation.item.truncate", "conversation.item.delete")
    }
    result = Interruptions()
    for call, first, following, at, item in cut:
        answer = [entry for entry in by_call.get(call, []) if first <= entry[0] < following]
        after = [when for _mark, when in answer if when > at]
        result.packets.append(len(after))
        result.last_ms.append(max((when - at) / NS for when in after) if after else 0.0)
        result.late_heard += sum(mark == following for mark, _when in by_call.get(call, []))
        if item in said:
            # Up to the last: of a chord after silence, the coder may miss the first one.
            frames = max((mark for mark, _when in answer), default=first - 1) + 1 - first
            result.truncation_error_ms.append(abs(said[item] - 20 * frames))
    return result

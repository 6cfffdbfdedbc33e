# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures that the tests find, kept for the end of the run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

FILE = Path("test-output/figures.txt")

found: dict[str, str] = {}
"""Values by their names."""


def show(name: str, value: str) -> None:
    """Keep a figure; shown in pytest's summary and written to ``test-output/figures.txt``."""
    found[name] = value


def shown() -> list[str]:
    """All of them, a line each."""
    return [f"{name}: {value}" for name, value in found.items()]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that ``percent`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def gaps(times: Iterable[Sequence[float]], since: float, until: float) -> list[float]:
    """Milliseconds between one packet's arrival and the next, of each call, from one Unix time (s)
    to another."""
    return [
        (after - before) * 1000
        for one in times
        for before, after in itertools.pairwise(one)
        if since <= before and after <= until
    ]


def spread(values: Sequence[float], unit: str) -> str:
    """p50, p95 and max in words."""
    return (
        f"p50 {percentile(values, 50):.1f} {unit}, p95 {percentile(values, 95):.1f} {unit}, "
        f"p99.9 {percentile(values, 99.9):.1f} {unit}, max {max(values):.1f} {unit} "
        f"of {len(values)}"
    )

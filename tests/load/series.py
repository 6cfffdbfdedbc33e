# SPDX-License-Identifier: GPL-2.0-or-later
"""A process over time: memory, descriptors, threads, processor time, calls; and a picture."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from . import proc


@dataclass(frozen=True, slots=True)
class Sample:
    """One look; memory in KiB, processor time in percent of a core since the look before."""

    seconds: float
    calls_done: int
    live: int
    rss_kib: int
    pss_kib: int
    descriptors: int
    threads: int
    cpu: float


class Series:
    """Looks at one process, as often as :meth:`look` is called."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._started = self._last = time.monotonic()
        self._cpu_ms = proc.cpu_ms(pid)
        self.samples: list[Sample] = []

    def look(self, calls_done: int, live: int) -> Sample:
        """Look now. Raises OSError when the process is gone."""
        usage, now = proc.look(self._pid), time.monotonic()
        used = (usage.cpu_ms - self._cpu_ms) / max(1e-3, now - self._last) / 10
        self._cpu_ms, self._last = usage.cpu_ms, now
        sample = Sample(
            round(now - self._started, 1),
            calls_done,
            live,
            usage.rss_kib,
            usage.pss_kib,
            usage.descriptors,
            usage.threads,
            round(used, 1),
        )
        self.samples.append(sample)
        return sample

    def early_and_late(self, what: str) -> tuple[float, float]:
        """The median of a field in the second fifth and in the last: does it grow?

        The first fifth fills pools and caches and is left out.
        """
        fifth = len(self.samples) // 5
        if fifth == 0:
            return 0.0, 0.0
        early = median(getattr(sample, what) for sample in self.samples[fifth : 2 * fifth])
        return float(early), float(
            median(getattr(sample, what) for sample in self.samples[-fifth:])
        )

    def as_json(self) -> list[dict[str, Any]]:
        """All samples."""
        return [asdict(sample) for sample in self.samples]

    def draw(self, path: Path, title: str) -> None:
        """Four curves over time, as PNG."""
        figure = Figure(figsize=(12, 7.5), layout="constrained")
        figure.suptitle(title)
        (memory, files), (calls, cpu) = figure.subplots(2, 2)
        at = [sample.seconds for sample in self.samples]
        memory.plot(at, [sample.rss_kib / 1024 for sample in self.samples], label="RSS")
        memory.plot(at, [sample.pss_kib / 1024 for sample in self.samples], label="PSS")
        memory.set_title("Memory, MiB")
        files.plot(at, [sample.descriptors for sample in self.samples], label="descriptors")
        files.plot(at, [sample.threads for sample in self.samples], label="threads")
        files.set_title("Descriptors and threads")
        calls.plot(at, [sample.live for sample in self.samples], label="live")
        calls.set_title("Calls")
        cpu.plot(at, [sample.cpu for sample in self.samples], label="% of a core")
        cpu.set_title("Processor time")
        for axes in (memory, files, calls, cpu):
            axes.set_xlabel("seconds")
            axes.grid(True, alpha=0.3)
            axes.legend()
            axes.set_ylim(bottom=0)
        figure.savefig(path, dpi=90)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel knows of a process: processor time by thread, memory, descriptors."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """One look at a process. Processor times in ms since its start, memory in KiB."""

    cpu_ms: float
    threads_ms: dict[int, float]
    names: dict[int, str]
    rss_kib: int
    pss_kib: int
    descriptors: int

    @property
    def threads(self) -> int:
        """How many there are."""
        return len(self.threads_ms)


def _ticks(stat: str) -> float:
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_MS


def _thread(folder: Path) -> float:
    # schedstat has nanoseconds where stat has hundredths of a second.
    try:
        return int((folder / "schedstat").read_text().split()[0]) / 1e6
    except (OSError, ValueError, IndexError):
        return _ticks((folder / "stat").read_text())


def cpu_ms(pid: int) -> float:
    """Processor time of all threads, those that ended included, at the kernel's tick of 10 ms."""
    return _ticks(Path(f"/proc/{pid}/stat").read_text())


def look(pid: int) -> Usage:
    """Everything. Raises OSError when the process is gone."""
    root = Path(f"/proc/{pid}")
    threads: dict[int, float] = {}
    names: dict[int, str] = {}
    for folder in (root / "task").iterdir():
        try:
            threads[int(folder.name)] = _thread(folder)
            names[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:
            continue  # a thread that has just ended
    memory = dict(re.findall(r"^(Rss|Pss):\s+(\d+)", (root / "smaps_rollup").read_text(), re.M))
    return Usage(
        cpu_ms=cpu_ms(pid),
        threads_ms=threads,
        names=names,
        rss_kib=int(memory["Rss"]),
        pss_kib=int(memory["Pss"]),
        descriptors=len(list((root / "fd").iterdir())),
    )


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]

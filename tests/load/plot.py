# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .figures import Level

_LINES: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.5}


def draw(path: Path, levels: list[Level]) -> None:
    """Processor time, delays and memory over the number of calls, as PNG."""
    gateways = [level for level in levels if level.subject == "gateway"]
    floors = [level for level in levels if level.subject == "floor"]
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    (cpu, delay), (wire, memory) = figure.subplots(2, 2)
    for name, group in (("gateway", gateways), ("pjsip alone (floor)", floors)):
        if group:
            calls = [level.calls for level in group]
            cpu.plot(calls, [level.cpu_per_call for level in group], label=name, **_LINES)
    cpu.set_title("Processor time of a call, % of a core")
    cpu.set_yscale("log")
    calls = [level.calls for level in gateways]
    for name in ("up", "down"):
        spreads = [level.up if name == "up" else level.down for level in gateways]
        (drawn,) = delay.plot(calls, [one.p50 for one in spreads], label=f"{name} p50", **_LINES)
        delay.plot(
            calls,
            [one.p99 for one in spreads],
            label=f"{name} p99",
            color=drawn.get_color(),
            linestyle="--",
        )
    delay.set_title("One-way delay, ms")
    wire.plot(calls, [level.spacing.p99 for level in gateways], label="spacing p99", **_LINES)
    wire.plot(calls, [level.barge_in.p99 for level in gateways], label="barge-in p99", **_LINES)
    wire.set_title("Frame spacing on the wire, and speech after speech_started, ms")
    for name, group in (("gateway", gateways), ("pjsip alone (floor)", floors)):
        if group:
            used = [level.memory["rss_kib"] / 1024 for level in group]
            memory.plot([level.calls for level in group], used, label=name, **_LINES)
    memory.set_title("Resident memory of the process, MiB")
    for axes in (cpu, delay, wire, memory):
        axes.set_xlabel("calls")
        axes.grid(True, alpha=0.3)
        axes.legend()
        if axes is not cpu:
            axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=90)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Endurance: ``python -m tests.load.soak``, and its variants ``--hold`` and ``--over-capacity``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from . import brief, held, machine
from .level import Say
from .series import Series
from .worker import ROOT, Failed


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--calls", type=click.IntRange(10), default=10_000, show_default=True)
@click.option("--rate", type=float, default=30.0, show_default=True, help="Calls a second.")
@click.option(
    "--beside",
    type=click.IntRange(0),
    default=110,
    show_default=True,
    help="Calls that stay while the short ones come and go.",
)
@click.option("--hold", type=click.IntRange(1), help="Instead: hold so many calls.")
@click.option("--minutes", type=float, default=60.0, show_default=True, help="How long to hold.")
@click.option(
    "--mode",
    type=click.Choice(["steady", "burst"]),
    default="burst",
    show_default=True,
    help="How the endpoint speaks while calls are held: in real time, or answers in bursts.",
)
@click.option("--over-capacity", is_flag=True, help="Instead: call a gateway that is full.")
@click.option(
    "--full", type=click.IntRange(1), default=50, show_default=True, help="Calls that fill it."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "bench-output",
    show_default="bench-output",
)
def main(
    calls: int,
    rate: float,
    beside: int,
    hold: int | None,
    minutes: float,
    mode: str,
    over_capacity: bool,
    full: int,
    output: Path,
) -> None:
    """Load one gateway process for long; exit 0 only if nothing failed for a reason of its own."""
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    name = "overload" if over_capacity else "hold" if hold else "soak"
    work = output / f"run-{name}"
    shutil.rmtree(work, ignore_errors=True)
    with console.status(name) as status:
        shown = 0

        def say(text: str) -> None:
            nonlocal shown
            status.update(text)
            if not console.is_terminal and shown % 20 == 0:
                console.print(f"  {text}")
            shown += 1

        try:
            result, series = _run(
                work, calls, rate, beside, hold, minutes, mode, over_capacity, full, say
            )
        except Failed as failure:
            console.print(f"[red]{name}: {failure}[/red]\nLogs of the run: {work}")
            raise SystemExit(1) from None
    title = f"{name}, {machine.describe()['processor']}"
    series.draw(output / f"{name}.png", title)
    document = {"machine": machine.describe(), **result.as_json(), "series": series.as_json()}
    (output / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for line in _lines(result, series):
        console.print(line)
    console.print(f"Saved in {output}: {name}.json, {name}.png")
    for problem in result.problems:
        console.print(f"[red]problem: {problem}[/red]")
    raise SystemExit(1 if result.problems else 0)


def _run(
    work: Path,
    calls: int,
    rate: float,
    beside: int,
    hold: int | None,
    minutes: float,
    mode: str,
    over_capacity: bool,
    full: int,
    say: Say,
) -> tuple[brief.Result | held.Result, Series]:
    if over_capacity:
        return held.overload(work, full, min(calls, 300), rate, say)
    if hold:
        return held.hold(work, hold, minutes, mode, say)
    return brief.run(work, calls, rate, beside, say)


def _lines(result: brief.Result | held.Result, series: Series) -> list[str]:
    samples = series.samples
    lines: list[Any] = []
    if isinstance(result, brief.Result):
        lines += [
            f"{result.calls} calls in {result.seconds:g} s, most at a time "
            f"{max(sample.live for sample in samples)}",
            f"phones: {result.phone}; SIPp: {result.sipp}",
            f"endings by the gateway's records: {result.endings}",
            f"what the sessions did: {result.sessions}",
            f"warnings and errors in its log: {result.log}",
            "descriptors {} before, {} after".format(*result.descriptors),
            "threads {} before, {} after".format(*result.threads),
        ]
    else:
        lines.append(f"{result.calls} calls; endings {result.endings}")
        if result.refused:
            lines.append(f"calls beyond capacity: {result.refused}")
        shown = (
            result.windows
            if len(result.windows) < 5
            else result.windows[:: len(result.windows) // 4]
        )
        for window in shown:
            lines.append(
                f"at {window.seconds:5.0f} s: up p50/p99 {window.up.p50}/{window.up.p99}, "
                f"down {window.down.p50}/{window.down.p99}, spacing p99 {window.spacing.p99} ms, "
                f"highest {window.spacing.highest}, "
                f"lost {window.lost_up} up, {window.lost_down} down of {window.sent}"
            )
        lines.append(f"underruns {result.underruns}")
    early, late = (value / 1024 for value in result.rss_kib)
    lines += [
        f"memory {samples[0].rss_kib / 1024:.1f} MiB at first; {early:.1f} in the second fifth of "
        f"the run, {late:.1f} in the last ({1024 * (late - early):+.0f} KiB)",
        "processor time {:.1f} % of a core in the second fifth, {:.1f} in the last".format(
            *result.cpu
        ),
    ]
    return lines


if __name__ == "__main__":
    main()

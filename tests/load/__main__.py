# SPDX-License-Identifier: GPL-2.0-or-later
"""``make bench``: figures of speed and memory, with the load and the floor in the same run."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from . import machine, report, setups, subject
from .figures import Level
from .level import QUICK, Conditions, GatewayLevel, Timing, run_floor
from .worker import ROOT, Failed

LEVELS = (1, 20, 50, 100, 200)
MOST = 1500
"""Asked of the library, which says how many of them it can have."""
QUICK_LEVELS = (1, 50)
CONDITIONS = (
    (20, Conditions(jitter_ms=20)),
    (20, Conditions(loss_percent=2)),
    (20, Conditions(ptime=60)),
    (1, Conditions(tls=True)),
    (100, Conditions(tls=True)),
    (200, Conditions(tls=True)),
    (100, Conditions(live=True)),
)
"""Levels of a whole run that are measured once more under other conditions, once."""


def capacity(folder: Path) -> tuple[int, dict[str, Any]]:
    """How many calls the installed pjsua2 carries, and what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    with subject.gateway(folder, 9, MOST) as gateway:
        return gateway.max_calls, gateway.pjsua2


def levels_for(wanted: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The levels that this pjsua2 can carry; where none is left, all that it can."""
    fitting = tuple(sorted({calls for calls in wanted if calls <= most}))
    return fitting if len(fitting) == len(set(wanted)) else tuple(sorted({*fitting, most}))


def _prefer(nice: int) -> None:
    """Raise the priority of this process and its children, and of their scheduling group.

    Where Linux groups processes by session (sched_autogroup), a nice value counts within the group
    only; the group is put back as it was at the end.
    """
    if nice == 0:
        return
    group = Path("/proc/self/autogroup")
    try:
        os.nice(nice)
        if group.exists():
            before = group.read_text().rpartition(" ")[2].strip()
            group.write_text(str(nice))
            atexit.register(group.write_text, before)
    except OSError as error:
        raise click.UsageError(f"--nice: {error}") from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--calls", "wanted", type=click.IntRange(1), multiple=True, help="Levels to run.")
@click.option("--quick", is_flag=True, help="Two levels, once: about a minute.")
@click.option("--repetitions", type=click.IntRange(1), help="How often each window is measured.")
@click.option(
    "--mode",
    type=click.Choice(["steady", "burst"]),
    default="steady",
    show_default=True,
    help="How sessions speak: a delta every 20 ms, or answers of 200 ms deltas five times as fast.",
)
@click.option(
    "--ptime",
    type=click.Choice(["20", "40", "60"]),
    default="20",
    show_default=True,
    help="Length of the measured telephones' packets, ms.",
)
@click.option("--loss", type=click.FloatRange(0, 50), default=0.0, help="Their loss, percent.")
@click.option(
    "--jitter", type=click.FloatRange(0, 200), default=0.0, help="Their delay, 0 to so many ms."
)
@click.option("--tls", is_flag=True, help="Have the sessions on wss://, with a CA of the run's.")
@click.option("--live", is_flag=True, help="Have Live sessions: an endless track each way.")
@click.option(
    "--codec",
    type=click.Choice(["pcmu", "g722"]),
    default="pcmu",
    show_default=True,
    help="Of all calls; sessions of G.722 are in 24 kHz PCM.",
)
@click.option(
    "--record",
    type=click.Choice(["wav", "wav+age", "wav_pcm", "opus", "opus+age"]),
    default=None,
    help="Record every call so; with +age encrypted.",
)
@click.option("--no-floor", is_flag=True, help="Leave pjsip's own loop-back out.")
@click.option("--no-setup", is_flag=True, help="Leave set-up time and calls per second out.")
@click.option(
    "--nice",
    type=click.IntRange(-20, 0),
    default=0,
    help="Priority of all processes of the run on a machine that has other work; needs root.",
)
@click.option("--docs", is_flag=True, help="Put the figures into docs/performance.md as well.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "bench-output",
    show_default="bench-output",
    help="Where text, JSON, plot and the logs of the run go.",
)
def main(
    wanted: tuple[int, ...],
    quick: bool,
    repetitions: int | None,
    mode: str,
    ptime: str,
    loss: float,
    jitter: float,
    tls: bool,
    live: bool,
    codec: str,
    record: str | None,
    no_floor: bool,
    no_setup: bool,
    nice: int,
    docs: bool,
    output: Path,
) -> None:
    """Measure the gateway and pjsip by itself under the same calls on this machine."""
    console = Console(highlight=False)
    console.width = max(console.width, report.WIDTH)
    timing = QUICK if quick else Timing()
    if repetitions is not None:
        timing = Timing(repetitions, timing.warm_up, timing.steady, timing.probe, timing.barge)
    conditions = Conditions(int(ptime), loss, jitter, tls, live, codec, record or "")
    whole = not wanted and not quick and conditions == Conditions()
    work = output / "run"
    shutil.rmtree(work, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    done: list[Level] = []
    rates: list[setups.Rate] = []
    failed = False
    _prefer(nice)
    try:
        most, pjsua2 = capacity(work / "capacity")
    except Failed as failure:
        console.print(f"[red]bench: {failure}[/red]")
        raise SystemExit(1) from None
    chosen = levels_for(wanted or (QUICK_LEVELS if quick else LEVELS), most)
    facts = {**machine.describe(), "pjsua2": pjsua2, "capacity": most, "nice": nice}
    report.head(console, facts, chosen)
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(f"  {text}")

        try:
            for calls in chosen:
                if not no_floor:
                    done.append(run_floor(work / f"floor-{calls}", calls, timing, say))
                    report.line(console, done[-1])
                folder = work / f"gateway-{calls}"
                done.append(GatewayLevel(folder, calls, timing, say, mode, conditions).run())
                report.line(console, done[-1])
            for number, (calls, other) in enumerate(CONDITIONS if whole else ()):
                folder, once = work / f"other-{number}", replace(timing, repetitions=1)
                done.append(GatewayLevel(folder, calls, once, say, mode, other).run())
                report.line(console, done[-1])
            if not no_setup:
                rates = setups.run(work / "setups", most, quick, say)
        except (Failed, OSError) as failure:
            # What was measured until then is still worth its while.
            console.print(f"[red]bench: {failure}[/red]\nLogs of the run: {work}")
            failed = True
    result = {
        "machine": facts,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started),
        "timing": asdict(timing),
        "mode": mode,
        "conditions": asdict(conditions),
        "levels": [
            {**asdict(level), "cpu_per_call": level.cpu_per_call, "threads": level.threads}
            for level in done
        ],
        "setup": [asdict(rate) for rate in rates],
    }
    (output / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    report.write(console, output, facts, done, rates, docs=docs and not failed)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Two workers behind Kamailio, with more and more calls: ``python -m tests.load.workers``.

Kamailio (``deploy/kamailio``) spreads SIPp's calls over both. Of the measured calls each worker has
two. It ends at the number of calls at which they are the first to suffer: a frame is lost, or comes
later than a listener forgives.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.interop.kamailio import Kamailio

from . import figures, machine, sipp, subject
from .figures import Spread
from .level import RAMP_RATE, CpuWindow, wait_for
from .worker import ROOT, Failed, Worker

MEASURED = 2
"""Measured calls of each worker."""
LATE_UP_MS, LATE_SPACING_MS = 60.0, 40.0
"""Of what goes up 95 % come sooner, and of two packets down 99 % are closer together: a packet is
waited for as long as the first, and a telephone has one frame in hand."""


@dataclass(frozen=True, slots=True)
class Step:
    """What was measured at a number of calls."""

    calls: int
    on_each: tuple[int, ...]
    cpu: tuple[float, ...]
    """Percent of a core, of each worker."""
    machine_cpu: float
    """Percent of a core that the rest of the machine took, the load among it."""
    up: Spread
    down: Spread
    spacing: Spread
    lost_up: int
    lost_down: int
    sent: int

    @property
    def suffers(self) -> bool:
        """Whether somebody hears it."""
        late = self.up.p95 > LATE_UP_MS or self.spacing.p99 > LATE_SPACING_MS
        return bool(self.lost_up or self.lost_down) or late

    def __str__(self) -> str:
        cpu = " + ".join(f"{one:.0f}" for one in self.cpu)
        spread = " + ".join(str(one) for one in self.on_each)
        return (
            f"{self.calls:4} calls ({spread})  CPU {cpu} % of a core, others {self.machine_cpu:.0f}"
            f"  up {self.up.p50:.0f}/{self.up.p95:.0f}/{self.up.p99:.0f}"
            f"  down {self.down.p50:.0f}/{self.down.p95:.0f}/{self.down.p99:.0f}"
            f"  spacing p99 {self.spacing.p99:.1f}"
            f"  lost {self.lost_up} / {self.lost_down} of {self.sent}"
        )


class Site:
    """Kamailio, its workers, who calls and who answers."""

    def __init__(self, stack: ExitStack, folder: Path, most: int) -> None:
        self._stack, self._folder, self._calls = stack, folder, 0
        self.endpoint = stack.enter_context(
            Worker.python("endpoint", "tests.load.endpoint", folder)
        )
        self.phone = stack.enter_context(Worker.python("phone", "tests.load.phone", folder))
        self.endpoint.ask("bulk", mode="steady")
        port = self.endpoint.ask("where")["port"]
        self.workers = []
        for number in range(2):
            place = folder / f"worker-{number}"
            place.mkdir()
            self.workers.append(stack.enter_context(subject.gateway(place, port, most + MEASURED)))
        runner = stack.enter_context(asyncio.Runner())
        proxy = ("127.0.0.1", subject.first_port())
        wheres = [(f"{host}:{at}", most) for host, at in (one.address for one in self.workers)]
        self._proxy = Kamailio(folder / "kamailio", proxy, wheres)
        stack.callback(lambda: runner.run(self._proxy.stop()))
        runner.run(self._proxy.start())
        self._runner = runner

    def measured(self) -> None:
        """Place the measured calls, straight to each worker."""
        self.phone.ask("forget")
        for worker in self.workers:
            self.phone.ask("call", gateway=list(worker.address), count=MEASURED, user="measured")
        wanted = MEASURED * len(self.workers)
        wait_for("measured calls are heard", lambda: len(self._count()["calls"]) == wanted)
        self.endpoint.ask("steady", on=True)

    def add(self, calls: int) -> None:
        """So many calls more, through Kamailio."""
        self._calls += calls
        callers = sipp.Callers(
            f"bulk-{self._calls}",
            self._folder,
            self._proxy.address,
            "bulk",
            sipp.holding(sipp.sound(self._folder)),
            calls=calls,
            rate=RAMP_RATE,
            limit=calls,
        )
        self._stack.callback(callers.stop, 0.0)
        wait_for(
            f"{self._calls} calls are up",
            lambda: self._count()["live"].get("bulk", 0) >= self._calls,
            calls / RAMP_RATE + 30,
        )

    def look(self, seconds: float) -> Step:
        """Measure for a while."""
        self._take()
        start = time.monotonic_ns()
        windows = [CpuWindow(worker.pid, {}) for worker in self.workers]
        time.sleep(seconds)
        taken = [window.close() for window in windows]
        end = time.monotonic_ns()
        time.sleep(0.3)
        said, heard = self._take()
        span = (start, end)
        back = [(call, mark, at) for call, at, _n, mark in heard["heard"]]
        up, lost_up, sent_up = figures.delays_ms(heard["sent"], said.get("heard", ()), span)
        down, lost_down, sent_down = figures.delays_ms(said.get("said", ()), back, span)
        cpu = tuple(round(one[0].total, 1) for one in taken)
        return Step(
            calls=self._calls + MEASURED * len(self.workers),
            on_each=tuple(one.load for one in self._runner.run(self._proxy.targets())),
            cpu=cpu,
            machine_cpu=round(taken[0][2] - sum(cpu[1:]), 1),
            up=Spread.of(up),
            down=Spread.of(down),
            spacing=Spread.of(figures.spacing_ms(heard["heard"], span)),
            lost_up=lost_up,
            lost_down=lost_down,
            sent=sent_up + sent_down,
        )

    def _count(self) -> dict[str, Any]:
        return self.endpoint.ask("count")

    def _take(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.endpoint.ask("take"), self.phone.ask("take")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--step", type=click.IntRange(2), default=100, show_default=True, help="More calls.")
@click.option("--most", type=click.IntRange(2), default=1000, show_default=True, help="In all.")
@click.option("--seconds", type=float, default=6.0, show_default=True, help="Of each measurement.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "bench-output",
    show_default="bench-output",
    help="Where workers.json and the logs of the run go.",
)
def main(step: int, most: int, seconds: float, output: Path) -> None:
    """Find the number of calls at which audio first suffers: two workers, Kamailio before them."""
    console = Console(highlight=False, soft_wrap=True)
    folder = output / "workers"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    steps: list[Step] = []
    trouble = ""
    with ExitStack() as stack:
        try:
            site = Site(stack, folder, most)
            site.measured()
            while not steps or (not steps[-1].suffers and steps[-1].calls < most):
                site.add(step)
                time.sleep(2.0)
                steps.append(site.look(seconds))
                console.print(str(steps[-1]))
        except (Failed, AssertionError) as failure:
            trouble = str(failure)
            console.print(f"[red]{trouble}[/red]")
    if steps and steps[-1].suffers:
        console.print(f"Audio first suffers at {steps[-1].calls} calls.")
    elif steps:
        console.print(f"Audio does not suffer at {steps[-1].calls} calls.")
    result = {"machine": machine.describe(), "trouble": trouble, "steps": list(map(asdict, steps))}
    (output / "workers.json").write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(1 if trouble or not steps else 0)


if __name__ == "__main__":
    main()

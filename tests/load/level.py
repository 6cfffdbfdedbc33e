# SPDX-License-Identifier: GPL-2.0-or-later
"""One subject at one number of calls: load it, look at it, take it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.interop.lab.keys import self_signed

from . import figures, machine, proc, sipp, subject
from .figures import Cpu, Level, Spread
from .worker import Failed, Worker

RAMP_RATE = 25.0
"""New calls a second while a level fills up."""
READY_SECONDS = 30.0
MAX_MEASURED = 4

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each part of a repetition lasts, seconds."""

    repetitions: int = 3
    warm_up: float = 2.0
    steady: float = 5.0
    probe: float = 3.0
    barge: float = 4.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """What lies between the gateway and both of its sides; the first three are of the measured
    telephones' RTP."""

    ptime: int = 20
    loss_percent: float = 0.0
    jitter_ms: float = 0.0
    tls: bool = False
    """Sessions are on ``wss://``."""
    live: bool = False
    """Sessions are Live ones."""
    codec: str = "pcmu"
    """Or ``g722``: of all calls."""
    record: str = ""
    """Format in which every call is recorded; ``+age`` behind it: encrypted."""

    def __str__(self) -> str:
        parts = (
            "calls in G.722" if self.codec == "g722" else "",
            "Live sessions" if self.live else "",
            "sessions through TLS" if self.tls else "",
            f"packets of {self.ptime} ms" if self.ptime != 20 else "",
            f"{self.loss_percent:g} % loss" if self.loss_percent else "",
            f"{self.jitter_ms:g} ms jitter" if self.jitter_ms else "",
            f"all recorded as {self.record}" if self.record else "",
        )
        return ", ".join(part for part in parts if part)

    @property
    def network(self) -> dict[str, float]:
        """As the telephones take it."""
        return {
            "ptime": float(self.ptime),
            "loss_percent": self.loss_percent,
            "jitter_ms": self.jitter_ms,
            "g722": float(self.codec == "g722"),
        }


QUICK = Timing(repetitions=1, warm_up=1.5, steady=4.0, probe=3.0, barge=3.0)

FAULTS = {
    "gateway.unhandled",
    "gateway.calls_not_ended",
    "call.internal_error",
    "call.leg_timeout",
    "sip.callback_failed",
    "sip.turn_failed",
    "sip.call_stuck",
    "sip.thread_stuck",
    "session.handler_failed",
    "session.reader_failed",
    "records.dropped",
}
"""Log events of the gateway that are defects, whoever is at the other end."""


def measured_of(calls: int) -> int:
    """How many of the calls are measured ones; the rest are SIPp's."""
    return min(MAX_MEASURED, max(1, calls // 5))


def wait_for(what: str, ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    """Wait for a condition of the load; raises Failed, naming it, when it does not come."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


class CpuWindow:
    """Processor time of a subject, of its load, and of everything else, over a while."""

    def __init__(self, pid: int, helpers: dict[str, int]) -> None:
        self._pid, self._helpers = pid, helpers
        self._at = time.monotonic()
        self._before = proc.look(pid)
        self._busy = machine.busy_ms()
        self._helped = {name: proc.cpu_ms(pid) for name, pid in helpers.items()}

    def close(self) -> tuple[Cpu, dict[str, float], float, proc.Usage]:
        """By thread, by helper, of the rest (percent of a core), and the subject as it is now."""
        after = proc.look(self._pid)
        busy = machine.busy_ms() - self._busy
        percent = 0.1 / (time.monotonic() - self._at)
        threads: dict[str, float] = {}
        main = after.names.get(self._pid, "")
        for thread, used in after.threads_ms.items():
            name = after.names[thread]
            if thread == self._pid:
                name = "event loop"
            elif name == main:
                name = "sip"
            spent = (used - self._before.threads_ms.get(thread, 0.0)) * percent
            threads[name] = threads.get(name, 0.0) + spent
        helped = {
            name: (proc.cpu_ms(pid) - self._helped[name]) * percent
            for name, pid in self._helpers.items()
        }
        total = sum(threads.values())
        foreign = max(0.0, busy * percent - total - sum(helped.values()))
        return Cpu(total, threads), helped, foreign, after


def run_floor(folder: Path, calls: int, timing: Timing, say: Say) -> Level:
    """pjsip's own loop-back under the same callers."""
    folder.mkdir(parents=True, exist_ok=True)
    level = Level("floor", calls, 1)
    with ExitStack() as stack:
        phone = stack.enter_context(Worker.python("phone", "tests.load.phone", folder))
        floor = stack.enter_context(subject.floor(folder, calls))
        time.sleep(0.5)
        idle = proc.look(floor.pid)
        callers = _mass(folder, floor.address, calls - 1)
        stack.callback(_end, callers)
        _join(phone, floor.address, 1, lambda: _live(callers) >= calls - 1)
        helpers = {"phone": phone.pid, **({} if callers is None else {"sipp": callers.process.pid})}
        time.sleep(timing.warm_up)
        level.load_average = proc.load_average()
        down: list[float] = []
        for repetition in range(timing.repetitions):
            say(f"floor, {calls} calls: {repetition + 1} of {timing.repetitions}")
            phone.ask("take")
            start = time.monotonic_ns()
            cpu = CpuWindow(floor.pid, helpers)
            time.sleep(timing.steady)
            _note_cpu(level, cpu, idle)
            end = time.monotonic_ns()
            time.sleep(0.3)
            times = phone.ask("take")
            back = [(call, mark, at) for call, at, _n, mark in times["heard"]]
            found, lost, total = figures.delays_ms(times["sent"], back, (start, end))
            down += found
            level.lost_down += lost
            level.sent_down += total
        level.down = Spread.of(down)
        phone.ask("hang_up")
        floor.worker.stop()
    return level


def _mass(
    folder: Path, target: tuple[str, int], calls: int, codec: str = "pcmu"
) -> sipp.Callers | None:
    if calls <= 0:
        return None
    return sipp.Callers(
        "bulk",
        folder,
        target,
        "bulk",
        sipp.holding(sipp.sound(folder, codec), codec),
        calls=calls,
        rate=RAMP_RATE,
        limit=calls,
    )


def _live(callers: sipp.Callers | None) -> int:
    return 0 if callers is None else callers.counts().live


def _end(callers: sipp.Callers | None) -> None:
    if callers is not None:
        callers.stop()


def _join(
    phone: Worker,
    target: tuple[str, int],
    count: int,
    others_up: Callable[[], bool],
    network: Mapping[str, float] | None = None,
) -> None:
    wait_for("SIPp's calls are up", others_up, READY_SECONDS + 30)
    phone.ask("forget")
    phone.ask("call", gateway=list(target), count=count, user="measured", network=network or {})

    def up() -> bool:
        lines = phone.ask("count")["measured"]
        ended = [line["outcome"] for line in lines if line["outcome"]]
        if ended:
            raise Failed(f"a measured call did not come up: {ended[0]}")
        return all(line["up"] for line in lines)

    wait_for("measured calls are up", up)


def _note_cpu(level: Level, window: CpuWindow, idle: proc.Usage) -> None:
    cpu, helpers, foreign, usage = window.close()
    level.cpu.append(cpu)
    level.foreign_cpu.append(round(foreign, 1))
    for name, value in helpers.items():
        level.helpers[name] = round(max(value, level.helpers.get(name, 0.0)), 1)
    level.memory = {
        "idle_rss_kib": idle.rss_kib,
        "idle_pss_kib": idle.pss_kib,
        "rss_kib": usage.rss_kib,
        "pss_kib": usage.pss_kib,
        "rss_per_call_kib": round((usage.rss_kib - idle.rss_kib) / level.calls, 1),
        "pss_per_call_kib": round((usage.pss_kib - idle.pss_kib) / level.calls, 1),
        "descriptors": usage.descriptors,
        "descriptors_idle": idle.descriptors,
        "threads": usage.threads,
        "threads_idle": idle.threads,
    }


class GatewayLevel:
    """The gateway under load; :meth:`run` gives its figures."""

    def __init__(
        self,
        folder: Path,
        calls: int,
        timing: Timing,
        say: Say,
        mode: str = "steady",
        conditions: Conditions | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._timing, self._say, self._mode = folder, timing, say, mode
        self._conditions = conditions or Conditions()
        self.level = Level("gateway", calls, measured_of(calls), str(self._conditions))
        self._up: list[float] = []
        self._down: list[float] = []
        self._steady: list[float] = []
        self._spacing: list[float] = []
        self._setups: list[float] = []
        self._cut = figures.Interruptions()
        self._late: dict[str, list[float]] = {"endpoint": [], "phone": []}

    def run(self) -> Level:
        """Start everything, measure, stop everything."""
        level, folder = self.level, self._folder
        with ExitStack() as stack:
            endpoint = stack.enter_context(Worker.python("endpoint", "tests.load.endpoint", folder))
            phone = stack.enter_context(Worker.python("phone", "tests.load.phone", folder))
            endpoint.ask("bulk", mode=self._mode, codec=self._conditions.codec)
            port = endpoint.ask("where")["port"]
            ca = None
            if self._conditions.tls:
                keys = self_signed(folder, "endpoint")
                ca = keys.certificate
                endpoint.ask("tls", certificate=str(ca), key=str(keys.key))
            codec = self._conditions.codec
            gateway = stack.enter_context(
                subject.gateway(
                    folder,
                    port,
                    level.calls + 20,
                    ca=ca,
                    record=self._conditions.record,
                    live=(live := self._conditions.live),
                    codec=codec,
                )
            )
            time.sleep(0.5)
            idle = proc.look(gateway.pid)
            mass = level.calls - level.measured
            callers = _mass(folder, gateway.address, mass, codec)
            stack.callback(_end, callers)
            helpers = {"endpoint": endpoint.pid, "phone": phone.pid}
            if callers is not None:
                helpers["sipp"] = callers.process.pid
            for repetition in range(self._timing.repetitions):
                apart = f", {level.conditions}" if level.conditions else ""
                self._say(
                    f"gateway, {level.calls} calls{apart}: "
                    f"{repetition + 1} of {self._timing.repetitions}"
                )
                _join(
                    phone,
                    gateway.address,
                    level.measured,
                    lambda: endpoint.ask("count")["live"].get("bulk", 0) >= mass,
                    self._conditions.network,
                )
                wait_for(
                    "measured calls are heard",
                    lambda: len(endpoint.ask("count")["calls"]) == level.measured,
                )
                time.sleep(self._timing.warm_up)
                level.load_average = max(level.load_average, proc.load_average())
                self._steady_window(endpoint, phone, gateway.pid, helpers, idle)
                if not live:  # Single frames and answers that are cut: there are none.
                    self._probe_window(endpoint, phone)
                    self._barge_window(endpoint, phone)
                phone.ask("hang_up")
                wait_for(
                    "measured calls are over",
                    lambda: not endpoint.ask("count")["live"].get("measured"),
                )
            gateway.worker.stop()
            _end(callers)
            self._read_log(gateway)
        return self._finished()

    def _steady_window(
        self,
        endpoint: Worker,
        phone: Worker,
        pid: int,
        helpers: dict[str, int],
        idle: proc.Usage,
    ) -> None:
        level = self.level
        endpoint.ask("steady", on=True)
        time.sleep(0.7)
        self._take(endpoint, phone)
        before = endpoint.ask("count")
        start = time.monotonic_ns()
        cpu = CpuWindow(pid, helpers)
        time.sleep(self._timing.steady)
        _note_cpu(level, cpu, idle)
        end = time.monotonic_ns()
        after = endpoint.ask("count")
        time.sleep(0.3)
        said, heard = self._take(endpoint, phone)
        endpoint.ask("steady", on=False)
        self._note_messages(before["totals"], after["totals"], (end - start) / 1e9)
        up, lost, total = figures.delays_ms(heard["sent"], said.get("heard", ()), (start, end))
        self._up += up
        level.lost_up += lost
        level.sent_up += total
        back = [(call, mark, at) for call, at, _n, mark in heard["heard"]]
        down, lost, total = figures.delays_ms(said.get("said", ()), back, (start, end))
        self._steady += down
        level.lost_down += lost
        level.sent_down += total
        self._spacing += figures.spacing_ms(heard["heard"], (start, end))

    def _note_messages(self, before: dict[str, int], after: dict[str, int], seconds: float) -> None:
        mass = self.level.calls - self.level.measured
        if mass:
            up = after["messages"] - before["messages"]
            self.level.messages_up = round(up / seconds / mass, 1)
            self.level.messages_down = round((after["sent"] - before["sent"]) / seconds / mass, 1)

    def _probe_window(self, endpoint: Worker, phone: Worker) -> None:
        time.sleep(0.2)
        self._take(endpoint, phone)
        start = time.monotonic_ns()
        endpoint.ask("probe", seconds=self._timing.probe)
        time.sleep(self._timing.probe + 0.3)
        said, heard = self._take(endpoint, phone)
        back = [(call, mark, at) for call, at, _n, mark in heard["heard"]]
        down, lost, total = figures.delays_ms(
            said.get("said", ()), back, (start, time.monotonic_ns())
        )
        self._down += down
        self.level.lost_down += lost
        self.level.sent_down += total

    def _barge_window(self, endpoint: Worker, phone: Worker) -> None:
        endpoint.ask("barge", seconds=self._timing.barge)
        time.sleep(self._timing.barge + 0.9)
        said, heard = self._take(endpoint, phone)
        cut = figures.interruptions(
            said.get("interrupted", ()), heard["heard"], said.get("commands", ())
        )
        self._cut.last_ms += cut.last_ms
        self._cut.packets += cut.packets
        self._cut.late_heard += cut.late_heard
        self._cut.truncation_error_ms += cut.truncation_error_ms

    def _take(self, endpoint: Worker, phone: Worker) -> tuple[dict[str, Any], dict[str, Any]]:
        said, heard = endpoint.ask("take"), phone.ask("take")
        self._late["endpoint"] += [late / figures.NS for late in said["late_ns"]]
        self._late["phone"] += [late / figures.NS for late in heard["late_ns"]]
        self._setups += [took / figures.NS for took in heard["setups_ns"]]
        if said["dropped_notes"]:
            raise Failed("the endpoint had to drop times: collect more often")
        return said, heard

    def _read_log(self, gateway: subject.Gateway) -> None:
        level = self.level
        counts = {"bulk": 0, "measured": 0, "frames_dropped": 0}
        for summary in gateway.summaries():
            counts[summary["route"]] = counts.get(summary["route"], 0) + summary["underruns"]
            counts["frames_dropped"] += (
                summary["dropped_uplink_frames"]
                + summary["dropped_append_frames"]
                + summary["refused_playout_frames"]
            )
        level.underruns = counts
        level.faults = sorted(
            {line["event"] for line in gateway.log() if line.get("event") in FAULTS}
        )

    def _finished(self) -> Level:
        level, cut = self.level, self._cut
        level.up, level.down = Spread.of(self._up), Spread.of(self._down)
        level.down_steady = Spread.of(self._steady)
        level.spacing, level.setup = Spread.of(self._spacing), Spread.of(self._setups)
        level.barge_in = Spread.of(cut.last_ms)
        level.barge_packets = max(cut.packets, default=0)
        level.barge_late_heard = cut.late_heard
        level.truncation_ms = Spread.of(cut.truncation_error_ms)
        level.truncations = len(cut.truncation_error_ms)
        level.tester_late = {name: Spread.of(late).p99 for name, late in self._late.items()}
        return level

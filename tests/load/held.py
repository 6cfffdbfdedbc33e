# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that stay: a hundred for an hour, and a full house with more at the door.

Both listen to measured calls all the time, in windows of a few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import figures, sipp, subject
from .figures import NONE, Spread
from .level import FAULTS, RAMP_RATE, Say, measured_of, wait_for
from .series import Series
from .worker import Failed, Worker

LOST_UP = 0.005
"""Share of all frames that jitter buffers may drop before it is a problem: on a machine whose
cores are all busy, packets arrive in lumps and the buffers grow and shrink."""
_EDGE_NS = 700_000_000
"""Frames sent this shortly before a collection may still be on their way."""


@dataclass(slots=True)
class Heard:
    """What the measured calls heard in one window."""

    seconds: float
    up: Spread = NONE
    down: Spread = NONE
    spacing: Spread = NONE
    lost_up: int = 0
    """Frames that never came; the jitter buffer drops some when it shrinks after a stall."""
    lost_down: int = 0
    sent: int = 0


@dataclass(slots=True)
class Result:
    """A run with calls that stay."""

    calls: int
    minutes: float
    windows: list[Heard] = field(default_factory=list)
    endings: dict[str, int] = field(default_factory=dict)
    underruns: int = 0
    rss_kib: tuple[float, float] = (0.0, 0.0)
    """Resident memory in the second and in the last fifth of the run."""
    cpu: tuple[float, float] = (0.0, 0.0)
    """Percent of a core, likewise."""
    refused: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)


class House:
    """A gateway with ``calls`` calls up, some of them measured."""

    def __init__(
        self, stack: ExitStack, folder: Path, calls: int, most: int, seconds: float, mode: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.measured = measured_of(calls)
        self.endpoint = stack.enter_context(
            Worker.python("endpoint", "tests.load.endpoint", folder)
        )
        self.phone = stack.enter_context(Worker.python("phone", "tests.load.phone", folder))
        self.endpoint.ask("bulk", mode=mode)
        port = self.endpoint.ask("where")["port"]
        self.gateway = stack.enter_context(subject.gateway(folder, port, most, seconds + 600))
        if self.gateway.max_calls < calls:
            raise Failed(f"this pjsua2 carries {self.gateway.max_calls} calls")
        time.sleep(1.0)
        self.series = Series(self.gateway.pid)
        self.series.look(0, 0)
        mass = calls - self.measured
        self.callers = None
        if mass:
            self.callers = sipp.Callers(
                "bulk",
                folder,
                self.gateway.address,
                "bulk",
                sipp.holding(sipp.sound(folder)),
                calls=mass,
                rate=RAMP_RATE,
                limit=mass,
            )
            stack.callback(self.callers.stop)
        wait_for(
            "SIPp's calls are up",
            lambda: self.endpoint.ask("count")["live"].get("bulk", 0) >= mass,
            60,
        )
        self.phone.ask(
            "call", gateway=list(self.gateway.address), count=self.measured, user="measured"
        )
        wait_for(
            "measured calls are heard",
            lambda: len(self.endpoint.ask("count")["calls"]) == self.measured,
        )
        time.sleep(2.0)
        self.endpoint.ask("steady", on=True)
        time.sleep(1.0)
        self._sent: list[Any] = []
        self._said: list[Any] = []
        self._from = time.monotonic_ns()
        self._collect()

    def _collect(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.endpoint.ask("take"), self.phone.ask("take")

    def listen(self) -> Heard:
        """What was heard since the last time."""
        time.sleep(_EDGE_NS / 1e9)
        said, heard = self._collect()
        until = time.monotonic_ns() - _EDGE_NS
        window = (self._from, until)
        sent = [*self._sent, *heard["sent"]]
        spoken = [*self._said, *said.get("said", ())]
        self._from = until
        # What was sent too late for this window is looked for again, with what came of it.
        self._sent = [entry for entry in sent if entry[2] >= until]
        self._said = [entry for entry in spoken if entry[2] >= until]
        back = [(call, mark, at) for call, at, _n, mark in heard["heard"]]
        up, lost_up, total_up = figures.delays_ms(sent, said.get("heard", ()), window)
        down, lost_down, total_down = figures.delays_ms(spoken, back, window)
        self._sent = self._still(self._sent, said.get("heard", ()))
        self._said = self._still(self._said, back)
        return Heard(
            self.series.samples[-1].seconds,
            Spread.of(up),
            Spread.of(down),
            Spread.of(figures.spacing_ms(heard["heard"], (0, 1 << 62))),
            lost_up,
            lost_down,
            total_up + total_down,
        )

    @staticmethod
    def _still(sent: list[Any], heard: Any) -> list[Any]:
        arrived = {(call, number) for call, number, _at in heard}
        return [entry for entry in sent if (entry[0], entry[1]) not in arrived]

    def live(self) -> int:
        """Calls that have a session."""
        return sum(self.endpoint.ask("count")["live"].values())

    def close(self, result: Result) -> None:
        """End all calls and read what the gateway says of them."""
        self.gateway.worker.stop()
        if self.callers is not None:
            self.callers.stop()
        result.rss_kib = self.series.early_and_late("rss_kib")
        result.cpu = self.series.early_and_late("cpu")
        for summary in self.gateway.summaries():
            why = summary["ending"]["why"]
            result.endings[why] = result.endings.get(why, 0) + 1
            if summary["route"] == "bulk":
                result.underruns += summary["underruns"]
        faults = {line["event"] for line in self.gateway.log() if line.get("event") in FAULTS}
        result.problems += [f"{event} in the gateway's log" for event in sorted(faults)]


def hold(folder: Path, calls: int, minutes: float, mode: str, say: Say) -> tuple[Result, Series]:
    """``calls`` calls for ``minutes``; nothing may grow and nobody may drop out."""
    result = Result(calls, minutes)
    with ExitStack() as stack:
        house = House(stack, folder, calls, calls + 20, minutes * 60, mode)
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end:
            time.sleep(min(4.0, max(0.0, end - time.monotonic())))
            live = house.live()
            sample = house.series.look(0, live)
            result.windows.append(house.listen())
            say(
                f"{(end - time.monotonic()) / 60:.1f} minutes to go, {live} calls, "
                f"{sample.cpu:.0f} %, {sample.rss_kib / 1024:.1f} MiB"
            )
            if live != calls:
                result.problems.append(f"{calls - live} calls are gone after {sample.seconds:g} s")
                break
        house.close(result)
    _judge_audio(result)
    return result, house.series


def overload(folder: Path, calls: int, more: int, rate: float, say: Say) -> tuple[Result, Series]:
    """A full gateway, ``more`` calls at the door: all get 503 with Retry-After, nobody suffers."""
    result = Result(calls, 0.0)
    with ExitStack() as stack:
        house = House(stack, folder, calls, calls, 600, "steady")
        knocker = stack.enter_context(Worker.python("knocker", "tests.load.phone", folder))
        sessions = house.endpoint.ask("count")["totals"]["sessions"]

        def window(name: str, over: Callable[[], bool], seconds: float) -> None:
            say(name)
            house.listen()
            start = time.monotonic()
            while time.monotonic() - start < seconds or not over():
                time.sleep(0.5)
                house.series.look(0, house.live())
                if time.monotonic() - start > seconds + 60:
                    raise Failed(f"{name}: not over in time")
            result.windows.append(house.listen())

        window("full house", lambda: True, 8.0)
        knocker.ask(
            "knock",
            gateway=list(house.gateway.address),
            user="bulk",
            rate=rate,
            count=more,
            hold_ms=[5000, 5000],
        )

        def answered() -> bool:
            count = knocker.ask("count")
            return not count["to_come"] and not count["live"]

        window(f"{more} more at the door, {rate:g} a second", answered, more / rate)
        window("full house again", lambda: True, 8.0)
        count = knocker.ask("count")
        result.refused = count["outcomes"]
        if count["outcomes"] != {"refused_503": more}:
            result.problems.append(f"calls beyond capacity got {count['outcomes']}")
        if count["without_retry_after"]:
            result.problems.append(f"{count['without_retry_after']} x 503 without Retry-After")
        opened = house.endpoint.ask("count")["totals"]["sessions"] - sessions
        if opened:
            result.problems.append(f"{opened} sessions were opened for refused calls")
        if house.live() != calls:
            result.problems.append(f"{calls - house.live()} of the calls in progress are gone")
        house.close(result)
    _judge_audio(result)
    return result, house.series


def _judge_audio(result: Result) -> None:
    sent = sum(window.sent for window in result.windows)
    up = sum(window.lost_up for window in result.windows)
    down = sum(window.lost_down for window in result.windows)
    if down:
        result.problems.append(f"{down} frames to the measured calls were lost")
    if up > sent * LOST_UP:
        result.problems.append(f"{up} frames from the measured calls were lost, of {sent // 2}")
    if result.underruns:
        result.problems.append(f"{result.underruns} underruns of the other calls")

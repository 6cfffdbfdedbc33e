# SPDX-License-Identifier: GPL-2.0-or-later
"""Thousands of short calls that end at random moments from both sides."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import sipp, subject
from .level import FAULTS, RAMP_RATE, Say, wait_for
from .series import Series
from .worker import Failed, Worker

WAITS_MS = (40, 150, 400, 700, 1000, 1400, 1900, 2500, 3200, 4000)
"""When SIPp's calls hang up, one of these each."""
HOLD_MS, EARLY_MS, EARLY_SHARE = (100, 4000), (0, 40), 0.3
"""When the phones' calls do: some within the time that an answer takes."""

OURS = {
    "internal_error",
    "leg_timeout",
    "session_unreachable",
    "session_refused",
    "session_error",
    "rtp_timeout",
    "max_duration",
    "no_route",
    "over_capacity",
    "no_common_codec",
    "refused",
}
"""Endings that nobody in this load asks for."""
GOOD_OUTCOMES = {"remote_hangup", "ended", "cancelled", "crossed"}
REST_SECONDS = 5.0
"""RTP ports are let go of up to 1 s after their call and rest for 2 s; then their descriptors are
closed."""

SOUNDS = 1
"""Files that may be open after the run but not before: the player of the chime that is heard while
a lost session is replaced, made at first use, one for all calls."""

SETTLE_SECONDS = 40.0


@dataclass(slots=True)
class Result:
    """What became of all calls, by those who know."""

    calls: int
    seconds: float
    rate: float
    phone: dict[str, int] = field(default_factory=dict)
    sipp: dict[str, int] = field(default_factory=dict)
    endings: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)
    log: dict[str, int] = field(default_factory=dict)
    """Lines of the gateway's log at warning and above, by event."""
    rss_kib: tuple[float, float] = (0.0, 0.0)
    """Resident memory in the second and in the last fifth of the run."""
    cpu: tuple[float, float] = (0.0, 0.0)
    """Percent of a core, likewise."""
    descriptors: tuple[int, int] = (0, 0)
    threads: tuple[int, int] = (0, 0)
    exit_status: int = 0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)


def run(folder: Path, calls: int, rate: float, beside: int, say: Say) -> tuple[Result, Series]:
    """Half of the calls by SIPp, half by the phones, ``rate`` a second in all.

    ``beside`` them as many calls stay all the time: what is short-lived has to find its way round
    what they hold, RTP ports above all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    at_once = round(rate * 8) + 40 + beside
    with ExitStack() as stack:
        endpoint = stack.enter_context(Worker.python("endpoint", "tests.load.endpoint", folder))
        phone = stack.enter_context(Worker.python("phone", "tests.load.phone", folder))
        port = endpoint.ask("where")["port"]
        gateway = stack.enter_context(subject.gateway(folder, port, at_once))
        if gateway.max_calls < at_once:
            raise Failed(
                f"{rate:g} calls a second need {at_once} at a time; this pjsua2 carries "
                f"{gateway.max_calls}"
            )
        time.sleep(1.0)
        series = Series(gateway.pid)
        series.look(0, 0)
        stayers = _stay(folder, stack, gateway, endpoint, beside)
        idle = series.look(0, beside)
        started = time.monotonic()
        callers = sipp.Callers(
            "hangup",
            folder,
            gateway.address,
            "short",
            sipp.hangup(sipp.sound(folder), WAITS_MS),
            calls=calls // 2,
            rate=rate / 2,
            limit=at_once,
        )
        stack.callback(callers.stop)
        phone.ask(
            "knock",
            gateway=list(gateway.address),
            user="short",
            rate=rate - rate / 2,
            count=calls - calls // 2,
            hold_ms=list(HOLD_MS),
            early=EARLY_SHARE,
            early_ms=list(EARLY_MS),
        )
        _watch(series, phone, callers, calls, rate, beside, say)
        result = Result(calls, round(time.monotonic() - started, 1), rate)
        callers.stop(SETTLE_SECONDS)
        wait_for("the phones' calls are over", lambda: not phone.ask("count")["live"], 60)
        wait_for("the sessions are over", lambda: not _short(endpoint), 60)
        time.sleep(REST_SECONDS)
        last = series.look(calls, beside)
        stayed = endpoint.ask("count")["live"].get("bulk", 0)
        result.sessions = endpoint.ask("count")["fates"]
        result.phone = phone.ask("count")["outcomes"]
        result.exit_status = gateway.worker.stop()
        result.rss_kib = series.early_and_late("rss_kib")
        result.cpu = series.early_and_late("cpu")
        result.descriptors = (idle.descriptors, last.descriptors)
        result.threads = (idle.threads, last.threads)
        counts = callers.counts()
        result.sipp = {"succeeded": counts.succeeded, "failed": counts.failed}
        if stayers is not None:
            stayers.stop(SETTLE_SECONDS)
        if stayed != beside:
            result.problems.append(f"{beside - stayed} of the calls that stay are gone")
        _judge(result, gateway, counts, beside)
    return result, series


def _short(endpoint: Worker) -> int:
    return int(endpoint.ask("count")["live"].get("short", 0))


def _stay(
    folder: Path, stack: ExitStack, gateway: subject.Gateway, endpoint: Worker, calls: int
) -> sipp.Callers | None:
    if not calls:
        return None
    callers = sipp.Callers(
        "staying",
        folder,
        gateway.address,
        "bulk",
        sipp.holding(sipp.sound(folder)),
        calls=calls,
        rate=RAMP_RATE,
        limit=calls,
    )
    stack.callback(callers.stop)
    wait_for(
        "the calls that stay are up",
        lambda: endpoint.ask("count")["live"].get("bulk", 0) >= calls,
        60,
    )
    time.sleep(1.0)
    return callers


def _watch(
    series: Series,
    phone: Worker,
    callers: sipp.Callers,
    calls: int,
    rate: float,
    beside: int,
    say: Say,
) -> None:
    deadline = time.monotonic() + calls / rate * 1.5 + 60
    while True:
        count, other = phone.ask("count"), callers.counts()
        done = sum(count["outcomes"].values()) + other.succeeded + other.failed
        sample = series.look(done, count["live"] + other.live + beside)
        say(
            f"{done} of {calls} calls, {sample.live} live, {sample.cpu:.0f} %, "
            f"{sample.rss_kib / 1024:.0f} MiB, {sample.descriptors} descriptors"
        )
        if not count["live"] and not count["to_come"] and callers.wait(0):
            return
        if time.monotonic() > deadline:
            raise Failed(f"{calls - done} of {calls} calls are still not over")
        time.sleep(1.0)


def _judge(result: Result, gateway: subject.Gateway, counts: sipp.Counts, beside: int) -> None:
    endings: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for line in gateway.log():
        if line["event"] == "call.summary":
            endings[line["ending"]["why"]] += 1
        if line.get("level") in ("warning", "error", "critical") or line["event"] == "?":
            events[line["event"]] += 1
    result.endings, result.log = dict(endings), dict(events)
    problems = result.problems
    for why in sorted(OURS & endings.keys()):
        problems.append(f"{endings[why]} calls ended with {why}")
    for event in sorted(FAULTS & events.keys()):
        problems.append(f"{events[event]} x {event} in the gateway's log")
    for outcome in sorted(result.phone.keys() - GOOD_OUTCOMES):
        problems.append(f"{result.phone[outcome]} of the phones' calls: {outcome}")
    if counts.failed or counts.succeeded != result.calls // 2:
        problems.append(f"SIPp: {counts.succeeded} of {result.calls // 2} succeeded")
    if sum(endings.values()) != result.calls + beside:
        problems.append(f"{sum(endings.values())} summaries for {result.calls + beside} calls")
    if result.exit_status:
        problems.append(f"the gateway's exit status is {result.exit_status}")
    if result.descriptors[1] > result.descriptors[0] + SOUNDS:
        problems.append("descriptors left: {} before, {} after".format(*result.descriptors))

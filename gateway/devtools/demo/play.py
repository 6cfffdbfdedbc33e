"""The demo itself: emulator, gateway and caller, one after the other, and all of them ended."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass

from gateway.devtools.demo.checks import Check, Evidence, judge
from gateway.devtools.demo.evidence import HeardAudio, read_events
from gateway.devtools.demo.processes import Child, ProcessError
from gateway.devtools.demo.stage import Stage
from gateway.devtools.scripted_caller.report import CallReport
from gateway.devtools.timeline.record import Record, RecordError, read_record

UP_SECONDS = 30.0
"""For a server to be ready: imports and, for the emulator, the voice's data, on a slow machine."""

CALL_SECONDS = 120.0
"""The caller's own limit is 90 s; this is for one that hangs."""


class DemoError(Exception):
    """The demo could not be played to its end; the message says where and shows the output."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the demo showed."""

    checks: list[Check]
    record: Record
    report: CallReport
    recording_at_ms: float
    """Where the recording begins, ms after the gateway's INVITE."""

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)


async def play(stage: Stage, tell: Callable[[str], None]) -> Result:
    """Play the demo. Raises DemoError, OSError; no process outlives it, not even then."""
    emulator = Child(
        "emulator",
        ["emulator", "--listen", "127.0.0.1:0", "--script", stage.emulator_script,
         "--record", stage.events],
        stage.folder / "emulator.log",
    )  # fmt: skip
    gateway = Child(
        "gateway",
        ["run", "--no-supervisor", "-c", stage.gateway_config],
        stage.folder / "gateway.log",
    )
    started: list[Child] = []
    try:
        started.append(emulator)
        await emulator.start()
        url = (await emulator.until(r"(ws://[^\s\"']+)", UP_SECONDS))[1]
        tell(f"emulator is up at {url}")
        stage.point_at(url)
        started.append(gateway)
        await gateway.start()
        port = (await gateway.until(r"udp:127\.0\.0\.1:(\d+)", UP_SECONDS))[1]
        tell(f"gateway is up at sip:127.0.0.1:{port}")
        caller = _caller(stage, port, tell)
        started.append(caller)
        await caller.start()
        await caller.ended(CALL_SECONDS)
    except ProcessError as error:
        raise DemoError(str(error)) from None
    finally:
        tell("ends gateway and emulator")
        for child in reversed(started):
            await child.stop()
    exits = {child.name: child.returncode for child in started}
    return _look(stage, exits, caller)


def _caller(stage: Stage, port: str, tell: Callable[[str], None]) -> Child:
    child = Child(
        "caller",
        ["test-call", f"sip:100@127.0.0.1:{port}", "--script", stage.caller_script,
         "--codec", "PCMA", "--record-both", stage.recording, "--record", stage.heard,
         "--report", stage.report],
        stage.folder / "caller.log",
    )  # fmt: skip
    child.on_line = lambda line: tell(f"caller {line}") if line else None
    return child


def _look(stage: Stage, exits: dict[str, int | None], caller: Child) -> Result:
    records, logs = sorted(stage.records.glob("*.json")), sorted(stage.events.glob("*.jsonl"))
    if len(records) != 1 or len(logs) != 1:
        what = f"{len(records)} records, {len(logs)} sessions, where one of each was to be"
        raise DemoError(f"{what}\n{caller.tail()}")
    try:
        record = read_record(records[0])
        report = CallReport.model_validate_json(stage.report.read_text("utf-8"))
        events = read_events(logs[0])
        heard = stage.heard.read_bytes()
    except (RecordError, OSError, ValueError) as error:
        raise DemoError(f"the call left no evidence: {error}\n{caller.tail()}") from None
    shutil.copyfile(records[0], stage.record)
    checks = judge(Evidence(report, record, events, HeardAudio(heard), exits))
    written = [{"check": c.name, "passed": c.passed, "found": c.found} for c in checks]
    stage.checks.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    return Result(checks, record, report, _recording_at(record, report))


def _recording_at(record: Record, report: CallReport) -> float:
    """Both clocks are this machine's, so the two starts can be compared."""
    began = report.media_ms or 0.0
    if record.started_at is None:
        return began
    return began + (report.started_at - record.started_at).total_seconds() * 1000


def run(stage: Stage, tell: Callable[[str], None]) -> Result:
    """Play the demo; SIGTERM ends it as Ctrl-C does, by KeyboardInterrupt. Raises as play."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(play(stage, tell))
    finally:
        signal.signal(signal.SIGTERM, previous)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the demo: emulator, gateway and caller as processes; checks of the one with a Live session.

A process is watched by what it prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gateway.audio import BYTES_PER_MS, FRAME_BYTES, FRAME_MS
from gateway.devtools.demo_scenario import (
    CALLER,
    DIALPLAN,
    GATEWAY,
    GREETING_WITHIN_MS,
    LONG_ANSWER,
    PHONE_BUFFER_MS,
    SECOND_ANSWER,
    SILENT_FRAME,
    Check,
    Evidence,
    HeardAudio,
    Scenario,
    Stage,
    caller_checks,
    digits_check,
    hangup_check,
    process_checks,
)
from gateway.devtools.scripted_caller import CallReport
from gateway.devtools.timeline import Record, RecordError, read_record

UP_SECONDS = 30.0
"""For a server to be ready: imports and, for the emulator, the voice's data, on a slow machine."""

CALL_SECONDS = 120.0
"""The caller's own limit is 90 s; this is for one that hangs."""


class DemoError(Exception):
    """The demo could not be played to its end; the message says where and shows the output."""


@dataclass(frozen=True, slots=True)
class Result:
    """Checks, record and report of a demo."""

    checks: list[Check]
    record: Record
    report: CallReport
    recording_at_ms: float
    """Where the recording begins, ms after the gateway's INVITE."""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


async def play(stage: Stage, tell: Callable[[str], None], started: list[Child]) -> Result:
    """Run emulator, gateway and caller, end them, and check what they left.

    Args:
        tell: told what happens, a line at a time.
        started: gets each process as it is started.

    Raises DemoError, OSError; no process outlives it, not even then.
    """
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
        caller = _caller_process(stage, port, tell)
        started.append(caller)
        await caller.start()
        await caller.ended(CALL_SECONDS)
    finally:
        tell("ends gateway and emulator")
        for child in reversed(started):
            await child.stop()
    exits = {child.name: child.returncode for child in started}
    return _result_of(stage, exits, caller)


def _caller_process(stage: Stage, port: str, tell: Callable[[str], None]) -> Child:
    child = Child(
        "caller",
        ["test-call", f"sip:100@127.0.0.1:{port}", "--script", stage.caller_script,
         "--codec", "PCMA", "--record-both", stage.recording, "--record", stage.heard,
         "--report", stage.report],
        stage.folder / "caller.log",
    )  # fmt: skip
    child.on_line = lambda line: tell(f"caller {line}") if line else None
    return child


def _result_of(stage: Stage, exits: dict[str, int | None], caller: Child) -> Result:
    """Read what the processes left, and check it. Raises DemoError where something is missing."""
    records, logs = sorted(stage.records.glob("*.json")), sorted(stage.events.glob("*.jsonl"))
    if len(records) != 1 or len(logs) != 1:
        what = f"{len(records)} records, {len(logs)} sessions, where one of each was to be"
        raise DemoError(f"{what}\n{caller.tail()}")
    try:
        record = read_record(records[0])
        report = CallReport.model_validate_json(stage.report.read_text("utf-8"))
        events = stage.scenario.read_events(logs[0])
        heard = stage.heard.read_bytes()
    except (RecordError, OSError, ValueError) as error:
        raise DemoError(f"the call left no evidence: {error}\n{caller.tail()}") from None
    shutil.copyfile(records[0], stage.record)
    evidence = Evidence(report, record, events, HeardAudio(heard), exits)
    checks = stage.scenario.judge(evidence)
    written = [{"check": c.name, "passed": c.passed, "found": c.found} for c in checks]
    stage.checks.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    return Result(checks, record, report, _recording_at(record, report))


def _recording_at(record: Record, report: CallReport) -> float:
    """Return when the recording begins (ms after the gateway's INVITE).

    Both clocks are this machine's, so the two starts can be compared.
    """
    began = report.media_ms or 0.0
    if record.started_at is None:
        return began
    return began + (report.started_at - record.started_at).total_seconds() * 1000


def run(stage: Stage, tell: Callable[[str], None]) -> Result:
    """Run :func:`play` to its end. Ctrl-C or SIGTERM ends the processes in order and raises
    KeyboardInterrupt; a further one kills those that are left."""
    return asyncio.run(_play_until_interrupted(stage, tell))


async def _play_until_interrupted(stage: Stage, tell: Callable[[str], None]) -> Result:
    started: list[Child] = []
    playing = asyncio.create_task(play(stage, tell, started), name="demo")

    def interrupt() -> None:
        if playing.cancelling():
            for child in started:
                child.kill()
        else:
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    try:
        return await playing
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


END_SECONDS = 15.0
"""For a process to end after SIGTERM: it hangs up, waits for its BYE, ends the library."""

_KEPT_LINES = 12
"""Of the end of an output, to show when something has gone wrong."""


class Child:
    """One process of the same interpreter, ``gateway ARGUMENTS``.

    Its output goes to a file, line by line, and by ``on_line``.
    """

    def __init__(self, name: str, arguments: list[str | Path], log: Path) -> None:
        self.name = name
        self.returncode: int | None = None
        self.on_line: Callable[[str], None] = lambda line: None
        self._arguments = [str(argument) for argument in arguments]
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._wanted: tuple[re.Pattern[str], asyncio.Future[re.Match[str]]] | None = None
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)

    async def start(self) -> None:
        """Start the process. Raises OSError."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore::DeprecationWarning", "-m", "gateway", *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends them in order
            limit=1024 * 1024,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(), name=f"output of {self.name}")

    async def until(self, pattern: str, within: float) -> re.Match[str]:
        """Wait for the next line of output that ``pattern`` matches.

        Raises DemoError when it does not come in ``within`` seconds, or the process ends first.
        """
        future: asyncio.Future[re.Match[str]] = asyncio.get_running_loop().create_future()
        self._wanted = (re.compile(pattern), future)
        assert self._reader is not None
        try:
            done, _ = await asyncio.wait(
                (future, self._reader), timeout=within, return_when=asyncio.FIRST_COMPLETED
            )
            if future.done():
                return future.result()
            why = "ended" if done else f"was not ready within {within:g} s"
            raise DemoError(f"{self.name} {why}\n{self.tail()}")
        finally:
            self._wanted = None

    async def ended(self, within: float) -> int:
        """Wait until the process ends by itself; return its exit status.

        Raises DemoError when that takes longer than ``within`` seconds.
        """
        assert self._process is not None
        assert self._reader is not None
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(self._reader)
                self.returncode = await self._process.wait()
        except TimeoutError:
            raise DemoError(f"{self.name} did not end within {within:g} s") from None
        return self.returncode

    async def stop(self) -> None:
        """Stop the process with SIGTERM, and with SIGKILL after ``END_SECONDS``."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(END_SECONDS):
                    await process.wait()
            except TimeoutError:
                self.kill()
                await process.wait()
        self.returncode = process.returncode
        if self._reader is not None:
            # A grandchild that kept the pipe would keep the reader.
            await asyncio.wait((self._reader,), timeout=2.0)
            self._reader.cancel()

    def kill(self) -> None:
        """Send SIGKILL to the process, if it runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def tail(self) -> str:
        """Return the last lines of its output, indented."""
        return "\n".join(f"  {line}" for line in self._last) or "  (no output)"

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._log.open("w", encoding="utf-8") as log:
            while True:
                try:
                    raw = await self._process.stdout.readline()
                except ValueError:  # a line beyond the limit is for the file's reader no loss
                    continue
                if not raw:
                    return
                line = raw.decode("utf-8", "replace").rstrip()
                log.write(line + "\n")
                log.flush()
                self._last.append(line)
                self.on_line(line)
                if self._wanted is not None and not self._wanted[1].done():
                    match = self._wanted[0].search(line)
                    if match is not None:
                        self._wanted[1].set_result(match)


MODEL = "gpt-live-1.1"
RECORDS = 'folder = "../records"'

EMULATOR = f"""\
# gateway emulator --script emulator.toml --record events
# No model is behind it: both answers are written here, the rest follows the emulator's rules (say
# the greeting that is asked for, read digits back, say goodbye on 0).

[[answers]]
kind = "say"
text = {json.dumps(LONG_ANSWER)}

[[answers]]
kind = "say"
text = {json.dumps(SECOND_ANSWER)}

[[answers]]
# The backend's, when it is told that the call ends: the voice has said goodbye already.
kind = "nothing"

[live]
# One delta for each 20 ms, so that the event log tells of every frame what was in it.
chunk_ms = 20
# So long that a machine that stands still for half a second does not end the caller's turn.
turn_silence_ms = 1000
# Seconds, in the service: here the transcripts come before the call is over.
transcript_lag_ms = 600
"""

BACKEND = """\
[route.live.delegation]
# The voice has no functions: it delegates, and this model calls them, end_call among them.
type = "responses"
acknowledgement_delay_ms = 5000
[route.live.delegation.responses]
model = "backend"
instructions = "End the call when the caller says goodbye."

[route.live]"""


@dataclass(slots=True)
class LiveLog:
    """What the demo needs of a Live session's event log."""

    frames: list[str] = field(default_factory=list)
    """A hash for each 20 ms of the model's track."""
    said: list[str] = field(default_factory=list)
    """Texts that the gateway let the model know."""
    errors: list[str] = field(default_factory=list)
    closed: str = ""
    """The reason of ``session.closed``."""
    up_ms: float = 0.0
    """The caller's audio, ms."""
    lasted_ms: float = 0.0
    """From ``session.started`` to ``session.close``, ms."""


def read_live_events(file: Path) -> LiveLog:
    """Read a session's ``*.jsonl``. Raises OSError, ValueError."""
    log, began = LiveLog(), 0.0
    for text in file.read_text("utf-8").splitlines():
        line = json.loads(text)
        event = line["event"]
        match event.get("type"):
            case "session.started":
                began = line["at"]
            case "session.input_audio.append":
                log.up_ms += event["audio_bytes"] / BYTES_PER_MS
            case "session.output_audio.delta":
                whole = event["audio_bytes"] == FRAME_BYTES
                log.frames.append(event["audio_sha256"] if whole else "")
            case "session.thinking.append":
                log.said.append(str(event.get("content")))
            case "session.closed":
                log.closed = str(event.get("reason"))
            case "session.close":
                log.lasted_ms = (line["at"] - began) * 1000
            case "error":
                log.errors.append(str(event["error"].get("code")))
    return log


def judge(evidence: Evidence[LiveLog]) -> list[Check]:
    """Return the checks of a demo with a Live session, failed ones too."""
    return [
        *caller_checks(evidence),
        *_greeting(evidence),
        *track_checks(evidence.events, evidence.heard_audio),
        *_overlap(evidence),
        digits_check(evidence),
        *_ending(evidence),
        *process_checks(evidence.exits, evidence.events.errors),
    ]


def _greeting(evidence: Evidence[LiveLog]) -> Iterator[Check]:
    report = evidence.report
    name = "the greeting was heard"
    if not report.heard or report.answered_ms is None:
        yield Check(name, False, "nothing was heard")
        return
    begins = report.heard[0].from_ms + (report.media_ms or 0.0) - report.answered_ms
    yield Check(name, begins <= GREETING_WITHIN_MS, f"{begins:,.0f} ms after the answer")


def track_checks(log: LiveLog, heard: HeardAudio) -> Iterator[Check]:
    """Yield checks that the model's audio was heard unchanged, and the caller's sent evenly."""
    loud = [frame for frame in log.frames if frame and frame != SILENT_FRAME]
    found = [frame for frame in loud if frame in heard.places]
    lost_ms = (len(loud) - len(found)) * FRAME_MS
    words = f"{len(found):,} of {len(loud):,} frames, byte for byte"
    passed = bool(loud) and lost_ms <= PHONE_BUFFER_MS
    yield Check("what the model said was heard, goodbye and all", passed, words)
    off = log.up_ms - log.lasted_ms
    passed = log.lasted_ms > 0 and abs(off) <= max(100.0, log.lasted_ms / 1000)
    words = f"{log.up_ms:,.0f} ms of audio in {log.lasted_ms:,.0f} ms"
    yield Check("the model was sent a second of audio each second", passed, words)


def _overlap(evidence: Evidence[LiveLog]) -> Iterator[Check]:
    cuts = [cut for cut in evidence.record.interruptions if cut.action != "none" or cut.flushed_ms]
    found = f"{len(evidence.report.heard)} stretches of speech, {len(cuts)} cut here"
    yield Check("the caller interrupted, and the model itself stopped", not cuts, found)


def _ending(evidence: Evidence[LiveLog]) -> Iterator[Check]:
    yield hangup_check("the model's backend ended the call after the goodbye", evidence)
    closed = evidence.events.closed or "without session.closed"
    passed = evidence.events.closed == "close_requested"
    yield Check("the session was closed, and its end confirmed", passed, closed)


LIVE = Scenario(
    emulator=EMULATOR,
    gateway=GATEWAY.replace("gpt-realtime-2.1", MODEL).replace(
        RECORDS, f"{RECORDS}\nevents = true"
    ),
    dialplan=DIALPLAN.replace("[route.session]", BACKEND),
    caller=CALLER,
    path="/v1/live/sessions",
    read_events=read_live_events,
    judge=judge,
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A gateway as a process of its own, with its log read while it runs."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from tests.support.forked import Forked, end_with_parent

WITHIN_S = 30.0
"""Deadline of a wait that should take milliseconds; only something stuck gets there."""

START_S = 90.0
"""Of a start, which on a busy machine waits for others' imports."""

PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"), "http://[::1]:9")
"""In the environment of every gateway: a proxy that nobody asked for is not used."""

FAULTS = (
    "gateway.unhandled",
    "gateway.calls_not_ended",
    "call.internal_error",
    "call.leg_timeout",
    "call.playout_overflow",
    "sip.callback_failed",
    "sip.bridge_failed",
    "sip.connections_left",
    "sip.turn_failed",
    "sip.call_failed",
    "sip.call_stuck",
    "sip.thread_stuck",
    "sip.stop_failed",
    "session.handler_failed",
    "session.reader_failed",
    "session.closed_handler_failed",
    "records.dropped",
    "records.write_failed",
)
"""Log events that a run without a defect has none of."""

Line = Mapping[str, Any]

LINE_BYTES = 16 * 1024 * 1024
"""Longest line of a log that is read."""


class Gateway:
    """``gateway run -c`` and what it says.

    Args:
        config: the configuration's file; its log must be JSON on standard error.
        entry: what to run instead of ``-m gateway``.
        options: of ``run``; without a supervisor the process is the gateway itself.
    """

    running: ClassVar[set[Gateway]] = set()
    """Those that were started and have not been waited for."""

    def __init__(
        self,
        config: Path,
        entry: tuple[str, ...] = ("-m", "gateway"),
        options: tuple[str, ...] = ("--no-supervisor",),
    ) -> None:
        self.config = config
        self.lines: list[Line] = []
        self.other_output: list[str] = []
        """Lines that are no JSON: there should be none."""
        self.tolerated: set[str] = set()
        """Fault events that a test provokes on purpose."""
        self._entry = entry
        self._options = options
        self._process: asyncio.subprocess.Process | Forked | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._pulse = asyncio.Event()

    async def start(self) -> None:
        """Run it, until it listens."""
        arguments = ("run", "-c", str(self.config), *self._options)
        env = {**os.environ, **PROXIES}
        if "--no-supervisor" in self._options:
            self._process = await Forked.start(self._entry, arguments, env, LINE_BYTES)
        else:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self._entry, *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
                env=env,
                preexec_fn=end_with_parent,
            )
        self.running.add(self)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(stream), name="gateway log")
            for stream in (self._process.stdout, self._process.stderr)
        ]
        await self.wait("gateway.started", START_S)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def sip(self) -> tuple[str, int]:
        """Where it takes calls."""
        _transport, host, port = self.all("gateway.started")[0]["listen"][0].split(":")
        return host, int(port)

    @property
    def max_calls(self) -> int:
        """Calls it takes at a time, as it says at its start."""
        return int(self.all("gateway.started")[0]["max_calls"])

    def all(self, event: str, **fields: Any) -> list[Line]:
        """Log lines of this event with these fields, so far.

        ``call`` is the gateway's id of a call, or its SIP Call-ID.
        """
        wanted = fields.pop("call", None)
        calls = {wanted, *self.ids_of(wanted)}
        return [
            line
            for line in self.lines
            if line.get("event") == event
            and (wanted is None or line.get("call") in calls)
            and all(line.get(key) == value for key, value in fields.items())
        ]

    def ids_of(self, sip_call_id: str | None) -> list[str]:
        """The gateway's own ids of calls with this SIP Call-ID, in their order."""
        found = (
            line["call"]
            for line in self.lines
            if sip_call_id and line.get("sip_call_id") == sip_call_id
        )
        return list(dict.fromkeys(found))

    async def wait(
        self, event: str, within_s: float = WITHIN_S, count: int = 1, **fields: Any
    ) -> Line:
        """The ``count``-th such line, waited for."""
        try:
            async with asyncio.timeout(within_s):
                while len(found := self.all(event, **fields)) < count:
                    if self._readers and all(one.done() for one in self._readers):
                        raise AssertionError(f"the gateway ended: {self.tail()}")
                    self._pulse.clear()
                    await self._pulse.wait()
        except TimeoutError:
            raise AssertionError(f"no log line {event} {fields}: {self.tail()}") from None
        return found[count - 1]

    async def until(self, condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        """Wait for a condition on the log, looked at after each line."""
        async with asyncio.timeout(within_s):
            while not condition():
                self._pulse.clear()
                await self._pulse.wait()

    def tail(self) -> str:
        """The end of the log, for a failed test."""
        lines = [json.dumps(line) for line in self.lines[-25:]]
        return "\n".join([*self.other_output[-25:], *lines])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end; returns the exit status."""
        assert self._process is not None
        try:
            async with asyncio.timeout(WITHIN_S):
                status = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            status = await self._process.wait()
        self.running.discard(self)
        await asyncio.gather(*self._readers)
        return status

    def kill(self) -> None:
        """End it at once, without waiting."""
        self.running.discard(self)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def check(self, status: int) -> None:
        """Assert that it ended well and did nothing wrong on the way."""
        faults = [
            line
            for line in self.lines
            if (line["event"] in FAULTS or line["level"] == "critical" or "exception" in line)
            and line["event"] not in self.tolerated
        ]
        assert not faults, faults[:5]
        assert not self.other_output, self.other_output
        assert status == 0, self.tail()
        down = self.all("gateway.stopped")
        assert [line["media_faults"] for line in down] == [0], down

    def read_log(self, reading: bool) -> None:
        """Stop reading the log, so that its pipe fills up, or go on."""
        assert self._process is not None
        assert isinstance(self._process, Forked)
        pipe = self._process.pipes[1]
        if reading:
            pipe.resume_reading()
        else:
            fcntl.fcntl(pipe.get_extra_info("pipe"), fcntl.F_SETPIPE_SZ, 4096)
            pipe.pause_reading()

    # ---- what the kernel knows of it

    def cpu_seconds(self) -> float:
        """Processor time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resources(self) -> dict[str, int]:
        """Resident memory (KiB), threads, open file descriptors, and how many of them are sockets:
        databases open and close files of their own at any time."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
        )
        links = [_link(one) for one in Path(f"/proc/{self.pid}/fd").iterdir()]
        return {
            "rss_kib": int(status["VmRSS"].split()[0]),
            "threads": int(status["Threads"]),
            "fds": len(links),
            "sockets": sum(link.startswith("socket:") for link in links),
        }

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for raw in stream:
            text = raw.decode("utf-8", "replace").rstrip("\n")
            try:
                self.lines.append(json.loads(text))
            except ValueError:
                self.other_output.append(text)
            self._pulse.set()
        self._pulse.set()


def _link(descriptor: Path) -> str:
    """Return what an open descriptor is of; empty if it has been closed meanwhile."""
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Start, serve, drain and stop of the process; the gateway's parts are stand-ins."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway.app import service as service_module
from gateway.app.gateway import Part
from gateway.app.service import Service, State
from gateway.call.call_record import CallRecord
from gateway.measures import Distribution
from gateway.sip.agent import AgentError
from gateway.tasks import wait_any


class FakeCalls:
    """Calls in progress."""

    def __init__(self, *ids: str) -> None:
        self.ids = list(ids)
        self.idle = asyncio.Event()
        self.told: list[str] = []
        if not ids:
            self.idle.set()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Any]:
        for _call in self.ids:
            yield SimpleNamespace(give_up=self.told.append)

    def shut_down(self) -> None:
        """End every call."""
        if self.ids:
            self.told.append("shut down")
            self.end()

    def end(self) -> None:
        """All are over."""
        self.ids.clear()
        self.idle.set()

    async def wait_idle(self, seconds: float, *or_else: asyncio.Event) -> None:
        """As the registry's."""
        await wait_any(seconds, self.idle, *or_else)

    async def wait_gone(self, _seconds: float) -> None:
        """All sessions are closed."""


class FakeGateway:
    """The parts, in the order in which they are started and stopped."""

    def __init__(self) -> None:
        self.config: Any = None
        self.calls = FakeCalls()
        self.did: list[str] = []
        self.failure: Exception | None = None
        self.over: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
        self.outbound = SimpleNamespace(place=self._place)
        self.pump = SimpleNamespace(beats=0, faults=0)
        self.lag = Distribution(())
        self.agent = SimpleNamespace(
            trouble=lambda _seconds: "", pool=SimpleNamespace(in_use=False)
        )

    async def _place(self, *_given: str) -> tuple[CallRecord, asyncio.Future[CallRecord]]:
        return CallRecord("out-1"), self.over

    async def start(self, stack: AsyncExitStack, *, serving: bool) -> None:
        """Start two parts, the second of which may fail."""
        self.did.append("serving" if serving else "placing")
        await Part("one", None, lambda: self.did.append("one stopped")).start_on(stack)
        if self.failure is not None:
            raise self.failure
        await Part("two", None, lambda: self.did.append("two stopped")).start_on(stack)

    def drain(self) -> None:
        """Take no more calls."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the test's own deadline bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


class Process:
    """A service whose gateway, limits and systemd are stand-ins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *calls: str, **limits: float) -> None:
        self.gateway = FakeGateway()
        self.gateway.calls = FakeCalls(*calls)
        self.told: list[str] = []
        monkeypatch.setattr(service_module, "Gateway", lambda *_given: self.gateway)
        monkeypatch.setattr(service_module, "notify", lambda *lines: self.told.extend(lines))
        wanted = {"min_drain_time": 0.0, "drain_timeout": 20.0, **limits}
        config = self.gateway.config = SimpleNamespace(limits=SimpleNamespace(**wanted))
        self.service = Service(cast(Any, config), cast(Any, None))

    async def serving(self) -> asyncio.Task[None]:
        """Run until calls are taken."""
        task = asyncio.create_task(self.service.run())
        await until(lambda: self.service.state is not State.STARTING or task.done())
        return task

    async def signal(self) -> None:
        """SIGTERM; returns once no more calls are taken."""
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: self.service.state is not State.SERVING)


async def test_a_process_from_its_start_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch)
    with capture_logs() as logs:
        task = await process.serving()
        assert process.service.state is State.SERVING
        await process.signal()
        await task
    states = [line["state"] for line in logs if line["event"] == "gateway.state"]
    assert states == ["starting", "serving", "draining", "stopped"]
    assert process.gateway.did == ["serving", "two stopped", "one stopped"]
    told = [line for line in process.told if not line.startswith("WATCHDOG")]
    assert told == [
        *("STATUS=starting", "READY=1", "STATUS=serving"),
        *("STOPPING=1", "STATUS=draining", "STATUS=stopped"),
    ]


async def test_a_start_that_fails_stops_what_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch)
    process.gateway.failure = AgentError("cannot bind udp:127.0.0.1:5060")
    with pytest.raises(AgentError, match="cannot bind"):
        await process.service.run()
    assert process.gateway.did == ["serving", "one stopped"]
    assert "READY=1" not in process.told


async def test_a_draining_process_names_the_calls_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_module, "REPORT_SECONDS", 0.01)
    process = Process(monkeypatch, "c1", "c2")
    with capture_logs() as logs:
        task = await process.serving()
        await process.signal()
        assert process.service.state is State.DRAINING
        await until(lambda: any(line["event"] == "gateway.draining" for line in logs))
        process.gateway.calls.end()
        await task
    lines = [line for line in logs if line["event"] == "gateway.draining"]
    assert (lines[0]["count"], lines[0]["calls"]) == (2, ["c1", "c2"])
    assert process.gateway.calls.told == []


async def test_a_second_signal_ends_the_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch, "c1", min_drain_time=20.0)
    task = await process.serving()
    await process.signal()
    assert not task.done()
    await process.signal()
    async with asyncio.timeout(15):
        await task
    assert process.gateway.calls.told == ["shut down"]


async def test_calls_are_ended_when_the_drain_has_lasted_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(monkeypatch, "c1", drain_timeout=0.02)
    task = await process.serving()
    await process.signal()
    async with asyncio.timeout(15):
        await task
    assert process.gateway.calls.told == ["shut down"]


async def test_a_process_that_cannot_carry_calls_gives_them_up_and_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(monkeypatch, "c1")
    task = await process.serving()
    process.service._on_unhealthy("SIP thread: ended")
    process.gateway.calls.end()
    with pytest.raises(AgentError, match="SIP thread: ended"):
        await task
    assert process.gateway.calls.told == ["SIP thread: ended"]


async def test_a_process_for_one_call_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch, min_drain_time=20.0)
    record = CallRecord("out-1")
    asyncio.get_running_loop().call_later(0.01, process.gateway.over.set_result, record)
    async with asyncio.timeout(15):
        assert await process.service.run_one("sip:b@x", "r") is record
    assert process.gateway.did[0] == "placing"


async def test_a_process_for_one_call_does_not_wait_for_one_that_never_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(monkeypatch)
    task = asyncio.create_task(process.service.run_one("sip:b@x", "r"))
    await until(lambda: process.service.state is State.SERVING)
    await process.signal()
    async with asyncio.timeout(15):
        with pytest.raises(AgentError, match="out-1 has not ended"):
            await task


async def test_a_part_that_does_not_stop_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.app.gateway.PART_SECONDS", 0.01)
    did: list[str] = []

    async def hangs() -> None:
        await asyncio.Event().wait()

    with capture_logs() as logs:
        async with asyncio.timeout(15), AsyncExitStack() as stack:
            await Part("first", None, lambda: did.append("first")).start_on(stack)
            await Part("second", None, hangs).start_on(stack)
    assert did == ["first"]
    assert [(line["event"], line["part"]) for line in logs] == [("gateway.stop_failed", "second")]


async def test_a_part_whose_stop_raises_skips_no_other() -> None:
    did: list[str] = []

    def broken() -> None:
        raise ZeroDivisionError

    async def slow() -> None:
        did.append("slow")

    with capture_logs() as logs:
        async with AsyncExitStack() as stack:
            await Part("first", None, slow).start_on(stack)
            await Part("second", None, broken).start_on(stack)
    assert did == ["slow"]
    (line,) = logs
    assert (line["event"], line["part"]) == ("gateway.stop_failed", "second")


HANGS = """
import asyncio, time
from gateway.app import service
from gateway.measures import Distribution
service.HUNG_SECONDS = 4.0

async def main():
    lag = Distribution(())
    service.Health(lambda: "", lambda: None, lambda well: None, lambda why: None, lag).start()
    await asyncio.sleep(0.1)
    time.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("computes", [True, False])
async def test_a_stall_of_the_event_loop_is_told_with_the_time_it_computed(
    monkeypatch: pytest.MonkeyPatch, computes: bool
) -> None:
    monkeypatch.setattr(service_module, "STALL_SECONDS", 0.3)
    looks: list[bool] = []
    health = service_module.Health(
        lambda: "", lambda: None, looks.append, lambda why: None, Distribution((1.0,))
    )
    with capture_logs() as logs:
        health.start()
        await asyncio.sleep(0)
        used = time.thread_time()
        while computes and time.thread_time() < used + 0.7:
            pass
        if not computes:
            time.sleep(0.7)  # noqa: ASYNC251 - it stands still
        await until(lambda: bool(looks))
        await health.stop()
    # A busy machine may add a second one.
    stall, *_ = [one for one in logs if one["event"] == "gateway.loop_stalled"]
    assert stall["seconds"] >= 0.4
    assert (stall["cpu_seconds"] > 0.4) is computes


LEAVES_THREADS = """
import asyncio, sys, threading
from concurrent.futures import ThreadPoolExecutor
from gateway.app import service
from gateway.sip.agent import AgentError

class Stopped:
    def __init__(self, *given):
        self.health = self
    def on_unhandled(self, loop, context):
        pass
    async def run(self):
        loop = asyncio.get_running_loop()
        hung = threading.Barrier(3)
        def hang():
            hung.wait()
            threading.Event().wait()
        loop.run_in_executor({pool}, hang)
        loop.run_in_executor({pool}, hang)
        await loop.run_in_executor(ThreadPoolExecutor(1), hung.wait)
        {end}

service.Service, service.EXIT_SECONDS = Stopped, 0.1
service.run(None, None, write_log=lambda: print("the log is written"))
"""


@pytest.mark.parametrize("pool", ["None", 'ThreadPoolExecutor(2, "webhook spool")'])
@pytest.mark.parametrize(("end", "status"), [("", 0), ("raise AgentError", 1)])
def test_a_stopped_process_ends_though_threads_hang(pool: str, end: str, status: int) -> None:
    """As on a disk that hangs, in a pool of ours or the loop's own; the log says which."""
    code = LEAVES_THREADS.format(pool=pool, end=end)
    done = subprocess.run(
        [sys.executable, "-u", "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == status
    said = done.stdout.splitlines()
    name = "asyncio" if pool == "None" else "webhook spool"
    assert "gateway.threads_left" in said[-2]
    assert name in said[-2]
    assert said[-1] == "the log is written"


def test_a_process_whose_event_loop_hangs_ends_and_says_where() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert 'File "<string>", line 11 in main' in done.stderr

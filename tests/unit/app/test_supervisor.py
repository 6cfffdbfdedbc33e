# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor, with real processes that live, crash, hang and are told to go."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gateway.app import supervisor as module
from gateway.app.supervisor import Supervisor, how_ended, notify
from tests import support
from tests.support.harness import eventually

DOUBLE = str(Path(support.__file__).with_name("worker_double.py"))
WITHIN_S = 20.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)


class Run:
    """A supervisor while it runs, and what it has logged."""

    def __init__(self, lines: list[EventDict], task: asyncio.Task[int]) -> None:
        self._lines = lines
        self.task = task

    def all(self, event: str, **fields: object) -> list[EventDict]:
        """Log lines of this event with these fields."""
        return [
            line
            for line in self._lines
            if line["event"] == event and fields.items() <= line.items()
        ]

    async def wait(self, event: str, count: int = 1, **fields: object) -> EventDict:
        """The ``count``-th such line."""

        def come() -> bool:
            found = len(self.all(event, **fields)) >= count
            assert found or not self.task.done(), self._lines
            return found

        await eventually(come, f"{count} {event}")
        return self.all(event, **fields)[count - 1]


def supervised(
    story: Callable[[Run], object],
    doing: Callable[[int], Sequence[str]],
    *,
    count: int = 2,
    max_restarts: int = 3,
    drain_seconds: float = 5.0,
) -> tuple[int, Run]:
    """Run a supervisor and the story beside it; the exit status and the log."""

    async def main(lines: list[EventDict]) -> tuple[int, Run]:
        supervisor = Supervisor(
            lambda index: [sys.executable, DOUBLE, *doing(index)],
            count,
            max_restarts=max_restarts,
            drain_seconds=drain_seconds,
        )
        task = asyncio.create_task(supervisor.run())
        run = Run(lines, task)
        told = story(run)
        if asyncio.iscoroutine(told):
            await told
        async with asyncio.timeout(WITHIN_S):
            return await task, run

    with capture_logs() as lines:
        return asyncio.run(main(lines))


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_and_the_status_is_0(number: signal.Signals) -> None:
    async def story(run: Run) -> None:
        await run.wait("workers.ready")
        tell(number)

    status, run = supervised(story, lambda _index: ["up"])
    assert status == 0
    assert [line["ended"] for line in run.all("worker.ended")] == ["exit status 0"] * 2
    assert run.all("workers.stopping", reason=number.name, forced=False)


def test_a_worker_that_dies_is_started_again() -> None:
    async def story(run: Run) -> None:
        await run.wait("workers.ready")
        first = run.all("worker.ready", worker=1)[0]["pid"]
        os.kill(first, signal.SIGKILL)
        died = await run.wait("worker.crashed")
        assert (died["worker"], died["pid"], died["ended"]) == (1, first, "SIGKILL")
        again = await run.wait("worker.ready", 2, worker=1)
        assert again["pid"] != first
        tell(signal.SIGTERM)

    status, run = supervised(story, lambda _index: ["up"])
    assert status == 0
    assert len(run.all("worker.started", worker=0)) == 1


def test_a_worker_told_to_drain_is_replaced_without_a_penalty() -> None:
    async def story(run: Run) -> None:
        await run.wait("workers.ready")
        for generation in range(1, 4):
            await run.wait("worker.ready", generation, worker=0)
            os.kill(run.all("worker.ready", worker=0)[-1]["pid"], signal.SIGTERM)
            await run.wait("worker.drained", generation, worker=0)
        await run.wait("worker.ready", 4, worker=0)
        tell(signal.SIGTERM)

    status, run = supervised(story, lambda _index: ["up"], max_restarts=0)
    assert status == 0
    assert not run.all("worker.crashed")


def test_a_worker_that_keeps_dying_is_given_up_and_the_other_goes_on() -> None:
    async def story(run: Run) -> None:
        given_up = await run.wait("worker.restart_limit_reached")
        assert (given_up["worker"], given_up["ended"], given_up["deaths"]) == (1, "SIGSEGV", 4)
        pauses = [line["restart_in_seconds"] for line in run.all("worker.crashed")]
        assert pauses == [0.01, 0.02, 0.04]
        await run.wait("worker.ready", worker=0)  # before that a signal would kill it
        assert len(run.all("worker.started", worker=0)) == 1
        tell(signal.SIGTERM)

    status, run = supervised(story, lambda index: ["crash" if index else "up"])
    assert status == 1
    assert run.all("worker.ended", worker=0, ended="exit status 0")


def test_all_given_up_is_the_end() -> None:
    status, _run = supervised(lambda _run: None, lambda _index: ["crash"], max_restarts=1)
    assert status == 1


def test_a_worker_that_cannot_start_ends_the_others() -> None:
    status, run = supervised(lambda _run: None, lambda index: ["broken" if index else "up"])
    assert status == 1
    (said,) = run.all("worker.cannot_start")
    assert (said["worker"], said["ended"]) == (1, "exit status 1")
    assert not run.all("worker.crashed")


def test_a_program_that_is_not_there_ends_the_start() -> None:
    async def main() -> int:
        supervisor = Supervisor(
            lambda _index: ["/nonexistent/gateway"], 2, max_restarts=3, drain_seconds=1
        )
        async with asyncio.timeout(WITHIN_S):
            return await supervisor.run()

    with capture_logs() as lines:
        assert asyncio.run(main()) == 1
    assert any(line["event"] == "worker.exec_failed" for line in lines)


def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OWN_END_SECONDS", 0.2)

    async def story(run: Run) -> None:
        await run.wait("workers.ready")
        tell(signal.SIGTERM)

    status, run = supervised(story, lambda index: ["deaf" if index else "up"], drain_seconds=0.1)
    assert status == 1
    (killed,) = run.all("workers.killed")
    assert 1 in killed["workers"]  # on a busy machine the other one may be late, too
    assert run.all("worker.ended", worker=1, ended="SIGKILL")


def test_a_worker_that_has_stopped_and_does_not_end_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a thread of it hangs at the end of the process."""
    monkeypatch.setattr(module, "OWN_END_SECONDS", 0.2)

    async def story(run: Run) -> None:
        await run.wait("worker.not_ended", worker=0)
        await run.wait("worker.crashed", worker=0, ended="SIGKILL")
        await run.wait("worker.started", worker=0, count=2)
        tell(signal.SIGTERM)

    status, run = supervised(story, lambda _index: ["stays"], count=1)
    assert status == 0
    assert run.all("worker.ended", worker=0)


def test_a_second_signal_does_not_wait_for_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OWN_END_SECONDS", 0.2)

    async def story(run: Run) -> None:
        await run.wait("workers.ready")
        tell(signal.SIGTERM)
        await run.wait("workers.stopping")
        tell(signal.SIGTERM)
        await run.wait("workers.stopping", forced=True)

    status, run = supervised(story, lambda _index: ["deaf"], count=1, drain_seconds=3600)
    assert status == 1
    assert run.all("workers.killed", workers=[0])


def test_a_worker_that_hangs_at_its_start_is_killed_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "UP_SECONDS", 0.1)

    async def story(run: Run) -> None:
        await run.wait("worker.start_timeout")
        await run.wait("worker.crashed", ended="SIGKILL")
        tell(signal.SIGTERM)

    async def main(lines: list[EventDict]) -> int:
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        supervisor = Supervisor(lambda _index: sleeper, 1, max_restarts=9, drain_seconds=20)
        task = asyncio.create_task(supervisor.run())
        await story(Run(lines, task))
        async with asyncio.timeout(WITHIN_S):
            return await task

    with capture_logs() as lines:
        assert asyncio.run(main(lines)) == 0


def test_workers_notice_that_their_supervisor_is_gone(tmp_path: Path) -> None:
    mark = tmp_path / "gone"
    program = (
        "import asyncio, sys; from gateway.app.supervisor import Supervisor\n"
        f"command = lambda _i: [sys.executable, {DOUBLE!r}, 'orphan', {str(mark)!r}]\n"
        "asyncio.run(Supervisor(command, 1, max_restarts=0, drain_seconds=1).run())\n"
    )

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            async for line in process.stdout:
                if b"workers.ready" in line:
                    break
            process.kill()
            await process.wait()
            await eventually(mark.exists, "the mark of the worker's end")

    asyncio.run(main())


def test_sighup_is_handed_on(tmp_path: Path) -> None:
    marks = [tmp_path / "0", tmp_path / "1"]

    async def story(run: Run) -> None:
        await run.wait("workers.ready")
        tell(signal.SIGHUP)
        await eventually(lambda: all(mark.exists() for mark in marks), "the mark of each worker")
        tell(signal.SIGTERM)

    status, run = supervised(story, lambda index: ["renew", str(marks[index])])
    assert status == 0
    assert not run.all("worker.crashed")


def test_a_worker_that_is_starting_gets_a_reload_once_it_is_up(tmp_path: Path) -> None:
    mark, go = tmp_path / "mark", tmp_path / "mark.go"

    async def story(run: Run) -> None:
        await run.wait("worker.started")
        tell(signal.SIGHUP)
        for _ in range(3):  # the loop reads it, and has its handler run
            await asyncio.sleep(0)
        go.touch()
        await eventually(lambda: mark.exists() and mark.read_text() != "", "the mark")
        assert mark.read_text() == "up"
        tell(signal.SIGTERM)

    status, run = supervised(story, lambda _index: ["late", str(mark)], count=1)
    assert status == 0
    assert not run.all("worker.crashed")


def test_systemd_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(WITHIN_S)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1", "STATUS=fine")
        assert systemd.recv(100) == b"READY=1\nSTATUS=fine"
    notify("READY=1")  # nobody there any more: said in the log, no exception
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def test_ends_have_names() -> None:
    assert [how_ended(2), how_ended(-9), how_ended(-99)] == [
        "exit status 2",
        "SIGKILL",
        "signal 99",
    ]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Background tasks: restarted once, reported, and ended with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import tasks
from gateway.tasks import TaskSet, background, wait_any


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "RESTART_SECONDS", 0.0)


class Loops:
    """A background loop that raises the first ``failures`` times, and then runs until cancelled."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.runs = 0
        self.running = asyncio.Event()
        self.reported: list[Mapping[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: self.reported.append(context)
        )

    async def run(self) -> None:
        """Be the loop."""
        self.runs += 1
        if self.runs <= self.failures:
            raise ZeroDivisionError
        self.running.set()
        await asyncio.Event().wait()


async def test_a_loop_that_raises_once_goes_on() -> None:
    loops, owner = Loops(1), TaskSet()
    with capture_logs() as logs:
        owner.serve(loops.run, "sums")
        await loops.running.wait()
    await owner.cancel()
    assert [(line["event"], line["task"]) for line in logs] == [("gateway.task_restarted", "sums")]
    assert loops.reported == []
    assert len(owner) == 0


async def test_a_loop_that_raises_again_is_reported_as_a_failed_part() -> None:
    loops = Loops(2)
    task = background(loops.run, "sums")
    await asyncio.wait((task,))
    await asyncio.sleep(0)
    assert loops.runs == 2
    (context,) = loops.reported
    assert context["background"] is task
    assert isinstance(context["exception"], ZeroDivisionError)


async def test_a_loop_that_was_stable_may_be_restarted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "STABLE_SECONDS", 0.0)
    loops, owner = Loops(5), TaskSet()
    owner.serve(loops.run, "sums")
    await loops.running.wait()
    assert loops.runs == 6
    await owner.cancel()


async def test_a_task_that_raises_is_reported_and_ends_no_other() -> None:
    loops, owner = Loops(1), TaskSet()
    other = owner.spawn(asyncio.Event().wait(), "other")  # type: ignore[arg-type]
    await asyncio.wait((owner.spawn(loops.run(), "broken"),))
    await asyncio.sleep(0)
    (context,) = loops.reported
    assert context["message"] == "the task 'broken' failed"
    assert "background" not in context
    assert not other.done()
    await owner.cancel()
    assert other.cancelled()


async def test_a_task_that_does_not_end_is_named() -> None:
    released = asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    owner = TaskSet()
    task = owner.spawn(stubborn(), "stubborn")
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await owner.cancel(0.01)
    assert logs[-1]["event"] == "gateway.tasks_not_ended"
    assert logs[-1]["tasks"] == ["stubborn"]
    released.set()
    await owner.wait(1.0)
    assert task.done()


async def test_a_wait_that_is_cancelled_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(wait_any(None, asyncio.Event(), asyncio.Event()))
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks() - before) == 3
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before

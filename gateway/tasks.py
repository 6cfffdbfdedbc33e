# SPDX-License-Identifier: GPL-2.0-or-later
"""Background tasks: started with a name, watched, restarted once, and ended with a deadline.

And the garbage collector, which no call is to wait for.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("gateway")


def freeze_objects(*, collect: bool) -> None:
    """Exempt all objects that exist now from garbage collection (``gc.freeze``).

    Modules, configuration and dialplan are some 300,000 objects; a collection of all of them stops
    every thread of Python for 0.1 s. Collections then look only at what calls leave behind.

    Args:
        collect: collect first, which takes those 0.1 s. Without it, objects in use now that become
            unreachable in a circle are freed by the next call with it.
    """
    if collect:
        gc.unfreeze()
        gc.collect()
    gc.freeze()


Work = Coroutine[Any, Any, None]

RESTART_SECONDS = 1.0
"""Pause before a background loop that raised is started again."""

STABLE_SECONDS = 600.0
"""A loop that has run for so long since its restart may be restarted once more."""

CANCEL_SECONDS = 2.0
"""Time that cancelled tasks have to end."""


def background(loop: Callable[[], Work], name: str) -> asyncio.Task[None]:
    """Start a loop that runs until its task is cancelled or the loop returns.

    Where it raises, it is started again once, after :data:`RESTART_SECONDS`. Where it raises again,
    the event loop's exception handler is told, with the task as ``background``: that part of the
    process has failed (:class:`gateway.app.service.Health`).
    """
    task = asyncio.create_task(_restarting(loop, name), name=name)
    task.add_done_callback(lambda ended: _report(ended, background=ended))
    return task


async def _restarting(loop: Callable[[], Work], name: str) -> None:
    """Run a loop, a second time where it raises; the second exception is raised."""
    clock = asyncio.get_running_loop().time
    restarted = False
    while True:
        began = clock()
        try:
            await loop()
            return
        except Exception:
            if restarted and clock() - began < STABLE_SECONDS:
                raise
            restarted = True
            log.exception("gateway.task_restarted", task=name, after_seconds=RESTART_SECONDS)
        await asyncio.sleep(RESTART_SECONDS)


def is_being_cancelled() -> bool:
    """Return whether somebody has asked this task to end: else a cancellation comes from what it
    waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class TaskSet:
    """The tasks of one owner. Whatever one raises is logged with its name, and ends no other."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Work, name: str) -> asyncio.Task[None]:
        """Start a task that ends by itself."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_report)
        return self._keep(task)

    def serve(self, loop: Callable[[], Work], name: str) -> asyncio.Task[None]:
        """Start a loop that ends with :meth:`cancel`: see :func:`background`."""
        return self._keep(background(loop, name))

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until all tasks have ended, ``seconds`` at most."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)

    async def cancel(self, seconds: float = CANCEL_SECONDS) -> None:
        """Cancel all tasks and wait ``seconds`` for their end; those still running are logged."""
        for task in self._tasks:
            task.cancel()
        await self.wait(seconds)
        if self._tasks:
            names = sorted(task.get_name() for task in self._tasks)
            log.error("gateway.tasks_not_ended", tasks=names, seconds=seconds)

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Refer to a task until it ends, and return it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _report(task: asyncio.Task[None], **more: Any) -> None:
    """Pass the exception of an ended task to the event loop's exception handler, with ``more``."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    message = f"the task {task.get_name()!r} failed"
    task.get_loop().call_exception_handler({"message": message, "exception": error, **more})


async def until_one_ends(*works: Work) -> None:
    """Run coroutines until one of them has ended, then cancel the others; raises what it raises."""
    tasks = [asyncio.create_task(work, name=getattr(work, "__qualname__", None)) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def wait_any(seconds: float | None, *events: asyncio.Event) -> None:
    """Wait until one of ``events`` is set, ``seconds`` at most."""
    waits = [asyncio.create_task(event.wait(), name="event") for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()

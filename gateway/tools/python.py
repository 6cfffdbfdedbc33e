# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools that are Python functions: coroutines on the event loop, all others in threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from gateway.tools.api import Call, ToolError
from gateway.tools.functions import Function, ToolCall, text_of
from gateway.tools.module import PythonTool

log = structlog.get_logger("tools")


class Threads:
    """Runs functions that block, so many at a time. Belongs to the event loop.

    Threads are made for one function each, and are no reason for the process to stay: one that
    never returns must not keep the gateway from ending, as those of an executor do.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = asyncio.Semaphore(limit)
        self.running = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """Wait for a thread, then for the function; what it raises is raised here."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        self.running += 1

        def told(value: Any, error: BaseException | None) -> None:
            self.running -= 1
            self._free.release()
            if result.cancelled():
                return
            if error is None:
                result.set_result(value)
            else:
                result.set_exception(error)

        def work() -> None:
            value, failure = None, None
            try:
                value = function()
            except BaseException as error:  # an exit, or a StopIteration, must not lose the answer
                failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
                if isinstance(error, StopIteration):
                    failure = RuntimeError("StopIteration")
            try:
                loop.call_soon_threadsafe(told, value, failure)
            except RuntimeError:
                return  # the loop is closed: the process ends

        threading.Thread(target=work, name="tool", daemon=True).start()
        try:
            return await result
        except asyncio.CancelledError:
            if not result.done() or result.cancelled():
                # Nothing ends a thread from outside; while it lasts, one fewer is free.
                log.warning("tool.thread_still_running", running=self.running, limit=self._limit)
            raise


def function_of(
    tool: PythonTool, threads: Threads, timeout: float, max_result_chars: int
) -> Function:
    """The function of a tool; ``timeout`` (s) is for one that names no deadline itself."""
    return Function(
        name=tool.name,
        description=tool.description,
        parameters=tool.signature.parameters,
        run=partial(_run, tool, threads),
        timeout=tool.options.timeout or timeout,
        max_result_chars=max_result_chars,
        waiting=tool.options.waiting,
    )


async def _run(tool: PythonTool, threads: Threads, request: ToolCall, given: dict[str, Any]) -> str:
    values = tool.signature.values(given)
    if tool.signature.call_name is not None:
        values[tool.signature.call_name] = _call_of(request)
    try:
        if tool.is_async:
            result = await tool.function(**values)  # type: ignore[misc]
        else:
            result = await threads.run(partial(tool.function, **values))
            if inspect.isawaitable(result):  # a coroutine function behind a decorator
                result = await result
        return text_of(result)
    except ToolError:
        raise
    except Exception as error:
        log.exception("tool.failed", tool=tool.name, call=request.call)
        # The words may hold what the model has no business to know; the kind of it helps already.
        raise ToolError(f"the function failed ({type(error).__name__})") from None


def _call_of(request: ToolCall) -> Call:
    loop, ours = asyncio.get_running_loop(), threading.get_ident()

    def on_loop(ask: Callable[[], None]) -> None:
        if threading.get_ident() == ours:
            ask()  # at once: what a coroutine tells comes before its result
        else:
            loop.call_soon_threadsafe(ask)

    return Call(
        id=request.call,
        caller=request.caller,
        called=request.called,
        route=request.route,
        variables=request.variables,
        _control=request.control,
        _on_loop=on_loop,
    )

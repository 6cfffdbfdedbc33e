# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools in Python: the functions of the module ``tools.module``. Coroutines run on the event loop,
other functions on threads."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import structlog

from gateway.tasks import is_being_cancelled
from gateway.text import path_of
from gateway.tools import MARK, Call, Function, Options, ToolCall, ToolError, result_text
from gateway.tools.schema import NAME, Signature, SignatureError


class ToolModuleError(Exception):
    """A module of tools cannot be used; ``file`` is None if there is none. ``line`` is from 1."""

    def __init__(self, message: str, file: Path | None = None, line: int = 1) -> None:
        super().__init__(message)
        self.file = file
        self.line = line


@dataclass(frozen=True, slots=True)
class PythonTool:
    """One function of a tool module."""

    name: str
    description: str
    function: Callable[..., object]
    signature: Signature
    options: Options


_loaded: dict[tuple[str, Path], Mapping[str, PythonTool]] = {}


def python_tools(
    name: str, folder: Path, reserved: Collection[str] = ()
) -> Mapping[str, PythonTool]:
    """Import a module (``hotel.tools``) or a file (``tools.py``, in ``folder``); return its tools
    by name.

    Tools are the functions with ``@tool``; without any, each public function that the module
    defines and documents. None may have a ``reserved`` name. A module is imported once in a
    process: later calls get the same tools, also after it has changed. Raises ToolModuleError.
    """
    key = (name, folder)
    if key not in _loaded:
        _loaded[key] = MappingProxyType(_tools_of(_imported(name, folder), reserved))
    return _loaded[key]


def _imported(name: str, folder: Path) -> ModuleType:
    """Import a module by name, or a file in ``folder`` if the name ends in ``.py``; ``folder`` is
    appended to ``sys.path`` for good. Raises ToolModuleError for whatever it raises but
    KeyboardInterrupt."""
    try:
        path = folder / path_of(name) if name.endswith(".py") else None
    except ValueError as error:
        raise ToolModuleError(f"{name}: {error}") from None
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for what the module imports beside itself
    try:
        if path is None:
            return importlib.import_module(name)
        if not path.is_file():
            raise ToolModuleError(f"{path} is no file")
        spec = importlib.util.spec_from_file_location(f"gateway_tools_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except ToolModuleError:
        raise
    except BaseException as error:  # whatever it does when imported, an exit too
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _import_error(error, name) from error
    return module


def _import_error(error: BaseException, name: str) -> ToolModuleError:
    """Return an error of the import with file and line: of a syntax error its own, otherwise the
    last line in the file where the import began, no library's; without both if the module itself
    is missing."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return ToolModuleError(f"{error.msg}", Path(error.filename), error.lineno or 1)
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        return ToolModuleError(f"there is no module {name}")
    between = (str(Path(__file__)), importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in between and not frame.filename.startswith("<frozen")
    ]
    # What stands in the module itself, not in a library that it hands something wrong to.
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    if not own:
        return ToolModuleError(said)
    first = own[0]
    at = next((frame for frame in reversed(own) if frame.filename == first.filename), first)
    return ToolModuleError(said, Path(at.filename), at.lineno or 1)


def _tools_of(module: ModuleType, reserved: Collection[str]) -> dict[str, PythonTool]:
    """Return the tools of a module by name. Raises ToolModuleError, also for a name that is used
    twice."""
    members = [
        one for one in vars(module).values() if inspect.isfunction(one) or hasattr(one, MARK)
    ]
    marked = [one for one in members if isinstance(getattr(one, MARK, None), Options)]
    chosen = marked or [
        one
        for one in members
        if one.__module__ == module.__name__ and not one.__name__.startswith("_") and one.__doc__
    ]
    tools: dict[str, PythonTool] = {}
    for function in dict.fromkeys(chosen):
        one = _tool_of(function, reserved)
        if one.name in tools:
            raise _error_at(function, f"the name {one.name!r} is used twice")
        tools[one.name] = one
    return tools


def _tool_of(function: Callable[..., object], reserved: Collection[str]) -> PythonTool:
    """Return the tool of a function, with or without ``@tool``. Raises ToolModuleError for a name
    that is unusable or reserved, a signature without schema, and if it has no description."""
    options = getattr(function, MARK, Options())
    name = options.name or function.__name__
    if not NAME.fullmatch(name):
        raise _error_at(function, f"{name!r}: a tool's name has 1 to 64 letters, digits, _ and -")
    if name in reserved:
        raise _error_at(function, f"{name!r} is the name of a built-in tool")
    try:
        signature = Signature(function)
    except SignatureError as error:
        raise _error_at(function, f"{function.__name__}: {error}") from None
    description = options.description or signature.summary
    if not description:
        raise _error_at(
            function, f"{function.__name__}: has no docstring, which the model is to read"
        )
    return PythonTool(name, description, function, signature, options)


def _error_at(function: Callable[..., object], message: str) -> ToolModuleError:
    """Return an error with file and first line of a function, of a decorated one the inner's."""
    code = inspect.unwrap(function).__code__
    return ToolModuleError(message, Path(code.co_filename), code.co_firstlineno)


log = structlog.get_logger("tools")


class Threads:
    """Runs blocking functions on threads, ``limit`` at a time. Lives on the event loop.

    Each function has a daemon thread of its own: one that never returns must not keep the process
    from ending, as the threads of an executor do.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = asyncio.Semaphore(limit)
        self.running = 0
        """Number of threads."""

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function on a new thread, once fewer than ``limit`` run; return or raise what it
        does.

        What is no Exception, as SystemExit, becomes a RuntimeError; so does StopIteration. If
        cancelled, the thread goes on and counts until its function returns, which is logged. Raises
        RuntimeError if the system has no further thread.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        self.running += 1

        def finish(value: Any, error: BaseException | None) -> None:
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
                loop.call_soon_threadsafe(finish, value, failure)
            except RuntimeError:
                return  # the loop is closed: the process ends

        try:
            threading.Thread(target=work, name="tool", daemon=True).start()
        except RuntimeError:  # the system has no further one
            self.running -= 1
            self._free.release()
            raise
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
    """Return the function that runs a tool.

    Args:
        timeout: deadline (s) of a tool without its own, waiting for a free thread included.
    """
    return Function(
        name=tool.name,
        description=tool.description,
        parameters=tool.signature.parameters,
        run=partial(_run, tool, threads, max_result_chars),
        timeout=tool.options.timeout or timeout,
        max_result_chars=max_result_chars,
        waiting=tool.options.waiting,
    )


async def _run(
    tool: PythonTool, threads: Threads, most: int, request: ToolCall, given: dict[str, Any]
) -> str:
    """Run a tool with arguments converted to its types; return its result as text, of which
    ``most`` characters are wanted.

    A coroutine function runs on the event loop, another on a thread; what that returns to be
    awaited is awaited on the loop. Raises ToolError: the tool's own, or one with only the class of
    any other exception, which is logged.
    """
    values = tool.signature.values(given)
    if tool.signature.call_name is not None:
        values[tool.signature.call_name] = _call_of(request)
    try:
        if inspect.iscoroutinefunction(tool.function):
            result = await tool.function(**values)
        else:
            result = await threads.run(partial(tool.function, **values))
            if inspect.isawaitable(result):  # a coroutine function behind a decorator
                result = await result
        return result_text(result, most)
    except ToolError:
        raise
    except BaseException as error:  # an exit, too: it is the function's, not the process's
        if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
            raise
        log.exception("tool.failed", tool=tool.name, call=request.call)
        # The words may hold what the model has no business to know; the kind of it helps already.
        raise ToolError(f"the function failed ({type(error).__name__})") from None


def _call_of(request: ToolCall) -> Call:
    """Return the :class:`Call` of a tool call, usable on any thread; from the event loop's its
    requests are made at once, from another later, in their order."""
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

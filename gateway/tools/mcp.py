# SPDX-License-Identifier: GPL-2.0-or-later
"""MCP servers that the gateway itself runs or reaches, with the official ``mcp`` package.

Each server has one task that owns its client: connects, lists its tools, waits, and connects again
with growing pauses when the connection is gone. Functions of a server that is away fail with words
for the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import uniform
from typing import Any

import structlog
from pydantic_core import to_json

from gateway.tasks import TaskSet, background, is_being_cancelled
from gateway.tools import Function, ToolCall, ToolError, Waiting
from gateway.tools.http import PARTS_A_TURN
from gateway.tools.schema import NAME, check_schema

log = structlog.get_logger("mcp")

MAX_TOOLS = 128
"""Tools of one server; the realtime API accepts about as many in all."""

MAX_PAGES = 8
"""Pages of a list of tools."""

MAX_SHOWN = 128
"""Characters of a tool's name in the log."""

MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of one answer of a server over HTTP."""

STREAM_AT_ONCE, STREAM_PER_SECOND = 4 * 1024 * 1024, 256 * 1024
"""Bytes of a stream of events or of a process, which has no end, that are read at once, and per
second then."""

MAX_LINE = 4 * 1024 * 1024
"""Bytes of a message; a longer one ends the connection."""

EXIT_SECONDS = 2.0
"""For the server to end once its input is closed, and again after SIGTERM; then it is killed."""

MAX_RUNNING = 16
"""Calls of one server at a time; a further one is told so."""

LIST_SECONDS = 30.0
"""Tools are listed again so often; it also shows a server that has gone without a word."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
CLOSE_SECONDS = 5.0
"""Seconds for a server to end; after that the package kills its process."""


@dataclass(frozen=True, slots=True)
class McpSettings:
    """One ``[[tools.mcp]]`` with ``client = "gateway"``."""

    name: str
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = None
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: str = ""
    allowed_tools: tuple[str, ...] = ()
    """Empty: all of them."""
    connect_timeout: float = 10.0
    timeout: float = 20.0
    max_result_chars: int = 8000
    needs_approval: Callable[[str], bool] = field(default=lambda _tool: False)
    waiting: Waiting = field(default_factory=Waiting)


class McpServer:
    """Connection to one MCP server, and its tools as functions. Lives on the event loop."""

    def __init__(self, settings: McpSettings) -> None:
        self.settings = settings
        self.state = "not started"
        self.functions: Mapping[str, Function] = {}
        """Functions of the server as last listed, by the names that the model uses."""
        self._client: Any = None
        self._broken = asyncio.Event()
        self._listed = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._running = 0
        self._left_out: set[tuple[str, str]] = set()
        """Name and reason of each tool that was logged as not offered."""

    async def start(self) -> None:
        """Begin to connect; return when its tools are listed, or after ``connect_timeout`` (s),
        when connecting goes on. Raises nothing."""
        self._owner = background(self._own, f"mcp {self.settings.name}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.connect_timeout):
                await self._listed.wait()

    async def stop(self) -> None:
        """Disconnect, end its process, and connect no more; wait ``CLOSE_SECONDS`` at most. Nothing
        if it was not started."""
        if self._owner is None:
            return
        self._owner.cancel()
        await asyncio.wait((self._owner,), timeout=CLOSE_SECONDS)

    async def _own(self) -> None:
        """Connect, list the tools, watch the connection, and connect again after a pause, until
        cancelled.

        The pause doubles up to ``LONGEST_PAUSE``, ±25 %, and is ``FIRST_PAUSE`` again after a
        connection that lasted that long. Logs ``mcp.up`` and ``mcp.down``; keeps :attr:`functions`
        while the server is away.
        """
        pause = FIRST_PAUSE
        # What it says on standard error is not ours to log.
        hint = {"advice": "run its command by hand to see"} if self.settings.command else {}
        while True:
            began = asyncio.get_running_loop().time()
            try:
                async with self._connected() as client:
                    await self._list(client)
                    self._client, self.state = client, "up"
                    self._listed.set()
                    log.info("mcp.up", server=self.settings.name, tools=sorted(self.functions))
                    await self._watch(client)
                self.state = "connection lost"
            except (Exception, BaseExceptionGroup) as error:
                if is_being_cancelled():  # what fails at the end stands for the cancellation
                    return
                self.state = _error_name(error)
            finally:
                self._client = None
                self._broken.clear()
            if asyncio.get_running_loop().time() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            log.warning(
                "mcp.down", server=self.settings.name, why=self.state, again_in_s=pause, **hint
            )
            await asyncio.sleep(pause * uniform(0.75, 1.25))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _watch(self, client: Any) -> None:
        """List the tools every ``LIST_SECONDS`` until a call finds the connection lost. Raises what
        :meth:`_list` does."""
        while True:
            try:
                async with asyncio.timeout(LIST_SECONDS):
                    await self._broken.wait()
                return
            except TimeoutError:
                await self._list(client)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """Yield an ``mcp.Client`` that is connected to the server's process or URL, within
        ``connect_timeout``; close it, and end the process, after the block."""
        from mcp import Client

        # It logs each line that is none of the protocol with a traceback, and what is in it.
        logging.getLogger("mcp").setLevel(logging.CRITICAL)
        settings = self.settings
        async with contextlib.AsyncExitStack() as stack:
            if settings.command:
                transport = _stdio(settings)
            else:
                transport = await _http(settings, stack)
            client = Client(transport, cache=None)
            async with asyncio.timeout(settings.connect_timeout):
                connected = await stack.enter_async_context(client)
            yield connected

    async def _list(self, client: Any) -> None:
        """Replace :attr:`functions` by the tools that the server lists, ``MAX_PAGES`` at most.

        Schemas are checked on a thread. Raises TimeoutError after ``connect_timeout`` (s), or an
        error of the connection; then the functions stay as they were.
        """
        found: dict[str, Function] = {}
        cursor: str | None = None
        async with asyncio.timeout(self.settings.connect_timeout):
            for _ in range(MAX_PAGES):
                page = await client.list_tools(cursor=cursor)
                # A schema takes up to a second to check: calls go on meanwhile.
                await asyncio.to_thread(self._add_all, page.tools[: 2 * MAX_TOOLS], found)
                cursor = page.next_cursor
                if not cursor or len(found) >= MAX_TOOLS:
                    break
        self.functions = found

    def _add_all(self, tools: Iterable[Any], found: dict[str, Function]) -> None:
        """Add listed tools to ``found``. On a thread."""
        for tool in tools:
            self._add(tool, found)

    def _add(self, tool: Any, found: dict[str, Function]) -> None:
        """Add a listed tool to ``found`` as ``<server>_<tool>``. On a thread.

        Left out, without a word, if ``allowed_tools`` does not name it; and logged once if its name
        is none for a function, there are ``MAX_TOOLS`` already, or its schema is not usable. A
        schema that has not changed is not checked again.
        """
        settings = self.settings
        if settings.allowed_tools and tool.name not in settings.allowed_tools:
            return
        name = f"{settings.name}_{tool.name}"
        problem = None
        before = self.functions.get(name)
        if not NAME.fullmatch(name):
            problem = "its name is none that a function may have"
        elif len(found) >= MAX_TOOLS:
            problem = f"more than {MAX_TOOLS} tools"
        elif before is None or before.parameters != tool.input_schema:
            try:
                check_schema(tool.input_schema)
            except ValueError as error:
                problem = f"its input schema {error}"
        if problem is not None:
            self._leave_out(tool.name[:MAX_SHOWN], problem)
            return
        found[name] = Function(
            name=name,
            description=(tool.description or tool.title or tool.name)[:4096],
            parameters=tool.input_schema,
            run=partial(self._run, tool.name),
            timeout=settings.timeout,
            max_result_chars=settings.max_result_chars,
            waiting=settings.waiting,
            approval=settings.needs_approval(tool.name),
        )

    def _leave_out(self, tool: str, problem: str) -> None:
        """Log a tool that is not offered, and why; once each, since tools are listed again and
        again, and ``MAX_TOOLS`` such lines at most."""
        if (tool, problem) in self._left_out or len(self._left_out) >= MAX_TOOLS:
            return
        self._left_out.add((tool, problem))
        log.warning("mcp.tool_left_out", server=self.settings.name, tool=tool, why=problem)

    async def _run(self, tool: str, call: ToolCall, given: dict[str, Any]) -> str:
        """Call a tool of the server; return its result as text.

        Raises ToolError if the server is away, ``MAX_RUNNING`` calls of it run, it refuses, the
        tool failed, or the connection breaks; that also has :meth:`_watch` end, so that the server
        is connected to again. The caller sets the deadline.
        """
        client = self._client
        if client is None:
            raise ToolError("the server of this tool cannot be reached now")
        if self._running >= MAX_RUNNING:
            raise ToolError("the server of this tool is busy; try again later")
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        self._running += 1
        try:
            # As OpenTelemetry's conventions for MCP have it.
            result = await client.call_tool(tool, given, meta=call.trace_headers or None)
        except MCPError as error:
            if getattr(getattr(error, "error", None), "code", None) == CONNECTION_CLOSED:
                self._broken.set()
                raise ToolError("the connection to the server of this tool is lost") from None
            raise ToolError(f"the server refused: {str(error)[:500]}") from None
        except (OSError, RuntimeError, ValueError) as error:
            self._broken.set()
            log.warning(
                "mcp.call_failed", server=self.settings.name, tool=tool, why=_error_name(error)
            )
            raise ToolError("the connection to the server of this tool is lost") from None
        finally:
            self._running -= 1
        return _result_text(result)


def _error_name(error: BaseException) -> str:
    """Return the class name of an error, of a group that of its first one: its text may hold a URL
    or a header."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return type(error).__name__


def _result_text(result: Any) -> str:
    """Return a ``CallToolResult`` as text for the model: its content blocks, one a line, or else
    its structured content as JSON, or else "done".

    Raises ToolError with that text if the result says that the tool failed (``isError``).
    """
    parts = [_content_text(part) for part in result.content]
    text = "\n".join(part for part in parts if part)
    if result.is_error:
        raise ToolError(text or "the tool failed, and does not say why")
    if result.structured_content is not None and not text:
        return to_json(result.structured_content).decode()
    return text or "done"


def _content_text(part: Any) -> str:
    """Return one content block of a tool's result as text: its words, those of an embedded
    resource, or in brackets what it is (a file, a link, an image, a sound)."""
    kind = part.type
    if kind == "text":
        return str(part.text)
    if kind == "resource":
        text = getattr(part.resource, "text", None)
        return str(text) if text is not None else f"[a file: {part.resource.uri}]"
    if kind == "resource_link":
        return f"[a link: {part.uri}]"
    return f"[{'an image' if kind == 'image' else 'a sound'}, which cannot be told in words]"


# ---- transports


class _Pace:
    """Rate at which a stream is read: ``STREAM_AT_ONCE`` bytes, then ``STREAM_PER_SECOND``."""

    def __init__(self) -> None:
        self._room, self._at = float(STREAM_AT_ONCE), asyncio.get_running_loop().time()

    async def take(self, size: int) -> None:
        """Count ``size`` bytes that have come; wait until the rate allows them to be passed on."""
        now = asyncio.get_running_loop().time()
        earned = (now - self._at) * STREAM_PER_SECOND
        self._room, self._at = min(STREAM_AT_ONCE, self._room + earned) - size, now
        await asyncio.sleep(max(0.0, -self._room / STREAM_PER_SECOND))


@contextlib.asynccontextmanager
async def _stdio(settings: McpSettings) -> AsyncIterator[tuple[Any, Any]]:
    """Start the server's command, and yield the streams of its messages for ``mcp.Client``: one
    JSON-RPC message a line on its standard input and output. Raises OSError if it cannot be
    started.

    The transport of the ``mcp`` package keeps a line of any length, and reads as fast as the server
    writes.
    """
    import anyio  # not at the top: most gateways start without it
    from mcp.client.stdio import get_default_environment
    from mcp.os.posix.utilities import terminate_posix_process_tree
    from mcp.shared.message import SessionMessage

    # "python3" is the one that we run on, with the packages that are beside us.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    process = await asyncio.create_subprocess_exec(
        *settings.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # What it writes there would stand between our log's lines, secrets and all.
        stderr=asyncio.subprocess.DEVNULL,
        env={**get_default_environment(), "PATH": path, **settings.env},
        cwd=settings.folder or None,
        start_new_session=True,
        limit=MAX_LINE,
    )
    came, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, going = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = TaskSet()
    tasks.spawn(_receive(process.stdout, came), f"mcp output of {process.pid}")
    tasks.spawn(_send(process.stdin, going, came), f"mcp input of {process.pid}")
    try:
        yield read, write
    finally:
        with anyio.CancelScope(shield=True):
            await tasks.cancel()
            for stream in (read, write, came, going):
                await stream.aclose()
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(EXIT_SECONDS):
                    await process.wait()
            except TimeoutError:
                await terminate_posix_process_tree(process, EXIT_SECONDS)  # type: ignore[arg-type]
            # It has ended; what it wrote last may be unread, and its pipe held by a child of it.
            process._transport.close()  # type: ignore[attr-defined]


async def _receive(output: Any, came: Any) -> None:
    """Pass the server's messages on to ``came``, at the rate of :class:`_Pace`; a line that is no
    message goes as the ValueError.

    Ends, and closes ``came``, which ends the connection, when the output ends or a line exceeds
    ``MAX_LINE``.
    """
    from anyio import BrokenResourceError
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    pace = _Pace()
    async with came:
        with contextlib.suppress(ValueError, OSError, BrokenResourceError):
            while line := await output.readline():
                await pace.take(len(line))
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError as error:
                    await came.send(error)
                else:
                    await came.send(SessionMessage(message))


async def _send(input: Any, going: Any, came: Any) -> None:
    """Write the client's messages to the server, one a line, until ``going`` is closed; close
    ``came``, which ends the connection, if the server has closed its input."""
    try:
        async with going:
            async for session_message in going:
                message = session_message.message
                line = message.model_dump_json(by_alias=True, exclude_unset=True)
                input.write(line.encode() + b"\n")
                await input.drain()
    except OSError:
        await came.aclose()


async def _http(settings: McpSettings, stack: contextlib.AsyncExitStack) -> Any:
    """Return the transport of a server at a URL (Streamable HTTP); its HTTP client is closed with
    ``stack``. Connecting has ``connect_timeout``, reading no deadline."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    client = await stack.enter_async_context(
        httpx2.AsyncClient(
            headers={**settings.headers, "Accept-Encoding": "identity"},
            event_hooks={"response": [_bound_response]},
            timeout=httpx2.Timeout(settings.connect_timeout, read=None),
            limits=httpx2.Limits(max_connections=MAX_RUNNING + 4),
            proxy=settings.proxy,
            trust_env=False,
        )
    )
    return streamable_http_client(settings.url, http_client=client)


async def _bound_response(response: Any) -> None:
    """Limit the size of a response with JSON, and the rate of one with events (an httpx2 hook).

    Raises ValueError for a compressed body: a small one may become very large, and none was asked
    for. The package reads a JSON answer whole, and events as fast as they come.
    """
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ValueError("compressed")
    events = response.headers.get("content-type", "").lower().startswith("text/event-stream")
    response.stream = _bounded(response.stream, paced=events)


def _bounded(stream: Any, *, paced: bool) -> Any:
    """Wrap a response's stream: with ``paced`` it is read at the rate of :class:`_Pace`, otherwise
    it raises ReadError beyond ``MAX_ANSWER`` bytes."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            pace = _Pace()
            room, parts = MAX_ANSWER, 0
            async for part in stream:
                room, parts = room - len(part), parts + 1
                if paced:
                    await pace.take(len(part))
                elif room < 0:
                    raise httpx2.ReadError("the answer is too large")
                elif parts % PARTS_A_TURN == 0:
                    await asyncio.sleep(0)
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()

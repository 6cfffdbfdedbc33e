# SPDX-License-Identifier: GPL-2.0-or-later
"""Transport to an MCP server that is a process of ours: a JSON-RPC message a line, on its pipes.

That of the ``mcp`` package keeps a line of any length, and reads as fast as the server writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from gateway.tasks import TaskSet

MAX_LINE = 4 * 1024 * 1024
"""Bytes of a message; a longer one ends the connection."""

EXIT_SECONDS = 2.0
"""For the server to end once its input is closed, and again after SIGTERM; then it is killed."""


class Pace:
    """Lets ``at_once`` bytes through, and ``per_second`` after that."""

    def __init__(self, at_once: int, per_second: int) -> None:
        self._at_once, self._per_second = at_once, per_second
        self._room, self._at = float(at_once), asyncio.get_running_loop().time()

    async def take(self, size: int) -> None:
        """Wait until there is room for what came."""
        now = asyncio.get_running_loop().time()
        earned = (now - self._at) * self._per_second
        self._room, self._at = min(self._at_once, self._room + earned) - size, now
        await asyncio.sleep(max(0.0, -self._room / self._per_second))


@contextlib.asynccontextmanager
async def stdio_transport(
    command: Sequence[str], env: Mapping[str, str], folder: str | None, pace: Pace
) -> AsyncIterator[tuple[Any, Any]]:
    """Start a server, and yield the streams of its messages as ``mcp.Client`` takes them.

    Raises OSError where it cannot be started.
    """
    import anyio  # not at the top: most gateways start without it
    from mcp.client.stdio import get_default_environment
    from mcp.os.posix.utilities import terminate_posix_process_tree
    from mcp.shared.message import SessionMessage

    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # What it writes there would stand between our log's lines, secrets and all.
        stderr=asyncio.subprocess.DEVNULL,
        env={**get_default_environment(), **env},
        cwd=folder,
        start_new_session=True,
        limit=MAX_LINE,
    )
    came, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, going = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = TaskSet()
    tasks.spawn(_receive(process.stdout, came, pace), f"mcp output of {process.pid}")
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


async def _receive(output: Any, came: Any, pace: Pace) -> None:
    """Pass on what the server writes, until it ends or writes a line that is too long."""
    from anyio import BrokenResourceError
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

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
    """Write what the client sends; the client sees that the server has gone."""
    try:
        async with going:
            async for session_message in going:
                message = session_message.message
                line = message.model_dump_json(by_alias=True, exclude_unset=True)
                input.write(line.encode() + b"\n")
                await input.drain()
    except OSError:
        await came.aclose()

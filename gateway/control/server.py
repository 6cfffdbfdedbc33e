# SPDX-License-Identifier: GPL-2.0-or-later
"""A Unix socket that answers one JSON line with one JSON line.

``{"command": "status"}`` is answered with ``{"ok": true, ...}``; what cannot be done with
``{"ok": false, "error": "..."}``. The file belongs to the gateway's user alone (mode 0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from gateway.tasks import TaskSet
from gateway.text import json_of

log = structlog.get_logger("control")

MAX_LINE_BYTES = 1024 * 1024
"""An image of :data:`gateway.tools.api.MAX_BYTES` in a data URI has room in it."""

MAX_CLIENTS = 16
"""At a time; nobody needs more, and each costs a task."""

PATIENCE_SECONDS = 10.0
"""How long a client may be silent, or slow to read."""

AGAIN_SECONDS = 0.2
"""Until a client that found no descriptor is looked at again."""

SPARE = 4
"""Descriptors kept for clients when the process has no other: theirs, and what commands open."""

LOOK_SECONDS = 5.0
"""Between two looks at whether the socket is still there."""

MAX_PATH_BYTES = 107
"""What a ``sockaddr_un`` holds."""

Answer = Mapping[str, Any]
Command = Callable[[Mapping[str, Any]], Answer | Awaitable[Answer]]
"""Takes the request; returns the answer, or raises RefusedError. One that takes time returns an
awaitable, with a deadline of its own."""


class RefusedError(Exception):
    """A command cannot be carried out; the text is the answer."""


class ControlError(Exception):
    """The socket cannot be opened; the message names it and why."""


class ControlServer:
    """Owns the socket's file while it runs.

    Args:
        path: where the socket is made; one that nobody listens on is replaced.
        commands: what there is to ask, by name; called on the event loop.
    """

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._listener: socket.socket | None = None
        self._spare: list[int] = []
        """Descriptors that are given up for a client where the process has no other left."""
        self._clients = TaskSet()
        self._watch = TaskSet()

    async def start(self) -> None:
        """Listen, and go on listening. Raises ControlError."""
        await self._listen()
        self._watch.serve(self._keep_listening, "control socket")

    async def _keep_listening(self) -> None:
        """Listen again where the socket was removed (by a cleaner of /run, say) or has closed."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._listener is None or not self._path.is_socket():
                log.warning("control.socket_lost", path=str(self._path))
                self._close()
                await self._listen()

    async def _listen(self) -> None:
        path = str(self._path)
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ControlError(f"control.socket: {path} is longer than {MAX_PATH_BYTES} bytes")
        self._make_room()
        before = os.umask(0o177)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
            listener.listen(MAX_CLIENTS)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise ControlError(f"control.socket: {path}: {error.strerror or error}") from None
        finally:
            os.umask(before)
        self._listener = listener
        self._keep_spare()
        self._watch_listener(listener)

    async def stop(self) -> None:
        """Stop listening, end what is being answered, and remove the file."""
        if self._listener is None:
            return
        await self._watch.cancel()
        self._close()
        await self._clients.cancel()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self._give_up_spare()

    def _make_room(self) -> None:
        if not self._path.is_socket():
            if self._path.exists():
                raise ControlError(f"control.socket: {self._path} is there and is no socket")
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._path))
            except OSError:
                self._path.unlink(missing_ok=True)  # left behind by a gateway that was killed
                return
        raise ControlError(f"control.socket: another gateway listens on {self._path}")

    def _on_client(self) -> None:
        listener = self._listener
        assert listener is not None
        self._give_up_spare()  # the command may need one, too
        try:
            client, _address = listener.accept()
        except OSError:
            # No descriptor, not even a spare one, as these are with a client: it comes back.
            self._keep_spare()
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(AGAIN_SECONDS, self._watch_listener, listener)
            return
        if len(self._clients) >= MAX_CLIENTS:
            client.close()
            self._keep_spare()
        else:
            self._clients.spawn(self._serve(client), "control client")

    def _watch_listener(self, listener: socket.socket) -> None:
        if listener is self._listener:
            asyncio.get_running_loop().add_reader(listener, self._on_client)

    def _keep_spare(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spare) < SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _give_up_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())

    async def _serve(self, client: socket.socket) -> None:
        client.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=client, limit=MAX_LINE_BYTES)
        try:
            while True:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    line = await reader.readline()
                    if not line:
                        return
                answer = json.dumps(await self._answer(line), ensure_ascii=False)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    writer.write(answer.encode() + b"\n")
                    await writer.drain()
        except (TimeoutError, ConnectionError, ValueError, asyncio.CancelledError):
            return  # silent, gone, or a line without an end
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await writer.wait_closed()
            if len(self._clients) == 1:
                self._keep_spare()  # the last one: nobody else's command needs them now

    async def _answer(self, line: bytes) -> Answer:
        try:
            request = json_of(line)
        except ValueError:
            return {"ok": False, "error": "one JSON object on one line is wanted"}
        name = request.get("command") if isinstance(request, dict) else None
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(sorted(self._commands))
            return {"ok": False, "error": f"unknown command; there are: {known}"}
        try:
            answer = command(request)
            if not isinstance(answer, Mapping):
                answer = await answer
            return {"ok": True, **answer}
        except RefusedError as error:
            return {"ok": False, "error": str(error)}
        except Exception:
            log.exception("control.failed", command=name)
            return {"ok": False, "error": "failed; the gateway's log says why"}

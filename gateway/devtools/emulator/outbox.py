# SPDX-License-Identifier: GPL-2.0-or-later
"""The sending side of a connection: events leave in the order in which they were put.

State changes and their events happen in one step, without waiting; the writer task alone waits
for the network.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from gateway.devtools.emulator.record import SessionRecord

_ROOM = 64  # events; a response waits beyond it, so a slow client bounds what is kept for it

NO_CODE = 1005
"""Stands for a close frame without a code (RFC 6455 section 7.1.5)."""


@dataclass(frozen=True, slots=True)
class _End:
    code: int
    reason: str
    drop: bool


class Outbox:
    """Events on their way to one client.

    ``translate`` makes of an event what the client gets, and a type of ``spaced_types`` gets a
    space before it; the record has it as it was put.
    """

    def __init__(
        self,
        socket: ServerConnection,
        record: SessionRecord,
        translate: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
        spaced_types: Collection[str] = (),
    ) -> None:
        self._socket = socket
        self._translate = translate
        self._spaced_types = frozenset(spaced_types)
        self._record = record
        self._queue: deque[tuple[dict[str, Any], bytes] | _End] = deque()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._over = False

    def put(self, event: dict[str, Any], audio: bytes = b"") -> None:
        """Send ``event``; ``audio``, if any, becomes its ``delta``. Nothing after an end."""
        if not self._over:
            self._queue.append((event, audio))
            self._filled.set()

    def end(self, code: int, reason: str = "", *, drop: bool = False) -> None:
        """Close after what was put before; ``drop`` cuts the TCP connection instead."""
        if not self._over:
            self._over = True
            self._queue.append(_End(code, reason, drop))
            self._filled.set()

    async def room(self) -> None:
        """Wait until the client has taken enough of what waits for it (at once, usually).

        Ends with the connection: the keepalive of the server bounds the wait.
        """
        while len(self._queue) >= _ROOM and not self._over:
            self._drained.clear()
            await self._drained.wait()

    async def run(self) -> None:
        """Write until the connection is over."""
        try:
            while True:
                while self._queue:
                    entry = self._queue.popleft()
                    if isinstance(entry, _End):
                        await self._finish(entry)
                        return
                    event, audio = entry
                    if audio:
                        event["delta"] = base64.b64encode(audio).decode("ascii")
                    self._record.note_server(event, audio)
                    told = [event] if self._translate is None else self._translate(event)
                    for each in told:
                        if each["type"] in self._spaced_types:
                            each = {**each, "type": f" {each['type']}"}
                        await self._socket.send(json.dumps(each))
                    if len(self._queue) < _ROOM:
                        self._drained.set()
                self._filled.clear()
                await self._filled.wait()
        except ConnectionClosed:
            return
        finally:
            self._over = True
            self._queue.clear()
            self._drained.set()

    async def _finish(self, end: _End) -> None:
        if end.drop:
            self._socket.transport.abort()
        elif end.code == NO_CODE:
            async with self._socket.send_context():
                self._socket.protocol.send_close()
        else:
            await self._socket.close(end.code, end.reason)

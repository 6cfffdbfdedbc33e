# SPDX-License-Identifier: GPL-2.0-or-later
"""The WebSocket library's connection, made fit for fifty messages a second and call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

READ_BYTES = 64 * 1024
"""Read from the socket at once: some seconds of audio as base64 in JSON."""
MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message, whole or in fragments; a longer one ends the session with 1009. The
service's own limit for audio is 15 MiB."""
MAX_FRAGMENTS = 4096
"""Frames of one message: without a limit, a server that sends empty ones would fill the memory."""
LARGE_MESSAGE = 64 * 1024
"""Bytes from which a message is decoded beside the event loop: four seconds of audio and more."""
CLOSE_TIMEOUT = 2.0
"""Seconds that the server has to answer our close before the socket is cut."""

_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class Connection(ClientConnection):
    """The library's connection, with a short way for messages and a deadline for half a close.

    Fifty messages a second and call come in. The library puts each into a queue and wakes the
    task that reads it, a turn of the event loop later; :attr:`take` is called with it instead,
    at once. Messages in several frames, large ones, and those that came before, go through the
    queue; nothing overtakes them.

    After the server's close frame the library waits for the server to end TCP, and a reader
    learns of the close only then: it waits :data:`CLOSE_TIMEOUT` here.
    """

    take: Callable[[bytes], None] | None = None
    """Gets each message from now on; None sends them through the queue."""
    queued = 0
    """Messages that went through the queue so far, or are on their way through it."""

    read = 0
    """Messages that were taken out of the queue."""

    _cut: asyncio.TimerHandle | None = None
    _fragments = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # asyncio reads plain sockets into a fresh 256 KiB buffer each time, which the C library
        # maps and unmaps: 12 us of the 14 that a message costs. A transport that has no such
        # attribute (TLS, another event loop) reads in its own way.
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES

    async def next_message(self) -> bytes:
        """The next message of the queue. Raises ConnectionClosed at its end."""
        message = await self.recv(decode=False)
        self.read += 1
        return message

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode in _DATA:
            whole = event.fin and event.opcode is not Opcode.CONT
            if self.take is not None and whole and len(event.data) <= LARGE_MESSAGE:
                self.take(bytes(event.data))
                return
            self._fragments = 0 if event.fin else self._fragments + 1
            if self._fragments > MAX_FRAGMENTS:
                self.protocol.fail(1009, "message in too many fragments")
                self.send_data()
                self.transport.abort()
                return
            self.take = None  # until the reader has what goes through the queue
            self.queued += event.fin
        super().process_event(event)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._cut is None and self.protocol.state is State.CLOSING:
            self._cut = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut is not None:
            self._cut.cancel()
        super().connection_lost(exc)


async def discard(connection: ClientConnection) -> None:
    """Drop a connection that became no session: say goodbye without waiting for an answer."""
    if connection.protocol.state is State.OPEN:
        with contextlib.suppress(Exception):
            connection.protocol.send_close(1000)
            connection.send_data()
    connection.transport.abort()
    await connection.wait_closed()
    # The library's keepalive task has been cancelled by now and ends on the loop's next turn.
    await asyncio.sleep(0)

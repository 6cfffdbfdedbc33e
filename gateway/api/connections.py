# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits on connections to the API: how many there are, and how long a request may take to come.

uvicorn has neither: it keeps a connection on which nothing comes for as long as its owner likes,
and answers 503 to everybody while there are too many.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 256
"""At a time; one more closes the one that has waited for a request for longest."""

REQUEST_SECONDS = 15.0
"""From the first byte of a request, or the beginning of a connection, to the end of the request."""


class Connection(H11Protocol):
    """An HTTP connection with a deadline for each request."""

    _overdue: asyncio.TimerHandle | None = None
    """Set while a request is waited for, or for the rest of one."""

    _since = 0.0
    """When it was last begun to wait (s, of the loop)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if need be in place of another."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one.waits]
        full = len(self.connections) >= CONNECTIONS
        if full and waiting:
            min(waiting, key=lambda one: one._since).abort()
        super().connection_made(transport)
        if full and not waiting:
            self.abort()
        else:
            self._wait()

    @property
    def waits(self) -> bool:
        """Whether nothing is being answered."""
        return self._overdue is not None or self.cycle is None or self.cycle.response_complete

    def abort(self) -> None:
        """End it at once."""
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is complete, and start it with the next one."""
        super().data_received(data)
        upgraded = self.transport.get_protocol() is not self  # a WebSocket may be quiet
        if upgraded or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
        elif self._overdue is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._forget()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._since = self.loop.time()
        self._overdue = self.loop.call_later(REQUEST_SECONDS, self.abort)

    def _forget(self) -> None:
        overdue: Any = self._overdue
        self._overdue = None
        if overdue is not None:
            overdue.cancel()

"""Waits for what the model says beside a conversation, for those who asked from outside."""

from __future__ import annotations

import asyncio

from gateway.call.outputs import OutOfBandDone


class OutOfBandWaiters:
    """Those of one call."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[OutOfBandDone]] = {}
        self._asked = 0

    def key(self) -> str:
        """A name for the next one."""
        self._asked += 1
        return f"outside-{self._asked}"

    def wait(self, key: str) -> asyncio.Future[OutOfBandDone]:
        """Before it is asked for; given up by ``close`` at the latest."""
        future: asyncio.Future[OutOfBandDone] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        return future

    def done(self, output: OutOfBandDone) -> None:
        """It has ended."""
        future = self._waiting.pop(output.key, None)
        if future is not None and not future.done():
            future.set_result(output)

    def close(self) -> None:
        """The call is over."""
        for key in tuple(self._waiting):
            self.done(OutOfBandDone(key, "over", ""))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Asterisk's manager interface: actions, and what it says about calls."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping

WITHIN_S = 30.0
KEPT = 5000
"""Events kept for looking back; a run of the lab has some hundreds."""

Message = Mapping[str, str]


class Manager:
    """One connection. ``output`` of a command is joined under the key ``Output``."""

    def __init__(self, host: str, port: int, user: str, secret: str) -> None:
        self._address = (host, port)
        self._login = (user, secret)
        self.events: deque[Message] = deque(maxlen=KEPT)
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._ids = itertools.count(1)
        self._pulse = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Log in and wait until Asterisk has booted. Raises ``OSError`` when nobody listens."""
        reader, self._writer = await asyncio.open_connection(*self._address)
        await reader.readline()  # the greeting
        self._reader = asyncio.create_task(self._read(reader), name="manager interface")
        user, secret = self._login
        await self.action("Login", Username=user, Secret=secret)
        await self.wait("FullyBooted")

    async def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None

    async def action(self, name: str, **fields: str) -> Message:
        """Do something; returns the response, which has to be a success."""
        assert self._writer is not None
        number = str(next(self._ids))
        lines = [f"Action: {name}", f"ActionID: {number}"]
        lines += [f"{key}: {value}" for key, value in fields.items()]
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(WITHIN_S):
            answer = await future
        assert answer.get("Response") in ("Success", "Follows"), answer
        return answer

    async def command(self, line: str) -> str:
        """What the command line interface answers."""
        return (await self.action("Command", Command=line)).get("Output", "")

    def all(self, event: str, **fields: str) -> list[Message]:
        """The events of this name with these fields, so far."""
        return [
            one
            for one in self.events
            if one["Event"] == event and all(one.get(key) == value for key, value in fields.items())
        ]

    async def wait(self, event: str, within_s: float = WITHIN_S, **fields: str) -> Message:
        """The newest such event, waited for."""
        try:
            async with asyncio.timeout(within_s):
                while not (found := self.all(event, **fields)):
                    self._pulse.clear()
                    await self._pulse.wait()
        except TimeoutError:
            seen = [dict(one) for one in list(self.events)[-8:]]
            raise AssertionError(f"Asterisk never said {event} {fields}; last: {seen}") from None
        return found[-1]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        fields: dict[str, str] = {}
        while raw := await reader.readline():
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if line:
                key, _, value = line.partition(":")
                value = value.strip()
                fields[key] = f"{fields[key]}\n{value}" if key in fields else value
                continue
            if "Event" in fields:
                self.events.append(fields)
                self._pulse.set()
            elif (number := fields.get("ActionID", "")) in self._answers:
                self._answers.pop(number).set_result(fields)
            fields = {}

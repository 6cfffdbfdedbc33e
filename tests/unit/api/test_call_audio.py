# SPDX-License-Identifier: GPL-2.0-or-later
"""What waits for a page that does not read, and what becomes of a call that nobody takes."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import HTTPException

from gateway.api import call_audio
from gateway.api.backend import Role, Token
from gateway.api.call_audio import (
    WAITING_FRAMES,
    WAITING_TEXTS,
    _Allowance,
    _Closed,
    _Page,
    _permit,
)
from gateway.audio import FRAME_BYTES


class Socket:
    """A WebSocket that takes nothing until it is let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.sent: list[Any] = []

    async def send_text(self, text: str) -> None:
        await self.open.wait()
        self.sent.append(json.loads(text))

    async def send_bytes(self, audio: bytes) -> None:
        await self.open.wait()
        self.sent.append(audio)


class End:
    """The other side, with audio."""

    def __init__(self) -> None:
        self.audio = b""

    def hear(self) -> bytes:
        return self.audio


def page(socket: Socket) -> Any:
    made: Any = _Page(socket)  # type: ignore[arg-type]
    made.end = End()
    return made


def test_of_what_is_not_read_the_newest_second_is_kept() -> None:
    async def run() -> None:
        socket = Socket()
        one = page(socket)
        frames = [bytes([number]) * FRAME_BYTES for number in range(120)]
        for frame in frames:
            one.end.audio = frame
            one.hear()
        for number in range(100):
            one.tell({"type": "pong", "id": number})
        one.tell({"type": "ended"})
        socket.open.set()
        await one.send()
        assert one.unread == 120 - WAITING_FRAMES
        assert socket.sent[-1] == b"".join(frames[-WAITING_FRAMES:])
        texts = socket.sent[:-1]
        assert len(texts) == WAITING_TEXTS
        assert texts[-1] == {"type": "ended"}

    asyncio.run(run())


def test_no_more_is_on_the_way_than_a_page_can_take() -> None:
    async def run() -> None:
        socket = Socket()
        socket.open.set()
        one = page(socket)
        one.end.audio = bytes(10 * FRAME_BYTES)

        async def send(times: int) -> int:
            for _ in range(times):
                one.hear()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            return sum(len(sent) for sent in socket.sent) // FRAME_BYTES

        sending = asyncio.create_task(one.send())
        assert await send(20) == 200, "a page that says nothing gets all"
        one._on_text('{"type": "got", "frames": 50}', one.end)
        assert await send(20) == 200
        assert one.unread == 200
        one._on_text('{"type": "got", "frames": 200}', one.end)
        assert await send(5) == 250
        with pytest.raises(_Closed):
            one._on_text('{"type": "got", "frames": 10000}', one.end)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(run())


def test_words_that_fail_are_reported_and_the_call_goes_on() -> None:
    told: list[dict[str, Any]] = []

    async def words() -> None:
        raise ZeroDivisionError

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        over = asyncio.Event()
        sides = SimpleNamespace(send=over.wait, receive=asyncio.Event().wait)
        carried = asyncio.create_task(call_audio._carried(cast(Any, sides), words()))
        async with asyncio.timeout(15):
            while not told:  # noqa: ASYNC110  what is told wakes nobody
                await asyncio.sleep(0.001)
            assert not carried.done()
            over.set()
            await carried

    asyncio.run(run())
    assert isinstance(told[0]["exception"], ZeroDivisionError)


@pytest.mark.parametrize(
    ("seconds", "told", "reason"),
    [
        ("SEND_SECONDS", [{"type": "ringing"}], "not_reading"),
        ("ANNOUNCED_SECONDS", [{"type": "trying"}], "not_taken"),
    ],
)
def test_waits_have_an_end(
    monkeypatch: pytest.MonkeyPatch, seconds: str, told: list[dict[str, Any]], reason: str
) -> None:
    monkeypatch.setattr(call_audio, seconds, 0.01)

    async def run() -> None:
        socket = Socket()
        if reason == "not_taken":
            socket.open.set()
        one = page(socket)
        for message in told:
            one.tell(message)
        with pytest.raises(_Closed) as closed:
            await one.send()
        assert closed.value.reason == reason

    asyncio.run(run())


@pytest.mark.parametrize("limit", [None, 0, 1])
def test_calls_are_off_until_a_setting_opens_them(limit: int | None) -> None:
    token = Token("one", Role.OPERATOR, "")
    paths: Any = SimpleNamespace(access=SimpleNamespace(token_of=lambda _scope: token))
    socket: Any = SimpleNamespace(headers={}, scope={}, state=SimpleNamespace())
    calls: Any = None if limit is None else SimpleNamespace(limit=limit)
    if limit:
        _permit(paths, socket, calls)
        assert socket.state.token is token
    else:
        with pytest.raises(HTTPException) as refused:
            _permit(paths, socket, calls)
        assert refused.value.status_code == 403


def test_an_allowance_is_a_rate_with_a_burst() -> None:
    one = _Allowance(50, 10, 0.0)
    assert one.take(10, 0.0)
    assert not one.take(1, 0.0)
    assert one.take(1, 0.1)
    assert not one.take(11, 1000.0), "not more at once, however long nothing came"

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a realtime server may send at most, on a real WebSocket; and that others go on meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.frames import Frame, Opcode

from gateway.realtime import connection
from gateway.realtime.connection import MAX_FRAGMENTS, MAX_MESSAGE, MESSAGES_A_TURN
from gateway.realtime.events import AudioDelta, ResponseCreated
from gateway.realtime.parse import MAX_AUDIO_TEXT, MAX_VALUES, BadEvent, parse_event
from tests.support.harness import eventually
from tests.support.scripted_realtime import Heard, Peer, opened, serving

MiB = 1024 * 1024


def delta(audio: bytes) -> str:
    encoded = base64.b64encode(audio).decode()
    where = {"response_id": "r1", "item_id": "i1", "content_index": 0}
    return json.dumps({"type": "response.output_audio.delta", **where, "delta": encoded})


async def session_with(script: Any, until: Any) -> tuple[Heard, Any]:
    async with serving(script, max_size=None) as server:
        heard = Heard()
        session = await opened(server, heard)
        await heard.until(lambda: until(heard))
        counters = session.counters
        await session.close()
    return heard, counters


async def too_long(peer: Peer) -> None:
    await peer.ws.send("x" * (MAX_MESSAGE + 1))


async def too_long_in_fragments(peer: Peer) -> None:
    async def parts() -> AsyncIterator[str]:
        for _ in range(17):
            yield "x" * MiB
            await asyncio.sleep(0)

    await peer.ws.send(parts())


async def fragments_without_end(peer: Peer) -> None:
    async def parts() -> AsyncIterator[str]:
        for _ in range(2 * MAX_FRAGMENTS):
            yield ""
            await asyncio.sleep(0)

    await peer.ws.send(parts())


@pytest.mark.parametrize("send", [too_long, too_long_in_fragments, fragments_without_end])
def test_a_message_without_measure_ends_the_session(send: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.set_up()
        await send(peer)
        await peer.until_closed()

    heard, _counters = asyncio.run(session_with(script, lambda heard: bool(heard.closed)))
    (closed,) = heard.closed
    assert (closed.code, closed.by_us) == (1006, False)


def test_large_events_come_whole_and_in_order_and_the_loop_goes_on() -> None:
    audio = bytes(range(256)) * 4096
    turns = 0

    async def script(peer: Peer) -> None:
        await peer.set_up()
        await peer.send("response.created", response={"id": "before"})
        await peer.ws.send(delta(audio))
        item = {"id": "i2", "type": "message", "content": "y" * 15 * MiB}
        await peer.send("conversation.item.added", item=item)
        await peer.send("response.created", response={"id": "after"})
        await peer.until_closed()

    async def scenario() -> list[Any]:
        nonlocal turns

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += any(type(event) is AudioDelta for event in heard.events)

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            beside = asyncio.create_task(others())
            created = ResponseCreated("after", {})
            await heard.until(lambda: created in heard.events)
            beside.cancel()
            await session.close()
            return heard.events

    events = asyncio.run(scenario())
    assert [type(event).__name__ for event in events] == [
        "ResponseCreated",
        "AudioDelta",
        "ItemAdded",
        "ResponseCreated",
    ]
    assert events[1].audio == audio
    assert turns, "other tasks had their turn between the two"


@pytest.mark.parametrize(
    ("frame", "detail"),
    [
        (delta(b"\x42" * MAX_AUDIO_TEXT), f"delta: more than {MAX_AUDIO_TEXT} characters"),
        ('{"type":"x","a":[' + "0," * MAX_VALUES + "0]}", f"more than {MAX_VALUES} values"),
        ('{"type":"x","a":' + "[" * (MAX_VALUES + 1), f"more than {MAX_VALUES} values"),
    ],
)
def test_what_would_take_too_long_is_a_bad_event(frame: str, detail: str) -> None:
    with pytest.raises(BadEvent) as caught:
        parse_event(frame.encode())
    assert detail in str(caught.value)


def test_a_bad_large_event_is_said_and_the_session_goes_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.set_up()
        await peer.ws.send(delta(b"\x42" * MAX_AUDIO_TEXT))
        await peer.send("response.created", response={"id": "after"})
        await peer.until_closed()

    with capture_logs() as logs:
        _heard, counters = asyncio.run(
            session_with(script, lambda heard: ResponseCreated("after", {}) in heard.events)
        )
    assert counters.bad_events == 1
    (line,) = [line for line in logs if line["event"] == "session.invalid_event"]
    assert line["field"] == "delta"


@pytest.mark.parametrize("audio_bytes", [1, 160, 40_000])
def test_a_server_that_sends_without_end_takes_no_more_than_its_turn(
    audio_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it comes, in order, as fast as allowed, and others have their turns between."""
    at_once, per_second = 400, 4000
    monkeypatch.setattr(connection, "MESSAGES_AT_ONCE", at_once)
    monkeypatch.setattr(connection, "MESSAGES_PER_SECOND", per_second)
    monkeypatch.setattr(connection.Connection, "_room", float(at_once))
    sent = 1500 if audio_bytes < 1000 else 60
    cost = sent * (1 + len(delta(b"\x42" * audio_bytes)) // connection.BYTES_OF_MESSAGE)
    most = 0

    async def script(peer: Peer) -> None:
        await peer.set_up()
        message = delta(b"\x42" * audio_bytes)
        for number in range(sent):
            await peer.ws.send(message)
            if number % 500 == 0:
                await peer.send("response.created", response={"id": str(number)})
        await peer.ws.close(4001, "at the end")

    async def scenario() -> tuple[Heard, int]:
        nonlocal most

        async def others() -> None:
            nonlocal most
            before = 0
            while True:
                await asyncio.sleep(0)
                most, before = max(most, len(heard.events) - before), len(heard.events)

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            beside = asyncio.create_task(others())
            await heard.end()
            beside.cancel()
            return heard, session._connection.held_back

    with capture_logs() as logs:
        began = time.monotonic()
        heard, held_back = asyncio.run(scenario())
        seconds = time.monotonic() - began
    assert sum(type(event) is AudioDelta for event in heard.events) == sent
    created = [one.response_id for one in heard.events if isinstance(one, ResponseCreated)]
    assert created == [str(number) for number in range(0, sent, 500)]
    assert (heard.closed[0].code, heard.closed[0].reason) == (4001, "at the end")
    assert most <= 3 * MESSAGES_A_TURN
    assert cost <= at_once + MESSAGES_A_TURN + per_second * seconds
    # A machine that is so slow itself holds nobody back.
    noted = [one for one in logs if one["event"] == "session.too_many_messages"]
    assert len(noted) == bool(held_back)


def test_pings_that_wait_when_the_connection_is_aborted_are_not_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio logs a write to a connection that is gone: one for each ping that was kept."""

    async def script(peer: Peer) -> None:
        await peer.set_up()
        peer.ws.transport.write(Frame(Opcode.PING, b"").serialize(mask=False) * 100_000)
        await peer.hang()

    async def scenario() -> None:
        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            await eventually(lambda: session._connection.held_back > 0, "reading is paused")
            await session.close()

    with caplog.at_level("WARNING", "asyncio"):
        asyncio.run(scenario())
    assert not caplog.messages

# SPDX-License-Identifier: GPL-2.0-or-later
"""Realtime servers that send without end, or nothing that anybody hears, or count their ids anew in
each session; a call at another server loses no frame and waits for nobody."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.frames import Frame, Opcode

from tests.support.dialog import bystander, unharmed
from tests.support.harness import WATCHED, GatewayStack, eventually
from tests.support.listening import Spoken, is_silence, noise
from tests.support.scripted_realtime import Peer, serving

TONE = bytes([0x80, 0x80, 0x00, 0x00]) * 40
SILENCE = b"\xff" * 8000
PART = {"response_id": "r1", "item_id": "i1", "output_index": 0, "content_index": 0}


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, "event_id": "e1", **fields})


def delta(audio: bytes, item: str = "i1") -> str:
    encoded = base64.b64encode(audio).decode()
    return event("response.output_audio.delta", **{**PART, "item_id": item}, delta=encoded)


def created(name: str = "r1") -> str:
    return event("response.created", response={"id": name, "status": "in_progress", "output": []})


def done(name: str = "r1", status: str = "completed", **more: Any) -> str:
    output: list[Any] = []
    response = {"id": name, "status": status, "output": output, **more}
    return event("response.done", response=response)


ERROR = {"type": "invalid_request_error", "code": "x", "message": "y" * 300, "param": None}

FLOODS: dict[str, Callable[[int], str]] = {
    "audio-of-many-items": lambda n: delta(TONE, f"i{n}"),
    "errors": lambda _n: event("error", error=ERROR),
    "turns": lambda n: event(
        f"input_audio_buffer.speech_{'started' if n % 2 else 'stopped'}", item_id=f"u{n // 2}"
    ),
}
"""What is sent without a pause, by number."""


async def flood(peer: Peer, make: Callable[[int], str]) -> None:
    """Send as fast as is read; whole frames at once, as the library would be too slow."""
    await peer.ws.send(created())
    transport = peer.ws.transport
    frames = b"".join(
        Frame(Opcode.TEXT, make(number).encode()).serialize(mask=False) for number in range(500)
    )
    while not transport.is_closing():
        if transport.get_write_buffer_size() < 2 * len(frames):
            transport.write(frames)
        await asyncio.sleep(0.01)


async def cancelled(peer: Peer) -> None:
    """Each response is cancelled by the server itself."""
    for name in ("speech_started", "speech_stopped", "committed"):
        await peer.send(f"input_audio_buffer.{name}", item_id="u1")
    await peer.ws.send(created())
    await peer.ws.send(done(status="cancelled", status_details={"reason": "turn_detected"}))


async def quiet(peer: Peer) -> None:
    """A response of silence, faster than real time."""
    await peer.ws.send(created())
    for _ in range(30):
        await peer.ws.send(delta(SILENCE))


async def always_listening(peer: Peer) -> None:
    """It hears a caller who never stops."""
    for number in range(1000):
        await peer.send("input_audio_buffer.speech_started", item_id=f"u{number}")
        await asyncio.sleep(0.3)


QUIET: dict[str, tuple[Callable[[Peer], Awaitable[None]], str]] = {
    "cancelled": (cancelled, "turn_not_answered"),
    "quiet": (quiet, "audio_is_silence"),
    "listening": (always_listening, "turn_not_ended"),
}


CUT, AFTER = noise(1, 3.0), noise(2, 1.0)
sessions: Counter[str] = Counter()
"""How many sessions of each name there were."""


async def lost_after_an_interruption(peer: Peer) -> None:
    """The first session is lost once the caller has interrupted; the next one answers under the
    same ids."""
    sessions["lost"] += 1
    await peer.receive("input_audio_buffer.append")
    await peer.ws.send(created())
    if sessions["lost"] == 1:
        await peer.ws.send(delta(CUT))
        await peer.send("input_audio_buffer.speech_started", item_id="u1")
        while not (await peer.receive())["type"].startswith("conversation.item."):
            pass  # it was cut, and the item truncated or deleted
        peer.ws.transport.abort()
    else:
        await peer.ws.send(delta(AFTER))
        await peer.ws.send(done())


async def script(peer: Peer) -> None:
    """What the user part of the call's address says."""
    await peer.set_up()
    assert peer.ws.request is not None
    (name,) = parse_qs(urlsplit(peer.ws.request.path).query)["script"]
    if name == "lost":
        await lost_after_an_interruption(peer)
        await peer.until_closed(60)
        return
    if name in FLOODS:
        work: Awaitable[None] = flood(peer, FLOODS[name])
    else:
        work = QUIET[name][0](peer)
    reading = asyncio.ensure_future(peer.until_closed(60))
    working = asyncio.ensure_future(work)
    try:
        await reading
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
fallback = []
[route.silence]
timeout = {timeout}
[route.realtime]
url = "{url}?script={name}"
"""


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayStack]:
    servers = serving(script)
    server = runner.run(servers.__aenter__())
    made = GatewayStack(
        tmp_path_factory.mktemp("world"),
        log_level="info",
        entry=WATCHED,
        # A flood is to last, however long it takes here.
        routes="".join(
            ROUTE.format(name=name, url=server.url, timeout=0.6 if name in QUIET else 0)
            for name in (*FLOODS, *QUIET)
        )
        + ROUTE.format(name="lost", url=server.url, timeout=0).replace("fallback = []\n", ""),
        realtime="ping_timeout = 60",
    )
    runner.run(made.start())
    yield made
    runner.run(made.stop())
    runner.run(servers.__aexit__(None, None, None))


async def test_what_is_sent_without_end_holds_nobody_up(world: GatewayStack) -> None:
    """All at once: other calls are placed, talk and hear every frame."""
    beside = await bystander(world)
    calls = [await world.dial(name) for name in FLOODS]
    before = await world.holds()
    await world.gateway.wait("session.too_many_messages", 90, len(FLOODS))
    for call in calls:
        await world.summary_at_end(call)
    await unharmed(world, beside)
    for call in calls:
        assert len(world.gateway.all("call.error", call=call.call_id)) < 1000

    async def given_back() -> bool:
        after = await world.holds()
        return all(after[name] - before[name] < 10_000 for name in ("used_kib", "blocks"))

    await eventually(given_back, "memory is given back")


@pytest.mark.parametrize("name", QUIET)
async def test_what_nobody_hears_is_said_and_made_up_for(world: GatewayStack, name: str) -> None:
    call = await world.dial(name)
    line = await world.gateway.wait("call.silence_detected", call=call.call_id)
    # Where the machine is late, the turn is over for twice the time, too.
    assert line["rule"] in (QUIET[name][1], "turn_not_ended")
    await call.rtp.until(lambda: any(not is_silence(one) for one in call.rtp.packets))
    await world.summary_at_end(call)


async def test_the_next_session_is_heard_under_the_ids_of_a_lost_one(world: GatewayStack) -> None:
    call = await world.dial("lost")
    heard = Spoken(AFTER)
    await call.rtp.until(lambda: heard.heard_ms(call.rtp.packets) == 1000)
    await world.summary_at_end(call)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that leaves the caller in silence: what is heard then, and how soon."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.harness import GatewayStack
from tests.support.listening import Spoken, is_silence, noise

TIMEOUT_S = 2.5
"""More than a busy machine keeps an emulator from answering."""

ROUTES = f"""
[[route]]
name = "watched"
to = "^watched$"
[route.greeting]
say = "Hello."
[route.silence]
timeout = {TIMEOUT_S}

[[route]]
name = "no-steps"
to = "^no-steps$"
fallback = []
[route.greeting]
say = "Hello."
[route.silence]
timeout = {TIMEOUT_S}

[[route]]
name = "listens"
to = "^listens$"
[route.greeting]
say = "Hello."
[route.silence]
timeout = {TIMEOUT_S}
filler_sound = "ringback"
filler_delay = 0.3
"""


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayStack]:
    made = GatewayStack(
        tmp_path_factory.mktemp("silence"),
        routes=ROUTES,
        # Pings are sent and answered, and none is missed by a machine that is busy.
        realtime="ping_interval = 0.4\nping_timeout = 10",
    )
    runner.run(made.start())
    yield made
    runner.run(made.stop())


HELLO = {"kind": "pattern", "seconds": 1, "seed": 3}
TURN = {"speech": {"at_ms": [200], "length_ms": 300}, "vad": "scripted"}


@pytest.mark.parametrize(
    ("route", "script", "rule"),
    [
        ("watched", {"vad": "off", "answer": "hang"}, "response_without_audio"),
        ("watched", {"vad": "off", "answer": "silent"}, "response_not_created"),
        (
            "watched",
            {"vad": "off", "answers": [HELLO | {"stall_at_ms": 300, "stall_s": 60}]},
            "audio_stalled",
        ),
        ("no-steps", {"vad": "off", "answer": "hang"}, "response_without_audio"),
        ("listens", TURN | {"answers": [HELLO, {"kind": "silent"}]}, "turn_not_answered"),
        ("listens", TURN | {"answers": [HELLO, {"kind": "hang"}]}, "response_without_audio"),
    ],
)
async def test_the_caller_hears_something_soon(
    world: GatewayStack, route: str, script: dict[str, Any], rule: str
) -> None:
    world.behave(**script)
    world.then(vad="off", answers=[HELLO])
    call = await world.dial(route)
    line = await world.gateway.wait("call.silence_detected", call=call.call_id)
    assert line["rule"] == rule
    hello: Spoken | None = None
    if route != "no-steps":
        await world.gateway.wait("call.session_replaced", call=call.call_id)
        second = world.emulator.sessions[-1]
        await second.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
        (said,) = second.sent_items.values()
        hello = Spoken(bytes(said))

    def whose() -> str:
        """A letter for each packet with sound: the agent's or the gateway's own."""
        heard = [one for one in call.rtp.packets if not is_silence(one)]
        return "".join("a" if hello and hello.packets_of([one]) else "g" for one in heard)

    # Between two answers of the agent, or before the first, is the gateway's own sound.
    wanted = re.compile(r"g" if hello is None else r"ga")
    await call.rtp.until(lambda: wanted.search(whose()) is not None)
    await world.summary_at_end(call)


async def test_a_response_of_text_only_is_said_and_asked_for_again(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "nothing"}, HELLO])
    call = await world.dial("greeted")
    line = await world.gateway.wait("call.response_without_audio", call=call.call_id)
    assert line["content"] == "empty"
    await call.rtp.heard_bytes(4000)
    await world.summary_at_end(call)


async def test_a_server_that_answers_pings_and_sends_no_event(world: GatewayStack) -> None:
    """Nothing says that a turn is over: the caller's own voice tells that something is due."""
    world.behave(vad="auto", answers=[HELLO, HELLO, HELLO])
    call = await world.dial("listens")
    session = await world.session_of(call)
    await world.gateway.wait("call.agent_speech_stopped", call=call.call_id)
    call.rtp.say(noise(3, 1.0))
    await session.wait_until(lambda one: len(one.sent("response.done")) == 2, 20)
    await world.gateway.wait("call.agent_speech_stopped", call=call.call_id, count=2)
    outbox = world.emulator.live[session.id]._outbox
    outbox.put = lambda *_event: None  # type: ignore[method-assign]
    call.rtp.say(noise(4, 8))
    line = await world.gateway.wait("call.silence_detected", call=call.call_id)
    assert line["rule"] == "no_events"
    await world.gateway.wait("call.session_replaced", call=call.call_id)
    summary = await world.summary_at_end(call)
    assert [one["why"] for one in summary["failovers"]] == ["session_silent"]


async def test_a_server_that_is_frozen_before_it_has_heard_anybody(world: GatewayStack) -> None:
    """It is asked with an update that changes nothing: any event is an answer."""
    world.behave(vad="off", answers=[HELLO, HELLO, HELLO])
    call = await world.dial("listens")
    session = await world.session_of(call)
    await world.gateway.wait("call.agent_speech_stopped", call=call.call_id)
    call.rtp.say(noise(3, 3.2))

    def asked() -> list[Any]:
        return [one for one in session.seen("session.update") if len(one.body["session"]) == 1]

    await session.wait_until(lambda _one: len(asked()) == 1, 20)
    await call.rtp.quiet()
    assert not world.gateway.all("call.silence_detected", call=call.call_id)
    outbox = world.emulator.live[session.id]._outbox
    outbox.put = lambda *_event: None  # type: ignore[method-assign]
    call.rtp.say(noise(4, 12))
    line = await world.gateway.wait("call.silence_detected", call=call.call_id)
    assert line["rule"] == "update_not_answered"
    await world.gateway.wait("call.session_replaced", call=call.call_id)
    summary = await world.summary_at_end(call)
    assert [one["why"] for one in summary["failovers"]] == ["session_silent"]

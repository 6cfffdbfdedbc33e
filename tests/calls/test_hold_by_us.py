# SPDX-License-Identifier: GPL-2.0-or-later
"""The model lets the caller wait with music, in its own time or until it has something to say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests.calls.test_transfer_blind import outputs_of
from tests.support.harness import PATIENT, GatewayStack
from tests.support.listening import all_arrives, is_silence, noise
from tests.support.referred import ReferredCall, dial
from tests.support.rtp_end import Packet

WORLD = {
    "more": PATIENT,
    "routes": """
[[route]]
name = "waiting"
to = "^waiting$"
[route.greeting]
say = "Hello."
[route.hold]
enabled = true
sound = "chime"
max_duration = 20
""",
}


def holds(seconds: float) -> list[dict[str, Any]]:
    """The model says something, holds, and says something else."""
    tool = {"name": "hold", "arguments": json.dumps({"seconds": seconds})}
    said = {"kind": "pattern", "seconds": 0.4, "burst": True}
    return [{**said, "tools": [tool]}, {**said, "seed": 5}, {"kind": "silent"}]


async def music(world: GatewayStack, call: ReferredCall) -> list[Packet]:
    """Wait for the hold to begin, and for the caller to hear its chime; returns what of it came."""
    await world.gateway.wait("call.holding", call=call.call_id)
    before = len(call.rtp.packets)

    def heard() -> list[Packet]:
        return [one for one in call.rtp.packets[before:] if not is_silence(one)]

    await call.rtp.until(lambda: len(heard()) > 10)
    return heard()


async def test_music_for_some_seconds(world: GatewayStack) -> None:
    world.behave(vad="off", answers=holds(5))
    call = await dial(world, "waiting")
    session = await world.session_of(call)
    await music(world, call)
    # What the caller says meanwhile is not for the model.
    said = noise(1, 0.4)
    call.rtp.say(said)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert outputs_of(session)[0]["status"] == "the caller is back"
    assert said not in bytes(session.received)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    answer = list(session.sent_items.values())[1]
    await call.rtp.until(lambda: bytes(answer)[1600:] in call.rtp.heard)
    later = noise(2, 0.4)
    call.rtp.say(later)
    await all_arrives(session, later[1600:], 20)
    await world.summary_at_end(call)


async def test_too_long_a_hold(world: GatewayStack) -> None:
    world.behave(vad="off", answers=holds(600))
    call = await dial(world, "waiting")
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert outputs_of(session) == [{"error": "seconds: 600 is too long, at most 20"}]
    await world.summary_at_end(call)


async def test_a_caller_who_hangs_up_while_waiting(world: GatewayStack) -> None:
    world.behave(vad="off", answers=holds(20))
    call = await dial(world, "waiting")
    heard = await music(world, call)
    levels = [np.frombuffer(packet.payload, np.uint8).std() for packet in heard]
    assert max(levels) > 0
    await world.summary_at_end(call)

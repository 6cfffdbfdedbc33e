# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings that hold for the calls of one trunk, or for all: packet wait, session timers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support import harness
from tests.support.dialog import answered, dialog_call
from tests.support.harness import GatewayStack
from tests.support.listening import noise
from tests.support.rtp_end import FRAME, Sender

TRUNK = """
[[trunk]]
name = "far"
peers = ["127.0.0.1"]
packet_wait_ms = 400
"""


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayStack]:
    """A trunk far away, and a gateway that refreshes its calls by itself."""
    timers = 'session_timers = "always"\nsession_expires = 240\nsession_min = 120'
    config = harness.CONFIG.replace("[sip]", f"[sip]\n{timers}", 1)
    assert timers in config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "CONFIG", config)
        made = GatewayStack(tmp_path_factory.mktemp("world"), more=TRUNK)
        runner.run(made.start())
    yield made
    runner.run(made.stop())


async def test_the_trunks_wait_for_a_missing_packet(world: GatewayStack) -> None:
    """A packet is overtaken by 0.2 s, where ``[media]`` waits for 60 ms."""
    call = await answered(dialog_call(world.phone, "plain"))
    session = await world.session_of(call)
    sender = Sender(call.rtp)
    said = noise(600, 0.4)
    await sender.say(b"\x55" * 10 * FRAME)
    overtaken, place = said[:FRAME], (sender.sequence, sender.timestamp)
    sender.sequence, sender.timestamp = (place[0] + 1) & 0xFFFF, place[1] + FRAME
    await sender.say(said[FRAME : 11 * FRAME])
    next_place, (sender.sequence, sender.timestamp) = (sender.sequence, sender.timestamp), place
    sender.put(overtaken, 0)
    sender.sequence, sender.timestamp = next_place
    await sender.say(said[11 * FRAME :])
    await session.wait_until(lambda s: said in bytes(s.received), 30)
    summary = await world.summary_at_end(call)
    assert (summary["uplink"]["reordered"], summary["uplink"]["lost"]) == (1, 0)


async def test_refreshes_that_nobody_asked_for(world: GatewayStack) -> None:
    call = await answered(dialog_call(world.phone, "plain"))
    assert call.final is not None
    assert call.final.headers["session-expires"].replace(" ", "") == "240;refresher=uas"
    await world.summary_at_end(call)


async def test_the_least_interval_is_ours(world: GatewayStack) -> None:
    call = dialog_call(world.phone, "plain", "Supported: timer", "Session-Expires: 100")
    call.invite()
    refusal = await call.refused()
    assert (refusal.code, refusal.headers["min-se"]) == (422, "120")
    await world.phone.forget(call)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trunk speaks first and calls itself, and what its REFERs may cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gateway.api.client import RefusedError, ask
from tests.calls.test_moved import refer
from tests.support.callee import CalledPhone, free_port
from tests.support.dialog import answered, dialog_call
from tests.support.harness import GatewayStack
from tests.support.referred import dial
from tests.support.rtp_end import FRAME
from tests.support.sip_phone import CODECS

PORT = free_port()

WORLD = {
    "routes": f"""
[[route]]
name = "follows"
to = "^follows$"
allowed_refer_to = 'sip:[a-z0-9-]+@127\\.0\\.0\\.1:{PORT}'
""",
    "more": f"""
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["busy", "1"]
denied_prefixes = ["00"]
max_concurrent_calls = 1
ring_timeout = 5
[[trunk]]
name = "office"
peers = ["127.0.0.1:{PORT}", "127.0.0.1"]
codecs = ["PCMA", "PCMU"]
caller_id = "100"
caller_ids = "493012345[0-9]{{2}}"
""",
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """Whom the trunk leads to."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


async def test_a_delayed_offer_has_the_trunks_order(world: GatewayStack) -> None:
    call = await answered(dialog_call(world.phone, "plain", offer=False, codecs=("PCMA",)))
    assert call.final is not None
    assert " RTP/AVP 8 0 " in call.final.body
    call.rtp.payload_type, silence = CODECS["PCMA"]
    call.rtp._silence = silence * FRAME
    session = await world.session_of(call)
    audio = session.sent("session.updated")[0].body["session"]["audio"]
    assert audio["input"]["format"]["type"] == "audio/pcma"
    assert (await world.summary_at_end(call))["codec"] == "PCMA"


async def test_who_calls(world: GatewayStack, callee: CalledPhone) -> None:
    """The trunk's caller id, or one that it lets a call have."""
    path = world.folder / "gateway.sock"
    for asked, presented in [("", "100"), ("49301234567", "49301234567")]:
        to = {"to": "busy-486", "route": "plain", "trunk": "office", "caller_id": asked}
        call = (await asyncio.to_thread(ask, path, "dial", **to))["call"]
        await world.gateway.wait("call.summary", call=call)
        assert callee.calls[-1].invite.headers["from"].startswith(f"sip:{presented}@")
    with pytest.raises(RefusedError, match="not one of caller_ids of trunk office"):
        await asyncio.to_thread(
            ask, path, "dial", to="12", route="plain", trunk="office", caller_id="112"
        )
    with pytest.raises(RefusedError, match="a caller id needs a trunk"):
        await asyncio.to_thread(
            ask, path, "dial", to=callee.uri("busy-486"), route="plain", caller_id="49301234567"
        )


async def test_calls_that_a_refer_makes_are_counted(
    world: GatewayStack, callee: CalledPhone
) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    await world.session_of(call)
    refer(call, callee.uri("00495"))
    await call.until(lambda c: c.answers_to("REFER") == [603])
    line = await world.gateway.wait("gateway.call_not_placed")
    assert "outbound.denied_prefixes" in line["rule"]
    refer(call, callee.uri("answer"))
    there = await callee.called()
    await call.hung_up()
    # It takes the one place that there is, until it is over.
    path = world.folder / "gateway.sock"
    with pytest.raises(RefusedError, match="max_concurrent_calls = 1"):
        await asyncio.to_thread(ask, path, "dial", to=callee.uri("busy-486"), route="plain")
    there.bye()
    await world.summary(call)
    answer = await asyncio.to_thread(ask, path, "dial", to=callee.uri("busy-486"), route="plain")
    await world.gateway.wait("call.summary", call=answer["call"])

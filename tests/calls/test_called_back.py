# SPDX-License-Identifier: GPL-2.0-or-later
"""A call back that the model promises in one call, and the gateway places."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from gateway.api.client import ask
from gateway.cli.live_calls import status_lines
from tests.support.callee import CalledPhone, free_port
from tests.support.harness import GatewayStack, eventually

WORLD = {
    "more": """
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["4"]
[callbacks]
auto_dial = true
[access]
unknown_sources = "allow"
[[trunk]]
name = "carrier"
peers = ["127.0.0.1:${env:CALLBACK_PORT}"]
""",
    "routes": """
[[route]]
name = "desk"
to = "^desk$"
greeting.say = "Hello."
[route.schedule_callback]
enabled = true
allowed_numbers = "4[0-9]"
route = "back"
trunk = "carrier"

[[route]]
name = "back"
to = "^nobody$"
greeting.say = "I call you back about {callback_reason}."
""",
}


@pytest.fixture(scope="module", autouse=True)
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """The telephone that is called back."""
    port = free_port()
    os.environ["CALLBACK_PORT"] = str(port)
    phone = runner.run(CalledPhone().start(port))
    yield phone
    runner.run(phone.stop())


async def test_a_promise_is_kept(world: GatewayStack, callee: CalledPhone) -> None:
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=6)
    wanted = {"at": at.isoformat(), "number": "4 2", "reason": "the refund"}
    tools = [{"name": "schedule_callback", "arguments": json.dumps(wanted)}]
    answers = [{"kind": "nothing", "tools": tools}, {"kind": "silent"}]
    world.behave(vad="off", answers=answers)
    world.then(vad="off", answers=[{"kind": "silent"}])
    call = await world.dial("desk")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.seen("response.create")) == 2, 20)
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    told = json.loads(items[0]["output"])
    assert (told["status"], told["number"]) == ("scheduled", "42")
    status = await asyncio.to_thread(ask, world.folder / "gateway.sock", "status")
    assert status["callbacks"]["count"] == 1
    assert any("42, route back" in line for line in status_lines(status))
    await world.summary_at_end(call)
    # It is called at that time, which may be now, with a session of its own.
    there = await callee.called()
    assert there.user == "42"
    assert datetime.now(UTC) >= at
    there.respond(200, sdp=True)
    await there.until(lambda c: c.requests("ACK"))
    line = await world.gateway.wait("call.session_up", route="back")
    (placed,) = [one for one in world.emulator.sessions if one.id == line["session_id"]]
    await placed.wait_until(lambda s: s.seen("response.create") != [], 20)
    words = placed.seen("response.create")[0].body["response"]["instructions"]
    assert words == "Say exactly: I call you back about the refund."
    there.bye()
    await world.gateway.wait("call.summary", call=line["call"])
    assert (await world.gateway.wait("call.summary", call=line["call"]))["parent_id"] == (
        await world.gateway.wait("callback.scheduled")
    )["call"]

    def forgotten() -> bool:
        status = ask(world.folder / "gateway.sock", "status")
        return bool(status["callbacks"]["count"] == 0)

    await eventually(lambda: asyncio.to_thread(forgotten), "no callback is left")

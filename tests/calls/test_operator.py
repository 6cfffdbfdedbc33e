# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody at the gateway does to a running call."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from click.testing import CliRunner

from gateway.api.client import RefusedError, ask
from gateway.cli import main
from tests.calls.test_keys import events_of
from tests.calls.test_transfer_blind import told
from tests.support.forked import Forked
from tests.support.harness import GatewayStack, eventually
from tests.support.referred import ReferredCall, dial
from tests.support.sip_phone import Phone

WORLD = {
    "routes": """
[[route]]
name = "office"
to = "^office$"
[route.greeting]
say = "Hello."
[[route.transfer]]
name = "front desk"
to = "sip:1002@pbx.example"
ring_timeout = 20
""",
    "more": """
[control]
socket = "gateway.sock"
""",
}

GREETING = {"kind": "pattern", "seconds": 0.3}


async def command(world: GatewayStack, *words: str) -> tuple[int, str]:
    """Run ``gateway WORDS`` against the gateway; exit status and what it printed."""
    process = await Forked.command(*words, "-c", world.gateway.config)
    output, error = await process.communicate()
    return process.returncode or 0, (output + error).decode()


async def talking(world: GatewayStack) -> ReferredCall:
    """A call whose greeting was said."""
    world.behave(vad="off", answers=[GREETING, {"kind": "pattern", "seconds": 0.4, "seed": 3}])
    call = await dial(world, "office", 202)
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    return call


async def test_listed_and_hung_up(world: GatewayStack) -> None:
    call = await talking(world)
    status, listed = await command(world, "calls")
    assert status == 0
    (name,) = world.gateway.ids_of(call.call_id)
    assert name in listed
    assert "route office" in listed
    status, words = await command(world, "hangup", "nobody")
    assert (status, "no call in progress" in words) == (1, True)
    status, _ = await command(world, "hangup", call.call_id)
    assert status == 0
    bye = await call.hung_up()
    assert bye.headers["reason"] == 'Q.850;cause=16;text="Ended by the operator"'
    record = await world.record(call)
    assert record["bye_undelivered"] == ""
    ending = record["ending"]
    assert (ending["by"], ending["why"]) == ("operator", "operator")


async def test_transferred(world: GatewayStack) -> None:
    call = await talking(world)
    socket = world.folder / "gateway.sock"
    with pytest.raises(RefusedError, match="there are: 'front desk'"):
        await asyncio.to_thread(ask, socket, "transfer", call=call.call_id, destination="moon")
    asked = asyncio.create_task(command(world, "transfer", call.call_id, "front desk"))
    assert await call.asked() == "sip:1002@pbx.example"
    # Nobody there: the caller comes back to the model, which is told.
    call.notify("180 Ringing")
    call.notify("486 Busy Here", last=True)
    status, words = await asked
    assert (status, "sip:1002@pbx.example" in words, "busy, SIP 486" in words) == (1, True, True)
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    words = told(session)[-1]
    assert "busy" in words
    # The second time somebody takes the call.
    asked = asyncio.create_task(command(world, "transfer", call.call_id, "front desk"))
    await call.until(lambda _call: len(call.referred) == 2, what="second REFER")
    call.notify("200 OK", last=True)
    await call.hung_up()
    status, words = await asked
    assert (status, "answered, SIP 200" in words) == (0, True)
    record = await world.record(call)
    assert record["ending"]["why"] == "transferred"
    assert [one["outcome"] for one in record["transfers"]] == ["busy", "answered"]


async def test_calls_with_one_call_id_are_told_apart(world: GatewayStack) -> None:
    """Call-IDs are the callers' choice; commands and files go by the gateway's own ids."""
    world.behave(vad="off", answers=[GREETING])
    other_phone = Phone(world.gateway.sip)
    await other_phone.start()
    first, second = world.phone.call("office"), other_phone.call("office")
    other_phone.calls = {first.call_id: second}
    second.call_id = first.call_id
    for call in (first, second):
        call.invite()
        await call.answered()
    await world.gateway.wait("call.confirmed", count=2, call=first.call_id)
    ids = world.gateway.ids_of(first.call_id)
    assert len(ids) == 2
    status, words = await command(world, "hangup", first.call_id)
    assert (status, f"{first.call_id!r} is 2 calls" in words) == (1, True)
    assert all(one in words for one in ids)
    for one, call in zip(ids, (first, second), strict=True):
        status, _ = await command(world, "hangup", one[-8:])
        assert status == 0
        await call.hung_up()
        await world.gateway.wait("call.summary", call=one)
    await eventually(
        lambda: all(list(world.records_folder.glob(f"*_{one}.json")) for one in ids), "two records"
    )
    await other_phone.stop()


async def test_held_muted_and_pressed_keys(world: GatewayStack) -> None:
    call = await talking(world)
    (name,) = world.gateway.ids_of(call.call_id)
    lines = [
        (("hold", name), 0, f"{name}: on hold"),
        (("dtmf", name, "1"), 1, "something else is being done"),
        (("hold", name, "--off"), 0, f"{name}: back from hold"),
        (("mute", name), 0, f"{name}: muted"),
        (("mute", name, "--off"), 0, f"{name}: unmuted"),
        (("dtmf", name, "12#"), 0, f"{name}: digits sent"),
    ]
    for words, status, said in lines:
        run = partial(CliRunner().invoke, main, [*words, "-c", str(world.gateway.config)])
        done = await asyncio.to_thread(run)
        assert (done.exit_code, said in done.output) == (status, True), done.output
    await call.rtp.until(lambda: "".join(key for key, _ in events_of(call)) == "12#")
    await world.summary_at_end(call)

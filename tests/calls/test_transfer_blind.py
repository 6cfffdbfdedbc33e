# SPDX-License-Identifier: GPL-2.0-or-later
"""Blind transfer: REFER, what the caller hears meanwhile, and what the model is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.devtools.emulator.session_log import SessionRecord
from tests.support.harness import GatewayStack
from tests.support.listening import is_silence
from tests.support.referred import ReferredCall, dial
from tests.support.rtp_end import FRAME

WORLD = {
    "routes": """
[[route]]
name = "office"
to = "^office$"
[route.greeting]
say = "Hello."
[[route.transfer]]
name = "front desk"
to = "sip:1002@pbx.example;user=phone?Subject=hi"
ring_timeout = 5
[[route.transfer]]
name = "mobile"
to = "tel:+49301234567"
[[route.transfer]]
name = "extensions"
to = "sip:{number}@pbx.example"
allowed_numbers = "1[0-9]{3}"
"""
}


def asks_for(destination: str, after: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The model says half a second, asks for a transfer, and answers once if it comes to that."""
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": destination})}
    said = {"kind": "pattern", "burst": True}
    first = {**said, "seconds": 0.5, "tools": [tool]}
    return [first, after or {**said, "seconds": 1, "seed": 7}, {"kind": "silent"}]


def outputs_of(session: SessionRecord) -> list[dict[str, Any]]:
    """What the model was told of its tool calls."""
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    return [json.loads(one["output"]) for one in items if one["type"] == "function_call_output"]


def told(session: SessionRecord) -> list[str]:
    """Words that the model was told by the gateway itself."""
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    return [one["content"][0]["text"] for one in items if one.get("role") == "system"]


async def asked(world: GatewayStack, destination: str, refer_code: int = 202) -> ReferredCall:
    """A call in which the model has asked for a transfer."""
    world.behave(vad="off", answers=asks_for(destination))
    call = await dial(world, "office", refer_code)
    await call.asked()
    return call


async def comes_back(world: GatewayStack, call: ReferredCall) -> dict[str, Any]:
    """The model is told of the failure, and the caller hears it again; returns what it was told."""
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    await session.wait_until(lambda s: len(s.sent_items) == 2, 20)
    answer = list(session.sent_items.values())[1]
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    # The last of the ringback may still be under its beginning.
    await call.rtp.until(lambda: bytes(answer)[1600:] in call.rtp.heard)
    (output,) = outputs_of(session)
    return output


async def test_a_transfer_that_is_answered_ends_the_call(world: GatewayStack) -> None:
    call = await asked(world, "Front Desk")
    assert call.refer_to == "sip:1002@pbx.example;user=phone?Subject=hi", "as it is written"
    assert call.referred[0].headers["referred-by"].startswith("<sip:office@")
    session = await world.session_of(call)
    # All that was said before was heard before the REFER, and now there is ringback.
    (said,) = session.sent_items.values()
    before = len(call.rtp.heard.partition(bytes(said))[0] + said) // FRAME
    assert before <= len(call.rtp.packets)
    await call.rtp.until(lambda: sum(not is_silence(p) for p in call.rtp.packets[before:]) > 20)
    call.notify("100 Trying")
    call.notify("180 Ringing")
    await session.wait_until(lambda s: told(s) != [], 20)
    assert told(session) == ["The transfer to front desk is ringing."]
    call.notify("200 OK", last=True)
    bye = await call.hung_up()
    assert bye.headers["reason"] == 'Q.850;cause=16;text="Transferred"'
    record = await world.record(call)
    assert record["ending"]["by"] == "model"
    assert record["ending"]["why"] == "transferred"
    (attempt,) = record["transfers"]
    assert (attempt["destination"], attempt["mode"], attempt["outcome"], attempt["sip_code"]) == (
        "front desk",
        "blind",
        "answered",
        200,
    )
    assert len(call.referred) == 1


@pytest.mark.parametrize("code", [1000, 1011])
async def test_a_session_that_ends_while_the_transfer_is_announced(
    world: GatewayStack, code: int
) -> None:
    world.behave(
        vad="off", answers=asks_for("Front Desk"), end={"at": "response.done", "code": code}
    )
    call = await dial(world, "office")
    await call.asked()
    session = await world.session_of(call)
    (said,) = session.sent_items.values()
    assert bytes(said) in call.rtp.heard
    call.notify("100 Trying")
    call.notify("200 OK", last=True)
    await call.hung_up()
    record = await world.record(call)
    assert record["ending"]["why"] == "transferred"
    assert record["failovers"] == []


async def test_the_caller_comes_back_when_nobody_takes_it(world: GatewayStack) -> None:
    for line, status in [("486 Busy Here", "busy"), ("603 Decline", "declined")]:
        call = await asked(world, "mobile")
        assert call.refer_to == "tel:+49301234567"
        call.notify("180 Ringing")
        call.notify(line, last=True)
        output = await comes_back(world, call)
        assert output["status"] == status
        assert output["sip_code"] == int(line[:3])
        # The ringback is over: silence, then what the model says.
        summary = await world.summary_at_end(call)
        assert [one["outcome"] for one in summary["transfers"]] == [status]


async def test_a_telephone_that_takes_no_transfers(world: GatewayStack) -> None:
    call = await asked(world, "1234", refer_code=603)
    assert call.refer_to == "sip:1234@pbx.example"
    output = await comes_back(world, call)
    assert (output["status"], output["sip_code"]) == ("refused", 603)
    await world.summary_at_end(call)


async def test_nobody_answers_in_time(world: GatewayStack) -> None:
    call = await asked(world, "front desk")
    call.notify("180 Ringing")
    output = await comes_back(world, call)
    assert output["status"] == "no_answer"
    # Somebody does, later: the caller is there now.
    call.notify("200 OK", last=True)
    await call.hung_up()
    summary = await world.summary(call)
    assert summary["ending"]["why"] == "transferred"


async def test_an_outcome_that_is_never_told(world: GatewayStack) -> None:
    call = await asked(world, "front desk")
    output = await comes_back(world, call)
    assert output["status"] == "unknown"
    await world.summary_at_end(call)


@pytest.mark.parametrize("first_has_id", [True, False])
async def test_the_success_of_a_transfer_that_was_given_up_is_not_that_of_the_next(
    world: GatewayStack, first_has_id: bool
) -> None:
    (again, answer, silent) = asks_for("mobile")
    world.behave(vad="off", answers=[asks_for("front desk")[0], again, answer, silent])
    call = await dial(world, "office")
    await call.asked()
    first = call.referred[0].headers["cseq"].split()[0] if first_has_id else ""
    call.notify("100 Trying", event_id=first)
    await call.until(lambda _call: len(call.referred) == 2, what="the second REFER")
    second = call.referred[1].headers["cseq"].split()[0]
    call.notify("100 Trying", event_id=second)
    call.notify("200 OK", last=True, event_id=first)
    await world.gateway.wait("sip.refer_status_dropped", call=call.call_id)
    call.notify("486 Busy Here", last=True, event_id=second)
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(outputs_of(s)) == 2, 20)
    assert [one["status"] for one in outputs_of(session)] == ["unknown", "busy"]
    summary = await world.summary_at_end(call)
    assert [(one["destination"], one["outcome"]) for one in summary["transfers"]] == [
        ("front desk", "unknown"),
        ("mobile", "busy"),
    ]
    assert summary["ending"]["why"] != "transferred"


async def test_a_second_transfer_of_a_telephone_that_gives_no_ids(world: GatewayStack) -> None:
    world.behave(vad="off", answers=asks_for("front desk", asks_for("mobile")[0]))
    call = await dial(world, "office")
    await call.asked()
    call.notify("100 Trying")
    await call.until(lambda _call: len(call.referred) == 2, what="the second REFER")
    call.notify("100 Trying")
    call.notify("200 OK", last=True)
    await call.hung_up()
    summary = await world.summary(call)
    assert [(one["destination"], one["outcome"]) for one in summary["transfers"]] == [
        ("front desk", "unknown"),
        ("mobile", "answered"),
    ]


async def test_a_subscription_that_ends_without_an_outcome(world: GatewayStack) -> None:
    call = await asked(world, "mobile")
    call.notify("100 Trying", last=True)
    output = await comes_back(world, call)
    assert output["status"] == "unknown"
    await world.summary_at_end(call)


async def test_a_pbx_that_lets_go_after_the_202(world: GatewayStack) -> None:
    call = await asked(world, "mobile")
    call.notify("100 Trying")
    await world.gateway.wait("call.transfer_progress", call=call.call_id)
    await call.hang_up()
    summary = await world.summary(call)
    assert summary["ending"]["why"] == "transferred"
    assert [one["outcome"] for one in summary["transfers"]] == ["unknown"]


async def test_a_caller_who_hangs_up_while_it_rings(world: GatewayStack) -> None:
    call = await asked(world, "mobile")
    call.notify("180 Ringing")
    await world.gateway.wait("call.transfer_ringing", call=call.call_id)
    summary = await world.summary_at_end(call)
    assert [one["outcome"] for one in summary["transfers"]] == ["unknown"]


async def test_a_destination_that_is_not_allowed(world: GatewayStack) -> None:
    world.behave(vad="off", answers=asks_for("+4319001234567"))
    call = await dial(world, "office")
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    (output,) = outputs_of(session)
    assert "is not allowed" in output["error"]
    assert "front desk" in output["error"]
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    summary = await world.summary_at_end(call)
    assert summary["transfers"] == []
    assert not call.referred

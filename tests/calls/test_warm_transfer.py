# SPDX-License-Identifier: GPL-2.0-or-later
"""Warm transfers: whoever answers is briefed and takes the call by a key, on real SIP and RTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.api.client import ask
from gateway.audio import Codec
from gateway.audio.sounds import samples_of
from gateway.devtools.speech import pattern
from tests.calls.test_transfer_blind import outputs_of, told
from tests.calls.test_transfer_human import hear_each_other
from tests.support.callee import CalledCall, CalledPhone, free_port
from tests.support.dialog import answered as dialog_answered
from tests.support.dialog import dialog_call
from tests.support.harness import GatewayStack
from tests.support.listening import MOST_OF_IT, noise, share_heard
from tests.support.referred import ReferredCall, dial
from tests.support.rtp_end import FRAME, RtpEnd

PORT = free_port()
WORDS = {"kind": "pattern", "seconds": 0.6, "seed": 77}
SAID = pattern(77, 4800)
MUSIC = Codec.PCMU.from_linear(samples_of("music").tobytes())


def _route(name: str, *briefing: str, mode: str = "bridge", more: str = "") -> str:
    return f"""
[[route]]
name = "{name}"
to = "^{name}$"
[route.greeting]
say = "Hello."
{more}
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "{mode}"
[route.transfer.briefing]
""" + "\n".join(briefing)


WORLD = {
    "more": '[control]\nsocket = "gateway.sock"\n'
    + "[media]\njb_catch_up = false\npacket_wait_ms = 500\n"
    + '[access]\nunknown_sources = "allow"\n[outbound]\nmax_calls_per_minute = 60\n',
    "routes": _route("warm")
    + _route("short", "timeout = 4")
    + _route("taken", mode="attended")
    + _route("chime", 'sound = "chime"', 'accept_key = "5"', 'decline_key = "*"'),
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """Anna's telephone."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


async def heard(end: RtpEnd, said: bytes, count: int = 1) -> None:
    """Wait until this was heard so often."""
    await end.until(lambda: share_heard(said * count, end.heard) > MOST_OF_IT)


def asks(world: GatewayStack, words: Any) -> None:
    """The model has Anna called at once, and says this to her."""
    arguments = json.dumps({"destination": "anna", "briefing": "Mr Smith, about his bill."})
    tool = {"name": "transfer_call", "arguments": arguments}
    back = {"kind": "pattern", "seconds": 0.4, "seed": 7}
    first = {"kind": "nothing", "tools": [tool]}
    world.behave(vad="off", answers=[first, back, {"kind": "silent"}], out_of_band=words)


async def answered(
    world: GatewayStack, callee: CalledPhone, user: str = "warm", words: Any = WORDS
) -> tuple[ReferredCall, CalledCall]:
    """The model has Anna called, who answers."""
    asks(world, words)
    call = await dial(world, user)
    there = await callee.called()
    await world.gateway.wait("call.transfer_picked_up", call=call.call_id)
    return call, there


async def briefed(
    world: GatewayStack, callee: CalledPhone, user: str = "warm"
) -> tuple[ReferredCall, CalledCall]:
    """Anna has heard the briefing."""
    call, there = await answered(world, callee, user)
    await heard(there.rtp, SAID)
    return call, there


async def back_with_the_model(world: GatewayStack, call: ReferredCall) -> dict[str, Any]:
    """The model speaks again, and the call goes on; returns what it was told."""
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    (result,) = outputs_of(session)
    await heard(call.rtp, pattern(7, 3200))
    summary = await world.summary_at_end(call)
    assert summary["ending"]["why"] == "remote_hangup"
    return result


async def test_accepted(world: GatewayStack, callee: CalledPhone) -> None:
    call, there = await briefed(world, callee)
    session = await world.session_of(call)
    spoken = session.seen("response.create")[-1].body["response"]
    assert spoken["instructions"].startswith("Say exactly: Mr Smith, about his bill. Press 1 ")
    assert share_heard(SAID, call.rtp.heard) < 0.1, "the caller does not hear it"
    # They do not hear each other either; the caller hears music.
    before = noise(50, 0.6)
    call.rtp.say(before)
    await call.rtp.quiet()
    await heard(call.rtp, MUSIC[:8000])
    there.rtp.press("1")
    await world.gateway.wait("call.bridged", call=call.call_id)
    await hear_each_other(call, there, 60)
    assert share_heard(before, there.rtp.heard) < 0.1
    there.bye()
    await call.hung_up()
    record = await world.record(call)
    assert record["ending"]["why"] == "bridge_ended"
    (attempt,) = record["transfers"]
    assert (attempt["outcome"], attempt["briefing"]) == ("answered", "accepted")
    (leg,) = record["b_legs"]
    assert leg["parent_id"] == record["call_id"]
    (spoken,) = record["out_of_band"]
    assert (spoken["purpose"], spoken["status"]) == ("briefing", "completed")


async def test_accepted_before_it_was_said(world: GatewayStack, callee: CalledPhone) -> None:
    call, there = await answered(world, callee, words={**WORDS, "seconds": 20})
    await there.rtp.heard_bytes(1600)
    there.rtp.press("1")
    await world.gateway.wait("call.bridged", call=call.call_id)
    await hear_each_other(call, there, 70)
    await world.summary_at_end(call)
    await there.hung_up()


@pytest.mark.parametrize("way", ["key", "hangs up", "nothing"])
async def test_not_accepted(world: GatewayStack, callee: CalledPhone, way: str) -> None:
    call, there = await briefed(world, callee, "short" if way == "nothing" else "warm")
    if way == "key":
        there.rtp.press("2")
    elif way == "hangs up":
        there.bye()
    if way != "hangs up":
        await there.hung_up()
    result = await back_with_the_model(world, call)
    assert result["status"] == ("no_answer" if way == "nothing" else "declined")
    assert result["reason"]
    record = await world.record(call)
    answer = {"key": "declined", "hangs up": "hung_up", "nothing": "no_key"}[way]
    assert record["transfers"][0]["briefing"] == answer


async def test_repeated_until_the_caller_hangs_up(world: GatewayStack, callee: CalledPhone) -> None:
    call, there = await briefed(world, callee)
    await heard(there.rtp, SAID, 2)
    await world.summary_at_end(call)
    await there.hung_up()


async def test_accepted_while_the_caller_holds(world: GatewayStack, callee: CalledPhone) -> None:
    asks(world, WORDS)
    call = await dialog_answered(dialog_call(world.phone, "warm"))
    there = await callee.called()
    await heard(there.rtp, SAID)
    await call.renegotiate(direction="sendonly")
    await world.gateway.wait("call.held", call=call.call_id)
    # The next call may get the place of the held one in the conference bridge.
    other = await dialog_answered(dialog_call(world.phone, "plain"))
    await world.gateway.wait("call.confirmed", call=other.call_id)
    there.rtp.press("1")
    await world.gateway.wait("call.bridged", call=call.call_id)
    private = noise(85, 0.6)
    other.rtp.say(private)
    await other.rtp.quiet()
    await there.rtp.heard_bytes(len(there.rtp.packets) * FRAME + 8000)
    assert share_heard(private, there.rtp.heard) < 0.1, "that is another caller"
    await other.hang_up()
    await call.renegotiate(direction="sendrecv")
    await hear_each_other(call, there, 80)
    await world.summary_at_end(call)
    await there.hung_up()


async def test_key_and_hang_up_cross(world: GatewayStack, callee: CalledPhone) -> None:
    """Anna takes the call just as the caller leaves: nothing is left of either."""
    call, there = await briefed(world, callee)
    there.rtp.press("1")
    await world.summary_at_end(call)
    await there.hung_up()


async def test_the_callers_side_takes_it_over(world: GatewayStack, callee: CalledPhone) -> None:
    call, there = await briefed(world, callee, "taken")
    assert not call.referred
    there.rtp.press("1")
    await call.asked()
    assert "Replaces=" in call.refer_to
    there.bye()
    call.notify("200 OK", last=True)
    await call.hung_up()
    assert (await world.record(call))["ending"]["why"] == "transferred"


@pytest.mark.parametrize("user", ["chime", "warm"])
async def test_a_model_that_cannot_say_it(
    world: GatewayStack, callee: CalledPhone, user: str
) -> None:
    """The colleague hears the sound, and presses a key; without one they are joined."""
    call, there = await answered(world, callee, user, {**WORDS, "outcome": "failed"})
    line = await world.gateway.wait("call.briefing_failed", call=call.call_id)
    assert line["reason"].startswith("failed")
    if user == "chime":
        there.rtp.press("1")  # that is another route's
        chime = Codec.PCMU.from_linear(samples_of("chime").tobytes())
        await heard(there.rtp, chime[:4000])
        there.rtp.press("5")
    await world.gateway.wait("call.bridged", call=call.call_id)
    await hear_each_other(call, there, 90)
    await world.summary_at_end(call)
    answer = (await world.record(call))["transfers"][0]["briefing"]
    assert answer == ("accepted" if user == "chime" else "skipped")


async def test_by_info(world: GatewayStack, callee: CalledPhone) -> None:
    call, there = await briefed(world, callee)
    there.info("application/dtmf-relay", "Signal=2\r\nDuration=160\r\n")
    await there.hung_up()
    assert (await back_with_the_model(world, call))["status"] == "declined"


async def test_an_operator_has_the_colleague_briefed(
    world: GatewayStack, callee: CalledPhone
) -> None:
    answers = [{"kind": "pattern", "seconds": 0.3}, {"kind": "pattern", "seconds": 0.4, "seed": 7}]
    world.behave(vad="off", answers=answers, out_of_band=WORDS)
    call = await dial(world, "warm")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    socket, wanted = world.folder / "gateway.sock", {"destination": "anna", "briefing": "He waits."}
    await asyncio.to_thread(ask, socket, "transfer", call=call.call_id, **wanted)
    there = await callee.called()
    await heard(there.rtp, SAID)
    assert "He waits. Press 1" in str(session.seen("response.create")[-1].body)
    there.rtp.press("2")
    await heard(call.rtp, pattern(7, 3200))
    assert "did not take the call" in told(session)[-1]
    await world.summary_at_end(call)

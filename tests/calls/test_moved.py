# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that the caller's side moves: by REFER, or INVITE with Replaces."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.callee import CalledPhone, free_port
from tests.support.harness import PATIENT, GatewayStack
from tests.support.listening import MOST_OF_IT, all_arrives, noise, share_heard
from tests.support.referred import ReferredCall, dial
from tests.support.rtp_end import RtpEnd
from tests.support.sip_phone import PhoneCall

PORT = free_port()

WORLD = {
    "more": PATIENT + "[outbound]\nmax_calls_per_minute = 20\n",
    "routes": f"""
[[route]]
name = "follows"
to = "^follows$"
allowed_refer_to = 'sip:[a-z0-9-]+@127\\.0\\.0\\.1:{PORT}'
[route.greeting]
say = "Hello."
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
""",
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """Whom the gateway is sent to."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


def refer(call: ReferredCall, to: str, times: int = 1) -> None:
    """Send the gateway somewhere; further times are retransmissions."""
    call._sequence += 1
    host, port = call.phone.address
    headers = [f"Refer-To: <{to}>", f"Referred-By: <sip:tester@{host}:{port}>"]
    branch = f"z9hG4bK{random.getrandbits(48):x}"
    for _ in range(times):
        call.phone.send(call._request("REFER", branch, call._sequence, headers))


def told(call: ReferredCall) -> list[str]:
    """Status lines of the NOTIFYs that came."""
    return [m.body.strip() for m in call.messages if m.start.startswith("NOTIFY ")]


def _more_answers(before: int, call: ReferredCall) -> bool:
    return len(call.answers_to("REFER")) > before


@pytest.mark.parametrize("user", ["plain", "follows"])
async def test_declined(world: GatewayStack, callee: CalledPhone, user: str) -> None:
    world.behave(answer="silent")
    call = await dial(world, user)
    for to in ["sip:evil@192.0.2.1", callee.uri("answer") + ";x=y", "tel:+19005551234"]:
        before = len(call.answers_to("REFER"))
        refer(call, to)
        await call.until(partial(_more_answers, before))
    assert call.answers_to("REFER") == [603] * 3
    assert not callee.calls
    await world.summary_at_end(call)


async def test_what_is_declined_takes_no_call_of_the_minute(
    world: GatewayStack, callee: CalledPhone
) -> None:
    """Else a caller who asks for nothing that is allowed would stop all calls of ours."""
    world.behave(answer="silent")
    call = await dial(world, "follows")
    for number in range(21):
        refer(call, "sip:evil@192.0.2.1")
        await call.until(partial(_more_answers, number))
    refer(call, callee.uri("busy-486"))
    await call.until(lambda c: any("486" in line for line in told(c)))
    assert call.answers_to("REFER") == [603] * 21 + [202]
    await world.summary_at_end(call)


async def test_the_session_moves_to_where_it_is_sent(
    world: GatewayStack, callee: CalledPhone
) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    session = await world.session_of(call)
    refer(call, callee.uri("answer"))
    there = await callee.called()
    assert there.invite.headers["referred-by"].startswith("<sip:tester@")
    await call.until(lambda c: any("200" in line for line in told(c)))
    await call.hung_up()
    await world.gateway.wait("call.caller_replaced", call=call.call_id)
    said = noise(1, 1.2)
    there.rtp.say(said)
    await all_arrives(session, said[4800:], 20)
    there.bye()
    summary = await world.summary(call)
    assert summary["ending"]["why"] == "remote_hangup"
    assert call.answers_to("REFER") == [202]


ATTEMPTS = 8
"""What a machine sends late is concealed: then it is said again."""


async def is_heard_by(listener: RtpEnd, speaker: RtpEnd, seed: int) -> bytes:
    """Say something; asserts that who is joined with the speaker hears it; returns it."""
    for attempt in range(ATTEMPTS):
        said = noise(seed + 1000 * attempt, 1.2)
        speaker.say(said)
        await speaker.quiet()
        last = len(listener.packets) + 50
        heard = partial(_has_heard, listener, said[4800:])
        await listener.until(lambda: heard() or len(listener.packets) > last)  # noqa: B023
        if heard():
            return said
    raise AssertionError(f"of {ATTEMPTS} times none was heard")


def _has_heard(end: RtpEnd, said: bytes) -> bool:
    return share_heard(said, end.heard) > MOST_OF_IT


async def test_the_session_moves_while_it_is_joined(
    world: GatewayStack, callee: CalledPhone
) -> None:
    """Whom the caller was joined with hears who takes the caller's place, and is heard."""
    tool = {"name": "transfer_call", "arguments": '{"destination": "anna"}'}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}])
    call = await dial(world, "follows")
    anna = await callee.called()
    await world.gateway.wait("call.bridged", call=call.call_id)
    refer(call, callee.uri("answer"))
    there = await callee.called(2)
    await call.hung_up()
    await world.gateway.wait("call.caller_replaced", call=call.call_id)
    for speaker, listener in ((there, anna), (anna, there)):
        await is_heard_by(listener.rtp, speaker.rtp, 5)
    anna.bye()
    await there.hung_up()
    assert (await world.summary(call))["ending"]["why"] == "bridge_ended"


async def test_the_caller_stays_when_nobody_takes_it(
    world: GatewayStack, callee: CalledPhone
) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    session = await world.session_of(call)
    refer(call, callee.uri("busy-486"))
    await call.until(lambda c: any("486" in line for line in told(c)))
    said = noise(2, 1.2)
    call.rtp.say(said)
    await all_arrives(session, said[4800:], 20)
    await world.summary_at_end(call)


async def test_one_refer_at_a_time_is_followed(world: GatewayStack, callee: CalledPhone) -> None:
    world.behave(answer="silent")
    call = await dial(world, "follows")
    refer(call, callee.uri("ring"))
    await callee.called()
    refer(call, callee.uri("answer"))
    await call.until(partial(_more_answers, 1))
    assert call.answers_to("REFER") == [202, 603]
    assert len(callee.calls) == 1
    await world.summary_at_end(call)


@pytest.mark.parametrize("answers", [False, True])
async def test_a_caller_who_goes_leaves_nobody_on_the_line(
    world: GatewayStack, callee: CalledPhone, answers: bool
) -> None:
    """The call that a REFER made ends with the caller's: there is nobody to take it."""
    world.behave(vad="off", answer="silent")
    call = await dial(world, "follows")
    refer(call, callee.uri("race" if answers else "ring"))
    there = await callee.called()
    await call.until(lambda c: told(c))
    await world.summary_at_end(call)
    await there.until(lambda c: c.requests("CANCEL"))
    if answers:
        await there.hung_up()
    await there.until(lambda c: c.over)


def replacing(world: GatewayStack, call: PhoneCall, user: str = "plain") -> PhoneCall:
    """A call from another telephone that is to take this one's place (RFC 3891)."""
    assert call.final is not None
    tag = re.search(r";tag=([^;]+)", call.final.headers["to"])
    assert tag
    replaces = f"Replaces: {call.call_id};to-tag={tag[1]};from-tag={call._tag}"
    return world.phone.call(user, headers=(replaces, "Require: replaces"))


async def test_somebody_takes_the_callers_place(world: GatewayStack, callee: CalledPhone) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "plain")
    session = await world.session_of(call)
    other = replacing(world, call)
    other.invite()
    await other.answered()
    await call.hung_up()
    await world.gateway.wait("call.caller_replaced", call=call.call_id)
    said = noise(3, 1.2)
    other.rtp.say(said)
    await all_arrives(session, said[4800:], 20)
    await other.hang_up()
    summary = await world.summary(call)
    assert summary["ending"]["why"] == "remote_hangup"
    await world.phone.forget(other)


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        (420, ["Require: replaces, nonsense"]),
        (422, ["Require: replaces, timer", "Session-Expires: 10"]),
        (406, ["Require: replaces", "Accept: text/plain"]),
    ],
    ids=str,
)
async def test_who_is_refused_takes_nobodys_place(
    world: GatewayStack, callee: CalledPhone, code: int, fields: list[str]
) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "plain")
    session = await world.session_of(call)
    other = replacing(world, call)
    other.headers = (other.headers[0], *fields)
    other.invite()
    assert (await other.refused()).code == code
    said = noise(4, 1.2)
    call.rtp.say(said)
    await all_arrives(session, said[4800:], 20)
    assert not world.gateway.all("call.caller_replaced", call=call.call_id)
    await world.summary_at_end(call)
    await world.phone.forget(other)


async def test_a_place_that_there_is_not(world: GatewayStack, callee: CalledPhone) -> None:
    world.behave(vad="off", answer="silent")
    call = await dial(world, "plain")
    other = replacing(world, call)
    other.headers = (other.headers[0].replace("to-tag=", "to-tag=x"),)
    other.invite()
    assert (await other.refused()).code == 481
    await world.summary_at_end(call)
    await world.phone.forget(other)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers where the gateway calls somebody for the caller: joined here, or handed over."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote

import pytest

from gateway.devtools.emulator.session_log import SessionRecord
from tests.calls.test_transfer_blind import outputs_of, told
from tests.support.callee import CalledCall, CalledPhone, free_port
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import MOST_OF_IT, noise, share_heard
from tests.support.referred import ReferredCall, dial
from tests.support.rtp_end import EVENT_PAYLOAD, FRAME, RtpEnd, Sender
from tests.support.sip_phone import PhoneCall

PORT = free_port()
SILENCE = b"\xff" * 10 * FRAME
"""What stands behind it drives the last of what is said out of a jitter buffer."""


def _destination(name: str, user: str, mode: str, *more: str) -> str:
    return f"""
[[route.transfer]]
name = "{name}"
to = "sip:{user}@127.0.0.1:{PORT}"
mode = "{mode}"
ring_timeout = {1.5 if user == "ring" else 30}
""" + "".join(f"{line}\n" for line in more)


def _route(name: str, listen: str) -> str:
    return f"""
[[route]]
name = "{name}"
to = "^{name}$"
[route.greeting]
say = "Hello."
[route.transfer_call]
listen = {listen}
sound = "silence"
"""


WORLD = {
    # Winning back delay, a jitter buffer would cut here and there what is compared here.
    "more": "[media]\njb_catch_up = false\npacket_wait_ms = 500\n"
    + '[access]\nunknown_sources = "allow"\n[outbound]\nmax_calls_per_minute = 1000\n'
    + "max_concurrent_calls = 20\n"
    + f'[[trunk]]\nname = "pbx"\npeers = ["127.0.0.1:{PORT}"]\n'
    + 'caller_id = "1000"\ncaller_ids = "[a-z]+"\n',
    "routes": _route("office", "false")
    + _destination("anna", "answer", "bridge")
    + _destination("busy", "busy-486", "bridge")
    + _destination("nobody", "ring", "bridge")
    + _destination("boss", "answer", "attended")
    + _destination("busy boss", "busy-486", "attended")
    + _destination("by trunk", "busy-486", "attended", 'trunk = "pbx"')
    + _destination("from", "busy-486", "attended", 'trunk = "pbx"', 'caller_id = "{from}"')
    + _destination("to", "busy-486", "bridge", 'trunk = "pbx"', 'caller_id = "{sip_call_id}"')
    + _route("heard", "true")
    + _destination("anna", "answer", "bridge"),
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """The telephone of everybody here."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


async def transferred(
    world: GatewayStack, destination: str, user: str = "office", refer_code: int = 202
) -> ReferredCall:
    """A call whose model asks for this at once."""
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": destination})}
    back = {"kind": "pattern", "seconds": 0.4, "seed": 7}
    world.behave(
        vad="off", answers=[{"kind": "nothing", "tools": [tool]}, back, {"kind": "silent"}]
    )
    return await dial(world, user, refer_code)


async def joined(world: GatewayStack, call: ReferredCall, callee: CalledPhone) -> CalledCall:
    """Wait until both sides are joined."""
    there = await callee.called()
    await world.gateway.wait("call.bridged", call=call.call_id)
    return there


async def hear_each_other(call: PhoneCall, there: CalledCall, seed: int) -> tuple[bytes, bytes]:
    """Both speak, and what they say last is heard at the other end; returns what they said.

    They speak again where a stall of this machine has cost a jitter buffer a part of it.
    """
    shares: list[tuple[float, float]] = []
    for attempt in range(8):
        one, other = noise(seed + 100 * attempt, 1.2), noise(seed + 100 * attempt + 1, 1.2)
        call.rtp.say(one)
        there.rtp.say(other)
        await asyncio.gather(call.rtp.quiet(), there.rtp.quiet())
        for end in (call.rtp, there.rtp):
            come = len(end.packets) + 50  # twice what a jitter buffer holds back
            await end.until(partial(lambda end, come: len(end.packets) > come, end, come))
        # The first of it may be said while the bridge is still joining them.
        shares.append(
            (
                share_heard(one[4800:], there.rtp.heard),
                share_heard(other[4800:], call.rtp.heard),
            )
        )
        if min(shares[-1]) > MOST_OF_IT:
            return one, other
    raise AssertionError(f"of each other callee and caller heard {shares}")


def _heard_by(said: bytes, session: SessionRecord) -> bool:
    return share_heard(said, bytes(session.received)) > MOST_OF_IT


async def test_joined_both_hear_each_other(world: GatewayStack, callee: CalledPhone) -> None:
    call = await transferred(world, "anna")
    there = await joined(world, call, callee)
    session = await world.session_of(call)
    await hear_each_other(call, there, 1)
    await eventually(lambda: session.id not in world.emulator.live, "closed")
    # A key is for the one at the other end.
    call.rtp.press("5")
    await there.rtp.until(lambda: any(p.payload_type == EVENT_PAYLOAD for p in there.rtp.packets))
    keys = [p.payload[0] for p in there.rtp.packets if p.payload_type == EVENT_PAYLOAD]
    assert set(keys) == {5}
    there.bye()
    bye = await call.hung_up()
    assert 'text="Normal call clearing"' in bye.headers["reason"]
    record = await world.record(call)
    assert (record["ending"]["by"], record["ending"]["why"]) == ("callee", "bridge_ended")
    (leg,) = record["b_legs"]
    assert leg["sip_call_id"] == there.call_id
    assert leg["codec"] == "PCMU"
    assert 0 < leg["dialled_ms"] < leg["answered_ms"] < leg["ended_ms"]
    (attempt,) = record["transfers"]
    assert (attempt["outcome"], attempt["mode"]) == ("answered", "bridge")


async def test_joined_and_another_source_begins(world: GatewayStack, callee: CalledPhone) -> None:
    """What it says is heard whole, wherever its numbers begin; so is a key."""
    call = await transferred(world, "anna")
    there = await joined(world, call, callee)
    await hear_each_other(call, there, 11)
    call.rtp.sending = False
    sequence = call.rtp.sequence  # which goes on although nothing is sent
    for seed, start in enumerate([-90, 0, 2500, 2**15]):
        for attempt in range(4):  # see hear_each_other
            sender = Sender(call.rtp)
            sender.sequence = (sequence - 1 + start) & 0xFFFF
            said = noise(20 + seed + 100 * attempt, 0.6)
            await _say_in_step(sender, said + SILENCE, there)
            sequence = sender.sequence
            come = len(there.rtp.packets) + 50
            await there.rtp.until(partial(_came, there, come))
            if _hears(said, there):
                break
        else:
            raise AssertionError(f"another source is not heard: {start}")
    sender = Sender(call.rtp)
    sender.sequence = (sequence - 9) & 0xFFFF
    sender.put(struct.pack("!BBH", 7, 0x8A, 800), EVENT_PAYLOAD, samples=0)
    await there.rtp.until(lambda: any(p.payload_type == EVENT_PAYLOAD for p in there.rtp.packets))
    await world.summary_at_end(call)


async def _say_in_step(sender: Sender, audio: bytes, there: CalledCall) -> None:
    """No more than the gateway plays meanwhile, at most three packets at a time: a jitter buffer
    of 240 ms runs over neither when this process stands still nor when the gateway does."""
    frames = [audio[at : at + FRAME] for at in range(0, len(audio), FRAME)]
    while frames:
        played = len(there.rtp.packets)
        await there.rtp.until(partial(_came, there, played))
        for frame in frames[: min(3, len(there.rtp.packets) - played)]:
            sender.put(frame, 0)
            frames.pop(0)


def _came(there: CalledCall, packets: int) -> bool:
    return len(there.rtp.packets) > packets


def _hears(said: bytes, there: CalledCall) -> bool:
    return share_heard(said, there.rtp.heard) > MOST_OF_IT


async def test_many_are_joined_and_parted_at_once(world: GatewayStack, callee: CalledPhone) -> None:
    """Nobody hears another pair, whose streams and ports were others' a moment ago; nor does a
    session."""
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": "anna"})}
    world.behave(vad="off", answer={"kind": "nothing", "tools": [tool]})
    for turn in range(TURNS):
        first = len(callee.calls)
        users = ["office", "heard"] * (PAIRS // 2)
        calls = await asyncio.gather(*(dial(world, user) for user in users))
        sessions = [await world.session_of(call) for call in calls]
        for call in calls:
            await world.gateway.wait("call.bridged", call=call.call_id)
        there = [one.rtp for one in callee.calls[first:]]
        assert len(there) == PAIRS
        heard = await _who_hears_whom([call.rtp for call in calls], there, 10_000 + turn)
        answered = await _who_hears_whom(there, [call.rtp for call in calls], 20_000 + turn)
        assert sorted(heard.values()) == sorted(answered) == list(range(PAIRS))
        assert {one: other for other, one in answered.items()} == heard
        for number, session in enumerate(sessions):
            hears = partial(_pairs_heard, session, 10_000 + turn)
            own = {number} if users[number] == "heard" else set()
            await eventually(lambda hears=hears, own=own: hears() >= own, "the session listens")
            assert hears() == own
        for number, call in enumerate(calls):  # at once, from either side
            if number % 3:
                callee.calls[first + heard[number]].bye()
            else:
                call.bye()
    await eventually(lambda: len(world.gateway.all("call.summary")) >= TURNS * PAIRS, "all over")


PAIRS, TURNS = 6, 3


def _words(seed: int, number: int) -> bytes:
    return noise(100 * seed + number, 0.5)


def _pairs_heard(session: SessionRecord, seed: int) -> set[int]:
    received = bytes(session.received)
    return {
        number
        for number in range(PAIRS)
        if any(share_heard(_words(seed + 1000 * n, number), received) > 0.2 for n in range(4))
    }


async def _who_hears_whom(
    speakers: list[RtpEnd], listeners: list[RtpEnd], seed: int
) -> dict[int, int]:
    """All of them speak at once, each its own words; returns the one listener of each."""
    heard: dict[int, int] = {}
    for attempt in range(4):  # see hear_each_other
        await _time_passes(speakers, 5)  # what they owe since we compared is sent
        for number, end in enumerate(speakers):
            end.say(_words(seed + 1000 * attempt, number))
        await asyncio.gather(*(end.quiet() for end in speakers))
        await _time_passes(listeners, 30)
        for number in range(len(speakers)):
            words = _words(seed + 1000 * attempt, number)
            found = [n for n, end in enumerate(listeners) if share_heard(words, end.heard) > 0.2]
            assert len(found) <= 1, f"{number} is heard by {found}"
            if found:
                heard[number] = found[0]
        if len(heard) == len(speakers):
            return heard
    raise AssertionError(f"only {sorted(heard)} are heard, in turn {seed}")


async def _time_passes(ends: list[RtpEnd], packets: int) -> None:
    def come(end: RtpEnd, wanted: int) -> bool:
        return len(end.packets) > wanted

    waits = (end.until(partial(come, end, len(end.packets) + packets)) for end in ends)
    await asyncio.gather(*waits)


async def test_the_caller_hangs_up_while_joined(world: GatewayStack, callee: CalledPhone) -> None:
    call = await transferred(world, "anna")
    there = await joined(world, call, callee)
    await world.summary_at_end(call)
    await there.hung_up()


async def test_the_session_goes_on_listening(world: GatewayStack, callee: CalledPhone) -> None:
    call = await transferred(world, "anna", "heard")
    there = await joined(world, call, callee)
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.seen("session.update")) == 2, 20)
    turns = session.seen("session.update")[1].body["session"]["audio"]["input"]["turn_detection"]
    assert (turns["create_response"], turns["interrupt_response"]) == (False, False)
    # One after the other: of two at a time it hears the sum, and that no louder than one.
    for end, seed in [(there.rtp, 3), (call.rtp, 5)]:
        said = noise(seed, 1.2)
        end.say(said)
        await session.wait_until(partial(_heard_by, said[4800:]), 20)
    there.bye()
    await call.hung_up()
    assert len(session.seen("response.create")) == 1


@pytest.mark.parametrize(
    ("destination", "status"), [("busy", "busy"), ("nobody", "no_answer"), ("busy boss", "busy")]
)
async def test_back_with_the_model(
    world: GatewayStack, callee: CalledPhone, destination: str, status: str
) -> None:
    call = await transferred(world, destination)
    there = await callee.called()
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    (output,) = outputs_of(session)
    assert output["status"] == status
    assert told(session) == ([f"The transfer to {destination} is ringing."] * (status != "busy"))
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    (answer,) = session.sent_items.values()
    await call.rtp.until(lambda: bytes(answer) in call.rtp.heard)
    if status == "no_answer":
        await there.until(lambda c: c.requests("CANCEL"))
    await world.summary_at_end(call)


@pytest.mark.parametrize(("destination", "shown"), [("by trunk", 0), ("from", 1), ("to", 0)])
async def test_whom_the_target_sees_calling(
    world: GatewayStack, callee: CalledPhone, destination: str, shown: int
) -> None:
    """The trunk's caller id, or the caller's where caller_id says so and caller_ids allows it."""
    call = await transferred(world, destination)
    there = await callee.called()
    user = ("1000", "tester")[shown]
    assert there.invite.headers["from"].strip("<").startswith(f"sip:{user}@")
    await world.summary_at_end(call)


def replaces_of(call: ReferredCall) -> dict[str, str]:
    """What the REFER wants replaced."""
    uri = call.refer_to.strip("<>")
    fields = dict(field.split("=", 1) for field in uri.partition("?")[2].split("&"))
    call_id, *parameters = unquote(fields["Replaces"]).split(";")
    return {"call-id": call_id, **dict(one.split("=", 1) for one in parameters)}


async def test_handed_over_to_a_call_that_we_made(world: GatewayStack, callee: CalledPhone) -> None:
    call = await transferred(world, "boss")
    there = await callee.called()
    await call.asked()
    assert call.refer_to.startswith(f"<sip:answer@127.0.0.1:{PORT}")
    local = there.invite.headers["from"].partition(";tag=")[2]
    assert replaces_of(call) == {
        "call-id": there.call_id,
        "to-tag": there.tag,
        "from-tag": local,
    }
    call.notify("100 Trying")
    there.bye()  # it has been replaced
    call.notify("200 OK", last=True)
    await call.hung_up()
    record = await world.record(call)
    assert (record["ending"]["by"], record["ending"]["why"]) == ("model", "transferred")
    (attempt,) = record["transfers"]
    assert (attempt["outcome"], attempt["mode"]) == ("answered", "attended")


async def test_a_hand_over_that_is_refused(world: GatewayStack, callee: CalledPhone) -> None:
    call: Any = await transferred(world, "boss", refer_code=603)
    there = await callee.called()
    await call.asked()
    await there.hung_up()
    session = await world.session_of(call)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert outputs_of(session)[0]["status"] == "refused"
    await world.summary_at_end(call)

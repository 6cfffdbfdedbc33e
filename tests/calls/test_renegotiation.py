# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold, resume and other offers after the first, delayed offers: audio stays right, both ways."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call.conversation.control import HELD, RESUMED
from gateway.devtools.emulator.session_log import SessionRecord
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.harness import PATIENT, GatewayStack
from tests.support.laws import Frames, contains
from tests.support.listening import assert_continuous, is_silence, noise
from tests.support.rtp_end import FRAME, Packet, RtpEnd
from tests.support.sip_phone import CODECS

WATCHED = "PJSUA2_ASAN" in os.environ
ATTEMPTS = 10 if WATCHED else 6
"""A library that AddressSanitizer watches may be late, too; what it is watched for is memory."""
LAWS = {0: Codec.PCMU, 8: Codec.PCMA}
LEAD_IN = 25 * FRAME
LONG_ANSWER: dict[str, Any] = {"kind": "pattern", "seconds": 60, "burst": True}

WORLD = {
    "more": PATIENT,
    "log_level": "debug",
    "routes": """
[[route]]
name = "held-silence"
to = "^held-silence$"
[route.greeting]
say = "Hello."
[route.limits]
rtp_timeout = 4

[[route]]
name = "held-stop"
to = "^held-stop$"
[route.greeting]
say = "Hello."
[route.limits]
rtp_timeout = 4
[route.hold]
session_audio = "stop"
""",
}


class Answer:
    """What the agent says, found again in whatever law it was heard."""

    def __init__(self, audio: bytes, law: Codec) -> None:
        self._frames = Frames(audio, law, FRAME)

    def assert_whole(self, packets: list[Packet], at_least: int) -> None:
        """Asserts that it was heard from its beginning without a frame left out or said twice."""
        found = [self._frames.place(p.payload, LAWS[p.payload_type]) for p in packets]
        places = [place for place in found if place is not None]
        assert places == list(range(len(places)))
        assert len(places) >= at_least
        odd = [p for p, place in zip(packets, found, strict=True) if place is None]
        assert all(is_silence(packet) for packet in odd), "something that nobody said"


async def greeted(
    world: GatewayStack, user: str = "greeted", *headers: str, **sdp: Any
) -> DialogCall:
    world.behave(vad="off", answer=LONG_ANSWER)
    call = await answered(dialog_call(world.phone, user, *headers, **sdp))
    await world.gateway.wait("call.confirmed", call=call.call_id)
    await call.rtp.heard_bytes(20 * FRAME)
    return call


async def answer_of(world: GatewayStack, call: DialogCall, law: Codec = Codec.PCMU) -> Answer:
    session = await world.session_of(call)
    (audio,) = session.sent_items.values()
    return Answer(bytes(audio), law)


def _heard(said: bytes, since: int, law: Codec, speaks: Codec, session: SessionRecord) -> bool:
    return contains(bytes(session.received[since:]), law, said, speaks)


def _decided(heard: Callable[[SessionRecord], bool], wanted: int, session: SessionRecord) -> bool:
    return session.received_total >= wanted or heard(session)


async def is_heard(session: SessionRecord, call: DialogCall, seed: int, law: Codec) -> None:
    """Say something; asserts that the session hears it, in its own law."""
    speaks = LAWS[call.rtp.payload_type]
    since = session.received_total
    for attempt in range(ATTEMPTS):
        said = noise(seed * 10 + attempt, 0.6)
        call.rtp.latest_s = 0.0
        before, come = session.received_total, len(call.rtp.packets)
        call.rtp.say((b"\x55" if speaks is Codec.PCMU else b"\x7f") * LEAD_IN + said)
        await call.rtp.quiet()
        heard = partial(_heard, said, before, law, speaks)
        # Twice as long as a packet is waited for, and nothing of it: it will not come.
        wanted = session.received_total + 50 * FRAME
        await session.wait_until(partial(_decided, heard, wanted), 20)
        if heard(session):
            return
        # The gateway, too, may have stood still: it sends each 20 ms.
        moments = [packet.at for packet in call.rtp.packets[come:]]
        stood_s = max((after - last for last, after in pairwise(moments)), default=0.0)
        if max(call.rtp.latest_s, stood_s - 0.02) < 0.04 and not WATCHED:
            break
    got = bytes(session.received[since:])
    sound = len(got) - max(got.count(silent) for silent in b"\xff\x7f\xd5\x55")
    raise AssertionError(
        f"what was said did not come as it was: of {len(got)} bytes that came {sound} are sound;"
        f" {call.rtp.sent} packets were sent to {call.rtp._peer}, {call.rtp.lost} were not"
    )


async def ends_well(world: GatewayStack, call: DialogCall) -> dict[str, Any]:
    assert not call.byes
    return await world.summary_at_end(call)


@pytest.mark.parametrize("codec", ["PCMU", "PCMA"])
async def test_a_delayed_offer_is_answered_in_the_ack(world: GatewayStack, codec: str) -> None:
    """The session begins before the law is known; whatever the caller takes is right."""
    world.behave(vad="off", answer=LONG_ANSWER)
    call = await answered(dialog_call(world.phone, "greeted", offer=False, codecs=(codec,)))
    assert call.final is not None
    assert " RTP/AVP 0 8 " in call.final.body
    call.rtp.payload_type, silence = CODECS[codec]
    call.rtp._silence = silence * FRAME
    await call.rtp.heard_bytes(50 * FRAME)
    session = await world.session_of(call)
    await is_heard(session, call, 1, Codec.PCMU)
    await ends_well(world, call)
    (await answer_of(world, call)).assert_whole(call.rtp.packets, 50)
    assert {packet.payload_type for packet in call.rtp.packets} == {CODECS[codec][0]}


async def test_an_ack_without_an_answer_ends_the_call(world: GatewayStack) -> None:
    call = dialog_call(world.phone, "greeted", offer=False)
    call.acknowledge = False
    await answered(call)
    call.phone.send(call._inside("ACK", 1))
    bye = await call.hung_up()
    assert bye.headers["reason"].startswith("SIP;cause=488")
    ending = (await world.summary(call))["ending"]
    assert (ending["why"], ending["by"]) == ("leg_timeout", "network")
    assert "ACK" in ending["detail"]


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
async def test_the_law_changes_and_the_session_goes_on(world: GatewayStack, method: str) -> None:
    """From PCMU to PCMA and back, while both sides talk."""
    call = await greeted(world)
    session = await world.session_of(call)
    for round_, codec in enumerate(("PCMA", "PCMU")):
        await call.renegotiate(method, codecs=(codec,))
        call.rtp.read_what_waits()
        count = len(call.rtp.packets)
        await is_heard(session, call, 20 + round_, Codec.PCMU)
        types = [packet.payload_type for packet in call.rtp.packets[count:]]
        switched = types.index(CODECS[codec][0])
        assert set(types[switched:]) == {CODECS[codec][0]}
    await call.rtp.until(lambda: sum(not is_silence(one) for one in call.rtp.packets) > 100)
    await ends_well(world, call)
    (await answer_of(world, call)).assert_whole(call.rtp.packets, 100)
    changes = world.gateway.all("call.codec_changed", call=call.call_id)
    assert [line["codec"] for line in changes] == ["PCMA", "PCMU"]


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
async def test_rtp_moves_to_another_port(world: GatewayStack, method: str) -> None:
    call = await greeted(world)
    session = await world.session_of(call)
    before, call.rtp = call.rtp, RtpEnd(*CODECS["PCMU"])
    try:
        # The gateway has taken in all that was sent from the old port: a packet of it that came
        # behind the answer would be followed there.
        before.loss = before._quiet.is_set
        last = noise(290, 0.1)
        before.say(last + b"\x55" * FRAME)
        await session.wait_until(lambda s: last[-FRAME:] in bytes(s.received), 20)
        await call.renegotiate(method)
        before.read_what_waits()
        at_old = len(before.packets)
        await is_heard(session, call, 30, Codec.PCMU)
        before.read_what_waits()
        assert len(before.packets) <= at_old + 1
        await ends_well(world, call)
        said = [p for p in (*before.packets, *call.rtp.packets) if not is_silence(p)]
        (await answer_of(world, call)).assert_whole(sorted(said, key=lambda p: p.at), 50)
    finally:
        await before.close()


async def test_an_invite_without_an_offer_inside_the_call(world: GatewayStack) -> None:
    """We offer, the ACK answers, and nothing is lost on the way."""
    call = await greeted(world)
    session = await world.session_of(call)
    number, _ = call.put("INVITE")
    cseq = f"{number} INVITE"

    def answer() -> Any:
        found = (m for m in call.messages if m.code == 200 and m.headers["cseq"] == cseq)
        return next(found, None)

    await call.until(lambda _c: answer() is not None, what="200")
    assert " RTP/AVP 0" in answer().body
    call.phone.send(call._inside("ACK", number, (), call.sdp.text(call.rtp.port)))
    call._take(answer().body)
    await is_heard(session, call, 40, Codec.PCMU)
    await ends_well(world, call)
    (await answer_of(world, call)).assert_whole(call.rtp.packets, 50)


async def test_an_offer_that_cannot_be_taken_changes_nothing(world: GatewayStack) -> None:
    call = await greeted(world)
    session = await world.session_of(call)
    for method in ("INVITE", "UPDATE"):
        call.sdp.version += 1
        body = call.sdp.text(call.rtp.port).replace("RTP/AVP 0 8", "RTP/AVP 3")
        answer = await call.ask(method, body=body.replace("PCMU", "GSM").replace(":0 ", ":3 "))
        assert answer.code == 488, answer.start
    await is_heard(session, call, 45, Codec.PCMU)
    await ends_well(world, call)
    assert_continuous(call.rtp.packets)
    (await answer_of(world, call)).assert_whole(call.rtp.packets, 50)


HOLDS: dict[str, dict[str, str]] = {
    "sendonly": {"direction": "sendonly"},
    "inactive": {"direction": "inactive"},
    "0.0.0.0": {"address": "0.0.0.0"},
}
BACK = {"direction": "sendrecv", "address": "127.0.0.1"}


@pytest.mark.parametrize("route", ["held-silence", "held-stop"])
async def test_hold_by_the_peer(world: GatewayStack, route: str) -> None:
    """Playout pauses, and goes on with the very next frame; the peer's music is for nobody.

    The silence of a peer on hold is longer than the route's RTP time-out.
    """
    await asyncio.gather(*(held(world, kind, route) for kind in HOLDS))


def told(session: SessionRecord) -> list[str]:
    """What the model was told, as the system."""
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    return [item["content"][0]["text"] for item in items if item.get("role") == "system"]


async def held(world: GatewayStack, kind: str, route: str) -> None:
    method = "UPDATE" if route == "held-stop" else "INVITE"
    call = await greeted(world, route)
    session = await world.session_of(call)
    music = noise(50, 0.5)
    for times, seconds_held in enumerate((4.5, 0.1)):
        await call.renegotiate(method, **HOLDS[kind])
        call.rtp.read_what_waits()
        count = len(call.rtp.packets)
        call.rtp.say(music)
        await call.rtp.quiet()
        call.rtp.sending = False
        # What was sent before the hold has come once the model knows of it.
        await session.wait_until(lambda s: told(s).count(HELD) > times, 20)  # noqa: B023
        received = session.received_total
        await asyncio.sleep(seconds_held)
        if route == "held-silence":
            wanted = received + int(seconds_held * 8000)
            await session.wait_until(lambda s: s.received_total >= wanted, 20)  # noqa: B023
        else:
            assert session.received_total - received < 0.2 * 8000, "what was on its way, no more"
        assert len(call.rtp.packets) <= count + 1
        call.rtp.sending = True
        await call.renegotiate(method, **BACK)
        heard = len(call.rtp.packets)
        await call.rtp.until(lambda: len(call.rtp.packets) > heard + 15)  # noqa: B023
    await is_heard(session, call, 55, Codec.PCMU)
    await ends_well(world, call)
    (await answer_of(world, call)).assert_whole(call.rtp.packets, 50)
    received_frames = {
        bytes(session.received[at : at + 40]) for at in range(0, len(session.received), 40)
    }
    said = {music[at : at + 40] for at in range(0, len(music), 40)}
    assert not said & received_frames, "music reached the model"
    assert len(world.gateway.all("call.resumed", call=call.call_id)) == 2
    assert told(session) == [HELD, RESUMED, HELD, RESUMED], "the model knows why nobody answers"


async def test_a_peer_that_only_listens_is_no_dead_line(world: GatewayStack) -> None:
    """``recvonly``: what it announced not to send is not missed."""
    call = await greeted(world, "held-silence", direction="recvonly")
    call.rtp.sending = False
    heard = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 125)
    await ends_well(world, call)
    (await answer_of(world, call)).assert_whole(call.rtp.packets, 125)


async def test_a_call_that_begins_on_hold(world: GatewayStack) -> None:
    world.behave(vad="off", answer=LONG_ANSWER)
    call = await answered(dialog_call(world.phone, "held-silence", direction="sendonly"))
    await world.gateway.wait("call.confirmed", call=call.call_id)
    # For as long as this takes, another call hears the model.
    other = await greeted(world, "held-silence")
    await other.rtp.until(lambda: len(other.rtp.packets) > 25)
    await world.summary_at_end(other)
    assert not call.rtp.packets
    await call.renegotiate(direction="sendrecv")
    await call.rtp.heard_bytes(30 * FRAME)
    # Not counted from 0 because nothing was sent before: a packet that leaves while the stream is
    # replaced has the random number that it began with, and SRTP sends none below it for minutes.
    assert call.rtp.packets[0].sequence != 1, "a number of chance (RFC 3550 section 5.1)"
    await ends_well(world, call)
    (await answer_of(world, call)).assert_whole(call.rtp.packets, 25)


async def test_keys_pressed_on_hold_are_taken(world: GatewayStack) -> None:
    """The peer's keypad works on hold as well; what the model says to it waits for the way back."""
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 1, "burst": True})
    call = await answered(dialog_call(world.phone, "plain"))
    session = await world.session_of(call)
    await call.renegotiate(direction="sendonly")
    await world.gateway.wait("call.held", call=call.call_id)
    call.rtp.press("42#")
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    assert not [packet for packet in call.rtp.packets if not is_silence(packet)]
    await call.renegotiate(direction="sendrecv")
    await call.rtp.until(lambda: len([p for p in call.rtp.packets if not is_silence(p)]) >= 50)
    told = [str(event.body["item"]) for event in session.seen("conversation.item.create")]
    assert [words in one for words, one in zip((HELD, "4 2", RESUMED), told, strict=True)] == [
        True,
        True,
        True,
    ]
    await ends_well(world, call)
    (await answer_of(world, call)).assert_whole(call.rtp.packets, 50)

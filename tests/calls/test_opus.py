# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls in Opus (RFC 7587): the telephone's coder is the system's libopus."""

from __future__ import annotations

import asyncio
import audioop
import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pjsua2 as pj
import pytest
from numpy.typing import NDArray

from gateway.api.client import ask
from gateway.audio import Codec
from gateway.devtools.emulator.session_log import SessionRecord
from tests.calls.test_wideband import (
    PORT,
    WAYS,
    hears,
    is_over,
    key_tone,
    level,
    levels,
    presses_and_is_recorded,
    stretch,
    tone,
    tones,
)
from tests.calls.test_wideband import WORLD as WIDE
from tests.calls.test_wideband import own_certificate as own_certificate
from tests.support.callee import CalledPhone, free_port
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.harness import GatewayStack, eventually
from tests.support.opus import STEP, Encoder, decoded
from tests.support.referred import dial
from tests.support.rtp_end import OPUS_PAYLOAD, Packet, Sender, unread
from tests.support.sip_phone import CODECS

HIGH = 9000
"""Hz: above what G.722 carries."""
OWN_PORT = free_port()
WORLD = {
    "more": WIDE["more"]
    .replace('codecs = ["G722", "PCMU"]', 'codecs = ["opus", "G722", "PCMU"]')
    .replace('"ring"]', '"ring", "opus"]'),
    "routes": WIDE["routes"].replace(str(PORT), str(OWN_PORT)),
}
BOTH = ("opus", "PCMU")


def heard(packets: Sequence[Packet]) -> bytes:
    """48 kHz samples of what came."""
    return decoded([packet.payload for packet in packets])


def assert_continuous(packets: Sequence[Packet]) -> None:
    """Every packet is there, and is 20 ms by its own word and by the clock."""
    for before, after in pairwise(packets):
        assert after.sequence == (before.sequence + 1) & 0xFFFF
        assert after.timestamp == (before.timestamp + STEP) & 0xFFFFFFFF
    assert {len(decoded([packet.payload])) for packet in packets} == {2 * STEP}


async def up(world: GatewayStack, user: str = "greeted", **sdp: Any) -> DialogCall:
    call = await answered(dialog_call(world.phone, user, **{"codecs": BOTH, **sdp}))
    assert call.final is not None
    assert f"a=rtpmap:{OPUS_PAYLOAD} opus/48000/2" in call.final.body
    return call


async def test_what_is_above_g722_passes_both_ways(world: GatewayStack) -> None:
    world.behave(vad="off", answer=tones(HIGH, 2))
    call = await up(world)
    assert call.final is not None
    assert f" RTP/AVP {OPUS_PAYLOAD} " in call.final.body
    assert "maxplaybackrate=24000" in call.final.body
    session = await world.session_of(call)
    asked = session.sent("session.updated")[0].body["session"]["audio"]
    for side in ("input", "output"):
        assert asked[side]["format"] == {"type": "audio/pcm", "rate": 24000}
    call.rtp.say_packets(Encoder().encode(tone(HIGH, 1.0, 48000)))
    await session.wait_until(hears(HIGH), 20)
    await call.rtp.until(lambda: len(call.rtp.packets) >= 75)
    packets = call.rtp.packets[:]
    assert {packet.payload_type for packet in packets} == {OPUS_PAYLOAD}
    assert_continuous(packets)
    assert level(heard(packets), HIGH, 48000) > 4000
    assert (await world.summary_at_end(call))["codec"] == "opus"


@pytest.mark.parametrize(
    ("ms", "stereo", "network"),
    [
        (2.5, False, "whole"),
        (10, False, "disorder"),
        (20, True, "loss"),
        (60, False, "whole"),
        (60, False, "loss"),
    ],
)
async def test_what_the_network_loses_is_guessed(
    world: GatewayStack, ms: float, stereo: bool, network: str
) -> None:
    """Packets of any length; a twentieth that is lost leaves no hole, and all keep their time."""
    world.behave(vad="off")
    call = await up(world)
    await world.gateway.wait("call.confirmed", call=call.call_id)
    session = await world.session_of(call)
    channels = 2 if stereo else 1
    silence, said = bytes(48 * 480 * channels), tone(700, 1.92, 48000)
    if stereo:
        said = audioop.tostereo(said, 2, 1, 1)
    packets = Encoder(ms, fec=ms >= 10, channels=channels).encode(silence + said + silence)
    rng, sender = random.Random(5), Sender(call.rtp)
    lost, begins = 0, int(480 / ms) + 2
    waiting: list[tuple[int, bytes]] = []
    first, stamp = sender.sequence, sender.timestamp
    for number, packet in enumerate(packets):
        sender.sequence = (first + number) & 0xFFFF
        sender.timestamp = (stamp + int(number * ms * 48)) & 0xFFFFFFFF
        if network == "loss" and begins < number < len(packets) - begins and rng.random() < 0.05:
            lost += 1
        elif network == "disorder" and number % 5 == 3:
            waiting.append((number, packet))
            continue
        else:
            sender.put(packet, OPUS_PAYLOAD, 0)
        for late, other in waiting:
            sender.sequence = (first + late) & 0xFFFF
            sender.timestamp = (stamp + int(late * ms * 48)) & 0xFFFFFFFF
            sender.put(other, OPUS_PAYLOAD, 0)
        waiting.clear()
        if number % 100 == 99:  # more do not fit into a socket at once
            await eventually(lambda: unread(sender.peer[1]) == 0, "the gateway reads")
    await session.wait_until(is_over(700, 2500), 20)
    summary = await world.summary_at_end(call)
    assert summary["uplink"]["lost"] == lost
    assert (lost > 0) is (network == "loss")
    found = stretch(levels(bytes(session.received), 700, 24000), 2500)
    assert 95 <= len(found) <= 98
    # Extrapolated, or told by the packet after it: quieter perhaps, but there.
    assert int(np.count_nonzero(found < 2500)) <= (2 if network == "loss" else 0)


async def test_a_sender_that_is_silent_by_dtx(world: GatewayStack) -> None:
    """Pauses in which no packet comes are as long as they were."""
    world.behave(vad="off")
    call = await up(world)
    session = await world.session_of(call)
    coder, sender = Encoder(dtx=True), Sender(call.rtp)
    pcm = tone(700, 0.4, 48000) + bytes(48000 * 2) + tone(700, 0.4, 48000)
    packets = coder.encode(pcm)
    sent = [packet for packet in packets if len(packet) > 2]
    assert len(sent) < len(packets) - 20
    stamp = sender.timestamp
    for number, packet in enumerate(packets):
        if len(packet) > 2:
            sender.timestamp = (stamp + number * STEP) & 0xFFFFFFFF
            sender.put(packet, OPUS_PAYLOAD, 0)
        await asyncio.sleep(0.02)  # silence stands in only as time goes by

    def edges() -> NDArray[np.int64]:
        loud = levels(bytes(session.received), 700, 24000) > 2500
        return np.flatnonzero(np.diff(loud.astype(int), prepend=0, append=0))

    await session.wait_until(lambda _: len(edges()) >= 4, 20)
    summary = await world.summary_at_end(call)
    first, last = edges().reshape(-1, 2)[[0, -1]]
    overtaken = summary["uplink"]["overtaken_ms"] / 20  # as this machine was late
    assert 48 <= last[0] - first[1] <= 53 + overtaken


async def test_the_server_is_told_what_was_heard(world: GatewayStack) -> None:
    """To the frame, as with G.711; what is said next is not cut."""
    speech = {"at_ms": [1500, 1500, 2420], "length_ms": 40}
    heights = [600, 1000, 1600, 2200]  # each its own: there may be no pause between two
    world.behave(vad="scripted", answers=[tones(hz, 20) for hz in heights], speech=speech)
    call = await up(world, codecs=("opus",))
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.truncations) == 3, 30)
    await call.rtp.until(lambda: len(call.rtp.packets) >= 200)
    await call.hang_up()
    packets = call.rtp.packets[:]
    assert_continuous(packets)
    sound = heard(packets)
    spoken = [int((levels(sound, hz, 48000) > 4000).sum()) * 20 for hz in heights]
    told = [cut.requested_ms for cut in session.truncations]
    # Where a frame begins or ends within the coder's delay of 6.5 ms, half of it is no frame.
    assert [abs(a - b) <= 20 for a, b in zip(spoken[:3], told, strict=True)] == [True] * 3


@pytest.mark.parametrize("clock", [8000, 48000])
async def test_hold_keys_and_recording(world: GatewayStack, clock: int) -> None:
    world.behave(vad="off", answers=[tones(1000, 6), *[{"kind": "silent"}] * 4])
    call = await up(world, "kept", events=(clock,))
    assert call.final is not None
    assert f"telephone-event/{clock}" in call.final.body
    session = await world.session_of(call)
    coder = Encoder()
    call.rtp.say_packets(coder.encode(tone(700, 0.5, 48000)))
    await session.wait_until(hears(700), 20)
    await call.renegotiate(direction="sendonly")
    await world.gateway.wait("call.held", call=call.call_id)
    since = session.received_total
    # Silence after it, so that none of it is still on its way when the hold ends.
    call.rtp.say_packets(coder.encode(tone(900, 0.5, 48000) + bytes(2 * 48000)))
    await call.rtp.quiet()
    count = len(call.rtp.packets)
    await call.renegotiate(direction="sendrecv")
    await call.rtp.until(lambda: len(call.rtp.packets) >= count + 50)
    assert level(bytes(session.received[since:]), 900, 24000) < 500
    assert levels(heard(call.rtp.packets[-30:]), 1000, 48000)[10:].min() > 4000
    for key in "5#":
        call.rtp.say_packets(coder.encode(key_tone(key, 48000)))
    await presses_and_is_recorded(world, call, session, 4000)


async def test_a_session_goes_on_through_other_codecs_and_back(world: GatewayStack) -> None:
    world.behave(vad="off", answer=tones(1000, 30))
    call = await up(world, codecs=("opus", "G722", "PCMU"))
    session, opus = await world.session_of(call), Encoder()
    for turn, name in enumerate(("PCMU", "opus", "G722", "opus")):
        since, hz = session.received_total, 600 + 100 * turn
        await call.renegotiate(codecs=(name,))
        assert call.rtp.payload_type == CODECS[name][0]
        if name == "opus":
            call.rtp.say_packets(opus.encode(tone(hz, 1.0, 48000)))
        elif name == "G722":
            call.rtp.say(pj.NativeG722().encode(tone(hz, 1.0)))
        else:
            call.rtp.say(Codec.PCMU.from_linear(tone(hz, 1.0, 8000)))
        await session.wait_until(hears(hz, since), 20)
        count = len(call.rtp.packets)
        await call.rtp.until(lambda count=count: len(call.rtp.packets) >= count + 25)  # type: ignore[misc]
        last = call.rtp.packets[-20:]
        assert {packet.payload_type for packet in last} == {CODECS[name][0]}
        if name == "opus":
            assert level(heard(last), 1000, 48000) > 4000
        elif name == "PCMU":
            audio = b"".join(packet.payload for packet in last)
            assert level(Codec.PCMU.to_linear(audio), 1000, 8000) > 4000
    await world.summary_at_end(call)


async def test_a_live_session_has_the_call_at_8_khz(world: GatewayStack) -> None:
    world.behave(live={"transcript_lag_ms": 200})
    call = await up(world, "live", codecs=("opus",))
    session = await world.session_of(call)
    call.rtp.say_packets(Encoder().encode(tone(1000, 1.0, 48000)))

    def arrived(session: SessionRecord) -> bool:
        return level(audioop.ulaw2lin(bytes(session.received), 2), 1000, 8000) > 4000

    await session.wait_until(arrived, 20)
    await call.rtp.until(lambda: len(call.rtp.packets) > 50)
    assert_continuous(call.rtp.packets)
    await world.summary_at_end(call)


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """A telephone to call, beside that of the calls in G.722."""
    phone = runner.run(CalledPhone().start(OWN_PORT))
    yield phone
    runner.run(phone.stop())


async def test_joined_with_a_leg_in_g711(world: GatewayStack, callee: CalledPhone) -> None:
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": "anna"})}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}])
    call = await dial(world, "joined", codecs=BOTH)
    there = await callee.called()
    await world.gateway.wait("call.bridged", call=call.call_id)
    call.rtp.say_packets(Encoder().encode(tone(700, 3.0, 48000)))
    there.rtp.say(Codec.PCMU.from_linear(tone(900, 3.0, 8000)))
    await there.rtp.until(
        lambda: level(Codec.PCMU.to_linear(there.rtp.heard[-16000:]), 700, 8000) > 4000
    )
    await call.rtp.until(lambda: level(heard(call.rtp.packets[-100:]), 900, 48000) > 4000)
    there.bye()
    await call.hung_up()
    record = await world.record(call)
    (leg,) = record["b_legs"]
    assert (record["codec"], leg["codec"]) == ("opus", "PCMU")


@pytest.mark.parametrize("user", ["opus", "answer"])
async def test_a_call_that_is_placed(world: GatewayStack, callee: CalledPhone, user: str) -> None:
    """The session is wide, as its trunk offers Opus, whatever the callee answers."""
    world.behave(vad="off", answers=[tones(1000, 3), {"kind": "silent"}])
    path = world.folder / "gateway.sock"
    answer = await asyncio.to_thread(
        ask, path, "dial", to=callee.uri(user), route="outward", trunk="pbx"
    )
    there = await callee.called()
    line = await world.gateway.wait("call.session_up", call=answer["call"])
    (session,) = [one for one in world.emulator.sessions if one.id == line["session_id"]]
    if user == "opus":
        there.rtp.say_packets(Encoder().encode(tone(HIGH, 2.0, 48000)))
        await session.wait_until(hears(HIGH), 20)
        await there.rtp.until(lambda: level(heard(there.rtp.packets), 1000, 48000) > 4000)
    else:
        there.rtp.say(Codec.PCMU.from_linear(tone(700, 2.0, 8000)))
        await session.wait_until(hears(700), 20)
        await there.rtp.until(
            lambda: level(Codec.PCMU.to_linear(there.rtp.heard), 1000, 8000) > 4000
        )
    there.bye()
    summary = await world.gateway.wait("call.summary", call=answer["call"])
    assert summary["codec"] == ("opus" if user == "opus" else "PCMU")


async def test_whoever_makes_no_offer_gets_ours(world: GatewayStack) -> None:
    world.behave(vad="off", answer=tones(1000, 2))
    call = dialog_call(world.phone, "greeted", offer=False, codecs=BOTH)
    call.invite()
    await call.answered()
    call.sdp.codecs = ("opus",)  # we answered with two: the gateway offers the first one alone
    assert call.final is not None
    assert re.search(rf"m=audio \d+ \S+ {OPUS_PAYLOAD} 9 0 ", call.final.body)
    await call.rtp.until(lambda: level(heard(call.rtp.packets), 1000, 48000) > 4000)
    assert (await world.summary_at_end(call))["codec"] == "opus"


@pytest.mark.parametrize("keys", ["sdes", "dtls"])
async def test_through_srtp(world: GatewayStack, keys: str, own_certificate: Path) -> None:
    async with WAYS[keys](world, "opus", 20, own_certificate) as (call, sender):
        session = await world.session_of(call)
        for packet in Encoder().encode(tone(HIGH, 0.6, 48000)):
            sender.put(packet, OPUS_PAYLOAD, STEP)
        await session.wait_until(hears(HIGH), 20)
        await world.summary_at_end(call)


HOSTILE = [
    b"",
    b"\x00",
    b"\xff",
    b"\xfb",
    b"\xfb\x00",
    bytes([0xFB, 48]) + bytes(48),  # code 3: 48 frames of 20 ms, more than 120 ms
    bytes([0x83, 48]) + bytes(48),  # 48 frames of 2.5 ms
    bytes([0x1B, 0x82]) + b"\xff" * 40,  # frames with a size that is not there
    bytes([0x0B, 0x41, 0xFF, 0xFF]),  # padding without end
    b"\xfe" + b"\xff" * 1399,
    b"\x78" + b"\xa5" * 1399,
    bytes([0x6B, 6]) + bytes(1300),  # 120 ms
]


async def test_packets_that_are_none(world: GatewayStack) -> None:
    """Whatever a stranger calls Opus is silence or noise, and the call goes on."""
    world.behave(vad="off", answer=tones(1000, 4))
    call = await up(world, "kept")
    session, sender = await world.session_of(call), Sender(call.rtp)
    rng = random.Random(9)
    garbage = [rng.randbytes(rng.randrange(1, 1400)) for _ in range(40)]  # less than 5 s
    whole = Encoder().encode(tone(HIGH, 1.0, 48000))
    mangled = [packet[: rng.randrange(1, len(packet))] for packet in whole]
    for packet in [*HOSTILE, *garbage, *mangled, *HOSTILE]:
        sender.put(packet, OPUS_PAYLOAD, rng.choice((0, 1, 119, STEP, 5760, 2**31)))
    # More may not fit into a socket at once.
    await eventually(lambda: unread(sender.peer[1]) == 0, "the gateway reads")
    for packet in Encoder().encode(tone(5000, 1.0, 48000)):
        sender.put(packet, OPUS_PAYLOAD, STEP)
    await session.wait_until(hears(5000), 20)
    await call.rtp.until(lambda: level(heard(call.rtp.packets), 1000, 48000) > 4000)
    assert (await world.summary_at_end(call))["codec"] == "opus"


@pytest.mark.parametrize(
    "fmtp",
    [
        "maxplaybackrate=1;stereo=1;maxaveragebitrate=1",
        "maxplaybackrate=99999999999999999999;maxaveragebitrate=-5;cbr=7;useinbandfec=x",
        "maxplaybackrate=8000;cbr=1;useinbandfec=1;maxaveragebitrate=6000;usedtx=1;stereo=1",
        "=;;;=1;maxplaybackrate;" + "a=b;" * 40,
    ],
)
async def test_odd_parameters(world: GatewayStack, fmtp: str) -> None:
    world.behave(vad="off", answer=tones(1000, 2))
    call = await up(world, ptime=10, security=(f"a=fmtp:{OPUS_PAYLOAD} {fmtp}", "a=maxptime:240"))
    session = await world.session_of(call)
    call.rtp.say_packets(Encoder().encode(tone(700, 0.6, 48000)))
    await session.wait_until(hears(700), 20)
    await call.rtp.until(lambda: level(heard(call.rtp.packets), 1000, 48000) > 3000)
    assert_continuous(call.rtp.packets)
    await world.summary_at_end(call)

# SPDX-License-Identifier: GPL-2.0-or-later
"""RTP as others send it: other packet lengths, other sources, pauses, and after the end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from functools import partial
from typing import Any

import pytest

from gateway.devtools.emulator.session_log import SessionRecord
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.harness import PATIENT, GatewayStack, eventually
from tests.support.listening import Spoken, assert_continuous, noise
from tests.support.rtp_end import EVENT_PAYLOAD, FRAME, RtpEnd, Sender

WORLD = {
    "more": PATIENT,
    "log_level": "debug",
}
LONG_ANSWER: dict[str, Any] = {"kind": "pattern", "seconds": 60, "burst": True}
LEAD_IN = b"\x55" * 40 * FRAME


async def greeted(world: GatewayStack, **sdp: Any) -> DialogCall:
    world.behave(vad="off", answer=LONG_ANSWER)
    call = await answered(dialog_call(world.phone, "greeted", **sdp))
    await world.gateway.wait("call.confirmed", call=call.call_id)
    await call.rtp.until(lambda: len(call.rtp.packets) > 5)
    return call


async def arrives(session: SessionRecord, said: bytes) -> None:
    """Asserts that these bytes came, as they were."""
    await session.wait_until(lambda s: said in bytes(s.received), 30)


@pytest.mark.parametrize("ptime", [5, 10, 30, 40, 60])
async def test_packets_of_other_lengths(world: GatewayStack, ptime: int) -> None:
    """Offered by ``a=ptime``, and sent."""
    call = await greeted(world, ptime=ptime)
    session = await in_packets_of(ptime, world, call, noise(ptime, 0.48))
    # Ours are of 20 ms all the same: what a peer asks for is a wish (RFC 4566 section 6).
    (audio,) = session.sent_items.values()
    assert Spoken(bytes(audio)).heard_ms(call.rtp.packets) > 0


@pytest.mark.parametrize("ptime", [10, 30, 60])
async def test_packets_of_other_lengths_unannounced(world: GatewayStack, ptime: int) -> None:
    """Who offers 20 ms and sends something else is understood all the same."""
    await in_packets_of(ptime, world, await greeted(world), noise(100 + ptime, 0.48))


async def in_packets_of(
    ptime: int, world: GatewayStack, call: DialogCall, said: bytes
) -> SessionRecord:
    session = await world.session_of(call)
    sender = Sender(call.rtp, ptime=ptime)
    await sender.say(LEAD_IN)
    sender.burst(said)
    await whole(world, call, session, sender, said)
    return session


async def test_another_source_in_mid_call(world: GatewayStack) -> None:
    """SSRC, sequence number and timestamp jump, as when a PBX changes who speaks."""
    call = await greeted(world)
    session = await world.session_of(call)
    for number in range(3):
        sender = Sender(call.rtp)
        said = noise(200 + number, 0.5)
        await sender.say(LEAD_IN)
        sender.burst(said)
        await sender.say(b"\x55" * 40 * FRAME)
        await arrives(session, said)
    await world.summary_at_end(call)
    assert_continuous(call.rtp.packets)


@pytest.mark.parametrize("start", [-101, -100, -60, -1, 0, 2, 2999, 3000, 2**15])
async def test_keys_of_another_source(world: GatewayStack, start: int) -> None:
    """Its only packet counts, wherever its numbers begin: they mean nothing beside another's."""
    call = await greeted(world)
    await call.rtp.until(lambda: call.rtp.sent > 10)
    sender = Sender(call.rtp)
    sender.sequence = (call.rtp.sequence - 1 + start) & 0xFFFF
    sender.put(struct.pack("!BBH", 7, 0x8A, 800), EVENT_PAYLOAD, samples=0)
    await world.gateway.wait("call.dtmf", call=call.call_id)
    assert [run["digits"] for run in (await world.summary_at_end(call))["digits"]] == ["7"]


@pytest.mark.parametrize("jump", [-4000, -2400, -800, -1, 1, 2400, 4000, 2**31 - 1, -(2**31)])
async def test_timestamps_jump_while_sequence_numbers_go_on(world: GatewayStack, jump: int) -> None:
    """As when a PBX changes the source behind it: what was said arrives whole, without a gap."""
    call, session, sender = await lead_in(world)
    said = noise(600, 0.6)
    sender.burst(said[: 15 * FRAME])
    sender.timestamp = (sender.timestamp + jump) & 0xFFFFFFFF
    sender.burst(said[15 * FRAME :])
    await whole(world, call, session, sender, said)


async def test_timestamps_that_mean_nothing(world: GatewayStack) -> None:
    call, session, sender = await lead_in(world)
    said = noise(620, 0.6)
    for at in range(0, len(said), FRAME):
        sender.timestamp = 4711 + (at // FRAME % 7) * 1234
        sender.burst(said[at : at + FRAME])
    await whole(world, call, session, sender, said)


async def test_a_packet_overtaken_by_a_jump(world: GatewayStack) -> None:
    """It was sent before the timestamps jumped back and arrives after: it is heard in its place."""
    call, session, sender = await lead_in(world)
    said = noise(621, 0.6)
    middle = 15 * FRAME
    sender.burst(said[:middle])
    late = (sender.sequence, sender.timestamp)
    sender.sequence = (sender.sequence + 1) & 0xFFFF
    sender.timestamp = (sender.timestamp + FRAME - 2400) & 0xFFFFFFFF
    sender.burst(said[middle + FRAME : middle + 2 * FRAME])
    now, (sender.sequence, sender.timestamp) = (sender.sequence, sender.timestamp), late
    sender.burst(said[middle : middle + FRAME])
    sender.sequence, sender.timestamp = now
    sender.burst(said[middle + 2 * FRAME :])
    await whole(world, call, session, sender, said)


async def test_sequence_numbers_and_timestamps_wrap(world: GatewayStack) -> None:
    """Both begin anew in the middle of what is said."""
    call, session, sender = await lead_in(world, sequence=2**16 - 50, timestamp=2**32 - 8833)
    said = noise(622, 0.6)
    sender.burst(said)
    assert sender.sequence < 100
    assert sender.timestamp < 100 * FRAME
    await whole(world, call, session, sender, said)


async def test_a_pause_between_packets_stays_one(world: GatewayStack) -> None:
    """Timestamps that go ahead with the time, as with silence suppression."""
    call, session, sender = await lead_in(world)
    first, second = noise(623, 0.4), noise(624, 0.4)
    sender.burst(first + b"\x55" * 2 * FRAME)  # concealment blends into the last one
    before = session.received_total
    sender.timestamp = (sender.timestamp + 8000) & 0xFFFFFFFF
    await asyncio.sleep(1.0)
    sender.burst(b"\x55" * 4 * FRAME + second)
    await whole(world, call, session, sender, first, second)
    assert session.received_total - before > 1.5 * 8000


async def lead_in(world: GatewayStack, **start: int) -> tuple[DialogCall, SessionRecord, Sender]:
    """A call in which 0.8 s of audio have been sent, with these first numbers."""
    call = await greeted(world)
    session = await world.session_of(call)
    sender = Sender(call.rtp)
    for name, value in start.items():
        setattr(sender, name, value)
    await sender.say(LEAD_IN)
    return call, session, sender


async def whole(
    world: GatewayStack, call: DialogCall, session: SessionRecord, sender: Sender, *said: bytes
) -> None:
    """Asserts that each of these arrives, as it was, while the caller goes on."""
    await sender.say(b"\x55" * 40 * FRAME)
    for one in said:
        await arrives(session, one)
    await world.summary_at_end(call)
    assert_continuous(call.rtp.packets)


async def test_symmetric_rtp(world: GatewayStack) -> None:
    """A caller behind NAT: its SDP names one port, its packets come from another."""
    call = await greeted(world)
    session = await world.session_of(call)
    behind = RtpEnd(0, b"\xff")
    try:
        assert call.rtp._peer is not None
        call.rtp.sending = False
        behind.connect(*call.rtp._peer)
        await behind.until(lambda: len(behind.packets) > 25)
        count = len(call.rtp.packets)
        behind.sending = False
        sender = Sender(behind)
        said = noise(300, 0.5)
        await sender.say(LEAD_IN)
        sender.burst(said)
        await sender.say(b"\x55" * 40 * FRAME)
        await arrives(session, said)
        assert len(call.rtp.packets) <= count + 1
        await world.summary_at_end(call)
    finally:
        await behind.close()


@pytest.mark.parametrize("late", [1, 3])
async def test_late_packets_of_the_port_before(world: GatewayStack, late: int) -> None:
    """A re-INVITE moves RTP to a port that is still silent: what was on the way moves nothing."""
    call = await greeted(world)
    session = await world.session_of(call)
    sender = Sender(call.rtp)
    await sender.say(b"\x55" * 10 * FRAME)
    moved = RtpEnd(0, b"\xff")
    try:
        assert call.rtp._peer is not None
        moved._peer = call.rtp._peer
        await call.renegotiate(port=moved.port)
        for _ in range(late):
            sender.put(b"\x55" * FRAME, 0)
        await moved.until(lambda: len(moved.packets) > 5)
        count = len(call.rtp.packets)
        before = len(moved.packets)
        await moved.until(lambda: len(moved.packets) > before + 25)
        assert len(call.rtp.packets) <= count + 1
        said = noise(310 + late, 0.5)
        moved.sequence = call.rtp.sequence
        speaker = Sender(moved)
        await speaker.say(LEAD_IN)
        speaker.burst(said)
        await speaker.say(b"\x55" * 40 * FRAME)
        await arrives(session, said)
        await world.summary_at_end(call)
    finally:
        await moved.close()


@pytest.mark.parametrize("sources", [False, True])
async def test_audio_faster_than_real_time(world: GatewayStack, sources: bool) -> None:
    """A caller that sends ten times as much as it can say: each second of audio costs."""
    call = await greeted(world)
    session = await world.session_of(call)
    sender = Sender(call.rtp)
    for _ in range(100):
        for _ in range(10):
            sender.source = (sender.source + sources) & 0xFFFFFFFF
            sender.put(b"\x55" * FRAME, 0)
        await asyncio.sleep(0.01)
    await world.gateway.wait("call.audio_too_fast", call=call.call_id)
    await world.summary_at_end(call)
    # From the first on: what is on its way when the flood begins belongs to no moment.
    most = 5 + 1.05 * (time.monotonic() - call.invited_at) + 0.5
    assert session.received_total < most * 8000
    record = await world.record(call)
    assert record["dropped_uplink_frames"] > 100


def _stranger(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind((host, 0))
    return made


def _heard_by(sock: socket.socket) -> int:
    """Packets that have come to it."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while sock.recv(2048):
            count += 1
    return count


async def _flood(sender: Sender, seconds: float) -> None:
    """Some eight times as many packets as a telephone sends."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(20):
            sender.put(b"\x2a" * FRAME, 0)
        await asyncio.sleep(0.05)


async def _flood_in_step(sender: Sender, end: RtpEnd, packets: int) -> None:
    """As many, until so many packets have come to this end: none while the gateway stands still,
    whose socket would have no room for what the caller says."""
    last = len(end.packets) + packets
    while (came := len(end.packets)) < last:
        for _ in range(20):
            sender.put(b"\x2a" * FRAME, 0)
        await end.until(partial(_more_came, end, came + 1))


def _more_came(end: RtpEnd, than: int) -> bool:
    return len(end.packets) > than


async def test_a_stranger_takes_nothing_over_from_who_speaks(world: GatewayStack) -> None:
    call = await greeted(world)
    session = await world.session_of(call)
    end = call.rtp
    sender = Sender(end)
    with contextlib.closing(_stranger("127.0.0.2")) as sock:
        before, said = len(end.packets), noise(500, 1.0)
        flood = asyncio.create_task(_flood_in_step(Sender(end, sock), end, 75))
        await sender.say(LEAD_IN)
        sender.burst(said)
        await sender.say(b"\x55" * 40 * FRAME)
        await flood
        await arrives(session, said)
        assert _heard_by(sock) == 0
        assert len(end.packets) > before + 50
        await world.summary_at_end(call)
    assert_continuous(end.packets)


async def test_a_stranger_who_was_first_gives_way_to_the_address_of_the_description(
    world: GatewayStack,
) -> None:
    world.behave(vad="off", answer=LONG_ANSWER)
    call = dialog_call(world.phone, "greeted")
    call.rtp.sending = False
    await answered(call)
    await world.gateway.wait("call.confirmed", call=call.call_id)
    with contextlib.closing(_stranger("127.0.0.2")) as sock:
        stranger = Sender(call.rtp, sock)
        await _flood(stranger, 0.5)
        # Whoever is first is followed, for peers behind NAT.
        await eventually(lambda: _heard_by(sock) > 0, "RTP to the stranger")
        flood = asyncio.create_task(_flood(stranger, 2.0))
        speaking = asyncio.create_task(Sender(call.rtp).say(noise(501, 2.0)))
        count = len(call.rtp.packets)
        await call.rtp.until(lambda: len(call.rtp.packets) > count + 25)
        _heard_by(sock)
        await call.rtp.until(lambda: len(call.rtp.packets) > count + 50)
        assert _heard_by(sock) == 0
        await asyncio.gather(flood, speaking)
    await world.summary_at_end(call)


async def test_silence_suppression_with_comfort_noise(world: GatewayStack) -> None:
    """RFC 3389: packets of type 13 and a pause; the session's clock goes on with silence."""
    call = await greeted(world, comfort_noise=True)
    assert call.final is not None
    session = await world.session_of(call)
    sender = Sender(call.rtp)
    first, second = noise(400, 0.4), noise(401, 0.4)
    await sender.say(LEAD_IN)
    sender.burst(first + b"\x55" * 2 * FRAME)  # concealment blends into the last one
    before = session.received_total
    for _ in range(5):
        sender.put(b"\x40", 13, samples=0)
        sender.timestamp += 1600
        await asyncio.sleep(0.2)
    await sender.say(LEAD_IN)
    sender.burst(second)
    await sender.say(b"\x55" * 40 * FRAME)
    await arrives(session, first)
    await arrives(session, second)
    assert session.received_total - before > 1.5 * 8000
    await world.summary_at_end(call)
    assert_continuous(call.rtp.packets)


async def test_a_port_rests_until_nobody_sends_to_it(world: GatewayStack) -> None:
    """Who goes on sending after its BYE is heard by no later call, as long as it goes on."""
    ports: list[int] = []
    late = await greeted(world)
    assert late.rtp._peer is not None
    first = late.rtp._peer[1]
    marks = noise(500, 0.2)
    sender = Sender(late.rtp)
    await world.summary_at_end(late)

    async def without_end() -> None:
        while True:
            await sender.say(marks)

    going_on = asyncio.create_task(without_end())
    try:
        low, high = map(
            int, re.findall(r"rtp_ports = \[(\d+), (\d+)\]", world.gateway.config.read_text())[0]
        )
        for _ in range(12):
            call = dialog_call(world.phone, "plain")
            await answered(call)
            assert call.final is not None
            found = re.search(r"^m=audio (\d+)", call.final.body, re.M)
            assert found is not None
            ports.append(int(found[1]))
            await call.rtp.heard_bytes(3200)
            session = await world.session_of(call)
            await world.summary_at_end(call)
            assert marks[:80] not in bytes(session.received)
        assert first not in ports
        assert all(low <= port < high for port in ports)
        assert _taken(first), "still held"
    finally:
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)
    await eventually(lambda: not _taken(first), "the port is free again")


def _taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False

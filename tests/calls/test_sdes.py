# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of a description (RFC 4568): renewed in a call, and with many sources."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from tests.calls.test_dialogs import LONG_ANSWER
from tests.calls.test_every_byte import LEAD_IN_MS, WORLD, Keyed, by_sdes, inline, own_certificate
from tests.support.harness import GatewayStack
from tests.support.listening import noise
from tests.support.srtp import KEY_BYTES, SALT_BYTES

__all__ = ["WORLD", "own_certificate"]

MOST_SOURCES = 1024
"""SSRCs of a key that are listened to."""


@pytest.mark.parametrize("roll_over", [0, 1])
async def test_a_re_invite_and_the_keys_of_sdes(
    world: GatewayStack, own_certificate: Path, roll_over: int
) -> None:
    """With the same key its counters go on, beyond where they wrap: nothing is heard twice. With
    another one, nothing of the one before is heard, and the counter may begin anew."""
    async with by_sdes(world, "PCMU", 20, own_certificate) as (call, sender):
        assert isinstance(sender, Keyed)
        session, heard, send = await world.session_of(call), list[bytes](), sender.send

        def keep(packet: bytes) -> None:
            heard.append(packet)
            send(packet)

        async def is_heard(seed: int) -> None:
            said = noise(seed, 0.2)
            sender.burst(said + b"\x55" * LEAD_IN_MS * 8)
            await session.wait_until(lambda s: said in bytes(s.received), 30)

        sender.sequence, sender.send = 65500, keep
        sender.burst(b"\x55" * LEAD_IN_MS * 8)
        await is_heard(1)
        await is_heard(2)
        assert sender.sequence < 100, "it has wrapped"
        await call.renegotiate()
        for packet in heard[:40]:
            send(packet)
        await is_heard(3)
        keys = os.urandom(KEY_BYTES), os.urandom(SALT_BYTES)
        await call.renegotiate(security=inline(*keys))
        late = noise(4, 0.2)
        sender.burst(late)
        sender.use(*keys, roll_over)
        await is_heard(5)
        received = bytes(session.received)
        assert [received.count(noise(seed, 0.2)) for seed in (1, 2, 3, 5)] == [1, 1, 1, 1]
        assert late[:160] not in received
        await world.summary_at_end(call)


async def test_sources_of_one_key(world: GatewayStack, own_certificate: Path) -> None:
    """There is an end to them; the ones that there are go on. Each counts its wraps by itself."""
    async with by_sdes(world, "PCMU", 20, own_certificate) as (call, sender):
        session, own = await world.session_of(call), sender.source
        sender.sequence = 65500

        async def is_heard(said: bytes) -> None:
            await session.wait_until(lambda s: said in bytes(s.received), 30)

        sender.burst(first := noise(1, 0.2))
        await is_heard(first)
        for number in range(1, MOST_SOURCES):
            sender.source = own + number & 0xFFFFFFFF
            # Of the last one of fifty it is seen that they have come: no buffer runs over.
            is_last = number % 50 == 0 or number == MOST_SOURCES - 1
            sender.put(mark := noise(number, 0.02)[: 40 if is_last else 1], 0)
            if is_last:
                await is_heard(mark)
        sender.source = own - 1 & 0xFFFFFFFF
        sender.burst(more := noise(2, 0.2))
        sender.source = own
        sender.burst(b"\x55" * LEAD_IN_MS * 8 + (again := noise(3, 0.2)))
        await is_heard(again)
        assert more[:160] not in bytes(session.received)
        await world.summary_at_end(call)


async def test_no_sequence_number_is_sent_twice_with_a_key(
    world: GatewayStack, own_certificate: Path
) -> None:
    """The stream is made anew for each hold, and its media clock may send one more packet after the
    number that the next one goes on from was read."""
    world.behave(vad="off", answer=LONG_ANSWER)
    async with by_sdes(world, "PCMU", 20, own_certificate) as (call, _sender):
        await call.rtp.until(lambda: len(call.rtp.packets) > 20)
        await call.renegotiate(direction="sendonly")
        count = len(call.rtp.packets)  # or a little more: the last ones may be on their way
        await call.renegotiate(direction="sendrecv")

        def steps() -> list[int]:
            numbers = [packet.sequence for packet in call.rtp.packets[count - 1 :]]
            return [after - before & 0xFFFF for before, after in pairwise(numbers)]

        await call.rtp.until(lambda: len(steps()) > 20)
        assert [step > 1 for step in steps()].count(True) == 1, "where the stream is made anew"
        assert 0 not in steps()
        await world.summary_at_end(call)

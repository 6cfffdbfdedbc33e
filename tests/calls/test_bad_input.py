# SPDX-License-Identifier: GPL-2.0-or-later
"""What no caller and no server should send: it is answered or dropped, and hurts no other call."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

import pytest

from gateway.devtools.emulator.objects import ProtocolError
from tests.support.dialog import bystander, unharmed
from tests.support.harness import GatewayStack

WORLD = {"log_level": "info"}


def broken_invites(world: GatewayStack) -> list[bytes]:
    """INVITEs with something wrong, made from a good one."""
    call = world.phone.call("plain")
    call.invite()
    good = call._invite
    call.cancel()
    head, _, body = good.partition(b"\r\n\r\n")
    fresh = iter(range(100))

    def changed(old: bytes, new: bytes) -> bytes:
        call_id = call.call_id.encode()
        branch = call._branch.encode()
        again = good.replace(old, new, 1)
        number = str(next(fresh)).encode()
        return again.replace(call_id, b"broken-" + number).replace(branch, branch + number)

    return [
        good[: len(good) // 2],
        head,
        changed(b"INVITE sip:", b"INVITE "),
        changed(b"SIP/2.0\r\n", b"SIP/9.0\r\n"),
        changed(b"Call-ID:", b"X-Call-ID:"),
        changed(b"CSeq: 1 INVITE", b"CSeq: one INVITE"),
        changed(b"CSeq: 1 INVITE", b"CSeq: 1 BYE"),
        changed(b"Max-Forwards: 70", b"Max-Forwards: 0"),
        changed(b"Max-Forwards: 70", b"Max-Forwards: minus one"),
        changed(b"From: <", b"From: <<<"),
        changed(b"Content-Length: ", b"Content-Length: 9"),
        changed(b"Content-Length: ", b"Content-Length: -"),
        changed(b"application/sdp", b"text/plain"),
        changed(b"m=audio", b"m=nonsense"),
        changed(b"RTP/AVP 0 8 101", b"RTP/AVP 0 8 101" + b" 0" * 300),
        changed(b"c=IN IP4 127.0.0.1", b"c=IN IP4 no.such.host.invalid"),
        changed(b"c=IN IP4 127.0.0.1", b"c=IN IP6 ::ffff:ffff"),
        changed(b"m=audio ", b"m=audio 99999"),
        changed(b"v=0\r\n", b""),
        changed(body, b"\xff" * len(body)),
        changed(b"Contact: ", b"Contact: sip:" + b"a" * 1500),
        changed(b"Max-Forwards", b"X-Long: " + b"y" * 2000 + b"\r\nMax-Forwards"),
        changed(b"sip:plain@", b"sip:pl%00ain@"),
        changed(b"sip:plain@", b"sip:" + "plain\u202e☎".encode() + b"@"),
    ]


async def test_garbage_on_the_sip_port(world: GatewayStack) -> None:
    call = await bystander(world)
    chance = random.Random(4)
    world.phone.send(b"")
    world.phone.send(b"\r\n\r\n")
    world.phone.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    world.phone.send(b"SIP/2.0 200 OK\r\n\r\n")
    world.phone.send(b"INVITE sip:plain@127.0.0.1 SIP/2.0\r\n\r\n")
    for number in range(200):
        world.phone.send(chance.randbytes(chance.randrange(1, 1400)))
        if number % 20 == 0:
            assert (await world.phone.options()).code == 200
    assert (await world.phone.options()).code == 200
    await unharmed(world, call)


async def test_broken_invites(world: GatewayStack) -> None:
    """Each is refused, dropped or taken for what it can mean; then a good call gets through."""
    call = await bystander(world)
    invites = broken_invites(world)
    for invite in invites:
        world.phone.send(invite)
        await asyncio.sleep(0.03)  # more slowly than sockets are freed
    assert (await world.phone.options()).code == 200
    await unharmed(world, call)
    for line in world.gateway.all("call.invite"):
        await world.gateway.wait("call.summary", call=line["call"])
    world.behave()
    await world.summary_at_end(await world.dial())


async def test_requests_for_calls_that_do_not_exist(world: GatewayStack) -> None:
    call = await bystander(world)
    ghost = world.phone.call("plain")
    ghost._to = f"<{ghost.uri}>;tag=none"
    ghost._target = ghost.uri
    ghost.bye()
    await ghost.until(lambda c: c.messages, what="an answer to BYE")
    assert ghost.messages[0].code == 481
    ghost.messages.clear()
    ghost.cancel()
    await ghost.until(lambda c: c.messages, what="an answer to CANCEL")
    assert ghost.messages[0].code == 481
    ghost.ack()
    ghost.messages.clear()
    await unharmed(world, call)


async def test_garbage_on_a_live_call(world: GatewayStack) -> None:
    """Datagrams that are no RTP, foreign sequence numbers, odd sizes, unknown payload types."""
    call = await bystander(world)
    other = await bystander(world)
    assert other.rtp._peer is not None
    chance = random.Random(5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for number in range(400):
            junk = chance.randbytes(chance.randrange(0, 1400))
            if number % 2:
                second = bytes([chance.randrange(256)])
                junk = b"\x80" + second + junk[:10] + chance.randbytes(chance.randrange(0, 400))
            stranger.sendto(junk, other.rtp._peer)
            stranger.sendto(junk, (other.rtp._peer[0], other.rtp._peer[1] + 1))
            other.rtp._socket.sendto(junk, other.rtp._peer)
    await unharmed(world, call)
    await unharmed(world, other)


EVENTS: list[dict[str, Any]] = [
    {"type": "nobody.knows.this", "with": {"some": ["thing"]}},
    {"type": " input_audio_buffer.dtmf_event_received", "event": "1"},
    {"type": ""},
    {"type": 7},
    {"type": "response.output_audio.delta"},
    {"type": "response.output_audio.delta", "response_id": None, "item_id": 5, "delta": "AAAA"},
    {"type": "response.output_audio.delta", "response_id": "r", "item_id": "i", "delta": "%%"},
    {"type": "response.done"},
    {"type": "response.done", "response": {"id": "x", "status": "odd", "output": [1, None, {}]}},
    {"type": "response.done", "response": {"id": "y", "output": [{"type": "function_call"}]}},
    {"type": "response.created", "response": 3},
    {"type": "response.done", "response": None},
    {"type": "input_audio_buffer.speech_started"},
    {"type": "input_audio_buffer.speech_stopped", "item_id": [], "audio_end_ms": "soon"},
    {"type": "conversation.item.truncated", "item_id": "never", "audio_end_ms": -1},
    {"type": "error"},
    {"type": "error", "error": {"code": 5, "message": None}},
    {"type": "session.updated", "session": None},
    {"type": "rate_limits.updated", "rate_limits": "none"},
]


@pytest.mark.parametrize("codec", ["PCMU", "PCMA"])
async def test_events_that_nobody_knows(world: GatewayStack, codec: str) -> None:
    """Unknown events and fields are tolerated; the conversation goes on."""
    call = await bystander(world)
    # At once: a busy machine makes no hole in it.
    answer = {"kind": "pattern", "seconds": 1, "seed": 4, "burst": True}
    world.behave(vad="off", answer=answer, unknown_events=True, obfuscation=True)
    other = await world.dial("plain", codecs=(codec,))
    session = await world.session_of(other)
    connection = world.emulator.live[session.id]
    for event in EVENTS:
        await connection._socket.send(json.dumps(event))
    connection.error(ProtocolError("never_heard_of", "What?", None, "odd_error"), None)
    other.rtp.press("1#")
    # The first response is to a function call without a name; the keys cut it.
    await session.wait_until(lambda s: 8000 in map(len, s.sent_items.values()), 20)
    audio = next(bytes(one) for one in session.sent_items.values() if len(one) == 8000)
    await other.rtp.until(lambda: audio in other.rtp.heard)
    await world.summary_at_end(other)
    await unharmed(world, call)

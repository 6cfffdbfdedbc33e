# SPDX-License-Identifier: GPL-2.0-or-later
"""The caller's audio goes up byte for byte, through SRTP beside replayed and forged packets,
whatever its keys come from, in packets of any length, in either law, over a bad network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.calls.test_dtls import Relay, fingerprint_of
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import GatewayStack
from tests.support.listening import noise
from tests.support.rtp_end import RtpEnd, Sender
from tests.support.sip_phone import CODECS
from tests.support.site_under_test import certificate
from tests.support.srtp import KEY_BYTES, SALT_BYTES, Protection

WORLD = {
    "more": """
[[trunk]]
name = "provider"
peers = ["127.0.0.1"]
srtp = "optional"
srtp_keying = ["sdes", "dtls"]
sdes_without_tls = true
""",
}
SILENCE = {"PCMU": 0xFF, "PCMA": 0xD5}
PAYLOAD_TYPE = {"PCMU": 0, "PCMA": 8}
LEAD_IN_MS = 240
Send = Callable[[bytes], Any]


@pytest.fixture(scope="module")
def own_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phone")
    certificate(folder, "phone")
    return folder


async def up(world: GatewayStack, codec: str, ptime: int, **sdp: Any) -> DialogCall:
    world.behave(vad="off")
    call = await answered(dialog_call(world.phone, "greeted", codecs=(codec,), ptime=ptime, **sdp))
    await world.gateway.wait("call.confirmed", call=call.call_id)
    return call


@contextlib.asynccontextmanager
async def by_sdes(
    world: GatewayStack, codec: str, ptime: int, _folder: Path
) -> AsyncIterator[tuple[DialogCall, Sender]]:
    keys = os.urandom(KEY_BYTES), os.urandom(SALT_BYTES)
    call = await up(world, codec, ptime, profile="RTP/SAVP", security=inline(*keys))
    sender = Keyed(call.rtp, ptime=ptime)
    sender.use(*keys)
    yield call, sender


def inline(key: bytes, salt: bytes) -> tuple[str, ...]:
    """Lines of a description with these keys."""
    return (f"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{base64.b64encode(key + salt).decode()}",)


class Keyed(Sender):
    """Whose keys are those of a description."""

    keys: tuple[bytes, bytes]

    def use(self, key: bytes, salt: bytes, roll_over: int = 0) -> None:
        """Go on with these."""
        self.keys = key, salt
        self.protect = Protection(key, salt, roll_over=roll_over).protect


@contextlib.asynccontextmanager
async def by_dtls(
    world: GatewayStack, codec: str, ptime: int, folder: Path
) -> AsyncIterator[tuple[DialogCall, Sender]]:
    call = await up(world, codec, ptime, profile="UDP/TLS/RTP/SAVP", security=print_of(folder))
    async with agreed(call, ptime, folder) as sender:
        yield call, sender


@contextlib.asynccontextmanager
async def in_clear(
    world: GatewayStack, codec: str, ptime: int, _folder: Path
) -> AsyncIterator[tuple[DialogCall, Sender]]:
    call = await up(world, codec, ptime)
    yield call, Sender(call.rtp, ptime=ptime)


def print_of(folder: Path) -> tuple[str, ...]:
    """Lines of a description with the certificate there; the handshake is ours to begin."""
    return f"a=fingerprint:sha-256 {fingerprint_of(folder)}", "a=setup:active"


class Agreed(Sender):
    """Whose keys are those of a handshake."""

    client: asyncio.subprocess.Process
    """The openssl that it was with."""


@contextlib.asynccontextmanager
async def agreed(call: DialogCall, ptime: int, folder: Path) -> AsyncIterator[Agreed]:
    """The handshake is openssl's; RTP goes out of the same port."""
    sender = Agreed(call.rtp, ptime=ptime)
    own, relay = call.rtp.port, Relay()
    port = call.rtp._socket.dup()  # nobody else gets it before openssl does
    await call.rtp.close()
    call.rtp, call.sdp.port = RtpEnd(*CODECS[call.sdp.codecs[0]]), own
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: relay, sock=port)
    relay.gateway = sender.peer
    relay.open()
    client = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-dtls1_2", "-use_srtp", "SRTP_AES128_CM_SHA1_80"),
        *("-keymatexport", "EXTRACTOR-dtls_srtp", "-keymatexportlen", "60"),
        *("-connect", f"127.0.0.1:{own}"),
        *("-cert", str(folder / "cert.pem"), "-key", str(folder / "key.pem")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert client.stdout is not None
    try:
        async with asyncio.timeout(WITHIN_S):
            while not (
                found := re.match(
                    rb"\s*Keying material: (\w+)", line := await client.stdout.readline()
                )
            ):
                assert line, "no handshake"
        material = bytes.fromhex(found[1].decode())
        salt = material[2 * KEY_BYTES :][:SALT_BYTES]
        sender.protect = Protection(material[:KEY_BYTES], salt).protect
        sender.send = lambda packet: transport.sendto(packet, relay.gateway)
        sender.client = client
        yield sender
    finally:
        with contextlib.suppress(ProcessLookupError):
            client.kill()
        await client.wait()
        transport.close()


async def over(network: str, sender: Sender, audio: bytes, ptime: int, silence: int) -> bytes:
    """Send it; returns what has to arrive."""
    rng = random.Random(ptime)
    size = ptime * 8
    pieces = [audio[at : at + size] for at in range(0, len(audio), size)]
    if network == "loss":  # two percent, and one at least
        lost = {number for number in range(1, len(pieces) - 1) if rng.random() < 0.02} | {3}
        send = sender.send
        for number, piece in enumerate(pieces):
            sender.send = (lambda _packet: None) if number in lost else send
            sender.put(piece, sender.payload_type)
            if number in lost:
                pieces[number] = bytes([silence]) * size
        sender.send = send
    elif network == "jitter":
        send, sent = sender.send, list[bytes]()
        sender.send = sent.append
        for piece in pieces:
            sender.put(piece, sender.payload_type)
        sender.send = send
        # In the order in which 20 ms of jitter have them come, and at once: how long a packet is
        # waited for is a matter of the sequencer's own tests, on a clock that no machine holds up.
        came = sorted(
            (number * ptime + rng.uniform(0, 20), packet) for number, packet in enumerate(sent)
        )
        for _at, packet in came:
            send(packet)
    else:
        sender.burst(audio)
    return b"".join(pieces)


@pytest.mark.parametrize("network", ["none", "jitter", "loss"])
@pytest.mark.parametrize(
    ("codec", "ptime"),
    [("PCMU", 10), ("PCMA", 10), ("PCMA", 30), ("PCMU", 40), ("PCMU", 60), ("PCMA", 60)],
)
@pytest.mark.parametrize("way", [by_sdes, by_dtls], ids=["sdes", "dtls"])
async def test_every_byte(
    world: GatewayStack, own_certificate: Path, way: Any, codec: str, ptime: int, network: str
) -> None:
    async with way(world, codec, ptime, own_certificate) as (call, sender):
        session = await world.session_of(call)
        silence = SILENCE[codec]
        sender.payload_type = PAYLOAD_TYPE[codec]
        sender.burst(b"\x55" * LEAD_IN_MS * 8)
        said = noise(ptime, 0.96)
        expected = await over(network, sender, said, ptime, silence)
        sender.burst(b"\x55" * LEAD_IN_MS * 8)  # what is behind a gap at the end, too
        await session.wait_until(lambda s: expected in bytes(s.received), 30)
        summary = await world.summary_at_end(call)
    if way is by_sdes:  # of the other, the call may be over before anybody asks
        assert summary["security"].startswith("srtp sdes ")
    counted = summary["uplink"]
    assert counted["lost"] == (
        expected.count(bytes([silence]) * ptime * 8) if network == "loss" else 0
    )
    assert counted["late"] == counted["dropped_ms"] == counted["timestamp_jumps"] == 0


def replayed(sender: Sender, heard: list[bytes]) -> list[bytes]:
    return heard[-12:] * 2 + heard[:5]


def forged(sender: Sender, heard: list[bytes]) -> list[bytes]:
    """Its SSRC and others, all over the index (RFC 3711 section 3.3.1), with tags that are none."""
    near = [0, 1, 2, 63, 64, 65, 1 << 14, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 65535, 65472]
    return [
        struct.pack("!BBHII", 0x80, 0, sender.sequence + step & 0xFFFF, sender.timestamp, ssrc)
        + os.urandom(170)
        for step in near
        for ssrc in (sender.source, sender.source ^ 1, 0)
    ]


def odd(sender: Sender, heard: list[bytes]) -> list[bytes]:
    """Cut, or with lengths that lead out of the packet; and of another kind."""
    last = heard[-1]
    return [
        *(last[:size] for size in range(1, 30, 3)),
        *(bytes([first]) + last[1:] for first in range(0, 256, 9)),
        last[:12] + b"\xbe\xde\xff\xff" + last[12:],
        b"\x90" + last[1:12] + b"\xbe\xde\xff\xff" + last[12:],
        b"\xbf" + last[1:20],
    ]


def plain(sender: Sender, heard: list[bytes]) -> list[bytes]:
    return [
        struct.pack("!BBHII", 0x80, 0, sender.sequence, sender.timestamp, ssrc) + bytes(160)
        for ssrc in (sender.source, 1)
        for _ in range(20)
    ]


def handshakes(sender: Sender, heard: list[bytes]) -> list[bytes]:
    """Records of DTLS that nobody has signed (RFC 6347 section 4.1): alerts, a hello, garbage."""
    hello = bytes(2) + bytes(32) + b"\0\0\0\2\xc0\x2f\1\0"
    bodies = [
        (21, b"\1\0"),
        (21, b"\2\x28"),
        (20, b"\1"),
        (22, b"\0\0\0\0" + bytes(8)),
        (22, b"\1" + len(hello).to_bytes(3) + bytes(2) + bytes(3) + len(hello).to_bytes(3) + hello),
        (22, b"\1\xff\xff\xff" + bytes(2) + bytes(3) + b"\0\0\x20" + bytes(32)),
        (23, os.urandom(40)),
        (63, b""),
    ]
    return [
        bytes([kind])
        + b"\xfe\xfd"
        + epoch
        + bytes(5)
        + bytes([number])
        + len(body).to_bytes(2)
        + body
        for kind, body in bodies
        for epoch in (b"\0\0", b"\0\1", b"\xff\xff")
        for number in (0, 200)
    ]


def rtcp(sender: Sender, heard: list[bytes]) -> list[bytes]:
    """BYE, XR, feedback and reports beyond their length, unsigned; on RTP's port, too."""
    source = sender.source.to_bytes(4)
    kinds = [
        b"\x81\xcb\0\1" + source,
        b"\x9f\xcb\0\1" + source,
        b"\x81\xcf\xff\xff" + source + bytes(1200),
        b"\x80\xcf\0\2" + source + b"\4\0\xff\xff",
        b"\x81\xce\0\2" + source * 2,
        b"\x8f\xcd\0\2" + source * 2,
        b"\x9f\xc8\0\6" + source + bytes(20),
        b"\x9f\xc9\0\1" + source,
        b"\x9f\xca\0\2" + source + b"\1\xff\xff\xff",
    ]
    signed = [one + (1 << 31 | 1).to_bytes(4) + os.urandom(10) for one in kinds]
    return (kinds + signed) * 2


def signed_rtcp(sender: Sender, heard: list[bytes]) -> list[bytes]:
    """The caller's own, each of them three times: BYE, reports of another century, odd names."""
    source = sender.source.to_bytes(4)
    protection = sender.protect.__self__  # type: ignore[attr-defined]
    kinds = [
        *(b"\x80\xc8\0\6" + source + year + bytes(16) for year in (bytes(4), b"\xff" * 4)),
        b"\x81\xc9\0\7" + source + os.urandom(24),
        b"\x81\xca\0\4" + source + b"\1\x09\xff\xfe\x1b[31m\0\0\0\0",
        b"\x81\xcb\0\4" + source + b"\x0bbye\x1b[2J" + bytes(4),
    ]
    return [protection.protect_rtcp(one) for one in kinds] * 3


def other_tags(sender: Sender, heard: list[bytes]) -> list[bytes]:
    """Of all lengths but the agreed one, over what would be right."""
    packet = struct.pack("!BBHII", 0x80, 0, sender.sequence, sender.timestamp, sender.source)
    assert isinstance(sender, Keyed)
    sealed = Protection(*sender.keys, tag_bytes=20).protect(packet + bytes(160))
    return [sealed[:-20] + sealed[-20:][:size] for size in (0, 4, 8, 9, 11, 16, 20)]


ATTACKS = [
    *((by_sdes, one) for one in (replayed, forged, odd, plain, rtcp, signed_rtcp, other_tags)),
    *((by_dtls, one) for one in (replayed, handshakes)),
    *((in_clear, one) for one in (rtcp, handshakes)),
]


@pytest.mark.parametrize(("way", "attack"), ATTACKS)
async def test_every_byte_under_attack(
    world: GatewayStack, own_certificate: Path, way: Any, attack: Any
) -> None:
    """From its own port and from another, to RTP's and RTCP's, while a caller speaks."""
    async with way(world, "PCMU", 20, own_certificate) as (call, sender):
        session = await world.session_of(call)
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        heard, send = list[bytes](), sender.send

        def keep(packet: bytes) -> None:
            heard.append(packet)
            send(packet)

        sender.send = keep
        host, port = sender.peer
        sender.burst(b"\x55" * LEAD_IN_MS * 8)
        await session.wait_until(lambda s: b"\x55" * 800 in bytes(s.received), 30)
        said = noise(31, 0.6)
        for at in range(0, len(said), 1600):
            for packet in attack(sender, heard) if at == 3200 else ():
                send(packet)
                for to in (port, port + 1):
                    other.sendto(packet, (host, to))
            sender.burst(said[at : at + 1600])
        if way is by_dtls and attack is handshakes:
            sender.client.stdin.write(b"R\n")  # another handshake within its association
            await sender.client.stdin.drain()
        sender.burst(b"\x55" * LEAD_IN_MS * 8)
        await session.wait_until(lambda s: said in bytes(s.received), 30)
        again = noise(32, 0.2)
        sender.burst(b"\x55" * LEAD_IN_MS * 8 + again + b"\x55" * LEAD_IN_MS * 8)
        await session.wait_until(lambda s: again in bytes(s.received), 30)
        other.close()
        summary = await world.summary_at_end(call)
    assert summary["ending"]["why"] == "remote_hangup"
    assert summary["uplink"]["lost"] == summary["uplink"]["foreign"] == 0


@pytest.mark.parametrize("renewed", [False, True], ids=["the same", "new ones"])
async def test_a_re_invite_and_the_keys_of_dtls(
    world: GatewayStack,
    own_certificate: Path,
    tmp_path: Path,
    renewed: bool,
) -> None:
    """One that says the same again goes on with the keys there are; another certificate, at another
    port, begins another association (RFC 8842 section 3.1)."""
    certificate(tmp_path, "renewed")
    async with contextlib.AsyncExitStack() as held:
        call, sender = await held.enter_async_context(by_dtls(world, "PCMU", 20, own_certificate))
        session = await world.session_of(call)

        async def is_heard(seed: int) -> None:
            said = noise(seed, 0.2)
            sender.burst(said + b"\x55" * LEAD_IN_MS * 8)
            await session.wait_until(lambda s: said in bytes(s.received), 30)

        sender.payload_type = 0
        sender.burst(b"\x55" * LEAD_IN_MS * 8)
        await is_heard(1)
        if renewed:
            await call.renegotiate(port=None, security=print_of(tmp_path))
            sender = await held.enter_async_context(agreed(call, 20, tmp_path))
            sender.payload_type = 0
        else:
            await call.renegotiate()
        await is_heard(2)
        summary = await world.summary_at_end(call)
    assert summary["security"].startswith("srtp dtls "), summary
    assert not world.gateway.all("sip.no_keys")


LEAVING = """
[[route]]
name = "leaving"
to = "^leaving$"
[route.greeting]
say = "Hello."
[route.end_call]
"""
SHORT_WAIT = """
from gateway.sip import sip_call
sip_call.KEYS_TIMEOUT = 0.3
from gateway.cli import main
main()
"""


async def test_playout_waits_for_keys_until_a_deadline(
    own_folder: Path, own_certificate: Path
) -> None:
    """A handshake that never comes: nothing goes out without keys, and the call goes on."""
    world = GatewayStack(own_folder, entry=("-c", SHORT_WAIT), routes=LEAVING, more=WORLD["more"])
    await world.start()
    try:
        goodbye = {"kind": "pattern", "seconds": 0.5, "burst": True, "end_call": True}
        lines = print_of(own_certificate)
        world.behave(vad="off", answers=[goodbye])
        call = dialog_call(world.phone, "leaving", profile="UDP/TLS/RTP/SAVP", security=lines)
        await answered(call)
        told = await world.gateway.wait("sip.no_keys")
        # After a goodbye that was played to its end, although nobody heard it.
        summary = await world.gateway.wait("call.summary", call=call.call_id)
        assert (told["seconds"], summary["ending"]["why"]) == (0.3, "agent_hangup")
        assert call.rtp.packets == []
        assert not summary["security"].startswith("srtp"), summary
    finally:
        await world.stop()

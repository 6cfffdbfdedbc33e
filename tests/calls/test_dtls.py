# SPDX-License-Identifier: GPL-2.0-or-later
"""DTLS-SRTP with openssl at the other end: RTP's and RTCP's handshake in any order.

Each of the two is an association of its own (RFC 5764 section 3), with a certificate that has to
be the one of the description.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.calls.test_outbound import callee, held_up, place
from tests.support.callee import CalledCall, CalledPhone
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import GatewayStack
from tests.support.site_under_test import certificate

__all__ = ["callee", "held_up"]

WORLD = {
    "routes": """
[[route]]
name = "outward"
to = "^nobody$"

[[route]]
name = "patient"
to = "^nobody$"
limits.rtp_timeout = 60
greeting.say = "Hello."
""",
    "more": """
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["ring"]
[media]
srtp = "required"
srtp_keying = ["dtls"]
rtp_timeout = 2
""",
}
LATE = """
from gateway.sip import active_calls

active_calls.KEYS_SECONDS = 60.0
from gateway.cli import main

main()
"""
"""``python -m gateway`` that looks for the keys of calls once a minute."""
RTP, RTCP = 0, 1
OF_RTP = range(128, 192)
"""First byte of a packet of RTP or RTCP (RFC 7983 section 7)."""
HANDSHAKE_HEADER = slice(13, 25)
"""Behind that of the record, whose number is another one each time (RFC 6347 section 4.2.2)."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """That of the description, and somebody else's."""
    folders = (tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("other"))
    for folder in folders:
        certificate(folder, folder.name)
    return folders


def fingerprint_of(folder: Path) -> str:
    """Of the certificate there (RFC 8122 section 5)."""
    der = ssl.PEM_cert_to_DER_cert((folder / "cert.pem").read_text())
    return hashlib.sha256(der).digest().hex(":").upper()


class End:
    """Where the gateway's call is answered, by DTLS as the client."""

    def __init__(self, call: CalledCall) -> None:
        self._call = call
        media = re.search(r"^m=audio (\d+) UDP/TLS/RTP/SAVP ", call.invite.body, re.M)
        assert media, call.invite.body
        self._gateway = int(media[1])
        self._own = call.rtp.port
        # Nobody else gets these ports before openssl does.
        self._sockets = [one.dup() for one in (call.rtp._socket, call.rtp._rtcp)]
        self.heard: list[int] = []
        """Channels on which RTP or RTCP came, which it does once the gateway has keys."""
        self._heard = asyncio.Event()

    async def free_ports(self) -> None:
        """Leave the ports of the description to openssl."""
        await self._call.rtp.close()

    def answer(self, folder: Path) -> None:
        """200, with the fingerprint of this certificate."""
        lines = [
            *("v=0", "o=- 2 2 IN IP4 127.0.0.1", "s=-", "c=IN IP4 127.0.0.1", "t=0 0"),
            f"m=audio {self._own} UDP/TLS/RTP/SAVP 0",
            *("a=setup:active", f"a=fingerprint:sha-256 {fingerprint_of(folder)}"),
        ]
        body = "\r\n".join(lines) + "\r\n"
        self._call.phone.answer(self._call.invite, 200, self._call, body)

    @contextlib.asynccontextmanager
    async def begun(
        self, channel: int, folder: Path, *, repeated: bool = False
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Only the first packet is on its way; what this yields lets the rest go, to the end.

        Args:
            repeated: the rest goes from where the gateway sends its answer again.
        """
        loop = asyncio.get_running_loop()
        relay = Relay(repeated, lambda: self._hear(channel))
        await loop.create_datagram_endpoint(lambda: relay, sock=self._sockets[channel])
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-dtls1_2", "-use_srtp", "SRTP_AES128_CM_SHA1_80"),
            *("-connect", f"127.0.0.1:{self._own + channel}"),
            *("-cert", str(folder / "cert.pem"), "-key", str(folder / "key.pem")),
            *("-mtu", "576"),  # a packet of RTCP has no more than 600 bytes
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = client.stdout
        assert output is not None
        relay.gateway = ("127.0.0.1", self._gateway + channel)

        async def go_on() -> None:
            if not repeated:
                relay.open()
            async with asyncio.timeout(WITHIN_S):
                while line := await output.readline():
                    if line.startswith(b"SRTP Extension negotiated"):
                        return
            raise AssertionError("no handshake")

        try:
            async with asyncio.timeout(WITHIN_S):
                await relay.first.wait()
            yield go_on
        finally:
            with contextlib.suppress(ProcessLookupError):
                client.kill()
            await client.wait()
            relay.close()

    async def greeted(self, world: GatewayStack, call: str) -> None:
        """Wait for RTP of the gateway's, and until it knows that it has keys, and plays."""
        await world.gateway.wait("call.agent_speech_started", call=call)
        async with asyncio.timeout(WITHIN_S):
            while RTP not in self.heard:
                self._heard.clear()
                await self._heard.wait()

    def _hear(self, channel: int) -> None:
        self.heard.append(channel)
        self._heard.set()

    @contextlib.asynccontextmanager
    async def handshake(self, channel: int, folder: Path) -> AsyncIterator[None]:
        """Done when this begins; the association lasts as long as it does."""
        async with self.begun(channel, folder) as go_on:
            await go_on()
            yield


class Relay(asyncio.DatagramProtocol):
    """A port of the description; between the gateway and an openssl that is on any other port.

    Args:
        repeated: to open where the gateway sends a message again (RFC 6347 section 4.2.4).
        heard: called for each packet of the gateway's that is RTP or RTCP.
    """

    def __init__(self, repeated: bool = False, heard: Callable[[], None] = lambda: None) -> None:
        self.gateway = ("127.0.0.1", 9)
        self.first = asyncio.Event()
        self._heard = heard
        self._repeated = repeated
        self._answers: set[bytes] = set()
        self._client: tuple[str, int] | None = None
        self._held: list[bytes] | None = []
        self._transport: asyncio.DatagramTransport | None = None

    def open(self) -> None:
        """Let everything through."""
        held, self._held = self._held or [], None
        for data in held:
            self._send(data, self.gateway)

    def close(self) -> None:
        """Give up the port."""
        assert self._transport is not None
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if addr == self.gateway and data[0] in OF_RTP:
            self._heard()
            return
        if addr == self.gateway:
            message = data[HANDSHAKE_HEADER]
            if self._repeated and message in self._answers:
                self.open()
            self._answers.add(message)
            if self._client is not None and self._held is None:
                self._send(data, self._client)
            return
        self._client = addr
        if self._held is None or not self.first.is_set():
            self._send(data, self.gateway)
        else:
            self._held.append(data)
        self.first.set()

    def _send(self, data: bytes, to: tuple[str, int]) -> None:
        assert self._transport is not None
        self._transport.sendto(data, to)


async def called(
    world: GatewayStack, callee: CalledPhone, route: str = "outward"
) -> tuple[str, CalledCall, End]:
    """``patient``: greeted, and not ended for want of RTP while openssl starts."""
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 1, "burst": True})
    call = await place(world, callee.uri("ring"), route)
    there = await callee.called()
    end = End(there)
    await end.free_ports()
    return call, there, end


async def test_rtcp_is_through_before_rtp_and_the_answer(
    world: GatewayStack, callee: CalledPhone, certificates: tuple[Path, Path]
) -> None:
    """As where the second packet of RTP's handshake is lost: it is sent again after a second."""
    own, _other = certificates
    call, there, end = await called(world, callee, "patient")
    async with end.begun(RTP, own) as go_on, end.handshake(RTCP, own):
        end.answer(own)
        await world.gateway.wait("call.confirmed", call=call)
        await go_on()
        await end.greeted(world, call)
        there.bye()
        summary = await world.gateway.wait("call.summary", call=call)
    assert summary["ending"]["why"] == "remote_hangup"
    assert summary["security"].startswith("srtp dtls AES_CM_128_HMAC_SHA1_80"), summary


async def test_keys_that_nobody_has_looked_for_are_in_the_record(
    own_folder: Path, callee: CalledPhone, certificates: tuple[Path, Path]
) -> None:
    """As of a call that ends before the next look at its keys."""
    own, _other = certificates
    late = own_folder / "late_gateway.py"
    late.write_text(LATE)
    more, routes = WORLD["more"], WORLD["routes"]
    world = GatewayStack(own_folder / "world", routes=routes, more=more, entry=(str(late),))
    await world.start()
    call, there, end = await called(world, callee, "patient")
    async with end.handshake(RTCP, own), end.handshake(RTP, own):
        end.answer(own)
        await world.gateway.wait("call.confirmed", call=call)
        async with asyncio.timeout(WITHIN_S):
            while RTP not in end.heard:
                end._heard.clear()
                await end._heard.wait()
        there.bye()
        summary = await world.gateway.wait("call.summary", call=call)
    assert summary["security"].startswith("srtp dtls AES_CM_128_HMAC_SHA1_80"), summary
    await world.stop()


async def test_an_answer_is_sent_again_while_the_handshake_ends(
    own_folder: Path,
    callee: CalledPhone,
    certificates: tuple[Path, Path],
    held_up: tuple[str, ...],
) -> None:
    """The thread that sends it again and the one that reads the end do not wait for each other."""
    own, _other = certificates
    more, routes = WORLD["more"], WORLD["routes"]
    world = GatewayStack(own_folder / "world", routes=routes, more=more, entry=held_up)
    await world.start()
    call, there, end = await called(world, callee, "patient")
    async with end.begun(RTP, own, repeated=True) as go_on:
        end.answer(own)
        await world.gateway.wait("call.confirmed", call=call)
        await go_on()
        await end.greeted(world, call)
        there.bye()
        summary = await world.gateway.wait("call.summary", call=call)
    assert summary["ending"]["why"] == "remote_hangup"
    assert summary["security"].startswith("srtp dtls AES_CM_128_HMAC_SHA1_80"), summary
    await world.stop()


async def test_a_large_certificate(
    world: GatewayStack, callee: CalledPhone, tmp_path: Path
) -> None:
    """One that does not fit into a datagram, nor into the buffer for one."""
    certificate(tmp_path, "large", "1.2.3.4=ASN1:UTF8String:" + "x" * 2500)
    call, there, end = await called(world, callee)
    async with end.handshake(RTCP, tmp_path), end.handshake(RTP, tmp_path):
        end.answer(tmp_path)
        summary = await world.gateway.wait("call.summary", call=call)
    assert summary["security"].startswith("srtp dtls AES_CM_128_HMAC_SHA1_80"), summary
    assert there.requests("BYE")


@pytest.mark.parametrize("first", [RTP, RTCP], ids=["RTP first", "RTCP first"])
@pytest.mark.parametrize("early", [True, False], ids=["before the answer", "after it"])
async def test_a_certificate_that_is_not_the_described_one(
    world: GatewayStack,
    callee: CalledPhone,
    certificates: tuple[Path, Path],
    first: int,
    early: bool,
) -> None:
    """Whichever handshake is the first one: nothing is heard from there, and nothing sent."""
    own, other = certificates
    call, there, end = await called(world, callee, "outward" if early else "patient")
    async with contextlib.AsyncExitStack() as held:
        if early:
            await held.enter_async_context(end.handshake(first, other))
        end.answer(own)
        if not early:
            await world.gateway.wait("call.confirmed", call=call)
            await held.enter_async_context(end.handshake(first, other))
            await held.enter_async_context(end.handshake(RTCP if first == RTP else RTP, other))
            there.bye()
        summary = await world.gateway.wait("call.summary", call=call)
    assert summary["ending"]["why"] == ("rtp_timeout" if early else "remote_hangup")
    assert not summary["security"].startswith("srtp"), summary
    assert end.heard == []
    assert not world.gateway.all("call.agent_speech_started", call=call)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls without an ACK: no RTP and no greeting before it, and in the end a BYE."""

from __future__ import annotations

import asyncio
import socket
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.devtools.emulator.session_log import SessionRecord
from gateway.sip.messages.validation import RTP_ADDRESS, forbidden_rtp_address
from tests.calls.test_media_offers import raw_call
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.harness import GatewayStack, eventually
from tests.support.rtp_end import NOBODY
from tests.support.site_under_test import ANYBODY, Site, site

LONG_ANSWER: dict[str, Any] = {"kind": "pattern", "seconds": 60, "burst": True}
EARLY = """
[[route]]
name = "early"
to = "^early$"
answer = {{ mode = "early_media", sound = "{wav}" }}
"""


class Victim:
    """Somebody who never asked for RTP, at a pair of ports."""

    def __init__(self, host: str) -> None:
        for _ in range(200):  # the port above may be somebody else's
            self._sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
            try:
                self._sockets[0].bind((host, 0))
                self.host, self.port = self._sockets[0].getsockname()
                self._sockets[1].bind((host, self.port + 1))
            except OSError:
                self.close()
                continue
            break
        else:
            raise OSError("no pair of ports is free")
        for one in self._sockets:
            one.setblocking(False)

    def close(self) -> None:
        for one in self._sockets:
            one.close()

    def speak(self, address: tuple[str, int]) -> None:
        """Send some RTP: silence of PCMU."""
        for number in range(50):
            header = struct.pack("!BBHII", 0x80, 0, number, 160 * number, 4711)
            self._sockets[0].sendto(header + b"\xff" * 160, address)

    def bytes(self) -> int:
        """What has come since the last time, RTP and RTCP."""
        total = 0
        for one in self._sockets:
            while True:
                try:
                    total += len(one.recv(4096))
                except BlockingIOError:
                    break
        return total


@contextmanager
def victim(host: str) -> Iterator[Victim]:
    made = Victim(host)
    try:
        yield made
    finally:
        made.close()


def asked(session: SessionRecord) -> int:
    """How many responses the gateway asked for."""
    return sum(event.type == "response.create" for event in session.client_events)


def forged(world: GatewayStack, user: str, somebody: Victim) -> DialogCall:
    """A call whose description names somebody else, and whose sender gets no answer."""
    call = dialog_call(world.phone, user, address=somebody.host, port=somebody.port)
    call.acknowledge = call.rtp.sending = False
    return call


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayStack]:
    """No trunk, so that nobody is trusted before the ACK; a route with early media of its own."""
    folder = tmp_path_factory.mktemp("world")
    with wave.open(str(folder / "wait.wav"), "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(8000)
        made.writeframes(struct.pack("<8000h", *([3000, -3000] * 4000)))
    world = GatewayStack(folder / "own", routes=EARLY.format(wav=folder / "wait.wav"))
    runner.run(world.start())
    yield world
    runner.run(world.stop())


@pytest.fixture(scope="module")
def never_acknowledged(
    runner: asyncio.Runner, shared_world: GatewayStack
) -> Iterator[tuple[DialogCall, Victim]]:
    """A call whose ACK never comes, which takes 32 s to notice: it waits beside the other tests."""

    async def begin(somebody: Victim) -> DialogCall:
        shared_world.behave(answer=LONG_ANSWER)
        call = forged(shared_world, "greeted", somebody)
        await answered(call)
        shared_world.lasting.append(call)
        return call

    with victim("127.0.0.6") as somebody:
        yield runner.run(begin(somebody)), somebody


@pytest.fixture
def world(world: GatewayStack, never_acknowledged: tuple[DialogCall, Victim]) -> GatewayStack:
    """The module's; the call without an ACK is up all the time."""
    assert never_acknowledged
    return world


@pytest.mark.parametrize("host", ["127.0.0.5", "127.0.0.1"], ids=["elsewhere", "at the source"])
async def test_a_forged_invite_costs_nothing(world: GatewayStack, host: str) -> None:
    """No RTP, and no response of the model, until the ACK; then both."""
    world.behave(answer=LONG_ANSWER)
    with victim(host) as somebody:
        call = forged(world, "greeted", somebody)
        call.invite()
        # 200, and again after 0.5 and 1.5 s: some 75 packets of RTP.
        await call.until(lambda one: one.responses.count(200) >= 3)
        assert somebody.bytes() == 0
        session = await world.session_of(call)
        assert asked(session) == 0
        call.ack()
        await world.gateway.wait("call.confirmed", call=call.call_id)
        await eventually(lambda: somebody.bytes() > 0, "RTP")
        await eventually(lambda: asked(session) == 1, "a greeting")
    await call.hang_up()


async def test_early_media_goes_where_rtp_came_from(world: GatewayStack) -> None:
    """183 to a caller whose RTP is elsewhere than its signalling: that side speaks first."""
    world.behave(updated="never")
    with victim("127.0.0.5") as somebody:
        call = forged(world, "early", somebody)
        call.invite()
        await call.until(lambda one: 183 in one.responses)
        own = dialog_call(world.phone, "early")
        own.rtp.sending = False
        own.invite()
        await own.until(lambda one: 183 in one.responses)
        # For as long as this takes, the other call's RTP was due as well.
        await own.rtp.until(lambda: len(own.rtp.packets) > 25)
        assert somebody.bytes() == 0
        own.cancel()
        assert (await own.refused()).code == 487
        media = next(one for one in call.messages if one.code == 183)
        port = int(media.body.partition("m=audio ")[2].split(" ")[0])
        somebody.speak(("127.0.0.1", port))
        await eventually(lambda: somebody.bytes() > 0, "early media")
        call.cancel()
        assert (await call.refused()).code == 487


RESPONSE = """SIP/2.0 200 OK\r
Via: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK{number}\r
From: <sip:a@b>;tag=1\r
To: <sip:c@d>;tag=2\r
Call-ID: nobody-{number}\r
CSeq: 1 INVITE\r
Content-Type: application/sdp\r
Content-Length: 27\r
\r
v=0\r
c=IN IP4 239.1.1.{number}\r
"""

NOBODYS = ("0.1.2.3", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255")


async def test_addresses_where_nobody_is(world: GatewayStack) -> None:
    """488 in an INVITE and inside a call, which goes on as it was."""
    for address in NOBODYS:
        call = dialog_call(world.phone, "greeted", address=address)
        call.invite()
        assert (await call.refused()).code == 488, address
        await world.phone.forget(call)
    # One rule, whatever the address: strangers make no counters (and no labels of metrics).
    await world.gateway.wait("sip.rejected", rule=f"malformed: {RTP_ADDRESS}", detail=NOBODYS[0])
    for number in range(3):
        world.phone.send(RESPONSE.format(number=number).encode())
    rule = f"response with {RTP_ADDRESS}"
    await world.gateway.wait("sip.rejected", rule=rule, detail="239.1.1.0")
    call = dialog_call(world.phone, "greeted")
    await answered(call)
    await world.gateway.wait("call.confirmed", call=call.call_id)
    for address in NOBODYS:
        call.sdp.address = address
        refused = await call.ask("INVITE", body=call.sdp.text(call.rtp.port))
        assert refused.code == 488, address
    heard = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 5)
    await call.hang_up()


async def test_a_first_offer_may_be_on_hold(world: GatewayStack) -> None:
    """``c=IN IP4 0.0.0.0`` (RFC 3725 section 4.1): answered, and no RTP before an address comes."""
    call = dialog_call(world.phone, "greeted", address="0.0.0.0")
    await answered(call)
    await world.gateway.wait("call.confirmed", call=call.call_id)
    assert not call.rtp.packets
    await call.renegotiate(address="127.0.0.1")
    await call.rtp.until(lambda: len(call.rtp.packets) > 5)
    await call.hang_up()


async def test_no_ack_ever(
    world: GatewayStack, never_acknowledged: tuple[DialogCall, Victim]
) -> None:
    """The 200 comes again and again for 64 * T1, then a BYE (RFC 3261 section 13.3.1.4)."""
    call, somebody = never_acknowledged
    session = await world.session_of(call)
    bye = await call.hung_up(within_s=60)
    assert "cause=408" in bye.headers["reason"]
    assert 7 <= call.responses.count(200) <= 13
    record = await world.record(call)
    assert (record["ending"]["why"], record["ending"]["by"]) == ("leg_timeout", "network")
    assert record["times_ms"]["confirmed"] is None
    await eventually(lambda: not session.live, "the session's end")
    assert (asked(session), session.received_total, somebody.bytes()) == (0, 0, 0)
    world.lasting.clear()


@pytest.mark.parametrize(
    ("line", "source", "refused"),
    [
        ("c=IN IP4 192.0.2.1", "192.0.2.9", ""),
        ("c=IN IP4 10.0.0.1", "192.0.2.9", ""),
        ("c=IN IP4 127.0.0.1", "127.0.0.1", ""),
        ("c=IN IP4 127.0.0.1", "::1", ""),
        ("c=IN IP4 127.0.0.1", "::ffff:127.0.0.2", ""),
        ("c=IN IP4 127.0.0.1", "192.0.2.9", "127.0.0.1"),
        ("c=IN IP4 127.9.9.9", "10.0.0.1", "127.9.9.9"),
        ("c=IN IP6 ::1", "2001:db8::1", "::1"),
        ("c=IN IP6 ::ffff:127.0.0.1", "192.0.2.9", "127.0.0.1"),
        ("c=IN IP6 ::ffff:224.0.0.9", "192.0.2.9", "224.0.0.9"),
        ("c=IN IP6 ff02::1", "2001:db8::1", "ff02::1"),
        ("c=IN IP6 ff15::101/3", "2001:db8::1", "ff15::101"),
        ("c=IN IP6 ::", "2001:db8::1", ""),
        ("c=IN IP4 0.0.0.0", "192.0.2.9", ""),
        ("c=IN IP4 224.2.1.1/127/3", "192.0.2.9", "224.2.1.1"),
        (
            "c=IN IP4 192.0.2.1\r\na=rtcp:53020 IN IP4 255.255.255.255",
            "192.0.2.9",
            "255.255.255.255",
        ),
        ("a=rtcp:53020 IN IP4 127.0.0.1", "192.0.2.9", "127.0.0.1"),
        ("s=c=IN IP4 127.0.0.1", "192.0.2.9", ""),
        ("c=IN IP4 host.example", "192.0.2.9", ""),
    ],
)
def test_addresses_of_rtp(line: str, source: str, refused: str) -> None:
    assert forbidden_rtp_address(f"v=0\r\n{line}\r\nt=0 0\r\n", source) == refused


DTLS = """
[access]
unknown_sources = "allow"
[media]
srtp = "optional"
srtp_keying = ["dtls"]
"""
FINGERPRINT = "a=fingerprint:sha-256 " + ":".join(["AB"] * 32)
OFFERS = {
    "DTLS": ("UDP/TLS/RTP/SAVP", FINGERPRINT, "a=setup:passive"),
    "DTLS with both roles": ("UDP/TLS/RTP/SAVPF", FINGERPRINT, "a=setup:actpass"),
    "DTLS with rtcp-mux": ("UDP/TLS/RTP/SAVP", FINGERPRINT, "a=setup:actpass", "a=rtcp-mux"),
    "plain": ("RTP/AVP",),
}


def offer_of(somebody: Victim, offer: tuple[str, ...], *, rtcp_only: bool = False) -> str:
    """A description with ``somebody`` for its media, or for its RTCP."""
    # A port that is free at 127.0.0.5 may be another test's at 127.0.0.1.
    host, port = ("127.0.0.1", NOBODY) if rtcp_only else (somebody.host, somebody.port)
    rtcp = (f"a=rtcp:{somebody.port + 1} IN IP4 {somebody.host}",) if rtcp_only else ()
    lines = (
        "v=0",
        "o=- 1 1 IN IP4 127.0.0.1",
        "s=-",
        f"c=IN IP4 {host}",
        "t=0 0",
        f"m=audio {port} {offer[0]} 0",
        *offer[1:],
        *rtcp,
    )
    return "".join(f"{line}\r\n" for line in lines)


@pytest.mark.parametrize("rtcp_only", [False, True], ids=["media", "RTCP"])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_nothing_at_all_goes_elsewhere_before_the_ack(
    runner: object, dtls_place: Site, offer: tuple[str, ...], rtcp_only: bool
) -> None:
    """No RTP, no RTCP, no DTLS handshake (RFC 5764 section 5); all of it at the ACK."""
    with victim("127.0.0.5") as somebody:
        call = raw_call(dtls_place.phone, offer_of(somebody, offer, rtcp_only=rtcp_only))
        call.acknowledge = False
        call.invite()
        # 200, and again after 0.5 s; the handshake would begin with the first.
        await call.until(lambda one: one.responses.count(200) >= 2)
        assert somebody.bytes() == 0
        call.ack()
        if not rtcp_only or offer[-1] != "a=rtcp-mux":
            await eventually(lambda: somebody.bytes() > 0, "media")
        await call.hang_up()
        await dtls_place.gateway.wait("call.summary", sip_call_id=call.call_id)


async def test_a_handshake_may_begin_where_a_packet_came_from(
    runner: object, dtls_place: Site
) -> None:
    with victim("127.0.0.5") as somebody:
        call = raw_call(dtls_place.phone, offer_of(somebody, OFFERS["DTLS"]))
        call.acknowledge = False
        call.invite()
        await call.until(lambda one: one.final is not None)
        assert somebody.bytes() == 0
        assert call.final is not None
        port = int(call.final.body.partition("m=audio ")[2].split(" ")[0])
        somebody.speak(("127.0.0.1", port))
        await eventually(lambda: somebody.bytes() > 0, "a handshake")
        call.ack()
        await call.hang_up()
        await dtls_place.gateway.wait("call.summary", sip_call_id=call.call_id)


@pytest.mark.parametrize("proof", ["its ACK", "a packet"])
async def test_a_re_invite_moves_media_with_its_ack(
    runner: object, dtls_place: Site, proof: str
) -> None:
    """Until then it goes where it went before."""
    with victim("127.0.0.5") as somebody:
        call = dialog_call(dtls_place.phone, "1")
        await answered(call)
        await call.rtp.until(lambda: len(call.rtp.packets) > 3)
        call.acknowledge = call.rtp.sending = False  # its RTP would be followed
        answer = await call.ask("INVITE", body=offer_of(somebody, OFFERS["plain"]))
        assert answer.code == 200
        heard = len(call.rtp.packets)
        await call.rtp.until(lambda: len(call.rtp.packets) > heard + 10)
        assert somebody.bytes() == 0
        if proof == "its ACK":
            call.phone.send(call._inside("ACK", call._sequence))
        else:
            port = int(answer.body.partition("m=audio ")[2].split(" ")[0])
            somebody.speak(("127.0.0.1", port))
        await eventually(lambda: somebody.bytes() > 0, "media")
        await call.hang_up()
        await dtls_place.gateway.wait("call.summary", sip_call_id=call.call_id)


@pytest.fixture(scope="module")
def dtls_place(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One gateway that takes SRTP by DTLS."""
    opened = site(tmp_path_factory.mktemp("site"), more=DTLS, routes=ANYBODY)
    yield runner.run(opened.__aenter__())
    runner.run(opened.__aexit__(None, None, None))

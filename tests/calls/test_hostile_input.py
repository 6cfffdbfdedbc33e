# SPDX-License-Identifier: GPL-2.0-or-later
"""RFC 4475, and thousands of messages and packets with something wrong in them.

Nothing ends the process, nothing grows, the log says each kind once, and a call in progress hears
every frame. Failures are repeatable: what is sent follows from the seed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import figures
from tests.support.dialog import DialogCall, Sdp, answered, bystander, dialog_call, unharmed
from tests.support.harness import WATCHED, GatewayStack, eventually
from tests.support.mutations import mutated, rtcp, rtp
from tests.support.rtp_end import NOBODY
from tests.support.torture import MESSAGES

AT_START: dict[str, int] = {}


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayStack]:
    """A world that takes calls over TCP as well."""
    listen = ("udp:127.0.0.1:0", "tcp:127.0.0.1:0")
    made = GatewayStack(
        tmp_path_factory.mktemp("world"),
        log_level="info",
        entry=WATCHED,
        keep_sessions=500,
        listen=listen,
    )
    runner.run(made.start())
    AT_START.update(made.gateway.resources())
    yield made
    # What comes with the Call-ID of another has no record of its own, so they are not counted.
    made.gateway.check(runner.run(made.gateway.stop()))
    runner.run(made.phone.stop())
    runner.run(made.emulator.stop())


MESSAGES_SENT = 3000
PACKETS_SENT = 6000
PACE_S = 0.02
"""After every eighth message: as fast as one process can send and another can answer."""

HELD_KIB = 16 if "PJSUA2_ASAN" in os.environ else 10
"""By each INVITE for 32 s (RFC 3261 timer H): its transaction with the answer, and a record. About
6.3 of them in the first 3,000, less where a busy machine takes longer for these."""

KEPT_KIB = 1
"""Of an RTP or RTCP packet, at most: nothing of it is held."""

MOST_LINES_PER_KIND = 60


def invite(world: GatewayStack, number: int) -> bytes:
    """A good INVITE with all that pjsip has a parser for, to nobody."""
    host, port = world.phone.address
    body = Sdp().text(NOBODY)
    lines = [
        f"INVITE sip:nowhere@127.0.0.1:{world.phone.gateway[1]};transport=udp SIP/2.0",
        f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bKf{number};rport",
        "Max-Forwards: 70",
        f'From: "A B" <sip:tester@{host}:{port}>;tag=t{number}',
        "To: <sip:nowhere@127.0.0.1>",
        f"Call-ID: hostile-{number}@test",
        "CSeq: 1 INVITE",
        f"Contact: <sip:tester@{host}:{port}>;expires=60",
        "Allow: INVITE, ACK, BYE, CANCEL, UPDATE",
        "Supported: timer, 100rel, replaces",
        "Session-Expires: 1800;refresher=uac",
        "Min-SE: 90",
        f"Record-Route: <sip:127.0.0.1:{port};lr>",
        'Authorization: Digest username="a", realm="b", nonce="c", uri="sip:x", response="00"',
        "Content-Type: application/sdp",
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def assert_log_is_short(world: GatewayStack, since: int) -> None:
    """What is no call's line has been said a few times, however often it came."""
    kinds = Counter(
        (line["event"], line.get("rule", "")) for line in world.gateway.lines[since:]
        if line["event"] in ("sip.rejected", "pjsip")
        or line.get("ending", {}).get("why") == "refused"
    )  # fmt: skip
    assert all(count <= MOST_LINES_PER_KIND for count in kinds.values()), kinds


@pytest.mark.parametrize("message", MESSAGES, ids=[one.section for one in MESSAGES])
async def test_torture(world: GatewayStack, message: Any) -> None:
    world.phone.strays.clear()
    world.phone.send(message.message(world.phone.address, world.phone.gateway))
    if message.codes and not message.unreadable:
        found = await world.phone.stray("SIP/2.0 ", 20, message.section)
        while found.code < 200:
            world.phone.strays.remove(found)
            found = await world.phone.stray("SIP/2.0 ", 20, message.section)
        assert found.code in message.codes, found.start
    assert (await world.phone.options()).code == 200
    codes = {one.code for one in world.phone.strays if one.code >= 200} - {200}
    assert codes <= message.codes, codes


async def test_mutated_messages_over_tcp(world: GatewayStack) -> None:
    """Streams that are cut, stuck, or no SIP at all; other calls go on."""
    call = await bystander(world)
    (address,) = (
        one for one in world.gateway.all("gateway.started")[0]["listen"] if one.startswith("tcp:")
    )
    port = int(address.rpartition(":")[2])
    chance = random.Random(7118)
    for number in range(40):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in range(chance.randrange(1, 12)):
            good = invite(world, 100_000 + number * 100 + part).replace(b"/UDP", b"/TCP")
            writer.write(mutated(chance, good))
            await asyncio.sleep(0.01)
        writer.close()
    await unharmed(world, call)


async def test_mutated_invites(world: GatewayStack) -> None:
    call = await bystander(world)
    chance = random.Random(4475)
    for number in range(200):
        world.phone.send(mutated(chance, invite(world, number)))
        await asyncio.sleep(PACE_S / 5)
    since = len(world.gateway.lines)
    before, held = world.gateway.resources(), (await world.holds())["used_kib"]

    def few_calls() -> bool:
        """Those in progress hold a quarter of a MiB each, and two descriptors."""
        return world.gateway.resources()["fds"] < before["fds"] + 40

    for number in range(200, MESSAGES_SENT):
        world.phone.send(mutated(chance, invite(world, number)))
        if number % 8 == 7:
            await asyncio.sleep(PACE_S)
        if number % 40 == 39:
            await eventually(few_calls, "calls to nobody are refused")
        if number % 500 == 499:
            assert (await world.phone.options()).code == 200
            world.phone.strays.clear()
    assert (await world.phone.options()).code == 200
    grown = (await world.holds())["used_kib"] - held
    await unharmed(world, call)
    assert grown < HELD_KIB * MESSAGES_SENT
    assert_log_is_short(world, since)
    figures.show(f"{MESSAGES_SENT} mutated INVITEs", f"all survived; memory grew by {grown} KiB")


async def test_mutated_descriptions(world: GatewayStack) -> None:
    """SDP with something wrong in good INVITEs: refused, or a call that can be ended."""
    bystanding = await bystander(world)
    chance = random.Random(4566)
    before = len(world.gateway.all("call.confirmed"))
    for _ in range(60):
        pair = [dialog_call(world.phone, "greeted", offer=chance.random() < 0.9) for _ in range(2)]
        for call in pair:
            body = mutated(chance, call.sdp.text(call.rtp.port).encode()).decode("latin-1")
            call._to, call._target = f"<{call.uri}>", call.uri
            mark, headers = "@@", ["Content-Type: application/sdp"]
            raw = call._request("INVITE", call._branch, 1, headers, mark)
            raw = raw.replace(b"Content-Length: 2", b"Content-Length: %d" % len(body))
            call._invite = raw.replace(mark.encode(), body.encode("latin-1"))
            call.invite()
        # What is malformed is answered five times a second to one source, before what comes next;
        # what is understood is told so at once.
        assert (await world.phone.options()).code == 200
        for call in pair:
            if call.responses:
                await call.until(lambda c: c.final is not None, what="a final response")
            if call.final is not None and call.final.code == 200:
                if not call.byes:
                    call.bye()
                await world.gateway.wait("call.summary", call=call.call_id)
            await world.phone.forget(call)
    assert len(world.gateway.all("call.confirmed")) > before + 10, "some are good all the same"
    await unharmed(world, bystanding)


async def test_mutated_requests_inside_a_call(world: GatewayStack) -> None:
    bystanding = await bystander(world)
    chance = random.Random(3261)
    call: DialogCall | None = None
    methods = ("INVITE", "UPDATE", "INFO", "ACK", "PRACK", "BYE", "OPTIONS", "NOTIFY", "REFER")
    more = (
        "Session-Expires: 1800;refresher=uas",
        "Supported: timer",
        "Refer-To: <sip:a@b?Replaces=x%3Bto-tag%3Dy>",
        "Event: refer",
        "Subscription-State: active;expires=9",
        "RAck: 1 1 INVITE",
    )
    for number in range(600):
        if call is None or call.byes or number % 40 == 0:
            if call is not None:
                call.bye()
                await world.gateway.wait("call.summary", call=call.call_id)
                await world.phone.forget(call)
            call = await answered(dialog_call(world.phone, "greeted", "Supported: timer, 100rel"))
        method = chance.choice(methods) if chance.random() > 0.3 else "INVITE"
        body = call.sdp.text(call.rtp.port) if method in ("INVITE", "UPDATE") else ""
        call._sequence += 1
        headers = more if chance.random() < 0.5 else ()
        request = call._inside(method, call._sequence, headers, body)
        world.phone.send(mutated(chance, request))
        await asyncio.sleep(0.008)
    assert call is not None
    call.bye()
    await world.gateway.wait("call.summary", call=call.call_id)
    await unharmed(world, bystanding)


def _new(call: DialogCall, number: int, *headers: str, method: str = "INVITE") -> bytes:
    """A request of no dialog, from the same telephone."""
    host = call.phone.address[0]
    request = call._inside(method, 1, headers, call.sdp.text(call.rtp.port))
    text = request.decode().replace(call.call_id, f"storm-{number}-{call.call_id}")
    return text.replace(f"To: {call._to}", f"To: <sip:greeted@{host}>").encode()


def _dialog(call: DialogCall) -> str:
    """Its Call-ID and tags, as Replaces and Join name it (RFC 3891, RFC 3911)."""
    return f"{call.call_id};to-tag={call._to.rpartition('tag=')[2]};from-tag={call._tag}"


def odd_numbers(call: DialogCall) -> Iterator[bytes]:
    sdp = call.sdp.text(call.rtp.port)
    for method in ("INVITE", "UPDATE", "INFO", "BYE", "ACK"):
        for number in (0, 1, 2**31 - 9, 2**31, 2**32, 2**64):
            if (method, number) != ("BYE", 2**31 - 9):
                yield call._inside(method, number, (), sdp if method != "BYE" else "")


def glare(call: DialogCall) -> Iterator[bytes]:
    """Re-INVITEs and UPDATEs without a pause, and without an ACK."""
    for number in range(2, 62):
        method = "INVITE" if number % 2 else "UPDATE"
        body = call.sdp.text(call.rtp.port) if number % 3 else ""
        yield call._inside(method, number, (), body)


def pracks(call: DialogCall) -> Iterator[bytes]:
    for number, rack in enumerate(
        (
            "0 0 INVITE",
            "4294967295 1 INVITE",
            "1 4294967296 INVITE",
            "x",
            "",
            "1 1 FLY",
            "1 1",
            "-1",
        )
    ):
        yield call._inside("PRACK", 2 + number, (f"RAck: {rack}",))
    yield call._inside("PRACK", 20)


def replaces(call: DialogCall) -> Iterator[bytes]:
    """Of a call that is not theirs to replace, and of none."""
    named = _dialog(call)
    for number, header in enumerate((
        f"Replaces: {named}", f"Replaces: {named};early-only", f"Join: {named}",
        "Replaces: x;to-tag=y;from-tag=z", "Replaces: ;;;", f"Replaces: {'x' * 3000}",
        f"Replaces: {named}\r\nReplaces: {named}", f"Replaces: {named}\r\nJoin: {named}",
        f"Require: replaces\r\nReplaces: {named}", f"Require: join\r\nJoin: {named}",
    )):  # fmt: skip
        yield _new(call, number, header)
        yield call._inside("INVITE", 2 + number, (header,), call.sdp.text(call.rtp.port))


def forged_ends(call: DialogCall) -> Iterator[bytes]:
    """Of its Call-ID, with tags and branches that are guesses; by its user, who may be anybody."""
    good = call._inside("BYE", 9).decode()
    for number in range(100):
        yield good.replace(f"tag={call._tag}", f"tag={number}").encode()
        yield good.replace(call._to.rpartition("tag=")[2], f"{number}").encode()
        yield call._request("CANCEL", f"z9hG4bK{number}", 1)


def loops(call: DialogCall) -> Iterator[bytes]:
    """What came by us already, or is to go by us again (RFC 3261 section 16.3, 16.4)."""
    host, port = call.phone.gateway
    us = f"sip:{host}:{port};lr"
    for number, header in enumerate((
        f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bKloop", f"Route: <{us}>",
        "Route: " + ", ".join([f"<{us}>"] * 60), f"Record-Route: <{us}>",
        "Record-Route: " + ", ".join([f"<{us}>"] * 60),
        "\r\n".join(f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{n}" for n in range(60)),
    )):  # fmt: skip
        yield _new(call, number, header, method="OPTIONS")
        yield _new(call, 100 + number, header)
        yield call._inside("INFO", 2 + number, (header,), "Signal=1", "application/dtmf-relay")
    for number, hops in enumerate(("0", "-1", "256", "99999999999", "x")):
        for method in ("OPTIONS", "INVITE"):
            request = _new(call, 200 + number, method=method)
            yield request.replace(b"Max-Forwards: 70", f"Max-Forwards: {hops}".encode())


def other_kinds(call: DialogCall) -> Iterator[bytes]:
    for number in range(40):
        for method in ("OPTIONS", "SUBSCRIBE", "NOTIFY", "MESSAGE", "PUBLISH", "REGISTER", "REFER"):
            yield _new(call, number, "Event: dialog", "Refer-To: <sip:a@b>", method=method)


def descriptions(call: DialogCall) -> Iterator[bytes]:
    """In re-INVITEs: as many lines as a datagram has, and bodies whose parts never end."""
    good = call.sdp.text(call.rtp.port)
    many = (
        "m=video 9 RTP/AVP 31\r\n" * 300, "m=audio 0 RTP/AVP 0\r\n" * 300, "a=x\r\n" * 1200,
        "".join(f"a=candidate:{n} 1 UDP 1 10.0.0.1 {n} typ host\r\n" for n in range(150)),
        "".join(f"a=ssrc:{n} cname:x\r\n" for n in range(300)),
        "".join(f"m=x {n} UDP/TLS/RTP/SAVPF 9\r\na=mid:{n}\r\n" for n in range(150)),
        "a=group:BUNDLE " + " ".join(map(str, range(1000))) + "\r\n",
    )  # fmt: skip
    mixed = "multipart/mixed;boundary="
    for number, lines in enumerate(many):
        yield call._inside("INVITE", 10 + number, (), good + lines)
    for number, (kind, body) in enumerate((
        (f"{mixed}a", "--a\r\n" * 1000), (f"{mixed}{'a' * 2000}", good), (f'{mixed}"', good),
        (f"{mixed}--", "----\r\n\r\n----" * 200), (f"{mixed}a;start=x", "--a--" * 900),
        (f"{mixed}a", "--a\r\nContent-Type: application/sdp\r\n\r\n" * 100 + good),
        ("application/sdp;charset=utf-7", good),
    )):  # fmt: skip
        yield call._inside("INVITE", 30 + number, (), body, kind)


STORMS = (
    odd_numbers, glare, pracks, replaces, forged_ends, loops, other_kinds, descriptions,
)  # fmt: skip


@pytest.fixture(scope="module")
def beside(runner: asyncio.Runner, shared_world: GatewayStack) -> Iterator[None]:
    """A call goes on during all of them."""
    call = runner.run(bystander(shared_world))
    shared_world.lasting.append(call)
    yield
    shared_world.lasting.remove(call)
    runner.run(unharmed(shared_world, call))


@pytest.mark.parametrize("moment", ["before the ACK", "in the call", "after its end"])
@pytest.mark.parametrize("storm", STORMS, ids=[one.__name__ for one in STORMS])
async def test_storms(world: GatewayStack, beside: None, storm: Any, moment: str) -> None:
    """Nobody waits for an answer to any of it."""
    world.behave(vad="off", answer="silent")
    call = dialog_call(world.phone, "plain")
    call.acknowledge = moment != "before the ACK"
    await answered(call)
    if moment == "after its end":
        await world.summary_at_end(call)
    for request in storm(call):
        world.phone.send(request)
    assert (await world.phone.options()).code == 200
    if moment != "after its end":
        call._sequence = 2**31 - 2
        call.bye()
        await world.gateway.wait("call.summary", call=call.call_id)


async def test_odd_packets_to_a_live_call(world: GatewayStack) -> None:
    """RTP and RTCP with something wrong, from the caller's own ports."""
    bystanding = await bystander(world)
    call = await bystander(world)
    call.rtp.sending = False
    chance = random.Random(3550)
    assert call.rtp._peer is not None
    host, port = call.rtp._peer
    before = (await world.holds())["used_kib"]
    for number in range(PACKETS_SENT):
        if chance.random() < 0.5:
            call.rtp._socket.sendto(rtp(chance, number), (host, port))
        else:
            call.rtp._rtcp.sendto(rtcp(chance), (host, port + 1))
        if number % 20 == 0:
            await asyncio.sleep(PACE_S / 2)
    assert (await world.holds())["used_kib"] - before < KEPT_KIB * PACKETS_SENT
    call.rtp.sending = True
    await world.summary_at_end(call)
    await unharmed(world, bystanding)


async def test_nothing_is_left(world: GatewayStack) -> None:
    """Connections live as long as their transactions, half a minute (RFC 3261 timer H)."""
    most = AT_START["sockets"] + 6
    await eventually(lambda: world.gateway.resources()["sockets"] <= most, "sockets closed", 45)

# SPDX-License-Identifier: GPL-2.0-or-later
"""SIP messages that are legal, nearly legal, or meant to do harm: each gets its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time

import pytest

from gateway.api.client import ask
from tests.support.dialog import answered, dialog_call
from tests.support.forked import Forked
from tests.support.harness import GatewayStack, eventually
from tests.support.sip_phone import PhoneCall

WORLD = {
    "more": """
[control]
socket = "gateway.sock"
[access]
calls_per_second = 500
burst = 500
"""
}

Change = tuple[bytes, bytes]


def changed(world: GatewayStack, *changes: Change, user: str = "plain") -> PhoneCall:
    """A call whose INVITE is the usual one with these replacements; not sent yet."""
    call = world.phone.call(user)
    call._to, call._target = f"<{call.uri}>", call.uri
    call._invite = call._request(
        "INVITE", call._branch, 1, ["Content-Type: application/sdp"], call._sdp(call.codecs)
    )
    for old, new in changes:
        assert old in call._invite
        call._invite = call._invite.replace(old, new, 1)
    return call


async def answer_to(world: GatewayStack, datagram: bytes, within_s: float = 30.0) -> bytes:
    """The final response to a request that is sent from a socket of its own, again and again:
    refusals have a rate.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(world.gateway.sip)
        async with asyncio.timeout(within_s):
            said = b"SIP/2.0 1"
            while said.startswith(b"SIP/2.0 1"):
                await loop.sock_sendall(sender, datagram)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        said = await loop.sock_recv(sender, 65535)
            return said


def code_of(response: bytes) -> int:
    """Its status code."""
    return int(response.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "call_id",
    [b"x\xff", b"a b", b"a@b@c", b"x\x1b[2J", b"a;b", "é@x".encode(), b"@", b"a" * 1025, b"a=b"],
)
async def test_a_call_id_that_is_none_is_refused(world: GatewayStack, call_id: bytes) -> None:
    call = changed(world)
    call._invite = call._invite.replace(call.call_id.encode(), call_id)
    assert code_of(await answer_to(world, call._invite)) == 400
    await world.phone.forget(call)


async def test_every_call_id_of_rfc_3261_is_taken(world: GatewayStack) -> None:
    """RFC 4475 section 3.1.1.2."""
    call = changed(world)
    world.phone.calls.pop(call.call_id)
    plain, call.call_id = call.call_id, "intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{"
    call._invite = call._invite.replace(plain.encode(), call.call_id.encode())
    world.phone.calls[call.call_id] = call
    call.invite()
    await call.answered()
    status = await asyncio.to_thread(ask, world.folder / "gateway.sock", "status")
    assert call.call_id in [one["sip_call_id"] for one in status["calls"]]
    await world.summary_at_end(call)


async def test_bytes_that_are_no_text_reach_nobody(world: GatewayStack) -> None:
    """Latin-1 and half characters are taken, as U+FFFD; controls are shown to nobody raw."""
    call = changed(
        world,
        (b"From: <sip:", b'From: "J\xfcrgen \x9b31m\x1b[2J\xe2\x80\xae" <sip:'),
        (b"Max-Forwards", b'P-Asserted-Identity: "\xff" <tel:+49\xc3>\r\nMax-Forwards'),
    )
    call.invite()
    await call.answered()
    await world.gateway.wait("call.confirmed", call=call.call_id)
    sock = world.folder / "gateway.sock"
    assert (await asyncio.to_thread(ask, sock, "status"))["calls"]
    for words in (("status",), ("calls",), ("status", "--json")):
        process = await Forked.command(*words, "-c", world.gateway.config)
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output.decode())
    await call.hang_up()
    record = await world.record(call)
    assert json.dumps(record, ensure_ascii=False).encode()


@pytest.mark.parametrize("field", [b"P-Asserted-Identity", b"Diversion", b"History-Info", b"X-A"])
async def test_a_field_of_spaces_holds_nobody_up(world: GatewayStack, field: bytes) -> None:
    call = changed(world, (b"Max-Forwards", field + b": x," + b" " * 6000 + b"y\r\nMax-Forwards"))
    before = world.gateway.cpu_seconds()
    call.invite()
    await call.answered()
    await world.summary_at_end(call)
    assert world.gateway.cpu_seconds() - before < 2


async def test_requests_inside_a_call_are_limited(world: GatewayStack) -> None:
    flooded, other = dialog_call(world.phone, "plain"), dialog_call(world.phone, "plain")
    await answered(flooded)
    await answered(other)
    body = "Signal=" * 100 + "\r\n" * 100
    began = time.monotonic()
    for _ in range(200):
        flooded.put("INFO", body=body, kind="application/dtmf-relay")
    assert (await world.phone.options()).code == 200  # all that came before is dealt with
    taken_s = time.monotonic() - began
    said = await other.ask("INFO")
    assert said.code == 200
    await world.gateway.wait(
        "sip.rejected", rule="more than 20 requests a second within a call", code=503
    )
    codes = [m.code for m in flooded.messages if m.method == "INFO"]
    assert 503 in codes
    assert 30 <= sum(code != 503 for code in codes) <= 41 + 20 * taken_s
    for call in (flooded, other):
        await world.summary_at_end(call)
    await eventually(lambda: not world.emulator.live, "no session")


@pytest.mark.parametrize(
    "change",
    [
        (b"To: <", b'To: ""unknown"" <'),
        (b"To: <", b'To: "open <'),
        (b"From: <", b"From: <<<"),
        (b"Contact: <sip:", b"Contact: <<sip:"),
        (b"From: <sip:", b"From: <sip:\xff"),
        (b"Max-Forwards: 70", b"Max-Forwards: seventy"),
    ],
)
async def test_what_the_parser_gives_up_is_answered(world: GatewayStack, change: Change) -> None:
    call = changed(world, change)
    answer = await answer_to(world, call._invite)
    assert code_of(answer) == 400
    text = answer.decode("latin-1")
    assert f"branch={call._branch}" in text
    assert "CSeq: 1 INVITE" in text
    assert f"Call-ID: {call.call_id}" in text
    await world.phone.forget(call)


async def test_what_the_parser_gives_up_is_counted(world: GatewayStack) -> None:
    status = await asyncio.to_thread(ask, world.folder / "gateway.sock", "status")
    assert status["refused"]["malformed: cannot be read"] >= 1


async def test_a_request_that_is_too_large_is_told_so(world: GatewayStack) -> None:
    """It is not taken for what its first 8,000 bytes say."""
    large = b"X-Long: " + b"y" * 900 + b"\r\n"
    call = changed(world, (b"Contact", large * 10 + b"Contact"))
    assert code_of(await answer_to(world, call._invite)) == 513
    fits = changed(world, (b"Contact", large * 7 + b"Contact"))
    fits.invite()
    await fits.answered()
    await world.summary_at_end(fits)
    await world.phone.forget(call)


async def test_a_content_length_beyond_the_datagram_is_refused(world: GatewayStack) -> None:
    """RFC 3261 section 18.3."""
    call = changed(world, (b"Content-Length: ", b"Content-Length: 9"))
    assert code_of(await answer_to(world, call._invite)) == 400
    await world.phone.forget(call)


@pytest.mark.parametrize(
    "contact",
    [
        b"Contact: <sip:a@[2001:db8::1]:5060>",
        b"Contact: <sip:a@df7jal23ls0d.invalid;transport=ws>",
        b"Contact: <sip:a@192.0.2.7:5061;transport=tls>",
        b"Contact: <sip:a@df7jal23ls0d.invalid>",
    ],
)
async def test_a_contact_of_another_way_is_answered_and_hung_up(
    world: GatewayStack, contact: bytes
) -> None:
    """Ours names where the request came to; our BYE goes to where it came from."""
    call = changed(world, user="plain")
    call._invite = re.sub(rb"Contact: [^\r]*", contact, call._invite)
    call.invite()
    await call.answered()
    assert call.final is not None
    host, port = world.gateway.sip
    assert f"@{host}:{port}>" in call.final.headers["contact"]
    await world.gateway.wait("call.confirmed", call=call.call_id)
    name = (await world.gateway.wait("call.invite", call=call.call_id))["call"]
    await asyncio.to_thread(ask, world.folder / "gateway.sock", "hangup", call=name)
    await call.hung_up()
    await world.summary(call)


async def test_a_route_by_ipv6_is_answered(world: GatewayStack) -> None:
    route = b"Record-Route: <sip:[2001:db8::7];lr>\r\nMax-Forwards"
    call = changed(
        world,
        (b"Max-Forwards", route),
        (b"Via: ", b"Via: SIP/2.0/UDP [2001:db8::7];rport;branch=z9hG4bKa\r\nVia: "),
    )
    assert code_of(await answer_to(world, call._invite)) == 200
    name = (await world.gateway.wait("call.invite", call=call.call_id))["call"]
    await asyncio.to_thread(ask, world.folder / "gateway.sock", "hangup", call=name)
    await world.gateway.wait("call.summary", call=name)
    await world.phone.forget(call)


@pytest.mark.parametrize(
    "routes",
    [
        ("sip:[2001:db8::7];lr",),
        ("sip:[2001:db8::7]:5070;transport=tcp;lr",),
        ("sip:[::1]:5070;lr", "sip:192.0.2.9;lr"),
        ("sip:127.0.0.9;transport=ws;lr",),
        ("sip:127.0.0.9;transport=wss;lr",),
        ("sips:127.0.0.9;lr",),
        ("sip:127.0.0.9;transport=tls;lr",),
        ("sip:df7jal23ls0d.invalid;lr",),
        ("sip:df7jal23ls0d.invalid;transport=ws;lr", "sip:127.0.0.9;lr"),
        ("sip:nobody-knows-it.example;lr",),
    ],
    ids=lambda routes: routes[0],
)
async def test_requests_find_back_whatever_the_route(
    world: GatewayStack, routes: tuple[str, ...]
) -> None:
    """Where no transport of ours leads, a BYE goes where the INVITE came from, with its Route."""
    fields = b"".join(b"Record-Route: <%s>\r\n" % route.encode() for route in routes)
    call = changed(world, (b"Max-Forwards", fields + b"Max-Forwards"))
    call.invite()
    await call.answered()
    await world.gateway.wait("call.confirmed", call=call.call_id)
    name = (await world.gateway.wait("call.invite", call=call.call_id))["call"]
    await asyncio.to_thread(ask, world.folder / "gateway.sock", "hangup", call=name)
    bye = await call.hung_up()
    assert routes[0] in bye.headers["route"]
    summary = await world.summary(call)
    assert not world.gateway.all("sip.bye_undelivered", call=name)
    assert summary["ending"]["why"] == "operator"


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
async def test_a_body_of_several_parts(world: GatewayStack, depth: int) -> None:
    """RFC 5621: the description is one of them, or in one of them."""
    call = changed(world)
    head, _, sdp = call._invite.partition(b"\r\n\r\n")
    body = (
        b"--b1\r\nContent-Type: application/sdp\r\n\r\n" + sdp + b"\r\n--b1\r\n"
        b"Content-Type: text/plain\r\n\r\nm=audio\r\n--b1--\r\n"
    )
    name = b"b1"
    for number in range(depth):
        inner, name = name, b"outer%d" % number
        body = (
            b"--%s\r\nContent-Type: text/plain\r\n\r\nhello\r\n--%s\r\n"
            b"Content-Type: multipart/alternative;boundary=%s\r\n\r\n%s\r\n--%s--\r\n"
        ) % (name, name, inner, body, name)
    head = head.replace(b"application/sdp", b"multipart/mixed;boundary=" + name)
    head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
    call._invite = head + b"\r\n\r\n" + body
    call.invite()
    await call.answered()
    assert call.messages[-1].body.count("m=audio") == 1
    assert f"m=audio {call.rtp.port}" not in call.messages[-1].body
    await call.rtp.heard_bytes(1600)
    await world.summary_at_end(call)

"""SIP messages that are legal, nearly legal, or meant to do harm: each gets its answer."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys

import pytest
from dialog import answered, dialog_call
from harness import World, eventually
from sip_phone import PhoneCall

from gateway.control.client import ask

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


def changed(world: World, *changes: Change, user: str = "plain") -> PhoneCall:
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


async def answer_to(world: World, datagram: bytes, within_s: float = 10.0) -> bytes:
    """The final response to a request that is sent from a socket of its own."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(world.gateway.sip)
        await loop.sock_sendall(sender, datagram)
        async with asyncio.timeout(within_s):
            while (said := await loop.sock_recv(sender, 65535)).startswith(b"SIP/2.0 1"):
                pass
            return said


def code_of(response: bytes) -> int:
    """Its status code."""
    return int(response.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "call_id",
    [b"x\xff", b"a b", b"a@b@c", b"x\x1b[2J", b"a;b", "é@x".encode(), b"@", b"a" * 1025, b"a=b"],
)
async def test_a_call_id_that_is_none_is_refused(world: World, call_id: bytes) -> None:
    call = changed(world)
    call._invite = call._invite.replace(call.call_id.encode(), call_id)
    assert code_of(await answer_to(world, call._invite)) == 400
    await world.phone.forget(call)


async def test_every_call_id_of_rfc_3261_is_taken(world: World) -> None:
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


async def test_bytes_that_are_no_text_reach_nobody(world: World) -> None:
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
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *words, "-c", str(world.gateway.config)),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output.decode())
    await call.hang_up()
    record = await world.record(call)
    assert json.dumps(record, ensure_ascii=False).encode()


@pytest.mark.parametrize("field", [b"P-Asserted-Identity", b"Diversion", b"History-Info", b"X-A"])
async def test_a_field_of_spaces_holds_nobody_up(world: World, field: bytes) -> None:
    call = changed(world, (b"Max-Forwards", field + b": x," + b" " * 6000 + b"y\r\nMax-Forwards"))
    before = world.gateway.cpu_seconds()
    call.invite()
    await call.answered()
    await world.summary_at_end(call)
    assert world.gateway.cpu_seconds() - before < 2


async def test_requests_inside_a_call_are_limited(world: World) -> None:
    flooded, other = dialog_call(world.phone, "plain"), dialog_call(world.phone, "plain")
    await answered(flooded)
    await answered(other)
    body = "Signal=" * 100 + "\r\n" * 100
    for _ in range(200):
        flooded.put("INFO", body=body, kind="application/dtmf-relay")
    said = await other.ask("INFO")
    assert said.code == 200
    await world.gateway.wait(
        "sip.refused", rule="more than 20 requests a second within a call", code=503
    )
    codes = [m.code for m in flooded.messages if m.method == "INFO"]
    assert 503 in codes
    assert 30 <= sum(code != 503 for code in codes) <= 100
    for call in (flooded, other):
        await world.summary_at_end(call)
    await eventually(lambda: not world.emulator.live, "no session")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages that pjsip's parser gives up: served as far as they can be read."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.harness import GatewayStack
from tests.support.sip_phone import Phone, PhoneCall, _new_branch
from tests.support.site_under_test import ANYBODY, Site, certificate, site

WORLD = {
    "more": """
[access]
calls_per_second = 500
burst = 500
"""
}


def sent(call: PhoneCall, method: str, *changes: tuple[str, str]) -> None:
    """Send a request inside the call, or its CANCEL, with these replacements."""
    if method == "CANCEL":
        branch, number = call._branch, 1
    else:
        call._sequence += method != "ACK"
        branch, number = _new_branch(), 1 if method == "ACK" else call._sequence
    text = call._request(method, branch, number).decode()
    for old, new in changes:
        assert re.search(old, text), old
        text = re.sub(old, new, text, count=1)
    call.phone.send(text.encode("latin-1"))


async def up(world: GatewayStack, *, acknowledge: bool = True) -> PhoneCall:
    call = world.phone.call("plain", acknowledge=acknowledge)
    call.invite()
    await call.answered()
    if acknowledge:
        await world.gateway.wait("call.confirmed", call=call.call_id)
    return call


BROKEN = {
    "compact Session-Expires": ("Max-Forwards", "x: y\r\nMax-Forwards"),
    "Min-SE": ("Max-Forwards", "Min-SE: none\r\nMax-Forwards"),
    "Contact": (r"Contact: <[^>]*>", "Contact: <sip:@@>"),
    "no Contact": (r"Contact: <[^>]*>", "Contact: <>"),
    "a line that is none": ("Max-Forwards", "no header at all\r\nMax-Forwards"),
    "From": (r"From: <[^>]*>", "From: <nothing>"),
    "an open quote in From": (r"From: <[^>]*>", 'From: "open <sip:a@b>'),
    "an anonymous From": (r"From: <[^>]*>", "From: <sip:@127.0.0.1>"),
    "To": (r"To: <[^>]*>", "To: \"\"x\"\" <sip:a@b>"),
    "Route": ("Max-Forwards", "Route: <sip:>\r\nMax-Forwards"),
    "Content-Type": ("Max-Forwards", "Content-Type: a\r\nMax-Forwards"),
    "Content-Length": (r"Content-Length: 0", "Content-Length: many"),
    "Request-URI": (r"^(\w+) \S+", r"\1 sip:@@@"),
    "scheme of the Request-URI": (r"^(\w+) \S+", r"\1 http://x"),
    "another From before": ("From: ", "From: <sip:x@y>;tag=z\r\nFrom: "),
    "another From behind": ("Max-Forwards", "From: <sip:x@y>;tag=z\r\nMax-Forwards"),
    "another To before": ("To: ", "To: <sip:x@y>;tag=z\r\nTo: "),
    "another Call-ID before": ("Call-ID: ", "Call-ID: other\r\nCall-ID: "),
    "Content-Encoding": ("Max-Forwards", "Content-Encoding: gzip\r\nMax-Forwards"),
    "Record-Route": ("Max-Forwards", "Record-Route: <tel:1>\r\nMax-Forwards"),
}  # fmt: skip


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
async def test_a_bye_ends_its_call_whatever_else_is_in_it(
    world: GatewayStack, change: tuple[str, str]
) -> None:
    call = await up(world)
    sent(call, "BYE", change)
    summary = await world.gateway.wait("call.summary", sip_call_id=call.call_id)
    assert summary["ending"]["why"] == "remote_hangup"
    await call.until(lambda c: any(m.code == 200 and m.method == "BYE" for m in c.messages))
    await world.phone.forget(call)


@pytest.mark.parametrize(
    "change",
    [
        (r"CSeq: \d+ BYE", "CSeq: x BYE"),
        (r"CSeq: \d+ BYE\r\n", ""),
        (r"Via: [^\r]*", "Via: nothing"),
        (r"Via: [^\r]*\r\n", ""),
    ],
    ids=["CSeq", "no CSeq", "Via", "no Via"],
)
async def test_a_bye_whose_answer_finds_nobody(
    world: GatewayStack, change: tuple[str, str]
) -> None:
    call = await up(world)
    sent(call, "BYE", change)
    summary = await world.gateway.wait("call.summary", sip_call_id=call.call_id)
    assert summary["ending"]["why"] == "remote_hangup"
    await world.phone.forget(call)


@pytest.mark.parametrize("key", ["compact Session-Expires", "From", "Contact"])
async def test_an_ack_confirms_its_call(world: GatewayStack, key: str) -> None:
    call = await up(world, acknowledge=False)
    sent(call, "ACK", BROKEN[key])
    await world.gateway.wait("call.confirmed", call=call.call_id)
    await call.hang_up()
    await world.gateway.wait("call.summary", sip_call_id=call.call_id)
    await world.phone.forget(call)


@pytest.mark.parametrize("key", ["compact Session-Expires", "From", "Contact"])
async def test_a_cancel_ends_its_call(world: GatewayStack, key: str) -> None:
    world.behave(updated="never")
    call = world.phone.call("plain")
    call.invite()
    await call.until(lambda c: 180 in c.responses)
    sent(call, "CANCEL", BROKEN[key])
    assert (await call.refused()).code == 487
    await world.gateway.wait("call.summary", sip_call_id=call.call_id)
    await world.phone.forget(call)


async def test_who_does_not_know_the_tags_ends_nothing(world: GatewayStack) -> None:
    call = await up(world)
    sent(call, "BYE", BROKEN["compact Session-Expires"], (r"(To: [^\r]*tag=)", r"\1x"))
    await call.until(lambda c: any(m.code == 400 and m.method == "BYE" for m in c.messages))
    assert not world.gateway.all("call.summary", sip_call_id=call.call_id)
    heard = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 5)
    call.messages = [m for m in call.messages if m.method != "BYE"]
    await call.hang_up()
    await world.gateway.wait("call.summary", sip_call_id=call.call_id)
    await world.phone.forget(call)


NOBODY = [
    "<sip:@127.0.0.1>",
    "<sip:@127.0.0.1:5070>",
    "<sip:@127.0.0.1:5070;user=phone>",
    "<sips:@127.0.0.1>",
    "<sip::secret@127.0.0.1>",
    "<sip:>",
    "<sip:@>",
    "<sip:;user=phone>",
    '"Anonymous" <sip:@host.example>',
    "sip:@127.0.0.1",
]


@pytest.mark.parametrize("address", NOBODY)
async def test_a_caller_without_a_name_is_anonymous(world: GatewayStack, address: str) -> None:
    call = world.phone.call("plain")
    call._to, call._target = f"<{call.uri}>", call.uri
    usual = call._request

    def request(*args: object, **more: object) -> bytes:
        made = usual(*args, **more).decode()  # type: ignore[arg-type]
        return re.sub(r"From: <[^>]*>", f"From: {address}", made).encode()

    call._request = request  # type: ignore[method-assign]
    call.invite()
    await call.answered()
    await world.gateway.wait("call.confirmed", call=call.call_id)
    await call.hang_up()
    summary = await world.gateway.wait("call.summary", sip_call_id=call.call_id)
    assert "anonymous@" in summary["from"]
    await world.phone.forget(call)


@pytest.mark.parametrize(
    "change",
    [
        (r"To: <[^>]*>", "To: <sip:@127.0.0.1>"),
        (r"Contact: <sip:tester@", "Contact: <sip:@"),
        (r"Contact: <[^>]*>", "Contact: <sip:>"),
    ],
    ids=["To", "Contact", "Contact without a host"],
)
async def test_other_addresses_without_a_user(world: GatewayStack, change: tuple[str, str]) -> None:
    call = world.phone.call("plain")
    call._to, call._target = f"<{call.uri}>", call.uri
    plain = call._request(
        "INVITE", call._branch, 1, ["Content-Type: application/sdp"], call._sdp(call.codecs)
    ).decode()
    assert re.search(change[0], plain)
    call._invite = re.sub(change[0], change[1], plain).encode()
    call.invite()
    await call.answered()
    await world.gateway.wait("call.confirmed", call=call.call_id)
    await call.hang_up()
    await world.gateway.wait("call.summary", sip_call_id=call.call_id)
    await world.phone.forget(call)


@pytest.fixture(scope="module")
def every_transport(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """One gateway on UDP, TCP and TLS."""
    folder = tmp_path_factory.mktemp("site")
    files = certificate(folder, "gateway")
    tls = "[sip.tls]\n" + "".join(f'{key} = "{value}"\n' for key, value in files.items())
    opened = site(
        folder,
        listen=tuple(f"{one}:127.0.0.1:0" for one in ("udp", "tcp", "tls")),
        more='[access]\nunknown_sources = "allow"\n' + tls,
        routes=ANYBODY,
    )
    yield runner.run(opened.__aenter__())
    runner.run(opened.__aexit__(None, None, None))


@pytest.mark.parametrize("ends", ["all", "header", "body"])
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_lines_that_end_in_lf_alone(
    runner: object, every_transport: Site, transport: str, ends: str
) -> None:
    gateway = every_transport
    if transport == "udp":
        phone = gateway.phone
    else:
        phone = StreamPhone(("127.0.0.1", gateway.port(transport)))
        await phone.connect(tls=transport == "tls")
    call = phone.call("plain")
    usual = call._request

    def request(*args: Any, **more: Any) -> bytes:
        made = usual(*args, **more).replace(b"SIP/2.0/UDP", f"SIP/2.0/{transport.upper()}".encode())
        head, end, body = made.partition(b"\r\n\r\n")
        if ends != "body":
            head, end = head.replace(b"\r\n", b"\n"), b"\n\n"
        if ends != "header":
            body = body.replace(b"\r\n", b"\n")
        head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
        return head + end + body

    call._request = request  # type: ignore[method-assign]
    call.invite()
    await call.answered()
    await gateway.gateway.wait("call.confirmed", call=call.call_id)
    await call.hang_up()
    await gateway.gateway.wait("call.summary", sip_call_id=call.call_id)
    await phone.forget(call)
    if isinstance(phone, StreamPhone):
        await phone.stop()


class StreamPhone(Phone):
    """A telephone over TCP or TLS."""

    async def connect(self, *, tls: bool) -> None:
        """Connect to the gateway."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._reader, self._writer = await asyncio.open_connection(
            *self.gateway, ssl=context if tls else None
        )
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        self._reading.cancel()
        self._writer.close()
        for call in self.calls.values():
            await call.rtp.close()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._writer.get_extra_info("sockname")[:2]
        return host, port

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def _read(self) -> None:
        while True:
            head = await self._reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"Content-Length: *(\d+)", head, re.I)
            body = await self._reader.readexactly(int(found[1]) if found else 0)
            self.datagram_received(head + body, self.gateway)

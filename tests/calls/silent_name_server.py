# SPDX-License-Identifier: GPL-2.0-or-later
"""Run by test_unresolved_names.py inside a network namespace whose name server says nothing.

The name server is this process's own, so that it knows what was asked and answers only when told:
what is answered before that did not wait for it.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.api.client import ask
from tests.calls.test_unresolved_names import Raw
from tests.support.dialog import answered, dialog_call
from tests.support.harness import eventually
from tests.support.site_under_test import Site, site

PROBES = 20
ROUTES = """
[[route]]
name = "follows"
to = "^follows$"
allowed_refer_to = ".*"
[route.greeting]
say = "Hello."

[[route]]
name = "unreachable"
to = "^unreachable$"
fallback = []
realtime.url = "ws://realtime.silent.test:9/v1/realtime"
realtime.api_key = "none"

[[route]]
name = "anybody"
[route.greeting]
say = "Hello."
"""
MORE = """
[outbound]
enabled = true
allowed_prefixes = ["answer"]
[access]
unknown_sources = "allow"
calls_per_second = 0
max_concurrent_calls = 0
[[trunk]]
name = "by-name"
registrar = "registrar.silent.test:9"
username = "u"
password = "p"
"""


class NameServer(asyncio.DatagramProtocol):
    """Says nothing until :meth:`release`, then that there is no such name."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.lasting: list[str] = []
        self._held: list[tuple[bytes, Any]] = []
        self._silent = True
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        name = ".".join(labels)
        (self.lasting if name.startswith("registrar") else self.asked).append(name)
        self._held.append((data, addr))
        if not self._silent:
            self.release()

    def hold(self) -> None:
        """Be silent from now on, and forget what was asked."""
        self._silent = True
        self._held.clear()
        self.asked.clear()

    def release(self) -> None:
        """Answer what was asked, and what will be."""
        self._silent = False
        for query, addr in self._held:
            head = query[:2] + struct.pack("!HHHHH", 0x8183, 1, 0, 0, 0)
            end = query.index(b"\0", 12) + 5
            self.transport.sendto(head + query[12:end], addr)
        self._held.clear()


@pytest.fixture(scope="module")
def served(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, NameServer]]:
    """A gateway with that name server, whose start did not wait for its trunk's name."""
    stack = AsyncExitStack()
    folder = tmp_path_factory.mktemp("silent")

    async def start() -> tuple[Site, NameServer]:
        loop = asyncio.get_running_loop()
        transport, names = await loop.create_datagram_endpoint(NameServer, ("127.0.0.1", 53))
        stack.callback(transport.close)
        return await stack.enter_async_context(site(folder, more=MORE, routes=ROUTES)), names

    yield runner.run(start())
    runner.run(stack.aclose())


async def others_are_served(gateway: Site) -> None:
    """Requests are answered, and a call."""
    for _ in range(PROBES):
        assert (await gateway.phone.options()).code == 200
    call = await answered(dialog_call(gateway.phone, "1"))
    await gateway.gateway.wait("call.confirmed", call=call.call_id)
    await call.hang_up()
    await gateway.gateway.wait("call.summary", call=call.call_id)


def named(kind: str) -> Any:
    """Writes a name into an INVITE."""

    def change(invite: bytes) -> bytes:
        if kind == "maddr":
            return invite.replace(b";rport", b";rport;maddr=who.silent.test", 1)
        if kind == "contact":
            return re.sub(rb"(Contact: <sip:)[^>]*>", rb"\1t@who.silent.test>", invite)
        if kind == "sdp":
            return invite.replace(b"c=IN IP4 127.0.0.1", b"c=IN IP4 a.ab.test", 1)
        if kind == "rtcp":
            line = b"a=rtcp:9 IN IP4 a.silent.test\r\na=sendrecv\r\n"
            changed = invite.replace(b"a=sendrecv\r\n", line)
            length = str(len(changed.partition(b"\r\n\r\n")[2])).encode()
            return re.sub(rb"Content-Length: \d+", b"Content-Length: " + length, changed)
        header = {
            "record-route": b"Record-Route: <sip:proxy.silent.test;lr>",
            "route": b"Route: <sip:127.0.0.1:%d;lr>, <sip:proxy.silent.test;lr>",
            "identity": b"P-Asserted-Identity: <sip:a@who.silent.test>",
        }[kind]
        if b"%d" in header:
            header %= int(invite.partition(b" SIP/2.0")[0].rpartition(b":")[2])
        return invite.replace(b"Contact: ", header + b"\r\nContact: ", 1)

    return change


KINDS = ["maddr", "contact", "record-route", "route", "identity", "sdp", "rtcp"]


async def test_a_trunk_known_by_its_name(served: tuple[Site, NameServer]) -> None:
    gateway, names = served
    assert "registrar.silent.test" in names.lasting
    unknown = gateway.gateway.all("sip.name_not_resolved")
    assert "registrar.silent.test" in [line["name"] for line in unknown]
    await gateway.gateway.wait("trunk.registration_failed", trunk="by-name")
    await others_are_served(gateway)


async def test_names_of_strangers_are_not_looked_up(served: tuple[Site, NameServer]) -> None:
    gateway, names = served
    names.hold()  # the name of this machine may have been asked for
    for kind in KINDS:
        made = dialog_call(gateway.phone, "1")
        gateway.phone.calls.pop(made.call_id)
        call = Raw(gateway.phone, "1", made.codecs, (), made.rtp, sdp=made.sdp)
        gateway.phone.calls[call.call_id] = call
        call.change = named(kind)
        call.invite()
        await call.until(lambda c: c.final is not None, what=f"an answer to {kind}")
        await others_are_served(gateway)
        assert call.final is not None
        if call.final.code == 200:
            name = (await gateway.gateway.wait("call.confirmed", call=call.call_id))["call"]
            await asyncio.to_thread(ask, gateway.folder / "control", "hangup", call=name)
            await call.hung_up()
        assert not names.asked, (kind, names.asked)


async def test_a_name_in_refer_to(served: tuple[Site, NameServer]) -> None:
    """Looked up where the route lets it be followed, and nobody waits."""
    gateway, names = served
    names.hold()
    call = await answered(dialog_call(gateway.phone, "follows"))
    await gateway.gateway.wait("call.confirmed", call=call.call_id)
    answer = await call.ask("REFER", "Refer-To: <sip:answer@refer.silent.test>")
    assert answer.code == 603
    await eventually(lambda: bool(names.asked), "the look-up")
    assert set(names.asked) == {"refer.silent.test"}
    await others_are_served(gateway)
    await call.hang_up()
    names.release()


async def test_a_call_of_ours_to_a_name(served: tuple[Site, NameServer]) -> None:
    gateway, names = served
    names.hold()
    to = "sip:answer@callee.silent.test"
    path = gateway.folder / "control"
    placed = await asyncio.to_thread(ask, path, "dial", to=to, route="anybody", trunk="")
    await eventually(lambda: "callee.silent.test" in names.asked, "the look-up")
    await others_are_served(gateway)
    assert not gateway.gateway.all("call.summary", call=str(placed["call"]))
    names.release()
    summary = await gateway.gateway.wait("call.summary", call=str(placed["call"]))
    assert summary["ending"]["why"] == "call_failed"
    assert "callee.silent.test" in summary["ending"]["detail"]


async def test_a_realtime_server_whose_name_hangs(served: tuple[Site, NameServer]) -> None:
    """More such calls than the event loop has threads: other calls' records are still written."""
    gateway, names = served
    names.hold()
    waiting = [gateway.phone.call("unreachable") for _ in range(40)]
    for one in waiting:
        one.invite()
    await eventually(lambda: "realtime.silent.test" in names.asked, "the look-up")
    records = gateway.folder / "records"
    call = await answered(dialog_call(gateway.phone, "1"))
    await gateway.gateway.wait("call.confirmed", call=call.call_id)
    await call.hang_up()
    name = (await gateway.gateway.wait("call.summary", call=call.call_id))["call"]
    await eventually(lambda: bool(list(records.glob(f"*_{name}.json"))), "its record")
    assert not any(one.final for one in waiting)
    names.release()
    for one in waiting:
        assert (await one.refused()).code == 503


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))

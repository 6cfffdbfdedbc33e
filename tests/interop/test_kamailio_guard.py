# SPDX-License-Identifier: GPL-2.0-or-later
"""What Kamailio lets through, with telephones in the place of workers, trunk and caller."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.interop.cluster import RoutedPhone as Phone
from tests.interop.kamailio import Kamailio, program
from tests.interop.lab.ports import free_port
from tests.support.harness import eventually
from tests.support.sip_phone import Message

pytestmark = [
    pytest.mark.interop,
    pytest.mark.usefixtures("runner"),
    pytest.mark.skipif(
        program("kamailio") is None and "CI" not in os.environ,
        reason="Kamailio is not installed: deploy/setup/need-kamailio.sh",
    ),
]

HOST = "127.0.0.1"


class Scene:
    """The proxy between a caller, one worker, a trunk and somebody else."""

    def __init__(self, folder: Path, more: str) -> None:
        address = (HOST, free_port(HOST))
        self.caller, self.worker, self.trunk = (Phone(address) for _ in range(3))
        self._address = address
        self._folder = folder
        self._more = more
        self.proxy: Kamailio | None = None

    async def start(self) -> None:
        for phone in (self.caller, self.worker, self.trunk):
            await phone.start()
        workers = [(where(self.worker), 5)]
        more = self._more.format(trunk=where(self.trunk))
        self.proxy = Kamailio(self._folder / "proxy", self._address, workers, more)
        await self.proxy.start()

    async def stop(self) -> None:
        if self.proxy is not None:
            await self.proxy.stop()
        for phone in (self.caller, self.worker, self.trunk):
            await phone.stop()


def where(phone: Phone) -> str:
    host, port = phone.address
    return f"{host}:{port}"


@asynccontextmanager
async def scene(folder: Path, more: str = "") -> AsyncIterator[Scene]:
    made = Scene(folder, more)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def request(phone: Phone, method: str, *headers: str, uri: str = "", tag: str = "") -> bytes:
    """A request that the proxy has to judge."""
    host, port = phone.address
    proxy = f"{phone.gateway[0]}:{phone.gateway[1]}"
    lines = [
        f"{method} {uri or f'sip:100@{proxy}'} SIP/2.0",
        f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{os.urandom(6).hex()};rport",
        *(() if any(line.startswith("Max-Forwards") for line in headers) else ["Max-Forwards: 9"]),
        f"From: <sip:a@{host}>;tag=1",
        f"To: <sip:100@{proxy}>{f';tag={tag}' if tag else ''}",
        f"Call-ID: {os.urandom(6).hex()}@test",
        f"CSeq: 1 {method}",
        f"Contact: <sip:a@{host}:{port}>",
        *headers,
        "Content-Length: 0",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def came(phone: Phone, condition: Callable[[Message], bool]) -> Message:
    """The first such message to a telephone, outside of its own calls."""
    await eventually(lambda: any(map(condition, phone.strays)), "such a message")
    return next(filter(condition, phone.strays))


async def answer(phone: Phone, data: bytes) -> Message:
    """The final response to a request."""
    phone.strays.clear()
    phone.send(data)
    return await came(phone, lambda message: message.code >= 200)


async def test_what_is_refused(tmp_path: Path) -> None:
    async with scene(tmp_path) as world:
        caller = world.caller
        own_way = "Route: <sip:127.0.0.1:9;lr>"
        foreign = f"Route: <sip:{caller.gateway[0]}:{caller.gateway[1]};lr>"
        answers = {
            "too many hops": await answer(caller, request(caller, "INVITE", "Max-Forwards: 0")),
            "no method of ours": await answer(caller, request(caller, "REGISTER")),
            "a dialog of nobody": await answer(caller, request(caller, "BYE", tag="2")),
            "a relay for others": await answer(
                caller, request(caller, "BYE", foreign, uri="sip:x@127.0.0.1:9", tag="2")
            ),
            "a worker without a trunk": await answer(world.worker, request(world.worker, "INVITE")),
            "a way of its own": await answer(
                caller, request(caller, "INVITE", own_way, "X-Source: 192.0.2.1:5060")
            ),
        }
        codes = {what: message.code for what, message in answers.items()}
        assert codes == {
            "too many hops": 483,
            "no method of ours": 405,
            "a dialog of nobody": 404,
            "a relay for others": 403,
            "a worker without a trunk": 403,
            "a way of its own": 200,  # taken by the worker: the Route was not followed
        }
        (invite,) = [m for m in world.worker.strays if m.start.startswith("INVITE")]
        assert "route" not in invite.headers
        assert invite.headers["x-source"] == where(caller), "who called, whatever the caller says"


async def test_probes_of_others_see_the_workers(tmp_path: Path) -> None:
    async with scene(tmp_path) as world:
        assert world.proxy is not None
        assert (await world.caller.options()).code == 200
        await world.worker.stop()
        await world.proxy.until(lambda targets: targets[0].flags == "IP", "the worker is out")
        gone = await world.caller.options()
        assert (gone.code, gone.headers["retry-after"]) == (503, "5")
        refused = await answer(world.caller, request(world.caller, "INVITE"))
        assert (refused.code, refused.headers["retry-after"]) == (503, "5")


async def test_a_call_of_a_worker_goes_to_the_trunk(tmp_path: Path) -> None:
    async with scene(tmp_path, '#!define TRUNK "sip:{trunk}"') as world:
        assert (await answer(world.worker, request(world.worker, "INVITE"))).code == 200
        invite = await came(world.trunk, lambda message: message.method == "INVITE")
        host, port = world.worker.gateway
        assert f"<sip:{host}:{port};" in invite.headers["record-route"]


async def test_unknown_callers_are_refused_where_the_known_are_listed(tmp_path: Path) -> None:
    (tmp_path / "callers.list").write_text("1 192.0.2.1\n")
    more = f'#!define CALLERS_LIST "{tmp_path}/callers.list"'
    async with scene(tmp_path, more) as world:
        assert (await answer(world.caller, request(world.caller, "INVITE"))).code == 403

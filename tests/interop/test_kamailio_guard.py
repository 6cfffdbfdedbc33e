# SPDX-License-Identifier: GPL-2.0-or-later
"""What Kamailio lets through, with telephones in the place of workers, trunk and caller."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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


class Worker(Phone):
    """A telephone in the place of a worker: it hears an INVITE or BYE after so many copies of it,
    and takes or refuses a call."""

    unheard = 0
    code = 200

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if data.startswith((b"INVITE ", b"BYE ")) and self.unheard:
            self.unheard -= 1
        else:
            super().datagram_received(data, addr)

    def send(self, data: bytes) -> None:
        if b"CSeq: 1 INVITE" in data:
            data = data.replace(b"SIP/2.0 200", f"SIP/2.0 {self.code}".encode(), 1)
        super().send(data)


class Scene:
    """The proxy between a caller, two workers (the second is asked second), a trunk and somebody
    else."""

    def __init__(self, folder: Path, more: str) -> None:
        address = (HOST, free_port(HOST))
        self.caller, self.trunk = Phone(address), Phone(address)
        self.worker, self.second = Worker(address), Worker(address)
        self.phones = (self.caller, self.worker, self.second, self.trunk)
        self._address = address
        self._folder = folder
        self._more = more
        self.proxy: Kamailio | None = None

    async def start(self) -> None:
        for phone in self.phones:
            await phone.start()
        # Of workers with as many calls, the last of the list is asked first.
        workers = [(where(worker), 5) for worker in (self.second, self.worker)]
        more = self._more.format(trunk=where(self.trunk))
        self.proxy = Kamailio(self._folder / "proxy", self._address, workers, more)
        await self.proxy.start()

    async def stop(self) -> None:
        if self.proxy is not None:
            await self.proxy.stop()
        for phone in self.phones:
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
        # Not stopped: a port that is given up may be another test's telephone's by then.
        world.worker.deaf = world.second.deaf = True
        await world.proxy.until(
            lambda targets: all(t.flags == "IP" for t in targets), "the workers are out"
        )
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


SILENCE = "#!define SILENCE_MS 1300"
"""Copies of a request are sent to a worker after 0, 500, 1500 and 3500 ms."""


async def test_the_last_worker_may_be_slow(tmp_path: Path) -> None:
    async with scene(tmp_path, SILENCE) as world:
        assert world.proxy is not None
        world.worker.code = 503
        world.second.unheard = 2
        taken = await answer(world.caller, request(world.caller, "INVITE"))
        assert taken.code == 200
        assert f"{where(world.second)} is out" not in world.proxy.process.tail()


async def test_the_worker_of_a_call_may_be_slow(tmp_path: Path) -> None:
    async with scene(tmp_path, SILENCE) as world:
        world.worker.unheard = 2
        host, port = world.caller.gateway
        way = f"Route: <sip:{host}:{port};lr>"
        uri = f"sip:x@{where(world.worker)}"
        bye = request(world.caller, "BYE", way, uri=uri, tag="2")
        assert (await answer(world.caller, bye)).code == 200


async def test_a_silent_worker_is_out_when_another_takes_the_call(tmp_path: Path) -> None:
    async with scene(tmp_path, SILENCE) as world:
        assert world.proxy is not None
        world.worker.unheard = 1000
        taken = await answer(world.caller, request(world.caller, "INVITE"))
        assert taken.code == 200
        log = world.proxy.process
        await eventually(lambda: f"{where(world.worker)} is out" in log.tail(), "it is out")
        await eventually(lambda: f"{where(world.worker)} is back" in log.tail(), "it is back")
        assert f"{where(world.second)} is out" not in log.tail()


async def test_a_call_that_no_worker_takes_is_counted_for_none(tmp_path: Path) -> None:
    async with scene(tmp_path, SILENCE) as world:
        assert world.proxy is not None
        world.worker.unheard = 1000
        world.second.code = 503
        refused = await answer(world.caller, request(world.caller, "INVITE"))
        assert (refused.code, refused.headers["retry-after"]) == (503, "5")
        assert [target.load for target in await world.proxy.targets()] == [0, 0]
        assert " is out" not in world.proxy.process.tail()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Who gets in, on the wire: refusals, silence, limits, scans and floods."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support import figures
from tests.support.harness import eventually
from tests.support.listening import assert_continuous
from tests.support.sip_phone import Phone
from tests.support.site_under_test import ANYBODY, Site, site

PROVIDER = """
[[trunk]]
name = "provider"
peers = ["127.0.0.1"]
"""
METHODS = ("INVITE", "OPTIONS", "REGISTER", "SUBSCRIBE", "MESSAGE", "BYE", "NOTIFY", "PUBLISH")


class Stranger:
    """Sends raw requests from an address of its own, and keeps what comes back."""

    def __init__(self, gateway: tuple[str, int], host: str = "127.0.0.2") -> None:
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self._socket.bind((host, 0))
        self._socket.setblocking(False)
        self._gateway = gateway
        self._count = 0
        self.agent = "stranger"

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def send(self, method: str, user: str = "100", *, to_tag: str = "") -> None:
        """One request."""
        self._count += 1
        host, port = self._socket.getsockname()
        branch = f"z9hG4bK{os.getpid()}x{port}x{self._count}"
        lines = [
            f"{method} sip:{user}@{self._gateway[0]} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};branch={branch};rport",
            "Max-Forwards: 70",
            f"From: <sip:{user}@{host}>;tag={self._count}",
            f"To: <sip:{user}@{self._gateway[0]}>{to_tag}",
            f"Call-ID: {branch}",
            f"CSeq: 1 {method}",
            f"Contact: <sip:{user}@{host}:{port}>",
            f"User-Agent: {self.agent}",
            "Content-Length: 0",
        ]
        self._socket.sendto(("\r\n".join(lines) + "\r\n\r\n").encode(), self._gateway)

    def waiting(self) -> list[str]:
        """All that has come until now."""
        came = []
        while True:
            try:
                came.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return came


async def settled(gateway: Site) -> None:
    """Wait until the gateway has handled all that was sent to it before: a friend's OPTIONS."""
    await gateway.phone.options()


async def test_strangers_are_refused_and_told_once(runner: object, own_folder: Path) -> None:
    """With a trunk, ``auto`` refuses everybody else, whatever they send; friends call on."""
    async with site(own_folder, more=PROVIDER) as gateway:
        with Stranger(gateway.phone.gateway) as stranger:
            for method in METHODS:
                stranger.send(method)
            stranger.send("INVITE", to_tag=";tag=none")
            stranger.send("ACK")
            await settled(gateway)
            answers = stranger.waiting()
        codes = Counter(answer.split(" ")[1] for answer in answers)
        assert codes == {"403": len(METHODS) + 1}
        assert not any(re.search("^(Server|User-Agent|Allow):", answer, re.M) for answer in answers)
        await gateway.gateway.wait("sip.rejected")
        refused = gateway.gateway.all("sip.rejected")
        assert len(refused) == 1
        assert refused[0]["rule"] == 'access.unknown_sources = "auto"'
        assert (refused[0]["source"], refused[0]["code"]) == ("127.0.0.2", 403)
        status = await gateway.status()
        assert status["refused"] == {'access.unknown_sources = "auto"': len(METHODS) + 1}
        assert not list((own_folder / "records").glob("*.json")), "no record of a stranger"
        call = gateway.phone.call("1")
        call.invite()
        await call.answered()
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        await call.hang_up()


async def test_drop_is_silence(runner: object, own_folder: Path) -> None:
    async with site(own_folder, more=PROVIDER + '[access]\nunknown_sources = "drop"\n') as gateway:
        with Stranger(gateway.phone.gateway) as stranger:
            for method in METHODS:
                stranger.send(method)
                stranger.send(method, to_tag=";tag=none")
            await settled(gateway)
            assert stranger.waiting() == []
        line = await gateway.gateway.wait("sip.rejected")
        assert (line["rule"], line["code"]) == ('access.unknown_sources = "drop"', 0)


async def test_auto_takes_this_machine_without_a_trunk(runner: object, own_folder: Path) -> None:
    async with site(own_folder, routes=ANYBODY) as gateway:
        call = gateway.phone.call("1")
        call.invite()
        await call.answered()
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        with Stranger(gateway.phone.gateway) as stranger:
            for method in ("REGISTER", "SUBSCRIBE", "MESSAGE", "PUBLISH", "REFER"):
                stranger.send(method)
            await settled(gateway)
            answers = stranger.waiting()
        assert Counter(answer.split(" ")[1] for answer in answers) == {"405": 5}
        assert all("\r\nAllow: INVITE, " in answer for answer in answers)
        await call.hang_up()


async def test_in_dialog_requests_may_come_from_elsewhere(runner: object, own_folder: Path) -> None:
    """A carrier's BYE from another of its addresses ends the call; a made-up one does not."""
    async with site(own_folder, more=PROVIDER) as gateway:
        call = gateway.phone.call("1")
        call.invite()
        await call.answered()
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        call._sequence += 1
        bye = call._request("BYE", "z9hG4bKelsewhere", call._sequence)
        with Stranger(gateway.phone.gateway, "127.0.0.3") as other:
            other._socket.sendto(bye.replace(b";tag=", b";tag=x"), gateway.phone.gateway)
            await settled(gateway)
            assert [answer.split(" ")[1] for answer in other.waiting()] == ["403"]
            other._socket.sendto(bye, gateway.phone.gateway)
            summary = await gateway.gateway.wait("call.summary", call=call.call_id)
        assert summary["ending"]["by"] == "caller"


async def test_limits_of_a_source(runner: object, own_folder: Path) -> None:
    more = """
[access]
unknown_sources = "allow"
calls_per_second = 0.01
burst = 3
max_concurrent_calls = 2
"""
    async with site(own_folder, more=more, routes=ANYBODY) as gateway:
        calls = []
        for _ in range(2):
            call = gateway.phone.call("1")
            call.invite()
            await call.answered()
            await gateway.gateway.wait("call.confirmed", call=call.call_id)
            calls.append(call)
        third = gateway.phone.call("1")
        third.invite()
        assert (await third.refused()).code == 486
        for call in calls:
            await call.hang_up()
            await gateway.gateway.wait("call.summary", call=call.call_id)
        last = gateway.phone.call("1")
        last.invite()
        await last.answered()
        await gateway.gateway.wait("call.confirmed", call=last.call_id)
        await last.hang_up()
        over = gateway.phone.call("1")
        over.invite()
        refused = await over.refused()
        assert refused.code == 503
        assert refused.headers["retry-after"] == "5"
        for rule, code in (
            ("access: max_concurrent_calls = 2", 486),
            ("access: calls_per_second = 0.01", 503),
        ):
            await gateway.gateway.wait("sip.rejected", rule=rule, code=code, source="127.0.0.1")


async def test_calls_that_wait_for_an_ack(runner: object, own_folder: Path) -> None:
    """Who forges addresses sends no ACK: a few calls of all strangers together may lack it, and
    a few of each trunk."""
    more = '[access]\nunknown_sources = "allow"\nmax_unacknowledged_calls = 2\n'
    for name, host in (("one", "127.0.0.3"), ("two", "127.0.0.4")):
        more += f'[[trunk]]\nname = "{name}"\npeers = ["{host}"]\n'
        more += "max_unacknowledged_calls = 1\ncalls_per_second = 100\n"
    async with site(own_folder, more=more, routes=ANYBODY) as gateway:
        waiting = [gateway.phone.call("1", acknowledge=False) for _ in range(2)]
        for call in waiting:
            call.invite()
            await call.answered()
        third = gateway.phone.call("1")
        third.invite()
        refused = await third.refused()
        assert (refused.code, refused.headers["retry-after"]) == (503, "5")
        await gateway.gateway.wait("sip.rejected", rule="access: max_unacknowledged_calls = 2")
        phones = [Phone(gateway.phone.gateway) for _ in range(2)]
        for phone, host in zip(phones, ("127.0.0.3", "127.0.0.4"), strict=True):
            await phone.start(host)
            waiting.append(phone.call("1", acknowledge=False))
            waiting[-1].invite()
            await waiting[-1].answered()
        second = phones[0].call("1")
        second.invite()
        assert (await second.refused()).code == 503
        await gateway.gateway.wait("sip.rejected", rule="trunk one: max_unacknowledged_calls = 1")
        for call in waiting:
            call.ack()
            await gateway.gateway.wait("call.confirmed", call=call.call_id)
        last = [phone.call("1") for phone in (gateway.phone, phones[0])]
        for call in last:
            call.invite()
            await call.answered()
        for call in (*waiting, *last):
            await call.hang_up()
        for phone in phones:
            await phone.stop()


async def test_refused_calls_are_sampled(runner: object, own_folder: Path) -> None:
    """A source that dials numbers that there are not gets its answers, and not a file for each."""
    more = "[access]\ncalls_per_second = 0\n"
    async with site(own_folder, more=more, routes='[[route]]\nname = "r"\nto = "^7$"\n') as gateway:
        began = time.monotonic()
        for _ in range(40):
            call = gateway.phone.call("1")
            call.invite()
            assert (await call.refused()).code == 404
        took, told = time.monotonic() - began, 0

        async def counted() -> bool:
            nonlocal told
            told = len(gateway.gateway.all("call.summary"))
            return bool((await gateway.status())["unrecorded"] == {"no_route": 40 - told})

        await eventually(counted, "each refusal in the log or in the count")
        assert 20 <= told <= 21 + 0.2 * took
    assert gateway.gateway.all("call.refusals_counted")[0]["no_route"] == 40 - told
    assert len(list((own_folder / "records").glob("*.json"))) == told


async def test_no_name_at_all(runner: object, own_folder: Path) -> None:
    async with site(own_folder, sip='user_agent = ""', routes=ANYBODY) as gateway:
        answer = await gateway.phone.options()
        assert answer.code == 200
        assert "server" not in answer.headers
        assert "user-agent" not in answer.headers


async def test_a_flood_costs_the_calls_nothing(runner: object, own_folder: Path) -> None:
    """Ten thousand requests of a stranger within a call: every packet of it is there."""
    async with site(own_folder, more=PROVIDER) as gateway:
        call = gateway.phone.call("1")
        call.invite()
        await call.answered()
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        before, began = gateway.gateway.cpu_seconds(), time.monotonic()
        with Stranger(gateway.phone.gateway) as stranger:
            for number in range(10_000):
                stranger.send(METHODS[number % len(METHODS)])
                if number % 100 == 99:  # as fast as the gateway can, and its socket loses nothing
                    await settled(gateway)
            answers = len(stranger.waiting())
        used, took = gateway.gateway.cpu_seconds() - before, time.monotonic() - began
        refused = sum((await gateway.status())["refused"].values())
        assert refused == 10_000
        assert answers < 20 + 10 * took, "answers are limited"
        told = gateway.gateway.all("sip.rejected")
        assert not [line for line in told[1:] if not line.get("repeated")]
        passed = time.monotonic() - began
        assert len(told) <= 1 + passed / 60, "a count of the others once a minute"
        heard = len(call.rtp.packets)
        await call.rtp.until(lambda: len(call.rtp.packets) > heard + 25)
        await call.hang_up()
        assert_continuous(call.rtp.packets)
        figures.show(
            "a stranger's request, refused",
            f"{used / refused * 1e6:.0f} us of one core ({refused} in {took:.1f} s)",
        )


SCANNERS: dict[str, list[str]] = {
    "svmap": ["-p", "{port}", "127.0.0.1"],
    "svwar": ["-p", "{port}", "-e", "100-130", "-m", "INVITE", "127.0.0.1"],
}


@pytest.mark.skipif(
    importlib.util.find_spec("sipvicious") is None, reason="sipvicious is not installed"
)
@pytest.mark.parametrize("tool", SCANNERS)
async def test_sipvicious_finds_nothing(runner: object, own_folder: Path, tool: str) -> None:
    more = PROVIDER.replace("127.0.0.1", "127.0.0.9") + '[access]\nunknown_sources = "drop"\n'
    async with site(own_folder, more=more) as gateway:
        port = str(gateway.port("udp"))
        arguments = [word.format(port=port) for word in SCANNERS[tool]]
        scanner = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"from sipvicious.{tool} import main; main()", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=own_folder,
            env={**os.environ, "HOME": str(own_folder)},
        )
        said: Any
        async with asyncio.timeout(60):
            said, _ = await scanner.communicate()
        text = said.decode()
        assert "| " not in text.replace("| SIP Device", ""), text
        await gateway.gateway.wait("sip.rejected", source="127.0.0.1")

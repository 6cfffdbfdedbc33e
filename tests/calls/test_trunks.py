# SPDX-License-Identifier: GPL-2.0-or-later
"""Trunks: registration at a real Kamailio, and whose call is whose."""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import fields
from pathlib import Path

import pytest

from tests.support.kamailio_registrar import Registrar, program
from tests.support.sip_phone import PhoneCall
from tests.support.site_under_test import site

kamailio = pytest.mark.skipif(program() is None, reason="kamailio is not installed")


def trunk(registrar: Registrar, password: str = "secret", more: str = "") -> str:
    return f"""
[[trunk]]
name = "provider"
registrar = "127.0.0.1:{registrar.port}"
username = "4930"
password = "{password}"
{more}
"""


@kamailio
@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
async def test_registers_takes_its_calls_and_leaves(
    runner: object, own_folder: Path, algorithm: str
) -> None:
    registrar = Registrar(own_folder, algorithm=algorithm)
    await registrar.start()
    headers = 'headers = { X-Account = "7" }\noptions_interval = 60'
    try:
        async with site(own_folder, more=trunk(registrar, more=headers)) as gateway:
            await gateway.gateway.wait("trunk.registered", trunk="provider")
            saved = await registrar.saw(r"SAVED expires=300 contact=(\S+) header=7")
            assert saved[1].startswith("<sip:4930@127.0.0.1:")
            assert ";line=" in saved[1]
            await gateway.gateway.wait("trunk.reachable", trunk="provider", code=200)

            gateway.phone.gateway = ("127.0.0.1", registrar.port)
            call = gateway.phone.call("4930")
            call.invite()
            await call.answered()
            await gateway.gateway.wait("call.confirmed", call=call.call_id)
            status = await gateway.status()
            (state,) = status["trunks"]
            assert (state["state"], state["calls"], state["options"]) == ("registered", 1, "200")
            assert status["calls"][0]["route"] == "by-trunk"
            await call.hang_up()
            summary = await gateway.gateway.wait("call.summary", call=call.call_id)
            assert (summary["trunk"], summary["route"]) == ("provider", "by-trunk")
            gateway.gateway.signal(signal.SIGTERM)
            await registrar.saw(r"SAVED expires=0 ")
            await gateway.gateway.wait("trunk.unregistered", trunk="provider", code=200)
    finally:
        await registrar.stop()


@kamailio
async def test_registrar_that_comes_up_after_the_gateway(runner: object, own_folder: Path) -> None:
    """Over TCP the refusal is at once, so it is the back-off that brings it home."""
    registrar = Registrar(own_folder)
    try:
        async with site(
            own_folder,
            listen=("udp:127.0.0.1:0", "tcp:127.0.0.1:0"),
            more=trunk(registrar, more='transport = "tcp"'),
        ) as gateway:
            failed = await gateway.gateway.wait("trunk.registration_failed", trunk="provider")
            assert 0 < failed["next_try"] <= 2.5
            (state,) = (await gateway.status())["trunks"]
            assert state["state"] == "failed"
            assert state["last_error"]
            await registrar.start()
            await gateway.gateway.wait("trunk.registered", trunk="provider")
            (state,) = (await gateway.status())["trunks"]
            assert (state["state"], state["last_error"]) == ("registered", "")
    finally:
        await registrar.stop()


@kamailio
async def test_refreshes_before_it_expires(runner: object, own_folder: Path) -> None:
    registrar = Registrar(own_folder, expires=7)
    await registrar.start()
    try:
        async with site(own_folder, more=trunk(registrar)) as gateway:
            line = await gateway.gateway.wait("trunk.registered", trunk="provider")
            assert line["expires"] == 7
            await registrar.saw(r"SAVED expires=300", count=2)
            assert len(gateway.gateway.all("trunk.registered")) == 1
    finally:
        await registrar.stop()


@kamailio
async def test_wrong_password_is_said_and_not_hammered(runner: object, own_folder: Path) -> None:
    registrar = Registrar(own_folder)
    await registrar.start()
    try:
        async with site(own_folder, more=trunk(registrar, "wr0ng-pass")) as gateway:
            failed = await gateway.gateway.wait("trunk.registration_failed", trunk="provider")
            assert failed["code"] == 401
            assert failed["next_try"] >= 45
            (state,) = (await gateway.status())["trunks"]
            assert state["last_error"].startswith("401")
            assert state["next_try_seconds"] > 0
            assert not [line for line in registrar.lines if line.startswith("SAVED")]
        log = [str(line) for line in gateway.gateway.lines]
        assert not any("wr0ng-pass" in line for line in log)
    finally:
        await registrar.stop()


async def test_peers_own_their_calls(runner: object, own_folder: Path) -> None:
    """The phone is a peer of one trunk; with codecs of its own, the answer has the first."""
    more = """
[[trunk]]
name = "everybody"
peers = ["127.0.0.0/8"]
[[trunk]]
name = "provider"
peers = ["127.0.0.1"]
codecs = ["PCMA", "PCMU"]
"""
    async with site(
        own_folder, more=more, routes='[[route]]\nname = "in"\ntrunk = "provider"\n'
    ) as gateway:
        call = gateway.phone.call("1", codecs=("PCMU", "PCMA"))
        call.invite()
        answer = await call.answered()
        assert answer.final is not None
        assert "RTP/AVP 8" in answer.final.body
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        await call.hang_up()
        summary = await gateway.gateway.wait("call.summary", call=call.call_id)
        assert (summary["trunk"], summary["codec"]) == ("provider", "PCMA")

        other = gateway.phone.call("1", codecs=("GSM",))
        other.invite()
        assert (await other.refused()).code == 488


class _WithLine(PhoneCall):
    line = ""

    @property
    def uri(self) -> str:
        return f"{super().uri};line={self.line}"


def with_line(call: PhoneCall, line: str) -> PhoneCall:
    """The same call, to a contact that has this line."""
    made = _WithLine(**{one.name: getattr(call, one.name) for one in fields(call) if one.init})
    made.line = line
    call.phone.calls[call.call_id] = made
    return made


async def test_a_registered_contact_is_not_guessed(runner: object, own_folder: Path) -> None:
    """Knowing our user at the registrar opens nothing; only the line of the contact does."""
    silent = socket.socket(type=socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    silent.settimeout(10)
    more = f"""
[[trunk]]
name = "provider"
registrar = "127.0.0.1:{silent.getsockname()[1]}"
username = "4930"
"""
    async with site(own_folder, more=more) as gateway:
        loop = asyncio.get_running_loop()
        register = (await loop.run_in_executor(None, silent.recv, 4000)).decode()
        contact = next(x for x in register.split("\r\n") if x.startswith("Contact: "))
        line = contact.partition(";line=")[2].partition(">")[0]
        assert len(line) == 24
        for user in ("4930", "4930;line=" + "0" * 24):
            call = gateway.phone.call(user)
            call.invite()
            assert (await call.refused()).code == 403
        call = with_line(gateway.phone.call("4930"), line)
        call.invite()
        await call.answered()
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        await call.hang_up()
        summary = await gateway.gateway.wait("call.summary", call=call.call_id)
        assert summary["trunk"] == "provider"
    silent.close()

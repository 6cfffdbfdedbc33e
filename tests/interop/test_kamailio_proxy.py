# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway registers at Kamailio, which authenticates callers and stays in every dialog."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.lab.agent import Agent
from tests.interop.lab.baresip import Phone
from tests.interop.lab.debian import Root
from tests.interop.lab.ports import EXTENSION
from tests.interop.lab.registrar import SECRET, Registrar
from tests.interop.lab.sound import noise, pcm
from tests.support.harness import eventually
from tests.support.listening import share_heard

pytestmark = pytest.mark.interop

TRUNK = """
[[trunk]]
name = "proxy"
registrar = "{registrar.address}"
username = "100"
password = "{secret}"
transport = "{transport}"
"""


@pytest.fixture(scope="module")
def registrar(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registrar]:
    made = Registrar(root, tmp_path_factory.mktemp("kamailio"))
    try:
        runner.run(made.start())
        yield made
    finally:
        runner.run(made.stop())


@pytest.fixture(scope="module", params=["udp", "tcp"])
def agent(
    runner: asyncio.Runner,
    tmp_path_factory: pytest.TempPathFactory,
    registrar: Registrar,
    request: Any,
) -> Iterator[Agent]:
    more = TRUNK.format(registrar=registrar, secret=SECRET, transport=request.param)
    made = Agent(tmp_path_factory.mktemp("agent"), (f"{request.param}:{EXTENSION}:0",), more)
    runner.run(made.start())
    runner.run(made.gateway.wait("trunk.registered", trunk="proxy"))
    yield made
    runner.run(made.stop())


@pytest.fixture(scope="module")
def phone(
    runner: asyncio.Runner,
    root: Root,
    tmp_path_factory: pytest.TempPathFactory,
    registrar: Registrar,
) -> Iterator[Phone]:
    made = Phone(root, tmp_path_factory.mktemp("phone"), "201")
    try:
        runner.run(made.start())
        runner.run(made.register(registrar.address, SECRET))
        yield made
    finally:
        runner.run(made.stop())


async def test_both_hear_each_other(registrar: Registrar, agent: Agent, phone: Phone) -> None:
    agent.behave(vad="off", answer={"kind": "pattern", "seconds": 1})
    call = agent.next_call()
    await phone.call(f"sip:100@{registrar.address}")
    session = await call.session()
    said = noise(1, 1)
    await phone.say(pcm(said))
    await session.wait_until(lambda s: share_heard(said, bytes(s.received)) > 0.9, within_s=30)
    (greeting,) = session.sent_items.values()
    await eventually(lambda: phone.heard.has(bytes(greeting)), "the whole greeting")
    await phone.press("7#")
    await session.wait_until(lambda s: bool(s.seen("conversation.item.create")), within_s=30)
    await phone.hang_up()
    summary = await call.summary()
    assert summary["ending"]["why"] == "remote_hangup"
    assert summary["trunk"] == "proxy"
    assert summary["transport"] == agent.transport


async def test_the_model_hangs_up(registrar: Registrar, agent: Agent, phone: Phone) -> None:
    """Our BYE takes the recorded route."""
    agent.behave(vad="off", answer={"kind": "pattern", "seconds": 1, "end_call": True})
    call = agent.next_call()
    await phone.call(f"sip:100@{registrar.address}")
    await phone.wait("CALL_CLOSED")
    assert (await call.summary())["ending"]["why"] == "agent_hangup"
    host = agent.gateway.sip[0]
    requests = registrar.tail(100_000).splitlines()
    assert any("BYE sip:201" in line and f"from {host}:" in line for line in requests)


async def test_hold_and_resume(registrar: Registrar, agent: Agent, phone: Phone) -> None:
    agent.behave(vad="off", answer={"kind": "quiet"})
    call = agent.next_call()
    await phone.call(f"sip:100@{registrar.address}")
    session = await call.session()
    await phone.hold()
    await call.wait("call.held")
    await phone.resume()
    await call.wait("call.resumed")
    said = noise(2, 1)
    await phone.say(pcm(said))
    await session.wait_until(lambda s: share_heard(said, bytes(s.received)) > 0.9, within_s=30)
    await phone.hang_up()
    assert (await call.summary())["ending"]["why"] == "remote_hangup"


async def test_a_wrong_password_registers_nobody(
    runner: asyncio.Runner, registrar: Registrar, tmp_path: Any
) -> None:
    more = TRUNK.format(registrar=registrar, secret="wrong", transport="udp")
    other = Agent(tmp_path, (f"udp:{EXTENSION}:0",), more)
    await other.start()
    line = await other.gateway.wait("trunk.registration_failed", trunk="proxy")
    assert line["code"] == 401
    assert line["next_try"] > 30, "a registrar locks out who tries too often"
    await other.stop()
    assert "wrong" not in "".join(str(line) for line in other.gateway.lines)


async def test_sha_256(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory
) -> None:
    registrar = Registrar(root, tmp_path_factory.mktemp("sha256"), "SHA-256")
    await registrar.start()
    try:
        more = TRUNK.format(registrar=registrar, secret=SECRET, transport="udp")
        agent = Agent(tmp_path_factory.mktemp("agent"), (f"udp:{EXTENSION}:0",), more)
        await agent.start()
        await agent.gateway.wait("trunk.registered", trunk="proxy")
        await agent.stop()
        assert len(agent.gateway.all("trunk.unregistered", code=200)) == 1
    finally:
        await registrar.stop()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The queues of deploy/asterisk/README.md, as they are there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.interop.lab.debian import Root
from tests.interop.lab.ports import GATEWAY, PBX
from tests.interop.lab.scene import Scene
from tests.interop.lab.snippets import deployed, of_asterisk_readme

pytestmark = pytest.mark.interop

MEMBER, _, PAUSE = of_asterisk_readme("The gateway can be a member of a queue")[:3]
PEOPLE, INTO_QUEUE, DESTINATION = of_asterisk_readme("To let the model transfer callers")[:3]
CALLERS = "[callers]\n" + of_asterisk_readme("`extensions.conf`, in the context of your callers")[0]
ROUTES = f"""
[[route]]
name = "transfers"
to = "^110$"
[route.greeting]
say = "Hello."
{DESTINATION}
"""


def snippets(scene: Scene) -> tuple[str, str]:
    values = {"192.0.2.10:5060": scene.agent.address, "192.0.2.10": GATEWAY}
    extensions = deployed("extensions-trunk.conf", {}) + CALLERS + INTO_QUEUE
    return deployed("pjsip-trunk.conf", values), extensions


def gateway(scene: Scene) -> str:
    values = {"192.0.2.1:5060": scene.asterisk.address, "192.0.2.1": PBX}
    return deployed("gateway-trunk.toml", values)


@pytest.fixture(scope="module")
def scene(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    made = Scene(
        root,
        tmp_path_factory.mktemp("queue"),
        snippets,
        listen=f"udp:{GATEWAY}:0",
        includes=("to-agent", "callers"),
        gateway=gateway,
        routes=lambda _scene: ROUTES,
    )
    made.asterisk.configuration.queues = MEMBER + PEOPLE
    try:
        runner.run(made.start())
        yield made
    finally:
        runner.run(made.stop())


async def test_a_member_is_paused_and_resumed(scene: Scene) -> None:
    pause, unpause = [line.split("'")[1] for line in PAUSE.splitlines()]
    manager = scene.asterisk.manager
    await scene.asterisk.reachable("agent")
    assert "paused interface" in await manager.command(pause)
    call = scene.agent.next_call()
    phone = await scene.phone("201")
    await phone.call(scene.uri("400"))  # answered, and waiting: nobody is there to take it
    await manager.wait("QueueCallerJoin")
    assert scene.agent.gateway.all("call.invite") == []
    assert "unpaused interface" in await manager.command(unpause)
    await call.wait("call.confirmed")
    await phone.hang_up()
    assert (await call.summary())["ending"]["why"] == "remote_hangup"


async def test_the_model_transfers_into_a_queue(scene: Scene) -> None:
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": "support"})}
    scene.agent.behave(vad="off", answers=[{"kind": "pattern", "seconds": 0.5, "tools": [tool]}])
    caller, human = await scene.phone("201"), await scene.phone("202")
    call = scene.agent.next_call()
    await caller.call(scene.uri("110"))
    await human.accept()
    summary = await call.summary()
    assert summary["ending"]["why"] == "transferred"
    await caller.hang_up()
    await human.wait("CALL_CLOSED")

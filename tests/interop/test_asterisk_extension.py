# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway registers at Asterisk as an extension, as ``deploy/asterisk`` says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.lab.debian import Root
from tests.interop.lab.ports import EXTENSION
from tests.interop.lab.scene import Scene
from tests.interop.lab.snippets import deployed
from tests.interop.lab.sound import noise, pcm
from tests.support.harness import eventually
from tests.support.listening import share_heard

pytestmark = pytest.mark.interop

PASSWORD = "extension-secret"


def plain(scene: Scene) -> tuple[str, str]:
    pjsip = deployed("pjsip-extension.conf", {"PBX_PASSWORD": PASSWORD})
    return pjsip, deployed("extensions-extension.conf", {})


def plain_gateway(scene: Scene) -> str:
    values = {"192.0.2.1:5060": scene.asterisk.address, "${env:PBX_PASSWORD}": PASSWORD}
    return deployed("gateway-extension.toml", values)


def tls(scene: Scene) -> tuple[str, str]:
    pjsip = deployed("pjsip-extension-tls.conf", {"PBX_PASSWORD": PASSWORD})
    return pjsip, deployed("extensions-extension.conf", {})


def tls_gateway(scene: Scene) -> str:
    values = {
        "192.0.2.1:5061": scene.asterisk.tls_address,
        "${env:PBX_PASSWORD}": PASSWORD,
        "/etc/gateway/gateway.crt": str(scene.keys.certificate),
        "/etc/gateway/gateway.key": str(scene.keys.key),
        "/etc/gateway/asterisk-ca.crt": str(scene.keys.certificate),
    }
    return deployed("gateway-extension-tls.toml", values)


VARIANTS = {"udp": (plain, plain_gateway), "tls": (tls, tls_gateway)}
SECURITY = {"udp": ["rtp"], "tls": ["srtp", "sdes"]}


@pytest.fixture(scope="module", params=VARIANTS)
def scene(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> Iterator[Scene]:
    snippets, gateway = VARIANTS[request.param]
    made = Scene(
        root,
        tmp_path_factory.mktemp("extension"),
        snippets,
        listen=f"{request.param}:{EXTENSION}:0",
        includes=("to-agent",),
        gateway=gateway,
    )
    try:
        # Asterisk comes up after the gateway, which goes on trying, ever less often.
        runner.run(made.start())
        runner.run(made.agent.gateway.wait("trunk.registered", 90, trunk="pbx"))
        yield made
    finally:
        runner.run(made.stop())


async def test_both_hear_each_other(scene: Scene) -> None:
    scene.agent.behave(vad="off", answer={"kind": "pattern", "seconds": 2})
    phone = await scene.phone("201")
    call = scene.agent.next_call()
    await phone.call(scene.uri("100"))
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
    print(summary)
    assert summary["ending"]["why"] == "remote_hangup"
    assert summary["trunk"] == "pbx"
    assert summary["transport"] == scene.transport
    assert summary["security"].split()[:2] == SECURITY[scene.transport]


async def test_the_model_hangs_up(scene: Scene) -> None:
    scene.agent.behave(vad="off", answer={"kind": "pattern", "seconds": 1, "end_call": True})
    phone = await scene.phone("201")
    call = scene.agent.next_call()
    await phone.call(scene.uri("100"))
    await phone.wait("CALL_CLOSED")
    assert (await call.summary())["ending"]["why"] == "agent_hangup"
    await eventually(scene.asterisk.is_idle, "no channel is left")


async def test_asterisk_restarts(scene: Scene) -> None:
    """Over TLS it reaches the gateway only when that has noticed, and registered again."""
    phone = await scene.phone("201")
    scene.agent.behave(vad="off", answer={"kind": "quiet"})
    lost = scene.agent.next_call()
    await phone.call(scene.uri("100"))
    await lost.session()
    await scene.asterisk.restart()
    assert (await lost.summary())["ending"]["why"] == "remote_hangup"
    await phone.wait("CALL_CLOSED")
    if scene.transport == "tls":
        await scene.asterisk.reachable("100")
    call = scene.agent.next_call()
    await phone.call(scene.uri("100"))
    await call.session()
    await phone.hang_up()
    assert (await call.summary())["ending"]["why"] == "remote_hangup"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway as an IP trunk of Asterisk, and a softphone that is registered there.

The configuration is that of ``deploy/asterisk`` and of README.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.lab.debian import Root
from tests.interop.lab.ports import GATEWAY, PBX
from tests.interop.lab.scene import Scene
from tests.interop.lab.snippets import deployed
from tests.interop.lab.sound import noise, pcm
from tests.support.harness import eventually
from tests.support.listening import MOST_OF_IT, share_heard

ULAW_SILENCE = 0xFF

pytestmark = pytest.mark.interop


def plain(scene: Scene) -> tuple[str, str]:
    values = {"192.0.2.10:5060": scene.agent.address, "192.0.2.10": GATEWAY}
    return deployed("pjsip-trunk.conf", values), deployed("extensions-trunk.conf", {})


def plain_gateway(scene: Scene) -> str:
    values = {"192.0.2.1:5060": scene.asterisk.address, "192.0.2.1": PBX}
    return deployed("gateway-trunk.toml", values)


def tls(scene: Scene) -> tuple[str, str]:
    values = {"192.0.2.10:5061": scene.agent.address, "192.0.2.10": GATEWAY}
    return deployed("pjsip-trunk-tls.conf", values), deployed("extensions-trunk.conf", {})


def tls_gateway(scene: Scene) -> str:
    values = {
        "192.0.2.1:5061": scene.asterisk.tls_address,
        "192.0.2.1": PBX,
        "/etc/gateway/gateway.crt": str(scene.keys.certificate),
        "/etc/gateway/gateway.key": str(scene.keys.key),
        "/etc/gateway/asterisk-ca.crt": str(scene.keys.certificate),
    }
    return deployed("gateway-trunk-tls.toml", values)


VARIANTS = {"udp": (plain, plain_gateway), "tls": (tls, tls_gateway)}
SECURITY = {"udp": ["rtp"], "tls": ["srtp", "sdes"]}


@pytest.fixture(scope="module", params=VARIANTS)
def scene(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> Iterator[Scene]:
    snippets, gateway = VARIANTS[request.param]
    made = Scene(
        root,
        tmp_path_factory.mktemp("trunk"),
        snippets,
        listen=f"{request.param}:{GATEWAY}:0",
        includes=("to-agent",),
        gateway=gateway,
    )
    try:
        runner.run(made.start())
        yield made
    finally:
        runner.run(made.stop())


async def test_both_hear_each_other(scene: Scene) -> None:
    scene.agent.behave(vad="off", answer={"kind": "pattern", "seconds": 3})
    phone = await scene.phone("201")
    call = scene.agent.next_call()
    await phone.call(scene.uri("100"))
    session = await call.session()
    said = noise(1, 2)
    await phone.say(pcm(said))
    await session.wait_until(lambda s: share_heard(said, bytes(s.received)) > 0.9, within_s=30)
    (greeting,) = session.sent_items.values()
    await eventually(lambda: phone.heard.has(bytes(greeting)), "the whole greeting")
    await phone.hang_up()
    summary = await call.summary()
    assert summary["ending"]["by"] == "caller"
    assert summary["ending"]["why"] == "remote_hangup"
    assert summary["ending"]["reason"] == "Q.850;cause=16"
    assert summary["codec"] == "PCMU"
    assert summary["trunk"] == "pbx"
    assert summary["transport"] == scene.transport
    assert summary["security"].split()[:2] == SECURITY[scene.transport]
    await session.wait_until(lambda s: s.close_code == 1000, within_s=30)


async def test_keys_reach_the_model(scene: Scene) -> None:
    phone = await scene.phone("201")
    call = scene.agent.next_call()
    await phone.call(scene.uri("101"))
    session = await call.session()
    await phone.press("0123456789*")
    await phone.press("#")
    await session.wait_until(lambda s: bool(s.seen("conversation.item.create")), within_s=30)
    (event,) = session.seen("conversation.item.create")
    assert "0 1 2 3 4 5 6 7 8 9 *" in event.body["item"]["content"][0]["text"]
    await phone.hang_up()
    (entry,) = (await call.summary())["digits"]
    assert entry["ended_by"] == "terminator"


async def test_the_model_hangs_up(scene: Scene) -> None:
    answer = {"kind": "pattern", "seconds": 1, "end_call": True}
    scene.agent.behave(vad="off", answer=answer)
    phone = await scene.phone("201")
    call = scene.agent.next_call()
    await phone.call(scene.uri("100"))
    session = await call.session()
    await phone.wait("CALL_CLOSED")
    summary = await call.summary()
    assert summary["ending"]["by"] == "model"
    assert summary["ending"]["why"] == "agent_hangup"
    (farewell,) = session.sent_items.values()
    await eventually(lambda: phone.heard.has(bytes(farewell)), "a goodbye, to its end")
    hangup = await scene.asterisk.manager.wait("Hangup", ChannelStateDesc="Up", Exten="")
    assert hangup["Cause"] == "16"
    await eventually(scene.asterisk.is_idle, "no channel is left")


async def test_no_session_is_no_answer(scene: Scene) -> None:
    """The dialplan goes on behind Dial, with the cause that the gateway gave."""
    scene.agent.behave(refuse={"step": "session.update", "code": "unknown_parameter"})
    phone = await scene.phone("201")
    call = scene.agent.next_call()
    await phone.dial(scene.uri("100"))
    closed = await phone.wait("CALL_CLOSED")
    assert closed["param"].startswith("503")
    assert (await call.summary())["ending"]["why"] == "session_refused"
    scene.agent.behave()


async def test_hold_and_resume(scene: Scene) -> None:
    """The gateway is told, hears no music, and goes on where it stopped."""
    # So long that the half second and more, in which the telephone hears nothing, is little of it.
    # All at once: an underrun is none of a model that a busy machine holds up.
    scene.agent.behave(vad="off", answer={"kind": "pattern", "seconds": 10, "burst": True})
    phone = await scene.phone("201")
    call = scene.agent.next_call()
    before = phone.heard.seconds()  # of earlier calls
    await phone.call(scene.uri("100"))
    session = await call.session()
    await eventually(lambda: phone.heard.seconds() > before + 1, "a second of the greeting")
    await phone.hold()
    await call.wait("call.held")
    # What was said before may still be on its way; then a second without music, and without speech.
    silence = bytes([ULAW_SILENCE]) * 8000
    await session.wait_until(lambda s: s.received.endswith(silence), within_s=30)
    await phone.resume()
    await call.wait("call.resumed")
    after = await phone.listen_anew()
    said = noise(2, 1)
    await phone.say(pcm(said))
    await session.wait_until(lambda s: share_heard(said, bytes(s.received)) > 0.9, within_s=30)
    (greeting,) = session.sent_items.values()
    await eventually(
        # Its loudspeaker is connected anew after the hold, and hears nothing meanwhile.
        lambda: share_heard(bytes(greeting), phone.heard.ulaw() + after.ulaw()) > MOST_OF_IT,
        "the greeting, the rest of it after the hold",
    )
    await phone.hang_up()
    assert (await call.summary())["underruns"] == 0


async def test_asterisk_crashes(scene: Scene) -> None:
    """The call in progress ends for want of RTP, and calls work again with the new process."""
    phone = await scene.phone("201")
    lost = scene.agent.next_call()
    await phone.call(scene.uri("101"))
    await lost.session()
    await scene.asterisk.crash_and_restart()
    assert (await lost.summary())["ending"]["why"] == "rtp_timeout"
    await phone.hang_up()
    call = scene.agent.next_call()
    await phone.call(scene.uri("101"))
    await call.session()
    await phone.hang_up()
    assert (await call.summary())["ending"]["why"] == "remote_hangup"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The model hands a caller on, and calls people, through an Asterisk with telephones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.api.client import ask
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import pattern
from tests.interop.lab.baresip import Phone
from tests.interop.lab.debian import Root
from tests.interop.lab.ports import GATEWAY, PBX
from tests.interop.lab.scene import Scene
from tests.interop.lab.snippets import deployed
from tests.interop.lab.sound import noise, pcm
from tests.support.harness import eventually
from tests.support.listening import share_heard

pytestmark = pytest.mark.interop

ROUTES = """
[[route]]
name = "transfers"
to = "^110$"
[route.greeting]
say = "Hello."
[[route.transfer]]
name = "blind"
to = "sip:202@{asterisk}"
[[route.transfer]]
name = "telephone number"
to = "tel:202"
[[route.transfer]]
name = "nobody"
to = "sip:209@{asterisk}"
[[route.transfer]]
name = "nobody, attended"
to = "sip:209@{asterisk}"
mode = "attended"
trunk = "pbx"
[[route.transfer]]
name = "attended"
to = "sip:202@{asterisk}"
mode = "attended"
trunk = "pbx"
[[route.transfer]]
name = "bridge"
to = "sip:202@{asterisk}"
mode = "bridge"
trunk = "pbx"
[[route.transfer]]
name = "warm"
to = "sip:202@{asterisk}"
mode = "bridge"
trunk = "pbx"
[route.transfer.briefing]
timeout = 3
[[route.transfer]]
name = "warm, busy"
to = "sip:304@{asterisk}"
mode = "bridge"
trunk = "pbx"
[route.transfer.briefing]
[[route.transfer]]
name = "warm, unanswered"
to = "sip:305@{asterisk}"
mode = "bridge"
trunk = "pbx"
ring_timeout = 2
[route.transfer.briefing]
[[route.transfer]]
name = "warm, declines"
to = "sip:307@{asterisk}"
mode = "attended"
trunk = "pbx"
[route.transfer.briefing]
[[route.transfer]]
name = "warm, attended"
to = "sip:202@{asterisk}"
mode = "attended"
trunk = "pbx"
[route.transfer.briefing]
"""

OUTBOUND = """
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["2"]
max_calls_per_minute = 60
"""


def snippets(scene: Scene) -> tuple[str, str]:
    values = {"192.0.2.10:5060": scene.agent.address, "192.0.2.10": GATEWAY}
    services = "exten => _30X,1,Goto(services,${EXTEN},1)\n"
    return deployed("pjsip-trunk.conf", values), deployed("extensions-trunk.conf", {}) + services


def gateway(scene: Scene) -> str:
    values = {"192.0.2.1:5060": scene.asterisk.address, "192.0.2.1": PBX}
    return deployed("gateway-trunk.toml", values) + OUTBOUND


def routes(scene: Scene) -> str:
    return ROUTES.format(asterisk=scene.asterisk.address)


@pytest.fixture(scope="module")
def scene(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    made = Scene(
        root,
        tmp_path_factory.mktemp("transfer"),
        snippets,
        listen=f"udp:{GATEWAY}:0",
        includes=("to-agent",),
        gateway=gateway,
        routes=routes,
    )
    try:
        runner.run(made.start())
        yield made
    finally:
        runner.run(made.stop())


def transfers_to(scene: Scene, destination: str) -> None:
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": destination})}
    first = {"kind": "pattern", "seconds": 0.5, "tools": [tool]}
    scene.agent.behave(
        vad="off",
        answers=[first, {"kind": "pattern", "seconds": 1, "seed": 7}],
        out_of_band={"kind": "pattern", "seconds": 1, "seed": 8},
    )


async def assert_hears(listener: Phone, speaker: Phone, seed: int) -> None:
    """What one says, the other hears."""
    said = noise(seed, 1)
    ear = await listener.listen_anew()
    await speaker.say(pcm(said))
    what = f"{listener.user} hears {speaker.user}"
    await eventually(lambda: share_heard(said, ear.ulaw()) > 0.9, what)


def outputs_of(session: SessionRecord) -> list[dict[str, Any]]:
    """What the model was told of its tool calls."""
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    return [json.loads(one["output"]) for one in items if one["type"] == "function_call_output"]


@pytest.mark.parametrize("destination", ["blind", "telephone number", "attended", "bridge"])
async def test_transfer(scene: Scene, destination: str) -> None:
    """The human answers, and both talk; the gateway is out of it, except for a bridge."""
    transfers_to(scene, destination)
    mode = "blind" if destination == "telephone number" else destination
    caller, human = await scene.phone("201"), await scene.phone("202")
    call = scene.agent.next_call()
    await caller.call(scene.uri("110"))
    await human.accept()
    if mode != "bridge":
        assert (await call.summary())["ending"]["why"] == "transferred"

        async def gone() -> bool:
            return not any("agent" in name for name in await scene.asterisk.channels())

        await eventually(gone, "no channel to the gateway is left")
    await assert_hears(human, caller, 20)
    await assert_hears(caller, human, 21)
    await caller.hang_up()
    await human.wait("CALL_CLOSED")
    (transfer,) = (await call.summary())["transfers"]
    assert (transfer["mode"], transfer["outcome"]) == (mode, "answered")


@pytest.mark.parametrize("answer", ["accepted", "taken over", "declined", "no_key"])
async def test_warm_transfer(scene: Scene, answer: str) -> None:
    """The human hears the briefing, and takes the call by a key, or not."""
    transfers_to(scene, "warm, attended" if answer == "taken over" else "warm")
    caller, human = await scene.phone("201"), await scene.phone("202")
    call = scene.agent.next_call()
    await caller.call(scene.uri("110"))
    await human.accept()
    session = await call.session()
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, within_s=30)
    briefing = bytes(list(session.sent_items.values())[1])
    await eventually(lambda: human.heard.has(briefing[:4000]), "the briefing")
    if answer in ("accepted", "taken over"):
        await human.press("1")
        if answer == "taken over":
            assert (await call.summary())["ending"]["why"] == "transferred"
        else:
            await call.wait("call.bridged")
        await assert_hears(human, caller, 30)
        await assert_hears(caller, human, 31)
        await caller.hang_up()
        await human.wait("CALL_CLOSED")
    else:
        if answer == "declined":
            await human.press("2")
        await human.wait("CALL_CLOSED")
        await session.wait_until(lambda s: outputs_of(s) != [], within_s=30)
        (output,) = outputs_of(session)
        assert output["status"] == ("declined" if answer == "declined" else "no_answer")
        back = pattern(7, 8000)
        await eventually(lambda: caller.heard.has(back[:4000]), "the model again")
        await caller.hang_up()
    (transfer,) = (await call.summary())["transfers"]
    assert transfer["briefing"] == ("accepted" if answer == "taken over" else answer)


@pytest.mark.parametrize(
    ("destination", "status", "code"),
    [
        ("warm, busy", "busy", 486),
        ("warm, unanswered", "no_answer", None),
        ("warm, declines", "forbidden", 403),  # so Asterisk tells a call that was rejected
    ],
)
async def test_a_warm_transfer_that_nobody_takes(
    scene: Scene, destination: str, status: str, code: int | None
) -> None:
    """Refused by SIP, or never answered: the caller is back with the model, which knows why."""
    transfers_to(scene, destination)
    caller = await scene.phone("201")
    call = scene.agent.next_call()
    await caller.call(scene.uri("110"))
    session = await call.session()
    await session.wait_until(lambda s: outputs_of(s) != [], within_s=30)
    (output,) = outputs_of(session)
    assert (output["status"], output.get("sip_code")) == (status, code)
    back = pattern(7, 8000)
    await eventually(lambda: caller.heard.has(back[:4000]), "the model again")
    await assert_heard_by_the_model(session, caller)
    await caller.hang_up()
    summary = await call.summary()
    (transfer,) = summary["transfers"]
    assert (transfer["outcome"], transfer["briefing"]) == (status, "")
    assert summary["ending"]["why"] == "remote_hangup"


async def assert_heard_by_the_model(session: SessionRecord, caller: Phone) -> None:
    """What the caller says is in the session again."""
    said = noise(33, 1)
    await caller.say(pcm(said))
    await session.wait_until(lambda s: share_heard(said, bytes(s.received)) > 0.9, within_s=30)


async def test_nobody_answers_the_consultation(scene: Scene) -> None:
    """The caller comes back to the model, which knows why."""
    transfers_to(scene, "nobody, attended")
    caller = await scene.phone("201")
    call = scene.agent.next_call()
    await caller.call(scene.uri("110"))
    session = await call.session()
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, within_s=30)
    (output,) = outputs_of(session)
    assert (output["status"], output["sip_code"]) == ("no_such_number", 404)
    answer = bytes(list(session.sent_items.values())[1])
    await eventually(lambda: caller.heard.has(answer), "the model again")
    await caller.hang_up()
    assert (await call.summary())["ending"]["why"] == "remote_hangup"


async def test_nobody_answers_a_blind_transfer(scene: Scene) -> None:
    """Asterisk has taken the caller away by then, and hangs up on them: it cannot be undone."""
    transfers_to(scene, "nobody")
    caller = await scene.phone("201")
    call = scene.agent.next_call()
    await caller.call(scene.uri("110"))
    session = await call.session()
    await caller.wait("CALL_CLOSED")
    await session.wait_until(lambda s: outputs_of(s) != [], within_s=30)
    (output,) = outputs_of(session)
    assert output["status"] == "failed"
    assert (await call.summary())["ending"]["why"] == "rtp_timeout", "Asterisk sends no BYE"


async def test_the_gateway_calls_a_telephone(scene: Scene) -> None:
    scene.agent.behave(vad="off", answer={"kind": "pattern", "seconds": 1, "seed": 9})
    phone = await scene.phone("202")
    path = scene.agent.folder / "gateway.sock"
    answer = await asyncio.to_thread(ask, path, "dial", to="202", route="greeted", trunk="pbx")
    await phone.accept()
    line = await scene.agent.gateway.wait("call.session_up", call=answer["call"])
    session = next(one for one in scene.agent.emulator.sessions if one.id == line["session_id"])
    said = noise(77, 1)
    await phone.say(pcm(said))
    await session.wait_until(lambda s: share_heard(said, bytes(s.received)) > 0.9, within_s=30)
    (greeting,) = session.sent_items.values()
    await eventually(lambda: phone.heard.has(bytes(greeting)), "the whole greeting")
    await phone.hang_up()
    summary = await scene.agent.gateway.wait("call.summary", call=answer["call"])
    assert summary["direction"] == "outbound"
    assert (summary["ending"]["by"], summary["ending"]["why"]) == ("callee", "remote_hangup")


async def test_the_gateway_calls_in_vain(scene: Scene) -> None:
    path = scene.agent.folder / "gateway.sock"
    answer = await asyncio.to_thread(ask, path, "dial", to="209", route="greeted", trunk="pbx")
    summary = await scene.agent.gateway.wait("call.summary", call=answer["call"])
    assert summary["ending"]["sip_code"] == 404
    assert summary["ending"]["why"] == "no_such_number"

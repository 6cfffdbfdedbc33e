# SPDX-License-Identifier: GPL-2.0-or-later
"""A softphone straight to the gateway, without a PBX."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interop.lab.agent import Agent
from tests.interop.lab.baresip import Phone
from tests.interop.lab.debian import Root
from tests.interop.lab.keys import Keys, self_signed
from tests.interop.lab.ports import GATEWAY, PHONES
from tests.interop.lab.sound import noise, pcm
from tests.support.harness import eventually
from tests.support.listening import MOST_OF_IT, share_heard

pytestmark = pytest.mark.interop

ULAW_SILENCE = 0xFF


TLS = """
[sip.tls]
certificate = "{keys.certificate}"
private_key = "{keys.key}"
ca = "{keys.certificate}"
[media]
rtp_timeout = 3
srtp = "required"
sdes_without_tls = true
"""

DTLS = """
[media]
rtp_timeout = 3
srtp = "required"
srtp_keying = ["dtls"]
"""


@dataclass(frozen=True)
class Way:
    """How the telephone reaches the gateway."""

    transport: str
    security: str
    """What the summary begins with."""
    encryption: str = ""
    """What baresip calls that."""


@pytest.fixture(
    scope="module",
    params=[
        Way("udp", "rtp"),
        Way("tls", "srtp sdes", "srtp-mand"),
        Way("udp", "srtp dtls", "dtls_srtp"),
    ],
    ids=["udp", "tls", "dtls"],
)
def way(request: Any) -> Way:
    made: Way = request.param
    return made


@pytest.fixture(scope="module")
def agent(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory, way: Way
) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("agent")
    more = DTLS if way.encryption == "dtls_srtp" else ""
    if way.transport == "tls":
        more = TLS.format(keys=self_signed(folder, "gateway"))
    made = Agent(folder, (f"{way.transport}:{GATEWAY}:0",), more)
    runner.run(made.start())
    yield made
    runner.run(made.stop())


@pytest.fixture
def phone(
    runner: asyncio.Runner,
    root: Root,
    tmp_path_factory: pytest.TempPathFactory,
    agent: Agent,
    way: Way,
) -> Iterator[Phone]:
    secure = way.transport == "tls"
    keys = Keys(agent.folder / "gateway.crt", agent.folder / "gateway.key") if secure else None
    made = Phone(root, tmp_path_factory.mktemp("phone"), "alice", keys=keys)
    try:
        runner.run(made.start())
        parameters = ";regint=0" + (f";mediaenc={way.encryption}" if way.encryption else "")
        transport = ";transport=tls" if secure else ""
        runner.run(made.account(f"alice@{PHONES}{transport}", parameters))
        yield made
    finally:
        runner.run(made.stop())


async def test_both_hear_each_other(agent: Agent, phone: Phone, way: Way) -> None:
    # At once: an underrun is none of a model that a busy machine holds up.
    agent.behave(vad="off", answer={"kind": "pattern", "seconds": 2, "burst": True})
    call = agent.next_call()
    await phone.call(f"sip:100@{agent.address}")
    session = await call.session()
    await phone.wait("CALL_RTPESTAB")  # before the keys of DTLS are agreed the phone sends nothing
    said = noise(1, 2)
    await phone.say(pcm(said))
    await session.wait_until(lambda s: share_heard(said, bytes(s.received)) > 0.9, within_s=30)
    (greeting,) = session.sent_items.values()
    await eventually(lambda: phone.heard.has(bytes(greeting), but_first_ms=0), "all of it")
    await phone.hang_up()
    summary = await call.summary()
    assert summary["ending"]["why"] == "remote_hangup"
    assert summary["underruns"] == 0
    assert summary["transport"] == way.transport
    assert summary["security"].startswith(way.security)
    await session.wait_until(lambda s: s.close_code == 1000, within_s=30)


async def test_keys_and_goodbye(agent: Agent, phone: Phone, way: Way) -> None:
    """The emulator takes its leave at the key 0."""
    agent.behave()
    call = agent.next_call()
    await phone.call(f"sip:101@{agent.address}")
    session = await call.session()
    await phone.wait("CALL_RTPESTAB")  # keys of DTLS are agreed by then; before, nothing is heard
    await phone.press("0#")
    await phone.wait("CALL_CLOSED", within_s=30)
    summary = await call.summary()
    assert [entry["digits"] for entry in summary["digits"]] == ["0"]
    assert summary["ending"]["why"] == "agent_hangup"
    assert summary["security"].startswith(way.security)
    (farewell,) = session.sent_items.values()
    await eventually(lambda: phone.heard.has(bytes(farewell), but_first_ms=0), "all of the goodbye")


async def test_hold_and_resume(agent: Agent, phone: Phone, way: Way) -> None:
    # So long that the half second and more, in which the telephone hears nothing, is little of it.
    agent.behave(vad="off", answer={"kind": "pattern", "seconds": 8})
    call = agent.next_call()
    before = phone.heard.seconds()  # of earlier calls
    await phone.call(f"sip:100@{agent.address}")
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
    (greeting,) = session.sent_items.values()
    await eventually(
        # Its loudspeaker is connected anew after the hold, and hears nothing meanwhile.
        lambda: share_heard(bytes(greeting), phone.heard.ulaw() + after.ulaw()) > MOST_OF_IT,
        "the greeting, the rest of it after the hold",
    )
    await phone.hang_up()
    assert (await call.summary())["ending"]["why"] == "remote_hangup"


async def test_no_such_number(agent: Agent, phone: Phone) -> None:
    await phone.dial(f"sip:999@{agent.address}")
    closed = await phone.wait("CALL_CLOSED")
    assert closed["param"].startswith("404")
    await agent.gateway.until(lambda: agent.gateway.all("call.summary")[-1]["to"][4:7] == "999")
    assert agent.gateway.all("call.summary")[-1]["ending"]["why"] == "no_route"

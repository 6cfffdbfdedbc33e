# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions that are lost at every step of a call: failover, and what the caller hears."""

from __future__ import annotations

import asyncio
import time
import wave
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.devtools.emulator.session_log import SessionRecord
from tests.support import figures
from tests.support.harness import GatewayStack
from tests.support.listening import Spoken, assert_continuous, is_silence, noise
from tests.support.sip_phone import PhoneCall

GREETING = """
[route.greeting]
say = "Hello."
"""

UNANSWERED = f"""{GREETING}
[route.realtime]
connect_timeout = 1.5
"""
"""Of calls that get no session; others may wait for a busy machine."""

SORRY_SECONDS = 0.8

ROUTES = f"""
[[route]]
name = "again"
to = "^again$"
{GREETING}
[route.session.audio.input.transcription]
model = "whisper-1"

[[route]]
name = "elsewhere"
to = "^elsewhere$"
fallback = [{{action = "server", server = "backup"}}]
{GREETING}
[route.realtime]
url = "ws://127.0.0.1:9/v1/realtime"
api_key = "none"

[[route]]
name = "sorry"
to = "^sorry$"
fallback = [{{action = "announcement", sound = "{{sorry}}"}}, {{action = "hangup"}}]
{GREETING}

[[route]]
name = "busy"
to = "^busy$"
fallback = [{{action = "busy"}}]
{UNANSWERED}

[[route]]
name = "away"
to = "^away$"
fallback = [{{action = "redirect", to = "sip:desk@pbx.example"}}]
{UNANSWERED}

[[route]]
name = "left"
to = "^left$"
fallback = []
{UNANSWERED}
"""


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayStack]:
    """With an announcement, and a second server that is the same emulator."""
    folder = tmp_path_factory.mktemp("trouble")
    sorry = folder / "sorry.wav"
    with wave.open(str(sorry), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(Codec.PCMU.to_linear(noise(71, SORRY_SECONDS)))
    made = GatewayStack(
        folder / "own",
        routes=ROUTES.replace("{sorry}", str(sorry)),
        realtime="handover_before_expiry = 5",
        more='[[realtime_server]]\nname = "backup"\nurl = "{url}"',
    )
    runner.run(made.start())
    yield made
    runner.run(made.stop())


async def session_after(world: GatewayStack, call: PhoneCall) -> SessionRecord:
    """The session that took over."""
    await world.gateway.wait("call.session_replaced", call=call.call_id)
    return world.emulator.sessions[-1]


def told(session: SessionRecord) -> list[str]:
    """Texts of the items that it was given."""
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    return [item["content"][0]["text"] for item in items if item["type"] == "message"]


async def trouble_of(world: GatewayStack, call: PhoneCall) -> dict[str, Any]:
    """What the record says of it, and that the call was hung up by its caller."""
    await world.summary_at_end(call)
    record = await world.record(call)
    (trouble,) = record["failovers"]
    return dict(trouble)


async def test_a_session_lost_in_the_middle_of_an_answer(world: GatewayStack) -> None:
    """What had come is heard; the next session is told of it and goes on."""
    world.behave(
        vad="off",
        answers=[{"kind": "say", "text": "It is open from nine to five, every day of the week."}],
        end={"at": "response.output_audio.delta", "nth": 6, "drop": True},
    )
    world.then(vad="off", answers=[{"kind": "pattern", "seconds": 1, "seed": 3}])
    call = await world.dial("again")
    first = await world.session_of(call)
    second = await session_after(world, call)
    await second.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    (item,) = second.sent_items.values()
    await call.rtp.until(lambda: Spoken(bytes(item)).heard_ms(call.rtp.packets) >= 980)
    assert_continuous(call.rtp.packets)
    (before,) = first.sent_items.values()
    assert Spoken(bytes(before)).heard_ms(call.rtp.packets) > 0
    (text,) = told(second)
    assert text.startswith("It is")
    assert text.endswith(" …")
    trouble = await trouble_of(world, call)
    assert (trouble["why"], trouble["outcome"]) == ("session_lost", "recovered")
    heard = trouble["heard_after_ms"]
    figures.show(
        "session cut in mid-answer: ms until another is up, and until it is heard",
        f"{trouble['session_after_ms']:.0f}, {'without a gap' if heard is None else heard}",
    )


@pytest.mark.parametrize(
    ("step", "script"),
    [
        ("connect", {"refuse": {"step": "upgrade", "http_status": 503}}),
        ("first event", {"created": "never"}),
        ("update", {"updated": "never"}),
        ("refused", {"refuse": {"step": "connect", "code": "insufficient_quota"}}),
    ],
)
@pytest.mark.parametrize(("route", "code"), [("left", 503), ("busy", 486), ("away", 302)])
async def test_a_session_that_is_not_to_be_had(
    world: GatewayStack, step: str, script: dict[str, Any], route: str, code: int
) -> None:
    """Before the answer the route says how the call is refused."""
    world.behave(**script)
    call = world.phone.call(route)
    call.invite()
    final = await call.refused()
    assert final.code == code
    if code == 302:
        assert final.headers["contact"] == "<sip:desk@pbx.example>"
    record = await world.record(call)
    assert record["ending"]["sip_code"] == code
    assert record["ending"]["why"] in ("session_unreachable", "session_refused")


async def test_a_server_that_is_not_there_and_another_that_is(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 1, "seed": 4}])
    call = await world.dial("elsewhere")
    await call.rtp.heard_bytes(4000)
    trouble = await trouble_of(world, call)
    assert (trouble["steps"], trouble["outcome"]) == (["server"], "recovered")


@pytest.mark.parametrize("when", ["before the answer", "in the call"])
async def test_an_announcement_and_the_end(world: GatewayStack, when: str) -> None:
    if when == "in the call":
        world.behave(vad="off", answer="silent", end={"after_s": 0.3, "code": 1011})
    else:
        world.behave(refuse={"step": "upgrade", "http_status": 503})
    call = await world.dial("sorry")
    bye = await call.hung_up()
    assert "cause=41" in bye.headers["reason"]
    spoken_s = sum(not is_silence(packet) for packet in call.rtp.packets) * 0.02
    # A gateway that stands still sends nothing meanwhile, and hangs up in time.
    moments = [*(packet.at for packet in call.rtp.packets), time.time()]
    stood_s = sum(max(0.0, after - before - 0.04) for before, after in pairwise(moments))
    assert SORRY_SECONDS - 0.1 - stood_s <= spoken_s <= SORRY_SECONDS + 0.1, "heard once"
    record = await world.record(call)
    (trouble,) = record["failovers"]
    assert trouble["sound_after_ms"] is not None
    figures.show(f"announcement, {when}: heard after ms", f"{trouble['sound_after_ms']:.0f}")


async def test_keys_while_there_is_no_session(world: GatewayStack) -> None:
    """The next session is told of the digits that were pressed meanwhile."""
    world.behave(vad="off", answer="silent", end={"after_s": 0.4, "code": 1011})
    world.then(refuse={"step": "upgrade", "http_status": 503})
    call = await world.dial("again")
    await world.gateway.wait("call.session_lost", call=call.call_id)
    call.rtp.press("4#")
    await world.gateway.wait("call.dtmf_collected", call=call.call_id)
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 1, "seed": 6}])
    second = await session_after(world, call)
    await second.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    assert told(second) == ["The caller pressed 4 on the telephone keypad."]
    await trouble_of(world, call)


async def test_lost_while_the_goodbye_is_said(world: GatewayStack) -> None:
    """All of it is here: it is heard, and the call ends as it would have."""
    world.behave(
        vad="off",
        answers=[{"kind": "pattern", "seconds": 1.5, "seed": 8, "end_call": True}],
        end={"at": "response.done", "code": 1011},
    )
    call = await world.dial("again")
    await call.hung_up()
    record = await world.record(call)
    assert record["ending"]["why"] in ("agent_hangup", "session_closed")
    assert record["failovers"] == []


async def test_another_session_takes_over_before_the_server_ends_one(world: GatewayStack) -> None:
    """It is told what was said, and the caller hears all. An end that is always near opens no more
    than one in 30 s."""
    world.behave(
        vad="scripted",
        expires_s=9,
        answers=[{"kind": "pattern", "seconds": 0.2, "seed": 10}],
        speech={"at_ms": [300], "length_ms": 200},
        transcripts=["What is open?"],
    )
    call = await world.dial("again")
    first = await world.session_of(call)
    line = await world.gateway.wait("call.handed_over", call=call.call_id)
    (last,) = (one for one in world.emulator.sessions if one.id == line["session_id"])
    assert last.id != first.id
    await last.wait_until(lambda s: "What is open?" in told(s), 30)
    assert_continuous(call.rtp.packets)
    await world.summary_at_end(call)
    record = await world.record(call)
    assert record["handovers"] == 1
    assert record["failovers"] == []
    assert record["ending"]["why"] == "remote_hangup"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_refuses_does_not_let_the_caller_ring(
    world: GatewayStack, status: int
) -> None:
    """The route's step comes at once, and not after ``connect_timeout``."""
    world.behave(refuse={"step": "upgrade", "http_status": status})
    call = world.phone.call("left")
    call.invite()
    final = await call.refused()
    assert final.code == 503
    assert int(final.headers["retry-after"]) >= 1
    await world.record(call)
    assert len(world.gateway.all("session.retry", call=call.call_id)) <= 1

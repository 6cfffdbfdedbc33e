# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of call on a Live session, one gateway for all: a second of audio goes up each second
whatever happens, what goes down has no hole, and each client event is one of the official types."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.client import ask
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import pattern
from tests import support
from tests.calls.test_transfer_human import hear_each_other
from tests.support.callee import CalledPhone, free_port
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import (
    MOST_OF_IT,
    Spoken,
    assert_continuous,
    assert_in_step,
    noise,
    share_heard,
    speech,
)
from tests.support.referred import ReferredCall
from tests.support.referred import dial as dial_referred
from tests.support.rtp_end import EVENT_PAYLOAD
from tests.support.sip_phone import PhoneCall

HERE = Path(support.__file__).parent
PORT = free_port()
ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
tools = ["*"]
[route.realtime]
url = "ws://127.0.0.1:{{port}}/v1/live/sessions"
api_key = "{{key}}"
model = "gpt-live-1.1"
[route.live]
instructions = "You are a hotel."
[route.live.delegation]
type = "responses"
acknowledgement_delay_ms = 60000
[route.live.delegation.responses]
model = "backend-1"
"""
TOOLS = f"""mcp = ["crm"]
[route.hold]
enabled = true
[route.send_dtmf]
enabled = true
[[route.transfer]]
name = "porter"
to = "tel:+4930123456"
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
[[route.transfer]]
name = "boss"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "attended"
[[route.transfer]]
name = "desk"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
[route.transfer.briefing]
"""
DECIDES = """
[[route]]
name = "decides"
to = "^decides$"
[route.realtime]
url = "ws://127.0.0.1:{port}/v1/live/sessions"
api_key = "{key}"
model = "gpt-live-1.1"
[[route.live.triggers]]
event_type = "session.input_transcript.delta"
decisions.questions = [{ type = "predicate", name = "angry", instructions = "Are they angry?" }]
[route.live.delegation]
type = "decisions"
[route.live.delegation.decisions]
model = "decider"
questions = [{ type = "predicate", name = "human", instructions = "The caller wants a human." }]
"""
WORLD = {
    "realtime": "handover_before_expiry = 5",
    "more": f"""
[control]
socket = "gateway.sock"
[media]
jb_catch_up = false
packet_wait_ms = 500
[access]
unknown_sources = "allow"
[outbound]
max_calls_per_minute = 60
[tools]
module = {json.dumps(str(HERE / "hotel_tools.py"))}
[[tools.mcp]]
name = "crm"
command = [{json.dumps(sys.executable)}, {json.dumps(str(HERE / "mcp_double.py"))}]
connect_timeout = 60.0
[[realtime_server]]
name = "live"
url = "ws://127.0.0.1:{{port}}/v1/live/sessions"
api_key = "{{key}}"
model = "gpt-live-1.1"
""",
    "routes": ROUTE.format(name="matrix").replace(
        "tools = [", 'fallback = [{ action = "reconnect", timeout = 5 }]\ntools = ['
    )
    + '[route.hold]\nrelease_after = 1.5\n[[route.transfer]]\nname = "porter"\n'
    + 'to = "tel:+4930123456"\nring_timeout = 1\n'
    + ROUTE.format(name="dear")
    + "[route.budget]\nper_call = 0.002\n"
    + ROUTE.format(name="office").replace("tools =", TOOLS.partition("\n")[0] + "\ntools =")
    + TOOLS.partition("\n")[2]
    + DECIDES
    + """
[[route]]
name = "turned"
to = "^turned$"
[[route.fallback]]
action = "server"
server = "live"
[route.session]
instructions = "You are brief."
[route.live]
instructions = "You are very brief."
""",
}
FRAME = 160


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """The telephone of everybody who is called."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


def says(text: str, *tools: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """An answer of the script."""
    wanted = [{"name": name, "arguments": json.dumps(given)} for name, given in tools]
    kind = {"kind": "say", "text": text} if text else {"kind": "nothing"}
    return {**kind, "tools": wanted, **more}


SILENT = {"kind": "silent"}


# ---- rows of the matrix: each drives the call, and returns once that has happened


async def model_silent(world: GatewayStack, call: DialogCall) -> None:
    said = noise(1, 0.8)
    call.rtp.say(said)
    session = await world.session_of(call)
    await session.wait_until(lambda one: said[-FRAME:] in one.received, WITHIN_S)


async def both_talking(world: GatewayStack, call: DialogCall) -> None:
    call.rtp.say(noise(2, 0.6))
    await eventually(lambda: len(speech(call.rtp.packets)) > 1600, "the model speaks")
    call.rtp.say(noise(3, 0.8))
    await call.rtp.quiet()
    answer = Spoken(pattern(3, 8000 * 2))
    await eventually(lambda: answer.heard_ms(call.rtp.packets) == 2000, "all of it is heard")


async def model_bursts(world: GatewayStack, call: DialogCall) -> None:
    call.rtp.say(noise(2, 0.6))
    answer = Spoken(pattern(3, 8000 * 2))
    await eventually(lambda: answer.heard_ms(call.rtp.packets) == 2000, "all of it is heard")


async def nobody(world: GatewayStack, call: DialogCall) -> None:
    session = await world.session_of(call)
    await session.wait_until(lambda one: one.received_total >= 8000, WITHIN_S)


async def holds(world: GatewayStack, call: DialogCall) -> None:
    """Twice: a short one, and one that closes the session."""
    session = await world.session_of(call)
    await call.renegotiate(direction="sendonly")
    await world.gateway.wait("call.held", call=call.call_id)
    await call.renegotiate(direction="sendrecv")
    await call.renegotiate(direction="sendonly")
    await session.wait_until(lambda one: not one.live, WITHIN_S)
    await call.renegotiate(direction="sendrecv")
    await world.gateway.wait("call.session_resumed", call=call.call_id)


async def dtx(world: GatewayStack, call: DialogCall) -> None:
    """Nothing is sent in a pause, as with a telephone that detects silence."""
    session = await world.session_of(call)
    call.rtp.say(noise(1, 0.4))
    await call.rtp.quiet()
    call.rtp.sending = False
    before = session.received_total
    await session.wait_until(lambda one: one.received_total - before > 6400, WITHIN_S)
    call.rtp.sending = True
    await model_silent(world, call)


async def lossy(world: GatewayStack, call: DialogCall) -> None:
    rng = random.Random(5)
    call.rtp.loss = lambda: rng.random() < 0.02
    call.rtp.say(noise(4, 1.5))
    await call.rtp.quiet()


async def reinvites(world: GatewayStack, call: DialogCall) -> None:
    await call.renegotiate()
    await call.renegotiate("UPDATE")
    await model_silent(world, call)


async def digits(world: GatewayStack, call: DialogCall) -> None:
    session = await world.session_of(call)
    call.rtp.press("42#")
    await session.wait_until(lambda one: bool(one.sent("session.thinking.appended")), WITHIN_S)


async def lost(world: GatewayStack, call: DialogCall) -> None:
    session = await world.session_of(call)
    world.emulator.live[session.id].close(1011, "lost", drop=True)
    await world.gateway.wait("call.session_replaced", call=call.call_id)
    call.rtp.say(noise(8, 0.6))
    other = world.emulator.sessions[-1]
    await other.wait_until(lambda one: noise(8, 0.6)[-FRAME:] in one.received, WITHIN_S)


async def expires(world: GatewayStack, call: DialogCall) -> None:
    world.behave(answers=[SILENT])
    await world.gateway.wait("call.handed_over", call=call.call_id)
    other = world.emulator.sessions[-1]
    await other.wait_until(lambda one: one.received_total >= 1600, WITHIN_S)


async def until_the_end(world: GatewayStack, call: DialogCall) -> None:
    call.rtp.say(noise(6, 0.6))
    await call.hung_up()


async def transfer_fails(world: GatewayStack, call: DialogCall) -> None:
    """The caller's side answers no REFER, and the call goes on."""
    call.rtp.say(noise(6, 0.6))
    await world.gateway.wait("call.transfer_failed", call=call.call_id)
    session = await world.session_of(call)
    await session.wait_until(lambda one: bool(one.seen("response.create")), WITHIN_S)
    call.rtp.say(noise(8, 0.6))
    await session.wait_until(lambda one: noise(8, 0.6)[-FRAME:] in one.received, WITHIN_S)


Row = tuple[Callable[[GatewayStack, DialogCall], Awaitable[None]], dict[str, Any], str]
TWO_SECONDS = {"kind": "pattern", "seconds": 2, "seed": 3}
ROWS: dict[str, Row] = {
    "model silent": (model_silent, {"answers": [SILENT]}, "remote_hangup"),
    "both talking": (
        both_talking,
        {"answers": [TWO_SECONDS, SILENT], "live": {"talks_on": True}},
        "remote_hangup",
    ),
    "model bursts": (
        model_bursts,
        {"answers": [{**TWO_SECONDS, "burst": True}, SILENT], "live": {"talks_on": True}},
        "remote_hangup",
    ),
    "nobody": (nobody, {"answers": [SILENT]}, "remote_hangup"),
    "holds": (holds, {"answers": [SILENT]}, "remote_hangup"),
    "dtx": (dtx, {"answers": [SILENT]}, "remote_hangup"),
    "loss": (lossy, {"answers": [SILENT]}, "remote_hangup"),
    "re-INVITE": (reinvites, {"answers": [SILENT]}, "remote_hangup"),
    "DTMF": (digits, {"answers": [SILENT]}, "remote_hangup"),
    "transfer": (
        transfer_fails,
        {"answers": [says("", ("transfer_call", {"destination": "porter"})), SILENT]},
        "remote_hangup",
    ),
    "goodbye": (
        until_the_end,
        {"answers": [says("", ("end_call", {})), says("Goodbye."), SILENT]},
        "agent_hangup",
    ),
    "lost session": (lost, {"answers": [SILENT]}, "remote_hangup"),
    "expiry": (expires, {"answers": [SILENT], "expires_s": 7}, "remote_hangup"),
    "budget": (until_the_end, {"answers": [SILENT]}, "budget"),
}


def well(session: SessionRecord) -> None:
    """The server refused nothing, but what was told of a call that ended just then."""
    assert set(session.errors) <= {"context_injection_incomplete"}


@pytest.mark.parametrize("name", list(ROWS))
async def test_matrix(world: GatewayStack, name: str) -> None:
    drive, script, why = ROWS[name]
    live = {"transcript_lag_ms": 0, **script.get("live", {})}
    before = len(world.emulator.sessions)
    world.behave(**{**script, "live": live})
    call = await answered(dialog_call(world.phone, "dear" if name == "budget" else "matrix"))
    await world.gateway.wait("call.confirmed", call=call.call_id)
    await drive(world, call)
    if why == "remote_hangup":
        await call.hang_up()
    summary = await world.summary(call)
    assert summary["ending"]["why"] == why
    if name not in ("holds", "re-INVITE"):  # which begin a new stream of RTP
        assert_continuous(call.rtp.packets)
    sessions = list(world.emulator.sessions)[before:]
    assert len(sessions) == (2 if name in ("holds", "lost session", "expiry") else 1)
    for session in sessions:
        await session.wait_until(lambda one: not one.live, WITHIN_S)
        if session.appends:
            assert_in_step(session)
        well(session)
    assert summary["cost"]["session_seconds"] > 0


# ---- what a backend has done


async def used(
    world: GatewayStack, *answers: dict[str, Any], route: str = "office", **live: Any
) -> tuple[ReferredCall, SessionRecord]:
    """A call whose caller says something; and its session."""
    world.behave(answers=[*answers, SILENT], live={"transcript_lag_ms": 300, **live})
    call = await dial_referred(world, route)
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    return call, session


def results(session: SessionRecord) -> list[str]:
    """What the backend was told of its calls."""
    items = [event.body["item"] for event in session.seen("response.item.create")]
    return [one["output"] for one in items if one["type"] == "function_call_output"]


async def told(session: SessionRecord, count: int = 1) -> str:
    """Wait until the backend goes on with so many results; returns the last."""
    await session.wait_until(
        lambda one: len(results(one)) >= count and bool(one.seen("response.create")), WITHIN_S
    )
    return results(session)[-1]


async def ends(world: GatewayStack, call: PhoneCall, session: SessionRecord) -> None:
    await world.summary_at_end(call)
    well(session)


async def test_a_backend_uses_an_mcp_server(world: GatewayStack) -> None:
    wanted = says("", ("crm_find_customer", {"number": "7"}))
    call, session = await used(world, wanted, says("That is Ann."))
    assert await told(session) == "Ann Example, 7, False"
    offered = session.client_events[0].body["session"]["delegation"]["responses"]["tools"]
    assert "crm_find_customer" in [one["name"] for one in offered]
    await eventually(lambda: len(speech(call.rtp.packets)) > 2000, "the voice says it")
    await ends(world, call, session)


async def test_a_backend_holds_and_presses_keys(world: GatewayStack) -> None:
    wanted = [says("", ("hold", {"seconds": 5})), says("", ("send_dtmf", {"digits": "5w1"}))]
    call, session = await used(world, *wanted, says("Done."))
    assert "the caller is back" in await told(session)
    await call.rtp.until(
        lambda: (
            {p.payload[0] for p in call.rtp.packets if p.payload_type == EVENT_PAYLOAD} == {1, 5}
        )
    )
    assert '"sent"' in await told(session, 2)
    await ends(world, call, session)
    await session.wait_until(lambda one: not one.live, WITHIN_S)
    assert_in_step(session)


async def test_a_backend_joins_the_caller_with_somebody(
    world: GatewayStack, callee: CalledPhone
) -> None:
    wanted = says("I connect you.", ("transfer_call", {"destination": "anna"}))
    call, session = await used(world, wanted)
    there = await callee.called()
    await world.gateway.wait("call.bridged", call=call.call_id)
    await hear_each_other(call, there, 1)
    there.bye()
    await call.hung_up()
    assert (await world.summary(call))["ending"]["why"] == "bridge_ended"
    well(session)


async def test_a_backend_hands_the_caller_over_after_talking(
    world: GatewayStack, callee: CalledPhone
) -> None:
    wanted = says("", ("transfer_call", {"destination": "boss"}))
    call, session = await used(world, wanted)
    there = await callee.called()
    await call.asked()
    assert "Replaces=" in call.refer_to
    there.bye()
    call.notify("200 OK", last=True)
    await call.hung_up()
    assert (await world.summary(call))["ending"]["why"] == "transferred"
    well(session)


@pytest.mark.parametrize("key", ["1", "2"])
async def test_the_voice_briefs_a_colleague_whom_the_caller_does_not_hear(
    world: GatewayStack, callee: CalledPhone, key: str
) -> None:
    arguments = {"destination": "desk", "briefing": "Mr Smith about his bill."}
    call, session = await used(
        world, says("", ("transfer_call", arguments)), says("No luck.", first_delay_ms=900)
    )
    there = await callee.called()
    await session.wait_until(lambda one: bool(one.seen("session.commentary.append")), WITHIN_S)
    said = session.seen("session.commentary.append")[0].body["content"]
    assert said.startswith("Mr Smith about his bill. Press 1")

    def track() -> bytes:
        return session.sent_track.strip(b"\xff\x7f")[:16_000]

    await there.rtp.until(
        lambda: len(track()) == 16_000 and share_heard(track(), there.rtp.heard) > 0.9
    )
    assert share_heard(track(), call.rtp.heard) < 0.1, "the caller hears music"
    there.rtp.press(key)
    if key == "1":
        await world.gateway.wait("call.bridged", call=call.call_id)
        await hear_each_other(call, there, 60)
        there.bye()
        await call.hung_up()
    else:
        assert "declined" in await told(session)
        before = len(call.rtp.packets)
        await eventually(lambda: len(speech(call.rtp.packets[before:])) > 2000, "the voice is back")
        await world.summary_at_end(call)
    record = await world.record(call)
    assert record["transfers"][0]["briefing"] == ("accepted" if key == "1" else "declined")
    assert record["out_of_band"][0]["purpose"] == "briefing"
    well(session)


async def test_an_operators_question_is_answered_by_the_backend(world: GatewayStack) -> None:
    """It is not heard; one that comes while a function runs waits for that."""
    slow = says("", ("slow", {}))
    call, session = await used(world, slow, says("It took a while."), says("Two nights."))
    await world.gateway.wait("call.tool", call=call.call_id, name="slow")
    socket, wanted = world.folder / "gateway.sock", {"text": "What does the caller want?"}
    reply = await asyncio.to_thread(ask, socket, "query", call=call.call_id, **wanted)
    assert reply["text"] == "Two nights.", reply
    asked = session.seen("response.item.create")[-1].body["item"]
    assert asked["role"] == "developer"
    assert "What does the caller want?" in asked["content"][0]["text"]
    assert len(results(session)) == 1
    await ends(world, call, session)
    said = (await world.record(call))["transcript"]
    assert "Two nights." not in [one["text"] for one in said]


async def test_a_realtime_session_is_replaced_by_a_live_one(world: GatewayStack) -> None:
    world.behave(answers=[says("Two nights."), SILENT])
    call = await world.dial("turned")
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    await world.gateway.wait("call.agent_transcript", call=call.call_id)
    world.behave(answers=[{"kind": "pattern", "seconds": 0.5, "seed": 9}, SILENT])
    world.emulator.live[session.id].close(1011, "lost", drop=True)
    await world.gateway.wait("call.session_replaced", call=call.call_id)
    other = world.emulator.sessions[-1]
    start = other.client_events[0].body["session"]
    assert start["instructions"] == "You are very brief."
    assert "Two nights." in str(start["input"])
    call.rtp.say(noise(8, 0.6))
    await eventually(
        lambda: share_heard(pattern(9, 4000), call.rtp.heard) > MOST_OF_IT, "it answers"
    )
    await ends(world, call, other)


async def test_decisions_are_in_log_and_timeline(world: GatewayStack) -> None:
    """Of a delegation, and of a trigger, which fires with each piece of the transcript."""
    call, session = await used(world, {"kind": "nothing", "delegate": True}, route="decides")
    await world.gateway.wait("call.decided", call=call.call_id, answers={"human": None})
    await world.gateway.wait("call.decided", call=call.call_id, answers={"angry": None})
    await session.wait_until(lambda one: len(one.sent("decision.event")) > 2, WITHIN_S)
    await ends(world, call, session)
    assert len(world.gateway.all("call.decided", call=call.call_id)) == 2
    timeline = (await world.record(call))["timeline"]
    assert [one["event"] for one in timeline].count("decided") == 2

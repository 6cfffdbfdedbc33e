# SPDX-License-Identifier: GPL-2.0-or-later
"""Incidents made on purpose: the black box of each does again what the call did, and a core that
decides otherwise is found out.

``make black-boxes`` keeps their black boxes in ``tests/unit/bridge/black_boxes``.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.bridge.replay import read_lines, replay
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.timeline.black_box import read_black_box
from tests.support.black_boxes import keep, written
from tests.support.callee import CalledPhone, free_port
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import noise
from tests.support.referred import dial as dial_referred
from tests.support.sip_phone import Message, PhoneCall

_DEAF = socket.create_server(("127.0.0.1", 0))
"""Takes connections, and answers nothing."""

ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
fallback = [{steps}]
[route.greeting]
say = "Hello."
{rules}
"""

PORT = free_port()
"""Of the callee, who is busy."""

RULES = {
    "simple": "",
    "joined": '[[route.transfer]]\nname = "desk"\nmode = "bridge"\n'
    f'to = "sip:busy-486@127.0.0.1:{PORT}"\n'
    f'[[route.transfer]]\nname = "anna"\nmode = "bridge"\nto = "sip:answer@127.0.0.1:{PORT}"',
    "interpreted": f"""[[route.transfer]]
name = "anna"
mode = "bridge"
to = "sip:answer@127.0.0.1:{PORT}"
[route.interpreter]
to = "anna"
caller.language = "English"
callee.language = "German"
""",
    "moved": '[[route.transfer]]\nname = "desk"\nto = "sip:1002@pbx.example"\nring_timeout = 2',
    "thrifty": '[route.budget]\nper_call = 0.0000001\ngoodbye = "Bye."',
    "waiting": '[[route.tool]]\nname = "stock"\ndescription = "What is there."\n'
    f'url = "http://127.0.0.1:{_DEAF.getsockname()[1]}/"\ntimeout = 0.5\nretries = 0',
    "deaf": "[route.limits]\nrtp_timeout = 0.6",
    "guarded": '[[route.guardrail]]\nname = "g"\nwords = ["secret"]\nreplacement = "No."',
    "silent": "[route.idle]\ntimeout = 0.6\nmax_prompts = 1",
}

WORLD = {
    "records": 'black_box = "always"',
    "realtime": "handover_before_expiry = 5",
    "more": '[access]\nunknown_sources = "allow"\n[outbound]\nmax_calls_per_minute = 60\n',
    "routes": ROUTE.format(name="again", steps='{ action = "reconnect" }', rules="")
    + "".join(ROUTE.format(name=name, steps="", rules=rules) for name, rules in RULES.items()),
}

LONG = {"kind": "pattern", "seconds": 4}


async def server_lost_in_mid_answer(world: GatewayStack) -> PhoneCall:
    world.behave(end={"at": "response.output_audio.delta", "nth": 2, "drop": True}, answer=LONG)
    call = await world.dial("simple")
    await call.hung_up()
    return call


async def server_lost_and_replaced(world: GatewayStack) -> PhoneCall:
    world.behave(end={"at": "response.output_audio.delta", "nth": 2, "drop": True}, answer=LONG)
    world.then(answer=LONG)
    call = await world.dial("again")
    await world.gateway.wait("call.session_replaced", call=call.call_id)
    await call.hang_up()
    return call


async def double_barge_in(world: GatewayStack) -> PhoneCall:
    world.behave(answer=LONG)
    call = await world.dial("simple")
    await call.rtp.heard_bytes(4000)
    call.rtp.say(noise(1, 0.5))
    await world.gateway.wait("call.interruption", call=call.call_id)
    call.rtp.press("1")
    await world.gateway.wait("call.dtmf", call=call.call_id)
    call.rtp.say(noise(2, 0.5))
    await call.hang_up()
    return call


async def keys_in_the_greeting(world: GatewayStack) -> PhoneCall:
    world.behave(answer=LONG)
    call = await world.dial("simple")
    await call.rtp.heard_bytes(1600)
    call.rtp.press("12#")
    await world.gateway.wait("call.dtmf_collected", call=call.call_id)
    await call.hang_up()
    return call


async def crossed_byes(world: GatewayStack) -> PhoneCall:
    bye = {"name": "end_call", "arguments": "{}"}
    world.behave(answer={"kind": "pattern", "seconds": 0.3, "tools": [bye]})
    call = await world.dial("simple")
    receive = call.receive

    def crossing(message: Message) -> None:
        if message.method == "BYE" and not call.byes:
            call.bye()
        receive(message)

    call.receive = crossing  # type: ignore[method-assign]
    await call.hung_up()
    await world.gateway.wait("call.summary", call=call.call_id)
    return call


async def transfer_refused(world: GatewayStack) -> PhoneCall:
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": "desk"})}
    answers = [{"kind": "pattern", "seconds": 0.2, "tools": [tool]}, {"kind": "silent"}]
    world.behave(vad="off", answers=answers)
    call = await dial_referred(world, "moved", 603)
    await call.asked()
    await world.gateway.wait("call.transfer_failed", call=call.call_id)
    await call.hang_up()
    return call


async def callee_busy(world: GatewayStack) -> PhoneCall:
    callee = await CalledPhone().start(PORT)
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": "desk"})}
    answers = [{"kind": "pattern", "seconds": 0.2, "tools": [tool]}, {"kind": "silent"}]
    world.behave(vad="off", answers=answers)
    try:
        call = await world.dial("joined")
        await world.gateway.wait("call.transfer_failed", call=call.call_id)
        await call.hang_up()
    finally:
        await callee.stop()
    return call


async def callee_hangs_up(world: GatewayStack) -> PhoneCall:
    callee = await CalledPhone().start(PORT)
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": "anna"})}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}])
    try:
        call = await world.dial("joined")
        other = await callee.called()
        await world.gateway.wait("call.bridged", call=call.call_id)
        other.rtp.say(noise(1, 0.5))
        await other.rtp.heard_bytes(4000)
        other.bye()
        await call.hung_up()
    finally:
        await callee.stop()
    return call


async def interpreter_lost(world: GatewayStack) -> PhoneCall:
    callee = await CalledPhone().start(PORT)
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 0.2})
    try:
        call = await world.dial("interpreted")
        for listener in ("caller", "callee"):
            up = await world.gateway.wait(
                "call.interpreter_up", call=call.call_id, listener=listener
            )
            live = world.emulator.live[up["session_id"]]
            live.session.pretend_speech(100)
            session = next(one for one in world.emulator.sessions if one.id == up["session_id"])
            await session.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
        live.close(1011, drop=True)
        await world.gateway.wait("call.interpreter_lost", call=call.call_id, listener="callee")
        other = await callee.called()
        await call.hang_up()
        await other.hung_up()
    finally:
        await callee.stop()
    return call


async def budget_spent(world: GatewayStack) -> PhoneCall:
    world.behave(answer={"kind": "pattern", "seconds": 0.3})
    call = await world.dial("thrifty")
    await call.hung_up()
    return call


async def tool_that_never_answers(world: GatewayStack) -> PhoneCall:
    world.behave(answers=[{"kind": "pattern", "seconds": 0.2, "tools": [{"name": "stock"}]}, LONG])
    call = await world.dial("waiting")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) >= 1 and _told(s), 20)
    await call.hang_up()
    return call


async def rtp_stops(world: GatewayStack) -> PhoneCall:
    world.behave(answer="silent")
    call = await world.dial("deaf")
    await call.rtp.heard_bytes(800)
    call.rtp.sending = False
    await call.hung_up()
    return call


async def session_handed_over(world: GatewayStack) -> PhoneCall:
    world.behave(expires_s=7, answer={"kind": "pattern", "seconds": 0.2})
    call = await world.dial("again")
    await world.gateway.wait("call.handed_over", call=call.call_id)
    await call.hang_up()
    return call


async def guardrail_cut(world: GatewayStack) -> PhoneCall:
    secret = {"kind": "say", "text": "Here is the secret of the house, all of it at length."}
    world.behave(answers=[secret, {"kind": "pattern", "seconds": 0.3}])
    call = await world.dial("guarded")
    await world.gateway.wait("call.guardrail", call=call.call_id)
    await call.hang_up()
    return call


async def nobody_speaks(world: GatewayStack) -> PhoneCall:
    world.behave(answer={"kind": "pattern", "seconds": 0.2})
    call = await world.dial("silent")
    await call.hung_up()
    return call


def _told(session: SessionRecord) -> bool:
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    return any(one["type"] == "function_call_output" for one in items)


INCIDENTS: dict[Callable[[GatewayStack], Awaitable[PhoneCall]], tuple[str, str]] = {
    server_lost_in_mid_answer: ("network", "session_lost"),
    server_lost_and_replaced: ("caller", "remote_hangup"),
    double_barge_in: ("caller", "remote_hangup"),
    keys_in_the_greeting: ("caller", "remote_hangup"),
    crossed_byes: ("model", "agent_hangup"),
    transfer_refused: ("caller", "remote_hangup"),
    callee_busy: ("caller", "remote_hangup"),
    callee_hangs_up: ("callee", "bridge_ended"),
    interpreter_lost: ("caller", "remote_hangup"),
    budget_spent: ("gateway", "budget"),
    tool_that_never_answers: ("caller", "remote_hangup"),
    rtp_stops: ("network", "rtp_timeout"),
    session_handed_over: ("caller", "remote_hangup"),
    guardrail_cut: ("caller", "remote_hangup"),
    nobody_speaks: ("gateway", "idle"),
}


async def black_box_of(world: GatewayStack, call: PhoneCall) -> Path:
    record = await world.record(call)
    path = Path(world.records_folder, record["black_box"])

    def is_whole() -> bool:
        *_, last = ("", *written(path).splitlines(keepends=True))
        return '"record":{' in last and last.endswith("\n")

    await eventually(is_whole, "its last line")
    return path


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda one: one.__name__)
async def test_an_incident_is_replayed_as_it_went(
    world: GatewayStack, incident: Callable[[GatewayStack], Awaitable[PhoneCall]]
) -> None:
    call = await incident(world)
    path = await black_box_of(world, call)
    found = replay(read_lines(path))
    assert [list(one.lines()) for one in found.differences] == []
    ending = found.record.ending
    assert ending is not None
    assert (ending.by, ending.why) == INCIDENTS[incident]
    wire = read_black_box(path)
    assert wire.record.ending is not None
    assert (wire.record.ending.by, wire.record.ending.why) == INCIDENTS[incident]
    starts = [one.text.split(" ")[0] for one in wire.messages if one.leg == 0]
    assert starts[0] == "INVITE"
    assert "BYE" in starts
    second = [one.text.split("\n")[0].split(" sip:")[0] for one in wire.messages if one.leg == 1]
    busy = ["INVITE", "SIP/2.0 100 As asked", "SIP/2.0 486 As asked", "ACK"]
    # What a busy machine answers late is sent again.
    once = list(dict.fromkeys(second))
    if incident is callee_hangs_up:
        rang = ["SIP/2.0 180 As asked", "SIP/2.0 200 As asked"]
        assert once == [*busy[:2], *rang, "ACK", "BYE", "SIP/2.0 200 OK"]
    elif incident is interpreter_lost:
        assert second[0] == "INVITE"
        ended = second[second.index("BYE") :]
        assert list(dict.fromkeys(ended)) == ["BYE", "SIP/2.0 200 As asked"]
        events = path.read_text().count("inputs.InterpreterEvent")
        assert events > 20, "what both sessions sent"
    else:
        assert once == (busy if incident is callee_busy else [])
    joined = incident in (interpreter_lost, callee_hangs_up)
    assert sorted(wire.streams) == [
        (leg, way) for leg in range(1 + joined) for way in ("in", "out")
    ]
    assert min(one.packets for one in wire.streams.values()) > 0
    keep(incident.__name__, path)

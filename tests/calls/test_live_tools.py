# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions in calls on Live sessions: the voice delegates, a backend calls them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.call.tools.delegated_tasks import NOT_POSSIBLE
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.realtime.errors import ERROR_CODES
from tests import support
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import GatewayStack, eventually
from tests.support.http_service import Answer, HttpService, http_service
from tests.support.listening import noise, speech
from tests.support.official_types import check_live_client_event
from tests.support.referred import dial
from tests.support.sip_phone import PhoneCall

HERE = Path(support.__file__).parent
ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
fallback = [{{ action = "reconnect", timeout = 5 }}]
tools = ["*"]
[route.realtime]
url = "ws://127.0.0.1:{{port}}/v1/live/sessions"
api_key = "{{key}}"
model = "gpt-live-1.1"
[route.live]
instructions = "You are a hotel."
"""
BACKEND = """[route.live.delegation]
type = "responses"
acknowledgement_delay_ms = 60000
[route.live.delegation.responses]
model = "backend-1"
instructions = "Use the tools."
"""
MORE = """[route.escape]
key = "0"
to = ["porter"]
[[route.transfer]]
name = "porter"
to = "tel:+4930123456"
[route.set_language]
languages = { de = "German", en = "English" }
[route.collect_digits]
enabled = true
timeout = 5
[[route.approval]]
tool = "refund"
policy = "ask_caller"
prompt = "Shall I? Press 1 for yes, 2 for no."
"""
WORLD = {
    "realtime": "handover_before_expiry = 5",
    "more": f"""
[tools]
module = {json.dumps(str(HERE / "hotel_tools.py"))}
""",
    "routes": """
[[tool]]
name = "find_guest"
description = "Who is in a room."
url = "${env:TOOLS_URL}/guests/{arg.room}"
fields = { room = "integer" }
"""
    + ROUTE.format(name="hotel")
    + BACKEND
    + MORE
    + ROUTE.format(name="nobody")
    + ROUTE.format(name="voiceless")
    + 'audio.output.voice = "nobody"\n'
    + ROUTE.format(name="desk").replace("tools =", 'delegate = "look_up"\ntools ='),
}


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[HttpService]:
    """The operator's own service; its address is in the environment of the gateway."""
    with http_service() as made:
        os.environ["TOOLS_URL"] = made.url
        yield made


def asks(*tools: tuple[str, dict[str, Any]], then: str = "That is done.") -> dict[str, Any]:
    """A script: the voice delegates, and its backend calls these, then says something."""
    wanted = [{"name": name, "arguments": json.dumps(given)} for name, given in tools]
    rest = {"kind": "say", "text": then} if then else {"kind": "nothing"}
    return {
        "answers": [{"kind": "nothing", "tools": wanted}, rest, {"kind": "silent"}],
        "live": {"transcript_lag_ms": 700},
    }


def results(session: SessionRecord) -> list[str]:
    """What the backend was told of its calls."""
    items = [event.body["item"] for event in session.seen("response.item.create")]
    return [one["output"] for one in items if one["type"] == "function_call_output"]


def order(session: SessionRecord) -> list[str]:
    """Results and requests for the backend to go on, as they came."""
    kinds = ("response.item.create", "response.create")
    return [one.type for one in session.client_events if one.type in kinds]


async def used(
    world: GatewayStack, *tools: tuple[str, dict[str, Any]], then: str = "That is done."
) -> tuple[PhoneCall, SessionRecord]:
    """A call whose caller says something for which the backend calls these; and its session."""
    world.behave(**asks(*tools, then=then))
    call = await world.dial("hotel")
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    return call, session


def valid(session: SessionRecord) -> None:
    """Each client event is one of the official types, and the server refused none but a text that
    the end of the call left without its place."""
    told = [one.body["error"] for one in session.sent("error")]
    assert set(session.errors) <= {"context_injection_incomplete"}, told
    for event in session.client_events:
        check_live_client_event(event.body)


async def test_results_of_one_response_are_sent_together(
    world: GatewayStack, service: HttpService
) -> None:
    service.answers = [Answer(body='{"name": "Ann"}', seconds=0.3)]
    call, session = await used(
        world,
        ("room_price", {"nights": 3}),
        ("find_guest", {"room": 12}),
        ("room_price", {"nights": "many"}),
        ("set_language", {"language": "de"}),
        ("no_such_tool", {}),
    )
    await session.wait_until(lambda one: order(one)[-1:] == ["response.create"], WITHIN_S)
    assert order(session) == ["response.item.create"] * 5 + ["response.create"]
    told = results(session)
    assert {'{"euros":240}', '{"name":"Ann"}'} <= set(told)
    assert any("nights: 'many' is not of type 'integer'" in one for one in told)
    assert any("no such tool" in one for one in told)
    await eventually(lambda: len(speech(call.rtp.packets)) > 4000, "the result is spoken of")
    await world.gateway.wait("call.agent_transcript", call=call.call_id)
    await world.summary_at_end(call)
    record = await world.record(call)
    assert [one["name"] for one in record["tools"]][:2] == ["room_price", "find_guest"]
    whos = [one["who"] for one in record["transcript"]]
    assert whos.count("call") == whos.count("result") == 5
    assert record["cost"]["tokens"]
    valid(session)


async def test_a_transfer_that_fails_comes_back_and_one_that_is_answered_ends(
    world: GatewayStack,
) -> None:
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": "porter"})}
    asked = {"kind": "say", "text": "I connect you.", "tools": [tool]}
    world.behave(answers=[asked, {"kind": "say", "text": "No reply."}, asked])
    call = await dial(world, "hotel", 202)
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    assert await call.asked() == "tel:+4930123456"
    assert len(speech(call.rtp.packets)) > 4000, "the announcement is heard first"
    call.notify("486 Busy Here", last=True)
    await session.wait_until(lambda one: order(one)[-1:] == ["response.create"], WITHIN_S)
    assert "busy" in results(session)[0].lower()
    await session.wait_until(lambda one: one.sent_track.strip(b"\xff\x7f")[-800:] != b"", WITHIN_S)
    await eventually(lambda: call.rtp.packets != [], "it goes on")
    await world.gateway.wait("call.agent_transcript", call=call.call_id, count=2)
    call.rtp.say(noise(7, 0.6))
    await call.until(lambda _one: len(call.referred) == 2, what="a second REFER")
    call.notify("200 OK", last=True)
    await call.hung_up()
    summary = await world.summary(call)
    assert summary["ending"]["why"] == "transferred"
    valid(session)


async def test_a_goodbye_is_heard_before_the_backend_hangs_up(world: GatewayStack) -> None:
    call, session = await used(world, ("end_call", {}), then="Thank you, goodbye.")
    await call.hung_up()
    summary = await world.summary(call)
    assert summary["ending"]["why"] == "agent_hangup"
    assert order(session) == ["response.item.create", "response.create"]
    said = session.sent_track.strip(b"\xff\x7f")
    assert speech(call.rtp.packets)[-4000:].strip(b"\xff\x7f").endswith(said[-1600:])
    valid(session)


async def test_digits_and_approval_by_key(world: GatewayStack) -> None:
    call, session = await used(world, ("collect_digits", {"digits": 2}), ("refund", {"amount": 5}))
    await session.wait_until(
        lambda one: any("Press 1" in str(e.body) for e in one.seen("session.commentary.append")),
        WITHIN_S,
    )
    await world.gateway.wait("call.agent_speech_started", call=call.call_id)
    call.rtp.press("1")
    await world.gateway.wait("call.tool_done", call=call.call_id)
    call.rtp.press("42")
    await session.wait_until(lambda one: order(one)[-1:] == ["response.create"], WITHIN_S)
    told = results(session)
    assert "5 euros given back" in told
    assert any('"42"' in one for one in told)
    assert order(session) == ["response.item.create"] * 2 + ["response.create"]
    await world.summary_at_end(call)
    valid(session)


async def test_a_slow_function_has_a_filler_and_a_caller_who_is_tired_of_it_an_escape(
    world: GatewayStack,
) -> None:
    world.behave(**asks(("slow", {})))
    call = await dial(world, "hotel", 202)
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    await session.wait_until(
        lambda one: any("One moment" in str(e.body) for e in one.seen("session.commentary.append")),
        WITHIN_S,
    )
    call.rtp.press("0")
    assert await call.asked() == "tel:+4930123456"
    call.notify("200 OK", last=True)
    await call.hung_up()
    await world.summary(call)
    valid(session)


def delegates(*more: dict[str, Any]) -> dict[str, Any]:
    """A script: the voice hands a task over to us."""
    first = {"kind": "nothing", "delegate": True}
    return {
        "answers": [first, *more, {"kind": "silent"}],
        "live": {"transcript_lag_ms": 700},
    }


@pytest.mark.parametrize("route", ["desk", "nobody"])
async def test_a_task_that_is_handed_over_is_done_by_a_function(
    world: GatewayStack, route: str
) -> None:
    world.behave(**delegates())
    call = await world.dial(route)
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    await session.wait_until(lambda one: bool(one.seen("session.thinking.append")), WITHIN_S)
    task = session.sent("session.delegation.created")[0].body["delegation"]["id"]
    told = session.seen("session.thinking.append")[0].body
    assert told["delegation_id"] == task
    if route == "desk":
        assert told["content"].startswith("caller: ")
        await session.wait_until(lambda one: bool(one.seen("session.commentary.append")), WITHIN_S)
        said = session.seen("session.commentary.append")[0].body
        assert said["content"] == "You are booked for two nights."
        assert said["delegation_id"] == task
        await world.gateway.wait("call.agent_transcript", call=call.call_id)
    else:
        assert told["content"] == NOT_POSSIBLE
    await session.wait_until(lambda one: bool(one.sent("session.thinking.appended")), WITHIN_S)
    await world.summary_at_end(call)
    valid(session)


@pytest.mark.parametrize("end", ["expired", "content", "bare"])
async def test_a_session_that_ends_is_replaced_by_one_that_knows(
    world: GatewayStack, end: str
) -> None:
    """Transcript and results of functions go along; the result of one that runs comes after."""
    rest = {"kind": "say", "text": "That is done."}
    slow = {"kind": "nothing", "tools": [{"name": "slow", "arguments": "{}"}]}
    world.behave(
        **{
            **asks(("room_price", {"nights": 2})),
            "answers": [asks(("room_price", {"nights": 2}))["answers"][0], rest, slow, rest],
        }
    )
    call = await world.dial("hotel")
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    await world.gateway.wait("call.agent_transcript", call=call.call_id)
    call.rtp.say(noise(7, 0.6))
    await world.gateway.wait("call.tool", call=call.call_id, name="slow")
    world.behave(answers=[rest])
    live = world.emulator.live[session.id]
    if end == "bare":
        live.close(1005)
    else:
        live.session.end(end)
    replaced = await world.gateway.wait("call.session_replaced", call=call.call_id)
    assert replaced
    other = world.emulator.sessions[-1]
    told = [
        (one["role"], one["content"][0]["text"])
        for one in other.client_events[0].body["session"]["input"]
    ]
    assert ("developer", 'Called room_price with {"nights": 2}') in told
    assert ("developer", 'The result: {"euros":160}') in told
    assert ("assistant", "That is done.") in told
    await other.wait_until(
        lambda one: (
            "found" in str(one.seen("response.item.create")) and bool(one.seen("response.create"))
        ),
        WITHIN_S,
    )
    await other.wait_until(
        lambda one: (
            "That is done." in str(one.seen("session.commentary.append"))
            and len(one.sent("session.commentary.appended"))
            == len(one.seen("session.commentary.append"))
        ),
        WITHIN_S,
    )
    await eventually(lambda: len(other.sent_track.strip(b"\xff\x7f")) > 0, "it speaks")
    await world.summary_at_end(call)
    record = await world.record(call)
    (lost,) = record["failovers"]
    assert lost["outcome"] == "recovered"
    assert {"expired": "1001 expired", "content": "1008 content", "bare": "1005"}[end] in lost[
        "detail"
    ]
    valid(other)


async def test_a_session_is_handed_over_before_it_expires(world: GatewayStack) -> None:
    """The next one is told at its start what was said, and what came since when it takes over."""
    world.behave(
        expires_s=12,  # enough for the first turn, on a busy machine too
        answers=[{"kind": "say", "text": "Two nights."}, {"kind": "silent"}],
        live={"transcript_lag_ms": 300},
    )
    world.then(answers=[{"kind": "say", "text": "Three nights."}])
    call = await world.dial("hotel")
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    await world.gateway.wait("call.agent_transcript", call=call.call_id)
    await world.gateway.wait("call.handed_over", call=call.call_id)
    other = world.emulator.sessions[-1]
    assert other is not session
    told = str(other.client_events[0].body["session"]["input"])
    since = "".join(one.body["content"] for one in other.seen("session.thinking.append"))
    assert "Two nights." in told + since
    call.rtp.say(noise(7, 0.6))
    await other.wait_until(lambda one: bool(one.sent("session.output_transcript.delta")), WITHIN_S)
    await world.summary_at_end(call)
    record = await world.record(call)
    assert (record["handovers"], record["failovers"]) == (1, [])
    valid(other)


async def test_a_response_of_the_backend_that_fails_is_tried_again(world: GatewayStack) -> None:
    tool = {"name": "room_price", "arguments": '{"nights": 1}'}
    world.behave(
        answers=[
            {"kind": "nothing", "tools": [tool], "outcome": "failed"},
            {"kind": "say", "text": "Now it is done."},
            {"kind": "silent"},
        ],
        live={"transcript_lag_ms": 100},
    )
    call = await world.dial("hotel")
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    said = await world.gateway.wait("call.agent_transcript", call=call.call_id)
    assert said["text"] == "Now it is done."
    assert order(session) == ["response.create"], "calls of a failed response are not answered"
    await world.summary_at_end(call)
    valid(session)


SURVIVED = [code for code, (kind, _, ends) in ERROR_CODES.items() if not ends]


async def test_errors_that_end_nothing_are_survived(world: GatewayStack) -> None:
    codes = [*SURVIVED, "a_code_of_tomorrow"]
    world.behave(
        # Each turn: a caller who stands still while they speak says it in two.
        answers=[{"kind": "say", "text": "Here I am."}],
        live={
            "errors": [
                {"after_s": 0.1, "code": code, "type": "invalid_request_error"} for code in codes
            ]
        },
    )
    call = await world.dial("hotel")
    session = await world.session_of(call)
    await session.wait_until(lambda one: len(one.errors) == len(codes), WITHIN_S)
    call.rtp.say(noise(6, 0.6))
    await eventually(lambda: len(speech(call.rtp.packets)) > 3000, "the answer is heard")
    await world.gateway.wait("call.error", count=len(codes), call=call.call_id)
    lines = world.gateway.all("call.error", call=call.call_id)
    assert [one["code"] for one in lines] == codes
    assert lines[-1]["kind"] == "unknown"
    await world.summary_at_end(call)
    assert not (await world.record(call))["failovers"]


async def test_a_setting_that_is_refused_at_the_start_is_left_out(world: GatewayStack) -> None:
    call = await world.dial("voiceless")
    session = await world.session_of(call)
    first, second = (one.body["session"] for one in session.seen("session.start"))
    assert first["audio"]["output"]["voice"] == "nobody"
    assert "voice" not in second["audio"].get("output", {})
    assert second["audio"]["format"] == first["audio"]["format"]
    await world.summary_at_end(call)
    record = await world.record(call)
    assert [one["field"] for one in record["settings_refused"]] == ["audio.output.voice"]

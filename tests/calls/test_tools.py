# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of the model in real calls: in Python, over HTTP, of an MCP server; approval."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.devtools.emulator.session_log import SessionRecord
from tests import support
from tests.support import figures
from tests.support.harness import GatewayStack, contents, eventually, wishes
from tests.support.http_service import Answer, HttpService, http_service
from tests.support.listening import is_silence
from tests.support.referred import dial
from tests.support.sip_phone import PhoneCall

HERE = Path(support.__file__).parent
SECRET = "tool-secret-77aa"
WORLD = {
    "more": f"""
[tools]
module = {json.dumps(str(HERE / "hotel_tools.py"))}
[[tools.mcp]]
name = "crm"
command = [{json.dumps(sys.executable)}, {json.dumps(str(HERE / "mcp_double.py"))}]
connect_timeout = 60.0
env = {{ CRM_KEY = "${{env:TOOLS_SECRET}}" }}
[[tools.mcp]]
name = "docs"
client = "provider"
url = "https://docs.example/mcp"
authorization = "${{env:TOOLS_SECRET}}"
require_approval = "always"
""",
    "routes": """
[[tool]]
name = "find_guest"
description = "Who is in a room."
url = "${env:TOOLS_URL}/guests/{arg.room}?caller={from}"
headers = { Authorization = "Bearer ${env:TOOLS_SECRET}" }
fields = { room = "integer", full = { type = "boolean", optional = true } }

[[route]]
name = "hotel"
to = "^hotel$"
tools = ["*"]
mcp = ["crm", "docs"]
greeting.say = "Hello."
records.events = true
session.instructions = "You are a hotel."
session.audio.input.transcription.model = "gpt-transcribe"
set_language.languages = { de = "German", en = "English" }
collect_digits = { enabled = true, timeout = 5, private = true }
[[route.transfer]]
name = "porter"
to = "tel:+4930123456"
[[route.approval]]
tool = "refund"
when = { amount = "^[0-9]{3,}$" }
policy = "ask_http"
url = "${env:TOOLS_URL}/approve"
[[route.approval]]
tool = "refund"
policy = "ask_caller"
prompt = "Shall I give back {arg.amount} euros? Press 1 for yes, 2 for no."
[[route.approval]]
tool = "docs_*"
policy = "allow"
""",
}


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[HttpService]:
    """The operator's own service; its address is in the environment of the gateway."""
    with http_service() as made:
        os.environ["TOOLS_URL"], os.environ["TOOLS_SECRET"] = made.url, SECRET
        yield made


def outputs_of(session: SessionRecord) -> list[str]:
    """What the model was told of its calls."""
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    return [one["output"] for one in items if one["type"] == "function_call_output"]


def order_of(session: SessionRecord) -> list[str]:
    """Outputs and requests for a response, as they came."""
    wanted = ("conversation.item.create", "response.create")
    bodies = [event.body for event in session.client_events if event.type in wanted]
    # The first one asks for the greeting.
    return [body.get("item", {}).get("type", body["type"]) for body in bodies][1:]


def calls(*tools: tuple[str, dict[str, Any]], then: int = 1) -> dict[str, Any]:
    """A script: the model calls these and then says something short, so many times."""
    wanted = [{"name": name, "arguments": json.dumps(given)} for name, given in tools]
    first = {"kind": "nothing", "tools": wanted}
    rest = [{"kind": "pattern", "seconds": 0.4, "seed": 5 + n, "burst": True} for n in range(then)]
    return {"vad": "off", "answers": [first, *rest, {"kind": "silent"}]}


async def used(
    world: GatewayStack, *tools: tuple[str, dict[str, Any]], then: int = 1
) -> tuple[PhoneCall, SessionRecord]:
    """A call in which the model uses tools instead of a greeting; the call and its session."""
    world.behave(**calls(*tools, then=then))
    call = await world.dial("hotel")
    return call, await world.session_of(call)


async def record_at_end(world: GatewayStack, call: PhoneCall) -> dict[str, Any]:
    """Hang up; returns the record."""
    await world.summary_at_end(call)
    return await world.record(call)


async def test_results_of_one_response_together(world: GatewayStack, service: HttpService) -> None:
    service.answers = [Answer(body='{"name": "Ann"}', seconds=0.3)]
    call, session = await used(
        world,
        ("room_price", {"nights": 3}),
        ("find_guest", {"room": 12, "full": True}),
        ("room_price", {"nights": "many"}),
        ("crm_find_customer", {"number": "+49"}),
    )
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    told = outputs_of(session)
    assert {'{"euros":240}', '{"name":"Ann"}', "Ann Example, +49, False"} <= set(told)
    assert any("nights: 'many' is not of type 'integer'" in one for one in told)
    assert order_of(session) == ["function_call_output"] * 4 + ["response.create"]
    asked = service.asked[-1]
    assert asked.path.startswith("/guests/12?caller=")
    assert asked.json == {"full": True}
    assert asked.headers["authorization"] == f"Bearer {SECRET}"
    asked_at = session.sent("response.done")[0].at
    told_at = [event.at for event in session.seen("conversation.item.create")]
    figures.show(
        "four tools at once, one of 300 ms: answered after (ms)",
        f"{(told_at[-1] - asked_at) * 1000:.0f}",
    )
    record = await record_at_end(world, call)
    assert sorted((one["name"], one["outcome"]) for one in record["tools"]) == [
        ("crm_find_customer", "done"),
        ("find_guest", "done"),
        ("room_price", "done"),
        ("room_price", "refused"),
    ]


async def test_a_tool_that_fails_ends_no_call(world: GatewayStack) -> None:
    call, session = await used(world, ("broken", {}))
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    assert outputs_of(session) == ['{"error": "the function failed (RuntimeError)"}']
    world.gateway.tolerated.add("tool.failed")
    line = await world.gateway.wait("tool.failed", call=call.call_id)
    assert "hotel_tools.py" in json.dumps(line["exception"])
    record = await record_at_end(world, call)
    assert [(one["name"], one["outcome"]) for one in record["tools"]] == [("broken", "failed")]


async def test_deadlines_services_that_are_away_and_servers_that_die(
    world: GatewayStack, service: HttpService
) -> None:
    service.answers = [Answer(503, "closed"), Answer(body="{}")]
    call, session = await used(
        world, ("never", {}), ("find_guest", {"room": 1}), ("crm_die", {}), ("hold", {})
    )
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    assert sorted(outputs_of(session)) == [
        '{"error": "no result within 0.3 s"}',
        '{"error": "the connection to the server of this tool is lost"}',
        '{"error": "the service answered 503: closed"}',
        '{"error": "this gateway has no such tool"}',
    ]
    await world.summary_at_end(call)
    # The server of the tool is there again for the next call.
    await world.gateway.wait("mcp.down", server="crm")
    await eventually(lambda: len(world.gateway.all("mcp.up")) == 2, "the MCP server again")
    call, session = await used(world, ("crm_find_customer", {"number": "7"}))
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert outputs_of(session) == ["Ann Example, 7, False"]
    await world.summary_at_end(call)


async def test_a_caller_who_hangs_up_while_a_tool_runs(world: GatewayStack) -> None:
    call, session = await used(world, ("slow", {}))
    await world.gateway.wait("call.tool_slow", call=call.call_id)
    record = await record_at_end(world, call)
    assert [(one["name"], one["outcome"]) for one in record["tools"]] == [("slow", "")]
    await world.gateway.wait("tool.ran", call=call.call_id, outcome="done")
    assert outputs_of(session) == []


async def test_a_session_that_is_lost_while_a_tool_runs(world: GatewayStack) -> None:
    call, session = await used(world, ("set_language", {"language": "de"}), ("slow_with_sound", {}))
    await world.gateway.wait("call.tool_slow", call=call.call_id)
    said = {"kind": "pattern", "seconds": 0.4, "seed": 9, "burst": True}  # without a pause in it
    world.behave(vad="off", answers=[said])
    world.emulator.live[session.id].close(1011)
    await world.gateway.wait("call.session_replaced", call=call.call_id)
    second = world.emulator.sessions[-1]
    await second.wait_until(lambda s: s.sent("response.done") != [], 20)
    # It knows the calls and both results, and speaks the language that was chosen.
    kinds = [event.body["item"]["type"] for event in second.seen("conversation.item.create")]
    assert kinds == ["function_call"] * 2 + ["function_call_output"] * 2
    assert outputs_of(second)[1] == "found"
    now = second.sent("session.updated")[-1].body["session"]
    assert "speak German" in now["instructions"]
    whole = bytes(next(iter(second.sent_items.values())))
    await call.rtp.until(lambda: whole in call.rtp.heard)
    record = await record_at_end(world, call)
    assert record["failovers"][0]["outcome"] == "recovered"
    assert [one["outcome"] for one in record["tools"]] == ["done", "done"]


async def test_words_while_a_tool_takes_long(world: GatewayStack) -> None:
    call, session = await used(world, ("slow", {}), then=2)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 3, 20)
    assert wishes(session)[1:] == [
        {"instructions": "Say exactly: One moment, please.", "tools": []},
        None,
    ]
    assert outputs_of(session) == ["found"]
    # Both were heard: the words before the result, the answer after it.
    items = [bytes(item) for item in session.sent_items.values()]
    await call.rtp.until(lambda: all(item in call.rtp.heard for item in items))
    await world.summary_at_end(call)


async def test_a_sound_while_a_tool_takes_long(world: GatewayStack) -> None:
    call, session = await used(world, ("slow_with_sound", {}))
    await call.rtp.until(lambda: sum(not is_silence(one) for one in call.rtp.packets) > 20)
    assert outputs_of(session) == [], "it is heard while the tool runs"
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    (item,) = session.sent_items.values()
    # Its last part is heard as it was sent: the sound is over by then.
    await call.rtp.until(lambda: bytes(item)[1600:] in call.rtp.heard)
    await world.summary_at_end(call)


async def test_a_tool_knows_its_call_and_acts_in_it(world: GatewayStack) -> None:
    call, session = await used(world, ("who", {}), ("goodbye", {}), then=1)
    bye = await call.hung_up()
    assert 'text="Ended by the application"' in bye.headers["reason"]
    items = [event.body["item"] for event in session.seen("conversation.item.create")]
    told = [one["content"][0]["text"] for one in items if one.get("role") == "system"]
    assert told == ["They called hotel by route hotel."]
    assert any(one.startswith("sip:") for one in outputs_of(session))
    words = "Say exactly: This number is closed. Goodbye."
    assert {"instructions": words, "tools": []} in wishes(session)
    summary = await world.summary(call)
    assert (summary["ending"]["by"], summary["ending"]["why"]) == ("operator", "application")


@pytest.mark.parametrize("answered", [True, False])
async def test_a_tool_hands_the_caller_on(world: GatewayStack, answered: bool) -> None:
    world.behave(**calls(("porter", {})))
    call = await dial(world, "hotel")
    session = await world.session_of(call)
    assert await call.asked() == "tel:+4930123456"
    await session.wait_until(lambda s: outputs_of(s) == ["on the way"], 20)
    call.notify("200 OK" if answered else "486 Busy Here", last=True)
    await call.hung_up()
    record = await world.record(call)
    assert record["ending"]["why"] == ("transferred" if answered else "application")
    last = {"instructions": "Say exactly: Nobody is there. Goodbye.", "tools": []}
    assert (last in wishes(session)) is not answered


@pytest.mark.parametrize(("key", "told"), [("1", "20 euros given back"), ("2", "not done")])
async def test_the_caller_approves(world: GatewayStack, key: str, told: str) -> None:
    call, session = await used(world, ("refund", {"amount": 20}), then=2)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    question = session.seen("response.create")[1].body["response"]["instructions"]
    assert question == "Say exactly: Shall I give back 20 euros? Press 1 for yes, 2 for no."
    assert outputs_of(session) == []
    await world.gateway.wait("call.agent_speech_started", call=call.call_id)
    call.rtp.press(key)
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert told in outputs_of(session)[0]
    record = await record_at_end(world, call)
    assert record["tools"][0]["approval"] == {"1": "caller", "2": "refused: caller"}[key]
    assert record["digits"] == [], "keys that answer are no message"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(body='{"approve": true}'), "250 euros given back"),
        (Answer(body='{"approve": false, "reason": "ask the manager"}'), "ask the manager"),
    ],
)
async def test_the_operator_approves(
    world: GatewayStack, service: HttpService, answer: Answer, told: str
) -> None:
    service.answers = [answer]
    call, session = await used(world, ("refund", {"amount": 250}))
    await session.wait_until(lambda s: outputs_of(s) != [], 20)
    assert told in outputs_of(session)[0]
    asked = service.asked[-1]
    assert asked.path == "/approve"
    assert (asked.json["tool"], asked.json["arguments"]) == ("refund", {"amount": 250})
    assert [asked.json["call"]] == world.gateway.ids_of(call.call_id)
    await world.summary_at_end(call)


async def test_digits_that_the_model_asked_for(world: GatewayStack) -> None:
    # Eight, as four are in the ids of a call by chance.
    call, session = await used(world, ("collect_digits", {"digits": 8}))
    for digit in "73914608":
        call.rtp.press(digit)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    assert json.loads(outputs_of(session)[0]) == {"digits": "73914608", "ended_by": "full"}
    assert order_of(session) == ["function_call_output", "response.create"]
    record = await record_at_end(world, call)
    assert record["digits"] == []
    assert '"********"' in json.dumps(record["timeline"])
    assert "73914608" not in json.dumps([record["timeline"], record["transcript"]])
    log = world.records_folder / record["event_log"]["file"]
    await eventually(
        lambda: log.exists() and '"over":true' in log.read_text(), "the end of the event log"
    )
    assert "****" in log.read_text()
    assert "73914608" not in log.read_text()


async def test_another_language(world: GatewayStack) -> None:
    call, session = await used(world, ("set_language", {"language": "de"}))
    await session.wait_until(lambda s: len(s.sent("session.updated")) == 2, 20)
    now = session.sent("session.updated")[1].body["session"]
    assert now["instructions"].startswith("You are a hotel.\n\nFrom now on, speak German")
    assert now["audio"]["input"]["transcription"]["language"] == "de"
    assert now["audio"]["input"]["transcription"]["model"] == "gpt-transcribe"
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    await world.summary_at_end(call)


async def test_an_mcp_server_that_the_realtime_server_calls(world: GatewayStack) -> None:
    words = {"kind": "pattern", "seconds": 0.3, "burst": True}
    answers = [words, {**words, "seed": 2}]
    world.behave(vad="off", answers=[*answers, {"kind": "silent"}])
    call = await world.dial("hotel")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    server = world.emulator.live[session.id]
    listed = {"id": "l1", "type": "mcp_list_tools", "server_label": "docs", "tools": [{}, {}]}
    server.emit({"type": "conversation.item.done", "previous_item_id": None, "item": listed})
    request = {"id": "q1", "type": "mcp_approval_request", "server_label": "docs", "name": "find"}
    request["arguments"] = '{"words": "towels"}'
    response: dict[str, Any] = {"id": "resp_mcp", "object": "realtime.response", "metadata": None}
    in_progress = {**response, "status": "in_progress", "output": []}
    server.emit({"type": "response.created", "response": in_progress})
    completed = {**response, "status": "completed", "output": [request]}
    server.emit({"type": "response.done", "response": completed})
    await session.wait_until(lambda s: s.seen("conversation.item.create") != [], 20)
    answer = session.seen("conversation.item.create")[0].body["item"]
    assert answer == {
        "id": "gw_approval_1",
        "type": "mcp_approval_response",
        "approval_request_id": "q1",
        "approve": True,
    }
    server.emit({"type": "response.mcp_call.in_progress", "output_index": 0, "item_id": "m1"})
    found = {**request, "id": "m1", "type": "mcp_call", "output": "in the cupboard"}
    found["approval_request_id"] = "q1"
    server.emit({"type": "conversation.item.done", "previous_item_id": None, "item": found})
    assert len(session.seen("response.create")) == 1
    server.emit({"type": "response.mcp_call.completed", "output_index": 0, "item_id": "m1"})
    # The server says nothing by itself, so it is asked to, and heard.
    await session.wait_until(lambda s: len(s.sent("response.done")) == 3, 20)
    said = bytes(list(session.sent_items.values())[1])
    await call.rtp.until(lambda: said in call.rtp.heard)
    record = await record_at_end(world, call)
    uses = [(one["name"], one["outcome"], one["approval"]) for one in record["tools"]]
    assert uses == [("docs_find", "done", "rule")]
    events = [entry["event"] for entry in record["timeline"]]
    assert {"mcp_listed", "approval", "mcp_call"} <= set(events)


async def test_what_the_session_is_told_and_no_log(world: GatewayStack) -> None:
    call, session = await used(world)
    (update,) = session.seen("session.update")
    tools = {one.get("name") or one["server_label"]: one for one in update.body["session"]["tools"]}
    assert {"end_call", "room_price", "find_guest", "crm_find_customer", "docs"} <= set(tools)
    assert tools["docs"]["authorization"] == SECRET
    assert tools["docs"]["require_approval"] == "always"
    assert tools["find_guest"]["parameters"]["required"] == ["room"]
    await world.summary_at_end(call)
    await world.record(call)
    assert SECRET not in json.dumps(world.gateway.lines)
    logs = [text.decode() for text in contents(world.records_folder, "*.json*")]
    assert any('"server_label": "docs"' in text or '"server_label":"docs"' in text for text in logs)
    assert not any(SECRET in text for text in logs), "nor in the events of a session"

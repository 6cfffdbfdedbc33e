# SPDX-License-Identifier: GPL-2.0-or-later
"""What a route says of its session arrives at the server, or is named; the call goes on."""

from __future__ import annotations

import json

from tests.support.harness import GatewayStack, wishes

WORLD = {
    "routes": """
[[route]]
name = "tomorrow"
to = "^tomorrow$"
[route.greeting]
say = "Hello."
[route.session]
instructions = "Be short."
mood = "sunny"
audio.output.voice = "ash"
audio.input.turn_detection = { type = "server_vad", patience_ms = 7 }

[[route]]
name = "whole"
to = "^whole$"
timezone = "Europe/Berlin"
[route.session]
instructions = "{route} on {weekday}, {date}, {time}, in the {part_of_day}."
output_modalities = ["audio"]
tool_choice = { type = "function", name = "lookup" }
parallel_tool_calls = true
max_output_tokens = 900
reasoning.effort = "low"
include = ["item.input_audio_transcription.logprobs"]
[route.session.truncation]
type = "retention_ratio"
retention_ratio = 0.8
token_limits = { post_instructions = 8000 }
[route.session.prompt]
id = "pmpt_1"
version = "3"
variables = { city = "Bonn", who = "{to}" }
[route.session.tracing]
workflow_name = "desk"
group_id = "g"
metadata = { called = "{to}" }
[route.session.audio.output]
voice = { id = "voice_own" }
speed = 1.1
[route.session.audio.input]
noise_reduction = { type = "far_field", strength = 0.5 }
[route.session.audio.input.transcription]
model = "gpt-live-transcribe"
language = "de"
languages = ["de", "en"]
keywords = ["Bonn"]
prompt = "A desk."
[route.session.audio.input.turn_detection]
type = "server_vad"
threshold = 0.6
prefix_padding_ms = 200
silence_duration_ms = 400
idle_timeout_ms = 90000
create_response = true
interrupt_response = false
[[route.session.tools]]
type = "function"
name = "lookup"
description = "Looks up {to}."
parameters = { type = "object" }
[[route.session.tools]]
type = "mcp"
server_label = "crm"
server_url = "https://crm.example/mcp"
allowed_tools = ["find"]
require_approval = "never"

[[route]]
name = "off"
to = "^off$"
[route.session]
prompt = false
tracing = false
audio.input.turn_detection = false
audio.input.noise_reduction = false
audio.input.transcription = false

[[route]]
name = "tongues"
to = "^tongues$"
set_language.languages = { de = "German" }
[route.greeting]
say = "Hello."
[route.metadata]
line = "tongues"
[route.session]
instructions = "Be short."
audio.input.transcription = { model = "whisper-1", accent = "bavarian" }
"""
}


async def test_settings_that_the_server_refuses_cost_no_call(world: GatewayStack) -> None:
    """Two fields that a strict server does not know: named, and all else is in force."""
    call = await world.dial("tomorrow")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    summary = await world.summary_at_end(call)
    assert list(session.errors) == ["unknown_parameter"] * 2
    *_, update = session.seen("session.update")
    asked = update.body["session"]
    assert "mood" not in asked
    assert "patience_ms" not in asked["audio"]["input"]["turn_detection"]
    assert asked["instructions"] == "Be short."
    assert asked["audio"]["output"]["voice"] == "ash"
    named = {"mood", "audio.input.turn_detection.patience_ms"}
    assert {one["field"] for one in summary["settings_refused"]} == named
    lines = world.gateway.all("session.setting_rejected", call=call.call_id)
    assert {line["field"] for line in lines} == named


async def test_an_update_during_the_call_goes_on_without_what_is_refused(
    world: GatewayStack,
) -> None:
    """The model changes the language; of what that sets, one field is refused, the rest arrives."""
    tool = {"name": "set_language", "arguments": json.dumps({"language": "de"})}
    pattern = {"kind": "pattern", "seconds": 0.4}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, pattern])
    call = await world.dial("tongues")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("session.updated")) == 2, 20)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    summary = await world.summary_at_end(call)
    now = session.sent("session.updated")[1].body["session"]
    assert "German" in now["instructions"]
    assert now["audio"]["input"]["transcription"]["language"] == "de"
    (refused,) = summary["settings_refused"]
    assert refused["field"] == "audio.input.transcription.accent"
    lines = world.gateway.all("session.setting_rejected", call=call.call_id)
    assert len(lines) == 2


async def test_a_greeting_is_heard_although_a_field_of_it_is_refused(world: GatewayStack) -> None:
    world.behave(
        vad="off",
        answer={"kind": "pattern", "seconds": 0.4},
        refuse={
            "step": "response.create",
            "code": "unknown_parameter",
            "message": "Unknown parameter: 'response.metadata'.",
            "param": "response.metadata",
            "times": 1,
        },
    )
    call = await world.dial("tongues")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    await world.summary_at_end(call)
    first, second = wishes(session)
    assert first is not None
    assert first["metadata"] == {"line": "tongues"}
    assert second == {"instructions": "Say exactly: Hello."}
    assert call.rtp.packets


async def test_the_whole_session_object_is_in_force(world: GatewayStack) -> None:
    """Each setting of the protocol, as the route has it, at a server that takes no other."""
    call = await world.dial("whole")
    session = await world.session_of(call)
    await world.summary_at_end(call)
    assert not session.errors
    (updated,) = session.sent("session.updated")
    now = updated.body["session"]
    route, day, date, *_ = now["instructions"].split()
    assert (route, day) == ("whole", "on")
    assert date.endswith("day,")
    assert now["output_modalities"] == ["audio"]
    assert now["tool_choice"] == {"type": "function", "name": "lookup"}
    assert now["parallel_tool_calls"] is True
    assert now["max_output_tokens"] == 900
    assert now["reasoning"] == {"effort": "low"}
    assert now["include"] == ["item.input_audio_transcription.logprobs"]
    assert now["truncation"] == {
        "type": "retention_ratio",
        "retention_ratio": 0.8,
        "token_limits": {"post_instructions": 8000},
    }
    variables = {"city": "Bonn", "who": "whole"}
    assert now["prompt"] == {"id": "pmpt_1", "version": "3", "variables": variables}
    assert now["tracing"] == {
        "workflow_name": "desk",
        "group_id": "g",
        "metadata": {"called": "whole"},
    }
    speaks, hears = now["audio"]["output"], now["audio"]["input"]
    assert (speaks["voice"], speaks["speed"]) == ({"id": "voice_own"}, 1.1)
    assert hears["noise_reduction"] == {"type": "far_field", "strength": 0.5}
    assert hears["turn_detection"] == {
        "type": "server_vad",
        "threshold": 0.6,
        "prefix_padding_ms": 200,
        "silence_duration_ms": 400,
        "idle_timeout_ms": 90000,
        "create_response": True,
        "interrupt_response": False,
    }
    asked = {"model": "gpt-live-transcribe", "language": "de", "languages": ["de", "en"]}
    assert {**asked, "keywords": ["Bonn"], "prompt": "A desk."}.items() <= hears[
        "transcription"
    ].items()
    assert [tool["type"] for tool in now["tools"]] == ["function", "mcp", "function"]
    assert now["tools"][0]["description"] == "Looks up whole."


async def test_what_a_route_turns_off_is_off(world: GatewayStack) -> None:
    call = await world.dial("off")
    session = await world.session_of(call)
    await world.summary_at_end(call)
    assert not session.errors
    (update,) = session.seen("session.update")
    asked = update.body["session"]
    assert asked["prompt"] is asked["tracing"] is None
    hears = asked["audio"]["input"]
    assert hears["turn_detection"] is hears["noise_reduction"] is hears["transcription"] is None

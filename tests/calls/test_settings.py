"""What a route says of its session arrives at the server, or is named; the call goes on."""

from __future__ import annotations

import json

from harness import World

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


async def test_settings_that_the_server_refuses_cost_no_call(world: World) -> None:
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
    lines = world.gateway.all("session.setting_refused", call=call.call_id)
    assert {line["field"] for line in lines} == named


async def test_an_update_during_the_call_goes_on_without_what_is_refused(world: World) -> None:
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
    refused = ["audio.input.transcription.accent"] * 2
    assert [one["field"] for one in summary["settings_refused"]] == refused


async def test_a_greeting_is_heard_although_a_field_of_it_is_refused(world: World) -> None:
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
    first, second = [one.body["response"] for one in session.seen("response.create")]
    assert first["metadata"] == {"line": "tongues"}
    assert second == {"instructions": "Say exactly: Hello."}
    assert call.rtp.packets

"""What a route says of its session arrives at the server, or is named; the call goes on."""

from __future__ import annotations

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

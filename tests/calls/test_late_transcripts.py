# SPDX-License-Identifier: GPL-2.0-or-later
"""Transcriptions are not part of the answer: they come late, in parts, and out of order."""

from __future__ import annotations

from tests.support.harness import GatewayStack

WORLD = {
    "routes": """
[[route]]
name = "written"
to = "^written$"
[route.session.audio.input.transcription]
model = "gpt-4o-transcribe-diarize"
[route.greeting]
say = "Hello."
"""
}


async def test_the_transcript_is_in_the_order_of_the_call(world: GatewayStack) -> None:
    """What the caller said first is written first, though its words came last."""
    world.behave(
        vad="off",
        answers=[{"kind": "say", "text": text} for text in ("Hello.", "One.", "Two.")],
        transcripts=["My first words.", "My second words."],
        transcription_delays_ms=[4000],  # a busy machine has the second turn by then
        transcription_segments=True,
    )
    call = await world.dial("written")
    session = await world.session_of(call)
    for turn in (1, 2):
        await session.wait_until(lambda s, n=turn: len(s.sent("response.done")) == n, 20)  # type: ignore[misc]
        world.emulator.live[session.id].session.pretend_speech(100)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 3, 20)
    lines = await world.gateway.wait("call.caller_transcript", call=call.call_id, count=2)
    assert lines["text"] == "My first words.", "the second words came first"
    await world.summary_at_end(call)
    record = await world.record(call)
    said = [(line["who"], line["text"]) for line in record["transcript"]]
    assert [text for by, text in said if by == "caller"] == ["My first words.", "My second words."]
    texts = [text for _, text in said]
    assert texts.index("My first words.") < texts.index("One.") < texts.index("My second words.")
    assert not world.gateway.all("session.unknown_event")

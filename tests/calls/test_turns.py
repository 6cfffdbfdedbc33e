# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn-taking in real calls: rules of interruption, and a caller who says nothing (idle)."""

from __future__ import annotations

from typing import cast

import pytest

from gateway.devtools.emulator.session import Session
from gateway.devtools.emulator.session_log import SessionRecord
from tests.support.harness import GatewayStack
from tests.support.listening import Spoken, assert_continuous, is_silence
from tests.support.sip_phone import PhoneCall

ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
[route.greeting]
say = "Hello."
[route.session.audio.input.turn_detection]
type = "server_vad"
prefix_padding_ms = 0
silence_duration_ms = 0
[route.session.audio.input.transcription]
model = "whisper-1"
[route.interruptions]
{rules}
"""

PATIENT = "\nforce_interrupt_ms = 60000\ntranscript_timeout = 60"
"""What decides is the end of the speech, not how long a busy machine takes for it."""

WORLD = {
    "routes": "".join(
        (
            ROUTE.format(name="cough", rules='mode = "adaptive"\nmin_speech_ms = 60000' + PATIENT),
            ROUTE.format(name="pause", rules='mode = "adaptive"\nmin_speech_ms = 1' + PATIENT),
            ROUTE.format(name="never", rules='mode = "disabled"'),
            ROUTE.format(name="notice", rules="uninterruptible_greeting = true"),
            """
[[route]]
name = "idle"
to = "^idle$"
[route.greeting]
say = "Hello."
[route.idle]
timeout = 0.6
prompt = "Are you there?"
max_prompts = 1
goodbye = "Bye then."
""",
        )
    )
}


def answers(*seconds: float) -> list[dict[str, object]]:
    """Answers of known bytes."""
    return [{"kind": "pattern", "seconds": s, "seed": n} for n, s in enumerate(seconds)]


async def heard(call: PhoneCall, session: SessionRecord, ms: int) -> None:
    """Wait until so much of the agent's first answer has been heard."""
    await call.rtp.until(
        lambda: any(
            Spoken(bytes(audio)).heard_ms(call.rtp.packets) >= ms
            for audio in list(session.sent_items.values())[:1]
        )
    )


async def speak_into_the_answer(
    world: GatewayStack, call: PhoneCall, session: SessionRecord
) -> None:
    """Speak once half a second of it was heard, until the agent has been silent for 0.2 s."""
    await heard(call, session, 500)
    server = cast(Session, world.emulator.live[session.id].session)
    server.pretend_speech(60_000)
    await call.rtp.until(lambda: all(is_silence(one) for one in call.rtp.packets[-10:]))
    server.end_speech()


@pytest.mark.parametrize(("route", "text"), [("cough", "Ahem."), ("pause", "Mm-hm.")])
async def test_the_agent_goes_on_where_it_was(world: GatewayStack, route: str, text: str) -> None:
    """It is silent while the caller is heard, and not a frame of its answer is lost."""
    world.behave(vad="off", answers=answers(4), transcripts=[text])
    call = await world.dial(route)
    session = await world.session_of(call)
    await speak_into_the_answer(world, call, session)
    await session.wait_until(lambda s: s.deletions != [], 20)
    (item,) = session.sent_items
    spoken = Spoken(bytes(session.sent_items[item]))
    await call.rtp.until(lambda: spoken.heard_ms(call.rtp.packets) >= 3980)
    assert_continuous(call.rtp.packets)
    assert not session.truncations
    assert len(session.seen("response.create")) == 1, "the greeting; nothing else is answered"
    await world.summary_at_end(call)
    record = await world.record(call)
    assert record["interruptions"] == []
    assert [e["event"] for e in record["timeline"]].count("false_interruption") == 1


async def test_words_cut_it_where_it_had_paused(world: GatewayStack) -> None:
    """What the server is told of is what was heard before the pause, to the millisecond."""
    world.behave(vad="off", answers=answers(6, 1), transcripts=["No, something else."])
    call = await world.dial("pause")
    session = await world.session_of(call)
    await speak_into_the_answer(world, call, session)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    (cut,) = session.truncations
    heard = Spoken(bytes(session.sent_items[cut.item_id])).heard_ms(call.rtp.packets)
    assert cut.requested_ms == heard < cut.item_ms
    answer = Spoken(bytes(list(session.sent_items.values())[1]))
    await call.rtp.until(lambda: answer.heard_ms(call.rtp.packets) >= 980)
    assert len(session.seen("response.create")) == 2
    assert not session.errors
    await world.summary_at_end(call)
    (interruption,) = (await world.record(call))["interruptions"]
    assert interruption["played_ms"] == heard


@pytest.mark.parametrize("route", ["never", "notice"])
async def test_the_agent_is_heard_out_and_the_caller_answered_then(
    world: GatewayStack, route: str
) -> None:
    """Nothing of the first answer is left out, and the second comes behind it."""
    world.behave(vad="off", answers=answers(2, 1), transcripts=["Stop!"])
    call = await world.dial(route)
    session = await world.session_of(call)
    await heard(call, session, 500)
    world.emulator.live[session.id].session.pretend_speech(300)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    first, second = (Spoken(bytes(audio)) for audio in session.sent_items.values())
    await call.rtp.until(lambda: second.heard_ms(call.rtp.packets) >= 980)
    assert first.heard_ms(call.rtp.packets) >= 1980
    assert not session.truncations
    assert not session.errors
    await world.summary_at_end(call)


async def test_a_caller_who_says_nothing_is_asked_and_then_left(world: GatewayStack) -> None:
    """The question, the goodbye, then BYE with its reason."""
    call = await world.dial("idle")
    session = await world.session_of(call)
    bye = await call.hung_up()
    said = [one.body["transcript"] for one in session.sent("response.output_audio_transcript.done")]
    assert said == ["Hello.", "Are you there?", "Bye then."]
    assert 'text="Caller said nothing"' in bye.headers["reason"]
    record = await world.record(call)
    assert (record["ending"]["by"], record["ending"]["why"]) == ("gateway", "idle")

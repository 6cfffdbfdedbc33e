# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls on Live sessions: endless audio both ways; the model alone decides when it speaks."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gateway.audio.sounds import samples_of, write_wav
from gateway.call.conversation.control import HELD, RESUMED
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import pattern
from tests.support.dialog import answered, dialog_call
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import PATIENT, TRUSTED, GatewayStack, eventually
from tests.support.listening import Spoken, assert_continuous, assert_in_step, noise, speech
from tests.support.official_types import check_live_client_event
from tests.support.sip_phone import PhoneCall

CLIP_FILE = Path(tempfile.mkdtemp()) / "welcome.wav"
write_wav(CLIP_FILE, samples_of("ringback")[: 8000 * 2])

LIVE = """
[[route]]
name = "{name}"
to = "^{name}$"
fallback = []
[route.realtime]
url = "ws://127.0.0.1:{{port}}/v1/live/sessions"
api_key = "{{key}}"
model = "gpt-live-1.1"
[route.live]
instructions = "You speak with {{from}}."
audio.output.voice = "cedar"
"""
GREETING = """[route.greeting]
say = "Hotel Linde, good morning."
"""
CLIP = f"""[route.greeting]
say = "Welcome to Hotel Linde."
clip = {json.dumps(str(CLIP_FILE))}
"""
EXACT = """[route.greeting]
say = "Welcome to {to}."
exact = true
[route.disclosure]
say = "You speak with an AI, {from}."
exact = true
"""
SPEAKER = """
import sys, wave
words = sys.stdin.buffer.read().decode()
if "AI" in words:
    sys.exit(3)
out = wave.open(sys.stdout.buffer, "wb")
out.setparams((1, 2, 16000, 0, "NONE", ""))
out.writeframes(b"".join(n.to_bytes(2, "little") for n in range(100, 16100)))
"""
MIXED = """
[[route]]
name = "live-mixed"
to = "^live-mixed$"
[[route.fallback]]
action = "server"
server = "other"
[route.realtime]
url = "ws://127.0.0.1:{port}/v1/live/sessions"
api_key = "{key}"
model = "gpt-live-1.1"
[route.live]
instructions = "You are brief."
[route.session]
instructions = "You are very brief."
"""
BUDGET = """[route.budget]
per_call = 0.003
warning_threshold = 0.5
warning_message = "Hurry."
goodbye = "Time is up."
"""
WORLD = {
    "routes": LIVE.format(name="live")
    + LIVE.format(name="live-held")
    + "[route.hold]\nrelease_after = 2\n"
    + LIVE.format(name="live-greeted")
    + GREETING
    + LIVE.format(name="live-pcm").replace('"gpt-live-1.1"', '"gpt-live-1.1"\naudio = "pcm24"')
    + LIVE.format(name="live-clip")
    + CLIP
    + MIXED
    + LIVE.format(name="live-exact")
    + EXACT
    + LIVE.format(name="live-dear")
    + BUDGET,
    "more": TRUSTED
    + PATIENT
    + f"""speech_command = [{json.dumps(sys.executable)}, "-c", {json.dumps(SPEAKER)}]
"""
    + """
[[realtime_server]]
name = "other"
url = "{url}"
""",
}
APPEND = "session.input_audio.append"
FRAME = 160
SECONDS = 2.0


async def up(
    world: GatewayStack, user: str = "live", **options: Any
) -> tuple[PhoneCall, SessionRecord]:
    """A call that is up, and its session."""
    call = await world.dial(user, **options)
    return call, await world.session_of(call)


def frames(audio: bytes, silence: bytes) -> bytes:
    """What is in the frames that are no silence."""
    pieces = (audio[at : at + FRAME] for at in range(0, len(audio), FRAME))
    return b"".join(piece for piece in pieces if piece != silence * FRAME)


async def closed(session: SessionRecord) -> None:
    """Wait for the end of the session; every event that came of it is one of the official types."""
    await session.wait_until(lambda one: not one.live, WITHIN_S)
    assert session.client_events[-1].type == "session.close"
    assert not session.errors
    for event in session.client_events:
        check_live_client_event(event.body)


@pytest.mark.parametrize(("codec", "silence"), [("PCMU", b"\xff"), ("PCMA", b"\xd5")])
async def test_bytes_pass_unchanged_both_ways(
    world: GatewayStack, codec: str, silence: bytes
) -> None:
    world.behave(
        answers=[{"kind": "pattern", "seconds": SECONDS, "seed": 3}], live={"talks_on": True}
    )
    call, session = await up(world, codecs=(codec,))
    start = session.client_events[0].body["session"]
    assert start["audio"]["format"] == {"type": f"audio/{codec.lower()}", "rate": 8000}
    said = noise(2, 1.0)
    call.rtp.say(said)
    await session.wait_until(lambda one: said == frames(bytes(one.received), silence), WITHIN_S)
    answer = Spoken(pattern(3, int(SECONDS * 8000)))
    await eventually(
        lambda: answer.heard_ms(call.rtp.packets) == SECONDS * 1000, "all of the answer is heard"
    )
    assert_continuous(call.rtp.packets)
    await world.summary_at_end(call)
    await closed(session)
    assert world.gateway.all("call.interruption", call=call.call_id) == []


async def test_a_second_of_audio_goes_up_each_second(world: GatewayStack) -> None:
    world.behave(answers=[{"kind": "silent"}])
    call, session = await up(world)
    call.rtp.say(noise(5, 0.5))
    await call.rtp.quiet()
    call.rtp.sending = False  # the network loses all of it
    await session.wait_until(lambda one: one.received_total > 3 * 8000, WITHIN_S)
    await world.summary_at_end(call)
    await closed(session)
    assert_in_step(session)


async def test_the_greeting_is_said_and_heard(world: GatewayStack) -> None:
    world.behave(live={"transcript_lag_ms": 300})
    call, session = await up(world, "live-greeted")
    await session.wait_until(lambda one: bool(one.seen("session.commentary.append")), WITHIN_S)
    asked = session.seen("session.commentary.append")[0].body
    assert (asked["content"], asked["delegation_id"]) == ("Hotel Linde, good morning.", None)
    await eventually(lambda: len(speech(call.rtp.packets)) > 8000, "the greeting is heard")
    await session.wait_until(
        lambda one: bool(one.sent("session.output_transcript.delta")), WITHIN_S
    )
    await world.gateway.wait("call.agent_speech_stopped", call=call.call_id)
    await world.gateway.wait("call.agent_transcript", call=call.call_id)
    await world.summary_at_end(call)
    record = await world.record(call)
    said = [one for one in record["transcript"] if one["who"] == "agent"]
    assert [one["text"] for one in said] == ["Hotel Linde, good morning."]
    assert "heard" not in said[0]
    assert record["cost"]["session_seconds"] > 0
    assert record["cost"]["total"] == pytest.approx(
        record["cost"]["session_seconds"] * 0.05 / 60, rel=0.1
    )
    await closed(session)


async def test_what_was_heard_of_an_answer_is_in_the_record(world: GatewayStack) -> None:
    numbers = "One " + "two three four five six seven eight nine ten " * 4
    world.behave(answers=[{"kind": "say", "text": numbers}], live={"transcript_lag_ms": 1500})
    call, session = await up(world)
    call.rtp.say(noise(6, 0.6))
    await eventually(lambda: len(speech(call.rtp.packets)) > 8000, "the answer is heard")
    await world.summary_at_end(call)
    entry = (await world.record(call))["transcript"][-1]
    assert entry["who"] == "agent"
    assert "One" in entry["heard"]
    assert entry["heard"] in numbers.strip().removesuffix("ten")
    await closed(session)


async def test_digits_become_context(world: GatewayStack) -> None:
    call, session = await up(world)
    call.rtp.press("42#")
    await session.wait_until(lambda one: bool(one.sent("session.thinking.appended")), WITHIN_S)
    told = session.seen("session.thinking.append")[0].body["content"]
    assert told == "The caller pressed 4 2 on the telephone keypad."
    await world.summary_at_end(call)
    await closed(session)


async def test_a_budget_warns_and_ends_the_call_after_its_goodbye(world: GatewayStack) -> None:
    world.behave(answers=[{"kind": "silent"}])
    call, session = await up(world, "live-dear")
    await call.hung_up()
    summary = await world.summary(call)
    assert summary["ending"]["why"] == "budget"
    told = [one.body["content"] for one in session.client_events if "content" in one.body]
    assert told == ["Hurry.", "Time is up."]
    goodbye = session.sent_track.strip(b"\xff\x7f")
    assert speech(call.rtp.packets)[-4000:].strip(b"\xff\x7f").endswith(goodbye[-1600:])
    await closed(session)


async def test_hold_is_silence_and_a_long_one_releases_the_session(world: GatewayStack) -> None:
    """On hold the model hears silence, whatever comes; after a while its session is closed, and at
    the return another one is told the conversation."""
    world.behave(answers=[{"kind": "say", "text": "Two nights."}], live={"transcript_lag_ms": 0})
    call = await answered(dialog_call(world.phone, "live-held"))
    session = await world.session_of(call)
    call.rtp.say(noise(6, 0.6))
    await world.gateway.wait("call.agent_transcript", call=call.call_id)
    before = session.received_total
    await call.renegotiate(direction="sendonly")
    await world.gateway.wait("call.held", call=call.call_id)
    call.rtp.say(noise(7, 0.5))
    await session.wait_until(lambda one: not one.live, WITHIN_S)
    assert session.received_total - before > 0.8 * 8000
    assert noise(7, 0.5)[:FRAME] not in session.received
    await call.renegotiate(direction="sendrecv")
    resumed = await world.gateway.wait("call.session_resumed", call=call.call_id)
    other = next(one for one in world.emulator.sessions if one.id == resumed["session_id"])
    told = other.client_events[0].body["session"]["input"]
    assert [(one["role"], one["content"][0]["text"]) for one in told[-2:]] == [
        ("assistant", "Two nights."),
        ("developer", HELD),
    ]
    await other.wait_until(lambda one: bool(one.seen("session.instructions.append")), WITHIN_S)
    assert other.seen("session.instructions.append")[0].body["content"] == RESUMED
    call.rtp.say(noise(8, 0.6))
    await other.wait_until(lambda one: noise(8, 0.6)[-FRAME:] in one.received, WITHIN_S)
    await world.summary_at_end(call)
    assert not (await world.record(call))["failovers"]
    for one in (session, other):
        await closed(one)


async def test_a_greeting_from_a_file_is_played_as_it_is(world: GatewayStack) -> None:
    world.behave(answers=[{"kind": "silent"}])
    call, session = await up(world, "live-clip")
    await session.wait_until(
        lambda one: bool(one.seen("session.output_audio.fixture.play")), WITHIN_S
    )
    assert not session.seen("session.commentary.append")
    call.rtp.press("5#")
    await session.wait_until(
        lambda one: bool(one.sent("session.output_audio.fixture.played")), WITHIN_S
    )
    await session.wait_until(lambda one: bool(one.sent("session.thinking.appended")), WITHIN_S)
    assert not session.errors, "nothing was sent while the clip was played"
    played = frames(session.sent_track, b"\xff")
    await eventually(lambda: played[:8000] in speech(call.rtp.packets), "the clip is heard")
    await world.summary_at_end(call)
    said = (await world.record(call))["transcript"][0]
    assert (said["who"], said["text"]) == ("agent", "Welcome to Hotel Linde.")
    await closed(session)


async def test_exact_words_are_made_into_audio(world: GatewayStack) -> None:
    """The greeting is played; the disclosure, of which none is made, is said in its place."""
    world.behave(answers=[{"kind": "silent"}], live={"transcript_lag_ms": 0})
    call, session = await up(world, "live-exact")
    await session.wait_until(
        lambda one: bool(one.sent("session.output_audio.fixture.played")), WITHIN_S
    )
    (said,) = session.seen("session.commentary.append")
    assert said.body["content"] == "You speak with an AI, tester."
    failed = await world.gateway.wait("call.speech_failed", call=call.call_id)
    assert failed["reason"].endswith("ended with status 3")
    (clip,) = session.seen("session.output_audio.fixture.play")
    assert len(clip.body["audio"]) == 64_000, "a second of PCM at 24 kHz"
    await world.summary_at_end(call)
    texts = [one["text"] for one in (await world.record(call))["transcript"]]
    assert "Welcome to live-exact." in texts
    await closed(session)


async def test_the_kinds_are_fallbacks_of_each_other(world: GatewayStack) -> None:
    """A Live session that is lost is replaced by a Realtime one, which is told the conversation."""
    world.behave(answers=[{"kind": "say", "text": "Two nights."}], live={"transcript_lag_ms": 0})
    call, session = await up(world, "live-mixed")
    call.rtp.say(noise(6, 0.6))
    await world.gateway.wait("call.agent_transcript", call=call.call_id)
    world.behave(answers=[{"kind": "pattern", "seconds": 1, "seed": 9}])
    world.emulator.live[session.id].close(1011, "lost", drop=True)
    await world.gateway.wait("call.session_replaced", call=call.call_id)
    other = world.emulator.sessions[-1]
    assert other.path.startswith("/v1/realtime")
    await other.wait_until(
        lambda one: "Two nights." in str(one.seen("conversation.item.create")), WITHIN_S
    )
    call.rtp.say(noise(8, 0.6))
    await other.wait_until(lambda one: bool(one.sent("response.done")), WITHIN_S)
    cost = (await world.summary_at_end(call))["cost"]
    assert (cost["unpriced"], cost["responses"] > 0, cost["total"] > 0) == ([], True, True)
    assert cost["session_seconds"] > 0, "both were paid for, each at its own price"


async def test_a_server_of_linear_pcm(world: GatewayStack) -> None:
    answers = [{"kind": "tones", "seconds": 1, "frequencies_hz": [440.0]}]
    world.behave(answers=answers, live={"transcript_lag_ms": 0})
    call, session = await up(world, "live-pcm")
    start = session.client_events[0].body["session"]
    assert start["audio"]["format"] == {"type": "audio/pcm", "rate": 24000}
    call.rtp.say(noise(6, 0.6))
    await eventually(lambda: len(speech(call.rtp.packets)) >= 7000, "the tone is heard")
    await world.summary_at_end(call)
    await closed(session)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Callers that are machines, over real calls."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import soxr

from gateway.audio import Codec
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import synthesise
from tests.support.harness import PATIENT, GatewayStack
from tests.support.listening import all_arrives, assert_beep, is_silence
from tests.support.made_sounds import beep, g711, melody
from tests.support.rtp_end import EVENT_PAYLOAD, FRAME

ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
[route.greeting]
say = "Hello."
[route.session.audio.input.transcription]
model = "whisper-1"
[route.machine_detection]
{rules}
"""

MESSAGE = 'voicemail = "leave_message"\nvoicemail_message = "Your room."'
WORLD = {
    "more": PATIENT,
    "routes": "".join(
        (
            ROUTE.format(
                name="voicemail",
                rules='voicemail = "leave_message"\nvoicemail_message = "Your room."',
            ),
            ROUTE.format(name="music", rules='music = "hangup"\nmusic_threshold = 1.5'),
            ROUTE.format(name="sound", rules='music = "hangup"\nmusic_threshold = 3'),
            ROUTE.format(
                name="box", rules='voicemail = "leave_message"\nvoicemail_message = "Your room."'
            ),
            ROUTE.format(
                name="watched",
                rules='voicemail = "log"\nmusic = "log"\nmusic_threshold = 3\nbot = "log"',
            ),
            ROUTE.format(name="queue", rules="[route.hold_wait]\nenabled = true")
            + 'music_threshold = 2\nkey = [{ words = "press one", digits = "1" }]\n',
        )
    ),
}

GREETING = "Hello. You have reached Anna and Tom."
"""So short that the beep comes in time where the machine stands still and makes two turns of it."""


async def test_a_message_is_left_on_voicemail(world: GatewayStack) -> None:
    """The greeting's words tell; the message is said after the beep to its end, then BYE with its
    reason."""
    world.behave(
        vad="scripted",
        speech={"at_ms": [200], "length_ms": 500},
        transcripts=["Please leave a message after the tone."],
    )
    call = await world.dial("voicemail")
    session = await world.session_of(call)
    await world.gateway.wait("call.machine_detected", call=call.call_id)
    beep(call.rtp, 1000, 400)
    bye = await call.hung_up()
    said = [one.body["transcript"] for one in session.sent("response.output_audio_transcript.done")]
    assert said[-1] == "Your room."
    assert 'text="Caller is a machine"' in bye.headers["reason"]
    record = await world.record(call)
    assert (record["ending"]["by"], record["ending"]["why"]) == ("gateway", "machine_detected")
    (mark,) = [mark for mark in record["timeline"] if mark["event"] == "machine_detected"]
    assert (mark["kind"], mark["why"]) == ("voicemail", "said 'leave a message'")
    (found,) = record["machine_detection"]
    assert_beep(found["beep"], 1000, 400)
    (message,) = [mark for mark in record["timeline"] if mark["event"] == "voicemail_message"]
    starts = [
        mark["t_ms"] for mark in record["timeline"] if mark["event"] == "agent_speech_started"
    ]
    assert mark["t_ms"] < message["t_ms"] < starts[-1]
    # The server may just have begun an answer of its own to the greeting.
    assert set(session.errors) <= {"conversation_already_has_active_response"}


async def test_music_is_hung_up_on(world: GatewayStack) -> None:
    """Sound without a pause."""
    world.behave(vad="scripted", speech={"at_ms": [200], "length_ms": 8000})
    call = await world.dial("music")
    call.rtp.say(g711(melody(8), Codec.PCMU))
    await world.session_of(call)
    await call.hung_up()
    record = await world.record(call)
    assert record["ending"]["why"] == "machine_detected"
    (mark,) = [mark for mark in record["timeline"] if mark["event"] == "machine_detected"]
    assert mark["kind"] == "music"


async def test_music_is_known_by_its_sound(world: GatewayStack) -> None:
    """A server that hears no speech in it says nothing about it."""
    world.behave(vad="off")
    call = await world.dial("sound")
    call.rtp.say(g711(melody(8), Codec.PCMU))
    await call.hung_up()
    record = await world.record(call)
    assert record["ending"]["why"] == "machine_detected"
    (found,) = record["machine_detection"]
    assert (found["kind"], found["action"]) == ("music", "hangup")
    assert re.fullmatch(r"3 s of music's sound, standing tones in [89]\d% of it", found["why"])


def spoken(text: str) -> bytes:
    """As a telephone sends it."""
    pcm, rate = synthesise(text, "alloy")
    return g711(soxr.resample(np.frombuffer(pcm, "<i2") / 32768, rate, 8000), Codec.PCMU)


async def test_a_box_is_known_by_its_beep(world: GatewayStack) -> None:
    """A greeting that nobody transcribes, heard by voice activity detection; then the beep."""
    world.behave(vad="auto")
    call = await world.dial("box")
    session = await world.session_of(call)
    call.rtp.say(spoken(GREETING) + b"\xff" * 4000)
    await call.rtp.quiet()
    beep(call.rtp, 800, 300)
    await call.hung_up()
    (found,) = (await world.record(call))["machine_detection"]
    assert found["kind"] == "voicemail"
    rule, _, tone = found["why"].partition(", ")
    assert rule == "a beep after the first turn"
    assert_beep(tone, 800, 300)
    said = [one.body["transcript"] for one in session.sent("response.output_audio_transcript.done")]
    assert said[-1] == "Your room."


def answered(times: int, session: SessionRecord) -> bool:
    return len(session.sent("response.done")) >= times


async def test_a_dialogue_is_none(world: GatewayStack) -> None:
    """Speech, real voice activity detection, answers: nothing is found."""
    world.behave(vad="auto", answer={"kind": "say", "text": "Yes, we do."})
    call = await world.dial("watched")
    session = await world.session_of(call)
    for turn, words in enumerate(("Do you have a room with a balcony in May?", "Two nights.")):
        call.rtp.say(spoken(words) + b"\xff" * 8000)
        await session.wait_until(partial(answered, turn + 2), 30)
        await call.rtp.quiet()
    await call.hang_up()
    record = await world.record(call)
    assert record["machine_detection"] == []
    assert [mark for mark in record["timeline"] if mark["event"] == "caller_speech_stopped"]


async def test_the_agent_waits_in_a_queue(world: GatewayStack) -> None:
    """Music, an announcement that asks for a key, music, a human: only the human is spoken to, and
    the session hears music's first seconds and the human whole, at the time that they speak."""
    words = ["To keep your place, press one.", "Hello, this is Anna. What can I do for you?"]
    world.behave(
        vad="auto", transcripts=words, answer={"kind": "say", "text": "I call about my room."}
    )
    call = await world.dial("queue")
    session = await world.session_of(call)
    human = spoken(words[1])
    music = g711(melody(3.0), Codec.PCMU)
    for sound in (music, spoken(words[0]), music, human, b"\xff" * 24000):
        call.rtp.say(sound)  # each in packets of its own
    ended = await world.gateway.wait("call.hold_wait_ended", 40, call=call.call_id)
    assert ended["why"] == "human"
    since = len(call.rtp.packets)
    # So much that the gateway knows of it, too, before the end of the call.
    await call.rtp.until(lambda: sum(not is_silence(one) for one in call.rtp.packets[since:]) >= 15)
    pressed = {one.payload[0] for one in call.rtp.packets if one.payload_type == EVENT_PAYLOAD}
    assert pressed == {1}
    # What the human said is in the session byte for byte.
    await all_arrives(session, human[25 * FRAME : len(human) // FRAME * FRAME], 20)
    await call.hang_up()
    record = await world.record(call)
    (wait,) = record["hold_waits"]
    assert re.fullmatch(r"2 s of music's sound.*", wait["why"])
    assert (wait["ended"], wait["keys"]) == ("human", "1")
    assert record["machine_detection"] == []
    # Nothing was said between the first music and the human.
    began, over = (
        next(mark["t_ms"] for mark in record["timeline"] if mark["event"] == event)
        for event in ("hold_wait_began", "hold_wait_ended")
    )
    starts = [m["t_ms"] for m in record["timeline"] if m["event"] == "agent_speech_started"]
    assert not [at for at in starts if began <= at < over]
    assert [at for at in starts if at >= over]
    told = [
        one.body["item"]["content"][0]["text"] for one in session.seen("conversation.item.create")
    ]
    assert any(re.match(r"You have waited for 1?\d seconds", one) for one in told)

"""Callers that are machines, over real calls."""

from __future__ import annotations

import re

from harness import World
from made_sounds import g711, melody, tone

from gateway.audio.g711 import Codec

ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
[route.greeting]
say = "Hello."
[route.session.audio.input.transcription]
model = "whisper-1"
[route.machines]
{rules}
"""

WORLD = {
    "routes": "".join(
        (
            ROUTE.format(name="voicemail", rules='voicemail = "say"\nvoicemail_say = "Your room."'),
            ROUTE.format(name="music", rules='music = "hang_up"\nmusic_seconds = 1.5'),
            ROUTE.format(name="sound", rules='music = "hang_up"\nmusic_seconds = 3'),
        )
    )
}


async def test_a_message_is_left_on_voicemail(world: World) -> None:
    """The greeting's words tell; the message is said after the beep to its end, then BYE with its
    reason."""
    world.behave(
        vad="scripted",
        speech={"at_ms": [200], "length_ms": 500},
        transcripts=["Please leave a message after the tone."],
    )
    call = await world.dial("voicemail")
    session = await world.session_of(call)
    await world.gateway.wait("call.machine", call=call.call_id)
    call.rtp.say(g711(tone(1000, 400), Codec.PCMU))
    bye = await call.hung_up()
    said = [one.body["transcript"] for one in session.sent("response.output_audio_transcript.done")]
    assert said[-1] == "Your room."
    assert 'text="Caller is a machine"' in bye.headers["reason"]
    record = await world.record(call)
    assert (record["ending"]["by"], record["ending"]["why"]) == ("gateway", "machine")
    (mark,) = [mark for mark in record["timeline"] if mark["event"] == "machine"]
    assert (mark["kind"], mark["why"]) == ("voicemail", "said 'leave a message'")
    (found,) = record["machines"]
    assert re.fullmatch(r"1000 Hz for (360|380|400|420) ms", found["beep"]), found
    (message,) = [mark for mark in record["timeline"] if mark["event"] == "voicemail_message"]
    starts = [mark["t_ms"] for mark in record["timeline"] if mark["event"] == "agent_starts"]
    assert mark["t_ms"] < message["t_ms"] < starts[-1]
    # The server may just have begun an answer of its own to the greeting.
    assert set(session.errors) <= {"conversation_already_has_active_response"}


async def test_music_is_hung_up_on(world: World) -> None:
    """Sound without a pause."""
    world.behave(vad="scripted", speech={"at_ms": [200], "length_ms": 8000})
    call = await world.dial("music")
    call.rtp.say(g711(melody(8), Codec.PCMU))
    await world.session_of(call)
    await call.hung_up()
    record = await world.record(call)
    assert record["ending"]["why"] == "machine"
    (mark,) = [mark for mark in record["timeline"] if mark["event"] == "machine"]
    assert mark["kind"] == "music"


async def test_music_is_known_by_its_sound(world: World) -> None:
    """A server that hears no speech in it says nothing about it."""
    world.behave(vad="off")
    call = await world.dial("sound")
    call.rtp.say(g711(melody(8), Codec.PCMU))
    await call.hung_up()
    record = await world.record(call)
    assert record["ending"]["why"] == "machine"
    (found,) = record["machines"]
    assert (found["kind"], found["action"]) == ("music", "hang_up")
    assert re.fullmatch(r"3 s of music's sound, standing tones in [89]\d% of it", found["why"])

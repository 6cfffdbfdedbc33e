# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls over servers that speak Beta, or take 24 kHz PCM only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gateway.audio import Codec
from gateway.devtools.emulator import AZURE_LIVE_PATH
from gateway.devtools.emulator.session_log import TRACK, SessionRecord
from gateway.realtime.wire import Pcm24
from tests.support import figures
from tests.support.harness import PATIENT, GatewayStack
from tests.support.listening import Spoken, assert_continuous, is_silence
from tests.support.sip_phone import PhoneCall

WORLD = {
    "more": PATIENT,
    "routes": """
[[route]]
name = "beta"
to = "^beta$"
[route.greeting]
say = "Hello."
[route.session]
truncation = "auto"
audio.output.voice = "ash"
[route.realtime]
dialect = "beta"

[[route]]
name = "hot"
to = "^hot$"
[route.greeting]
say = "Hello."
[route.session]
temperature = 2.0
audio.input.noise_reduction.type = "far_field"
[route.realtime]
dialect = "beta"

[[route]]
name = "wide"
to = "^wide$"
[route.greeting]
say = "Hello."
[route.realtime]
audio = "pcm24"

[[route]]
name = "azure-live"
to = "^azure-live$"
[route.greeting]
say = "Hello."
[route.live]
instructions = "Be brief."
[route.realtime]
url = "ws://127.0.0.1:{port}/openai/v1/live/sessions"
model = "reception-deployment"
api_key = "{key}"
api_key_header = "api-key"
audio = "pcm24"

[[route]]
name = "both"
to = "^both$"
[route.greeting]
say = "Hello."
[route.realtime]
dialect = "beta"
audio = "pcm24"
""",
}

CODECS = {"PCMU": Codec.PCMU, "PCMA": Codec.PCMA}
ANSWER = {"kind": "pattern", "seconds": 8, "seed": 5, "speed": 4.0}


def at_8khz(session: SessionRecord, item_id: str, law: Codec) -> bytes:
    """What the gateway makes of an item's 24 kHz PCM. u-law's second zero does not survive RTP."""
    pcm = Pcm24(law)
    sent = bytes(session.sent_items[item_id])
    made = b"".join(pcm.down(sent[i : i + 9600]) for i in range(0, len(sent), 9600))
    return (made + pcm.part_over()).replace(b"\x7f", b"\xff" if law is Codec.PCMU else b"\x7f")


async def interrupted(world: GatewayStack, call: PhoneCall) -> SessionRecord:
    """Speak once a second of the answer was heard, until it is cut and half a second was silent."""
    session = await world.session_of(call)
    await call.rtp.until(lambda: sum(not is_silence(one) for one in call.rtp.packets) >= 50)
    world.emulator.live[session.id].session.pretend_speech(60_000)
    await session.wait_until(lambda s: s.sent("conversation.item.truncated") != [], 20)
    call.rtp.read_what_waits()
    count = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > count + 25)
    assert all(is_silence(packet) for packet in call.rtp.packets[count + 2 :])
    return session


async def test_a_call_over_beta(world: GatewayStack) -> None:
    """Answered, interrupted and cut, with nothing but Beta on the wire."""
    world.behave(vad="off", beta=True, answer=ANSWER)
    call = await world.dial("beta", codecs=("PCMA",))
    session = await interrupted(world, call)
    summary = await world.summary_at_end(call)
    assert not session.errors
    assert session.received_total > 0
    (update,) = session.seen("session.update")
    asked = update.body["session"]
    assert asked["input_audio_format"] == asked["output_audio_format"] == "g711_alaw"
    assert asked["voice"] == "ash"
    assert not {"type", "audio", "truncation", "output_modalities"} & asked.keys()
    (cut,) = session.truncations
    spoken = Spoken(bytes(session.sent_items[cut.item_id]))
    assert cut.requested_ms == spoken.heard_ms(call.rtp.packets)
    assert 0 < cut.requested_ms < cut.item_ms
    assert_continuous(call.rtp.packets)
    left_out = world.gateway.all("session.not_in_dialect", call=call.call_id)
    assert [line["left_out"] for line in left_out] == [["truncation"]]
    assert not world.gateway.all("session.resampled", call=call.call_id)
    assert not world.gateway.all("session.invalid_event", call=call.call_id)
    assert summary["interruptions"]


async def test_a_setting_that_a_beta_server_refuses(world: GatewayStack) -> None:
    """Beta's name of it is GA's in the record, and the rest is in force."""
    world.behave(vad="off", beta=True, answer={"kind": "pattern", "seconds": 0.3})
    call = await world.dial("hot")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    summary = await world.summary_at_end(call)
    assert [one["field"] for one in summary["settings_refused"]] == ["temperature"]
    first, second = [event.body["session"] for event in session.seen("session.update")]
    assert first.pop("temperature") == 2.0
    assert second == first
    assert second["input_audio_noise_reduction"] == {"type": "far_field"}


@pytest.mark.parametrize(("route", "codec"), [("wide", "PCMU"), ("both", "PCMA")])
async def test_a_call_over_24_khz(world: GatewayStack, route: str, codec: str) -> None:
    """What the server is told was heard is what the phone heard, in the server's milliseconds."""
    world.behave(vad="off", beta=True, answer=ANSWER)
    call = await world.dial(route, codecs=(codec,))
    session = await interrupted(world, call)
    await world.summary_at_end(call)
    assert not session.errors
    (cut,) = session.truncations
    spoken = Spoken(at_8khz(session, cut.item_id, CODECS[codec]))
    assert cut.requested_ms == spoken.heard_ms(call.rtp.packets)
    assert 0 < cut.requested_ms < cut.item_ms == len(session.sent_items[cut.item_id]) // 48
    assert_continuous(call.rtp.packets)
    (line,) = world.gateway.all("session.resampled", call=call.call_id)
    assert line["codec"] == codec


async def test_a_live_call_in_the_form_of_azure(world: GatewayStack) -> None:
    """24 kHz PCM, a deployment, a key in a header of its own, and answers that echo no ids."""
    world.behave(live={"transcript_lag_ms": 200})
    call = await world.dial("azure-live", codecs=("PCMA",))
    session = await world.session_of(call)
    request = world.emulator.live[session.id].request
    assert request is not None
    assert (request.path, "Authorization" in request.headers) == (AZURE_LIVE_PATH, False)
    await session.wait_until(lambda s: s.sent("session.output_transcript.delta") != [], 20)
    asked = session.seen("session.start")[0].body["session"]
    assert asked["audio"]["format"] == {"type": "audio/pcm", "rate": 24000}
    assert asked["model"] == session.model == "reception-deployment"
    await world.summary_at_end(call)
    await session.wait_until(lambda s: not s.live, 20)
    assert not session.errors
    said = at_8khz(session, TRACK, Codec.PCMA).strip(Codec.PCMA.silence)
    assert len(said) > 2000
    assert said[: len(said) // 2] in bytes(call.rtp.heard)
    assert "client_event_id" not in session.sent("session.closed")[0].body
    (line,) = world.gateway.all("session.resampled", call=call.call_id)
    assert line["codec"] == "PCMA"


async def test_many_interruptions_over_24_khz(world: GatewayStack) -> None:
    """At random moments, of answers sent at once, just ahead of playout, and in between."""
    count = 12
    ways: list[dict[str, object]] = [{"burst": True}, {"speed": 1.1}, {"speed": 4.0}]
    answers = [
        {"kind": "pattern", "seconds": 4, "seed": 40 + number, **ways[number % 3]}
        for number in range(count + 1)
    ]
    speech = {"min_ms": 30, "max_ms": 700, "count": count, "length_ms": 40, "seed": 3}
    world.behave(vad="scripted", answers=answers, speech=speech)
    call = await world.dial("wide", codecs=("PCMA",))
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.truncations) + len(s.deletions) >= count, 60)
    await world.summary_at_end(call)
    assert not session.errors
    told = {cut.item_id: cut.requested_ms for cut in session.truncations}
    told |= dict.fromkeys(session.deletions, 0)
    differences = []
    for item_id, told_ms in told.items():
        spoken = Spoken(at_8khz(session, item_id, Codec.PCMA))
        differences.append(told_ms - spoken.heard_ms(call.rtp.packets))
    figures.show(
        f"truncation against what was heard over 24 kHz, {len(differences)} interruptions",
        ", ".join(f"{ms} ms: {n}" for ms, n in sorted(Counter(differences).items())),
    )
    assert len(differences) == count
    assert set(differences) == {0}
    assert len(set(told.values())) > count // 2, "moments that differ"


async def test_an_answer_over_24_khz_is_heard_to_its_end(world: GatewayStack) -> None:
    """Nothing is left in the filter; and the caller is heard at the server, at the right pitch."""
    seconds, hz = 1, 700.0
    world.behave(vad="off", answer={"kind": "pattern", "seconds": seconds, "seed": 9})
    call = await world.dial("wide", codecs=("PCMA",))
    session = await world.session_of(call)
    call.rtp.say(
        Codec.PCMA.from_linear(
            (8000 * np.sin(2 * np.pi * hz * np.arange(8000) / 8000)).astype(np.int16).tobytes()
        )
    )
    await call.rtp.quiet()
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    (item_id,) = session.sent_items
    spoken = Spoken(at_8khz(session, item_id, Codec.PCMA))
    await call.rtp.until(lambda: len(spoken.packets_of(call.rtp.packets)) == seconds * 50)
    so_far = session.received_total  # the jitter buffer and the filter hold the end back
    await session.wait_until(lambda s: s.received_total >= so_far + 300 * 48, 30)
    await world.summary_at_end(call)
    assert spoken.heard_ms(call.rtp.packets) == seconds * 1000
    heard = np.frombuffer(bytes(session.received)[: len(session.received) // 2 * 2], "<i2")
    loud = np.abs(heard.astype(int)) > 4000
    span = int(np.flatnonzero(loud)[-1] - np.flatnonzero(loud)[0])
    assert span / 24 == pytest.approx(1000, abs=2)
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.argmax(spectrum) * 24000 / len(heard) == pytest.approx(hz, abs=1)

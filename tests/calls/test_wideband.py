# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls in G.722: the session hears and says what no G.711 call could have."""

from __future__ import annotations

import asyncio
import audioop
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pjsua2 as pj
import pytest
import soundfile
import soxr
from numpy.typing import NDArray
from websockets.asyncio.client import unix_connect

from gateway.api.client import ask
from gateway.audio import Codec
from gateway.bridge.replay import read_lines, replay
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import synthesise
from tests.calls.test_every_byte import by_dtls, by_sdes, over, own_certificate, up
from tests.support import dialog
from tests.support.black_boxes import written
from tests.support.callee import CalledCall, CalledPhone, free_port
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.harness import PATIENT, GatewayStack, eventually
from tests.support.listening import assert_beep, assert_continuous
from tests.support.made_sounds import Array, melody
from tests.support.referred import dial
from tests.support.rtp_end import Packet, Sender
from tests.support.sip_phone import CODECS, PhoneCall

HIGH = 5000
"""Hz: between what G.711 and what G.722 can carry."""

__all__ = ["own_certificate"]


@contextlib.asynccontextmanager
async def without_keys(
    world: GatewayStack, codec: str, ptime: int, _folder: Path
) -> AsyncIterator[tuple[DialogCall, Sender]]:
    call = await up(world, codec, ptime)
    yield call, Sender(call.rtp, ptime=ptime)


WAYS: dict[str, Any] = {"": without_keys, "sdes": by_sdes, "dtls": by_dtls}

PORT = free_port()

WORLD = {
    "more": f"""{PATIENT}
[[trunk]]
name = "office"
peers = ["127.0.0.1"]
codecs = ["G722", "PCMU"]
srtp = "optional"
srtp_keying = ["sdes", "dtls"]
sdes_without_tls = true
[[trunk]]
name = "pbx"
peers = ["127.0.0.9"]
codecs = ["G722", "PCMU"]
[control]
socket = "gateway.sock"
[outbound]
enabled = true
country = "DE"
allowed_prefixes = ["answer", "wide", "ring"]
max_calls_per_minute = 60
[recording]
folder = "recordings"
""",
    "routes": f"""
[[route]]
name = "kept"
to = "^kept$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
[route.dtmf]
inband = true

[[route]]
name = "queue"
to = "^queue$"
records.black_box = "always"
[route.greeting]
say = "Hello."
[route.hold_wait]
enabled = true
music_threshold = 2

[[route]]
name = "box"
to = "^box$"
[route.greeting]
say = "Hello."
[route.session.audio.input.transcription]
model = "whisper-1"
[route.machine_detection]
voicemail = "leave_message"
voicemail_message = "Your room."

[[route]]
name = "interpreted"
to = "^interpreted$"
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
[route.interpreter]
to = "anna"
caller.language = "English"
callee.language = "German"

[[route]]
name = "outward"
to = "^nobody$"
[route.greeting]
say = "Hello."

[[route]]
name = "joined"
to = "^joined$"
[route.greeting]
say = "Hello."
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
[[route.transfer]]
name = "blind"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "blind"
[[route.transfer]]
name = "briefed"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
[route.transfer.briefing]
"""
    """
[[route]]
name = "live"
to = "^live$"
[route.greeting]
say = "Hello."
[route.live]
instructions = "Be brief."
[route.realtime]
url = "ws://127.0.0.1:{port}/v1/live/sessions"
model = "gpt-live-1.1"
api_key = "{key}"
""",
}


def tone(hz: int, seconds: float, rate: int = 16000) -> bytes:
    """Linear samples, at a quarter of full scale."""
    times = np.arange(int(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * hz * times)).astype("<i2").tobytes()


def level(pcm: bytes, hz: int, rate: int) -> float:
    """Amplitude at this frequency in the loudest 100 ms."""
    samples = np.frombuffer(pcm, "<i2").astype(np.float64)
    size = rate // 10
    wave = np.exp(-2j * np.pi * hz * np.arange(size) / rate)
    whole = samples[: len(samples) // size * size].reshape(-1, size)
    return float(np.abs(whole @ wave).max(initial=0.0)) * 2 / size


def levels(pcm: bytes, hz: int, rate: int = 16000) -> NDArray[np.float64]:
    """Amplitude at this frequency in each 20 ms."""
    size = rate // 50
    samples = np.frombuffer(pcm, "<i2").astype(np.float64)
    wave = np.exp(-2j * np.pi * hz * np.arange(size) / rate)
    found = np.abs(samples[: len(samples) // size * size].reshape(-1, size) @ wave) * 2 / size
    return np.asarray(found)


def heard(packets: Sequence[Packet]) -> bytes:
    """Linear samples of what came as G.722."""
    return bytes(pj.NativeG722().decode(b"".join(packet.payload for packet in packets)))


def stretch(found: NDArray[np.float64], above: float = 1000) -> NDArray[np.float64]:
    """From the first 20 ms of the tone to the last."""
    first, last = np.flatnonzero(found > above)[[0, -1]]
    return found[first : last + 1]


def is_over(hz: int, above: float) -> Callable[[SessionRecord], bool]:
    """Whether a session at 24 kHz has heard a tone and 100 ms of what followed it: how much it has
    heard says nothing, as silence stands in for a caller whose packets are not there yet."""

    def arrived(session: SessionRecord) -> bool:
        found = levels(bytes(session.received), hz, 24000)
        loud = np.flatnonzero(found > above)
        return loud.size > 0 and len(found) - 1 - int(loud[-1]) >= 5

    return arrived


def hears(hz: int, since: int = 0) -> Callable[[SessionRecord], bool]:
    def arrived(session: SessionRecord) -> bool:
        return level(bytes(session.received[since:]), hz, 24000) > 4000

    return arrived


async def test_what_is_above_g711_passes_both_ways(world: GatewayStack) -> None:
    world.behave(
        vad="off",
        answer={"kind": "tones", "frequencies_hz": [HIGH], "seconds": 2, "burst": True},
    )
    call = await world.dial("greeted", codecs=("G722", "PCMU"))
    assert call.final is not None
    assert "m=audio" in call.final.body
    assert " RTP/AVP 9 " in call.final.body
    assert "a=rtpmap:9 G722/8000" in call.final.body
    session = await world.session_of(call)
    asked = session.sent("session.updated")[0].body["session"]["audio"]
    for side in ("input", "output"):
        assert asked[side]["format"] == {"type": "audio/pcm", "rate": 24000}
    call.rtp.say(pj.NativeG722().encode(tone(HIGH, 1.0)))
    await session.wait_until(hears(HIGH), 20)
    await call.rtp.until(lambda: len(call.rtp.packets) >= 75)
    packets = call.rtp.packets[:]
    assert {packet.payload_type for packet in packets} == {9}
    assert_continuous(packets)
    assert {(b.timestamp - a.timestamp) & 0xFFFFFFFF for a, b in pairwise(packets)} == {160}
    assert level(heard(packets), HIGH, 16000) > 1000
    summary = await world.summary_at_end(call)
    assert summary["codec"] == "G722"


async def test_a_live_session_has_the_call_at_8_khz(world: GatewayStack) -> None:
    world.behave(live={"transcript_lag_ms": 200})
    call = await world.dial("live", codecs=("G722",))
    session = await world.session_of(call)
    call.rtp.say(pj.NativeG722().encode(tone(1000, 1.0)))

    def arrived(session: SessionRecord) -> bool:
        return level(audioop.ulaw2lin(bytes(session.received), 2), 1000, 8000) > 4000

    await session.wait_until(arrived, 20)
    await call.rtp.until(lambda: len(call.rtp.packets) > 50)
    assert {packet.payload_type for packet in call.rtp.packets} == {9}
    await world.summary_at_end(call)


async def test_whoever_offers_none_has_g711(world: GatewayStack) -> None:
    world.behave(vad="off", answer="silent")
    call = await world.dial("plain", codecs=("PCMU",))
    session = await world.session_of(call)
    asked = session.sent("session.updated")[0].body["session"]["audio"]
    assert asked["input"]["format"]["type"] == "audio/pcmu"
    assert (await world.summary_at_end(call))["codec"] == "PCMU"


async def test_a_session_goes_on_when_the_call_changes_to_g711_and_back(
    world: GatewayStack,
) -> None:
    world.behave(
        vad="off",
        answer={"kind": "tones", "frequencies_hz": [1000], "seconds": 30, "burst": True},
    )
    call = await answered(dialog_call(world.phone, "greeted", codecs=("G722", "PCMU")))
    session = await world.session_of(call)
    for name, codec in (("PCMU", Codec.PCMU), ("G722", Codec.G722)):
        since = session.received_total
        await call.renegotiate(codecs=(name,))
        call.rtp.payload_type, _silence = CODECS[name]
        said = tone(700, 1.0)
        if codec is Codec.G722:
            call.rtp.say(pj.NativeG722().encode(said))
        else:
            call.rtp.say(codec.from_linear(audioop.ratecv(said, 2, 1, 16000, 8000, None)[0]))
        await session.wait_until(hears(700, since), 20)
        count = len(call.rtp.packets)
        await call.rtp.until(lambda count=count: len(call.rtp.packets) >= count + 25)  # type: ignore[misc]
        audio = b"".join(packet.payload for packet in call.rtp.packets[-20:])
        assert {packet.payload_type for packet in call.rtp.packets[-20:]} == {CODECS[name][0]}
        if codec is Codec.G722:
            assert level(pj.NativeG722().decode(audio), 1000, 16000) > 1000
        else:
            assert level(codec.to_linear(audio), 1000, 8000) > 1000
            # Packets that were on their way in the codec before are understood, too.
            call.rtp.payload_type = CODECS["G722"][0]
            call.rtp.say(pj.NativeG722().encode(tone(1500, 0.5)))
            await session.wait_until(hears(1500), 20)
    await world.summary_at_end(call)


@pytest.mark.parametrize("network", ["none", "jitter", "loss"])
@pytest.mark.parametrize(("ptime", "keys"), [(10, ""), (30, "sdes"), (40, "dtls"), (60, "")])
async def test_only_what_the_network_loses_is_missing(
    world: GatewayStack, ptime: int, keys: str, network: str, own_certificate: Path
) -> None:
    async with WAYS[keys](world, "G722", ptime, own_certificate) as (call, sender):
        session = await world.session_of(call)
        sender.payload_type = 9
        coder, pause = pj.NativeG722(), bytes(240 * 32)
        sender.burst(coder.encode(pause))
        sent = await over(network, sender, coder.encode(tone(HIGH, 0.96)), ptime, 0)
        sender.burst(coder.encode(pause))
        await session.wait_until(is_over(HIGH, 3000), 20)
        summary = await world.summary_at_end(call)
    # Whole frames of the tone, with the noise of the codec.
    found = stretch(levels(bytes(session.received), HIGH, 24000), 3000)
    there = [abs(amplitude - 8000) < 1200 for amplitude in found[1:-1]]
    gone = sent.count(bytes(ptime * 8))
    assert summary["uplink"]["lost"] == gone
    assert (gone > 0) is (network == "loss")
    # A lost packet costs its own frames, cut off, and two in which the decoder finds its way.
    assert there.count(False) <= gone * (ptime // 20 + 3)
    assert 46 <= len(found) <= 48


WORDS = "Hello, this is Anna. What can I do for you?"


def wide(samples: Array) -> bytes:
    """Sound of 8 kHz, -1 to 1, as linear samples at 16 kHz."""
    return bytes((soxr.resample(samples, 8000, 16000) * 32767).astype("<i2"))


def spoken(text: str) -> Array:
    pcm, rate = synthesise(text, "alloy")
    return np.asarray(soxr.resample(np.frombuffer(pcm, "<i2") / 32768, rate, 8000))


def ulaw(audio: bytes | bytearray) -> bytes:
    return Codec.PCMU.to_linear(bytes(audio))


def tones(hz: int, seconds: float, **more: Any) -> dict[str, Any]:
    """An answer of the model's, sent at once."""
    return {"kind": "tones", "frequencies_hz": [hz], "seconds": seconds, "burst": True, **more}


async def test_the_server_is_told_what_was_heard(world: GatewayStack) -> None:
    """To the frame, as with G.711; what is said next is not cut."""
    speech = {"at_ms": [1500, 1500, 2420], "length_ms": 40}
    heights = [600, 1000, 1600, 2200]  # each its own: there may be no pause between two
    world.behave(vad="scripted", answers=[tones(hz, 20) for hz in heights], speech=speech)
    call = await world.dial("greeted", codecs=("G722",))
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.truncations) == 3, 30)
    await call.rtp.heard_bytes(8 * 4000)
    await call.hang_up()
    packets = call.rtp.packets[:]
    assert_continuous(packets)
    told = heard(packets)
    spoken = [int((levels(told, hz) > 2000).sum()) * 20 for hz in heights]
    assert spoken[:3] == [cut.requested_ms for cut in session.truncations]


KEY_HZ = {"5": (770, 1336), "#": (941, 1477)}


def key_tone(key: str, rate: int) -> bytes:
    """100 ms of a DTMF digit between pauses as an encoder has them."""
    time = np.arange(rate // 10) / rate
    low, high = KEY_HZ[key]
    samples = 0.2 * (np.sin(2 * np.pi * low * time) + np.sin(2 * np.pi * high * time))
    pcm = (samples * 32767).astype("<i2").tobytes()
    return bytes(len(pcm)) + pcm + bytes(len(pcm))


async def presses_and_is_recorded(
    world: GatewayStack, call: DialogCall, session: SessionRecord, above: float
) -> None:
    """After the tones of 5 and #: 7 and # as events; both sides stand in the recording."""
    await call.rtp.quiet()
    call.rtp.press("7#")
    await call.rtp.quiet()
    await session.wait_until(lambda s: len(s.seen("conversation.item.create")) >= 2, 20)
    summary = await world.summary_at_end(call)
    assert [run["digits"] for run in summary["digits"]] == ["5", "7"]
    record = await world.record(call)
    path = world.folder / "recordings" / record["recording"]["file"]
    await eventually(path.exists, "the recording")
    sound, rate = soundfile.read(path, dtype="int16")
    assert (rate, record["recording"]["dropped_frames"]) == (8000, 0)
    for side, hz in ((0, 700), (1, 1000)):
        assert level(sound[:, side].astype("<i2").tobytes(), hz, 8000) > above


async def test_hold_keys_and_recording(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[tones(1000, 15), *[{"kind": "silent"}] * 4])
    call = await answered(dialog_call(world.phone, "kept", codecs=("G722", "PCMU")))
    session = await world.session_of(call)
    coder = pj.NativeG722()
    call.rtp.say(coder.encode(tone(700, 0.5)))
    await session.wait_until(hears(700), 20)
    await call.renegotiate(direction="sendonly")
    await world.gateway.wait("call.held", call=call.call_id)
    since = session.received_total
    # Silence after it, so that none of it is still on its way when the hold ends.
    call.rtp.say(coder.encode(tone(900, 0.5) + bytes(2 * 16000)))
    await call.rtp.quiet()
    count = len(call.rtp.packets)
    await call.renegotiate(direction="sendrecv")
    await call.rtp.until(lambda: len(call.rtp.packets) >= count + 50)
    assert level(bytes(session.received[since:]), 900, 24000) < 500
    assert levels(heard(call.rtp.packets[-25:]), 1000)[5:].min() > 1500
    for key in "5#":
        call.rtp.say(coder.encode(key_tone(key, 16000)))
    await presses_and_is_recorded(world, call, session, 1500)


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """A telephone to call."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


async def hear_each_other(call: PhoneCall, there: CalledCall) -> None:
    """The caller in G.722, the callee in PCMU."""
    call.rtp.say(pj.NativeG722().encode(tone(700, 3.0)))
    there.rtp.say(Codec.PCMU.from_linear(tone(900, 3.0, 8000)))
    await there.rtp.until(lambda: level(ulaw(there.rtp.heard[-16000:]), 700, 8000) > 4000)
    await call.rtp.until(lambda: level(heard(call.rtp.packets[-100:]), 900, 16000) > 4000)


@pytest.mark.parametrize("destination", ["anna", "briefed"])
async def test_joined_with_a_leg_in_g711(
    world: GatewayStack, callee: CalledPhone, destination: str
) -> None:
    arguments = {"destination": destination, "briefing": "Mr Smith."}
    if destination == "anna":
        del arguments["briefing"]
    tool = {"name": "transfer_call", "arguments": json.dumps(arguments)}
    world.behave(
        vad="off",
        answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}],
        out_of_band=tones(1200, 0.6),
    )
    call = await dial(world, "joined", codecs=("G722", "PCMU"))
    there = await callee.called()
    if destination == "briefed":
        await there.rtp.until(lambda: level(ulaw(there.rtp.heard), 1200, 8000) > 1500)
        there.rtp.press("1")
    await world.gateway.wait("call.bridged", call=call.call_id)
    await hear_each_other(call, there)
    there.bye()
    await call.hung_up()
    record = await world.record(call)
    (leg,) = record["b_legs"]
    assert (record["codec"], leg["codec"]) == ("G722", "PCMU")


async def test_interpreted_with_a_leg_in_g711(world: GatewayStack, callee: CalledPhone) -> None:
    """Each session hears its speaker, and is heard by its listener only."""
    world.behave(vad="off", answer=tones(1200, 1.0))
    call = await world.dial("interpreted", codecs=("G722", "PCMU"))
    there = await callee.called()
    heard_by: dict[str, SessionRecord] = {}
    for listener in ("caller", "callee"):
        line = await world.gateway.wait("call.interpreter_up", call=call.call_id, listener=listener)
        (heard_by[listener],) = [o for o in world.emulator.sessions if o.id == line["session_id"]]
    call.rtp.say(pj.NativeG722().encode(tone(700, 1.5)))
    there.rtp.say(Codec.PCMU.from_linear(tone(900, 1.5, 8000)))
    await heard_by["callee"].wait_until(hears(700), 20)
    await heard_by["caller"].wait_until(hears(900), 20)
    assert level(bytes(heard_by["callee"].received), 900, 24000) < 500
    assert level(bytes(heard_by["caller"].received), 700, 24000) < 500
    world.emulator.live[heard_by["callee"].id].session.pretend_speech(100)
    await there.rtp.until(lambda: level(ulaw(there.rtp.heard), 1200, 8000) > 1500)
    assert level(heard(call.rtp.packets), 1200, 16000) < 500
    world.emulator.live[heard_by["caller"].id].session.pretend_speech(100)
    await call.rtp.until(lambda: level(heard(call.rtp.packets), 1200, 16000) > 1500)
    await call.hang_up()
    await there.hung_up()


async def test_a_queue_is_waited_in_and_listened_to(world: GatewayStack) -> None:
    """Music, then a human; an operator listens in, and the black box is replayed."""
    # Whenever the model speaks, it is nothing like the tone that the operator listens for: on a
    # busy machine it may take a late packet for the end of a turn, and speak meanwhile.
    world.behave(vad="auto", answers=[{"kind": "nothing"}, tones(1200, 0.5)])
    call = await world.dial("queue", codecs=("G722",))
    session = await world.session_of(call)
    (name,) = world.gateway.ids_of(call.call_id)
    url, socket = f"ws://localhost/api/v1/calls/{name}/audio", world.folder / "gateway.sock"
    async with unix_connect(str(socket), url) as ear:
        told = json.loads(await ear.recv())
        assert told == {"codec": "PCMU", "rate": 8000, "frame_ms": 20}
        coder = pj.NativeG722()
        done = len(session.sent("response.done"))
        call.rtp.say(coder.encode(tone(700, 0.4) + wide(melody(3.0)) + wide(spoken(WORDS))))
        sound = bytearray()
        async for message in ear:
            assert isinstance(message, bytes)
            sound += message[4:]
            if len(sound) >= 2 * 8000 and level(ulaw(sound[0::2]), 700, 8000) > 4000:
                break
    assert level(ulaw(sound[1::2]), 700, 8000) < 500
    ended = await world.gateway.wait("call.hold_wait_ended", 40, call=call.call_id)
    assert ended["why"] == "human"
    await session.wait_until(lambda s: len(s.sent("response.done")) > done, 30)
    await call.hang_up()
    record = await world.record(call)
    assert [one["ended"] for one in record["hold_waits"]] == ["human"]
    path = world.records_folder / record["black_box"]
    await eventually(lambda: "outputs.Finished" in written(path), "its end")
    assert list(replay(read_lines(path)).differences) == []


async def test_a_message_is_left_after_the_beep(world: GatewayStack) -> None:
    words = ["Please leave a message after the tone."]
    speech = {"at_ms": [200], "length_ms": 500}
    world.behave(vad="scripted", speech=speech, transcripts=words)
    call = await world.dial("box", codecs=("G722",))
    await world.gateway.wait("call.machine_detected", call=call.call_id)
    pause = bytes(8000)  # as an encoder has it, not the telephone's own silence
    sender = Sender(call.rtp)
    sender.payload_type = 9
    # At once: no busy machine makes a hole in it.
    sender.burst(pj.NativeG722().encode(pause + tone(1000, 0.4) + pause))
    await call.hung_up()
    (found,) = (await world.record(call))["machine_detection"]
    assert_beep(found["beep"], 1000, 400)


async def test_transferred_by_refer(world: GatewayStack) -> None:
    tool = {"name": "transfer_call", "arguments": json.dumps({"destination": "blind"})}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}, {"kind": "silent"}])
    call = await dial(world, "joined", codecs=("G722",))
    await call.asked()
    call.notify("200 OK", last=True)
    await call.hung_up()


@pytest.mark.parametrize("codec", ["G722", "PCMU"])
async def test_a_call_that_is_placed(world: GatewayStack, callee: CalledPhone, codec: str) -> None:
    """The session is wide, as its trunk offers G.722, whatever the callee answers."""
    world.behave(vad="off", answers=[tones(1000, 3), {"kind": "silent"}])
    uri = callee.uri("wide" if codec == "G722" else "answer")
    path = world.folder / "gateway.sock"
    answer = await asyncio.to_thread(ask, path, "dial", to=uri, route="outward", trunk="pbx")
    there = await callee.called()
    there.rtp.payload_type = CODECS[codec][0]
    line = await world.gateway.wait("call.session_up", call=answer["call"])
    (session,) = [one for one in world.emulator.sessions if one.id == line["session_id"]]
    if codec == "G722":
        there.rtp.say(pj.NativeG722().encode(tone(HIGH, 2.0)))
        await session.wait_until(hears(HIGH), 20)
        await there.rtp.until(lambda: level(heard(there.rtp.packets), 1000, 16000) > 1500)
    else:
        there.rtp.say(Codec.PCMU.from_linear(tone(700, 2.0, 8000)))
        await session.wait_until(hears(700), 20)
        await there.rtp.until(lambda: level(ulaw(there.rtp.heard), 1000, 8000) > 1500)
    assert {p.payload_type for p in there.rtp.packets} == {CODECS[codec][0]}
    there.bye()
    summary = await world.gateway.wait("call.summary", call=answer["call"])
    assert summary["codec"] == codec


async def test_another_payload_number(world: GatewayStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dialog.PAYLOADS, "G722", 97)
    monkeypatch.setitem(CODECS, "G722", (97, b"\xfa"))
    world.behave(vad="off", answer=tones(HIGH, 2))
    call = await answered(dialog_call(world.phone, "greeted", codecs=("G722", "PCMU")))
    session = await world.session_of(call)
    call.rtp.say(pj.NativeG722().encode(tone(HIGH, 1.0)))
    await session.wait_until(hears(HIGH), 20)
    await call.rtp.until(lambda: level(heard(call.rtp.packets), HIGH, 16000) > 1000)
    assert {packet.payload_type for packet in call.rtp.packets} == {97}
    await world.summary_at_end(call)

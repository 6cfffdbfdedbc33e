# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls in G.722: the session hears and says what no G.711 call could have."""

from __future__ import annotations

import audioop
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pjsua2 as pj
import pytest
from numpy.typing import NDArray

from gateway.audio.g711 import Codec
from gateway.devtools.emulator.session_log import SessionRecord
from tests.calls.test_every_byte import by_dtls, by_sdes, over, own_certificate, up
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.harness import PATIENT, GatewayStack
from tests.support.listening import assert_continuous
from tests.support.rtp_end import Packet, Sender
from tests.support.sip_phone import CODECS

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

WORLD = {
    "more": f"""{PATIENT}
[[trunk]]
name = "office"
peers = ["127.0.0.1"]
codecs = ["G722", "PCMU"]
srtp = "optional"
srtp_keying = ["sdes", "dtls"]
sdes_without_tls = true
""",
    "routes": """
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
    assert {b.timestamp - a.timestamp for a, b in pairwise(packets)} == {160}
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
        await session.wait_until(lambda s: s.received_total >= 1.4 * 48000, 20)
        summary = await world.summary_at_end(call)
    # Whole frames of the tone, with the noise of the codec; the first one settles.
    found = stretch(levels(bytes(session.received), HIGH, 24000), 3000)
    there = [abs(amplitude - 8000) < 1200 for amplitude in found[1:]]
    gone = sent.count(bytes(ptime * 8))
    assert summary["uplink"]["lost"] == gone
    assert (gone > 0) is (network == "loss")
    # A lost packet costs its own frames, cut off, and two in which the decoder finds its way.
    assert there.count(False) <= gone * (ptime // 20 + 3)
    assert 46 <= len(found) <= 48

# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings of calls, compared with what their telephones heard and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyrage
import pytest

from gateway.records.recordings import decrypt
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import is_silence, noise
from tests.support.rtp_end import FRAME
from tests.support.sip_phone import PhoneCall

KEY = pyrage.x25519.Identity.generate()

WORLD = {
    "more": f"""
[recording]
folder = "recordings"
recipients = ["{KEY.to_public()}"]
""",
    "routes": """
[[route]]
name = "recorded"
to = "^recorded$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
[route.session.audio.input.turn_detection]
type = "server_vad"
[[route]]
name = "asked"
to = "^asked$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
consent = "ask"
consent_timeout = 1.5
[route.session.audio.input.turn_detection]
type = "server_vad"
[[route]]
name = "told"
to = "^told$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
consent = "announce"
[[route]]
name = "wanted"
to = "^wanted$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "on_demand"
tool = true
""",
}


def interrupted(seed: int, count: int = 6) -> dict[str, Any]:
    """Answers of bytes that come once only, cut at random moments."""
    ways: list[dict[str, Any]] = [{"burst": True}, {"speed": 1.1}, {"speed": 4.0}]
    answers = [
        {"kind": "pattern", "seconds": 4, "seed": 100 * seed + number, **ways[number % len(ways)]}
        for number in range(count + 1)
    ]
    speech = {"min_ms": 30, "max_ms": 700, "count": count, "length_ms": 40, "seed": seed}
    return {"vad": "scripted", "answers": answers, "speech": speech}


async def file_of(world: GatewayStack, record: dict[str, Any], tmp_path: Path) -> bytes:
    """The audio of a call's recording, G.711, left and right by turns; plain from here on."""
    name = record["recording"]["file"]
    path = world.folder / "recordings" / name
    await eventually(path.exists, "the recording")
    await eventually(lambda: open_files(world) == 0, "complete files")
    whole = path.read_bytes()
    assert b"RIFF" not in whole
    target = tmp_path / f"{name}.wav"
    assert decrypt(path, target, [KEY]) == ""
    audio = target.read_bytes()[58:]
    assert len(audio) == record["recording"]["seconds"] * 16000
    return audio


def open_files(world: GatewayStack) -> int:
    """Recordings that the gateway has open, by their locks."""
    import fcntl

    count = 0
    for path in (world.folder / "recordings").glob("*.*"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                count += 1
    return count


def assert_as_heard(call: PhoneCall, audio: bytes) -> int:
    """Every packet at the ear has its place in the file, one after the other; returns the first."""
    heard = audio[1::2]
    frames = [heard[at : at + FRAME] for at in range(0, len(heard), FRAME)]
    packets = call.rtp.packets
    loud = [n for n, packet in enumerate(packets) if not is_silence(packet)]
    offset = frames.index(packets[loud[len(loud) // 2]].payload) - loud[len(loud) // 2]
    for n, packet in enumerate(packets):
        if 0 <= n + offset < len(frames):
            assert packet.payload == frames[n + offset], f"frame {n} of {len(packets)}"
    assert all(0 <= n + offset < len(frames) for n in loud), "what was heard is in the file"
    return offset


@pytest.mark.parametrize("seed", range(3))
async def test_interruptions_are_in_the_file_as_the_caller_heard_them(
    world: GatewayStack, tmp_path: Path, seed: int
) -> None:
    world.behave(**interrupted(seed))
    call = await world.dial("recorded")
    said = noise(seed, 0.6)
    call.rtp.say(said)
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("input_audio_buffer.speech_started")) >= 6, 30)
    await call.rtp.heard_bytes(20_000)
    await world.summary_at_end(call)
    record = await world.record(call)
    assert len(record["interruptions"]) >= 3
    audio = await file_of(world, record, tmp_path)
    assert_as_heard(call, audio)
    assert said in audio[::2], "what the caller said is in the file, whole"
    told = record["recording"]
    assert (told["state"], told["consent"], told["encryption"]) == ("stopped", "", "age")
    assert told["dropped_frames"] == 0
    assert told["silenced_seconds"] == 0

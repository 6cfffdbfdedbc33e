# SPDX-License-Identifier: GPL-2.0-or-later
"""Live sessions of the emulator: clock, audio, texts, delegation, the end."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from gateway.devtools.emulator.server import Emulator
from gateway.devtools.emulator.speech import PCMU, pattern, synthesise
from tests.support.emulator_client import END_CALL, LiveClient, live, with_emulator

BACKEND = {"type": "responses", "responses": {"model": "small", "tools": [END_CALL]}}
G711 = [{"type": "audio/pcmu", "rate": 8000}, {"type": "audio/pcma", "rate": 8000}]
PCM = [{"type": "audio/pcm", "rate": 16000}, {"type": "audio/pcm", "rate": 24000}]


def _caller(seconds_of_silence: float = 0.8) -> bytes:
    """A caller's sentence in u-law and the silence that ends the turn."""
    spoken = PCMU.encode(*synthesise("I would like to book a room, please."))
    return spoken + PCMU.silence(round(seconds_of_silence * 1000))


def _loud(audio: bytes) -> bool:
    return set(audio) > {0xFF}


def test_nothing_happens_without_audio_and_as_much_comes_as_is_sent() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.begin()
            await client.text("commentary", "Good morning.", event_id="g1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.receive()
            await client.quiet(3000)
            appended = await client.until("session.commentary.appended")
            assert (appended["client_event_id"], appended["start_ms"]) == ("g1", 0)
            while len(client.audio()) < 3000 * 8:
                await client.receive()
            assert len(client.audio()) == 3000 * 8
            assert _loud(client.audio())

    with_emulator(test)


@pytest.mark.parametrize("format_", [*G711, *PCM], ids=lambda one: f"{one['type']}-{one['rate']}")
def test_each_format_carries_speech_and_silence(format_: dict[str, Any]) -> None:
    width = 2 if format_["type"] == "audio/pcm" else 1
    silence = {"audio/pcmu": b"\xff", "audio/pcma": b"\xd5"}.get(format_["type"], b"\0")

    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            started = await client.begin(audio={"format": format_, "output": {"voice": "cedar"}})
            assert started["audio"] == {"format": format_, "output": {"voice": "cedar"}}
            second = silence * (format_["rate"] * width)
            await client.append(second, len(second))
            while len(client.audio()) < len(second):
                await client.receive()
            assert client.audio() == second
            await client.text("commentary", "Hello there.")
            await client.append(second * 3, len(second))
            await client.until("session.output_transcript.delta")
            assert set(client.audio()) > set(silence)

    with_emulator(test)


def test_a_turn_is_answered_and_both_sides_are_transcribed() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator, transcript="Two nights please.") as client:
            await client.begin()
            await client.append(_caller())
            await client.quiet(9000)
            await _until_transcript(client, "what I heard.")
            assert client.transcript("input") == "Two nights please."
            fragment = next(e for e in client.events if e["type"].startswith("session.input_t"))
            assert fragment["end_ms"] - fragment["start_ms"] >= 200

    with_emulator(test)


async def _until_transcript(client: LiveClient, text: str) -> None:
    while text not in client.transcript():
        await client.receive()


def test_the_model_stops_when_the_caller_speaks_unless_the_script_talks_on() -> None:
    async def test(emulator: Emulator) -> None:
        lengths = []
        for talks_on in (False, True):
            answers: dict[str, Any] = {"answer__kind": "pattern", "answer__seconds": 6}
            async with live(emulator, **answers, live__talks_on=talks_on) as client:
                await client.begin()
                await client.append(_caller())
                await client.append(_caller())
                await client.quiet(1000)
                await client.send("session.close")
                await client.until("session.closed")
                heard = client.audio().rstrip(b"\xff").lstrip(b"\xff")
                lengths.append(len(heard))
        assert lengths[0] < lengths[1]

    with_emulator(test)


def test_bytes_of_a_pattern_are_unchanged_on_the_track() -> None:
    async def test(emulator: Emulator) -> None:
        answer: dict[str, Any] = {
            "answer__kind": "pattern",
            "answer__seconds": 2,
            "answer__seed": 7,
        }
        async with live(emulator, **answer) as client:
            await client.begin()
            await client.append(_caller())
            await client.quiet(3000)
            while pattern(7, 16000) not in client.audio():
                await client.receive()
            record = emulator.sessions[-1]
            assert pattern(7, 16000) in record.sent_track

    with_emulator(test)


def test_a_call_of_the_backend_is_answered_and_its_continuation_is_spoken() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.begin(delegation=BACKEND)
            await client.text("thinking", "The caller pressed 0")
            await client.quiet(400)
            created = await client.until("session.delegation.created")
            assert created["delegation"]["target"] == "responses"
            while not client.backend("response.completed"):
                await client.receive()
            (item,) = [event["item"] for event in client.backend("response.output_item.done")]
            assert (item["type"], item["name"]) == ("function_call", "end_call")
            await client.send("response.create", event_id="early")
            error = await client.error()
            assert (error["type"], error["client_event_id"]) == ("invalid_request_error", "early")
            output = {"type": "function_call_output", "call_id": item["call_id"], "output": "ok"}
            await client.send("response.item.create", item=output)
            await client.send("response.create")
            await client.quiet(9000)
            await _until_transcript(client, "The function answered: ok")
            assert len(client.backend("response.completed")) == 2

    with_emulator(test)


def test_a_delegation_to_the_client_is_answered_by_commentary() -> None:
    async def test(emulator: Emulator) -> None:
        answer: dict[str, Any] = {"answer__kind": "nothing", "answer__delegate": True}
        async with live(emulator, **answer, live__append_delay_ms=0) as client:
            await client.begin()
            await client.append(_caller())
            await client.quiet(3000)
            created = await client.until("session.delegation.created")
            assert created["delegation"].keys() == {"id", "type", "target"}
            for id_, accepted in ((created["delegation"]["id"], True), ("dlg_no", False)):
                await client.text("commentary", "Booked.", delegation_id=id_)
                await client.quiet(200)
                wanted = "session.commentary.appended" if accepted else "error"
                await client.until(wanted)
            await client.quiet(3000)
            await _until_transcript(client, "Booked.")

    with_emulator(test)


def test_a_fixture_replaces_speech_and_deafens_the_model() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.begin()
            tone = synthesise("A notice.")[0][: 24000 * 2]
            clip = base64.b64encode(tone).decode()
            await client.send("session.output_audio.fixture.play", audio=clip, event_id="f1")
            await client.until("session.output_audio.fixture.playing")
            await client.text("commentary", "Too early.")
            assert (await client.error())["type"] == "invalid_request_error"
            await client.send("session.output_audio.fixture.play", audio=clip)
            await client.error()
            await client.quiet(1500)
            played = await client.until("session.output_audio.fixture.played")
            assert played["client_event_id"] == "f1"

    with_emulator(test)


def test_the_end_carries_reason_session_and_usage() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.begin()
            await client.text("thinking", "Never placed.", event_id="t1")
            await client.send("session.close", event_id="c1")
            error = await client.error()
            assert error["code"] == "context_injection_incomplete"
            assert error["client_event_id"] == "t1"
            closed = await client.until("session.closed")
            assert closed["reason"] == "close_requested"
            assert closed["client_event_id"] == "c1"
            assert closed["usage"]["seconds"] >= 1
            assert await client.closed() == 1005

    with_emulator(test)

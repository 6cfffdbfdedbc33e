# SPDX-License-Identifier: GPL-2.0-or-later
"""What the emulator hears: turns in real speech, interruptions, idle callers."""

from __future__ import annotations

import base64
import contextlib
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest

from gateway.devtools import speech
from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.listening import Started, Stopped, VadSettings, VoiceDetector
from gateway.devtools.speech import (
    FORMATS,
    PCMA,
    PCMU,
    AudioFormat,
    engine,
    pattern,
    resample,
    synthesise,
    tones,
    words_of_keys,
)
from tests.support import idle_clock
from tests.support.emulator_client import PCMU_SESSION, Client, phone, session, with_emulator

SENTENCE = "Good morning, I would like to book a room for two nights, please."


def spoken(audio_format: AudioFormat, before_ms: int, after_ms: int) -> tuple[bytes, int]:
    """A sentence between silences, and its length in ms without espeak's own quiet edges."""
    pcm, rate = synthesise(SENTENCE, "ash")
    loud = np.flatnonzero(np.abs(np.frombuffer(pcm, dtype="<i2").astype(int)) > 600)
    pcm = pcm[loud[0] * 2 : loud[-1] * 2 + 2]
    speech = audio_format.encode(pcm, rate)
    silence = audio_format.silence
    return silence(before_ms) + speech + silence(after_ms), audio_format.length_ms(len(speech))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_turn_is_found_where_it_is(name: str) -> None:
    audio_format = FORMATS[name]
    audio, speech_ms = spoken(audio_format, 1000, 1500)

    async def turn(emulator: Emulator) -> None:
        formats = {"format": {"type": name}}
        audio_settings = {
            "input": {
                **formats,
                "turn_detection": {"prefix_padding_ms": 200, "silence_duration_ms": 600},
            },
            "output": formats,
        }
        async with session(emulator, "silent") as client:
            await client.update({"type": "realtime", "audio": audio_settings})
            await client.append(audio, 20 * audio_format.bytes_per_ms)
            started = await client.until("input_audio_buffer.speech_started")
            stopped = await client.until("input_audio_buffer.speech_stopped")
            # 1,000 ms of silence less 200 ms of padding, a few frames of 20 ms more or less.
            assert 700 <= started["audio_start_ms"] <= 900
            end_ms = 1000 + speech_ms + 600
            assert end_ms - 200 <= stopped["audio_end_ms"] <= end_ms + 200
            item_id = started["item_id"]
            await client.until("conversation.item.done")
            await client.send("conversation.item.retrieve", item_id=item_id)
            item = (await client.until("conversation.item.retrieved"))["item"]
            heard = base64.b64decode(item["content"][0]["audio"])
            turn_ms = stopped["audio_end_ms"] - started["audio_start_ms"]
            assert abs(audio_format.length_ms(len(heard)) - turn_ms) <= 40
            offset = started["audio_start_ms"] * audio_format.bytes_per_ms
            assert heard == audio[offset : offset + len(heard)]
            assert bytes(emulator.sessions[-1].received[: len(audio)]) == audio

    with_emulator(turn)


def test_noise_and_clicks_are_no_speech() -> None:
    noise = np.random.default_rng(1).normal(0, 60, 5 * 8000).astype("<i2").tobytes()
    click = (
        tones([1000], 0.02, -6)[: 2 * 24 * 20] + bytes(2 * 24 * 480)
    ) * 3  # 20 ms at 24 kHz, twice a second
    settings = VadSettings(threshold=0.5, prefix_padding_ms=300, silence_ms=500)
    for pcm in (noise, resample(click, 24000, 8000)):
        detector = VoiceDetector(settings, PCMU, 0)
        assert detector.feed(PCMU.encode(pcm, 8000)) == []


def test_detection_does_not_depend_on_the_size_of_appends() -> None:
    audio, _ = spoken(PCMA, 700, 900)
    settings = VadSettings(threshold=0.5, prefix_padding_ms=300, silence_ms=500)
    seen = []
    for size in (1, 77, 160, 4000, len(audio)):
        detector = VoiceDetector(settings, PCMA, 0)
        found: list[Started | Stopped] = []
        for start in range(0, len(audio), size):
            found += detector.feed(audio[start : start + size])
        seen.append(found)
    assert all(found == seen[0] for found in seen)
    assert [type(event) for event in seen[0]] == [Started, Stopped]


def test_the_caller_hears_the_own_voice_byte_for_byte() -> None:
    audio, speech_ms = spoken(PCMU, 500, 1000)

    async def echo(emulator: Emulator) -> None:
        async with phone(emulator, speed=200) as client:
            await client.append(audio)
            response = await client.done()
            words = response["output"][0]["content"][0]["transcript"]
            assert words.endswith("This is what I heard.")
            seconds = float(words.split()[3])
            assert abs(seconds * 1000 - speech_ms) < 300
            start = client.events[2 + client.types()[2:].index("input_audio_buffer.speech_started")]
            offset = start["audio_start_ms"] * 8
            heard = client.audio()[-20_000:]
            assert heard in audio[offset:]

    with_emulator(echo)


async def answering(client: Client) -> str:
    """Begin an answer; its id when its first audio is here."""
    await client.send("response.create")
    created = await client.until("response.created")
    await client.until("response.output_audio.delta")
    return str(created["response"]["id"])


TAIL = [
    "input_audio_buffer.speech_started",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
]


@pytest.mark.parametrize(("tail", "order"), [("full", TAIL), ("bare", [TAIL[0], *TAIL[-2:]])])
def test_speech_cancels_the_answer_with_the_documented_tail(tail: str, order: list[str]) -> None:
    audio, _ = spoken(PCMU, 100, 0)

    async def interrupt(emulator: Emulator) -> None:
        async with phone(
            emulator, "pattern", answer__seconds=60, speed=2, cancel_tail=tail
        ) as client:
            response_id = await answering(client)
            await client.append(audio)
            await client.until("input_audio_buffer.speech_started")
            start = len(client.events) - 1
            await client.until("rate_limits.updated")
            assert client.types()[start:] == order  # no delta after speech_started
            done = client.events[-2]["response"]
            assert done["id"] == response_id
            assert done["status"] == "cancelled"
            assert done["status_details"]["reason"] == "turn_detected"
            item = done["output"][0]
            assert item["status"] == "incomplete"
            await client.send(
                "conversation.item.truncate",
                item_id=item["id"],
                content_index=0,
                audio_end_ms=PCMU.length_ms(len(client.audio())),
            )
            await client.until("conversation.item.truncated")
            await client.send("response.cancel", event_id="late")
            assert (await client.error())["code"] == "response_cancel_not_active"

    with_emulator(interrupt)


def test_interrupt_response_false_lets_the_answer_go_on() -> None:
    audio, _ = spoken(PCMU, 100, 900)

    async def go_on(emulator: Emulator) -> None:
        # Half of the answer comes when nothing else happens any more.
        stall: dict[str, Any] = {"answer__stall_at_ms": 6000, "answer__stall_s": 20}
        said: dict[str, Any] = {"answer__seconds": 12, "answer__burst": True, **stall}
        async with phone(emulator, "pattern", **said) as client:
            vad = {"turn_detection": {"interrupt_response": False}}
            await client.update({"type": "realtime", "audio": {"input": vad}})
            await answering(client)
            await client.append(audio)
            await client.until("input_audio_buffer.committed")
            # The turn ended during the answer: the service may refuse to answer it.
            assert (await client.error())["code"] == "conversation_already_has_active_response"
            done = await client.until("response.done")
            assert done["response"]["status"] == "completed"
            assert len(client.audio()) == 12 * 8000

    with_emulator(go_on, run=idle_clock.run)


def test_create_response_false_only_reports_the_turn() -> None:
    audio, _ = spoken(PCMU, 100, 900)

    async def report(emulator: Emulator) -> None:
        async with phone(emulator) as client:
            vad = {"turn_detection": {"create_response": False}}
            await client.update({"type": "realtime", "audio": {"input": vad}})
            await client.append(audio)
            await client.until("conversation.item.done")
            await client.say("mark")
            await client.until("conversation.item.done")
            assert "response.created" not in client.types()

    with_emulator(report)


def test_manual_turns_without_detection() -> None:
    audio, _ = spoken(PCMU, 100, 900)

    async def manual(emulator: Emulator) -> None:
        async with phone(emulator, speed=200) as client:
            off = {"input": {"turn_detection": None}}
            await client.update({"type": "realtime", "audio": off})
            await client.append(audio)
            await client.send("input_audio_buffer.clear")
            await client.until("input_audio_buffer.cleared")
            await client.append(audio[:720])
            await client.send("input_audio_buffer.commit")
            error = await client.error()
            assert error["code"] == "input_audio_buffer_commit_empty"
            assert "90.00ms" in error["message"]
            await client.append(audio[720:])
            await client.send("input_audio_buffer.commit")
            committed = await client.until("input_audio_buffer.committed")
            await client.send("conversation.item.retrieve", item_id=committed["item_id"])
            item = (await client.until("conversation.item.retrieved"))["item"]
            assert base64.b64decode(item["content"][0]["audio"]) == audio
            assert "input_audio_buffer.speech_started" not in client.types()
            response = await client.answered()
            assert "You spoke" in response["output"][0]["content"][0]["transcript"]

    with_emulator(manual)


def test_transcription_says_that_it_knows_no_words() -> None:
    audio, _ = spoken(PCMU, 100, 900)

    async def transcribe(emulator: Emulator) -> None:
        transcription = {"input": {"transcription": {"model": "gpt-transcribe"}}}
        type_ = "conversation.item.input_audio_transcription.completed"
        async with phone(emulator, "silent") as client:
            await client.update({"type": "realtime", "audio": transcription})
            await client.append(audio)
            assert "not transcribed" in (await client.until(type_))["transcript"]
        async with phone(emulator, "silent", transcript="Two nights.") as client:
            await client.update({"type": "realtime", "audio": transcription})
            await client.append(audio)
            done = await client.until(type_)
            assert done["transcript"] == "Two nights."
            assert done["usage"]["type"] == "duration"
        transcription["input"]["transcription"]["model"] = "gpt-4o-mini-transcribe"
        async with phone(emulator, "silent") as client:
            await client.update({"type": "realtime", "audio": transcription})
            await client.append(audio)
            usage = (await client.until(type_))["usage"]
            assert usage["type"] == "tokens", "as it is billed"
            assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]

    with_emulator(transcribe)


def test_an_idle_caller_is_asked() -> None:
    async def idle(emulator: Emulator) -> None:
        async with phone(emulator, speed=200) as client:
            vad = {"turn_detection": {"idle_timeout_ms": 1500}}
            await client.update({"type": "realtime", "audio": {"input": vad}})
            await client.answered(instructions="Say exactly: Yes?")
            start = len(client.events)
            await client.append(PCMU.silence(2000))
            response = await client.done()
            assert client.types()[start : start + 5] == [
                "input_audio_buffer.timeout_triggered",
                "input_audio_buffer.committed",
                "conversation.item.added",
                "conversation.item.done",
                "response.created",
            ]
            triggered = client.events[start]
            assert (triggered["audio_start_ms"], triggered["audio_end_ms"]) == (500, 2000)
            words = response["output"][0]["content"][0]["transcript"]
            assert words == "Are you still there?"

    with_emulator(idle, run=idle_clock.run)


def test_formats_of_both_directions_are_independent() -> None:
    async def mixed(emulator: Emulator) -> None:
        async with session(emulator, speed=200) as client:
            formats = {
                "input": {"format": {"type": "audio/pcma"}},
                "output": {"format": {"type": "audio/pcm", "rate": 24000}},
            }
            await client.update({"type": "realtime", "audio": formats})
            await client.append(spoken(PCMA, 200, 900)[0])
            await client.done()
            wide = client.audio()
        async with session(emulator, speed=200) as client:
            await client.update(PCMU_SESSION)
            await client.append(spoken(PCMU, 200, 900)[0])
            await client.done()
            narrow = client.audio()
        assert abs(len(wide) / 48 - len(narrow) / 8) < 100  # ms

    with_emulator(mixed)


def test_speech_differs_by_voice_and_is_loud_enough() -> None:
    voices = {name: synthesise("Hello.", name) for name in ("marin", "cedar", "ash", "unknown")}
    assert len({pcm for pcm, _ in voices.values()}) == len(voices)
    for pcm, rate in voices.values():
        samples = np.frombuffer(pcm, dtype="<i2").astype(float)
        assert rate >= 8000
        assert 0.2 < len(samples) / rate < 2
        assert np.sqrt((samples**2).mean()) > 1000
    slow, rate = synthesise("Hello, this is a test.", "marin", 0.5)
    assert len(slow) > 1.5 * len(synthesise("Hello, this is a test.", "marin", 1.0)[0])
    assert words_of_keys("4 2#") == "4, 2, hash"


def test_two_threads_that_speak_first_share_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has one state for the process, and frees what its first use has set."""
    made, both = list[object](), threading.Barrier(2)

    class Library:
        def __init__(self) -> None:
            made.append(self)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.2)  # for a second one

    monkeypatch.setattr(speech, "_Library", Library)
    monkeypatch.setattr(speech, "_engine", cache(speech._engine.__wrapped__))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: engine(), range(2))
    assert first is second
    assert len(made) == 1


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the espeak-ng program is missing")
def test_the_program_speaks_as_the_library_does(monkeypatch: pytest.MonkeyPatch) -> None:
    library = engine()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # importing it fails
    speech._engine.cache_clear()
    program = engine()
    speech._engine.cache_clear()
    assert type(program) is not type(library)
    lengths = [
        len(speaker.synthesise("One, two, three. Grüße!", "en-us+f2", 50, 165)) / speaker.rate
        for speaker in (library, program)
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.3)


def test_patterns_are_reproducible_prefixes_without_negative_zero() -> None:
    assert pattern(3, 100) == pattern(3, 5000)[:100]
    assert pattern(3, 100) != pattern(4, 100)
    assert 0x7F not in pattern(3, 100_000)

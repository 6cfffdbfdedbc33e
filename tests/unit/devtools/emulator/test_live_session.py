# SPDX-License-Identifier: GPL-2.0-or-later
"""Live sessions of the emulator: clock, audio, texts, delegation, the end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.devtools.emulator import AZURE_LIVE_PATH, LIVE_PATH, Emulator
from gateway.devtools.emulator.script import LIVE_CODES, Script
from gateway.devtools.speech import pattern, synthesise
from tests.support.emulator_client import (
    LIVE_BACKEND,
    LiveClient,
    caller_turn,
    input_text,
    live,
    with_emulator,
)

G711 = [{"type": "audio/pcmu", "rate": 8000}, {"type": "audio/pcma", "rate": 8000}]
PCM = [{"type": "audio/pcm", "rate": 16000}, {"type": "audio/pcm", "rate": 24000}]


_AUDIO = "session.output_audio.delta"


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
            await client.caught_up()
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
            await client.append(caller_turn())
            await client.quiet(9000)
            await _until_transcript(client, "what I heard.")
            assert client.transcript("input") == "Two nights please."
            fragment = next(e for e in client.events if e["type"].startswith("session.input_t"))
            assert fragment["end_ms"] - fragment["start_ms"] >= 200

    with_emulator(test)


def test_the_end_sends_the_words_that_were_still_to_come() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator, live__transcript_lag_ms=60_000) as client:
            await client.begin()
            await client.text("commentary", "Good morning.")
            await client.quiet(3000)
            await client.caught_up()
            assert not client.transcript()
            await client.send("session.close")
            await client.until("session.closed")
            assert client.transcript() == "Good morning."

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
                await client.append(caller_turn())
                await client.append(caller_turn())
                await client.quiet(1000)
                await client.caught_up()
                lengths.append(len(client.audio().replace(b"\xff", b"")))
        assert lengths[0] < lengths[1]

    with_emulator(test)


def test_a_scripted_caller_interrupts_at_the_moments_that_the_script_says() -> None:
    async def test(emulator: Emulator) -> None:
        answer: dict[str, Any] = {"answer__kind": "nothing", "vad": "scripted"}
        answer |= {"speech__at_ms": "400", "speech__length_ms": 500}
        async with live(emulator, **answer, live__append_delay_ms=0) as client:
            await client.begin()
            await client.text("commentary", "This is a rather long sentence, which is cut short.")
            await client.quiet(5000)
            await client.caught_up()
            spoken_ms = len(client.audio().strip(b"\xff")) / 8
            assert 400 < spoken_ms < 1000

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
            await client.append(caller_turn())
            await client.quiet(3000)
            while pattern(7, 16000) not in client.audio():
                await client.receive()
            record = emulator.sessions[-1]
            assert pattern(7, 16000) in record.sent_track

    with_emulator(test)


def test_a_call_of_the_backend_is_answered_and_its_continuation_is_spoken() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.begin(delegation=LIVE_BACKEND)
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
            await client.append(caller_turn())
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


def test_an_update_changes_the_backend_only() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            before = await client.begin(delegation=LIVE_BACKEND)
            update = {"type": "responses", "responses": {"instructions": "Be brief."}}
            await client.send("session.update", session={"delegation": update}, event_id="u")
            updated = await client.until("session.updated", client_event_id="u")
            backend = updated["session"]["delegation"]["responses"]
            assert backend == {**LIVE_BACKEND["responses"], "instructions": "Be brief."}
            assert updated["session"]["audio"] == before["audio"]

    with_emulator(test)


_ENDINGS: dict[str, str | int] = {
    "live-expired": "expired",
    "live-content": "content",
    "live-hangup": "remote_hangup",
    "live-connection-lost": "connection_lost",
    "live-lost": 1011,
    "live-drop": 1006,
    "live-invalid-model": "invalid_model",
    "live-forbidden-voice": "forbidden",
    "live-no-quota": "insufficient_quota",
    "live-deactivated": "account_deactivated",
    "live-billing-limit": "billing_hard_limit_reached",
    "bad-key": "invalid_api_key",
    "live-filtered": "content_filter",
    "live-unknown-error": "never_seen",
    "live-incomplete": "responses_handoff_incomplete",
    "live-not-stored": "session_storage_failed",
    "live-bare-close": 1006,
}


_ENDINGS |= {f"live-{code.replace('_', '-')}": code for code in LIVE_CODES}


@pytest.mark.parametrize(("script", "outcome"), _ENDINGS.items())
def test_each_fault_can_be_asked_for_by_name(script: str, outcome: str | int) -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator, script) as client:
            given = {
                "model": "gpt-live-1.1",
                "audio": {"format": G711[0]},
                "delegation": LIVE_BACKEND,
            }
            with contextlib.suppress(ConnectionClosed):
                await client.send("session.start", session=given)
            if (await client.receive())["type"] == "session.started":
                await client.append(caller_turn())
                await client.quiet(3000)
                if script in ("live-not-stored", "live-bare-close"):
                    await client.send("session.close")
            if isinstance(outcome, int):
                assert await client.closed() == outcome
                return
            while not any(_is(event, outcome) for event in client.events):
                await client.receive()

    with_emulator(test)


def _is(event: dict[str, Any], outcome: str) -> bool:
    return bool(event.get("reason") == outcome or event.get("error", {}).get("code") == outcome)


def test_sessions_that_say_nothing_stall_or_burst() -> None:
    async def test(emulator: Emulator) -> None:
        for script in ("live-mute", "live-unspoken"):
            async with live(emulator, script) as client:
                await client.begin()
                await client.text("commentary", "Good morning.")
                await client.quiet(3000)
                await client.until("session.commentary.appended")
                await client.caught_up()
                assert not _loud(client.audio())
        async with live(emulator, "live-burst") as client:
            await client.begin()
            await client.append(caller_turn())
            while len(client.audio()) < client.sent_bytes + 20_000:
                await client.receive()
        async with live(emulator, "live-stall") as client:
            await client.begin()
            await client.append(caller_turn())
            await client.quiet(6000)
            await client.caught_up()
            steps = [event.at for event in emulator.sessions[-1].sent(_AUDIO)]
            assert len(steps) == client.sent_bytes // 800

    with_emulator(test)


def test_the_session_ends_when_its_time_is_over_or_no_audio_comes() -> None:
    async def test(emulator: Emulator) -> None:
        every: list[dict[str, Any]] = [{"expires_s": 0.2}, {"live__input_timeout_s": 0.2}]
        for limits in every:
            async with live(emulator, **limits) as client:
                started = await client.begin()
                assert started["expires_at"] > 1_700_000_000
                closed = await client.until("session.closed")
                assert closed["reason"] == "expired"
                assert await client.closed() == 1005

    with_emulator(test)


def test_usage_is_cumulative() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator, live__usage_interval_s=0.05) as client:
            await client.begin()
            first = await client.until("session.usage.updated")
            second = await client.until("session.usage.updated")
            assert 1 <= first["usage"]["seconds"] <= second["usage"]["seconds"]
            assert 0 <= second["context_window"]["usage_ratio"] < 0.01

    with_emulator(test)


def test_azure_takes_24_khz_only_and_echoes_no_ids() -> None:
    async def test(emulator: Emulator) -> None:
        url = emulator.live_url(live__speed=100).replace(LIVE_PATH, AZURE_LIVE_PATH)
        headers = {"api-key": "k"}
        async with connect(url, additional_headers=headers, max_queue=None) as socket:
            client = LiveClient(socket)
            bad = {"model": "my-deployment", "audio": {"format": G711[0]}}
            await client.send("session.start", session=bad, event_id="s")
            error = await client.error()
            assert (error["code"], error.get("client_event_id")) == ("invalid_value", None)
            await client.send("session.start", session={"model": "my-deployment"}, event_id="s")
            started = await client.until("session.started")
            assert "client_event_id" not in started
            await client.append(bytes(9600), 9600)
            delta = await client.until(_AUDIO)
            assert (delta["start_ms"], delta["end_ms"]) == (0, 100)
        with pytest.raises(InvalidStatus):
            async with connect(f"{url}&api-version=2026-11-01"):
                pass

    with_emulator(test, api_key="k")


def test_decisions_are_declined_and_triggers_fire() -> None:
    question = {"type": "predicate", "instructions": "Does the caller want a person?"}
    trigger = {
        "type": "decisions",
        "event_type": "session.input_transcript.delta",
        "decisions": {"questions": [question]},
    }
    delegation = {"type": "decisions", "decisions": {"model": "d", "questions": [question]}}

    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.begin(delegation=delegation, triggers=[trigger])
            item = {"type": "message", "role": "user", "content": [input_text("hello")]}
            await client.send("decision.item.create", item=item)
            created = await client.until("decision.item.created")
            await client.send("decision.item.delete", item_id=created["item"]["id"])
            await client.until("decision.item.deleted")
            await client.send("decision.create", event_id="d1")
            await client.until("decision.event")
            await client.append(caller_turn())
            await client.quiet(1000)
            event = await client.until("decision.event")
            assert event["source_event_type"] == "session.input_transcript.delta"
            assert event["event"]["decision"]["answers"] == [{"type": "refusal", "name": None}]

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


def test_calls_of_one_response_are_answered_together_and_may_lead_to_more() -> None:
    answers = [
        {"kind": "nothing", "tools": [{"name": "look"}, {"name": "book"}]},
        {"kind": "nothing", "tools": [{"name": "confirm"}]},
        {"kind": "say", "text": "All is booked."},
    ]

    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.begin(delegation=LIVE_BACKEND)
            await client.append(caller_turn())
            first, second = await _calls(client, 2)
            await _answer(client, first)
            await client.send("response.create", event_id="partial")
            assert (await client.error())["client_event_id"] == "partial"
            await _answer(client, second)
            await client.send("response.create")
            (third,) = await _calls(client, 1)
            assert (first["name"], second["name"], third["name"]) == ("look", "book", "confirm")
            await _answer(client, third)
            await client.send("response.create")
            await client.quiet(6000)
            await _until_transcript(client, "All is booked.")
            # Nothing was said before the work was handed over, so the voice asked for patience.
            assert client.transcript().startswith("One moment")
            created = [one for one in client.events if one["type"] == "session.delegation.created"]
            of_backend = [one for one in client.events if one["type"] == "response.event"]
            assert {one["delegation_id"] for one in of_backend} == {created[0]["delegation"]["id"]}

    with_emulator(test, script=Script.model_validate({"answers": answers}))


async def _calls(client: LiveClient, count: int) -> list[dict[str, Any]]:
    """The function calls of the backend's next response."""
    before = len(client.backend("response.completed"))
    while len(client.backend("response.completed")) == before:
        await client.receive()
    done = client.backend("response.output_item.done")
    return [event["item"] for event in done[-count:]]


async def _answer(client: LiveClient, call: dict[str, Any]) -> None:
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "ok"}
    await client.send("response.item.create", item=output)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator speaks the GA protocol as the official client reads it."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from openai import AsyncOpenAI
from openai.types.realtime.realtime_response import RealtimeResponse
from openai.types.realtime.realtime_session_create_request import RealtimeSessionCreateRequest

from gateway.devtools.emulator import Emulator
from gateway.devtools.speech import PCMU, synthesise
from tests.support.emulator_client import PCMU_SESSION, Client, check, phone, session, with_emulator


def test_official_client_understands_a_conversation() -> None:
    async def conversation(emulator: Emulator) -> None:
        client = AsyncOpenAI(websocket_base_url=f"ws://127.0.0.1:{emulator.port}/v1", api_key="k")
        async with client.realtime.connect(model="gpt-realtime-2.1") as connection:
            await connection.session.update(session=PCMU_SESSION)  # type: ignore[arg-type]
            await connection.response.create(response={"instructions": "Say exactly: Good day."})
            transcript, audio = "", 0
            async with asyncio.timeout(10):
                async for event in connection:
                    check(event.to_dict(mode="json"))
                    if event.type == "response.output_audio_transcript.delta":
                        transcript += event.delta
                    elif event.type == "response.output_audio.delta":
                        audio += len(base64.b64decode(event.delta))
                    elif event.type == "response.done":
                        assert event.response.status == "completed"
                        assert event.response.usage is not None
                        details = event.response.usage.output_token_details
                        assert details is not None
                        assert details.audio_tokens == audio // PCMU.bytes_per_ms // 50
                        break
            assert transcript == "Good day."
            assert audio > 4000

    with_emulator(conversation)


def test_objects_have_every_key() -> None:
    async def keys(emulator: Emulator) -> None:
        async with session(emulator) as client:
            created = (await client.until("session.created"))["session"]
            assert set(created) >= set(RealtimeSessionCreateRequest.model_fields)
            assert created["object"] == "realtime.session"
            assert "emulator" in created["id"]
            assert "emulator" in created["instructions"]
            assert set(created["audio"]["input"]) == {
                "format",
                "noise_reduction",
                "transcription",
                "turn_detection",
            }
            await client.answered()
            for event in client.events:
                if "response" in event:
                    assert set(event["response"]) == set(RealtimeResponse.model_fields)

    with_emulator(keys)


VOICE_TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
]


def test_a_voice_turn_has_the_documented_order() -> None:
    async def turn(emulator: Emulator) -> None:
        async with phone(emulator, speed=100) as client:
            client.events.clear()
            pcm, rate = synthesise("I would like to book a room for two nights.", "ash")
            await client.append(PCMU.encode(pcm, rate) + PCMU.silence(900))
            response = await client.done()
            assert client.types(deltas=False) == VOICE_TURN
            started, _, committed, added = client.events[:4]
            assert started["item_id"] == committed["item_id"] == added["item"]["id"]
            words = response["output"][0]["content"][0]["transcript"]
            assert words.startswith("You spoke for ")
            first = client.types().index("response.output_audio_transcript.delta")
            assert first < client.types().index("response.output_audio.delta")

    with_emulator(turn)


def test_goodbye_is_spoken_before_end_call_in_one_response() -> None:
    async def goodbye(emulator: Emulator) -> None:
        async with phone(emulator, speed=100) as client:
            await client.say("The caller pressed 0 on the telephone keypad.")
            response = await client.answered()
            message, call = response["output"]
            assert "Goodbye" in message["content"][0]["transcript"]
            assert (call["type"], call["name"], call["status"]) == (
                "function_call",
                "end_call",
                "completed",
            )
            assert json.loads(call["arguments"])["reason"]
            deltas = [
                event["delta"]
                for event in client.events
                if event["type"] == "response.function_call_arguments.delta"
            ]
            assert "".join(deltas) == call["arguments"]
            types = client.types(deltas=False)
            assert types.index("response.output_audio.done") < types.index(
                "response.function_call_arguments.done"
            )
        async with session(emulator, speed=100) as client:  # without the tool: words only
            await client.say("Goodbye!")
            assert len((await client.answered())["output"]) == 1

    with_emulator(goodbye)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The caller pressed 4 2 # on the phone keypad.", "You pressed 4, 2, hash."),
        ("The caller pressed 1234* on the telephone keypad.", "You pressed 1, 2, 3, 4, star."),
        ("The caller's name is Ada.", "You wrote: The caller's name is Ada."),
    ],
)
def test_digits_and_texts_are_spoken_back(text: str, said: str) -> None:
    async def digits(emulator: Emulator) -> None:
        async with phone(emulator, speed=200) as client:
            await client.say(text)
            response = await client.answered()
            assert response["output"][0]["content"][0]["transcript"] == said
            assert len(client.audio()) > 4000

    with_emulator(digits)


def test_text_modality_out_of_band_and_metadata() -> None:
    async def out_of_band(emulator: Emulator) -> None:
        async with phone(emulator, speed=0.05) as client:  # it lasts until it is cancelled
            await client.send("response.create")
            await client.until("response.output_audio.delta")
            await client.send(
                "response.create",
                response={
                    "conversation": "none",
                    "output_modalities": ["text"],
                    "metadata": {"purpose": "summary"},
                    "instructions": "Say exactly: two words",
                },
            )
            aside = await client.until("response.done")
            assert aside["response"]["metadata"] == {"purpose": "summary"}
            assert aside["response"]["conversation_id"] is None
            assert aside["response"]["output"][0]["content"] == [
                {"type": "output_text", "text": "two words"}
            ]
            await client.send("response.cancel")
            main = await client.until("response.done")
            assert main["response"]["status_details"]["reason"] == "client_cancelled"
            item_id = aside["response"]["output"][0]["id"]
            await client.send("conversation.item.retrieve", item_id=item_id)
            assert (await client.error())["code"] == "item_retrieve_invalid_item_id"

    with_emulator(out_of_band)


def test_items_are_ordered_and_usage_grows_with_a_cached_part() -> None:
    async def order(emulator: Emulator) -> None:
        async with phone(emulator, speed=500) as client:
            content = [{"type": "input_text", "text": "words " * 200}]
            item = {"type": "message", "role": "system", "content": content}
            await client.send("conversation.item.create", item={**item, "id": "a"})
            await client.send("conversation.item.create", item={**item, "id": "b"})
            await client.send(
                "conversation.item.create", item={**item, "id": "first"}, previous_item_id="root"
            )
            await client.send(
                "conversation.item.create", item={**item, "id": "mid"}, previous_item_id="a"
            )
            while client.types().count("conversation.item.done") < 4:
                await client.receive()
            added = [event for event in client.events if event["type"] == "conversation.item.added"]
            previous = {event["item"]["id"]: event["previous_item_id"] for event in added}
            assert previous == {"a": None, "b": "a", "first": None, "mid": "a"}
            usages = [(await client.answered())["usage"] for _ in range(2)]
            assert usages[0]["input_token_details"]["cached_tokens"] == 0
            cached = usages[1]["input_token_details"]["cached_tokens_details"]
            assert cached["text_tokens"] >= 1024
            assert cached["text_tokens"] <= usages[0]["input_token_details"]["text_tokens"]
            assert usages[1]["input_token_details"]["audio_tokens"] > 0
            for usage in usages:
                assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]

    with_emulator(order)


def test_function_output_is_answered() -> None:
    async def output(emulator: Emulator) -> None:
        async with phone(emulator, speed=500) as client:
            item = {"type": "function_call_output", "call_id": "call_1", "output": "Room 12"}
            await client.send("conversation.item.create", item=item)
            response = await client.answered()
            assert "Room 12" in response["output"][0]["content"][0]["transcript"]

    with_emulator(output)


def test_azure_path_and_unknown_paths() -> None:
    async def paths(emulator: Emulator) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus

        base = f"ws://127.0.0.1:{emulator.port}"
        async with connect(f"{base}/openai/v1/realtime?model=m") as socket:
            await Client(socket).until("session.created")
        with pytest.raises(InvalidStatus, match="404"):
            await connect(f"{base}/v1/other")

    with_emulator(paths)

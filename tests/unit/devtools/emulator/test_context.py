# SPDX-License-Identifier: GPL-2.0-or-later
"""``response.create.response.input``, and transcriptions that come in parts or out of order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.realtime import ConversationItemInputAudioTranscriptionSegment

from gateway.devtools.emulator import Emulator
from tests.support.emulator_client import PCMU_SESSION, Client, session, with_emulator

TEXT = {**PCMU_SESSION, "output_modalities": ["text"]}
TYPE = "conversation.item.input_audio_transcription"


def message(text: str, **fields: Any) -> dict[str, Any]:
    part = {"type": "input_text", "text": text}
    return {"type": "message", "role": "user", "content": [part], **fields}


async def said(client: Client, **response: Any) -> str:
    answer = await client.answered(**response)
    return str(answer["output"][0]["content"][0]["text"])


@pytest.mark.parametrize("conversation", ["auto", "none"])
def test_input_stands_in_place_of_the_conversation(conversation: str) -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator) as client:
            await client.update(TEXT)
            await client.send("conversation.item.create", item=message("red tea", id="item_red"))
            await client.send("conversation.item.create", item=message("green tea"))
            own = [{"type": "item_reference", "id": "item_red"}, message("with milk")]
            words = await said(client, conversation=conversation, input=own)
            assert "red tea" in words
            assert "with milk" in words
            assert "green" not in words
            await client.send("conversation.item.retrieve", item_id="item_red")
            await client.until("conversation.item.retrieved")

    with_emulator(test)


def test_usage_counts_what_is_read() -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator) as client:
            await client.update({**TEXT, "instructions": ""})
            item = message("word " * 400, id="item_long")
            await client.send("conversation.item.create", item=item)
            own = {"conversation": "none", "output_modalities": ["text"]}
            counts = []
            for given in ([], [{"type": "item_reference", "id": "item_long"}]):
                usage = (await client.answered(**own, input=given))["usage"]
                assert usage["input_token_details"]["cached_tokens"] == 0
                counts.append(usage["input_tokens"])
            assert counts == [0, 503]

    with_emulator(test)


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        ({"type": "item_reference", "id": "item_x"}, "invalid_value", "response.input[1].id"),
        ({"type": "item_reference"}, "missing_required_parameter", "response.input[1].id"),
        ({"type": "song"}, "invalid_value", "response.input[1]"),
        (message("x", colour="red"), "unknown_parameter", "response.input[1].colour"),
        ({"type": "message", "role": "user"}, "missing_required_parameter", None),
    ],
)
def test_input_is_checked(item: dict[str, Any], code: str, param: str | None) -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator) as client:
            await client.update(TEXT)
            await client.send("response.create", response={"input": [message("good"), item]})
            error = await client.error()
            assert error["code"] == code
            assert error["param"] == (param or "response.input[1].content")
            assert "good" in await said(client, input=[message("good")])

    with_emulator(test)


async def turns(client: Client, count: int) -> list[str]:
    """Commit so many turns; their ids."""
    audio: dict[str, Any] = {"format": {"type": "audio/pcmu"}, "turn_detection": None}
    audio["transcription"] = {"model": "gpt-4o-transcribe-diarize"}
    await client.update({"type": "realtime", "audio": {"input": audio}})
    ids = []
    for _ in range(count):
        await client.append(bytes([0xFF]) * 8000)
        await client.send("input_audio_buffer.commit")
        ids.append(str((await client.until("input_audio_buffer.committed"))["item_id"]))
    return ids


def test_transcriptions_come_out_of_order() -> None:
    async def test(emulator: Emulator) -> None:
        script = {"transcripts": ["one", "two"], "transcription_delays_ms": [150]}
        async with session(emulator, behaviour=json.dumps(script)) as client:
            first, second = await turns(client, 2)
            for item, words in ((second, "two"), (first, "one")):
                event = await client.until(f"{TYPE}.completed")
                assert (event["item_id"], event["transcript"]) == (item, words)

    with_emulator(test)


def test_segments_of_a_transcription() -> None:
    async def test(emulator: Emulator) -> None:
        words = "Two nights from Monday on, and breakfast please."
        script = {"transcript": words, "transcription_segments": True}
        async with session(emulator, behaviour=json.dumps(script)) as client:
            (item,) = await turns(client, 1)
            await client.until(f"{TYPE}.completed")
            seen = [event for event in client.events if event["type"] == f"{TYPE}.segment"]
            parts = [ConversationItemInputAudioTranscriptionSegment(**event) for event in seen]
            assert " ".join(part.text for part in parts) == words
            assert {part.item_id for part in parts} == {item}
            assert [(part.start, part.end) for part in parts] == [(0.0, 0.5), (0.5, 1.0)]

    with_emulator(test)

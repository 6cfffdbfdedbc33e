# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: E501 - tables
"""The emulator in the Beta dialect, every event held to the official Beta types."""

from __future__ import annotations

import asyncio
import json
import typing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai.types.beta.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import BaseModel, TypeAdapter
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.devtools.emulator import Emulator
from gateway.realtime.connection import Endpoint
from gateway.realtime.dialects import DIALECTS
from gateway.realtime.events import (
    AgentTranscript,
    AudioDelta,
    AudioDone,
    CreateResponse,
    ResponseDone,
)
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import open_session
from tests.support.emulator_client import END_CALL, Client, with_emulator

HEADER = {"OpenAI-Beta": "realtime=v1"}
PREVIEW = "/openai/realtime?api-version=2025-04-01-preview&deployment=dep"
MODELS = {
    typing.get_args(model.model_fields["type"].annotation)[0]: TypeAdapter(model)
    for model in typing.get_args(typing.get_args(RealtimeServerEvent)[0])
}
# Models and voices that are newer than the Beta types, or are Azure's deployments.
NOT_TYPED = {"session.model", "session.expires_at", "session.object"}


def held_to_the_types(event: dict[str, Any]) -> None:
    def known(value: object, path: str) -> None:
        if isinstance(value, BaseModel):
            extras = {f"{path}.{key}".lstrip(".") for key in value.model_extra or {}}
            assert not extras - NOT_TYPED, f"{event['type']}: {extras}"
            for name in type(value).model_fields:
                known(getattr(value, name), f"{path}.{name}")
        elif isinstance(value, list):
            for part in value:
                known(part, path)

    told = json.loads(json.dumps(event))
    if "session" in told:
        told["session"].pop("model")
    known(MODELS[event["type"]].validate_python(told), "")


class BetaClient(Client):
    """Checks what comes as Beta."""

    def __init__(self, socket: Any) -> None:
        super().__init__(socket, strict=False)

    async def receive(self) -> dict[str, Any]:
        event = await super().receive()
        held_to_the_types(event)
        return event


@asynccontextmanager
async def beta(emulator: Emulator, script: str | None = None, **more: Any) -> AsyncIterator[Any]:
    url = emulator.url(script, **more, beta=True, model="m")
    async with connect(url, compression=None, additional_headers=HEADER) as socket:
        client = BetaClient(socket)
        await client.until("conversation.created")
        yield client


SESSION = {
    "modalities": ["text", "audio"],
    "instructions": "Be short.",
    "voice": "ash",
    "input_audio_format": "g711_ulaw",
    "output_audio_format": "g711_alaw",
    "input_audio_transcription": {"model": "whisper-1"},
    "turn_detection": {"type": "server_vad", "threshold": 0.5},
    "tools": [END_CALL],
    "tool_choice": "auto",
    "temperature": 0.7,
    "max_response_output_tokens": 1000,
}


def test_a_conversation() -> None:
    async def talk(emulator: Emulator) -> list[str]:
        async with beta(emulator, "goodbye") as client:
            assert client.types() == ["session.created", "conversation.created"]
            session = await client.update(SESSION)
            assert {
                key: session[key] for key in ("voice", "temperature", "output_audio_format")
            } == {"voice": "ash", "temperature": 0.7, "output_audio_format": "g711_alaw"}
            assert session["turn_detection"]["silence_duration_ms"] == 500
            assert session["max_response_output_tokens"] == 1000
            assert sorted(session["modalities"]) == ["audio", "text"]
            assert not {"type", "audio", "output_modalities", "truncation"} & set(session)
            await client.say("Bye.")
            await client.send("response.create", response={"instructions": "x"})
            done = await client.done()
            message, call = done["output"]
            assert message["content"][0]["type"] == "audio"
            assert call["name"] == "end_call"
            await client.send(
                "conversation.item.truncate",
                item_id=message["id"],
                content_index=0,
                audio_end_ms=40,
            )
            await client.until("conversation.item.truncated")
            await client.send("conversation.item.retrieve", item_id=message["id"])
            (part,) = (await client.until("conversation.item.retrieved"))["item"]["content"]
            assert part["type"] == "audio"
            await client.send("response.create", response={"modalities": ["text"]})
            assert (await client.done())["modalities"] == ["text"]
            record = emulator.sessions[-1]
            assert record.sent("response.output_audio.delta"), "the record has GA's names"
            return list(client.types())

    types = with_emulator(talk)
    assert {
        "conversation.item.created",
        "response.audio.delta",
        "response.audio.done",
        "response.audio_transcript.delta",
        "response.audio_transcript.done",
        "response.content_part.added",
        "response.output_item.done",
        "response.function_call_arguments.done",
        "response.text.delta",
        "response.text.done",
        "rate_limits.updated",
    } <= set(types)
    assert not [t for t in types if "output_audio" in t or t == "conversation.item.done"]


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({"session": {"type": "realtime"}}, "unknown_parameter", "session.type"),
        ({"session": {"audio": {}}}, "unknown_parameter", "session.audio"),
        ({"session": {"output_modalities": ["audio"]}}, "unknown_parameter", "session.output_modalities"),
        ({"session": {"modalities": ["audio"]}}, "invalid_value", "session.modalities"),
        ({"session": {"input_audio_format": "audio/pcmu"}}, "invalid_value", "session.input_audio_format"),
        ({"session": {"temperature": 2.0}}, "invalid_value", "session.temperature"),
        ({"session": {"max_output_tokens": 5}}, "unknown_parameter", "session.max_output_tokens"),
        ({"session": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}}, "unknown_parameter", "session.turn_detection.idle_timeout_ms"),
        ({"type": "response.create", "response": {"output_modalities": ["text"]}}, "unknown_parameter", "response.output_modalities"),
        ({"type": "conversation.item.create", "item": {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}}, "invalid_value", "item.content[0].type"),
    ],
)  # fmt: skip
def test_what_is_ga_is_refused(event: dict[str, Any], code: str, param: str) -> None:
    async def refuse(emulator: Emulator) -> None:
        async with beta(emulator) as client:
            await client.send(**{"type_": "session.update", **_renamed(event)})
            error = await client.error()
            assert (error["code"], error["param"]) == (code, param)

    with_emulator(refuse)


def _renamed(event: dict[str, Any]) -> dict[str, Any]:
    return {"type_" if key == "type" else key: value for key, value in event.items()}


def test_beta_is_refused_unless_the_script_has_it() -> None:
    async def both(emulator: Emulator) -> None:
        url = emulator.url(model="m")
        async with connect(url, additional_headers=HEADER) as socket:
            client = Client(socket)
            assert (await client.error())["code"] == "beta_api_shape_disabled"
            assert await client.closed() == 4000
        async with connect(f"{url}&beta=true") as socket:
            assert "audio" in (await Client(socket).receive())["session"], "GA without the header"

    with_emulator(both)


def test_azures_forms() -> None:
    async def forms(emulator: Emulator) -> None:
        base = f"ws://127.0.0.1:{emulator.port}"
        for query, headers in (
            ("", {"api-key": "right"}),
            ("", {"Authorization": "Bearer right"}),
            ("&api-key=right", {}),
        ):
            async with connect(base + PREVIEW + query, additional_headers=headers) as socket:
                session = (await BetaClient(socket).receive())["session"]
                assert session["input_audio_format"] == "pcm16"
                assert session["model"] == "dep"
            url = f"{base}/openai/v1/realtime?model=dep{query}"
            async with connect(url, additional_headers=headers) as socket:
                assert (await Client(socket).receive())["session"]["model"] == "dep"
        for path in (PREVIEW, "/openai/v1/realtime?model=dep"):
            with pytest.raises(InvalidStatus, match="401"):
                await connect(base + path, additional_headers={"api-key": "wrong"})
        for wrong in (
            "/openai/realtime?deployment=dep",
            "/openai/realtime?api-version=2025-04-01-preview",
            "/openai/v1/realtime?model=dep&api-version=2025-04-01-preview",
        ):
            with pytest.raises(InvalidStatus, match="400"):
                await connect(base + wrong, additional_headers={"api-key": "right"})

    with_emulator(forms, api_key="right")


def test_the_gateway_and_azures_preview_understand_each_other() -> None:
    async def call(emulator: Emulator) -> None:
        heard: list[Any] = []
        over = asyncio.Event()

        def note(event: Any) -> None:
            heard.append(event)
            if isinstance(event, ResponseDone):
                over.set()

        base = f"ws://127.0.0.1:{emulator.port}/openai/realtime?api-version=2024-10-01-preview"
        session = await open_session(
            Endpoint(
                f"{base}&answer=say&answer.text=Hello.",
                "dep",
                "right",
                api_key_header="api-key",
                dialect=DIALECTS["azure-preview"],
            ),
            session_object({"audio": {"output": {"voice": "ash"}}}, "PCMU", [END_CALL]),
            timeout=10,
            on_event=note,
            on_closed=lambda _: None,
        )
        assert session.effective["audio"]["output"]["voice"] == "ash"
        session.send(CreateResponse({"instructions": "Say hello.", "output_modalities": ["audio"]}))
        async with asyncio.timeout(10):
            await over.wait()
        await session.close()
        assert not session.counters.bad_events
        assert not session.counters.unknown_types
        assert {type(event) for event in heard} >= {AudioDelta, AudioDone, AgentTranscript}
        (done,) = [event for event in heard if isinstance(event, ResponseDone)]
        assert done.output[0]["content"][0]["type"] == "output_audio"
        assert not emulator.sessions[-1].errors
        assert emulator.sessions[-1].model == "dep"

    with_emulator(call, api_key="right")


def test_transcription_and_limits() -> None:
    """Segments are newer than Beta; both rate limits are in it."""

    async def listen(emulator: Emulator) -> list[str]:
        script = {
            "beta": True,
            "transcript": "Two nights from Monday on.",
            "transcription_segments": True,
            "rate_limits": {"requests": 1},
        }
        async with beta(emulator, behaviour=json.dumps(script)) as client:
            await client.update({**SESSION, "turn_detection": None})
            await client.append(bytes([0xFF]) * 8000)
            await client.send("input_audio_buffer.commit")
            await client.until("conversation.item.input_audio_transcription.completed")
            for status in ("completed", "failed"):
                assert (await client.answered())["status"] == status
                names = [one["name"] for one in client.events[-1]["rate_limits"]]
                assert names == ["requests", "tokens"]
            assert emulator.sessions[-1].sent("conversation.item.input_audio_transcription.segment")
            return list(client.types())

    types = with_emulator(listen)
    assert "conversation.item.input_audio_transcription.segment" not in types

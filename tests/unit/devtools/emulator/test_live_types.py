# SPDX-License-Identifier: GPL-2.0-or-later
"""What Live sessions of the emulator take and send: the official types, the official client."""

from __future__ import annotations

import base64
import json
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.resources.live.live import AsyncLiveConnection
from openai.types import live as official_live
from openai.types.responses import EasyInputMessage
from openai.types.responses.response_input_item import FunctionCallOutput, Message
from websockets.asyncio.client import connect

from gateway.devtools.emulator import Emulator, live_config
from gateway.devtools.emulator.live_events import LIVE_EVENTS, backend_item, check_decision_item
from gateway.devtools.emulator.objects import ProtocolError, validated
from gateway.devtools.speech import PCMU
from tests.support.emulator_client import (
    LIVE_BACKEND,
    caller_turn,
    input_text,
    live,
    with_emulator,
)
from tests.support.official_types import check_live_server_event, samples, with_unknown_keys

_MISSING = "missing_required_parameter"


def _said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [input_text(text)]}


def _types(union: Any) -> dict[str, Any]:
    """The members of one of the official unions, by their ``type``."""
    members = typing.get_args(typing.get_args(union)[0])
    return {
        name: model
        for model in members
        for name in typing.get_args(model.model_fields["type"].annotation)
    }


def test_every_client_event_and_setting_of_the_official_types_is_known() -> None:
    official = _types(official_live.ClientEvent)
    assert LIVE_EVENTS.keys() | {"session.input_audio.append"} == official.keys()
    for name, model in LIVE_EVENTS.items():
        assert model.model_fields.keys() == official[name].model_fields.keys(), name
    assert frozenset(typing.get_args(official_live.BuiltInVoice)) == live_config.VOICES


def _session(data: Any) -> None:
    validated(live_config.SessionConfig, data, "session")


def _update(data: Any) -> None:
    validated(live_config.SessionUpdate, data, "session")


@pytest.mark.parametrize(
    ("theirs", "check"),
    [
        (official_live.SessionConfig, _session),
        (official_live.SessionUpdateConfig, _update),
        (FunctionCallOutput, backend_item),
        (EasyInputMessage, backend_item),
        (Message, backend_item),
        (
            official_live.DecisionItemCreateEvent.model_fields["item"].annotation,
            check_decision_item,
        ),
    ],
    ids=("session.start", "session.update", "output", "easy message", "message", "decision"),
)
def test_what_the_official_types_allow_is_taken_and_unknown_keys_nowhere(
    theirs: Any, check: Callable[[Any], object]
) -> None:
    found = samples(theirs)
    assert found
    for sample in found:
        if check is _session:
            del sample["client"]  # of WebRTC
        check(json.loads(json.dumps(sample)))
        for _, changed in with_unknown_keys(sample):
            with pytest.raises(ProtocolError):
                check(json.loads(json.dumps(changed)))


_NOT_ON_A_PRIMARY_WEBSOCKET = {
    "session.input_audio.append",  # a sideband's copy
    "info",  # of WebRTC's data channel
    "transport.dtmf.received",
    "transport.dtmf.send",
    "transport.dtmf.sent",
    "transport.ringing",
    "transport.answered",
    "transport.failed",
}


async def _until(connection: AsyncLiveConnection, seen: set[str], type_: str) -> Any:
    """Read on to an event of this type, by the official client; each is held to its types."""
    while True:
        event = await connection.recv()
        check_live_server_event(event.to_dict())
        seen.add(event.type)
        if event.type == type_:
            return event


async def _talk(connection: AsyncLiveConnection, seen: set[str]) -> None:
    """A caller's pause, a fixture, texts and a call of a tool, by the official client alone."""
    session = connection.session
    await session.start(
        session={
            "model": "gpt-live-1.1",
            "audio": {"format": {"type": "audio/pcmu", "rate": 8000}},
            "delegation": LIVE_BACKEND,  # type: ignore[typeddict-item]
        }
    )

    until = partial(_until, connection, seen)
    await until("session.started")
    second = base64.b64encode(PCMU.silence(1000)).decode()
    await session.input_audio.mute()
    await until("session.input_audio.muted")
    await session.input_audio.unmute()
    await until("session.input_audio.unmuted")
    await session.output_audio.fixture.play(audio=base64.b64encode(bytes(4800)).decode())
    await session.input_audio.append(audio=second)
    await until("session.output_audio.fixture.played")
    await session.instructions.append(content="Be brief.", delegation_id=None)
    await session.commentary.append(content="Good morning.", delegation_id=None)
    await session.thinking.append(content="The caller pressed 0", delegation_id=None)
    await session.input_audio.append(audio=second)
    await until("session.delegation.created")
    item = await _function_call(until)
    output = {"type": "function_call_output", "call_id": item["call_id"], "output": "ok"}
    await connection.response.item.create(item=output)  # type: ignore[arg-type]
    await connection.response.create()
    await session.update(session={"delegation": {"type": "responses"}})
    await until("session.updated")
    for _ in range(5):
        await session.input_audio.append(audio=second)
    await until("session.output_transcript.delta")
    await session.close()
    assert (await until("session.closed")).reason == "close_requested"


async def _function_call(until: Any) -> dict[str, Any]:
    while True:
        event = (await until("response.event")).event
        if event["type"] == "response.output_item.done":
            item: dict[str, Any] = event["item"]
            return item


async def _decide(connection: AsyncLiveConnection, seen: set[str]) -> None:
    """Decisions, a transcript of the caller, usage and an error."""
    question = {"type": "predicate", "instructions": "Is it urgent?"}
    delegation = {"type": "decisions", "decisions": {"model": "d", "questions": [question]}}
    audio = {"format": {"type": "audio/pcmu", "rate": 8000}}
    session: Any = {"model": "gpt-live-1", "audio": audio, "delegation": delegation}
    await connection.session.start(session=session)
    until = partial(_until, connection, seen)
    await until("session.started")
    item: Any = {"type": "message", "role": "user", "content": [input_text("hello")]}
    await connection.decision.item.create(item=item)
    kept = (await until("decision.item.created")).item
    await connection.decision.item.delete(item_id=kept.id)
    await until("decision.item.deleted")
    await connection.decision.create(event_id="d1")
    await until("decision.event")
    await connection.decision.create(event_id="d1")
    assert (await until("error")).error.client_event_id == "d1"
    said = base64.b64encode(caller_turn() + PCMU.silence(1000)).decode()
    await connection.session.input_audio.append(audio=said)
    await until("session.input_transcript.delta")
    await until("session.usage.updated")


def test_the_official_client_is_sent_every_event_of_a_primary_websocket() -> None:
    async def test(emulator: Emulator) -> None:
        base = f"http://127.0.0.1:{emulator.port}/v1"
        query = {"live.speed": "100", "live.transcript_lag_ms": "100"}
        query["live.usage_interval_s"] = "0.2"
        seen: set[str] = set()
        for conversation in (_talk, _decide):
            async with (
                AsyncOpenAI(api_key="none", base_url=base) as openai,
                openai.live.connect(extra_query=query, max_retries=0) as connection,
            ):
                await conversation(connection, seen)
        assert seen == _types(official_live.ServerEvent).keys() - _NOT_ON_A_PRIMARY_WEBSOCKET

    with_emulator(test)


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"turn_detection": None}, "unknown_parameter", "session.turn_detection"),
        ({"audio": {"format": {"type": "audio/pcmu"}}}, _MISSING, "session.audio.format.rate"),
        ({"audio": {"format": {"type": "audio/pcm", "rate": 8000}}}, "invalid_value", None),
        ({"audio": {"output": {"voice": "nobody"}}}, "forbidden", "session.audio.output.voice"),
        ({"model": "gpt-realtime-2.1"}, "invalid_model", "session.model"),
        ({"instructions": "x" * 70_000}, "string_above_max_length", "session.instructions"),
        ({"input": [_said("x" * 40_000)]}, "string_above_max_length", "session.input"),
        ({"input": [_said("x")] * 129}, "invalid_value", "session.input"),
        ({"delegation": {"type": "responses"}}, _MISSING, "session.delegation.responses"),
        (
            {"delegation": {"type": "client", "tools": []}},
            "unknown_parameter",
            "session.delegation.tools",
        ),
        ({"client": {}}, "unknown_parameter", "session.client"),
    ],
)
def test_a_bad_configuration_starts_nothing(
    session: dict[str, Any], code: str, param: str | None
) -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            given = {"model": "gpt-live-1.1", **session}
            await client.send("session.start", session=given, event_id="s")
            error = await client.error()
            assert (error["code"], error["client_event_id"]) == (code, "s")
            assert param is None or error["param"] == param
            assert (await client.begin())["status"] == "active"

    with_emulator(test)


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "session.commentary.append", "content": "x"}, _MISSING),
        ({"type": "session.thinking.append", "delegation_id": None, "content": 7}, "invalid_type"),
        (
            {"type": "session.thinking.append", "delegation_id": None, "content": "x" * 2001},
            "string_above_max_length",
        ),
        ({"type": "session.update", "session": {"model": "x"}}, "immutable_field_update"),
        ({"type": "session.update", "session": {"delegation": None}}, "immutable_field_update"),
        ({"type": "session.start", "session": {"model": "gpt-live-1"}}, "invalid_request_error"),
        ({"type": "session.input_audio.append", "audio": "?"}, "invalid_audio"),
        ({"type": "session.input_audio.append", "audio": "", "x": 1}, "unknown_parameter"),
        ({"type": "session.output_audio.fixture.play", "audio": "AAAA"}, "invalid_audio"),
        ({"type": "input_audio_buffer.append", "audio": ""}, "invalid_value"),
        ({"type": "response.cancel"}, "invalid_value"),
        ({"type": "response.create", "response": {}}, "unknown_parameter"),
        ({"type": "response.item.create", "item": {"type": "nothing"}}, "invalid_value"),
        ({"type": "decision.create", "event_id": "d"}, "invalid_request_error"),
        (
            {"type": "session.commentary.append", "delegation_id": "dlg_1", "content": "x"},
            "invalid_request_error",
        ),
        ({"type": "transport.dtmf.send", "event": "1"}, "invalid_value"),
    ],
    ids=lambda given: given["type"] if isinstance(given, dict) else given,
)
def test_a_bad_event_is_refused_and_the_session_goes_on(event: dict[str, Any], code: str) -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.begin(delegation=LIVE_BACKEND)
            await client.socket.send(json.dumps({"event_id": "e1", **event}))
            error = await client.error()
            assert error["code"] == code
            assert error["client_event_id"] == event.get("event_id", "e1")
            await client.quiet(100)
            await client.until("session.output_audio.delta")

    with_emulator(test)


def test_commands_before_the_start_and_a_model_in_the_url_are_refused() -> None:
    async def test(emulator: Emulator) -> None:
        async with live(emulator) as client:
            await client.text("commentary", "Hello.")
            assert (await client.error())["type"] == "invalid_request_error"
        async with live(emulator, model="gpt-live-1") as client:
            assert (await client.error())["code"] == "unknown_parameter"
            assert await client.closed() == 4000
        async with connect(f"{emulator.url()}?model=gpt-live-1") as socket:
            assert json.loads(await socket.recv())["error"]["code"] == "invalid_model"

    with_emulator(test)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Live sessions of the emulator against the official types and the official client."""

from __future__ import annotations

import base64
import typing
from functools import partial
from typing import Any

from openai import AsyncOpenAI
from openai.resources.live.live import AsyncLiveConnection
from openai.types import live as official_live
from openai.types.responses import EasyInputMessage
from openai.types.responses.response_input_item import FunctionCallOutput
from pydantic import BaseModel

from gateway.devtools.emulator import live_config
from gateway.devtools.emulator.live_events import LIVE_EVENTS
from gateway.devtools.emulator.server import Emulator
from gateway.devtools.emulator.speech import PCMU
from tests.support.emulator_client import LIVE_BACKEND, caller_turn, input_text, with_emulator
from tests.support.official_types import check_live_server_event


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
    pairs: list[tuple[type[BaseModel], type[BaseModel], set[str]]] = [
        (live_config.SessionConfig, official_live.SessionConfig, {"client"}),
        (live_config.SessionUpdate, official_live.SessionUpdateConfig, set()),
        (live_config.Backend, official_live.ResponsesDelegationConfig, set()),
        (live_config.BackendUpdate, official_live.ResponsesDelegationUpdateConfig, set()),
        (live_config.ClientDelegation, official_live.ClientDelegation, set()),
        (live_config.Decisions, official_live.DecisionsDelegationConfig, set()),
        (live_config.Function, official_live.FunctionTool, set()),
        (live_config.Trigger, official_live.DecisionTrigger, set()),
        (live_config.FunctionOutput, FunctionCallOutput, set()),
        (live_config.BackendMessage, EasyInputMessage, {"id", "status"}),
    ]
    for ours, theirs, apart in pairs:
        names = set(ours.model_fields) ^ set(theirs.model_fields)
        assert names == apart, ours
    assert frozenset(typing.get_args(official_live.BuiltInVoice)) == live_config.VOICES


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

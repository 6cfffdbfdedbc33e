# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: E501 - tables
"""Every event and command that Beta calls otherwise, both ways; URLs; and 24 kHz PCM."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.config import ConfigError
from gateway.planning.check import check
from gateway.realtime import events
from gateway.realtime.connection import Endpoint
from gateway.realtime.dialects import DIALECTS, GA
from gateway.realtime.errors import SetupFailed
from gateway.realtime.events import CreateItem, CreateResponse, TruncateItem, UpdateSession
from gateway.realtime.parse import parse_event
from gateway.realtime.session import Session
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import open_session
from gateway.realtime.wire import DELAY_MS, Edge
from tests.support.config import load_config
from tests.support.scripted_realtime import KEY, WAIT, Heard, Peer, Server, serving

BETA = DIALECTS["beta"]
ULAW, ALAW = {"type": "audio/pcmu"}, {"type": "audio/pcma"}
VAD = {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 400}
TOOL = {"type": "function", "name": "end_call", "parameters": {"type": "object"}}
MCP = {"type": "mcp", "server_label": "docs", "server_url": "https://h"}


def update(session: dict[str, Any]) -> dict[str, Any]:
    return {"type": "session.update", "session": session}


def create(response: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.create", "response": response}


def item(role: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"id": "i", "type": "message", "role": role, "content": list(content)}


COMMANDS: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    (
        "no type",
        update({"type": "realtime", "instructions": "x"}),
        update({"instructions": "x"}),
        [],
    ),
    (
        "modalities",
        update({"output_modalities": ["audio"]}),
        update({"modalities": ["text", "audio"]}),
        [],
    ),
    ("text only", update({"output_modalities": ["text"]}), update({"modalities": ["text"]}), []),
    (
        "voice and speed",
        update({"audio": {"output": {"voice": "ash", "speed": 1.1}}}),
        update({"voice": "ash", "speed": 1.1}),
        [],
    ),
    (
        "formats",
        update({"audio": {"input": {"format": ULAW}, "output": {"format": ALAW}}}),
        update({"input_audio_format": "g711_ulaw", "output_audio_format": "g711_alaw"}),
        [],
    ),
    (
        "pcm",
        update({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}}}}),
        update({"input_audio_format": "pcm16"}),
        [],
    ),
    (
        "listening",
        update(
            {
                "audio": {
                    "input": {
                        "transcription": {"model": "whisper-1", "delay": "low"},
                        "noise_reduction": None,
                        "turn_detection": {**VAD, "idle_timeout_ms": 6000},
                    }
                }
            }
        ),
        update(
            {
                "input_audio_transcription": {"model": "whisper-1"},
                "input_audio_noise_reduction": None,
                "turn_detection": VAD,
            }
        ),
        ["audio.input.turn_detection.idle_timeout_ms", "audio.input.transcription.delay"],
    ),
    (
        "turn detection off",
        update({"audio": {"input": {"turn_detection": None}}}),
        update({"turn_detection": None}),
        [],
    ),
    (
        "no idle time-out is no loss",
        update({"audio": {"input": {"turn_detection": {**VAD, "idle_timeout_ms": None}}}}),
        update({"turn_detection": VAD}),
        [],
    ),
    (
        "tokens",
        update({"max_output_tokens": 500}),
        update({"max_response_output_tokens": 500}),
        [],
    ),
    (
        "temperature, which GA has not",
        update({"temperature": 0.8}),
        update({"temperature": 0.8}),
        [],
    ),
    ("tool_choice", update({"tool_choice": "required"}), update({"tool_choice": "required"}), []),
    (
        "a function forced",
        update({"tool_choice": {"type": "function", "name": "f"}}),
        update({"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        [],
    ),
    (
        "an MCP server forced",
        update({"tool_choice": {"type": "mcp", "server_label": "s"}}),
        update({}),
        ["tool_choice"],
    ),
    ("tools", update({"tools": [TOOL, MCP]}), update({"tools": [TOOL]}), ["tools (mcp)"]),
    (
        "what Beta has not",
        update({"truncation": "auto", "prompt": {"id": "p"}, "reasoning": {}, "tracing": "auto"}),
        update({"tracing": "auto"}),
        ["truncation", "prompt", "reasoning"],
    ),
    ("a response", {"type": "response.create"}, {"type": "response.create"}, []),
    (
        "a response with its own settings",
        create(
            {
                "instructions": "x",
                "output_modalities": ["text"],
                "max_output_tokens": 9,
                "audio": {"output": {"voice": "ash", "format": ULAW}},
                "conversation": "none",
                "metadata": {"a": "b"},
                "tools": [],
                "tool_choice": "none",
                "input": [item("assistant", {"type": "output_text", "text": "t"})],
                "reasoning": {"effort": "low"},
            }
        ),
        create(
            {
                "instructions": "x",
                "modalities": ["text"],
                "max_response_output_tokens": 9,
                "voice": "ash",
                "output_audio_format": "g711_ulaw",
                "conversation": "none",
                "metadata": {"a": "b"},
                "tools": [],
                "tool_choice": "none",
                "input": [item("assistant", {"type": "text", "text": "t"})],
            }
        ),
        ["reasoning"],
    ),
    (
        "an assistant's item",
        {
            "type": "conversation.item.create",
            "item": item(
                "assistant",
                {"type": "output_text", "text": "t"},
                {"type": "output_audio", "transcript": "t"},
            ),
        },
        {
            "type": "conversation.item.create",
            "item": item(
                "assistant", {"type": "text", "text": "t"}, {"type": "audio", "transcript": "t"}
            ),
        },
        [],
    ),
]
SAME: list[dict[str, Any]] = [
    {
        "type": "conversation.item.create",
        "item": item("user", {"type": "input_text", "text": "t"}),
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call_output", "call_id": "c", "output": "{}"},
    },
    TruncateItem("i", 0, 40).body(),
    {"type": "conversation.item.delete", "item_id": "i"},
    {"type": "conversation.item.retrieve", "item_id": "i"},
    {"type": "response.cancel", "response_id": "r"},
    {"type": "input_audio_buffer.append", "audio": "AA=="},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
]
COMMANDS += [(same["type"], same, same, []) for same in SAME]


@pytest.mark.parametrize("dialect", ["beta", "azure-preview"])
@pytest.mark.parametrize(
    ("ga", "beta", "left_out"), [row[1:] for row in COMMANDS], ids=[row[0] for row in COMMANDS]
)
def test_commands(
    dialect: str, ga: dict[str, Any], beta: dict[str, Any], left_out: list[str]
) -> None:
    before = json.dumps(ga)
    assert DIALECTS[dialect].command(ga) == (beta, left_out)
    assert json.dumps(ga) == before, "the command itself was changed"
    assert GA.command(ga) == (ga, [])


WHERE = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
BETA_SESSION = {
    "id": "sess_1",
    "object": "realtime.session",
    "model": "m",
    "expires_at": 1,
    "modalities": ["text", "audio"],
    "instructions": "x",
    "voice": "ash",
    "speed": 1.0,
    "input_audio_format": "g711_ulaw",
    "output_audio_format": "pcm16",
    "input_audio_transcription": None,
    "input_audio_noise_reduction": {"type": "near_field"},
    "turn_detection": VAD,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "temperature": 0.8,
    "max_response_output_tokens": "inf",
}
GA_SESSION = {
    "type": "realtime",
    "id": "sess_1",
    "object": "realtime.session",
    "model": "m",
    "expires_at": 1,
    "output_modalities": ["audio"],
    "instructions": "x",
    "tools": [TOOL],
    "tool_choice": {"type": "function", "name": "f"},
    "max_output_tokens": "inf",
    "audio": {
        "input": {
            "format": ULAW,
            "transcription": None,
            "noise_reduction": {"type": "near_field"},
            "turn_detection": VAD,
        },
        "output": {"voice": "ash", "speed": 1.0, "format": {"type": "audio/pcm", "rate": 24000}},
    },
}
BETA_RESPONSE = {
    "id": "r",
    "object": "realtime.response",
    "status": "completed",
    "status_details": None,
    "modalities": ["text", "audio"],
    "voice": "ash",
    "output_audio_format": "g711_alaw",
    "temperature": 0.8,
    "max_output_tokens": 9,
    "output": [item("assistant", {"type": "audio", "transcript": "t"})],
    "usage": {"input_token_details": {"cached_tokens": 1, "text_tokens": 2, "audio_tokens": 3}},
    "metadata": {"k": "v"},
}
GA_RESPONSE = {
    "id": "r",
    "object": "realtime.response",
    "status": "completed",
    "status_details": None,
    "output_modalities": ["audio"],
    "audio": {"output": {"voice": "ash", "format": ALAW}},
    "max_output_tokens": 9,
    "output": [item("assistant", {"type": "output_audio", "transcript": "t"})],
    "usage": {"input_token_details": {"cached_tokens": 1, "text_tokens": 2, "audio_tokens": 3}},
    "metadata": {"k": "v"},
}
EVENTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(
        ({"type": f"session.{word}", "session": BETA_SESSION}, {"type": f"session.{word}", "session": GA_SESSION})
        for word in ("created", "updated")
    ),
    *(
        ({"type": f"response.{word}", "response": BETA_RESPONSE}, {"type": f"response.{word}", "response": GA_RESPONSE})
        for word in ("created", "done")
    ),
    *(
        ({"type": beta, "item": item("assistant", {"type": "text", "text": "t"})}, {"type": ga, "item": item("assistant", {"type": "output_text", "text": "t"})})
        for beta, ga in (
            ("conversation.item.created", "conversation.item.added"),
            ("conversation.item.retrieved", "conversation.item.retrieved"),
            ("response.output_item.added", "response.output_item.added"),
            ("response.output_item.done", "response.output_item.done"),
        )
    ),
    *(
        ({"type": f"response.{beta}", **WHERE, key: "AA=="}, {"type": f"response.{ga}", **WHERE, key: "AA=="})
        for beta, ga, key in (
            ("text.delta", "output_text.delta", "delta"),
            ("text.done", "output_text.done", "text"),
            ("audio.delta", "output_audio.delta", "delta"),
            ("audio.done", "output_audio.done", "nothing"),
            ("audio_transcript.delta", "output_audio_transcript.delta", "delta"),
            ("audio_transcript.done", "output_audio_transcript.done", "transcript"),
        )
    ),
    *(
        (same, same)
        for same in (
            {"type": "conversation.created", "conversation": {"id": "c"}},
            {"type": "conversation.item.created", "item": item("user", {"type": "input_text"})}
            | {"type": "conversation.item.added"},
            {"type": "conversation.item.truncated", "item_id": "i", "content_index": 0, "audio_end_ms": 1},
            {"type": "conversation.item.deleted", "item_id": "i"},
            {"type": "conversation.item.input_audio_transcription.completed", "item_id": "i", "transcript": "t"},
            {"type": "conversation.item.input_audio_transcription.delta", "item_id": "i", "delta": "t"},
            {"type": "conversation.item.input_audio_transcription.failed", "item_id": "i", "error": {}},
            {"type": "input_audio_buffer.committed", "item_id": "i"},
            {"type": "input_audio_buffer.cleared"},
            {"type": "input_audio_buffer.speech_started", "item_id": "i", "audio_start_ms": 1},
            {"type": "input_audio_buffer.speech_stopped", "item_id": "i", "audio_end_ms": 1},
            {"type": "response.content_part.added", **WHERE, "part": {"type": "audio"}},
            {"type": "response.content_part.done", **WHERE, "part": {"type": "text", "text": "t"}},
            {"type": "response.function_call_arguments.delta", **WHERE, "delta": "{"},
            {"type": "response.function_call_arguments.done", **WHERE, "arguments": "{}"},
            {"type": "rate_limits.updated", "rate_limits": []},
            {"type": "error", "error": {"code": "c", "message": "m"}},
            {"type": "vendor.own_event", "item": 7, "session": "x", "response": None},
            {"no": "type"},
        )
    ),
]  # fmt: skip


EVENTS += [
    (
        {"type": "error", "error": {"code": "c", "message": f"Unknown parameter: '{beta}'."}},
        {
            "type": "error",
            "error": {"code": "c", "message": f"Unknown parameter: '{beta}'.", "param": ga},
        },
    )
    for beta, ga in (
        ("session.voice", "session.audio.output.voice"),
        ("session.turn_detection.eagerness", "session.audio.input.turn_detection.eagerness"),
        ("session.tools[0].name", "session.tools[0].name"),
    )
]
EVENTS += [
    (
        {"type": "error", "error": {"code": "c", "message": "m", "param": beta}},
        {"type": "error", "error": {"code": "c", "message": "m", "param": ga}},
    )
    for beta, ga in (
        ("session.voice", "session.audio.output.voice"),
        ("session.speed", "session.audio.output.speed"),
        ("session.input_audio_format", "session.audio.input.format"),
        ("session.output_audio_format", "session.audio.output.format"),
        ("session.input_audio_transcription.model", "session.audio.input.transcription.model"),
        ("session.input_audio_noise_reduction", "session.audio.input.noise_reduction"),
        ("session.turn_detection.threshold", "session.audio.input.turn_detection.threshold"),
        ("session.max_response_output_tokens", "session.max_output_tokens"),
        ("session.modalities[0]", "session.output_modalities[0]"),
        ("response.modalities", "response.output_modalities"),
        ("session.tools[0].name", "session.tools[0].name"),
        ("item.content[0].type", "item.content[0].type"),
        (None, None),
    )
]


@pytest.mark.parametrize(("beta", "ga"), EVENTS, ids=[str(row[0].get("type")) for row in EVENTS])
def test_events(beta: dict[str, Any], ga: dict[str, Any]) -> None:
    before = json.dumps(beta)
    assert BETA.event(beta) == ga
    assert BETA.event(ga) == ga, "GA's own is not let through as it is"
    assert json.dumps(beta) == before
    assert GA.event(beta) is beta


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "item", "content", "session", "response", "role", "output", "modalities", "tool_choice", "function", "output_audio_format"]), inner | st.sampled_from(["session.created", "response.done", "assistant", "audio"]), max_size=5), max_leaves=20))  # fmt: skip
def test_no_event_breaks_the_translation(value: Any) -> None:
    for kind in ("session.created", "response.done", "conversation.item.created"):
        event = value if isinstance(value, dict) else {"item": value}
        translated = BETA.event({**event, "type": kind})
        assert isinstance(translated["type"], str)


def test_ga_is_read_without_a_step_more() -> None:
    edge = Edge(GA, "g711", session_object({}, "PCMU", []))
    assert edge.parse is parse_event
    body = UpdateSession({"instructions": "x"}).body()
    assert edge.command(body) is body


@pytest.mark.parametrize(
    ("url", "dialect", "connects", "headers"),
    [
        ("wss://h/v1/realtime", "beta", "wss://h/v1/realtime?model=dep%2F1", {"OpenAI-Beta": "realtime=v1"}),
        ("wss://eu.api.openai.com", "ga", "wss://eu.api.openai.com/v1/realtime?model=dep%2F1", {}),
        *(
            (url, "azure-preview", "wss://r.openai.azure.com/openai/realtime?api-version=2025-04-01-preview&deployment=dep%2F1", {})
            for url in (
                "https://r.openai.azure.com",
                "wss://r.openai.azure.com/",
                "https://r.openai.azure.com/openai",
                "wss://r.openai.azure.com/openai/realtime",
                "wss://r.openai.azure.com/openai/realtime?api-version=2025-04-01-preview",
            )
        ),
        (
            "wss://r.openai.azure.com/openai/realtime?deployment=own&api-version=2024-10-01-preview",
            "azure-preview",
            "wss://r.openai.azure.com/openai/realtime?deployment=own&api-version=2024-10-01-preview",
            {},
        ),
    ],
)  # fmt: skip
def test_where_to_connect(url: str, dialect: str, connects: str, headers: dict[str, str]) -> None:
    endpoint = Endpoint(url, "dep/1", dialect=DIALECTS[dialect])
    assert endpoint.connect_url == connects
    assert endpoint.request_headers() == headers
    assert endpoint.shown == connects.partition("?")[0]


CONFIG = """[realtime]
url = "{url}"
api_key = "k"
{more}
[dialplan]
folder = "routes"
"""
ROUTE = """[[route]]
name = "r"
[route.realtime]
{more}
"""


@pytest.mark.parametrize(
    ("url", "more", "route", "wrong"),
    [
        ("wss://h/v1/realtime", "", "", None),
        ("wss://h/v1/realtime", 'dialect = "beta"', 'audio = "pcm24"', None),
        ("wss://r.openai.azure.com/openai/realtime", 'dialect = "azure-preview"', "", None),
        ("wss://h/v1/realtime", 'dialect = "gamma"', "", r"gateway.toml:4: realtime.dialect: "),
        ("wss://h/v1/realtime", 'audio = "opus"', "", r"gateway.toml:4: realtime.audio: "),
        ("wss://h/openai/realtime", 'dialect = "beta"', "", r"gateway.toml:4: realtime.dialect: .*preview"),
        ("wss://h/v1/realtime?api-version=2024-10-01-preview", "", "", r"gateway.toml:\d: realtime.*preview"),
        ("wss://h/openai/v1/realtime", 'dialect = "azure-preview"', "", r"gateway.toml:4: realtime.dialect: .*GA"),
        ("wss://h/v1/realtime", 'headers = { OpenAI-Beta = "realtime=v1" }', "", r"gateway.toml:4: .*beta"),
        ("wss://h/v1/realtime", "", 'dialect = "azure-preview"', r"r.toml:\d: .*realtime.dialect: .*GA"),
        ("wss://h/v1/realtime", "", 'dialect = "x"', r"r.toml:4: .*realtime.dialect: "),
    ],
)  # fmt: skip
def test_configuration(tmp_path: Path, url: str, more: str, route: str, wrong: str | None) -> None:
    (tmp_path / "routes").mkdir()
    (tmp_path / "routes" / "r.toml").write_text(ROUTE.format(more=route))
    file = tmp_path / "gateway.toml"
    file.write_text(CONFIG.format(url=url, more=more))
    status, lines = check(file, {})
    if wrong is None:
        assert status == 0, lines
        load_config(file, {})
    else:
        assert status == 2
        assert re.search(wrong, "\n".join(lines)), lines
        if not route:
            with pytest.raises(ConfigError):
                load_config(file, {})


# ---- sessions in 24 kHz


def tone(rate: int, seconds: float, hz: float = 440.0) -> np.ndarray[Any, Any]:
    return (8000 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype("<i2")


async def up(server: Server, heard: Heard, **endpoint: Any) -> Session:
    return await open_session(
        Endpoint(server.url, "m", KEY, **endpoint),
        session_object({"audio": {"input": {"turn_detection": VAD}}}, "PCMA", []),
        timeout=WAIT,
        on_event=heard.on_event,
        on_closed=heard.on_closed,
    )


def test_a_resampled_beta_session_on_the_wire() -> None:
    """Both at once: what the server sees is Beta and PCM, what the call sees is GA and G.711."""
    answer = tone(24000, 0.3).tobytes()

    async def script(peer: Peer) -> None:
        await peer.send("session.created", session={"id": "sess_1"})
        asked = await peer.receive()
        await peer.send("session.updated", session={"id": "sess_1", **asked["session"]})
        await peer.receive("input_audio_buffer.append")
        for start in range(0, len(answer), 4800):
            delta = base64.b64encode(answer[start : start + 4800]).decode()
            await peer.send("response.audio.delta", **WHERE, delta=delta)
        await peer.send("response.audio.done", **WHERE)
        await peer.until_closed()

    async def scenario() -> tuple[Server, Heard, list[Any]]:
        async with serving(script) as server:
            heard = Heard()
            with capture_logs() as logs:
                session = await up(server, heard, dialect=BETA, audio="pcm24")
                for _ in range(5):
                    session.append(b"\xd5" * 160)
                session.send(UpdateSession({"audio": {"output": {"format": ULAW}}}))
                session.send(CreateResponse({"truncation": "auto"}))
                session.send(CreateItem({"type": "function_call_output", "call_id": "c"}))
                await heard.until(
                    lambda: any(isinstance(e, events.AudioDone) for e in heard.events)
                )
                await session.close()
            return server, heard, logs

    server, heard, logs = asyncio.run(scenario())
    assert not server.failures
    (peer,) = server.peers
    assert peer.ws.request is not None
    assert peer.ws.request.headers["OpenAI-Beta"] == "realtime=v1"
    asked = peer.received[0]["session"]
    assert asked["input_audio_format"] == asked["output_audio_format"] == "pcm16"
    assert "audio" not in asked
    assert "type" not in asked
    appended = [e for e in peer.received if e["type"] == "input_audio_buffer.append"]
    assert sum(len(base64.b64decode(e["audio"])) for e in appended) == 48 * (100 - DELAY_MS)
    again = [e for e in peer.received if e["type"] == "session.update"][1]
    assert again["session"] == {"output_audio_format": "pcm16"}
    *deltas, done = heard.events
    assert all(isinstance(delta, events.AudioDelta) for delta in deltas)
    assert isinstance(done, events.AudioDone)
    audio = b"".join(delta.audio for delta in deltas if isinstance(delta, events.AudioDelta))
    assert len(audio) == 300 * 8
    (said,) = [entry for entry in logs if entry["event"] == "session.resampled"]
    assert said["codec"] == "PCMA"
    (lost,) = [entry for entry in logs if entry["event"] == "session.not_in_dialect"]
    assert lost["left_out"] == ["truncation"]


def test_another_response_that_ends_in_the_middle_of_a_part_leaves_its_audio_alone() -> None:
    """An out-of-band response in text, which ends while the agent speaks."""
    pcm = bytes(range(256)) * 75

    async def heard_of(*between: dict[str, Any]) -> bytes:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            for half in (pcm[:9601], pcm[9601:]):
                delta = base64.b64encode(half).decode()
                await peer.send("response.output_audio.delta", **WHERE, delta=delta)
                for event in between:
                    await peer.send("response.done", response=event)
            await peer.send("response.output_audio.done", **WHERE)
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()
            session = await up(server, heard, audio="pcm24")
            await heard.until(lambda: any(isinstance(e, events.AudioDone) for e in heard.events))
            await session.close()
        deltas = [one for one in heard.events if isinstance(one, events.AudioDelta)]
        return b"".join(one.audio for one in deltas)

    async def scenario() -> None:
        other = {"id": "resp_other", "status": "completed"}
        assert await heard_of(other) == await heard_of()

    asyncio.run(scenario())


def test_a_server_that_answers_in_another_format_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.set_up(audio={"input": {"format": ALAW}, "output": {"format": ALAW}})
        await peer.until_closed()

    async def scenario() -> None:
        async with serving(script) as server:
            with pytest.raises(SetupFailed, match="does not speak audio/pcm"):
                await up(server, Heard(), audio="pcm24")

    asyncio.run(scenario())


def test_codecs_bytes_of_a_ga_session_are_untouched() -> None:
    """What a call says and hears goes through as it is, and as one known frame."""
    said = bytes(range(256))[:160]
    frames: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.set_up()
        frames.append(str(await peer.ws.recv()))
        delta = base64.b64encode(said).decode()
        await peer.send("response.output_audio.delta", **WHERE, delta=delta)
        await peer.until_closed()

    async def scenario() -> Heard:
        async with serving(script) as server:
            heard = Heard()
            session = await up(server, heard)
            assert type(session) is Session
            session.append(said)
            await heard.until(lambda: bool(heard.events))
            await session.close()
            return heard

    heard = asyncio.run(scenario())
    encoded = base64.b64encode(said).decode()
    assert frames == [f'{{"type":"input_audio_buffer.append","audio":"{encoded}"}}']
    assert heard.events == [events.AudioDelta("r", "i", 0, said)]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits that a script sets and the protocol has: rates, metadata, tools, deployments, spaces."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types.realtime import RateLimitsUpdatedEvent
from openai.types.realtime.realtime_response_create_mcp_tool import RealtimeResponseCreateMcpTool
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.devtools.emulator import AZURE_PATH, PREVIEW_PATH, Emulator
from gateway.devtools.emulator.client_events import McpTool
from gateway.devtools.emulator.response import RateLimits
from gateway.devtools.emulator.script import BUILT_IN, Limits
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import Kind, SetupFailed
from gateway.realtime.events import CreateResponse, ResponseDone
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import open_session
from tests.support.emulator_client import PCMU_SESSION, session, with_emulator
from tests.support.scripted_realtime import Heard

TEXT = {**PCMU_SESSION, "output_modalities": ["text"]}
MCP = {"type": "mcp", "server_label": "shop", "server_url": "https://mcp.example.com"}


def limits(event: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """By name: limit and what is left."""
    parsed = RateLimitsUpdatedEvent.model_validate(event).rate_limits
    return {str(one.name): (one.limit or 0, one.remaining or 0) for one in parsed}


def test_rates_fall_until_they_are_used_up() -> None:
    async def test(emulator: Emulator) -> None:
        script = {"rate_limits": {"requests": 2, "tokens": 5000, "window_s": 86400}}
        async with session(emulator, behaviour=json.dumps(script)) as client:
            await client.update(TEXT)
            left = 5000
            for requests in (1, 0):
                response = await client.answered()
                assert response["status"] == "completed"
                left -= response["usage"]["total_tokens"]
                seen = limits(client.events[-1])
                assert seen == {"requests": (2, requests), "tokens": (5000, left)}
            refused = await client.answered()
            assert refused["status"] == "failed"
            error = refused["status_details"]["error"]
            assert error["code"] == "rate_limit_exceeded"
            assert "requests: Limit 2, Remaining 0. Please try again in" in error["message"]
            assert refused["output"] == []
            assert limits(client.events[-1])["requests"] == (2, 0)

    with_emulator(test)


def test_tokens_are_used_up_too_and_come_back_with_time() -> None:
    now = 0.0
    rates = RateLimits(Limits(requests=10, tokens=600, window_s=60), lambda: now)
    assert rates.begin() is None
    rates.spent(800)
    assert (rates.begin() or "").startswith("Rate limit reached on tokens: Limit 600, Remaining 0.")
    tokens = rates.event()["rate_limits"][1]
    assert (tokens["remaining"], tokens["reset_seconds"]) == (0, 60.0)
    now = 19.9
    assert rates.begin() is not None, "what was overdrawn comes back first"
    now = 30.0
    assert rates.begin() is None
    assert rates.event()["rate_limits"][1]["remaining"] == 100


def test_without_limits_only_tokens_are_told_of() -> None:
    rates = RateLimits(None)
    rates.spent(2_000_000)
    assert rates.begin() is None
    assert [one["name"] for one in rates.event()["rate_limits"]] == ["tokens"]


@pytest.mark.parametrize(
    ("metadata", "param"),
    [
        ({f"k{number}": "v" for number in range(17)}, "response.metadata"),
        ({"k" * 65: "v"}, "response.metadata." + "k" * 65),
        ({"k": "v" * 513}, "response.metadata.k"),
        ({"k": 1}, "response.metadata.k"),
    ],
    ids=["pairs", "key", "value", "number"],
)
def test_metadata_has_limits(metadata: dict[str, Any], param: str) -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator) as client:
            await client.update(TEXT)
            await client.send("response.create", response={"metadata": metadata})
            error = await client.error()
            assert (error["code"][:8], error["param"]) == ("invalid_", param)
            full = {f"{number}".rjust(64, "k"): "v" * 512 for number in range(16)}
            assert (await client.answered(metadata=full))["metadata"] == full

    with_emulator(test)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"server": "x"}, "unknown_parameter", "session.tools[0].server"),
        ({"require_approval": "maybe"}, "invalid_value", "session.tools[0].require_approval"),
        ({"allowed_tools": {"names": []}}, "invalid_type", "session.tools[0].allowed_tools"),
        ({"headers": {"X-A": 1}}, "invalid_type", "session.tools[0].headers.X-A"),
        ({"server_url": None}, "invalid_value", "session.tools[0]"),
        ({"server_label": ""}, "invalid_value", "session.tools[0].server_label"),
    ],
)
def test_mcp_tools_are_checked(fields: dict[str, Any], code: str, param: str) -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator) as client:
            await client.receive()
            await client.send("session.update", session={**TEXT, "tools": [{**MCP, **fields}]})
            error = await client.error()
            assert (error["code"], error["param"]) == (code, param)

    with_emulator(test)


def test_an_mcp_tool_has_the_official_fields() -> None:
    assert {*McpTool.model_fields} == {*RealtimeResponseCreateMcpTool.model_fields}
    full = {
        **MCP,
        "authorization": "token",
        "headers": {"X-A": "b"},
        "allowed_tools": {"tool_names": ["a"], "read_only": True},
        "require_approval": {"never": {"tool_names": ["a"]}, "always": {"tool_names": ["b"]}},
        "server_description": "Tea.",
    }
    assert McpTool.model_validate(full, strict=True).server_label == "shop"
    RealtimeResponseCreateMcpTool.model_validate(full)


@pytest.mark.parametrize("query", [f"{AZURE_PATH}?model=m", f"{PREVIEW_PATH}?api-version=1"])
def test_a_deployment_without_realtime(query: str) -> None:
    async def test(emulator: Emulator) -> None:
        emulator.script = BUILT_IN["no-realtime"]
        url = f"ws://127.0.0.1:{emulator.port}{query}&deployment=chat"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url)
        assert refused.value.response.status_code == 400
        body = json.loads(refused.value.response.body or b"")
        assert body["error"]["code"] == "OpperationNotSupported"

    with_emulator(test)


def test_the_gateway_sees_why_a_deployment_is_refused_and_through_spaces() -> None:
    async def scenario() -> None:
        heard = Heard()
        asked = session_object({"instructions": "Be short."}, "PCMU", [])

        async with Emulator() as emulator:
            refused = Endpoint(emulator.url("no-realtime"), "m", "key")
            with pytest.raises(SetupFailed) as failure:
                await open_session(
                    refused, asked, timeout=5, on_event=heard.on_event, on_closed=heard.on_closed
                )
            assert (failure.value.verdict.kind, failure.value.verdict.code) == (
                Kind.FATAL,
                "http 400",
            )
            spaced = "session.created,session.updated,response.created,response.done"
            url = emulator.url(answer="quiet", answer__seconds=0.1, spaced_types=spaced)
            session = await open_session(
                Endpoint(url, "m", "key"),
                asked,
                timeout=5,
                on_event=heard.on_event,
                on_closed=heard.on_closed,
            )
            session.send(CreateResponse())
            await heard.until(lambda: any(isinstance(one, ResponseDone) for one in heard.events))
            await session.close()

    asyncio.run(scenario())


def test_spaces_are_on_the_wire() -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator, strict=False, spaced_types="session.created") as client:
            assert (await client.receive())["type"] == " session.created"

    with_emulator(test)

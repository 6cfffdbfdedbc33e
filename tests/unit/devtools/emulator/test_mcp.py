# SPDX-License-Identifier: GPL-2.0-or-later
"""MCP as the realtime server runs it: listings, calls, failures and approvals, typed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.devtools.emulator import Emulator
from tests.support.emulator_client import PCMU_SESSION, Client, session, with_emulator

CALL = {"server_label": "shop", "name": "search", "arguments": '{"query": "tea, green, loose"}'}


def mcp(**fields: Any) -> dict[str, Any]:
    server = {"type": "mcp", "server_label": "shop", "server_url": "https://mcp.example.com"}
    return {**PCMU_SESSION, "output_modalities": ["text"], "tools": [{**server, **fields}]}


def behaviour(*, kind: str = "nothing", **call: Any) -> dict[str, Any]:
    return {"answers": [{"kind": kind, "mcp": [{**CALL, **call}]}, {"kind": "conversation"}]}


async def item(client: Client, type_: str) -> dict[str, Any]:
    while True:
        found: dict[str, Any] = (await client.until("conversation.item.done"))["item"]
        if found["type"] == type_:
            return found


@pytest.mark.parametrize("allowed", [["search"], {"tool_names": ["search"]}, None])
def test_tools_are_listed(allowed: object) -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator, mcp_tools="search,buy") as client:
            await client.update(mcp(allowed_tools=allowed))
            listed = await item(client, "mcp_list_tools")
            done = await client.until("mcp_list_tools.completed")
            names = [tool["name"] for tool in listed["tools"]]
            assert names == (["search"] if allowed else ["search", "buy"])
            assert done["item_id"] == listed["id"]
            assert client.types().index("mcp_list_tools.in_progress") > 0
            await client.update({"type": "realtime", "instructions": "Another."})
            await client.answered()
            assert client.types().count("mcp_list_tools.in_progress") == 1

    with_emulator(test)


def test_a_listing_fails() -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator, mcp_listing="failed") as client:
            await client.update(mcp())
            await client.until("mcp_list_tools.failed")

    with_emulator(test)


@pytest.mark.parametrize("error", [None, "protocol_error", "tool_execution_error", "http_error"])
def test_a_call_without_approval(error: str | None) -> None:
    async def test(emulator: Emulator) -> None:
        script: dict[str, Any] = behaviour(output="three teas", error=error)
        async with session(emulator, behaviour=json.dumps(script)) as client:
            await client.update(mcp(require_approval="never"))
            await client.until("mcp_list_tools.completed")
            response = await client.answered()
            [call] = response["output"]
            assert (call["type"], call["arguments"]) == ("mcp_call", CALL["arguments"])
            state = "failed" if error else "completed"
            types = [type_ for type_ in client.types(deltas=False) if "mcp_call" in type_]
            assert types == [
                "response.mcp_call_arguments.done",
                "response.mcp_call.in_progress",
                f"response.mcp_call.{state}",
            ]
            assert (call["error"] or {}).get("type") == error
            assert call["output"] == (None if error else "three teas")
            said = (await client.answered())["output"][0]["content"][0]["text"]
            assert said.endswith("Failed by the emulator's script." if error else "three teas")

    with_emulator(test)


@pytest.mark.parametrize("approve", [True, False])
@pytest.mark.parametrize("after", ["response", "nothing"])
def test_an_approval(approve: bool, after: str) -> None:
    async def test(emulator: Emulator) -> None:
        script: dict[str, Any] = behaviour(output="three teas") | {"after_approval": after}
        async with session(emulator, behaviour=json.dumps(script)) as client:
            await client.update(mcp())
            await client.until("mcp_list_tools.completed")
            [request] = (await client.answered())["output"]
            assert request["type"] == "mcp_approval_request"
            answer = {
                "type": "mcp_approval_response",
                "id": "mcpa_1",
                "approval_request_id": request["id"],
                "approve": approve,
            }
            unknown = {**answer, "id": "mcpa_0", "approval_request_id": "mcpr_none"}
            await client.send("conversation.item.create", item=unknown)
            assert (await client.error())["param"] == "item.approval_request_id"
            await client.send("conversation.item.create", item=answer)
            await item(client, "mcp_approval_response")
            response = await (
                client.done() if approve and after == "response" else client.answered()
            )
            if not approve:
                text = response["output"][0]["content"][0]["text"]
                assert text == "The function answered: search was not approved."
                return
            call = response["output"][-1]
            assert (call["type"], call["output"]) == ("mcp_call", "three teas")
            assert call["approval_request_id"] == request["id"]
            await client.send("conversation.item.create", item={**answer, "id": "mcpa_2"})
            assert (await client.error())["code"] == "invalid_value"

    with_emulator(test)


def test_a_transcription_fails_by_turn() -> None:
    async def test(emulator: Emulator) -> None:
        script = {"transcripts": ["one", "two"], "transcription_fails": [0]}
        async with session(emulator, behaviour=json.dumps(script)) as client:
            audio: dict[str, Any] = {"format": {"type": "audio/pcmu"}}
            audio["turn_detection"] = None
            audio["transcription"] = {"model": "whisper-1"}
            await client.update({"type": "realtime", "audio": {"input": audio}})
            type_ = "conversation.item.input_audio_transcription"
            for last in ("failed", "completed"):
                await client.append(bytes([0xFF]) * 1600)
                await client.send("input_audio_buffer.commit")
                event = await client.until(f"{type_}.{last}")
            assert event["transcript"] == "two"

    with_emulator(test)

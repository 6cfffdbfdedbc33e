# SPDX-License-Identifier: GPL-2.0-or-later
"""What the gateway sends, held against the types of the official client; unknown fields forbidden.

Every command of every call on the virtual clock is checked as well (``call_scene.Scene``).
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from gateway.dialplan import load_dialplan
from gateway.realtime.events import (
    CancelResponse,
    ClientCommand,
    CreateItem,
    CreateResponse,
    DeleteItem,
    TruncateItem,
    UpdateSession,
)
from gateway.realtime.session_object import session_object
from tests.support.official_types import check_client_event
from tests.support.scripted_realtime import Heard, Peer, opened, serving

COMMANDS: list[ClientCommand] = [
    CreateItem({"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}"}),
    CreateItem({"type": "function_call_output", "call_id": "c", "output": "done"}),
    CreateItem(
        {
            "id": "gw_approval_1",
            "type": "mcp_approval_response",
            "approval_request_id": "m",
            "approve": False,
            "reason": "no",
        },
        after="root",
    ),
    CreateResponse(),
    CreateResponse({"instructions": "Say exactly: Hello.", "tools": [], "metadata": {"a": "b"}}),
    CancelResponse("r1"),
    TruncateItem("i1", 0, 40),
    DeleteItem("i1"),
    UpdateSession({"audio": {"input": {"turn_detection": None}}}),
]


def test_all_that_a_session_writes() -> None:
    """On the wire, with event ids and audio."""

    async def script(peer: Peer) -> None:
        await peer.set_up()
        await peer.until_closed()

    async def scenario() -> list[dict[str, Any]]:
        async with serving(script) as server:
            session = await opened(server, Heard())
            session.append(b"\xff" * 160)
            for command in COMMANDS:
                session.send(command)
            await session.close()
            await server.until(lambda: not server.open)
            return server.peers[0].received

    received = asyncio.run(scenario())
    assert len(received) == 2 + len(COMMANDS)
    for event in received:
        check_client_event(event)


@pytest.mark.parametrize("codec", ["PCMU", "PCMA"])
def test_session_objects_of_the_examples(codec: Literal["PCMU", "PCMA"]) -> None:
    found = load_dialplan(Path(__file__).parents[3] / "dialplans").routes
    assert found
    for route in found:
        tools = [{"type": "function", "name": "n", "description": "d", "parameters": {}}]
        session = session_object(route.session_settings(), codec, tools)
        check_client_event(UpdateSession(session).body())


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.cancel", "response": "r1"},
        {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"x": 1}}}},
        {
            "type": "conversation.item.create",
            "item": {"type": "mcp_approval_response", "approval_request_id": "m", "approve": True},
        },
    ],
)
def test_the_check_itself(event: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, ValidationError)):
        check_client_event(json.loads(json.dumps(event)))

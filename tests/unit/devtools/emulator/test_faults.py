# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that a script can ask for, and refusals of the emulator's own."""

from __future__ import annotations

import time
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.script import BUILT_IN
from tests.support.emulator_client import Client, phone, session, with_emulator


def test_updates_late_or_never() -> None:
    async def late(emulator: Emulator) -> None:
        async with session(emulator, updated_delay_ms=300) as client:
            await client.until("session.created")
            start = time.monotonic()
            await client.update({"type": "realtime"})
            assert time.monotonic() - start >= 0.29
        async with session(emulator, "no-update") as client:
            await client.send("session.update", session={"type": "realtime"})
            await client.say("mark")
            await client.until("conversation.item.done")
            assert "session.updated" not in client.types()
        async with session(emulator, created="never") as client:
            await client.say("mark")
            await client.until("conversation.item.done")
            assert "session.created" not in client.types()

    with_emulator(late)


@pytest.mark.parametrize(
    ("behaviour", "code", "close"),
    [
        ({"script": "bad-key"}, "invalid_api_key", 3000),
        ({"script": "no-model"}, "model_not_found", 4004),
        ({"refuse__step": "connect"}, "server_error", 4000),
        ({"refuse__step": "connect", "refuse__close": 1013}, "server_error", 1013),
        ({"refuse__step": "session.update", "refuse__close": 1011}, "server_error", 1011),
        ({"refuse__step": "response.create", "refuse__close": 1008}, "server_error", 1008),
    ],
)
def test_refusals_with_close(behaviour: dict[str, Any], code: str, close: int) -> None:
    async def refuse(emulator: Emulator) -> None:
        async with session(emulator, **behaviour) as client:
            step = behaviour.get("refuse__step", "connect")
            if step == "session.update":
                await client.send(step, session={"type": "realtime"})
            elif step == "response.create":
                await client.send(step)
            assert (await client.error())["code"] == code
            assert await client.closed() == close
            reason = client.socket.close_reason
            assert reason == f"invalid_request_error.{code}"
            if step == "connect":
                assert client.types() == ["error"]  # no session.created before it

    with_emulator(refuse)


def test_refusals_that_end_after_some_times() -> None:
    async def refuse(emulator: Emulator) -> None:
        async with session(emulator, refuse__step="session.update", refuse__times=2) as client:
            for number in range(2):
                event_id = f"try {number}"
                await client.send("session.update", session={"type": "realtime"}, event_id=event_id)
                assert (await client.error())["event_id"] == event_id
            await client.update({"type": "realtime"})

    with_emulator(refuse)


def test_refused_upgrade() -> None:
    async def refuse(emulator: Emulator) -> None:
        url = emulator.url(refuse__step="upgrade", refuse__http_status=429, model="m")
        with pytest.raises(InvalidStatus, match="429"):
            await connect(url)

    with_emulator(refuse)


def test_refusals_of_the_first_sessions_only() -> None:
    async def refuse(emulator: Emulator) -> None:
        for _ in range(2):
            async with session(emulator, "bad-key", refuse__first_sessions=2) as client:
                assert (await client.receive())["type"] == "error"
        async with session(emulator, "bad-key", refuse__first_sessions=2) as client:
            assert (await client.receive())["type"] == "session.created"
        assert (await emulator.wait_sessions(3, 5)).live
        fault: dict[str, Any] = {
            "refuse__step": "upgrade",
            "refuse__first_sessions": 1,
            "model": "m",
        }
        url = emulator.url(**fault)
        with pytest.raises(InvalidStatus, match="503"):
            await connect(url)
        async with connect(url) as socket:
            assert (await Client(socket).receive())["type"] == "session.created"

    with_emulator(refuse)


def test_an_end_of_the_first_session_only() -> None:
    """And a close frame without a code."""

    async def end(emulator: Emulator) -> None:
        fault: dict[str, Any] = {
            "end__at": "session.created",
            "end__code": 1005,
            "end__first_sessions": 1,
        }
        async with session(emulator, **fault) as client:
            assert (await client.receive())["type"] == "session.created"
            assert await client.closed() == 1005
            assert client.socket.protocol.close_rcvd is not None
        async with session(emulator, **fault) as client:
            assert (await client.receive())["type"] == "session.created"
            await client.send("input_audio_buffer.clear")
            assert (await client.receive())["type"] == "input_audio_buffer.cleared"

    with_emulator(end)


def test_what_the_service_refuses_of_itself() -> None:
    async def refuse(emulator: Emulator) -> None:
        good = {"Authorization": "Bearer right"}
        cases = [
            ("?model=m", {"Authorization": "Bearer wrong"}, "invalid_api_key", 3000),
            ("?model=m", {}, "invalid_api_key", 3000),
            ("", good, "missing_model", 4000),
            ("?model=m", {**good, "OpenAI-Beta": "realtime=v1"}, "beta_api_shape_disabled", 4000),
        ]
        for query, headers, code, close in cases:
            async with connect(emulator.url() + query, additional_headers=headers) as socket:
                client = Client(socket)
                assert (await client.receive())["error"]["code"] == code
                assert await client.closed() == close
        for key in ({"api-key": "right"}, good):
            async with connect(emulator.url() + "?model=m", additional_headers=key) as socket:
                assert (await Client(socket).receive())["type"] == "session.created"

    with_emulator(refuse, api_key="right")


def test_ends_at_events_after_time_and_by_a_cut() -> None:
    async def ends(emulator: Emulator) -> None:
        async with phone(emulator, "lost", end__reason="see you") as client:
            await client.send("response.create")
            assert await client.closed() == 1011
            assert client.socket.close_reason == "see you"
            assert client.types().count("response.output_audio.delta") == 5
        async with phone(emulator, "drop") as client:
            await client.send("response.create")
            assert await client.closed() == 1006
            record = emulator.sessions[-1]
            await record.wait_until(lambda record: not record.live, 30)
            assert record.close_code == 1006
        async with phone(emulator, end__at="conversation.item.delete", end__code=4000) as client:
            await client.send("conversation.item.delete", item_id="x")
            assert await client.closed() == 4000
            assert "error" not in client.types()
        async with session(emulator, end__after_s=0.2, end__code=1012) as client:
            assert await client.closed() == 1012
        async with session(emulator, "expired", expires_s=0.2) as client:
            assert await client.closed() == 1001
            assert client.events[-1]["error"]["code"] == "session_expired"
            assert "maximum duration" in (client.socket.close_reason or "")

    with_emulator(ends)


def test_unknown_events_and_fields() -> None:
    async def unknown(emulator: Emulator) -> None:
        async with phone(
            emulator, strict=False, unknown_events="true", obfuscation="true", speed=200
        ) as client:
            await client.answered()
            assert client.types().count("emulator.unknown_event") == 2
            deltas = [event for event in client.events if event["type"].endswith(".delta")]
            assert all("obfuscation" in event for event in deltas)

    with_emulator(unknown)


_REALTIME = [name for name in BUILT_IN if name != "no-realtime" and not name.startswith("live-")]


@pytest.mark.parametrize("name", sorted(_REALTIME))
def test_every_built_in_script_can_be_asked_for(name: str) -> None:
    async def ask(emulator: Emulator) -> None:
        async with session(emulator, name) as client:
            first = await client.receive()
            refused = {"bad-key": "invalid_api_key", "no-model": "model_not_found"}.get(name)
            if refused is None:
                assert first["type"] == "session.created"
            else:
                assert first["error"]["code"] == refused

    with_emulator(ask)

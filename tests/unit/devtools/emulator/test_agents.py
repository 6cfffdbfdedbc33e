# SPDX-License-Identifier: GPL-2.0-or-later
"""The official agents SDK talks to the emulator: a tool, audio, an interruption, no complaint."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.realtime.events import RealtimeSessionEvent

from gateway.devtools.emulator import Emulator
from tests.support.emulator_client import check, with_emulator


def test_an_agent_with_a_tool_is_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    @function_tool
    def weather(city: str) -> str:
        """Say the weather of a city."""
        asked.append(city)
        return f"Rain in {city}."

    async def test(emulator: Emulator) -> None:
        agent = RealtimeAgent(name="Weather", instructions="Help.", tools=[weather])
        weather_call = {"name": "weather", "arguments": '{"city":"Rome"}'}
        script = {
            "answers": [
                {"kind": "nothing", "tools": [weather_call]},
                {"kind": "pattern", "seconds": 20},
                {"kind": "say", "text": "Good."},
            ],
            "speed": 4,
            "vad": "scripted",
            "speech": {"at_ms": [400]},
        }
        url = emulator.url(behaviour=json.dumps(script), model="gpt-realtime-2.1")
        runner = RealtimeRunner(
            agent,
            config={
                "model_settings": {
                    "input_audio_format": "g711_ulaw",
                    "output_audio_format": "g711_ulaw",
                    "turn_detection": {"type": "server_vad"},
                }
            },
        )
        seen: list[RealtimeSessionEvent] = []
        done = 0
        async with await runner.run(model_config={"url": url, "api_key": "k"}) as session:
            await session.send_message("What is the weather in Rome?")
            async with asyncio.timeout(20):
                async for event in session:
                    seen.append(event)
                    if event.type == "raw_model_event" and event.data.type == "raw_server_event":
                        check(event.data.data)
                        done += event.data.data["type"] == "response.done"
                    if done == 3:
                        break
        types = [event.type for event in seen]
        assert "error" not in types
        assert asked == ["Rome"]
        tool_end = next(event for event in seen if event.type == "tool_end")
        assert tool_end.output == "Rain in Rome."
        assert types.index("tool_end") < types.index("audio") < types.index("audio_interrupted")
        record = await emulator.wait_sessions(1, within_s=20)
        assert not record.sent("error")
        statuses = [event["response"]["status"] for event in raw(seen, "response.done")]
        assert statuses == ["completed", "cancelled", "completed"]

    with caplog.at_level(logging.WARNING, logger="openai.agents"):
        with_emulator(test)
    assert not [record for record in caplog.records if record.name.startswith("openai")]


def raw(seen: list[RealtimeSessionEvent], type_: str) -> list[dict]:  # type: ignore[type-arg]
    return [
        event.data.data
        for event in seen
        if event.type == "raw_model_event"
        and event.data.type == "raw_server_event"
        and event.data.data["type"] == type_
    ]

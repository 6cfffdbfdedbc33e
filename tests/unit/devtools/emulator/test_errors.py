# SPDX-License-Identifier: GPL-2.0-or-later
"""What the emulator refuses, with the codes and texts of the service."""

from __future__ import annotations

import base64
import json
from typing import Any

from gateway.devtools.emulator import Emulator
from tests.support.emulator_client import END_CALL, PCMU_SESSION, phone, session, with_emulator

ERRORS: list[tuple[str | bytes | dict[str, Any], str, str | None]] = [
    (b"\x00\x01", "invalid_event", None),
    ("{", "invalid_json", None),
    ("[" * 100_000, "invalid_json", None),
    ("[]", "invalid_event", None),
    ('{"no":"type"}', "invalid_event", None),
    ({"type": "session.upd"}, "invalid_value", "type"),
    ({"type": "output_audio_buffer.clear"}, "invalid_value", "type"),
    ({"type": "session.update", "session": {}}, "missing_required_parameter", "session.type"),
    ({"type": "session.update"}, "missing_required_parameter", "session"),
    (
        {"type": "session.update", "session": {"type": "realtime", "temperature": 0.8}},
        "unknown_parameter",
        "session.temperature",
    ),
    (
        {
            "type": "session.update",
            "session": {"type": "realtime", "audio": {"input": {"turn_detection": {"x": 1}}}},
        },
        "unknown_parameter",
        "session.audio.input.turn_detection.x",
    ),
    (
        {
            "type": "session.update",
            "session": {"type": "realtime", "audio": {"input": {"format": {"type": "opus"}}}},
        },
        "invalid_value",
        "session.audio.input.format",
    ),
    (
        {"type": "session.update", "session": {"type": "realtime", "instructions": 5}},
        "invalid_type",
        "session.instructions",
    ),
    (
        {"type": "session.update", "session": {"type": "realtime", "model": "another"}},
        "invalid_value",
        "session.model",
    ),
    ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
    ({"type": "input_audio_buffer.append", "audio": "%%%"}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
    ({"type": "response.cancel"}, "response_cancel_not_active", None),
    (
        {"type": "response.create", "response": {"voice": "a"}},
        "unknown_parameter",
        "response.voice",
    ),
    (
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0},
        "missing_required_parameter",
        "audio_end_ms",
    ),
    (
        {
            "type": "conversation.item.truncate",
            "item_id": "x",
            "content_index": 0,
            "audio_end_ms": 1,
        },
        "item_truncate_invalid_item_id",
        "item_id",
    ),
    (
        {"type": "conversation.item.delete", "item_id": "x"},
        "item_delete_invalid_item_id",
        "item_id",
    ),
    (
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user"}},
        "missing_required_parameter",
        "item.content",
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "content": []},
            "previous_item_id": "nobody",
        },
        "invalid_value",
        "previous_item_id",
    ),
]


def test_errors_have_the_documented_codes_and_hurt_nobody() -> None:
    async def errors(emulator: Emulator) -> None:
        async with session(emulator) as client:
            for number, (message, code, param) in enumerate(ERRORS):
                event_id = None
                if isinstance(message, dict):
                    event_id = f"event_of_test_{number}"
                    message = json.dumps({**message, "event_id": event_id})
                await client.socket.send(message)
                error = await client.error()
                assert (error["code"], error["param"]) == (code, param), message[:100]
                assert error["event_id"] == event_id
            assert (await client.update(PCMU_SESSION))["type"] == "realtime"
            assert list(emulator.sessions[-1].errors) == [code for _, code, _ in ERRORS]

    with_emulator(errors)


def test_update_merges_deeply_and_a_refused_one_changes_nothing() -> None:
    async def update(emulator: Emulator) -> None:
        async with session(emulator) as client:
            before = (await client.until("session.created"))["session"]
            tools = [END_CALL]
            one = await client.update({**PCMU_SESSION, "instructions": "Be brief.", "tools": tools})
            assert one["audio"]["input"]["format"] == {"type": "audio/pcmu"}
            assert one["audio"]["output"]["voice"] == before["audio"]["output"]["voice"]
            assert one["tools"] == tools
            vad = {"turn_detection": {"threshold": 0.7}, "noise_reduction": {"type": "far_field"}}
            two = await client.update({"type": "realtime", "audio": {"input": vad}})
            detection = {**before["audio"]["input"]["turn_detection"], "threshold": 0.7}
            assert two["audio"]["input"]["turn_detection"] == detection
            assert two["instructions"] == "Be brief."
            semantic = {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}
            three = await client.update({"type": "realtime", "audio": {"input": semantic}})
            assert "threshold" not in three["audio"]["input"]["turn_detection"]
            wrong = {"type": "realtime", "instructions": "", "tool_choice": "sometimes"}
            await client.send("session.update", session=wrong)
            assert (await client.error())["param"] == "session.tool_choice"
            cleared = {"tools": [], "audio": {"input": {"turn_detection": None}}}
            four = await client.update({"type": "realtime", **cleared})
            assert four["tools"] == []
            assert four["audio"]["input"]["turn_detection"] is None
            assert four["instructions"] == "Be brief."

    with_emulator(update)


def test_voice_is_locked_by_the_first_audio() -> None:
    async def lock(emulator: Emulator) -> None:
        async with session(emulator, speed=200) as client:
            cedar = {"type": "realtime", "audio": {"output": {"voice": "cedar"}}}
            ash = {"type": "realtime", "audio": {"output": {"voice": "ash"}}}
            await client.update(cedar)
            await client.answered()
            await client.send("session.update", session=ash)
            error = await client.error()
            assert error["code"] == "cannot_update_voice"
            assert error["param"] == "session.audio.output.voice"
            assert (await client.update(cedar))["audio"]["output"]["voice"] == "cedar"

    with_emulator(lock)


def test_only_one_response_at_a_time() -> None:
    async def two(emulator: Emulator) -> None:
        async with phone(emulator, speed=1) as client:
            await client.send("response.create")
            await client.send("response.create", event_id="second")
            error = await client.error()
            assert error["code"] == "conversation_already_has_active_response"
            assert error["event_id"] == "second"

    with_emulator(two)


def test_truncation_knows_the_true_length() -> None:
    async def truncate(emulator: Emulator) -> None:
        async with phone(emulator, "pattern", answer__seconds=3, speed=200) as client:

            async def cut(item_id: str, ms: int) -> None:
                await client.send(
                    "conversation.item.truncate",
                    item_id=item_id,
                    content_index=0,
                    audio_end_ms=ms,
                    event_id=f"cut {ms}",
                )

            item_id = (await client.answered())["output"][0]["id"]
            await cut(item_id, 3001)
            error = await client.error()
            assert error["code"] == "invalid_value"
            assert error["message"] == "Audio content of 3000ms is already shorter than 3001ms"
            assert error["event_id"] == "cut 3001"
            await cut(item_id, 1234)
            truncated = await client.until("conversation.item.truncated")
            assert truncated["audio_end_ms"] == 1234
            await client.send("conversation.item.retrieve", item_id=item_id)
            part = (await client.until("conversation.item.retrieved"))["item"]["content"][0]
            assert base64.b64decode(part["audio"]) == client.audio()[: 1234 * 8]
            await cut(item_id, 1235)
            assert "1234ms is already shorter" in (await client.error())["message"]
            await client.say("hello")
            text_id = (await client.until("conversation.item.done"))["item"]["id"]
            await cut(text_id, 0)
            assert (await client.error())["code"] == "unsupported_content_type"
            await client.send("conversation.item.delete", item_id=item_id)
            await client.until("conversation.item.deleted", item_id=item_id)

            record = emulator.sessions[-1]
            seen = [(cut.requested_ms, cut.item_ms, cut.accepted) for cut in record.truncations]
            assert seen[:2] == [(3001, 3000, False), (1234, 3000, True)]
            assert seen[2:] == [(1235, 1234, False), (0, 0, False)]
            assert record.deletions == [item_id]
            assert bytes(record.sent_items[item_id]) == client.audio()

    with_emulator(truncate)

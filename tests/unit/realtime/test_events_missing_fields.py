# SPDX-License-Identifier: GPL-2.0-or-later
"""Each field of each server event left out, null, and of a wrong type: the event is understood, or
said to be bad with what follows from that; and a caller can interrupt all the same."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest

from gateway.audio import Codec
from gateway.call.plan import CallPlan, InterruptionPlan
from gateway.realtime.dialects import DIALECTS
from gateway.realtime.events import ServerEvent
from gateway.realtime.parse import BadEvent, parse_event
from gateway.realtime.wire import Edge
from tests.support.call_scene import Scene, said
from tests.support.mutations import LEFT_OUT, damaged, paths_in

AUDIO = base64.b64encode(b"\x42" * 3200).decode()

RESPONSE = {
    "id": "r1",
    "object": "realtime.response",
    "status": "completed",
    "status_details": {"type": "completed", "reason": None, "error": None},
    "output": [{"id": "i1", "type": "message", "role": "assistant", "content": []}],
    "usage": {"total_tokens": 7, "input_tokens": 3, "output_tokens": 4},
    "metadata": None,
}
OF_RESPONSE = {"response_id": "r1", "item_id": "i1", "output_index": 0, "content_index": 0}

EVENTS: list[dict[str, Any]] = [
    {"type": "session.created", "session": {"id": "s", "expires_at": 1_900_000_000}},
    {"type": "session.updated", "session": {"id": "s", "expires_at": 1_900_000_000}},
    {"type": "input_audio_buffer.speech_started", "item_id": "u1", "audio_start_ms": 1000},
    {"type": "input_audio_buffer.speech_stopped", "item_id": "u1", "audio_end_ms": 2000},
    {"type": "input_audio_buffer.committed", "item_id": "u1", "previous_item_id": None},
    {
        "type": "conversation.item.input_audio_transcription.completed",
        "item_id": "u1",
        "content_index": 0,
        "transcript": "Hello.",
        "usage": {"type": "duration", "seconds": 1},
    },
    {"type": "conversation.item.added", "item": {"id": "i1"}, "previous_item_id": None},
    {
        "type": "conversation.item.truncated",
        "item_id": "i1",
        "content_index": 0,
        "audio_end_ms": 100,
    },
    {"type": "conversation.item.deleted", "item_id": "i1"},
    {"type": "response.created", "response": RESPONSE | {"status": "in_progress"}},
    {"type": "response.output_audio.delta", **OF_RESPONSE, "delta": AUDIO},
    {"type": "response.output_audio_transcript.delta", **OF_RESPONSE, "delta": "Hello."},
    {"type": "response.output_audio.done", **OF_RESPONSE},
    {"type": "response.output_audio_transcript.done", **OF_RESPONSE, "transcript": "Hello."},
    {"type": "response.done", "response": RESPONSE},
    {
        "type": "error",
        "error": {
            "type": "server_error",
            "code": "x",
            "message": "No.",
            "param": None,
            "event_id": "gw_1",
        },
    },
    {"type": "rate_limits.updated", "rate_limits": [{"name": "tokens", "remaining": 1}]},
]

NEEDED = {
    "conversation.item.input_audio_transcription.completed": {"transcript"},
    "conversation.item.added": {"item"},
    "conversation.item.truncated": {"item_id", "audio_end_ms"},
    "conversation.item.deleted": {"item_id"},
    "response.output_audio.delta": {"delta"},
    "response.output_audio_transcript.delta": {"delta"},
    "response.output_audio_transcript.done": {"transcript"},
}
"""Fields without which an event says nothing."""

WRONG: list[Any] = [LEFT_OUT, None, [], {}, "words", 7, True]


def read(parse: Callable[[str], ServerEvent], frame: str) -> ServerEvent | BadEvent:
    try:
        return parse(frame)
    except BadEvent as bad:
        return bad


CASES = [
    pytest.param(event, path, id=f"{event['type']}-{'.'.join(map(str, path))}")
    for event in EVENTS
    for path in paths_in(event)
]


@pytest.mark.parametrize(("event", "path"), CASES)
def test_a_field_that_is_not_as_it_should_be(event: dict[str, Any], path: tuple[str, ...]) -> None:
    needed = path == ("type",) or path[-1] in NEEDED.get(event["type"], set())
    of_its_type = type(parse_event(json.dumps(event)))
    for value in WRONG:
        frame = json.dumps(damaged(event, path, value))
        event_read = read(parse_event, frame)
        if isinstance(event_read, BadEvent):
            assert needed, (value, event_read)
            assert event_read.consequence
        elif path != ("type",):
            assert type(event_read) is of_its_type


@pytest.mark.parametrize("dialect", [name for name, one in DIALECTS.items() if one.translates])
@pytest.mark.parametrize(("event", "path"), CASES)
def test_other_dialects_are_read_as_patiently(
    dialect: Any, event: dict[str, Any], path: tuple[str, ...]
) -> None:
    edge = Edge(DIALECTS[dialect], "g711", {})
    for value in WRONG:
        found = read(edge.parse, json.dumps(damaged(event, path, value)))
        assert isinstance(found, (BadEvent, *get_args(ServerEvent))), value


# ---- a whole turn with barge-in, one field of one event amiss

PLANS = {
    "the server interrupts": CallPlan("r", Codec.PCMU),
    "the gateway does": CallPlan(
        "r", Codec.PCMU, interruptions=InterruptionPlan("at_once", by_gateway=True)
    ),
    "the gateway, after a pause": CallPlan(
        "r", Codec.PCMU, interruptions=InterruptionPlan("pause", by_gateway=True)
    ),
}
TURN = ("response.created", "response.output_audio.delta")
SPEECH = (
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
)
IN_A_TURN = [
    pytest.param(name, path, id=f"{name}-{'.'.join(map(str, path))}")
    for event in EVENTS
    if (name := event["type"]) in (*TURN, *SPEECH)
    for path in paths_in(event)
    if path not in (("type",), ("delta",))
]


def event_of(name: str, amiss: str, path: tuple[str, ...], value: Any) -> ServerEvent:
    (event,) = [one for one in EVENTS if one["type"] == name]
    return parse_event(json.dumps(damaged(event, path, value) if name == amiss else event))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize(("amiss", "path"), IN_A_TURN)
def test_the_caller_can_interrupt(plan: CallPlan, amiss: str, path: tuple[str, ...]) -> None:
    for value in WRONG:
        scene = Scene(replace(plan, limits=replace(plan.limits, rtp_timeout=0))).up()
        for name in TURN:
            scene.do(said(event_of(name, amiss, path, value)))
        assert scene.queue > 0
        scene.listen(40)
        seen = scene.do(said(event_of(SPEECH[0], amiss, path, value)))
        assert "flush" in seen or "pause" in seen, (value, seen)
        seen += scene.at(scene.now + 1.0, said(event_of(SPEECH[1], amiss, path, value)))
        assert "flush" in seen, (value, seen)
        # What still comes of that response is not heard.
        late = event_of(TURN[1], amiss, path, value)
        if getattr(late, "response_id", ""):
            assert not [one for one in scene.do(said(late)) if one.startswith("play")], value
        seen += scene.do(said(event_of(SPEECH[2], amiss, path, value)))
        end = parse_event('{"type":"response.done","response":{"status":"cancelled"}}')
        seen += scene.do(said(end))
        if plan.interruptions.by_gateway:
            assert seen.count("create") == 1, (value, seen)
        assert scene.record.ending is None

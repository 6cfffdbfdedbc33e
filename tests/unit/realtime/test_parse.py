# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames to typed events: a row for each event, and properties of the reader as a whole."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bridge.sideband import Sideband
from gateway.realtime.events import (
    AgentTranscript,
    AudioDelta,
    AudioDone,
    InputCommitted,
    InputTranscribed,
    ItemAdded,
    ItemDeleted,
    ItemTruncated,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    ServerError,
    ServerEvent,
    SessionCreated,
    SessionUpdated,
    SpeechStarted,
    SpeechStopped,
)
from gateway.realtime.parse import BadEvent, is_known_type, parse_event, parse_live_event
from gateway.records.event_logs import _event

ROWS: list[tuple[dict[str, Any], ServerEvent, list[str]]] = [
    # event, what it is read as, keys without which it is a BadEvent
    (
        {"type": "session.created", "session": {"id": "sess_1"}},
        SessionCreated({"id": "sess_1"}),
        [],
    ),
    (
        {"type": "session.updated", "session": {"id": "sess_1"}},
        SessionUpdated({"id": "sess_1"}),
        [],
    ),
    (
        {"type": "input_audio_buffer.speech_started", "item_id": "i", "audio_start_ms": 40},
        SpeechStarted("i", 40),
        [],
    ),
    (
        {"type": "input_audio_buffer.speech_stopped", "item_id": "i", "audio_end_ms": 900},
        SpeechStopped("i", 900),
        [],
    ),
    (
        {"type": "input_audio_buffer.committed", "item_id": "i", "previous_item_id": None},
        InputCommitted("i"),
        [],
    ),
    (
        {
            "type": "conversation.item.input_audio_transcription.completed",
            "item_id": "i",
            "content_index": 0,
            "transcript": "grüezi",
            "usage": {"type": "duration", "seconds": 2},
        },
        InputTranscribed("i", "grüezi", {"type": "duration", "seconds": 2}),
        ["transcript"],
    ),
    (
        {"type": "conversation.item.added", "item": {"id": "i"}, "previous_item_id": "h"},
        ItemAdded({"id": "i"}),
        ["item"],
    ),
    (
        {"type": "conversation.item.created", "item": {"id": "i"}},
        ItemAdded({"id": "i"}),
        ["item"],
    ),
    (
        {
            "type": "conversation.item.truncated",
            "item_id": "i",
            "content_index": 1,
            "audio_end_ms": 1200,
        },
        ItemTruncated("i", 1, 1200),
        ["item_id", "audio_end_ms"],
    ),
    ({"type": "conversation.item.deleted", "item_id": "i"}, ItemDeleted("i"), ["item_id"]),
    (
        {"type": "response.created", "response": {"id": "r", "metadata": {"why": "greeting"}}},
        ResponseCreated("r", {"why": "greeting"}),
        [],
    ),
    (
        {"type": "response.created", "response": {"id": "r", "metadata": None}},
        ResponseCreated("r", {}),
        [],
    ),
    (
        {
            "type": "response.done",
            "response": {
                "id": "r",
                "status": "cancelled",
                "status_details": {"type": "cancelled", "reason": "turn_detected"},
                "output": [{"id": "i"}],
                "usage": {"total_tokens": 7},
            },
        },
        ResponseDone(
            "r", "cancelled", "turn_detected", None, None, ({"id": "i"},), {"total_tokens": 7}
        ),
        [],
    ),
    (
        {
            "type": "response.done",
            "response": {
                "id": "r",
                "status": "failed",
                "status_details": {
                    "type": "failed",
                    "error": {"type": "tokens", "code": "rate_limit_exceeded", "message": "Slow."},
                },
                "output": [],
                "usage": None,
            },
        },
        ResponseDone("r", "failed", None, "rate_limit_exceeded", "Slow.", (), None),
        [],
    ),
    (
        {
            "type": "response.done",
            "response": {"id": "r", "status": "completed", "status_details": None, "output": None},
        },
        ResponseDone("r", "completed", None, None, None, (), None),
        [],
    ),
    (
        {
            "type": "response.output_audio.delta",
            "response_id": "r",
            "item_id": "i",
            "output_index": 0,
            "content_index": 2,
            "delta": "/4A=",
        },
        AudioDelta("r", "i", 2, b"\xff\x80"),
        ["delta"],
    ),
    (
        {"type": "response.output_audio.done", "response_id": "r", "item_id": "i"},
        AudioDone("r", "i", 0),
        [],
    ),
    (
        {
            "type": "response.output_audio_transcript.done",
            "response_id": "r",
            "item_id": "i",
            "content_index": 0,
            "transcript": "Good morning.",
        },
        AgentTranscript("r", "i", 0, "Good morning."),
        ["transcript"],
    ),
    (
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "code": "invalid_value",
                "message": "No.",
                "param": "session.speed",
                "event_id": "gw_3",
            },
        },
        ServerError("invalid_value", "No.", "invalid_request_error", "session.speed", "gw_3"),
        [],
    ),
    (
        {"type": "error", "error": {"type": "server_error", "code": None, "message": None}},
        ServerError(None, "", "server_error"),
        [],
    ),
    ({"type": "error", "error": "overloaded"}, ServerError(None, "overloaded"), []),
    ({"type": "error", "code": "c", "message": "m"}, ServerError("c", "m"), []),
    (
        {"type": " response.brand_new ", "x": 1},
        OtherEvent("response.brand_new", {"type": " response.brand_new ", "x": 1}),
        [],
    ),
]


@pytest.mark.parametrize(
    ("event", "expected", "needed"), ROWS, ids=[str(row[0]["type"]) for row in ROWS]
)
def test_each_event(event: dict[str, Any], expected: ServerEvent, needed: list[str]) -> None:
    assert parse_event(json.dumps(event)) == expected
    assert parse_event(json.dumps(event, ensure_ascii=False).encode()) == expected
    spaced = {**event, "type": f" {event['type']}\n"}
    if not isinstance(expected, OtherEvent):
        assert parse_event(json.dumps(spaced)) == expected
        assert parse_event(json.dumps({**event, "event_id": "event_9", "new": [1]})) == expected
        assert is_known_type(event["type"])
    for path in needed:
        for wrong in (None, ["a list"]):
            damaged = json.loads(json.dumps(event))
            *outer, key = path.split(".")
            target = damaged
            for name in outer:
                target = target[name]
            if wrong is None:
                del target[key]
            else:
                target[key] = wrong
            with pytest.raises(BadEvent) as caught:
                parse_event(json.dumps(damaged))
            assert (caught.value.event_type, caught.value.field) == (event["type"], path)
            assert event["type"] in str(caught.value)
            assert path in str(caught.value)


@pytest.mark.parametrize(
    ("frame", "event_type", "field"),
    [
        ("", None, None),
        ("{", None, None),
        ("[" * 100_000, None, None),
        (b"\xff\xfe", None, None),
        ('{"type":"error"', None, None),
        ('["type"]', None, None),
        ("null", None, None),
        ('{"event_id":"e"}', None, "type"),
        ('{"type":7}', None, "type"),
        (
            '{"type":"conversation.item.truncated","item_id":"i","audio_end_ms":true}',
            "conversation.item.truncated",
            "audio_end_ms",
        ),
        (
            '{"type":"conversation.item.truncated","item_id":"i","audio_end_ms":NaN}',
            "conversation.item.truncated",
            "audio_end_ms",
        ),
        (
            '{"type":"response.output_audio.delta","response_id":"r","item_id":"i","delta":"/4A"}',
            "response.output_audio.delta",
            "delta",
        ),
        (
            '{"type":"response.output_audio.delta","response_id":"r","item_id":"i","delta":"/4\u00e4="}',
            "response.output_audio.delta",
            "delta",
        ),
        (
            '{"type":"response.output_audio.delta","response_id":"r","item_id":"i","delta":"/4A=/4A="}',
            "response.output_audio.delta",
            "delta",
        ),
    ],
)
def test_bad_frames(frame: str | bytes, event_type: str | None, field: str | None) -> None:
    with pytest.raises(BadEvent) as caught:
        parse_event(frame)
    assert (caught.value.event_type, caught.value.field) == (event_type, field)


def test_bad_event_never_quotes_the_frame() -> None:
    for frame in (
        '{"said by the caller": ',
        '{"type":"conversation.item.added","item":"by the caller"}',
    ):
        with pytest.raises(BadEvent) as caught:
            parse_event(frame)
        assert "caller" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# Values that look like the event around them.
look_alikes = st.sampled_from(
    [
        '"delta":"AAAA"',
        {"delta": "AAAA", "type": "response.output_audio.delta"},
        'response.output_audio.delta","item_id":"x',
        "\\",
        "\u2028\U0001f600",
    ]
)


@given(
    audio=st.binary(max_size=400),
    ids=st.tuples(st.text(max_size=12), st.text(max_size=12)),
    extra=st.dictionaries(
        st.sampled_from(["event_id", "output_index", "obfuscation", "a", 'delta"', "Delta"]),
        json_values | look_alikes,
    ),
    order=st.randoms(use_true_random=False),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
    as_bytes=st.booleans(),
)
def test_an_audio_delta_is_read_in_any_order_spacing_and_company(
    audio: bytes,
    ids: tuple[str, str],
    extra: dict[str, Any],
    order: Any,
    indent: int | None,
    ascii_only: bool,
    as_bytes: bool,
) -> None:
    event = {
        **extra,
        "type": "response.output_audio.delta",
        "response_id": ids[0],
        "item_id": ids[1],
        "content_index": 0,
        "delta": base64.b64encode(audio).decode(),
    }
    keys = list(event)
    order.shuffle(keys)
    text = json.dumps({k: event[k] for k in keys}, indent=indent, ensure_ascii=ascii_only)
    frame: str | bytes = text.encode() if as_bytes else text
    assert parse_event(frame) == AudioDelta(ids[0], ids[1], 0, audio)


@given(
    st.sampled_from([row[0]["type"] for row in ROWS]),
    st.dictionaries(
        st.sampled_from(
            [
                "session",
                "item",
                "item_id",
                "response_id",
                "response",
                "error",
                "delta",
                "transcript",
                "audio_start_ms",
                "audio_end_ms",
                "content_index",
                "code",
            ]
        ),
        json_values,
    ),
)
def test_whatever_an_event_holds_it_is_read_or_a_bad_event(
    event_type: str, fields: dict[str, Any]
) -> None:
    error: BadEvent | None = None
    try:
        parse_event(json.dumps({"type": event_type, **fields}))
    except BadEvent as caught:
        error = caught
    assert error is None or (error.event_type == event_type.strip() and error.field)


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_frame_is_an_event_or_a_bad_event(frame: str | bytes) -> None:
    try:
        event: object = parse_event(frame)
    except BadEvent as bad:
        event = bad
    assert isinstance(event, (BadEvent, *get_args(ServerEvent)))


DEPTHS = [(90, True), (101, False), (300, False), (600, False), (1020, False), (40_000, False)]


@pytest.mark.parametrize(("depth", "good"), DEPTHS)
def test_depth(depth: int, good: bool) -> None:
    """What is deeper than those who go through it can go is no event, for any of them."""
    nested = "[" * depth + "]" * depth
    frame = f'{{"type":"response.brand_new","event_id":"e","more":{nested}}}'.encode()
    for parse in (parse_event, parse_live_event):
        with contextlib.nullcontext() if good else pytest.raises(BadEvent):
            parse(frame)
    sideband = Sideband(lambda: None)
    follower = sideband.attach()
    sideband.up({"id": "sess_1"})
    sideband.received(frame)
    sideband.take(frame.replace(b"response.brand_new", b"session.update"), follower)
    sideband.take(f'{{"type":"session.update","session":{{"x":{nested}}}}}', follower)
    kinds = [orjson.loads(event)["type"] for event in follower._events]
    assert kinds[:1] == ["session.created"]
    assert ("response.brand_new" in kinds) is good
    line = json.dumps(_event(frame))
    assert line.startswith('{"event"' if good else '{"not_json"')

# SPDX-License-Identifier: GPL-2.0-or-later
"""The session object of a call, and the update that carries it."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Any

import pytest

from gateway.realtime.events import UpdateSession
from gateway.realtime.session_object import Codec, format_of, session_object

SERVER_VAD = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "create_response": True,
    "interrupt_response": True,
}
END_CALL = {"type": "function", "name": "end_call", "parameters": {"type": "object"}}


@pytest.mark.parametrize(("codec", "audio"), [("PCMU", "audio/pcmu"), ("PCMA", "audio/pcma")])
def test_an_empty_route_gets_format_and_explicit_turn_detection(codec: Codec, audio: str) -> None:
    session = session_object({}, codec, [])
    assert session == {
        "type": "realtime",
        "audio": {
            "input": {"format": {"type": audio}, "turn_detection": SERVER_VAD},
            "output": {"format": {"type": audio}},
        },
    }
    assert format_of(session, "input") == format_of(session, "output") == audio


def test_what_the_route_says_stays_as_it_is_and_the_route_unchanged() -> None:
    route: dict[str, Any] = {
        "instructions": "Be kind.",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "noise_reduction": {"type": "far_field"},
                "turn_detection": {"threshold": 0.8, "interrupt_response": False},
            },
            "output": {"voice": "marin", "speed": 1.1},
        },
        "tools": [{"type": "mcp", "server_label": "orders"}],
        "reasoning": {"effort": "low"},
        "a_field_of_tomorrow": [1, {"x": None}],
    }
    before = copy.deepcopy(route)
    session = session_object(MappingProxyType(route), "PCMU", [END_CALL])
    assert route == before
    assert session["audio"] == {
        "input": {
            "format": {"type": "audio/pcmu"},
            "noise_reduction": {"type": "far_field"},
            "turn_detection": {**SERVER_VAD, "threshold": 0.8, "interrupt_response": False},
        },
        "output": {"format": {"type": "audio/pcmu"}, "voice": "marin", "speed": 1.1},
    }
    assert session["tools"] == [{"type": "mcp", "server_label": "orders"}, END_CALL]
    for name in ("instructions", "reasoning", "a_field_of_tomorrow"):
        assert session[name] == route[name]
    session["a_field_of_tomorrow"][1]["x"] = 1
    session["tools"][1]["parameters"]["type"] = "string"
    assert route == before
    assert END_CALL["parameters"] == {"type": "object"}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, None),
        (
            {"type": "semantic_vad", "eagerness": "low"},
            {
                "type": "semantic_vad",
                "eagerness": "low",
                "create_response": True,
                "interrupt_response": True,
            },
        ),
        ({"type": "vad_of_tomorrow"}, {"type": "vad_of_tomorrow"}),
    ],
)
def test_turn_detection(given: Any, sent: Any) -> None:
    session = session_object({"audio": {"input": {"turn_detection": given}}}, "PCMU", [])
    assert session["audio"]["input"]["turn_detection"] == sent


def test_a_hosted_prompt_keeps_its_own_turn_detection() -> None:
    prompt = {"prompt": {"id": "pmpt_1"}}
    assert "turn_detection" not in session_object(prompt, "PCMU", ())["audio"]["input"]
    assert "tools" not in session_object(prompt, "PCMU", ())
    own = {**prompt, "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}
    sent = session_object(own, "PCMU", ())["audio"]["input"]["turn_detection"]
    assert sent["eagerness"] == "auto", "what the route says is completed as ever"


def test_a_tool_of_the_route_stands_before_one_of_the_same_name() -> None:
    own = {"type": "function", "name": "end_call", "description": "Only after the survey."}
    assert session_object({"tools": [own]}, "PCMU", [END_CALL])["tools"] == [own]


@pytest.mark.parametrize(
    ("route", "path"),
    [
        ({"audio": "pcmu"}, "audio"),
        ({"audio": {"output": 1}}, "audio.output"),
        ({"audio": {"input": {"turn_detection": "server_vad"}}}, "audio.input.turn_detection"),
        ({"tools": ["end_call"]}, "tools"),
    ],
)
def test_a_route_that_cannot_be_completed_is_told_where(route: dict[str, Any], path: str) -> None:
    with pytest.raises(ValueError, match=f"^{path}: "):
        session_object(route, "PCMU", [END_CALL])


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        ({}, None),
        ({"audio": None}, None),
        ({"audio": {"input": {"format": None}}}, None),
        ({"audio": {"input": {"format": {"rate": 8000}}}}, None),
        ({"audio": {"input": {"format": "audio/pcmu"}}}, "audio/pcmu"),
    ],
)
def test_format_of_what_a_server_reports(session: dict[str, Any], expected: str | None) -> None:
    assert format_of(session, "input") == expected


def test_every_update_says_its_type() -> None:
    assert UpdateSession({"instructions": ""}).body() == {
        "type": "session.update",
        "session": {"type": "realtime", "instructions": ""},
    }
    assert UpdateSession({"type": "transcription"}).body()["session"]["type"] == "transcription"

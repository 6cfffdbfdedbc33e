# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``[route.live]`` may say: the session object of the Live API, as far as a route writes it.

As in :mod:`gateway.dialplan.session_settings`, each mistake is found by itself, with its place;
what may only be newer than this gateway is told from what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict

from gateway.config.source import KeyPath, suggestion
from gateway.config.values import Flag
from gateway.dialplan.session_settings import (
    UNKNOWN_TYPE,
    Finding,
    Part,
    Word,
    choice,
    judge_object,
    unknown_choice,
    voice_check,
)

LIVE_VOICES = (
    *("alloy", "ash", "ballad", "beacon", "bossa", "cedar", "cinder", "coral", "delta", "echo"),
    *("gleam", "marin", "meridian", "quartz", "ripple", "sage", "shida", "shimmer", "stone"),
    *("tempo", "verse", "vesper", "willow"),
)
"""Voices of November 2026."""

LIVE_SET_BY_GATEWAY: Mapping[KeyPath, str] = {
    ("audio", "format"): "it is the codec that the call negotiated",
    ("client",): "it is for WebRTC",
}


class _Output(Part):
    voice: Annotated[Any, BeforeValidator(voice_check(LIVE_VOICES))] = None


class _Audio(Part):
    output: _Output = _Output()


class _Text(Part):
    type: Literal["input_text", "output_text", "text"] | None = None
    text: str


class _Message(Part):
    type: Literal["message"] = "message"
    role: Literal["developer", "user", "assistant"]
    content: Annotated[list[_Text], Field(min_length=1, max_length=1)]
    id: Word | None = None
    status: Literal["incomplete", "completed"] | None = None


class _Reasoning(Part):
    effort: choice("none", "minimal", "low", "medium", "high", "xhigh") | None = None  # type: ignore[valid-type]
    summary: choice("auto", "concise", "detailed") | None = None  # type: ignore[valid-type]


class _Verbosity(Part):
    verbosity: choice("low", "medium", "high") | None = None  # type: ignore[valid-type]


_TIERS = ("auto", "default", "flex", "priority", "ultrafast", "fast_tier_temp_pilot")
_TOOLS = (
    *("function", "web_search", "file_search", "code_interpreter", "shell", "image_generation"),
    *("mcp", "custom", "namespace", "tool_search", "programmatic_tool_calling", "computer"),
    "apply_patch",
)


def _tool(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("must be a table")
    kind = value.get("type", "function")
    if kind not in _TOOLS:
        raise unknown_choice(UNKNOWN_TYPE + suggestion(str(kind), _TOOLS))
    if kind == "function" and not isinstance(value.get("name"), str):
        raise ValueError("needs a name")
    return value


class _Responses(Part):
    model: Word
    instructions: str | None = None
    max_output_tokens: Annotated[int, Strict(), Field(ge=16)] | None = None
    parallel_tool_calls: Flag | None = None
    reasoning: _Reasoning | None = None
    service_tier: choice(*_TIERS) | None = None  # type: ignore[valid-type]
    text: _Verbosity | None = None
    tool_choice: Word | dict[str, Any] | None = None
    tools: tuple[Annotated[Any, BeforeValidator(_tool)], ...] = ()


Questions = Annotated[list[dict[str, Any]], Field(min_length=1)]
Delay = Annotated[int, Strict(), Field(ge=0)]


class _Decisions(Part):
    model: Word
    questions: Questions


class _ClientDelegation(Part):
    type: Literal["client"]
    acknowledgement_delay_ms: Delay | None = None


class _ResponsesDelegation(Part):
    type: Literal["responses"]
    responses: _Responses
    acknowledgement_delay_ms: Delay | None = None


class _DecisionsDelegation(Part):
    type: Literal["decisions"]
    decisions: _Decisions
    acknowledgement_delay_ms: Delay | None = None


_DELEGATIONS: dict[str, type[Part]] = {
    "client": _ClientDelegation,
    "responses": _ResponsesDelegation,
    "decisions": _DecisionsDelegation,
}


def _delegation(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("must be a table")
    kind = value.get("type")
    if kind not in _DELEGATIONS:
        raise unknown_choice(UNKNOWN_TYPE + suggestion(str(kind), _DELEGATIONS))
    return _DELEGATIONS[kind].model_validate(dict(value))


class _Questions(Part):
    questions: Questions


class _Trigger(Part):
    type: Literal["decisions"] = "decisions"
    event_type: choice(  # type: ignore[valid-type]
        "session.input_transcript.delta", "session.output_transcript.delta"
    )
    decisions: _Questions


class LiveModel(Part):
    """The whole object, without what the gateway sets itself."""

    model: Word | None = None
    instructions: str | None = None
    audio: _Audio = _Audio()
    input: Annotated[tuple[_Message, ...], Field(max_length=128)] = ()
    delegation: Annotated[Any, BeforeValidator(_delegation)] = None
    triggers: tuple[_Trigger, ...] = ()
    store: Flag | None = None
    safety_identifier: Word | None = None


def judge_live(session: Mapping[str, Any]) -> list[Finding]:
    """Yield every problem of a Live session object, as it stands in the file."""
    return judge_object(session, LiveModel)

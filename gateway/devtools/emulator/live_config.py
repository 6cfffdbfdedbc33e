# SPDX-License-Identifier: GPL-2.0-or-later
"""The session object of the Live protocol, as strict models.

An unknown field is refused anywhere, as the service does it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.devtools.emulator.client_events import ApprovalFilter, FunctionTool, ToolFilter
from gateway.devtools.emulator.live_events import DecisionPart, InputText, tokens, too_long
from gateway.devtools.emulator.objects import Json, ProtocolError, Strict, validated

DEFAULT_INSTRUCTIONS = (
    "EMULATOR: this session is served by the gateway's emulator of the Live protocol. "
    "No model listens or thinks; answers follow fixed rules."
)
_VOICES = (
    "alloy ash ballad beacon bossa cedar cinder coral delta echo gleam marin meridian quartz "
    "ripple sage shida shimmer stone tempo verse vesper willow"
)
VOICES = frozenset(_VOICES.split())
MAX_INSTRUCTIONS_TOKENS = 16_384
MAX_INPUT_TOKENS = 8_192


class Pcm(Strict):
    type: Literal["audio/pcm"]
    rate: Literal[16000, 24000]


class G711(Strict):
    type: Literal["audio/pcmu", "audio/pcma"]
    rate: Literal[8000]


class CustomVoice(Strict):
    id: str = Field(min_length=1)


class AudioOutput(Strict):
    voice: str | CustomVoice | None = None


class Audio(Strict):
    format: Annotated[Pcm | G711, Field(discriminator="type")] | None = None
    output: AudioOutput | None = None


class SpokenText(Strict):
    text: str
    type: Literal["text", "output_text"] = "text"


class _Message(Strict):
    type: Literal["message"] = "message"
    id: str | None = None
    status: Literal["incomplete", "completed"] | None = None


class GivenMessage(_Message):
    role: Literal["developer", "user"]
    content: Annotated[list[InputText], Field(min_length=1, max_length=1)]


class AssistantMessage(_Message):
    role: Literal["assistant"]
    content: Annotated[list[SpokenText], Field(min_length=1, max_length=1)]


InitialItem = Annotated[GivenMessage | AssistantMessage, Field(discriminator="role")]


class Function(FunctionTool):
    strict: bool | None = None


class HostedTool(Strict):
    """A tool of the service that has no settings."""

    type: Literal[
        "web_search",
        "file_search",
        "code_interpreter",
        "image_generation",
        "custom",
        "namespace",
        "tool_search",
        "programmatic_tool_calling",
        "computer",
        "apply_patch",
    ]


class NoNetwork(Strict):
    type: Literal["disabled"]


class AllowedNetwork(Strict):
    type: Literal["allowlist"]
    allowed_domains: list[str]


class SkillReference(Strict):
    type: Literal["skill_reference"]
    skill_id: str
    version: str | None = None


class SkillSource(Strict):
    type: Literal["base64"]
    media_type: Literal["application/zip"]
    data: str


class InlineSkill(Strict):
    type: Literal["inline"]
    name: str
    description: str
    source: SkillSource


class Container(Strict):
    type: Literal["container_auto"]
    file_ids: list[str] | None = None
    memory_limit: Literal["1g", "4g", "16g", "64g"] | None = None
    network_policy: Annotated[NoNetwork | AllowedNetwork, Field(discriminator="type")] | None = None
    skills: list[Annotated[SkillReference | InlineSkill, Field(discriminator="type")]] | None = None


class ContainerReference(Strict):
    type: Literal["container_reference"]
    container_id: str


class LocalSkill(Strict):
    name: str
    description: str
    path: str


class LocalComputer(Strict):
    type: Literal["local"]
    skills: list[LocalSkill] | None = None


class Shell(Strict):
    type: Literal["shell"]
    environment: (
        Annotated[Container | ContainerReference | LocalComputer, Field(discriminator="type")]
        | None
    ) = None


class Mcp(Strict):
    type: Literal["mcp"]
    allowed_callers: list[Literal["direct", "programmatic"]] | None = None
    allowed_tools: list[str] | ToolFilter | None = None
    authorization: str | None = None
    connector_id: str | None = None
    defer_loading: bool | None = None
    headers: dict[str, str] | None = None
    require_approval: Literal["always", "never"] | ApprovalFilter | None = None
    server_description: str | None = None
    server_label: str | None = None
    server_url: str | None = None
    tunnel_id: str | None = None


Tool = Annotated[Function | HostedTool | Shell | Mcp, Field(discriminator="type")]


class NamedTool(Strict):
    type: Literal["function", "custom"]
    name: str


class McpToolChoice(Strict):
    type: Literal["mcp"]
    name: str
    server_label: str


class HostedToolChoice(Strict):
    type: Literal[
        "file_search",
        "web_search",
        "web_search_preview",
        "image_generation",
        "computer",
        "code_interpreter",
        "programmatic_tool_calling",
        "shell",
        "apply_patch",
    ]


OneTool = Annotated[NamedTool | McpToolChoice | HostedToolChoice, Field(discriminator="type")]


class AllowedTools(Strict):
    type: Literal["allowed_tools"]
    tools: list[OneTool]
    mode: Literal["none", "auto", "required"] | None = None


class Reasoning(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class Verbosity(Strict):
    verbosity: Literal["low", "medium", "high"] | None = None


ServiceTier = Literal["auto", "default", "flex", "priority", "ultrafast", "fast_tier_temp_pilot"]


class BackendUpdate(Strict):
    """``delegation.responses`` of a ``session.update``."""

    model: Annotated[str, Field(min_length=1)] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=16)] = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    service_tier: ServiceTier | None = None
    text: Verbosity | None = None
    tool_choice: Literal["auto", "none", "required"] | OneTool | AllowedTools | None = None
    tools: list[Tool] | None = None


class Backend(BackendUpdate):
    """``delegation.responses`` of a ``session.start``."""

    model: str = Field(min_length=1)


Delay = Annotated[int | None, Field(ge=0)]


class ClientDelegation(Strict):
    type: Literal["client"]
    acknowledgement_delay_ms: Delay = None


class ResponsesDelegation(Strict):
    type: Literal["responses"]
    responses: Backend
    acknowledgement_delay_ms: Delay = None


class ResponsesDelegationUpdate(Strict):
    type: Literal["responses"]
    responses: BackendUpdate | None = None
    acknowledgement_delay_ms: Delay = None


class ChoiceOption(Strict):
    value: str | bool
    description: str | None = None


class ScoreLevel(Strict):
    label: str
    description: str | None = None


class _Question(Strict):
    instructions: str | list[DecisionPart]
    name: str | None = None


class Choice(_Question):
    type: Literal["choice"]
    choices: list[ChoiceOption]


class Predicate(_Question):
    type: Literal["predicate"]


class Score(_Question):
    type: Literal["score"]
    levels: list[ScoreLevel]


Question = Annotated[Choice | Predicate | Score, Field(discriminator="type")]


class Decisions(Strict):
    model: str
    questions: list[Question]


class DecisionsUpdate(Strict):
    model: str | None = None
    questions: list[Question] | None = None


class DecisionsDelegation(Strict):
    type: Literal["decisions"]
    decisions: Decisions
    acknowledgement_delay_ms: Delay = None


class DecisionsDelegationUpdate(Strict):
    type: Literal["decisions"]
    decisions: DecisionsUpdate | None = None
    acknowledgement_delay_ms: Delay = None


class Questions(Strict):
    questions: list[Question]


class Trigger(Strict):
    type: Literal["decisions"]
    event_type: Literal["session.input_transcript.delta", "session.output_transcript.delta"]
    decisions: Questions


Delegation = Annotated[
    ClientDelegation | ResponsesDelegation | DecisionsDelegation, Field(discriminator="type")
]
DelegationUpdate = Annotated[
    ClientDelegation | ResponsesDelegationUpdate | DecisionsDelegationUpdate,
    Field(discriminator="type"),
]


class SessionConfig(Strict):
    """``session.start.session``."""

    model: str = Field(min_length=1)
    instructions: str | None = None
    audio: Audio | None = None
    input: Annotated[list[InitialItem], Field(max_length=128)] | None = None
    delegation: Delegation | None = None
    triggers: list[Trigger] | None = None
    store: bool | None = None
    safety_identifier: str | None = None


class SessionUpdate(Strict):
    """``session.update.session``: what may change while a session runs."""

    delegation: DelegationUpdate | None = None
    triggers: list[Trigger] | None = None


def started_session(data: object, *, azure: bool = False) -> Json:
    """Return the session object after ``session.start``: the client's fields over the defaults.

    ``azure``: only 24 kHz PCM, any model name (a deployment's). Raises :class:`ProtocolError`.
    """
    config = validated(SessionConfig, data, "session")
    if not azure and not config.model.startswith("gpt-live"):
        text = f"The model '{config.model[:100]}' is not supported for Live sessions."
        raise ProtocolError("invalid_model", text, "session.model")
    session = config.model_dump(exclude_none=True)
    session["instructions"] = (config.instructions or "").strip() or DEFAULT_INSTRUCTIONS
    if tokens(session["instructions"]) > MAX_INSTRUCTIONS_TOKENS:
        raise too_long("session.instructions", MAX_INSTRUCTIONS_TOKENS)
    if sum(tokens(item.content[0].text) for item in config.input or []) > MAX_INPUT_TOKENS:
        raise too_long("session.input", MAX_INPUT_TOKENS)
    audio = session.setdefault("audio", {})
    audio.setdefault("format", {"type": "audio/pcm", "rate": 24000})
    voice = audio.setdefault("output", {}).setdefault("voice", "marin")
    if isinstance(voice, str) and voice not in VOICES:
        text = f"The voice '{voice[:100]}' is not available to this project."
        raise ProtocolError("forbidden", text, "session.audio.output.voice")
    if azure and audio["format"] != {"type": "audio/pcm", "rate": 24000}:
        text = "Invalid value: only 'audio/pcm' at 24000 Hz is supported."
        raise ProtocolError("invalid_value", text, "session.audio.format")
    _one_trigger_each(session.get("triggers", []))
    session.setdefault("delegation", {"type": "client"})
    session.setdefault("store", False)
    session.setdefault("triggers", [])
    return session


def updated_session(session: Mapping[str, Any], data: object) -> Json:
    """Return ``session`` with a ``session.update`` merged into it. Raises :class:`ProtocolError`.

    Omitted values stay. The type of delegation cannot change.
    """
    if isinstance(data, dict):
        fixed = (SessionConfig.model_fields.keys() & data.keys()) - {"delegation", "triggers"}
        for name in sorted(fixed):
            text = f"'session.{name}' cannot be changed after the session has started."
            raise ProtocolError("immutable_field_update", text, f"session.{name}")
    update = validated(SessionUpdate, data, "session").model_dump(exclude_none=True)
    assert isinstance(data, dict)
    merged = json.loads(json.dumps(session))
    before = merged["delegation"]
    if "delegation" in data:
        asked = update.get("delegation", {"type": "client"})
        if asked["type"] != before["type"]:
            text = "The type of delegation cannot be changed after the session has started."
            raise ProtocolError("immutable_field_update", text, "session.delegation.type")
        for name in ("responses", "decisions"):
            if name in asked:
                before[name].update(asked.pop(name))
        before.update(asked)
    if "triggers" in update:
        _one_trigger_each(update["triggers"])
        merged["triggers"] = update["triggers"]
    return dict(merged)


def _one_trigger_each(triggers: list[Json]) -> None:
    types = [trigger["event_type"] for trigger in triggers]
    if len(set(types)) != len(types):
        text = "At most one trigger for each event type."
        raise ProtocolError("invalid_value", text, "session.triggers")

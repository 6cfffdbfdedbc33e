# SPDX-License-Identifier: GPL-2.0-or-later
"""Client events and session object of the GA protocol, as strict models.

An update of the session is merged deeply into what is in force and the result is checked whole: one
unknown key refuses all of it, as the service does it. ``input_audio_buffer.append`` is not among
the events: it comes fifty times a second and call, and has a path of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from gateway.devtools.emulator.objects import Json, ProtocolError, Strict, validated

DEFAULT_INSTRUCTIONS = (
    "EMULATOR: this session is served by the gateway's emulator of the Realtime protocol. "
    "No model listens or thinks; answers follow fixed rules."
)

Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]
MaxTokens = Annotated[int, Field(ge=1, le=32000)] | Literal["inf"]


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class PcmFormat(Strict):
    type: Literal["audio/pcm"]
    rate: Literal[24000] = 24000


class G711Format(Strict):
    type: Literal["audio/pcmu", "audio/pcma"]


Format = Annotated[PcmFormat | G711Format, Field(discriminator="type")]


class NoiseReduction(Strict):
    type: Literal["near_field", "far_field"]
    strength: float | None = None


class Transcription(Strict):
    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    keywords: list[str] | None = None
    prompt: str | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class ServerVad(Strict):
    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=0, le=10_000)] = 500
    idle_timeout_ms: Annotated[int | None, Field(ge=1, le=600_000)] = None
    create_response: bool = True
    interrupt_response: bool = True


class SemanticVad(Strict):
    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


TurnDetection = Annotated[ServerVad | SemanticVad, Field(discriminator="type")]


class AudioInput(Strict):
    format: Format = PcmFormat(type="audio/pcm")
    noise_reduction: NoiseReduction | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = ServerVad(type="server_vad")


class CustomVoice(Strict):
    id: str


class AudioOutput(Strict):
    format: Format = PcmFormat(type="audio/pcm")
    voice: str | CustomVoice = "marin"
    speed: Annotated[float, Field(ge=0.25, le=1.5)] = 1.0


class Audio(Strict):
    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class FunctionTool(Strict):
    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolFilter(Strict):
    """Some tools of an MCP server."""

    tool_names: list[str] | None = None
    read_only: bool | None = None


class ApprovalFilter(Strict):
    always: ToolFilter | None = None
    never: ToolFilter | None = None


class McpTool(Strict):
    type: Literal["mcp"]
    server_label: str = Field(min_length=1)
    server_url: str | None = None
    connector_id: str | None = None
    tunnel_id: str | None = None
    server_description: str | None = None
    authorization: str | None = None
    headers: dict[str, str] | None = None
    allowed_tools: list[str] | ToolFilter | None = None
    allowed_callers: list[Literal["direct", "programmatic"]] | None = None
    require_approval: Literal["always", "never"] | ApprovalFilter | None = None
    defer_loading: bool | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> McpTool:
        if not (self.server_url or self.connector_id or self.tunnel_id):
            raise ValueError("one of server_url, connector_id and tunnel_id is needed")
        return self


Tool = Annotated[FunctionTool | McpTool, Field(discriminator="type")]


class NamedTool(Strict):
    type: Literal["function", "mcp"]
    name: str | None = None
    server_label: str | None = None


ToolChoice = Literal["auto", "none", "required"] | NamedTool


class Reasoning(Strict):
    effort: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class RetentionRatio(Strict):
    type: Literal["retention_ratio"]
    retention_ratio: float = Field(ge=0, le=1)
    token_limits: dict[str, int] | None = None


class Session(Strict):
    """What ``session.update`` may set."""

    type: Literal["realtime"]
    model: str
    instructions: str = DEFAULT_INSTRUCTIONS
    output_modalities: Modalities = Field(default=["audio"])
    audio: Audio = Audio()
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: MaxTokens = "inf"
    truncation: Literal["auto", "disabled"] | RetentionRatio = "auto"
    prompt: dict[str, Any] | None = None
    tracing: Literal["auto"] | dict[str, Any] | None = None
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None


class TranscriptionAudio(Strict):
    input: AudioInput = AudioInput()


class TranscriptionSession(Strict):
    """What ``session.update`` of a session that only transcribes may set."""

    type: Literal["transcription"]
    audio: TranscriptionAudio = TranscriptionAudio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None

    @model_validator(mode="after")
    def _turns(self) -> TranscriptionSession:
        heard = self.audio.input
        model = "" if heard.transcription is None else heard.transcription.model or ""
        if model.startswith("gpt-realtime-whisper") and heard.turn_detection is not None:
            raise ValueError("turn_detection must be null for gpt-realtime-whisper")
        return self


class ResponseAudioOutput(Strict):
    format: Format | None = None
    voice: str | CustomVoice | None = None


class ResponseAudio(Strict):
    output: ResponseAudioOutput = ResponseAudioOutput()


class ResponseParameters(Strict):
    """``response.create.response``: what differs from the session for this response."""

    instructions: str | None = None
    output_modalities: Modalities | None = None
    audio: ResponseAudio | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: MaxTokens | None = None
    prompt: dict[str, Any] | None = None
    metadata: Metadata | None = None
    conversation: Literal["auto", "none"] | None = None
    input: list[dict[str, Any]] | None = None


# Objects of these kinds replace each other; all others merge key by key.
_WHOLE = ("tool_choice", "truncation", "prompt", "tracing", "voice")
# What the models would fill with nulls of their own: handed back as the client wrote it.
_AS_SENT = ("tools", "tool_choice", "truncation", "prompt", "tracing")


def default_session(model: str) -> dict[str, Any]:
    """Return the session object before the first ``session.update``, all keys of it."""
    return Session(type="realtime", model=model).model_dump()


def default_transcription() -> dict[str, Any]:
    """Return the default session that only transcribes; it has no model of its own."""
    return TranscriptionSession(type="transcription").model_dump()


def updated_session(
    session: Mapping[str, Any], update: object, *, voice_locked: bool
) -> dict[str, Any]:
    """Return ``session`` with the object of a ``session.update`` merged into it.

    Raises :class:`ProtocolError` for an unknown key, a wrong value, no
    ``type``, another ``model``, or another voice after the first audio of the session.
    """
    if not isinstance(update, dict):
        raise ProtocolError("invalid_type", "'session' must be an object.", "session")
    if "type" not in update:
        message = "Missing required parameter: 'session.type'."
        raise ProtocolError("missing_required_parameter", message, "session.type")
    if session["type"] == "transcription":
        return validated(TranscriptionSession, _merge(session, update), "session").model_dump()
    if update.get("model", session["model"]) != session["model"]:
        message = "The model of a session cannot be changed."
        raise ProtocolError("invalid_value", message, "session.model")
    merged = _merge(session, update)
    result = validated(Session, merged, "session").model_dump()
    for key in _AS_SENT:
        result[key] = merged[key]
    if voice_locked and _voice(result) != _voice(session):
        raise ProtocolError(
            "cannot_update_voice",
            "Cannot update a conversation's voice if assistant audio is present.",
            "session.audio.output.voice",
        )
    return result


def _voice(session: Mapping[str, Any]) -> object:
    return session["audio"]["output"]["voice"]


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        merged[key] = value
        if key in _WHOLE or not isinstance(before, dict) or not isinstance(value, dict):
            continue
        # Another type (server_vad to semantic_vad, pcm to pcmu) starts from its own defaults.
        if value.get("type", before.get("type")) == before.get("type"):
            merged[key] = _merge(before, value)
    return merged


class ClientEvent(Strict):
    """A client event, of the Realtime or the Live protocol."""

    event_id: Annotated[str | None, Field(max_length=512)] = None


class Update(ClientEvent):
    type: Literal["session.update"]
    session: dict[str, Any]


class Commit(ClientEvent):
    type: Literal["input_audio_buffer.commit"]


class Clear(ClientEvent):
    type: Literal["input_audio_buffer.clear"]


class CreateItem(ClientEvent):
    type: Literal["conversation.item.create"]
    item: Json
    previous_item_id: str | None = None


class RetrieveItem(ClientEvent):
    type: Literal["conversation.item.retrieve"]
    item_id: str


class TruncateItem(ClientEvent):
    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: int = Field(ge=0)
    audio_end_ms: int = Field(ge=0)


class DeleteItem(ClientEvent):
    type: Literal["conversation.item.delete"]
    item_id: str


class CreateResponse(ClientEvent):
    type: Literal["response.create"]
    response: ResponseParameters = ResponseParameters()


class CancelResponse(ClientEvent):
    type: Literal["response.cancel"]
    response_id: str | None = None


def by_type(models: Iterable[type[ClientEvent]]) -> dict[str, type[ClientEvent]]:
    """Return models by the types of event that their field ``type`` names."""
    return {name: one for one in models for name in get_args(one.model_fields["type"].annotation)}


CLIENT_EVENTS = by_type(ClientEvent.__subclasses__())

TRANSCRIPTION_EVENTS = {
    name: event
    for name, event in CLIENT_EVENTS.items()
    if name.startswith(("session.", "input_audio_buffer."))
}
"""Those of a session that only transcribes."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The Beta protocol: what a client that asked for it sends and gets.

The emulator itself is GA. Events are translated as the last thing before they are written, so
records and scripts have GA's names; client events are checked against Beta's shapes first, as
strictly as GA's are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from gateway.devtools.emulator.client_events import FunctionTool, SemanticVad
from gateway.devtools.emulator.objects import Json, ProtocolError, Strict, new_id, validated

HEADER, HEADER_VALUE = "OpenAI-Beta", "realtime=v1"

_FORMATS: Mapping[str, Json] = {
    "pcm16": {"type": "audio/pcm", "rate": 24000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
_SHORT = {form["type"]: name for name, form in _FORMATS.items()}
_NAMES = {
    "conversation.item.added": "conversation.item.created",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
}
_GA_ONLY = frozenset(
    {
        "conversation.item.done",
        "conversation.item.input_audio_transcription.segment",
        "input_audio_buffer.timeout_triggered",
    }
)
_PARTS = {"output_text": "text", "output_audio": "audio"}
_MODALITIES = "Supported combinations are: ['text'] and ['audio', 'text']."


class _ServerVad(Strict):
    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=0, le=10_000)] = 500
    create_response: bool = True
    interrupt_response: bool = True


class _Transcription(Strict):
    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class _NoiseReduction(Strict):
    type: Literal["near_field", "far_field"]


class _Function(Strict):
    name: str


class _Choice(Strict):
    type: Literal["function"]
    function: _Function


Format = Literal["pcm16", "g711_ulaw", "g711_alaw"]


class _Common(Strict):
    modalities: list[Literal["text", "audio"]] = Field(default=["text", "audio"])
    instructions: str = ""
    voice: str = "alloy"
    output_audio_format: Format = "pcm16"
    tools: list[FunctionTool] = Field(default_factory=list)
    tool_choice: Literal["auto", "none", "required"] | _Choice = "auto"
    temperature: Annotated[float, Field(ge=0.6, le=1.2)] = 0.8
    max_response_output_tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] = "inf"


class _Session(_Common):
    model: str = ""
    speed: Annotated[float, Field(ge=0.25, le=1.5)] = 1.0
    input_audio_format: Format = "pcm16"
    input_audio_transcription: _Transcription | None = None
    input_audio_noise_reduction: _NoiseReduction | None = None
    turn_detection: Annotated[_ServerVad | SemanticVad, Field(discriminator="type")] | None = None
    tracing: Literal["auto"] | dict[str, Any] | None = None


class _Response(_Common):
    conversation: Literal["auto", "none"] = "auto"
    metadata: dict[str, str] | None = None
    input: list[dict[str, Any]] | None = None


class BetaWire:
    """Translates the events of one connection between Beta and GA.

    Args:
        conversation_id: told in ``conversation.created``.
    """

    def __init__(self, conversation_id: str) -> None:
        self._conversation_id = conversation_id
        self._temperature = 0.8

    def received(self, event: Json) -> Json:
        """Return a client event in GA's form. Raises :class:`ProtocolError` where Beta refuses
        it."""
        type_, session = event["type"], event.get("session")
        if type_ == "session.update" and isinstance(session, dict):
            checked = validated(_Session, session, "session")
            self._temperature = checked.temperature
            return {**event, "session": {"type": "realtime", **_deep(session, "session")}}
        response = event.get("response")
        if type_ == "response.create" and isinstance(response, dict):
            validated(_Response, response, "response")
            return {**event, "response": _deep(response, "response")}
        item = event.get("item")
        if type_ == "conversation.item.create" and isinstance(item, dict):
            _refuse_ga_parts(item)
        return event

    def sent(self, event: Json) -> list[Json]:
        """Return a server event in Beta's form: no event, one, or ``session.created`` and
        ``conversation.created``."""
        type_ = event["type"]
        if type_ in _GA_ONLY:
            return []
        event = {**event, "type": _NAMES.get(type_, type_)}
        if isinstance(event.get("item"), dict):
            event["item"] = _item(event["item"])
        if type_ in ("session.created", "session.updated"):
            event["session"] = self._session(event["session"])
        elif type_ in ("response.created", "response.done"):
            event["response"] = self._response(event["response"])
        elif type_ == "response.function_call_arguments.done":
            event.pop("name", None)
        elif type_.startswith("conversation.item.input_audio_transcription."):
            event.pop("languages", None)
        if type_ != "session.created":
            return [event]
        conversation = {"id": self._conversation_id, "object": "realtime.conversation"}
        created = {"type": "conversation.created", "event_id": new_id("event")}
        return [event, {**created, "conversation": conversation}]

    def _session(self, session: Json) -> Json:
        heard, said = session["audio"]["input"], session["audio"]["output"]
        choice = session["tool_choice"]
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        return {
            "id": session["id"],
            "object": session["object"],
            "model": session["model"],
            "expires_at": session["expires_at"],
            "modalities": _modalities(session["output_modalities"]),
            "instructions": session["instructions"],
            "voice": said["voice"],
            "speed": said["speed"],
            "input_audio_format": _SHORT[heard["format"]["type"]],
            "output_audio_format": _SHORT[said["format"]["type"]],
            "input_audio_transcription": _only(_Transcription, heard["transcription"]),
            "input_audio_noise_reduction": _only(_NoiseReduction, heard["noise_reduction"]),
            "turn_detection": _only(SemanticVad, heard["turn_detection"], _ServerVad),
            "tools": session["tools"],
            "tool_choice": choice,
            "temperature": self._temperature,
            "max_response_output_tokens": session["max_output_tokens"],
            "tracing": session["tracing"],
        }

    def _response(self, response: Json) -> Json:
        flat = {k: v for k, v in response.items() if k not in ("audio", "output_modalities")}
        said = response["audio"]["output"]
        flat["modalities"] = _modalities(response["output_modalities"])
        flat["voice"] = said["voice"]
        flat["output_audio_format"] = _SHORT[said["format"]["type"]]
        flat["temperature"] = self._temperature
        flat["output"] = [_item(item) for item in response["output"]]
        usage = response["usage"]
        if usage is not None:
            details = usage["input_token_details"]
            kept = ("cached_tokens", "text_tokens", "audio_tokens")
            flat["usage"] = {**usage, "input_token_details": {key: details[key] for key in kept}}
        return flat


def _deep(flat: Json, root: str) -> Json:
    """Return the flat fields of a Beta session or response in GA's nested form."""
    deep: Json = {}
    heard: Json = {}
    said: Json = {}
    for key, value in flat.items():
        if key == "modalities":
            if sorted(value) not in (["audio", "text"], ["text"]):
                text = f"Invalid modalities: {value}. {_MODALITIES}"
                raise ProtocolError("invalid_value", text, f"{root}.modalities")
            deep["output_modalities"] = ["audio"] if "audio" in value else ["text"]
        elif key == "max_response_output_tokens":
            deep["max_output_tokens"] = value
        elif key == "tool_choice" and isinstance(value, dict):
            deep["tool_choice"] = {"type": "function", "name": value["function"]["name"]}
        elif key == "input_audio_format":
            heard["format"] = dict(_FORMATS[value])
        elif key == "output_audio_format":
            said["format"] = dict(_FORMATS[value])
        elif key in ("voice", "speed"):
            said[key] = value
        elif key == "turn_detection":
            heard[key] = value
        elif key.startswith("input_audio_"):
            heard[key.removeprefix("input_audio_")] = value
        elif key != "temperature":
            deep[key] = value
    sides = {side: given for side, given in (("input", heard), ("output", said)) if given}
    return {**deep, "audio": sides} if sides else deep


def _refuse_ga_parts(item: Json) -> None:
    content = item.get("content")
    for index, part in enumerate(content if isinstance(content, list) else []):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("output_text", "output_audio", "input_image"):
            param = f"item.content[{index}].type"
            text = f"Invalid value: '{kind}'. Supported values are: 'input_text', 'input_audio', "
            raise ProtocolError("invalid_value", text + "'item_reference' and 'text'.", param)


def _only(model: type[BaseModel], value: Json | None, other: type[BaseModel] | None = None) -> Any:
    """Return ``value`` with only the fields of these models, or None."""
    known = set(model.model_fields) | set({} if other is None else other.model_fields)
    return None if value is None else {key: value[key] for key in value if key in known}


def _modalities(ga: list[str]) -> list[str]:
    return ["audio", "text"] if "audio" in ga else ["text"]


def _item(item: Json) -> Json:
    content = item.get("content")
    if not isinstance(content, list):
        return item
    renamed = [{**part, "type": _PARTS.get(part["type"], part["type"])} for part in content]
    return {**item, "content": renamed}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Dialects of the protocol: URL and headers of a server, and the translation of its events and of
ours. Inside the gateway everything is GA, which OpenAI's hosts speak, Azure's ``/openai/v1``, and
servers like them.

:data:`DIALECTS` has the dialects by their name in the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

Json = dict[str, Any]


class Dialect(Protocol):
    """Differences of a server from the GA protocol. Stateless: one object serves all sessions.

    Audio has a path of its own: ``input_audio_buffer.append`` is the same in every dialect.
    """

    @property
    def name(self) -> str:
        """Name in the configuration (``realtime.dialect``)."""

    @property
    def api_base(self) -> str:
        """End of the path of a vendor's API base, to which ``/realtime`` is added."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields of the handshake that the dialect itself wants."""

    @property
    def translates(self) -> bool:
        """Whether :meth:`event` does anything; False saves the call for each message."""

    def path(self, host: str) -> str:
        """Return the path of the endpoint on ``host``, for a URL without a path."""

    def parameters(self, model: str, given: Sequence[str]) -> list[tuple[str, str]]:
        """Return the query parameters (name, value) to add to a URL that has those named in
        ``given``."""

    def command(self, body: Json) -> tuple[Json, list[str]]:
        """Return a GA client event in the server's form, and the dotted names of fields that it
        lacks, which are left out. ``body`` is not changed."""

    def event(self, event: Json) -> Json:
        """Return a server event in GA's form; one that is GA already, or unknown, as it is."""


AZURE_HOSTS = (
    ".openai.azure.com",
    ".cognitiveservices.azure.com",
    ".services.ai.azure.com",
    ".openai.azure.us",
)
"""Ends of the host names of Azure resources."""

_MODEL_PARAMETERS = {"model", "call_id", "deployment"}


class Ga:
    """The GA protocol, which needs no translation. ``model`` is the deployment on Azure."""

    name = "ga"
    api_base = "/v1"
    headers: Mapping[str, str] = {}
    translates = False

    def path(self, host: str) -> str:
        """Return ``/v1/realtime``, below ``/openai`` on Azure."""
        return "/openai/v1/realtime" if host.endswith(AZURE_HOSTS) else "/v1/realtime"

    def parameters(self, model: str, given: Sequence[str]) -> list[tuple[str, str]]:
        """Return ``model``; nothing without a model, or where the URL names a model, a deployment
        or a call (``call_id``) already."""
        return [] if not model or _MODEL_PARAMETERS & set(given) else [("model", model)]

    def command(self, body: Json) -> tuple[Json, list[str]]:
        """Return ``body`` as it is, with nothing left out."""
        return body, []

    def event(self, event: Json) -> Json:
        """Return ``event`` as it is."""
        return event


FORMATS: Mapping[str, Json] = {
    "pcm16": {"type": "audio/pcm", "rate": 24000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
"""Beta's name of an audio format → GA's object."""
_FORMAT_NAMES = {form["type"]: name for name, form in FORMATS.items()}

# Beta's flat key → where GA has it. Keys of the same name at the top are not listed.
_INPUT = {
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}
# Keys inside these that came with GA.
_NEWER = {
    "turn_detection": {"idle_timeout_ms"},
    "input_audio_transcription": {"languages", "keywords", "delay"},
    "input_audio_noise_reduction": {"strength"},
}
_OUTPUT = {"voice": "voice", "speed": "speed"}
# Where GA has what an error about a flat key names.
_PLACES = {
    "modalities": "output_modalities",
    "max_response_output_tokens": "max_output_tokens",
    "input_audio_format": "audio.input.format",
    "output_audio_format": "audio.output.format",
    **{beta: f"audio.input.{ga}" for beta, ga in _INPUT.items()},
    **{beta: f"audio.output.{ga}" for beta, ga in _OUTPUT.items()},
}
# Top-level keys of a session that Beta has under the same name.
_SAME = frozenset(
    {
        "id",
        "object",
        "model",
        "instructions",
        "tools",
        "tracing",
        "expires_at",
        "temperature",  # GA has none; the dialplan's is for servers like these
    }
)
_SAME_OF_RESPONSE = frozenset(
    {"instructions", "tools", "conversation", "metadata", "input", "temperature"}
)

_EVENTS = {
    "conversation.item.created": "conversation.item.added",
    "response.text.delta": "response.output_text.delta",
    "response.text.done": "response.output_text.done",
    "response.audio.delta": "response.output_audio.delta",
    "response.audio.done": "response.output_audio.done",
    "response.audio_transcript.delta": "response.output_audio_transcript.delta",
    "response.audio_transcript.done": "response.output_audio_transcript.done",
}
_NAMED = re.compile(r"\b(?:session|response)(?:\.\w+|\[\d+\])+")
_PARTS = {"text": "output_text", "audio": "output_audio"}
_PARTS_BACK = {ga: beta for beta, ga in _PARTS.items()}


class Beta(Ga):
    """The Beta protocol (``OpenAI-Beta: realtime=v1``), as third-party servers still speak it.

    Its session is flat, its audio formats have short names, and some events and content parts are
    called otherwise. What is not named here is the same in both. URLs are as GA's.
    """

    name = "beta"
    headers: Mapping[str, str] = {"OpenAI-Beta": "realtime=v1"}
    translates = True

    def command(self, body: Json) -> tuple[Json, list[str]]:
        """Return ``session.update``, ``response.create`` and ``conversation.item.create`` in Beta's
        form, and the dotted names of fields that it lacks, which are left out; other events as they
        are."""
        kind = body["type"]
        if kind == "session.update":
            session, left_out = _to_beta(body["session"], _SAME)
            return {**body, "session": session}, left_out
        if kind == "response.create" and isinstance(body.get("response"), Mapping):
            response, left_out = _to_beta(body["response"], _SAME_OF_RESPONSE)
            return {**body, "response": response}, left_out
        if kind == "conversation.item.create":
            return {**body, "item": _item(body["item"], _PARTS_BACK)}, []
        return body, []

    def event(self, event: Json) -> Json:
        """Return a server event in GA's form: its type if GA has another name for it, and in it the
        session, response, item or error; others as they are.

        No ``conversation.item.done`` is added: Beta has no such event.
        """
        kind = event.get("type")
        if not isinstance(kind, str):
            return event
        kind = kind.strip()
        name = _EVENTS.get(kind)
        if name is not None:
            event = {**event, "type": name}
        elif kind in ("session.created", "session.updated"):
            whole = {"type": "realtime", "audio": {}}
            return _with(event, "session", lambda session: whole | _to_ga(session))
        elif kind in ("response.created", "response.done"):
            return _with(event, "response", _to_ga)
        elif kind == "error":
            return _with(event, "error", _error)
        return _with(event, "item", _ga_item)


def _to_beta(settings: Mapping[str, Any], same: frozenset[str]) -> tuple[Json, list[str]]:
    """Return a GA session or response object in Beta's flat form, and the names of what Beta lacks,
    which is left out: other keys, and MCP servers among the tools.

    ``same`` are the keys that Beta has under the same name. ``type`` is left out without a word.
    """
    flat: Json = {}
    left_out: list[str] = []
    for key, value in settings.items():
        if key == "audio":
            _flat_audio(value, flat, left_out)
        elif key == "output_modalities":
            flat["modalities"] = ["text", "audio"] if "audio" in value else ["text"]
        elif key == "max_output_tokens":
            flat["max_response_output_tokens"] = value
        elif key == "tool_choice" and not isinstance(value, Mapping):
            flat[key] = value
        elif key == "tool_choice" and value.get("type") == "function":
            flat[key] = {"type": "function", "function": {"name": value.get("name")}}
        elif key in same:
            items = key == "input" and isinstance(value, Sequence)
            flat[key] = [_item(item, _PARTS_BACK) for item in value] if items else value
        elif key != "type":
            left_out.append(key)
    tools = flat.get("tools")
    if isinstance(tools, Sequence):
        flat["tools"] = [tool for tool in tools if tool.get("type", "function") == "function"]
        if len(flat["tools"]) < len(tools):
            left_out.append("tools (mcp)")
    return flat, left_out


def _flat_audio(audio: Mapping[str, Any], flat: Json, left_out: list[str]) -> None:
    """Put the audio settings of a GA object into ``flat`` under Beta's names, and the names of what
    Beta lacks into ``left_out``: other keys, and those of turn detection, transcription and noise
    reduction that came with GA (if they have a value)."""
    for direction, names in (("input", _INPUT), ("output", _OUTPUT)):
        back = {ga: beta for beta, ga in names.items()}
        for key, value in (audio.get(direction) or {}).items():
            if key == "format":
                kind = value.get("type") if isinstance(value, Mapping) else value
                flat[f"{direction}_audio_format"] = _FORMAT_NAMES.get(kind, kind)
            elif key in back:
                flat[back[key]] = value
            else:
                left_out.append(f"audio.{direction}.{key}")
    for key, newer in _NEWER.items():
        found = flat.get(key)
        if not isinstance(found, Mapping):
            continue
        flat[key] = {name: value for name, value in found.items() if name not in newer}
        left_out += [
            f"audio.input.{_INPUT[key]}.{name}"
            for name, value in found.items()
            if name in newer and value is not None
        ]


def _to_ga(settings: Json) -> Json:
    """Return the fields of a Beta session or response object in GA's form; ``temperature`` is left
    out. An ``audio`` object that it has already is kept, and Beta's audio keys are dropped then."""
    ga: Json = {}
    audio: dict[str, Json] = {"input": {}, "output": {}}
    for key, value in settings.items():
        if key == "modalities":
            ga["output_modalities"] = (
                ["audio"] if isinstance(value, list) and "audio" in value else ["text"]
            )
        elif key == "max_response_output_tokens":
            ga["max_output_tokens"] = value
        elif key in ("input_audio_format", "output_audio_format"):
            audio[key.partition("_")[0]]["format"] = _format(value)
        elif key in _INPUT:
            audio["input"][_INPUT[key]] = value
        elif key in _OUTPUT:
            audio["output"][_OUTPUT[key]] = value
        elif key == "tool_choice":
            ga[key] = _choice(value)
        elif key == "output" and isinstance(value, list):
            ga[key] = [_ga_item(item) for item in value]
        elif key != "temperature":
            ga[key] = value
    # A server that has GA's object already is taken at its word.
    if "audio" not in ga and (sides := {side: found for side, found in audio.items() if found}):
        ga["audio"] = sides
    return ga


def _error(error: Json) -> Json:
    """Return an ``error`` object whose ``param`` is the GA path of the setting that it is about.

    Where ``param`` is missing, the setting is taken from the message. An error that names no field
    of session or response is returned as it is.
    """
    param = error.get("param")
    if not param and (named := _NAMED.search(str(error.get("message") or ""))) is not None:
        param = named[0]
    root, dot, rest = param.partition(".") if isinstance(param, str) else ("", "", "")
    if root not in ("session", "response") or not dot:
        return error
    key, dot, inside = rest.partition(".")
    # A list's index belongs to what is inside: modalities[0].
    key, bracket, index = key.partition("[")
    return {**error, "param": f"{root}.{_PLACES.get(key, key)}{bracket}{index}{dot}{inside}"}


def _format(value: Any) -> Any:
    """Return GA's object for Beta's name of an audio format; anything else as it is."""
    form = FORMATS.get(value) if isinstance(value, str) else None
    return value if form is None else dict(form)


def _choice(value: Any) -> Any:
    """Return GA's ``tool_choice`` for Beta's, which has the function's name in an object of its
    own."""
    function = value.get("function") if isinstance(value, dict) else None
    if isinstance(function, dict):
        return {"type": "function", "name": function.get("name")}
    return value


def _ga_item(item: Any) -> Any:
    """Return a Beta item in GA's form."""
    return _item(item, _PARTS)


def _item(item: Any, names: Mapping[str, str]) -> Any:
    """Return an item with the types of content parts renamed by ``names``, if it is a message of
    the assistant; others as they are."""
    if not isinstance(item, Mapping) or item.get("role") != "assistant":
        return item
    content = item.get("content")
    if not isinstance(content, Sequence) or isinstance(content, str):
        return item
    return {**item, "content": [_renamed(part, names) for part in content]}


def _renamed(part: Any, names: Mapping[str, str]) -> Any:
    """Return a content part with its type renamed by ``names``; as it is where that has no
    other."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    name = names.get(kind) if isinstance(kind, str) else None
    return part if name is None else {**part, "type": name}


def _with(event: Json, key: str, change: Callable[[Json], Json]) -> Json:
    """Return an event with ``change`` applied to the object at ``key``; as it is where there is
    none."""
    inner = event.get(key)
    return {**event, key: change(inner)} if isinstance(inner, dict) else event


API_VERSION = "2025-04-01-preview"
"""Version that is sent where the URL has no ``api-version``: the last preview."""


class AzurePreview(Beta):
    """The Beta protocol at Azure's URL; the version in the URL replaces Beta's header."""

    name = "azure-preview"
    api_base = "/openai"
    headers: Mapping[str, str] = {}

    def path(self, host: str) -> str:
        """Return the path, which is the same on every Azure resource."""
        return "/openai/realtime"

    def parameters(self, model: str, given: Sequence[str]) -> list[tuple[str, str]]:
        """Return ``api-version`` and ``deployment``, each unless the URL has it; the latter only
        with a model."""
        wanted = [("api-version", API_VERSION), ("deployment", model)]
        return [(name, value) for name, value in wanted if value and name not in given]


GA: Dialect = Ga()
DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {dialect.name: dialect for dialect in (GA, Beta(), AzurePreview())}
)
"""By the name that ``realtime.dialect`` has for it."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""``[route.session]``: the GA session object, checked before the first call and sent as written.

A name or a choice that is not known here (a voice of tomorrow) is told apart from a value that
cannot be right: :attr:`Finding.unknown`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.config.source import KeyPath, MisplacedError, suggestion
from gateway.config.values import Flag
from gateway.dialplan.variables import names_in

VOICES = (
    "alloy",
    "ash",
    "ballad",
    "cedar",
    "coral",
    "echo",
    "marin",
    "sage",
    "shimmer",
    "verse",
)
"""Voices of November 2026; a custom one is written ``{ id = "voice_…" }``."""

UNKNOWN_TYPE = "has a type that this gateway does not know"
UNKNOWN = "unknown_choice"
"""Type of the errors about something that may only be newer than this gateway."""


def choice(*known: str) -> Any:
    """Return a type of text; one that is not in ``known`` is an error of type :data:`UNKNOWN`."""

    def check(value: str) -> str:
        if value not in known:
            raise unknown_choice("is not known to this gateway" + suggestion(value, known))
        return value

    return Annotated[str, Strict(), AfterValidator(check)]


def unknown_choice(message: str) -> PydanticCustomError:
    """Return an error about a value that may only be newer than this gateway."""
    return PydanticCustomError(UNKNOWN, "{text}", {"text": message})


Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Milliseconds = Annotated[int, Strict(), Field(ge=0)]
Word = Annotated[str, Strict(), Field(min_length=1)]


class Part(BaseModel):
    """A table of a session object, which has no other keys than these."""

    model_config = ConfigDict(extra="forbid")


class _NoiseReduction(Part):
    type: choice("near_field", "far_field")  # type: ignore[valid-type]
    strength: Number | None = None


_LANGUAGES_OF = ("gpt-transcribe", "gpt-live-transcribe")


class _Transcription(Part):
    """The model may be any text: on Azure it is a deployment's name."""

    model: Word
    language: Word | None = None
    languages: list[Word] | None = None
    keywords: list[Word] | None = None
    prompt: str | None = None
    delay: choice("minimal", "low", "medium", "high", "xhigh") | None = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _taken_by_the_model(self) -> Self:
        """Refuse fields that a transcription model does not accept."""
        live = self.model.startswith("gpt-realtime-whisper")
        known = live or self.model.startswith(("whisper-1", "gpt-4o", *_LANGUAGES_OF))
        if not known:
            return self
        for name, taken in (
            ("languages", self.model.startswith(_LANGUAGES_OF)),
            ("keywords", self.model.startswith(_LANGUAGES_OF)),
            ("delay", live),
            ("prompt", not live),
        ):
            if getattr(self, name) is not None and not taken:
                raise MisplacedError((name,), f"is not accepted by the model {self.model}")
        return self


class _Detection(Part):
    create_response: Flag = True
    interrupt_response: Flag = True


class _ServerVad(_Detection):
    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[Number, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Milliseconds = 300
    silence_duration_ms: Milliseconds = 500
    idle_timeout_ms: Annotated[int, Strict(), Field(ge=1)] | None = None


class _SemanticVad(_Detection):
    type: Literal["semantic_vad"]
    eagerness: choice("low", "medium", "high", "auto") = "auto"  # type: ignore[valid-type]


_VADS: dict[str, type[Part]] = {"server_vad": _ServerVad, "semantic_vad": _SemanticVad}


def _turn_detection(value: Any) -> Any:
    """Return the checked table of one kind of turn detection. Raises ValueError."""
    if value is None:
        return value
    if not isinstance(value, dict):
        raise ValueError("must be a table, or false for none")
    kind = value.get("type", "server_vad")
    if kind not in _VADS:
        raise unknown_choice(UNKNOWN_TYPE + suggestion(str(kind), _VADS))
    _of_this_kind(value, kind)
    return _VADS[kind].model_validate(value)


def _of_this_kind(value: Mapping[str, Any], kind: str) -> None:
    for other, model in _VADS.items():
        for name in value:
            if name in model.model_fields and name not in _VADS[kind].model_fields:
                raise MisplacedError((name,), f"belongs to {other}, and this is {kind}")


class _Input(Part):
    noise_reduction: _NoiseReduction | None = None
    transcription: _Transcription | None = None
    turn_detection: Annotated[Any, BeforeValidator(_turn_detection)] = None


def voice_check(known: Sequence[str]) -> Callable[[Any], Any]:
    """Return a validator of ``voice``: one of ``known``, or ``{ id = … }`` of a custom voice."""

    def check(value: Any) -> Any:
        if isinstance(value, Mapping):
            if set(value) != {"id"} or not isinstance(value["id"], str) or not value["id"]:
                raise ValueError('must be a name, or { id = "voice_..." } for a voice of your own')
        elif not isinstance(value, str) or not value:
            raise ValueError("must be the name of a voice")
        elif value not in known:
            raise unknown_choice(
                f"{value!r} is not a voice known to this gateway" + suggestion(value, known)
            )
        return value

    return check


class _Output(Part):
    voice: Annotated[Any, BeforeValidator(voice_check(VOICES))] = None
    speed: Annotated[Number, Field(ge=0.25, le=1.5)] = 1.0


class _Audio(Part):
    input: _Input = _Input()
    output: _Output = _Output()


def _tool_choice(value: Any) -> Any:
    """Validate ``tool_choice``: a word, or an object that names a tool."""
    words = ("auto", "none", "required")
    if isinstance(value, str):
        if value not in words:
            raise unknown_choice("is not known to this gateway" + suggestion(value, words))
        return value
    kind = value.get("type") if isinstance(value, Mapping) else None
    needed = {"function": "name", "mcp": "server_label"}.get(kind or "")
    if needed is None or not isinstance(value.get(needed), str):
        raise ValueError(
            'must be "auto", "none", "required", { type = "function", name = "..." } or '
            '{ type = "mcp", server_label = "..." }'
        )
    if extra := set(value) - {"type", "name", "server_label"}:
        raise MisplacedError((sorted(extra)[0],), "has no meaning here")
    return value


def _tool(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("must be a table")
    kind = value.get("type", "function")
    if kind == "function":
        return _Function.model_validate(dict(value))
    if kind == "mcp":
        return _Mcp.model_validate(dict(value))
    raise unknown_choice(UNKNOWN_TYPE + suggestion(str(kind), _TOOLS))


def _function_name(value: str) -> str:
    if "{" not in value and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise ValueError("may have letters, digits, _ and - only, 64 at most")
    return value


class _Function(Part):
    type: Literal["function"] = "function"
    name: Annotated[Word, AfterValidator(_function_name)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Mcp(Part):
    type: Literal["mcp"]
    server_label: Word
    server_url: Word | None = None
    connector_id: Word | None = None
    tunnel_id: Word | None = None
    authorization: str | None = None
    headers: dict[str, str] | None = None
    server_description: str | None = None
    allowed_tools: list[Word] | dict[str, Any] | None = None
    require_approval: Literal["always", "never"] | dict[str, Any] | None = None
    defer_loading: bool | None = None
    allowed_callers: list[Word] | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if sum(bool(one) for one in (self.server_url, self.connector_id, self.tunnel_id)) != 1:
            raise ValueError("needs one of server_url, connector_id and tunnel_id")
        return self


_TOOLS = ("function", "mcp")


class _TokenLimits(Part):
    post_instructions: Annotated[int, Strict(), Field(ge=0)] | None = None


class _Retention(Part):
    type: Literal["retention_ratio"]
    retention_ratio: Annotated[Number, Field(ge=0, le=1)]
    token_limits: _TokenLimits | None = None


def _truncation(value: Any) -> Any:
    """Validate ``truncation``: a word, or a retention ratio."""
    if isinstance(value, Mapping):
        return _Retention.model_validate(dict(value))
    if value not in ("auto", "disabled"):
        raise ValueError(
            'must be "auto", "disabled" or { type = "retention_ratio", retention_ratio = 0.8 }'
        )
    return value


def _max_tokens(value: Any) -> Any:
    if value != "inf" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError('must be a number of tokens from 1, or "inf"')
    return value


class _Reasoning(Part):
    effort: choice("minimal", "low", "medium", "high", "xhigh")  # type: ignore[valid-type]


def _variables(value: Any) -> Any:
    """Validate the variables of a hosted prompt."""
    for name, one in value.items():
        if isinstance(one, Mapping):
            if one.get("type") not in ("input_text", "input_image", "input_file"):
                raise MisplacedError((name,), "must be a text, or an input_text/image/file object")
        elif not isinstance(one, str):
            raise MisplacedError((name,), "must be a text, or an input_text/image/file object")
    return value


class _Prompt(Part):
    id: Word
    version: Word | None = None
    variables: Annotated[dict[str, Any], AfterValidator(_variables)] | None = None


class _TracingTable(Part):
    workflow_name: str | None = None
    group_id: str | None = None
    metadata: dict[str, Any] | None = None


def _tracing(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _TracingTable.model_validate(dict(value))
    if value not in (None, "auto"):
        raise ValueError('must be "auto", false, or a table of workflow_name, group_id, metadata')
    return value


def _modalities(value: Any) -> Any:
    """Refuse output that no caller could hear."""
    if value == ["text"]:
        # The words would be in no transcript either: they come without an item of audio, and what
        # is not heard is not said. Out-of-band responses are text by themselves.
        raise ValueError('must be ["audio"]: a telephone call has no text')
    if value != ["audio"]:
        raise ValueError('must be ["audio"] (its transcript comes with it)')
    return value


class SessionModel(Part):
    """The Realtime (GA) session object, without the fields that the gateway sets."""

    instructions: str | None = None
    output_modalities: Annotated[Any, BeforeValidator(_modalities)] = ["audio"]
    audio: _Audio = _Audio()
    tools: list[Annotated[Any, BeforeValidator(_tool)]] = []
    tool_choice: Annotated[Any, BeforeValidator(_tool_choice)] = "auto"
    parallel_tool_calls: Flag | None = None
    reasoning: _Reasoning | None = None
    max_output_tokens: Annotated[Any, BeforeValidator(_max_tokens)] = "inf"
    truncation: Annotated[Any, BeforeValidator(_truncation)] = "auto"
    prompt: _Prompt | None = None
    tracing: Annotated[Any, BeforeValidator(_tracing)] = None
    include: list[choice("item.input_audio_transcription.logprobs")] = []  # type: ignore[valid-type]
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None


TABLES: Mapping[str, type[BaseModel]] = {
    "audio": _Audio,
    "input": _Input,
    "output": _Output,
    "noise_reduction": _NoiseReduction,
    "transcription": _Transcription,
    "turn_detection": _ServerVad,
    "tools": _Function,
    "reasoning": _Reasoning,
    "truncation": _Retention,
    "token_limits": _TokenLimits,
    "prompt": _Prompt,
    "tracing": _TracingTable,
}
"""The models of the object's tables, by the name of their key."""


OFF: tuple[KeyPath, ...] = (
    ("audio", "input", "turn_detection"),
    ("audio", "input", "turn_detection", "idle_timeout_ms"),
    ("audio", "input", "noise_reduction"),
    ("audio", "input", "transcription"),
    ("prompt",),
    ("tracing",),
)
"""Fields that take ``null`` in the protocol, and ``false`` in TOML, which has no null."""


class Finding(NamedTuple):
    """A problem at ``path`` of a session object; ``unknown`` where the field may only be newer."""

    path: KeyPath
    message: str
    unknown: bool


def nulled(session: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with None where :data:`OFF` allows ``false`` in place of ``null``."""
    return _nulled(session, ())  # type: ignore[no-any-return]


def _nulled(value: Any, path: KeyPath) -> Any:
    if value is False and path in OFF:
        return None
    if isinstance(value, Mapping):
        return {name: _nulled(inner, (*path, name)) for name, inner in value.items()}
    return value


def judge_session(session: Mapping[str, Any]) -> list[Finding]:
    """Return every problem of a Realtime session object, as it is written in the file."""
    return judge_object(nulled(session), SessionModel, _hint)


def judge_object(
    given: Mapping[str, Any],
    model: type[BaseModel],
    hint: Callable[[list[str | int]], str] = lambda _path: "",
) -> list[Finding]:
    """Return every problem of a session object, validated by ``model``.

    Args:
        hint: text after the message about an unknown key, by its path.
    """
    try:
        model.model_validate(given)
    except ValidationError as error:
        found = [_finding(detail, given, hint) for detail in error.errors(include_url=False)]
        return [one for one in found if not _filled_in(given, one.path)]
    return []


def only_beta(session: Mapping[str, Any]) -> list[Finding]:
    """Return fields that the GA protocol rejects and the Beta protocol accepts."""
    if "temperature" in session:
        message = 'is a setting of Beta servers (dialect = "beta"); GA has none'
        return [Finding(("temperature",), message, False)]
    return []


def _filled_in(session: Any, path: KeyPath) -> bool:
    """Return whether the text at ``path`` has variables, so that it cannot be checked yet."""
    for step in path:
        try:
            session = session[step]
        except (KeyError, IndexError, TypeError):
            return False
    return isinstance(session, str) and bool(names_in(session))


def _finding(detail: Any, session: Any, hint: Callable[[list[str | int]], str]) -> Finding:
    """Return one error of pydantic as a finding, without the union branches in its path."""
    path: list[str | int] = []
    here: Any = session
    known = detail["type"] != "extra_forbidden"
    for step in detail["loc"]:
        # Names of a union's branches lead nowhere in the file.
        if isinstance(here, dict) and isinstance(step, str):
            if step not in here and step != detail["loc"][-1]:
                continue
            path.append(step)
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            path.append(step)
            here = here[step]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, MisplacedError):
        path += cause.below
    if not known:
        return Finding(tuple(path), "is no setting that this gateway knows" + hint(path), True)
    return Finding(tuple(path), _words(detail), detail["type"] == UNKNOWN)


_MOVED = {
    "input_audio_noise_reduction": "audio.input.noise_reduction",
    "input_audio_transcription": "audio.input.transcription",
    "max_response_output_tokens": "max_output_tokens",
    "modalities": "output_modalities",
    "noise_reduction": "audio.input.noise_reduction",
    "speed": "audio.output.speed",
    "transcription": "audio.input.transcription",
    "turn_detection": "audio.input.turn_detection",
    "voice": "audio.output.voice",
}
"""Where a field at the top of the session object is: the Beta protocol had it there."""


def _hint(path: list[str | int]) -> str:
    """Return what an unknown field is called, or what there is instead."""
    if len(path) == 1 and (place := _MOVED.get(str(path[0]))) is not None:
        return f"; it is {place}"
    model: Any = SessionModel
    for step in path[:-1]:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        if field is None and not isinstance(step, int):
            return ""
        model = TABLES.get(str(step), model)
    return suggestion(str(path[-1]), model.model_fields)


def _words(detail: Any) -> str:
    """Return an error of pydantic's in the words of the configuration."""
    kind, text = detail["type"], str(detail["msg"])
    if kind == "missing":
        return "is required"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a table"
    text = text.removeprefix("Value error, ").replace("Input should be", "must be")
    return text.replace("a valid ", "a ").replace("a integer", "an integer")

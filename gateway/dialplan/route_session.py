# SPDX-License-Identifier: GPL-2.0-or-later
"""What a route says of its sessions: its server, their session objects, and a canary of them.

``[route.live]`` has the session object of the Live API, as far as a route writes it. As in
:mod:`gateway.dialplan.session_settings`, each mistake is found by itself, with its place; what may
only be newer than this gateway is told from what is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    Strict,
    model_validator,
)

from gateway.config.sections import (
    ApiKey,
    ApiKeyHeader,
    AudioName,
    DialectName,
    Headers,
    Region,
    Url,
)
from gateway.config.source import KeyPath, MisplacedError, Section, plain, suggestion
from gateway.config.values import Count, FilePath, Flag, Milliseconds, Seconds, Text, Typed
from gateway.dialplan.session_settings import (
    UNKNOWN_TYPE,
    Finding,
    Part,
    Word,
    choice,
    judge_object,
    nulled,
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
    """Validate a tool of a Live session's backend by its type."""
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
    """The Live session object, without the fields that the gateway sets."""

    model: Word | None = None
    instructions: str | None = None
    audio: _Audio = _Audio()
    input: Annotated[tuple[_Message, ...], Field(max_length=128)] = ()
    delegation: Annotated[Any, BeforeValidator(_delegation)] = None
    triggers: tuple[_Trigger, ...] = ()
    store: Flag | None = None
    safety_identifier: Word | None = None


def judge_live(session: Mapping[str, Any]) -> list[Finding]:
    """Return every problem of a Live session object, as it is written in the file."""
    return judge_object(session, LiveModel)


SET_BY_GATEWAY: Mapping[KeyPath, str] = {
    ("type",): "always realtime",
    ("model",): "write it as route.realtime.model or realtime.model",
    ("audio", "input", "format"): "it is the codec that the call negotiated",
    ("audio", "output", "format"): "it is the codec that the call negotiated",
}


MAX_MESSAGE = 16_000
"""Characters of a message at the start of a session."""


class Message(Section):
    """``[[route.message]]``: an item of the conversation that each session begins with."""

    role: Literal["system", "user", "assistant"] = "system"
    text: Annotated[str, Field(min_length=1, max_length=MAX_MESSAGE)] | None = None
    file: FilePath | None = None
    _words: str = PrivateAttr("")

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        """Refuse a message without text or with two kinds of it, and read its file."""
        if (self.text is None) == (self.file is None):
            raise ValueError("must have either text or file")
        if self.file is None:
            self._words = self.text or ""
            return self
        try:
            with self.file.open(encoding="utf-8") as file:
                self._words = file.read(MAX_MESSAGE + 1).strip()
        except OSError as error:
            why = error.strerror or str(error)
            raise MisplacedError(("file",), f"cannot be read: {self.file}: {why}") from None
        except UnicodeDecodeError:
            raise MisplacedError(("file",), f"is no UTF-8 text: {self.file}") from None
        if not self._words or len(self._words) > MAX_MESSAGE:
            raise MisplacedError(("file",), f"must have 1 to {MAX_MESSAGE} characters")
        return self

    @property
    def words(self) -> str:
        """The text, or what the file had when the dialplan was read."""
        return self._words


class CallerHistory(Section):
    """``[route.caller_history]``: what the model is told of the caller's earlier calls.

    ``timeout`` (s) is that of the database; without an answer the call goes on.
    """

    enabled: Flag = False
    routes: tuple[Text, ...] = ()
    max_calls: Annotated[Count, Field(le=10)] = 3
    max_age_days: Annotated[Count, Field(le=3650)] = 90
    max_chars: Annotated[Count, Field(ge=500, le=20_000)] = 2000
    timeout: Annotated[Seconds, Field(le=5)] = 0.2
    trust: Literal["trunk", "asserted", "any"] = "trunk"
    message: Flag = True


_SPEAKING = (
    *("greeting", "disclosure", "message", "guardrail", "tool", "tools", "mcp", "approval"),
    *("idle", "dtmf", "collect_digits", "post_call", "hold_wait", "live", "machine_detection"),
    *("caller_history", "canary", "application", "interruptions", "interpreter"),
)
"""Keys of a route that have no effect where the session only transcribes."""

_ONLY_HEARD = "has no effect with [route.transcription]"


class Transcription(Section):
    """``[route.transcription]``: calls whose session only transcribes the caller."""

    enabled: Flag = False
    end_phrases: tuple[Text, ...] = ()

    def agree_with(self, session: Mapping[str, Any], route_keys: Collection[str]) -> None:
        """Raise MisplacedError for keys without effect beside transcription, and for missing ones.

        Args:
            session: the route's session object.
            route_keys: names of the keys and tables that the route sets.
        """
        if not self.enabled:
            if self.end_phrases:
                raise MisplacedError(("transcription", "end_phrases"), "needs enabled = true")
            return
        audio = session.get("audio") or {}
        without_effect = [
            *((name,) for name in _SPEAKING if name in route_keys),
            *(("session", key) for key in sorted(session.keys() - {"audio", "include"})),
            *(("session", "audio", key) for key in sorted(audio.keys() - {"input"})),
        ]
        if without_effect:
            raise MisplacedError(without_effect[0], _ONLY_HEARD)
        heard = audio.get("input") or {}
        model = (heard.get("transcription") or {}).get("model")
        if not model:
            message = "needs session.audio.input.transcription.model"
            raise MisplacedError(("transcription", "enabled"), message)
        path = ("session", "audio", "input")
        if str(model).startswith("gpt-realtime-whisper"):
            message = "cannot be used: it does not detect the ends of turns, when words are sent"
            raise MisplacedError((*path, "transcription", "model"), message)
        if heard.get("turn_detection", {}) is None:
            message = "is needed with [route.transcription]: words are sent at the ends of turns"
            raise MisplacedError((*path, "turn_detection"), message)


def _session(value: Mapping[str, Any]) -> Mapping[str, Any]:
    # The rest is judged where the file is read, mistake by mistake (session_settings.py).
    return MappingProxyType(nulled(plain(_ours_only(value, SET_BY_GATEWAY))))


def _live(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(plain(_ours_only(value, LIVE_SET_BY_GATEWAY)))


def _ours_only(value: Mapping[str, Any], set_by_gateway: Mapping[KeyPath, str]) -> Any:
    """Refuse fields that the gateway sets itself."""
    for path, why in set_by_gateway.items():
        node: Any = value
        for part in path:
            node = node.get(part) if isinstance(node, Mapping) else None
        if node is not None:
            raise MisplacedError(path, f"is set by the gateway ({why}); leave it out")
    for below in _not_json(value):
        raise MisplacedError(below, "cannot be sent as JSON (a date, a time, inf or nan)")
    return value


def _not_json(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the paths of values that JSON cannot express, such as dates."""
    if isinstance(value, Mapping | list):
        for part, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_json(inner, (*path, part))
        return
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        yield path


SessionTable = Annotated[
    Mapping[str, Any], AfterValidator(_session), PlainSerializer(lambda value: dict(value))
]
LiveTable = Annotated[
    Mapping[str, Any], AfterValidator(_live), PlainSerializer(lambda value: dict(value))
]


class RouteRealtime(Section):
    """``[route.realtime]``: in place of ``[realtime]``, for this route.

    With another server's ``url`` neither key nor headers of ``[realtime]`` are sent there.
    """

    url: Url | None = None
    api_key: ApiKey = None
    api_key_header: ApiKeyHeader | None = None
    headers: Headers = Field(default_factory=lambda: MappingProxyType({}))
    model: Text | None = None
    connect_timeout: Seconds | None = None
    dialect: DialectName | None = None
    audio: AudioName | None = None
    region: Region = ""
    safety_identifier: Flag | None = None


Percent = Annotated[float, Strict(), Field(gt=0, le=100), Typed]


class CanaryLimits(Section):
    """``[route.canary.stop]``: by how much the canary may fall behind; 0 leaves it out.

    Percentages are points: with 5, 12 % of the canary's calls may fail where 7 % of the others do.
    """

    min_calls: Count = 50
    failed_percent: Annotated[float, Strict(), Field(ge=0, le=100), Typed] = 5.0
    transferred_percent: Annotated[float, Strict(), Field(ge=0, le=100), Typed] = 0.0
    response_ms: Milliseconds = 0


class Canary(Section):
    """``[route.canary]``: another session for a share of the route's callers."""

    share: Percent
    session: SessionTable = Field(default_factory=lambda: MappingProxyType({}))
    live: LiveTable = Field(default_factory=lambda: MappingProxyType({}))
    realtime: RouteRealtime = Field(default_factory=RouteRealtime)
    stop: CanaryLimits = Field(default_factory=CanaryLimits)

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not (self.session or self.live or self.realtime.model_fields_set):
            raise MisplacedError((), "changes nothing: it needs session, live or realtime")
        return self

    @property
    def fingerprint(self) -> str:
        """Hash of session objects and server: when it changes, the canary's figures begin anew."""
        given = self.model_dump(mode="json", exclude={"share", "stop"})
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]

    def has(self, route: str, caller: str) -> bool:
        """Return whether a caller of the route belongs to its share, by a hash of the number.

        A larger share has all callers of a smaller one."""
        digest = hashlib.sha256(f"{route}\n{caller}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < self.share / 100 * 2**32

    def secrets(self) -> tuple[str, ...]:
        """Return the secret texts of its tables, and the credentials in its session objects."""
        return (*super().secrets(), *credentials(self.session), *credentials(self.live))


def merged(base: Any, over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` overridden by ``over``; tables in both are merged in the same way."""
    found = dict(base) if isinstance(base, Mapping) else {}
    for name, value in over.items():
        inner = found.get(name)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        found[name] = merged(inner, value) if both else value
    return found


def credentials(value: Any, inside: bool = False) -> Iterator[str]:
    """Yield the texts at and below ``authorization`` and ``headers`` of a session object (MCP)."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from credentials(inner, inside or name in ("authorization", "headers"))
    elif isinstance(value, list):
        for inner in value:
            yield from credentials(inner, inside)
    elif inside and isinstance(value, str) and value:
        yield value

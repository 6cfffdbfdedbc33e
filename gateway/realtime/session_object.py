# SPDX-License-Identifier: GPL-2.0-or-later
"""Session objects of the protocol: made for a call, and reduced by fields that a server rejects;
and the capabilities of sessions.

One bad field makes the server reject the whole ``session.update``. A call is better off without
that field than without its session, so it is removed and the rest is sent again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

from gateway.realtime.errors import Kind, classify_error
from gateway.realtime.events import CreateResponse, ServerError
from gateway.text import whole_number


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a session can do, on which the decision core depends instead of the kind of server.

    The defaults are those of a Realtime session; :data:`LIVE` has those of a Live session.
    """

    turn_events: bool = True
    """The server reports the caller's turns (``speech_started``), which interrupt the agent.
    Without it the gateway detects them by energy, and they interrupt nothing."""
    truncation: bool = True
    """Items can be truncated to what was heard (``conversation.item.truncate``)."""
    cancel: bool = True
    """A running response can be cancelled (``response.cancel``)."""
    item_ids: bool = True
    """Items have ids, by which they can be deleted, and others inserted after them."""
    direct_tools: bool = True
    """The session calls functions itself; without it a backend does, behind a delegation."""
    requested_responses: bool = True
    """A response can be requested at any time; without it only given words can be."""
    exact_words: bool = True
    """Given words are spoken as they are, or very nearly."""
    clips: bool = False
    """The server plays audio of ours to the caller, byte for byte (:class:`PlayClip`)."""
    settings_updates: bool = True
    """Instructions, voice and turn detection can be changed in a running session."""
    out_of_band: bool = True
    """Text responses can be requested outside of the conversation; in a Live session, of its
    backend."""
    billed_by_time: bool = False
    """The session is billed by time, also in silence."""
    late_words: bool = False
    """Transcripts come seconds after the audio."""
    seeded_at_start: bool = False
    """Earlier conversation is part of the session's start, not added as items afterwards."""
    responds: bool = True
    """The session responds. Without it, it only transcribes the caller."""


REALTIME = Capabilities()


LIVE = Capabilities(
    turn_events=False,
    truncation=False,
    cancel=False,
    item_ids=False,
    direct_tools=False,
    requested_responses=False,
    exact_words=False,
    clips=True,
    billed_by_time=True,
    late_words=True,
    settings_updates=False,
    out_of_band=False,
    seeded_at_start=True,
)


Codec = Literal["PCMU", "PCMA", "G722", "opus"]

AUDIO_FORMATS: dict[Codec, str] = {
    "PCMU": "audio/pcmu",
    "PCMA": "audio/pcma",
    "G722": "audio/g722",
    "opus": "audio/opus",
}
"""RTP encoding name (RFC 3551) → ``type`` of a session's audio format. Those of G.722 and Opus are
only ours: on the wire it is linear PCM at 24 kHz."""

_REACTIONS: dict[str, Any] = {"create_response": True, "interrupt_response": True}
# The server's own defaults differ between its documentation and its examples, so every value is
# sent. Milliseconds; the threshold is 0 to 1.
_VAD_DEFAULTS: dict[str, dict[str, Any]] = {
    "server_vad": {
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
        **_REACTIONS,
    },
    "semantic_vad": {"eagerness": "auto", **_REACTIONS},
}


def session_object(
    route_session: Mapping[str, Any], codec: Codec, tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the object for ``session.update``: a deep copy of ``route_session``, completed.

    ``type`` is ``realtime``; input and output format are those of ``codec``, whatever the route
    says. ``tools`` follow the route's own, without those whose name the route uses itself. Turn
    detection gets explicit values where the route gives none (``server_vad`` where it names no
    type); one that the route turns off (``None``) stays off. With a hosted ``prompt`` and no turn
    detection in the route, none is sent, so that the prompt's own is in force.

    Raises :class:`ValueError`, naming the key, where the route has no object and needs one.
    """
    session = _table(plain_json(route_session), "session")
    session["type"] = "realtime"
    audio = _table(session.setdefault("audio", {}), "audio")
    for direction in ("input", "output"):
        side = _table(audio.setdefault(direction, {}), f"audio.{direction}")
        side["format"] = {"type": AUDIO_FORMATS[codec]}
    if not session.get("prompt"):
        audio["input"].setdefault("turn_detection", {})
    if audio["input"].get("turn_detection") is not None:
        detection = _table(audio["input"]["turn_detection"], "audio.input.turn_detection")
        complete_detection(detection)
    if tools:
        session["tools"] = _with_tools(session, tools)
    return session


def transcription_object(route_session: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
    """Return the object for ``session.update`` of a transcription session: ``audio.input`` as
    :func:`session_object` completes it, without what turn detection has for responses, and
    ``include`` if the route has it; nothing else of the route. Raises as :func:`session_object`."""
    whole = session_object(route_session, codec, ())
    heard = whole["audio"]["input"]
    if heard.get("turn_detection") is not None:
        for reaction in (*_REACTIONS, "idle_timeout_ms"):
            heard["turn_detection"].pop(reaction, None)
    included = {"include": whole["include"]} if "include" in whole else {}
    return {"type": "transcription", "audio": {"input": heard}, **included}


MAX_INPUT_MESSAGES = 128
MAX_INPUT_TEXT = 24_000
"""Bytes of a Live session's ``input`` at its start: 8,192 tokens of three bytes at least."""


def live_object(
    route_live: Mapping[str, Any], codec: Codec, tools: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the object for ``session.start`` of a Live session: a deep copy of ``route_live``,
    completed; the model is added when it is sent.

    The format is that of ``codec`` at 8 kHz. ``tools`` are added to those of the backend; where
    there is none (``delegation.type`` is not ``responses``) they are left out. Raises as
    :func:`session_object`.
    """
    session: dict[str, Any] = plain_json(route_live)
    audio = _table(session.setdefault("audio", {}), "audio")
    audio["format"] = {"type": AUDIO_FORMATS[codec], "rate": 8000}
    delegation = session.get("delegation") or {}
    if tools and delegation.get("type") == "responses":
        backend = _table(delegation.setdefault("responses", {}), "delegation.responses")
        backend["tools"] = _with_tools(backend, tools)
    _name_types(session, delegation)
    return session


def _name_types(session: Mapping[str, Any], delegation: Mapping[str, Any]) -> None:
    """Add each ``type`` that a route may leave out, since there is only one, but the service needs:
    of triggers, the backend's tools, messages of ``input`` and their parts. Changes ``session``."""
    for trigger in session.get("triggers") or ():
        trigger.setdefault("type", "decisions")
    for tool in (delegation.get("responses") or {}).get("tools") or ():
        tool.setdefault("type", "function")
    for one in session.get("input") or ():
        one.setdefault("type", "message")
        for part in one.get("content") or ():
            kind = "output_text" if one.get("role") == "assistant" else "input_text"
            part.setdefault("type", kind)


def _with_tools(
    session: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return copies of the tools of ``session``, then of those of ``tools`` whose name it does not
    use."""
    own = [_table(tool, "tools") for tool in session.get("tools") or []]
    names = {tool.get("name") for tool in own} - {None}
    return own + [plain_json(tool) for tool in tools if tool.get("name") not in names]


def with_history(session: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a copy of a Live session object, with the latest items of a conversation after its own
    ``input``, as many as fit: 128 messages and 24,000 bytes in all. No item is cut; the first that
    does not fit, from the end, and all before it are left out.

    Function calls and their results become messages of the developer.
    """
    own = [plain_json(item) for item in session.get("input") or []]
    room = MAX_INPUT_TEXT - sum(len(str(item).encode()) for item in own)
    history: list[dict[str, Any]] = []
    for item in reversed(items):
        made = _input_message(item)
        room -= len(str(made).encode())
        if room < 0 or len(own) + len(history) >= MAX_INPUT_MESSAGES:
            break
        history.append(made)
    history.reverse()
    return {**session, "input": own + history} if own or history else dict(session)


def _input_message(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item of the conversation as a message of a Live session's ``input``, with its text
    only. Roles other than user and assistant become developer."""
    if item.get("type") == "function_call":
        role, text = "developer", f"Called {item.get('name')} with {item.get('arguments')}"
    elif item.get("type") == "function_call_output":
        role, text = "developer", f"The result: {item.get('output')}"
    else:
        given = str(item.get("role", "user"))
        role = given if given in ("user", "assistant") else "developer"
        text = " ".join(str(part.get("text", "")) for part in item.get("content") or ())
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def complete_detection(detection: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of its type (``server_vad`` where it has none) to a ``turn_detection``
    object where a key is missing; return that object, changed."""
    kind = detection.setdefault("type", "server_vad")
    for name, value in _VAD_DEFAULTS.get(kind, {}).items():
        detection.setdefault(name, value)
    return detection


def format_of(session: Mapping[str, Any], direction: Literal["input", "output"]) -> str | None:
    """Return the ``type`` of a session object's audio format, Beta's plain text too; None where it
    has none."""
    audio = session.get("audio")
    side = audio.get(direction) if isinstance(audio, Mapping) else None
    audio_format = side.get("format") if isinstance(side, Mapping) else None
    if isinstance(audio_format, Mapping):
        audio_format = audio_format.get("type")
    return audio_format if isinstance(audio_format, str) else None


def voice_of(session: Mapping[str, Any]) -> Any:
    """Return the voice in a session object (``audio.output.voice``), a text or an object; None
    where it has none."""
    audio = session.get("audio")
    side = audio.get("output") if isinstance(audio, Mapping) else None
    return side.get("voice") if isinstance(side, Mapping) else None


def _table(value: Any, path: str) -> dict[str, Any]:
    """Return ``value`` if it is a dict. Raises ValueError, which names ``path``, if not."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be an object, not {type(value).__name__}")
    return value


def plain_json(value: Any) -> Any:
    """Return a deep copy of ``value`` with dicts and lists for mappings and sequences, and text as
    keys."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain_json(inner) for inner in value]
    return value


MAX_REFUSED = 8
"""Fields removed from one update at most; a server that rejects more is another than meant."""

Path = tuple[str | int, ...]

_VOICE: Path = ("audio", "output", "voice")
# Without these there is no conversation: the codec would be another one, or audio would have no
# direction. A server that refuses them cannot serve the call.
_NEEDED: frozenset[Path] = frozenset(
    {
        (),
        ("type",),
        ("audio",),
        ("audio", "input"),
        ("audio", "output"),
        ("audio", "input", "format"),
        ("audio", "output", "format"),
        ("audio", "input", "format", "type"),
        ("audio", "output", "format", "type"),
        ("model",),
        ("audio", "format"),
        ("audio", "format", "type"),
        ("audio", "format", "rate"),
    }
)
_STEP = re.compile(r"([^.\[\]'\"]+)|\[(?:'([^']*)'|\"([^\"]*)\"|(\d+))\]")
_QUOTED = re.compile(r"['\"`‘“]([A-Za-z_][\w.\[\]\-]*)['\"`’”]")  # noqa: RUF001
_SPELLED = re.compile(r"\b(?:session|response)(?:\.\w+|\[\d+\])+")
_ROOTS = (["session"], ["response"])
# What a response can do without and still be the one that was asked for.
_OF_A_RESPONSE = frozenset(
    {
        "audio",
        "max_output_tokens",
        "metadata",
        "output_modalities",
        "parallel_tool_calls",
        "prompt",
        "reasoning",
    }
)


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that a server rejected: its dotted path, the error's code (or type) and message."""

    field: str
    code: str
    message: str


def field_of(error: ServerError, session: Mapping[str, Any]) -> Path | None:
    """Return the path of the field in ``session`` that ``error`` is about, and that can be left
    out.

    It is named by ``param``, with or without ``session.`` before it, else in the message, spelled
    out from ``session.``, else in quotes; a name without a path counts if it is in one place only.
    Where that field is missing, or inside a value that is no object, it is the nearest one that
    exists. ``cannot_update_voice`` names the voice by itself.

    None where no field is named, the call cannot do without it (audio formats, model), or the error
    is fatal or retryable (a key, a quota).
    """
    if classify_error(error).kind not in (Kind.BENIGN, Kind.UNKNOWN):
        return None
    for said in _names(error):
        path = _existing(_steps(said), session)
        if path is None:
            path = _only_place(said, session)
        if path is not None and path not in _NEEDED:
            return path
    if error.code == "cannot_update_voice" and _existing(_VOICE, session) == _VOICE:
        return _VOICE
    return None


def without(session: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a deep copy of ``session`` without the field at ``path``, and without objects and
    lists that it leaves empty. The path must exist."""
    copy: dict[str, Any] = deepcopy(dict(session))
    inside: list[Any] = [copy]
    for step in path[:-1]:
        inside.append(inside[-1][step])
    del inside[-1][path[-1]]
    for depth in range(len(path) - 1, 0, -1):
        if inside[depth]:
            break
        del inside[depth - 1][path[depth - 1]]
    return copy


def mended(command: CreateResponse, error: ServerError) -> CreateResponse | None:
    """Return a copy of a ``response.create`` without the field that ``error`` is about; words and
    clip stay.

    None where the error names no field, or the response would be another one without it: only
    audio, ``max_output_tokens``, metadata, modalities, ``parallel_tool_calls``, prompt and
    reasoning can be left out.
    """
    path = field_of(error, command.response or {})
    if path is None or path[0] not in _OF_A_RESPONSE:
        return None
    return replace(command, response=without(command.response or {}, path))


def changes_something(session: Mapping[str, Any]) -> bool:
    """Return whether a ``session.update`` with this object changes more than type, model and
    formats."""
    return any(path not in _NEEDED for path, value in _leaves(session) if value != {})


def dotted(path: Path) -> str:
    """Return a path as the protocol writes it: ``audio.output.voice``, ``tools[0].name``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _names(error: ServerError) -> Iterator[str]:
    """Yield the names of fields in an error: ``param``, then those in its message that begin with
    ``session.`` or ``response.``, then those in quotes."""
    if error.param:
        yield error.param
    yield from _SPELLED.findall(error.message)
    yield from _QUOTED.findall(error.message)


def _steps(said: str) -> Path:
    """Return the path that is written in ``said``, without ``session`` or ``response`` at its
    beginning; digits after the first step, and in brackets, are indexes."""
    steps: list[str | int] = []
    for bare, single, double, index in _STEP.findall(said):
        text = bare or single or double
        number = whole_number(index or text) if index or steps else None
        steps.append(text if number is None else number)
    return tuple(steps[1:] if steps[:1] in _ROOTS else steps)


def _existing(wanted: Path, session: Mapping[str, Any]) -> Path | None:
    """Return the beginning of the path ``wanted`` that exists in ``session``, the whole of it as a
    rule.

    It is shorter where only the last step is missing, or where it leads into a text or a number.
    None where another step is missing, or the last one in an object that the call needs. The type
    of a union's member, which some servers name (``turn_detection.server_vad.threshold``), is
    skipped.
    """
    here: Any = session
    path: list[str | int] = []
    for index, step in enumerate(wanted):
        last = index == len(wanted) - 1
        if isinstance(here, Mapping):
            if step in here:
                here = here[step]
                path.append(step)
            elif not last and step == here.get("type"):
                continue
            elif last and tuple(path) not in _NEEDED:
                break  # a part that the server misses: the object is at fault
            else:
                return None
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
            path.append(step)
        else:
            break  # inside a text or a number: that is what is refused
    return tuple(path) or None


def _only_place(said: str, session: Mapping[str, Any]) -> Path | None:
    """Return the path of the field named ``said`` in ``session``; None if it is in several places
    or none, or ``said`` is more than a name."""
    if not re.fullmatch(r"\w+", said):
        return None
    places = {path[: path.index(said) + 1] for path, _ in _leaves(session) if said in path}
    return places.pop() if len(places) == 1 else None


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield path and value of all that is no object or list, or an empty one."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


TRANSCRIPTION = Capabilities(
    truncation=False,
    cancel=False,
    item_ids=False,
    direct_tools=False,
    requested_responses=False,
    settings_updates=False,
    out_of_band=False,
    seeded_at_start=True,
    responds=False,
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The GA session object of a call: the route's own, with the call's codec and tools put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Codec = Literal["PCMU", "PCMA"]

AUDIO_FORMATS: dict[Codec, str] = {"PCMU": "audio/pcmu", "PCMA": "audio/pcma"}
"""RTP encoding name (RFC 3551) → ``type`` of a session's audio format, both 8 kHz."""

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
    """The object for ``session.update``: ``route_session`` deeply copied, then completed.

    ``type`` is ``realtime``; input and output format are those of ``codec``, whatever the route
    says, as nothing here resamples; ``tools`` follow the route's own, except functions that the
    route defines itself under the same name. Turn detection gets explicit values wherever the
    route gives none; one that the route turns off (``None``) stays off. Where the route has a
    hosted ``prompt`` and no turn detection, none is sent: the prompt's own holds.

    Raises :class:`ValueError`, naming the key, where the route has something else than an object.
    """
    session = _table(_plain(route_session), "session")
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
        own = [_table(tool, "tools") for tool in session.get("tools") or []]
        names = {tool.get("name") for tool in own} - {None}
        session["tools"] = own + [_plain(tool) for tool in tools if tool.get("name") not in names]
    return session


def complete_detection(detection: dict[str, Any]) -> dict[str, Any]:
    """Put explicit values in where ``detection`` has none; returns it."""
    kind = detection.setdefault("type", "server_vad")
    for name, value in _VAD_DEFAULTS.get(kind, {}).items():
        detection.setdefault(name, value)
    return detection


def format_of(session: Mapping[str, Any], direction: Literal["input", "output"]) -> str | None:
    """The ``type`` of a session object's audio format, ``None`` when it names none."""
    audio = session.get("audio")
    side = audio.get(direction) if isinstance(audio, Mapping) else None
    audio_format = side.get("format") if isinstance(side, Mapping) else None
    if isinstance(audio_format, Mapping):
        audio_format = audio_format.get("type")
    return audio_format if isinstance(audio_format, str) else None


def voice_of(session: Mapping[str, Any]) -> Any:
    """The voice that a session object names, ``None`` when it names none."""
    audio = session.get("audio")
    side = audio.get("output") if isinstance(audio, Mapping) else None
    return side.get("voice") if isinstance(side, Mapping) else None


def _table(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be an object, not {type(value).__name__}")
    return value


def _plain(value: Any) -> Any:
    """A copy of ``value`` in the dicts and lists that JSON wants, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(inner) for inner in value]
    return value

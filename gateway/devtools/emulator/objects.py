# SPDX-License-Identifier: GPL-2.0-or-later
"""Builders of the server's events and objects, every key of the GA schema, nulls included.

Errors have the codes and texts that the service was seen to use.
"""

from __future__ import annotations

import secrets
from asyncio import TimerHandle
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

Model = TypeVar("Model", bound=BaseModel)
Json = dict[str, Any]


class Strict(BaseModel):
    """An object without unknown keys."""

    model_config = ConfigDict(extra="forbid")


class Sender(Protocol):
    """Sends server events to the client of one session."""

    def emit(self, event: Json, audio: bytes = b"") -> None:
        """Send a server event; ``audio`` becomes its ``delta``, in base64."""

    def later(self, delay_s: float, action: Callable[[], None]) -> TimerHandle:
        """Call ``action`` after a delay, unless the connection ends before."""


class ProtocolError(Exception):
    """Refuses a client event: it becomes one ``error`` event, and the session goes on."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        type_: str = "invalid_request_error",
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.param = param
        self.type = type_


_OF_A_TYPE = "_type"
_MISSING = ("missing", "union_tag_not_found")


def from_validation(error: ValidationError, data: object, root: str) -> ProtocolError:
    """Return the first mistake that pydantic found in ``data``, in the service's words.

    ``root`` is the path of ``data`` in the client event (``session``, ``item``, or empty).
    """
    first = error.errors(include_url=False)[0]
    kind, location = first["type"], first["loc"]
    path = _path(location, data, kind == "missing")
    if kind == "union_tag_not_found":
        path = [*path, "type"]
    param = _join(root, path)
    if kind == "extra_forbidden":
        return ProtocolError("unknown_parameter", f"Unknown parameter: '{param}'.", param)
    if kind in _MISSING:
        message = f"Missing required parameter: '{param}'."
        return ProtocolError("missing_required_parameter", message, param)
    code = "invalid_type" if kind.endswith(_OF_A_TYPE) else "invalid_value"
    return ProtocolError(code, f"Invalid value for '{param}': {first['msg']}.", param)


def _path(location: Sequence[str | int], data: object, missing: bool) -> list[str | int]:
    """``location`` without the names that pydantic adds for the members of a union."""
    path: list[str | int] = []
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(data, dict) and (step in data or (missing and last)):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            continue
        path.append(step)
    return path


def _join(root: str, path: Sequence[str | int]) -> str:
    text = root
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def validated(model: type[Model], data: object, root: str) -> Model:
    """Validate ``data``, found at ``root`` of a client event, by ``model``.

    Raises :class:`ProtocolError` naming the first mistake.
    """
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        raise from_validation(error, data, root) from None


def checked(adapter: TypeAdapter[Any], data: object, root: str) -> Any:
    """Validate ``data``, found at ``root`` of a client event, by the type of ``adapter``.

    Raises :class:`ProtocolError` naming the first mistake.
    """
    try:
        return adapter.validate_python(data, strict=True)
    except ValidationError as error:
        raise from_validation(error, data, root) from None


def content_part(kind: str, text: str) -> Json:
    """Return a content part of ``response.content_part`` events; ``kind``: text or audio."""
    if kind == "text":
        return {"type": "text", "text": text}
    return {"type": "audio", "transcript": text}


def split_at_spaces(text: str, count: int) -> list[str]:
    """Split ``text`` at spaces into at most ``count`` pieces; joined, they are ``text`` again."""
    words = text.split(" ")
    size = max(1, -(-len(words) // count))
    groups = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return [group if index == 0 else " " + group for index, group in enumerate(groups) if text]


def split_every(text: str, size: int) -> list[str]:
    """Split ``text`` into pieces of ``size`` characters."""
    return [text[start : start + size] for start in range(0, len(text), size)]


def new_id(prefix: str) -> str:
    """Return a new id in the service's form: ``prefix_`` and 21 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(11)[:21]}"


def error_event(error: ProtocolError, client_event_id: str | None) -> Json:
    """Return the ``error`` event for a refused client event, with that event's id."""
    return {
        "type": "error",
        "error": {
            "type": error.type,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "event_id": client_event_id,
        },
    }


def message_item(item_id: str, role: str, content: list[Json], status: str) -> Json:
    """An item of type ``message``."""
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": content,
    }


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str) -> Json:
    """An item of type ``function_call``; ``arguments`` is a JSON text."""
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "function_call",
        "status": status,
        "name": name,
        "call_id": call_id,
        "arguments": arguments,
    }


def usage_object(
    read: tuple[int, int, int], cached: tuple[int, int, int], text_out: int, audio_out: int
) -> Json:
    """``response.usage`` from counts of tokens: ``read`` of text, audio and images, and of these
    those ``cached``."""
    text_in, audio_in, image_in = read
    cached_text, cached_audio, cached_image = cached
    return {
        "total_tokens": sum(read) + text_out + audio_out,
        "input_tokens": sum(read),
        "output_tokens": text_out + audio_out,
        "input_token_details": {
            "text_tokens": text_in,
            "audio_tokens": audio_in,
            "image_tokens": image_in,
            "cached_tokens": sum(cached),
            "cached_tokens_details": {
                "text_tokens": cached_text,
                "audio_tokens": cached_audio,
                "image_tokens": cached_image,
            },
        },
        "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
    }


def transcription_usage(model: str, audio_ms: int, words: str) -> Json:
    """Return the usage of a transcription: in tokens or in seconds, as its model is billed."""
    if not model.startswith("gpt-4o"):
        return {"type": "duration", "seconds": audio_ms / 1000}
    heard, said = max(1, audio_ms // 100), max(1, len(words) // 4)
    return {
        "type": "tokens",
        "total_tokens": heard + said,
        "input_tokens": heard,
        "input_token_details": {"text_tokens": 0, "audio_tokens": heard},
        "output_tokens": said,
    }

# SPDX-License-Identifier: GPL-2.0-or-later
"""Builders of the server's events and objects: every key of the GA schema, nulls included.

They are plain JSON objects; :mod:`gateway.devtools.emulator.beta` makes Beta's of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from gateway.devtools.emulator.errors import ProtocolError


def part(kind: str, text: str) -> Json:
    """A content part as ``response.content_part`` events show it."""
    if kind == "text":
        return {"type": "text", "text": text}
    return {"type": "audio", "transcript": text}


def pieces(text: str, count: int) -> list[str]:
    """``text`` cut at spaces into at most ``count`` pieces that join to it again."""
    words = text.split(" ")
    size = max(1, -(-len(words) // count))
    groups = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return [group if index == 0 else " " + group for index, group in enumerate(groups) if text]


def chunks(text: str, size: int) -> list[str]:
    """``text`` in pieces of ``size`` characters."""
    return [text[start : start + size] for start in range(0, len(text), size)]


Json = dict[str, Any]


def new_id(prefix: str) -> str:
    """An id as the service makes them: ``prefix_`` and 21 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(11)[:21]}"


def error_event(error: ProtocolError, client_event_id: str | None) -> Json:
    """``error``, naming the client event that it answers."""
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


def response_object(response_id: str, settings: Mapping[str, Any]) -> Json:
    """A response in progress; ``settings`` are those in force for it (:class:`ResponseState`)."""
    return {
        "object": "realtime.response",
        "id": response_id,
        "status": "in_progress",
        "status_details": None,
        "output": [],
        "conversation_id": settings["conversation_id"],
        "output_modalities": settings["output_modalities"],
        "max_output_tokens": settings["max_output_tokens"],
        "audio": {"output": {"format": settings["format"], "voice": settings["voice"]}},
        "usage": None,
        "metadata": settings["metadata"],
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
    """What a transcription used: models that are billed by token tell tokens, others seconds."""
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""WebSocket frames (RFC 6455 section 5) and realtime events as bytes, made once and sent often.

The load endpoint sends tens of thousands of frames a second, so it writes them straight to its
sockets. The handshake is the websockets library's.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """One unmasked server frame."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def event(type: str, **fields: Any) -> bytes:
    """A server event, framed."""
    body = {"type": type, "event_id": "event_CQ5wnjyV0ZjHkzGLoqXjf", **fields}
    return frame(json.dumps(body, separators=(",", ":")).encode())


def delta(response: str, item: str, audio: bytes) -> bytes:
    """``response.output_audio.delta``, framed."""
    return event(
        "response.output_audio.delta",
        response_id=response,
        item_id=item,
        output_index=0,
        content_index=0,
        delta=base64.b64encode(audio).decode(),
    )


def track(audio: bytes) -> bytes:
    """``session.output_audio.delta`` of a Live session, framed; it has no ``event_id``."""
    body = {"type": "session.output_audio.delta", "delta": base64.b64encode(audio).decode()}
    return frame(json.dumps(body, separators=(",", ":")).encode())


def opening(response: str, item: str) -> bytes:
    """The events that come before the first audio of a response."""
    shell = {"id": item, "object": "realtime.item", "type": "message", "role": "assistant"}
    return (
        event(
            "response.created",
            response={
                "id": response,
                "object": "realtime.response",
                "status": "in_progress",
                "output": [],
            },
        )
        + event(
            "response.output_item.added",
            response_id=response,
            output_index=0,
            item={**shell, "status": "in_progress", "content": []},
        )
        + event("conversation.item.added", item={**shell, "content": []}, previous_item_id=None)
    )


def audio_done(response: str, item: str) -> bytes:
    """``response.output_audio.done``, framed."""
    return event(
        "response.output_audio.done",
        response_id=response,
        item_id=item,
        output_index=0,
        content_index=0,
    )


def ending(
    response: str, status: str = "completed", output: Sequence[dict[str, Any]] = ()
) -> bytes:
    """``response.done``, framed."""
    details = {"type": "cancelled", "reason": "turn_detected"} if status == "cancelled" else None
    return event(
        "response.done",
        response={
            "id": response,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": list(output),
            "usage": None,
        },
    )


def client_frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """``(opcode, start of the payload, end)`` of each whole masked frame in ``data``."""
    position, size = 0, len(data)
    while size - position >= 6:
        length = data[position + 1] & 0x7F
        start = position + 6
        if length == 126:
            length = (data[position + 2] << 8) | data[position + 3]
            start = position + 8
        elif length == 127:
            length = int.from_bytes(data[position + 2 : position + 10], "big")
            start = position + 14
        if start + length > size:
            return
        yield data[position] & 0x0F, start, start + length
        position = start + length


def unmasked(data: bytes, start: int, end: int) -> bytes:
    """The payload of a client frame whose bytes lie at ``start`` to ``end``."""
    size = end - start
    mask = (data[start - 4 : start] * (size // 4 + 1))[:size]
    mixed = int.from_bytes(data[start:end], "big") ^ int.from_bytes(mask, "big")
    return mixed.to_bytes(size, "big")

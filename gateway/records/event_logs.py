# SPDX-License-Identifier: GPL-2.0-or-later
"""Every event of a call's realtime session, both ways, as lines of JSON beside its record.

A line is ``{"t_ms": ..., "dir": "out", "event": {...}}``: ms since the INVITE on a clock that
never jumps, ``out`` for what the gateway sends and ``in`` for what comes. Audio is elided to its
length and the beginning of its SHA-256, which tells whether two are the same; secrets are blanked.
The first and the last line (``meta``) say which call it is and what was left out, ``close`` how
the WebSocket ended.

The event loop only puts messages into a channel; a thread reads, elides and writes them.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import structlog

from gateway.log import BLANK, Redactor
from gateway.records.background import BackgroundWriter
from gateway.records.files import file_stem, private
from gateway.text import PrivateDigits

MAX_WAITING = 20_000
"""Parcels of messages that wait for the disk, of all calls."""
MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Long answers come in large messages; this many bytes are about as much."""
MAX_FILE_BYTES = 256 * 1024 * 1024
"""Bytes of one call: more than a day of talking. Later events are dropped and counted."""
HASH_DIGITS = 16

SUFFIX = ".events.jsonl"

_CREDENTIALS = frozenset({"authorization", "headers"})

log = structlog.get_logger("records")


class EventLog:
    """The log of one call; a :class:`gateway.realtime.session.Tap` of its session."""

    def __init__(
        self,
        path: Path,
        put: Callable[[_Parcel, int], bool],
        now: Callable[[], float],
        private: PrivateDigits,
    ) -> None:
        self.path = path
        self.private = private
        self.dropped = 0
        """Messages that are not in the file."""
        self.bytes = 0
        """Written so far; the writer's thread counts."""
        self._put = put
        self._now = now
        self._began = now()
        self._held: list[_Message] = []
        self._held_bytes = 0

    def sent(self, message: bytes) -> None:
        """A message to the server."""
        self._add("out", message)

    def received(self, message: bytes) -> None:
        """A message from the server."""
        self._add("in", message)

    def closed(self, code: int, reason: str, by_us: bool) -> None:
        """The WebSocket is closed."""
        self._add("close", {"code": code, "reason": reason, "by_us": by_us})

    def begin(self, **facts: Any) -> None:
        """The call's id."""
        self._add("meta", facts)

    def end(self) -> None:
        """The call is over."""
        self._add("meta", {"dropped": self.dropped, "over": True})

    def as_json(self) -> dict[str, Any]:
        """Return the counters for the call's record."""
        return {"file": self.path.name, "dropped": self.dropped}

    def _add(self, direction: str, message: Any) -> None:
        """Hand a message on; audio, fifty times a second each way, in parcels."""
        held = self._held
        held.append((self._now() - self._began, direction, message))
        if type(message) is bytes and b"udio" in message[:48]:
            self._held_bytes += len(message)
            if len(held) < PARCEL and self._held_bytes < PARCEL_BYTES:
                return
        size = self._held_bytes + 100
        self._held, self._held_bytes = [], 0
        if not self._put((self, held), size):
            self.dropped += len(held)


_Message = tuple[float, str, Any]
"""When it came or went (s since the call began), which way, and what."""
_Parcel = tuple[EventLog, list[_Message]]

PARCEL, PARCEL_BYTES = 20, 64 * 1024
"""Messages, and their bytes, that are handed to the writer together: a fifth of a second."""

WRITE_SECONDS = 1.0
"""How long lines of a call are gathered: to open its file costs more than to write into it."""


class EventLogs:
    """Opens a log for each call that wants one, and writes them all.

    Args:
        folder: that of the records; None writes nothing.
        writer: whose thread writes the lines.
        secrets: texts that no line may hold.
    """

    def __init__(
        self, folder: Path | None, writer: BackgroundWriter, secrets: Sequence[str] = ()
    ) -> None:
        self._folder = folder
        self._owner = writer
        self._redact = Redactor(secrets)
        self._channel = writer.channel("event logs", self._write, MAX_WAITING, MAX_WAITING_BYTES)
        self._failing = False
        self._texts: dict[EventLog, list[str]] = {}
        self._due = 0.0
        writer.every_second(self._flush)

    def open(
        self,
        call_id: str,
        started_at: str,
        private: PrivateDigits | None = None,
        **facts: Any,
    ) -> EventLog | None:
        """The log of a call that begins now; None where none is written."""
        if self._folder is None:
            return None
        path = self._folder / f"{file_stem(started_at, call_id)}{SUFFIX}"
        made = EventLog(
            path,
            self._channel.put,
            asyncio.get_running_loop().time,
            PrivateDigits() if private is None else private,
        )
        made.begin(call_id=call_id, started_at=started_at, **facts)
        return made

    def _write(self, parcels: list[_Parcel]) -> Sequence[_Parcel]:
        """On the writer's thread: what is over is written at once, the rest within a second."""
        over = False
        for event_log, (seconds, direction, message) in (
            (of, one) for of, messages in parcels for one in messages
        ):
            t_ms = round(1000 * seconds, 1)
            text = _audio_text(t_ms, direction, message, self._redact)
            if text is None:
                text = self._redact(None, "", _text(t_ms, direction, message, event_log.private))
            size = len(text) + 1
            if event_log.bytes + size > MAX_FILE_BYTES and direction != "meta":
                event_log.dropped += 1
                continue
            event_log.bytes += size
            self._texts.setdefault(event_log, []).append(text)
            over = over or (direction == "meta" and "over" in message)
        if over or self._owner.closed or time.monotonic() >= self._due:
            self._flush()
        return ()

    def _flush(self) -> None:
        """Append the lines to their calls' files. What cannot be written is counted in its log."""
        self._due = time.monotonic() + WRITE_SECONDS
        texts, self._texts = self._texts, {}
        for event_log, lines in texts.items():
            try:
                with open(
                    event_log.path, "a", encoding="utf-8", errors="backslashreplace", opener=private
                ) as file:
                    file.write("\n".join([*lines, ""]))
            except OSError as error:
                event_log.dropped += len(lines)
                if not self._failing:
                    log.error("event_log.write_failed", lost=len(lines), error=str(error))
                self._failing = True
            else:
                self._failing = False


_APPEND = b'{"type":"input_audio_buffer.append","audio":"'
_DELTAS = ("response.output_audio.delta", "response.audio.delta")
_OF_A_DELTA = frozenset(
    {
        *("type", "event_id", "response_id", "item_id", "output_index", "content_index"),
        *("delta", "obfuscation"),
    }
)


def _audio_text(t_ms: float, direction: str, message: Any, redact: Redactor) -> str | None:
    """The line of a message that has audio and nothing else, a hundred times a second of a call
    that talks; None for any other."""
    if not isinstance(message, bytes) or b"udio" not in message[:48]:
        return None
    if message.startswith(_APPEND) and message.find(b'"', len(_APPEND)) == len(message) - 2:
        try:
            data = binascii.a2b_base64(message[len(_APPEND) : -2])
        except ValueError:
            return None
        digest = hashlib.sha256(data).hexdigest()[:HASH_DIGITS]
        return (
            f'{{"t_ms":{t_ms},"dir":"{direction}","event":{{"type":"input_audio_buffer.append",'
            f'"audio":{{"bytes":{len(data)},"sha256":"{digest}"}}}}}}'
        )
    try:
        event = orjson.loads(message)
    except orjson.JSONDecodeError:
        return None
    # Ids and numbers are all that stands beside the audio: nothing of them is private.
    if (
        not isinstance(event, dict)
        or event.get("type") not in _DELTAS
        or event.keys() - _OF_A_DELTA
    ):
        return None
    if not all(isinstance(value, str | int) for value in event.values()):
        return None
    event["delta"] = _digest(str(event.get("delta", "")))
    line = {"t_ms": t_ms, "dir": direction, "event": event}
    return redact(None, "", orjson.dumps(line).decode())


def _text(t_ms: float, direction: str, message: Any, private: PrivateDigits) -> str:
    line: dict[str, Any] = {"t_ms": t_ms, "dir": direction}
    if isinstance(message, bytes):
        for key, value in _event(message).items():
            line[key] = private.masked_event(value)
    else:
        line[direction] = message
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _event(message: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(message)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict):
        return {
            "not_json": {"bytes": len(message), "begins": message[:80].decode("utf-8", "replace")}
        }
    kind = event.get("type")
    return {"event": elided(event, isinstance(kind, str) and kind.strip().endswith("audio.delta"))}


def elided(value: Any, delta_is_audio: bool = False) -> Any:
    """A copy of an event without its audio, images and credentials."""
    if isinstance(value, dict):
        return {key: _elided(key, inner, delta_is_audio) for key, inner in value.items()}
    if isinstance(value, list):
        return [elided(inner) for inner in value]
    return value


def _elided(key: str, value: Any, delta_is_audio: bool) -> Any:
    if key in _CREDENTIALS and value is not None:
        return BLANK
    if isinstance(value, str):
        if key == "audio" or (key == "delta" and delta_is_audio):
            return _digest(value)
        if value.startswith("data:") and ";base64," in value[:100]:
            head, _, data = value.partition(",")
            return {"data": head, **_digest(data)}
        return value
    return elided(value)


def _digest(text: str) -> dict[str, Any]:
    try:
        data = binascii.a2b_base64(text)
    except ValueError:
        data = text.encode("utf-8", "surrogatepass")
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()[:HASH_DIGITS]}

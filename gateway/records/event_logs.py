# SPDX-License-Identifier: GPL-2.0-or-later
"""Every event of a call's realtime session, both ways, as lines of JSON beside its record.

A line is ``{"t_ms": ..., "dir": "out", "event": {...}}``: ms since the INVITE on a clock that
never jumps, ``out`` for what the gateway sends and ``in`` for what comes. Audio is elided to its
length and the beginning of its SHA-256, which tells whether two are the same; secrets are blanked.
Audio messages of one direction and part, at most two seconds of them, are one line in the place of
the first, whatever came between them: with the length and hash of all their audio, ``messages``
(how many) and ``until_ms`` (the last).
Lines of a session beside the call's own, as an interpreter's, name it (``session``).
The first and the last line (``meta``) say which call it is and what was left out, ``close`` how
the WebSocket ended.

The event loop only puts messages into a channel; a thread reads, elides and writes them.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import structlog

from gateway.log import BLANK, Redactor
from gateway.realtime.events import AudioDelta, TrackAudio
from gateway.realtime.parse import nested_deeply
from gateway.records.files import BackgroundWriter, Channel, file_stem, private
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


class _Entry:
    """A message, or audio messages of one direction and part."""

    __slots__ = ("at", "audio", "direction", "message", "messages", "part", "session", "until")

    def __init__(self, at: float, direction: str, message: Any, session: str) -> None:
        self.at = self.until = at
        """When the first and the last came or went (``time.monotonic()``)."""
        self.direction = direction
        self.message = message
        self.session = session
        self.messages = 1
        self.audio = bytearray()
        """What is in its messages, where they are audio; hashed on the writer's thread."""

    def begin(self, audio: bytes, part: Any = None) -> None:
        """Further audio of this part may follow."""
        self.part = part
        self.audio += audio

    def add(self, audio: bytes) -> None:
        """Add audio that follows, up to fifty times a second each way.

        It is copied, so that the message's memory is free at once for the next one.
        """
        self.audio += audio
        self.messages += 1
        self.until = monotonic()


class EventLog:
    """The log of one call; a :class:`gateway.realtime.session.Tap` of its session, and of others
    that are told apart by a name."""

    def __init__(
        self,
        path: Path,
        put: Callable[[_Parcel, int], bool],
        private: PrivateDigits,
    ) -> None:
        self.path = path
        self.private = private
        self.dropped = 0
        """Messages that are not in the file."""
        self.bytes = 0
        """Written so far; the writer's thread counts."""
        self.over = False
        self.began = monotonic()
        self._put = put
        self._held: list[_Entry] = []
        self._held_bytes = 0
        self._up: dict[str, _Entry] = {}
        self._down: dict[str, _Entry] = {}
        """Of those held, what further audio of each session is added to."""

    def sent(self, message: bytes, audio: bytes | None = None, session: str = "") -> None:
        """A message to the server; ``audio`` is what it appends, and then all that is in it."""
        if audio is None:
            self._hold("out", message, session)
        elif (entry := self._up.get(session)) is not None:
            entry.add(audio)
        else:
            entry = self._hold("out", message, session)
            self._up[session] = entry
            entry.begin(audio)

    def received(
        self,
        message: bytes,
        delta: AudioDelta | TrackAudio | None = None,
        session: str = "",
    ) -> None:
        """A message from the server, and what it was read as where it is audio."""
        if delta is None:
            self._hold("in", message, session)
            return
        entry = self._down.get(session)
        if entry is not None and entry.part == delta.part:
            entry.add(delta.audio)
        else:
            self._down[session] = entry = self._hold("in", message, session)
            entry.begin(delta.audio, delta.part)

    def closed(self, code: int, reason: str, by_us: bool, session: str = "") -> None:
        """Note that the WebSocket is closed."""
        self._add("close", {"code": code, "reason": reason, "by_us": by_us}, session)

    def begin(self, **facts: Any) -> None:
        """Add the facts that the log begins with, as a ``meta`` line."""
        self._add("meta", facts)

    def end(self) -> None:
        """Add the last line, with the count of messages that were dropped."""
        self.over = True
        self._add("meta", {"dropped": self.dropped, "over": True})

    def as_json(self) -> dict[str, Any]:
        """Return the counters for the call's record."""
        return {"file": self.path.name, "dropped": self.dropped}

    def hand_on(self) -> None:
        """Hand what is held to the thread that writes; what it has no room for is counted."""
        held, size = self._held, self._held_bytes
        self._held, self._held_bytes = [], 0
        self._up, self._down = {}, {}
        if held and not self._put((self, held), size):
            self.dropped += sum(entry.messages for entry in held)

    def _add(self, direction: str, message: Any, session: str = "") -> None:
        self._hold(direction, message, session)
        self.hand_on()

    def _hold(self, direction: str, message: Any, session: str = "") -> _Entry:
        if self._held_bytes > HELD_BYTES:
            self.hand_on()
        entry = _Entry(monotonic(), direction, message, session)
        self._held.append(entry)
        self._held_bytes += len(message) + 100
        return entry


class SessionTap:
    """Tap of a session beside the call's own: its lines have its ``name`` as ``session``."""

    def __init__(self, events: EventLog, name: str) -> None:
        self._events = events
        self._name = name

    def sent(self, message: bytes, audio: bytes | None = None) -> None:
        """Log a message that was sent; ``audio`` is what it appends, if it does."""
        self._events.sent(message, audio, self._name)

    def received(self, message: bytes, delta: AudioDelta | TrackAudio | None = None) -> None:
        """Log a message of the server; ``delta`` is its audio, parsed."""
        self._events.received(message, delta, self._name)

    def closed(self, code: int, reason: str, by_us: bool) -> None:
        """Log the end of the connection."""
        self._events.closed(code, reason, by_us, self._name)


_Parcel = tuple[EventLog, list[_Entry]]

HELD_BYTES = 64 * 1024
"""Bytes of a call that are held until they are handed to the writer, at most for two seconds."""

WRITE_SECONDS = 2.0
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
        self._channel: Channel[_Parcel | None] = writer.channel(
            "event logs", self._write, MAX_WAITING, MAX_WAITING_BYTES
        )
        self._failing = False
        self._open: set[EventLog] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._lines: dict[EventLog, list[tuple[str, int]]] = {}
        """What goes into each file next, and how many messages each line stands for."""

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
        loop = asyncio.get_running_loop()
        made = EventLog(path, self._channel.put, PrivateDigits() if private is None else private)
        made.begin(call_id=call_id, started_at=started_at, **facts)
        self._open.add(made)
        if self._timer is None:
            self._timer = loop.call_later(WRITE_SECONDS, self._hand_on, loop)
        return made

    def _hand_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have all that has happened until now written; called every ``WRITE_SECONDS``."""
        self._open = {one for one in self._open if not one.over}
        for event_log in self._open:
            event_log.hand_on()
        self._channel.put(None)
        self._timer = loop.call_later(WRITE_SECONDS, self._hand_on, loop) if self._open else None

    def _write(self, parcels: list[_Parcel | None]) -> Sequence[_Parcel]:
        """On the writer's thread: a None, or the end of a call, has all that waits written."""
        due = self._owner.closed
        for parcel in parcels:
            if parcel is None:
                due = True
                continue
            event_log, held = parcel
            due = due or event_log.over
            for entry in held:
                text = self._redact(None, "", _text(entry, event_log))
                size = len(text) + 1
                if event_log.bytes + size > MAX_FILE_BYTES and entry.direction != "meta":
                    event_log.dropped += entry.messages
                    continue
                event_log.bytes += size
                self._lines.setdefault(event_log, []).append((text, entry.messages))
        if due:
            self._flush()
        return ()

    def _flush(self) -> None:
        """Append the lines to their calls' files. What cannot be written is counted in its log."""
        waiting, self._lines = self._lines, {}
        for event_log, lines in waiting.items():
            try:
                with open(
                    event_log.path, "a", encoding="utf-8", errors="backslashreplace", opener=private
                ) as file:
                    file.write("\n".join([*(text for text, _messages in lines), ""]))
            except OSError as error:
                event_log.dropped += sum(messages for _text, messages in lines)
                if not self._failing:
                    log.error("event_log.write_failed", lost=len(lines), error=str(error))
                self._failing = True
            else:
                self._failing = False


def _text(entry: _Entry, of: EventLog) -> str:
    """Return the line of an entry. On the writer's thread."""
    t_ms = round(1000 * (entry.at - of.began), 1)
    line: dict[str, Any] = {"t_ms": t_ms, "dir": entry.direction}
    if entry.session:
        line["session"] = entry.session
    if entry.messages > 1:
        first = orjson.loads(entry.message)
        digest = _hashed(entry.audio)
        line["event"] = {key: digest if key in ("audio", "delta") else first[key] for key in first}
        line["messages"] = entry.messages
        line["until_ms"] = round(1000 * (entry.until - of.began), 1)
    elif isinstance(entry.message, bytes):
        for key, value in _event(entry.message).items():
            line[key] = of.private.masked_event(value)
    else:
        line[entry.direction] = entry.message
    try:
        return orjson.dumps(line).decode()
    except TypeError:  # half of a surrogate pair, a number of more than 64 bits
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _event(message: bytes) -> dict[str, Any]:
    """Return a message as an object for the log; one that is no JSON as its length."""
    try:
        event = orjson.loads(message)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict) or nested_deeply(event, message):
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
    """Return a value for the log, without audio and credentials."""
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
    return _hashed(data)


def _hashed(data: bytes | bytearray) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()[:HASH_DIGITS]}

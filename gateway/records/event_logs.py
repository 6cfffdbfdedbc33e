# SPDX-License-Identifier: GPL-2.0-or-later
"""Event logs: the realtime events of a call's sessions, both ways, a line of JSON each.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import structlog

from gateway.log import BLANK, Redactor
from gateway.realtime.events import AudioDelta, TrackAudio
from gateway.realtime.parse import nested_deeply
from gateway.records.files import BackgroundWriter, Channel, append_to, file_stem
from gateway.text import PrivateDigits, json_text

MAX_WAITING = 20_000
"""Batches of entries that wait for the disk, of all calls."""
MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Bytes of them; long answers come in large messages."""
MAX_FILE_BYTES = 256 * 1024 * 1024
"""Bytes of one call: more than a day of talking. Later events are dropped and counted."""
HASH_DIGITS = 16

SUFFIX = ".events.jsonl"

_CREDENTIALS = frozenset({"authorization", "headers"})

log = structlog.get_logger("records")


class _Entry:
    """A line to come: a message, or audio messages of one direction and content part."""

    __slots__ = ("at", "audio", "direction", "message", "messages", "part", "session", "until")

    def __init__(self, at: float, direction: str, message: Any, session: str) -> None:
        self.at = self.until = at
        """When the first and the last message was sent or received (``time.monotonic()``)."""
        self.direction = direction
        self.message = message
        self.session = session
        self.messages = 1
        self.audio = bytearray()
        """Audio of its messages; hashed on the writer's thread."""

    def begin(self, audio: bytes, part: Any = None) -> None:
        """Set the first audio; :meth:`add` takes more of the same content part, ``part`` (response,
        item and index), None for the caller's audio."""
        self.part = part
        self.audio += audio

    def add(self, audio: bytes) -> None:
        """Add the audio of a further message; called up to fifty times a second each way.

        It is copied, so that the message's memory is free at once for the next one.
        """
        self.audio += audio
        self.messages += 1
        self.until = monotonic()


class EventLog:
    """Event log of one call: the :class:`gateway.realtime.session.Tap` of its session.

    Messages of other sessions, as an interpreter's, have a name in ``session``.
    """

    def __init__(
        self,
        path: Path,
        put: Callable[[_Batch, int], bool],
        private: PrivateDigits,
    ) -> None:
        self.path = path
        self.private = private
        self.dropped = 0
        """Number of messages that are not in the file."""
        self.bytes = 0
        """Bytes of the file; counted on the writer's thread."""
        self.over = False
        self.began = monotonic()
        self._put = put
        self._held: list[_Entry] = []
        self._held_bytes = 0
        self._up: dict[str, _Entry] = {}
        self._down: dict[str, _Entry] = {}
        """Entry of those held, by session, that further audio of each direction is added to."""

    def sent(self, message: bytes, audio: bytes | None = None, session: str = "") -> None:
        """Log a message to the server.

        ``audio`` is that of ``input_audio_buffer.append``, None for others: it is added to the
        direction's held line, if there is one.
        """
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
        """Log a message from the server; ``delta`` is the event parsed from it if it is audio,
        whose audio is added to the held line of the same content part."""
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
        """Log the end of the WebSocket, with its close code; ``by_us``: the gateway closed it."""
        self._add("close", {"code": code, "reason": reason, "by_us": by_us}, session)

    def begin(self, **facts: Any) -> None:
        """Queue the first line, ``meta`` with facts about the call."""
        self._add("meta", facts)

    def end(self) -> None:
        """Queue what is held, and the last line, ``meta`` with the number of messages dropped so
        far; the file is written at once."""
        self.over = True
        self._add("meta", {"dropped": self.dropped, "over": True})

    def as_json(self) -> dict[str, Any]:
        """Return the counters for the call's record."""
        return {"file": self.path.name, "dropped": self.dropped}

    def flush(self) -> None:
        """Queue the held entries for the writer; count their messages as dropped if it is full.
        Audio to come begins new lines."""
        held, size = self._held, self._held_bytes
        self._held, self._held_bytes = [], 0
        self._up, self._down = {}, {}
        if held and not self._put((self, held), size):
            self.dropped += sum(entry.messages for entry in held)

    def _add(self, direction: str, message: Any, session: str = "") -> None:
        """Hold an entry, and queue all that are held at once."""
        self._hold(direction, message, session)
        self.flush()

    def _hold(self, direction: str, message: Any, session: str = "") -> _Entry:
        """Add an entry to those held until :meth:`flush`, which is called first if they exceed
        ``HELD_BYTES``; return the entry."""
        if self._held_bytes > HELD_BYTES:
            self.flush()
        entry = _Entry(monotonic(), direction, message, session)
        self._held.append(entry)
        self._held_bytes += len(message) + 100
        return entry


class SessionTap:
    """Tap of a session beside the call's own, as an interpreter's: its lines have its name."""

    def __init__(self, events: EventLog, name: str) -> None:
        self._events = events
        self._name = name

    def sent(self, message: bytes, audio: bytes | None = None) -> None:
        """See :meth:`EventLog.sent`."""
        self._events.sent(message, audio, self._name)

    def received(self, message: bytes, delta: AudioDelta | TrackAudio | None = None) -> None:
        """See :meth:`EventLog.received`."""
        self._events.received(message, delta, self._name)

    def closed(self, code: int, reason: str, by_us: bool) -> None:
        """See :meth:`EventLog.closed`."""
        self._events.closed(code, reason, by_us, self._name)


_Batch = tuple[EventLog, list[_Entry]]

HELD_BYTES = 64 * 1024
"""Bytes of a call's messages that are held until they are queued for the writer."""

WRITE_SECONDS = 2.0
"""Seconds between two writes to a file: to open it costs more than to write into it."""


class EventLogs:
    """Opens the event logs of calls, and writes them on the writer's thread.

    Args:
        folder: of the records; None writes nothing.
        writer: whose thread writes the lines.
        secrets: texts that are replaced in each line.
    """

    def __init__(
        self, folder: Path | None, writer: BackgroundWriter, secrets: Sequence[str] = ()
    ) -> None:
        self._folder = folder
        self._owner = writer
        self._redact = Redactor(secrets)
        self._channel: Channel[_Batch | None] = writer.channel(
            "event logs", self._write, MAX_WAITING, MAX_WAITING_BYTES
        )
        self._failing = False
        self._open: set[EventLog] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._lines: dict[EventLog, list[tuple[str, int]]] = {}
        """Lines to be appended to each file, with the number of messages in each line."""

    def open(
        self,
        call_id: str,
        started_at: str,
        private: PrivateDigits | None = None,
        **facts: Any,
    ) -> EventLog | None:
        """Open the log of a call that begins now, with its first line; return None without a
        folder.

        It is flushed and written every ``WRITE_SECONDS``. On the event loop.

        Args:
            private: digits that are masked in its lines.
            facts: further fields of its first line.
        """
        if self._folder is None:
            return None
        path = self._folder / f"{file_stem(started_at, call_id)}{SUFFIX}"
        loop = asyncio.get_running_loop()
        made = EventLog(path, self._channel.put, PrivateDigits() if private is None else private)
        made.begin(call_id=call_id, started_at=started_at, **facts)
        self._open.add(made)
        if self._timer is None:
            self._timer = loop.call_later(WRITE_SECONDS, self._flush_all, loop)
        return made

    def _flush_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """Queue what the logs of calls in progress hold, and have it written; again after
        ``WRITE_SECONDS`` while there are any."""
        self._open = {one for one in self._open if not one.over}
        for event_log in self._open:
            event_log.flush()
        self._channel.put(None)
        self._timer = loop.call_later(WRITE_SECONDS, self._flush_all, loop) if self._open else None

    def _write(self, batches: list[_Batch | None]) -> Sequence[_Batch]:
        """Format entries and keep their lines; append all lines on a None, at the end of a call, or
        when the writer closes. On the thread.

        An entry that would exceed ``MAX_FILE_BYTES`` is dropped and counted, but for ``meta``, and
        so is one that cannot be formatted.
        Returns nothing to be tried again.
        """
        due = self._owner.closed
        for batch in batches:
            if batch is None:
                due = True
                continue
            event_log, held = batch
            due = due or event_log.over
            for entry in held:
                try:
                    text = self._redact(None, "", _text(entry, event_log))
                except Exception:
                    if not event_log.dropped:  # a line of the log for each call at most
                        log.exception("event_log.write_failed", lost=entry.messages)
                    event_log.dropped += entry.messages
                    continue
                size = len(text) + 1
                if event_log.bytes + size > MAX_FILE_BYTES and entry.direction != "meta":
                    event_log.dropped += entry.messages
                    continue
                event_log.bytes += size
                self._lines.setdefault(event_log, []).append((text, entry.messages))
        if due:
            self._append_lines()
        return ()

    def _append_lines(self) -> None:
        """Append the lines to their files; lines that cannot be written are lost and counted in
        their log, and the first failure is logged."""
        waiting, self._lines = self._lines, {}
        for event_log, lines in waiting.items():
            try:
                append_to(event_log.path, "\n".join([*(text for text, _messages in lines), ""]))
            except OSError as error:
                event_log.dropped += sum(messages for _text, messages in lines)
                if not self._failing:
                    log.error("event_log.write_failed", lost=len(lines), error=str(error))
                self._failing = True
            else:
                self._failing = False


def _text(entry: _Entry, of: EventLog) -> str:
    """Return an entry of the log ``of`` as a line. On the writer's thread."""
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
    return json_text(line)


def _event(message: bytes) -> dict[str, Any]:
    """Return ``event`` of a message's line, elided; or ``not_json`` with its length."""
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
    """Return a copy of an event with digests of audio and images, and without credentials.

    Args:
        delta_is_audio: whether ``delta``, at the top, is audio.
    """
    if isinstance(value, dict):
        return {key: _elided(key, inner, delta_is_audio) for key, inner in value.items()}
    if isinstance(value, list):
        return [elided(inner) for inner in value]
    return value


def _elided(key: str, value: Any, delta_is_audio: bool) -> Any:
    """Return the copy of a value under ``key``: see :func:`elided`."""
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
    """Return length and hash of base64 data."""
    try:
        data = binascii.a2b_base64(text)
    except ValueError:
        data = text.encode("utf-8", "surrogatepass")
    return _hashed(data)


def _hashed(data: bytes | bytearray) -> dict[str, Any]:
    """Return the length of data, and the beginning of its SHA-256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()[:HASH_DIGITS]}

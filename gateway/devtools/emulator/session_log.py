# SPDX-License-Identifier: GPL-2.0-or-later
"""Log of a session's events and audio: in memory for tests, on request in files.

Everything is bounded; what did not fit is counted in :attr:`SessionRecord.left_out`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import wave
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from gateway.devtools.speech import AudioFormat, resample

TRACK = "track"
"""Where :attr:`SessionRecord.sent_items` has the audio of a Live session, which knows no items."""


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """An event that was read or written; ``at`` is ``time.monotonic()`` of that.

    Audio is left out of ``body``; ``audio_bytes`` says how much there was.
    """

    at: float
    type: str
    body: Mapping[str, Any]
    audio_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Truncation:
    """A ``conversation.item.truncate``: what was asked for and how long the item really was."""

    at: float
    item_id: str
    content_index: int
    requested_ms: int
    item_ms: int
    accepted: bool


@dataclass(slots=True)
class SessionRecord:
    """Events, audio and end of one session.

    ``received`` and ``sent_items`` hold audio in the session's own formats, up to
    ``audio_limit`` bytes each; events up to their deques' lengths.
    """

    id: str
    path: str
    model: str
    audio_limit: int
    transcription: bool = False
    """It only transcribes."""
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    client_events: deque[SeenEvent] = field(default_factory=lambda: deque(maxlen=5000))
    """All but ``input_audio_buffer.append``, whose times and lengths are in ``appends``."""
    appends: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=50_000))
    server_events: deque[SeenEvent] = field(default_factory=lambda: deque(maxlen=20_000))
    received: bytearray = field(default_factory=bytearray)
    received_total: int = 0
    sent_items: dict[str, bytearray] = field(default_factory=dict)
    """Audio of each of the agent's items."""
    sent_total: int = 0
    truncations: list[Truncation] = field(default_factory=list)
    deletions: list[str] = field(default_factory=list)
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=1000))
    """Codes of the ``error`` events sent."""
    close_code: int | None = None
    """As the WebSocket ended; 1006 is a connection that was cut."""
    close_reason: str = ""
    left_out: int = 0
    log: FolderLog | None = None
    _pulse: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def sent_track(self) -> bytes:
        """The endless audio of a Live session, as it was sent."""
        return bytes(self.sent_items.get(TRACK, b""))

    @property
    def live(self) -> bool:
        """Whether the connection is open."""
        return self.ended_at is None

    def sent(self, type_: str) -> list[SeenEvent]:
        """The server events of this type that were written, oldest first."""
        return [event for event in self.server_events if event.type == type_]

    def seen(self, type_: str) -> list[SeenEvent]:
        """Return the client events of this type so far, oldest first."""
        return [event for event in self.client_events if event.type == type_]

    async def wait_until(self, condition: Callable[[SessionRecord], bool], within_s: float) -> None:
        """Wait until ``condition`` holds, looked at after each event. Raises ``TimeoutError``."""
        async with asyncio.timeout(within_s):
            while not condition(self):
                self._pulse.clear()
                await self._pulse.wait()

    def note_append(self, data: bytes) -> None:
        """Log appended audio of the caller."""
        now = time.monotonic()
        self.appends.append((now, len(data)))
        self.received_total += len(data)
        if len(self.received) + len(data) <= self.audio_limit:
            self.received += data
        else:
            self.left_out += 1
        if self.log is not None:
            self.log.caller_audio(data)
        self._pulse.set()

    def note_client(self, body: Mapping[str, Any]) -> None:
        """Log a client event other than appended audio."""
        seen = SeenEvent(time.monotonic(), str(body.get("type")), body)
        self.client_events.append(seen)
        if self.log is not None:
            self.log.event("client", seen)
        self._pulse.set()

    def note_server(self, body: Mapping[str, Any], audio: bytes) -> None:
        """Log a sent event; ``audio`` is what it carries, decoded."""
        type_ = str(body["type"])
        if audio:
            body = {key: value for key, value in body.items() if key != "delta"}
            self.sent_total += len(audio)
            kept = self.sent_items.setdefault(str(body.get("item_id", TRACK)), bytearray())
            if self.sent_total <= self.audio_limit:
                kept += audio
            else:
                self.left_out += 1
        seen = SeenEvent(time.monotonic(), type_, body, len(audio))
        self.server_events.append(seen)
        if type_ == "error":
            self.errors.append(str(body["error"]["code"]))
        if self.log is not None:
            self.log.event("server", seen, audio)
        self._pulse.set()

    def note_end(self, code: int | None, reason: str) -> None:
        self.close_code, self.close_reason = code, reason
        self.ended_at = time.monotonic()
        if self.log is not None:
            self.log.close(code, reason)
        self._pulse.set()


class FolderLog:
    """Writes a session to a folder: events to ``ID.jsonl``, caller's audio to ``ID-caller.wav``.

    Lines have ``at`` (seconds since the start), ``from``, and the event with audio replaced by
    its length and hash. Appended audio is summed up in one line before the next event.
    """

    def __init__(self, folder: Path, session_id: str, caller_format: AudioFormat) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines: IO[str] = (folder / f"{session_id}.jsonl").open("w", encoding="utf-8")
        self._wav_path = folder / f"{session_id}-caller.wav"
        self._wav: wave.Wave_write | None = None
        self._format = caller_format
        self._start = time.monotonic()
        self._appended = 0
        self._append_type = "input_audio_buffer.append"

    def caller_format(self, audio_format: AudioFormat, append_type: str | None = None) -> None:
        """Set the format of the caller's audio from now on (a WAV keeps its first rate).

        ``append_type``: the client event that carries it, when it is not the Realtime one.
        """
        self._format = audio_format
        self._append_type = append_type or self._append_type

    def caller_audio(self, data: bytes) -> None:
        if self._wav is None:
            self._wav = wave.open(str(self._wav_path), "wb")  # noqa: SIM115 - closed in close()
            self._wav.setnchannels(1)
            self._wav.setsampwidth(2)
            self._wav.setframerate(self._format.rate)
        pcm = resample(self._format.decode(data), self._format.rate, self._wav.getframerate())
        self._wav.writeframesraw(pcm)
        self._appended += len(data)

    def event(self, side: Literal["client", "server"], seen: SeenEvent, audio: bytes = b"") -> None:
        if self._appended:
            appended = {"type": self._append_type, "audio_bytes": self._appended}
            self._line(seen.at, "client", appended)
            self._appended = 0
        body = dict(seen.body)
        if audio:
            body["audio_bytes"] = len(audio)
            body["audio_sha256"] = hashlib.sha256(audio).hexdigest()[:16]
        self._line(seen.at, side, body)

    def close(self, code: int | None, reason: str) -> None:
        """Add the close code and end both files."""
        end = SeenEvent(time.monotonic(), "close", {"type": "close", "code": code, "why": reason})
        self.event("server", end)
        self._lines.close()
        if self._wav is not None:
            self._wav.close()

    def _line(self, at: float, side: str, body: Mapping[str, Any]) -> None:
        line = {"at": round(at - self._start, 4), "from": side, "event": body}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

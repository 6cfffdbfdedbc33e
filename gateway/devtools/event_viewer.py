# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns an event log into a conversation: words, requests, interruptions and usage, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from gateway.devtools.event_lines import (
    AGENT,
    CALLER,
    ERROR,
    GATEWAY,
    SERVER,
    Entry,
    Line,
    count,
    facts,
    item_words,
    session_words,
    usage_words,
)

_BYTES_PER_MS = {"audio/pcm": 48.0, "pcm16": 48.0}
_G711_BYTES_PER_MS = 8.0
_AUDIO = ("response.output_audio.delta", "response.audio.delta")
_SPOKEN = ("response.output_audio_transcript.done", "response.audio_transcript.done")
_WRITTEN = ("response.output_text.done", "response.text.done")
_QUIET = frozenset(
    {
        "conversation.created",
        "conversation.item.added",
        "conversation.item.created",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.delta",
        "input_audio_buffer.committed",
        "input_audio_buffer.cleared",
        "rate_limits.updated",
        "response.content_part.added",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_audio.done",
        "response.audio.done",
        "response.output_audio_transcript.delta",
        "response.audio_transcript.delta",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.text.delta",
    }
)
"""Events that others tell as well."""


@dataclass(slots=True)
class _Response:
    began: float
    bytes: int = 0
    deltas: int = 0
    first: float | None = None
    words: list[str] = field(default_factory=list)


_LIVE_AUDIO = {"session.input_audio.append": "up", "session.output_audio.delta": "down"}
_LIVE_SIDES = {
    "session.input_transcript.delta": "caller",
    "session.output_transcript.delta": "agent",
}
_LIVE_PAUSE_MS = 800
"""Between two fragments of a side: more than this, and another stretch of speech begins."""
_APPENDS = {
    "session.commentary.append": "asks to say",
    "session.instructions.append": "instructs",
    "session.thinking.append": "lets the model know",
}
_LIVE_QUIET = frozenset(
    {
        "session.commentary.appended",
        "session.instructions.appended",
        "session.thinking.appended",
        "session.output_audio.fixture.playing",
    }
)


@dataclass(slots=True)
class _Stretch:
    """An utterance of one side of a Live session; times are of the session's clock."""

    start_ms: int
    end_ms: int
    words: str


class _LiveTeller:
    """Turns lines of Live sessions into entries; audio is summed up, fragments are joined."""

    def __init__(self) -> None:
        self._began: float | None = None
        """When the session's clock was 0, ms of the log."""
        self._per_ms = _BYTES_PER_MS["audio/pcm"]
        self._audio = {"up": [0, 0], "down": [0, 0]}
        """Messages and bytes of each direction."""
        self._open: dict[str, _Stretch] = {}
        self.confirmed = False
        """Whether ``session.closed`` came: the close code says nothing then."""

    def takes(self, line: Line) -> bool:
        """Count a line of audio, which is summed up at the end; return whether it was one."""
        direction = _LIVE_AUDIO.get(line.type)
        if direction is None:
            return False
        key = "audio" if direction == "up" else "delta"
        self._audio[direction][0] += line.messages
        self._audio[direction][1] += count(line.get(key, "bytes"))
        return True

    def sent(self, line: Line) -> Iterator[Entry]:
        """Yield the entry of a sent event; nothing for those that Realtime sessions have, too."""
        at, kind = line.t_ms, line.type
        if kind == "session.start":
            yield Entry(at, GATEWAY, kind, session_words(line))
        elif kind in _APPENDS:
            yield Entry(at, GATEWAY, f"{_APPENDS[kind]} “{line.words('content')}”")
        elif kind == "response.item.create":
            yield Entry(at, GATEWAY, item_words(line), line.words("item", "call_id"))
        elif kind == "session.output_audio.fixture.play":
            ms = count(line.get("audio", "bytes")) / _BYTES_PER_MS["audio/pcm"]
            yield Entry(at, GATEWAY, f"plays a clip of {ms / 1000:.1f} s")

    def came(self, line: Line) -> Iterator[Entry] | None:
        """Return the entries of a received event; None for those of Realtime sessions only."""
        kind = line.type
        if kind in _LIVE_SIDES:
            return self._fragment(line)
        tell = self._TELL.get(kind)
        if tell is not None:
            return tell(self, line)
        return iter(()) if kind in _LIVE_QUIET else None

    def over(self, at: float) -> Iterator[Entry]:
        """Yield open utterances and the sum of audio, as a session ended."""
        for side in list(self._open):
            yield self._spoken(side)
        (up, up_bytes), (down, down_bytes) = self._audio["up"], self._audio["down"]
        if up or down:
            text = f"audio: {up_bytes / self._per_ms / 1000:.1f} s up, "
            text += f"{down_bytes / self._per_ms / 1000:.1f} s down"
            yield Entry(at, SERVER, text, f"{up} and {down} messages")
        self._audio = {"up": [0, 0], "down": [0, 0]}

    def _fragment(self, line: Line) -> Iterator[Entry]:
        side = _LIVE_SIDES[line.type]
        start, end = count(line.get("start_ms")), count(line.get("end_ms"))
        stretch = self._open.get(side)
        if stretch is not None and start - stretch.end_ms > _LIVE_PAUSE_MS:
            yield self._spoken(side)
            stretch = None
        if stretch is None:
            self._open[side] = _Stretch(start, end, line.words("delta"))
        else:
            stretch.words += line.words("delta")
            stretch.end_ms = max(end, stretch.end_ms)

    def _spoken(self, side: str) -> Entry:
        stretch = self._open.pop(side)
        at = (self._began or 0.0) + stretch.start_ms
        length = f"{(stretch.end_ms - stretch.start_ms) / 1000:.1f} s"
        who = CALLER if side == "caller" else AGENT
        return Entry(at, who, f"“{stretch.words.strip()}”", f"{length}, as transcribed")

    def _started(self, line: Line) -> Iterator[Entry]:
        yield from self.over(line.t_ms)
        self._began, self.confirmed = line.t_ms, False
        format_ = line.get("session", "audio", "format")
        if isinstance(format_, dict):
            width = 2 if format_.get("type") == "audio/pcm" else 1
            self._per_ms = (count(format_.get("rate")) or 8000) * width / 1000
        yield Entry(line.t_ms, SERVER, line.type, session_words(line))

    def _delegated(self, line: Line) -> Iterator[Entry]:
        target = line.words("delegation", "target")
        told = "the backend" if target == "responses" else f"the {target or 'client'}"
        yield Entry(line.t_ms, AGENT, f"hands a task to {told}", line.words("delegation", "id"))

    def _backend(self, line: Line) -> Iterator[Entry]:
        at, kind = line.t_ms, line.words("event", "type")
        if kind == "response.output_item.done":
            if line.words("event", "item", "type") == "function_call":
                name = line.words("event", "item", "name")
                arguments = line.words("event", "item", "arguments")
                yield Entry(at, AGENT, f"calls {name}({arguments})")
        elif kind == "response.output_text.done":
            yield Entry(at, SERVER, f"backend: “{line.words('event', 'text')}”")
        elif kind == "response.completed":
            usage = usage_words(line.get("event", "response", "usage"))
            yield Entry(at, SERVER, "backend has answered", usage)
        elif kind in ("response.failed", "response.incomplete"):
            error = line.words("event", "response", "error", "message")
            reason = line.words("event", "response", "incomplete_details", "reason")
            yield Entry(at, ERROR, f"backend: {kind}", error or reason, True)

    def _used(self, line: Line) -> Iterator[Entry]:
        ratio = line.get("context_window", "usage_ratio")
        context = f"context {ratio:.1%} full" if isinstance(ratio, float | int) else ""
        yield Entry(line.t_ms, SERVER, f"{line.get('usage', 'seconds')} s so far", context)

    def _closed(self, line: Line) -> Iterator[Entry]:
        yield from self.over(line.t_ms)
        self.confirmed = True
        reason = line.words("reason")
        text = f"session closed: {reason}"
        used = f"{line.get('usage', 'seconds')} s"
        yield Entry(line.t_ms, SERVER, text, used, reason != "close_requested")

    _TELL: ClassVar[Mapping[str, Callable[[_LiveTeller, Line], Iterator[Entry]]]] = {
        "session.started": _started,
        "session.delegation.created": _delegated,
        "response.event": _backend,
        "session.usage.updated": _used,
        "session.closed": _closed,
    }


class _Teller:
    def __init__(self) -> None:
        self._live = _LiveTeller()
        self._responses: dict[str, _Response] = {}
        self._sent_from: float | None = None
        self._sent_bytes = self._sent = 0
        self._in = self._out = _G711_BYTES_PER_MS

    def tell(self, lines: Iterable[Line]) -> Iterator[Entry]:
        last = 0.0
        for line in lines:
            last = line.t_ms
            if line.type == "input_audio_buffer.append":
                self._append(line)
                continue
            if self._live.takes(line):
                continue
            entries = list(self._one(line))
            if entries:
                yield from self._audio_so_far()
                yield from entries
        yield from self._audio_so_far()
        yield from self._live.over(last)
        for name, response in self._responses.items():
            yield Entry(
                last,
                ERROR,
                f"response {name} has no end in this log",
                trouble=True,
                detail=self._spoken(response),
            )

    def _append(self, line: Line) -> None:
        if self._sent_from is None:
            self._sent_from = line.t_ms
        self._sent += line.messages
        self._sent_bytes += count(line.get("audio", "bytes"))

    def _audio_so_far(self) -> Iterator[Entry]:
        if self._sent_from is not None:
            ms = self._sent_bytes / self._in
            yield Entry(
                self._sent_from, CALLER, f"audio, {ms / 1000:.1f} s", f"{self._sent} messages"
            )
        self._sent_from, self._sent, self._sent_bytes = None, 0, 0

    def _one(self, line: Line) -> Iterator[Entry]:
        at, kind = line.t_ms, line.type
        if line.direction == "meta":
            yield from _meta(line)
        elif line.direction == "close":
            code, who = line.get("code"), "by us" if line.get("by_us") else "by the server"
            trouble = code not in (1000, 1001) and not self._live.confirmed
            yield Entry(
                at, SERVER, f"closed {who}: {code} {line.words('reason')}".rstrip(), trouble=trouble
            )
        elif not kind:
            yield Entry(at, ERROR, f"{line.direction}: no event", line.text[:200], True)
        elif line.direction == "out":
            yield from list(self._live.sent(line)) or [_sent(line)]
        elif kind == "error":
            error = line.get("error")
            told = error if isinstance(error, dict) else {}
            text = f"error {told.get('code') or told.get('type') or ''}: {told.get('message', '')}"
            keys = ("param", "event_id", "client_event_id")
            where = [f"{key} {told[key]}" for key in keys if told.get(key)]
            yield Entry(at, ERROR, text, ", ".join(where), True)
        else:
            yield from self._came(line, kind)

    def _came(self, line: Line, kind: str) -> Iterator[Entry]:
        live = self._live.came(line)
        if live is not None:
            yield from live
            return
        at = line.t_ms
        response = self._responses.get(line.words("response_id"))
        if kind in _AUDIO:
            if response is not None:
                response.bytes += count(line.get("delta", "bytes"))
                response.deltas += line.messages
                response.first = at if response.first is None else response.first
        elif kind in _SPOKEN or kind in _WRITTEN:
            words = line.words("transcript") or line.words("text")
            if response is not None:
                response.words.append(words)
            else:
                yield Entry(at, AGENT, f"“{words}”")
        elif kind == "response.created":
            self._responses[line.words("response", "id")] = _Response(at)
        elif kind == "response.done":
            yield from self._done(line)
        elif kind in ("session.created", "session.updated"):
            self._formats(line)
            yield Entry(at, SERVER, kind, session_words(line))
        elif kind == "input_audio_buffer.speech_started":
            yield Entry(
                at, CALLER, "begins to speak", f"at {line.get('audio_start_ms')} ms of audio"
            )
        elif kind == "input_audio_buffer.speech_stopped":
            yield Entry(at, CALLER, "stops speaking", f"at {line.get('audio_end_ms')} ms of audio")
        elif kind.endswith("input_audio_transcription.completed"):
            yield Entry(at, CALLER, f"“{line.words('transcript').strip()}”", "as transcribed")
        elif kind.endswith("input_audio_transcription.failed"):
            yield Entry(at, ERROR, "transcription failed", line.words("error", "message"), True)
        elif kind in ("conversation.item.truncated", "conversation.item.deleted"):
            yield Entry(at, SERVER, kind, facts(line, "item_id", "audio_end_ms"))
        elif kind not in _QUIET:
            yield Entry(at, SERVER, kind, facts(line, "item_id", "response_id"))

    def _done(self, line: Line) -> Iterator[Entry]:
        name, status = line.words("response", "id"), line.words("response", "status")
        response = self._responses.pop(name, None) or _Response(line.t_ms)
        reason = line.words("response", "status_details", "reason")
        error = line.get("response", "status_details", "error")
        output = line.get("response", "output")
        items = (
            [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
        )
        calls = [item for item in items if item.get("type") == "function_call"]
        if response.words or response.bytes:
            at = response.began if response.first is None else response.first
            words = " ".join(f"“{words}”" for words in response.words) or "(no words)"
            yield Entry(at, AGENT, words, self._spoken(response))
        for call in calls:
            yield Entry(line.t_ms, AGENT, f"calls {call.get('name')}({call.get('arguments', '')})")
        text = f"response {status}" + (f" ({reason})" if reason else "")
        if isinstance(error, dict):
            text += (
                f": {error.get('code') or error.get('type')} {error.get('message') or ''}".rstrip()
            )
        yield Entry(
            line.t_ms,
            ERROR if status == "failed" else SERVER,
            text,
            usage_words(line.get("response", "usage")),
            status == "failed" or status == "incomplete",
        )

    def _spoken(self, response: _Response) -> str:
        if not response.bytes:
            return ""
        first = (
            "" if response.first is None else f", first {response.first - response.began:.0f} ms on"
        )
        return (
            f"{response.bytes / self._out / 1000:.1f} s of audio in {response.deltas} parts{first}"
        )

    def _formats(self, line: Line) -> None:
        for side in ("input", "output"):
            kind = line.get("session", "audio", side, "format", "type")
            kind = kind or line.get("session", f"{side}_audio_format")
            if isinstance(kind, str):
                rate = _BYTES_PER_MS.get(kind, _G711_BYTES_PER_MS)
                if side == "input":
                    self._in = rate
                else:
                    self._out = rate


def entries_of(lines: Iterable[Line]) -> Iterator[Entry]:
    """Yield the entries of a log, runs of audio as one.

    Those of a session beside the call's own begin with its name; the caller there is whom that
    session hears.
    """
    of: dict[str, list[Line]] = {}
    for line in lines:
        of.setdefault(line.session, []).append(line)
    for session, told in of.items():
        for entry in _Teller().tell(told):
            yield replace(entry, text=f"{session}: {entry.text}") if session else entry


def _meta(line: Line) -> Iterator[Entry]:
    dropped = count(line.get("dropped"))
    if dropped:
        yield Entry(line.t_ms, ERROR, f"{dropped} messages are not in this log", trouble=True)
    if line.words("call_id"):
        where = f"route {line.words('route')}, {line.words('started_at')}"
        yield Entry(line.t_ms, GATEWAY, f"call {line.words('call_id')}", where)


def _sent(line: Line) -> Entry:
    at, kind = line.t_ms, line.type
    if kind == "session.update":
        return Entry(at, GATEWAY, kind, session_words(line))
    if kind == "conversation.item.create":
        return Entry(at, GATEWAY, item_words(line), line.words("item", "call_id"))
    if kind == "response.create":
        asked = line.words("response", "instructions")
        return Entry(at, GATEWAY, "asks for a response", f"“{asked}”" if asked else "")
    told = facts(line, "item_id", "content_index", "audio_end_ms", "response_id")
    return Entry(at, GATEWAY, kind, told)

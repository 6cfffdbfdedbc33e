# SPDX-License-Identifier: GPL-2.0-or-later
"""An event log told as a conversation: what was said, asked, cut and paid, in its order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.text import json_of, printable, printable_in


class EventLogError(Exception):
    """A file that is no event log; the message names file, line and mistake."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: ``direction`` is in, out, close or meta; ``body`` its event or facts."""

    number: int
    t_ms: float
    direction: str
    body: dict[str, Any]
    text: str
    messages: int = 1
    """Of audio, one after the other, that the line stands for."""

    @property
    def type(self) -> str:
        """The event's type, empty for other lines."""
        kind = self.body.get("type") if self.direction in ("in", "out") else None
        return kind.strip() if isinstance(kind, str) else ""

    def get(self, *path: str | int) -> Any:
        """What is at ``path`` of the body, None when it is not there."""
        node: Any = self.body
        for part in path:
            if isinstance(node, dict) and isinstance(part, str):
                node = node.get(part)
            elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                node = node[part]
            else:
                return None
        return node

    def words(self, *path: str | int) -> str:
        """The same as text, empty when it is none."""
        value = self.get(*path)
        return value if isinstance(value, str) else ""


def read_lines(file: Path) -> Iterator[Line]:
    """The lines of a log. Raises EventLogError; the last line may be cut, as a crash leaves it."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            broken = ""
            for number, text in enumerate(stream, start=1):
                if broken:
                    raise EventLogError(broken)
                if not text.strip():
                    continue
                line = _line(number, text.rstrip("\n"))
                if line is None:
                    broken = f"{file}:{number}: is no line of an event log"
                    if number == 1:
                        raise EventLogError(broken)
                    continue
                yield line
    except OSError as error:
        raise EventLogError(f"{file}: cannot be read: {error.strerror or error}") from None


def _line(number: int, text: str) -> Line | None:
    try:
        value = printable_in(json_of(text))
        direction = value["dir"]
        key = "event" if direction in ("in", "out") and "event" in value else direction
        body = value.get(key, value.get("not_json", {}))
        if not isinstance(body, dict) or direction not in ("in", "out", "close", "meta"):
            return None
        messages = _count(value.get("messages")) or 1
        return Line(number, float(value["t_ms"]), direction, body, printable(text), messages)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


GATEWAY, SERVER, CALLER, AGENT, ERROR = "gateway", "server", "caller", "agent", "error"

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


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened; ``who`` is one of the names above, ``trouble`` for errors."""

    t_ms: float
    who: str
    text: str
    detail: str = ""
    trouble: bool = False


@dataclass(slots=True)
class _Response:
    began: float
    bytes: int = 0
    deltas: int = 0
    first: float | None = None
    words: list[str] = field(default_factory=list)


class _Teller:
    def __init__(self) -> None:
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
            entries = list(self._one(line))
            if entries:
                yield from self._audio_so_far()
                yield from entries
        yield from self._audio_so_far()
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
        self._sent_bytes += _count(line.get("audio", "bytes"))

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
            trouble = code not in (1000, 1001)
            yield Entry(
                at, SERVER, f"closed {who}: {code} {line.words('reason')}".rstrip(), trouble=trouble
            )
        elif not kind:
            yield Entry(at, ERROR, f"{line.direction}: no event", line.text[:200], True)
        elif line.direction == "out":
            yield _sent(line)
        elif kind == "error":
            error = line.get("error")
            told = error if isinstance(error, dict) else {}
            text = f"error {told.get('code') or told.get('type') or ''}: {told.get('message', '')}"
            where = [f"{key} {told[key]}" for key in ("param", "event_id") if told.get(key)]
            yield Entry(at, ERROR, text, ", ".join(where), True)
        else:
            yield from self._came(line, kind)

    def _came(self, line: Line, kind: str) -> Iterator[Entry]:
        at = line.t_ms
        response = self._responses.get(line.words("response_id"))
        if kind in _AUDIO:
            if response is not None:
                response.bytes += _count(line.get("delta", "bytes"))
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
            yield Entry(at, SERVER, kind, _session(line))
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
            yield Entry(at, SERVER, kind, _facts(line, "item_id", "audio_end_ms"))
        elif kind not in _QUIET:
            yield Entry(at, SERVER, kind, _facts(line, "item_id", "response_id"))

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
            _usage(line.get("response", "usage")),
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
    """The entries of a log; runs of audio become one."""
    return _Teller().tell(lines)


def _meta(line: Line) -> Iterator[Entry]:
    dropped = _count(line.get("dropped"))
    if dropped:
        yield Entry(line.t_ms, ERROR, f"{dropped} messages are not in this log", trouble=True)
    if line.words("call_id"):
        facts = f"route {line.words('route')}, {line.words('started_at')}"
        yield Entry(line.t_ms, GATEWAY, f"call {line.words('call_id')}", facts)


def _sent(line: Line) -> Entry:
    at, kind = line.t_ms, line.type
    if kind == "session.update":
        return Entry(at, GATEWAY, kind, _session(line))
    if kind == "conversation.item.create":
        return Entry(at, GATEWAY, _item(line), line.words("item", "call_id"))
    if kind == "response.create":
        asked = line.words("response", "instructions")
        return Entry(at, GATEWAY, "asks for a response", f"“{asked}”" if asked else "")
    facts = _facts(line, "item_id", "content_index", "audio_end_ms", "response_id")
    return Entry(at, GATEWAY, kind, facts)


def _item(line: Line) -> str:
    kind = line.words("item", "type")
    if kind == "function_call_output":
        return f"answers a tool: {line.words('item', 'output')}"
    content = line.get("item", "content")
    words = [
        str(part.get("text") or part.get("transcript") or part.get("type"))
        for part in (content if isinstance(content, list) else [])
        if isinstance(part, dict)
    ]
    return f"{line.words('item', 'role') or kind} item: “{' '.join(words)}”"


def _session(line: Line) -> str:
    session = line.get("session")
    if not isinstance(session, dict):
        return ""
    tools = session.get("tools")
    facts = [
        str(session.get("id") or ""),
        str(session.get("model") or ""),
        str(line.get("session", "audio", "output", "voice") or session.get("voice") or ""),
        str(line.get("session", "audio", "output", "format", "type") or ""),
        f"{len(tools)} tools" if isinstance(tools, list) and tools else "",
    ]
    words = session.get("instructions")
    if isinstance(words, str) and words:
        facts.append(
            json.dumps(words if len(words) < 80 else words[:77] + "...", ensure_ascii=False)
        )
    return ", ".join(fact for fact in facts if fact)


def _usage(usage: Any) -> str:
    if not isinstance(usage, dict):
        return ""
    return (
        f"{_count(usage.get('input_tokens'))} tokens in, {_count(usage.get('output_tokens'))} out"
    )


def _facts(line: Line, *keys: str) -> str:
    return ", ".join(f"{key} {line.get(key)}" for key in keys if line.get(key) is not None)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0

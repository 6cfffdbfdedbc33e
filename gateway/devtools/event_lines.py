# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the lines of an event log; short words for items, sessions and usage in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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
    session: str = ""
    """Name of a session beside the call's own."""

    @property
    def type(self) -> str:
        """The event's type, empty for other lines."""
        kind = self.body.get("type") if self.direction in ("in", "out") else None
        return kind.strip() if isinstance(kind, str) else ""

    def get(self, *path: str | int) -> Any:
        """Return what is at ``path`` of the body, None when there is nothing."""
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
        """Return the text at ``path`` of the body, empty when there is none."""
        value = self.get(*path)
        return value if isinstance(value, str) else ""


def read_lines(file: Path) -> Iterator[Line]:
    """Yield the lines of a log; one that a crash left incomplete at the end is skipped.

    Raises EventLogError.
    """
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
        messages = count(value.get("messages")) or 1
        at, session = float(value["t_ms"]), str(value.get("session") or "")
        return Line(number, at, direction, body, printable(text), messages, session)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


GATEWAY, SERVER, CALLER, AGENT, ERROR = "gateway", "server", "caller", "agent", "error"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened; ``who`` is one of the names above, ``trouble`` for errors."""

    t_ms: float
    who: str
    text: str
    detail: str = ""
    trouble: bool = False


def item_words(line: Line) -> str:
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


def session_words(line: Line) -> str:
    """Return a session object in short: id, model, voice, format, tools, instructions."""
    session = line.get("session")
    if not isinstance(session, dict):
        return ""
    tools = session.get("tools") or line.get("session", "delegation", "responses", "tools")
    audio = line.get("session", "audio", "output", "format", "type")
    told = [
        str(session.get("id") or ""),
        str(session.get("model") or ""),
        str(line.get("session", "audio", "output", "voice") or session.get("voice") or ""),
        str(audio or line.get("session", "audio", "format", "type") or ""),
        f"{len(tools)} tools" if isinstance(tools, list) and tools else "",
    ]
    words = session.get("instructions")
    if isinstance(words, str) and words:
        told.append(
            json.dumps(words if len(words) < 80 else words[:77] + "...", ensure_ascii=False)
        )
    return ", ".join(fact for fact in told if fact)


def usage_words(usage: Any) -> str:
    """Return input and output tokens of a usage object; empty when it is none."""
    if not isinstance(usage, dict):
        return ""
    return f"{count(usage.get('input_tokens'))} tokens in, {count(usage.get('output_tokens'))} out"


def facts(line: Line, *keys: str) -> str:
    """Return ``key value`` of each of ``keys`` that the event has, separated by commas."""
    return ", ".join(f"{key} {line.get(key)}" for key in keys if line.get(key) is not None)


def count(value: Any) -> int:
    """Return ``value`` where it is an int, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0

"""Reader of event logs. Tolerant: what it does not know it hands on."""

from __future__ import annotations

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
        return Line(number, float(value["t_ms"]), direction, body, printable(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None

# SPDX-License-Identifier: GPL-2.0-or-later
"""Problems of configuration files, with file, line and key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KeyPath = tuple[str | int, ...]
"""Path of a value: names of tables and keys, and 0-based indexes into arrays."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake: ``line`` counts from 1, ``key`` is the full dotted path ("" for the file)."""

    file: Path
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return f"{where}{self.key}: {self.message}" if self.key else f"{where}{self.message}"


class ConfigError(Exception):
    """A configuration or dialplan that cannot be used; carries every problem that was found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class MisplacedError(ValueError):
    """Raised by a validator of a whole table: what is wrong is at ``below`` in it."""

    def __init__(self, below: KeyPath, message: str) -> None:
        super().__init__(message)
        self.below = below


def dotted(path: KeyPath) -> str:
    """``("sip", "listen", 0)`` as the author would say it: ``sip.listen[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part and part.replace("-", "").isidentifier() else f'"{part}"'
            text += f".{name}" if text else name
    return text

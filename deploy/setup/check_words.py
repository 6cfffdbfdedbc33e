# SPDX-License-Identifier: GPL-2.0-or-later
"""Find words that are not to be used, sources without a licence line, modules that are too long.

The words are those that this project once invented and that nobody in telephony knows; the glossary
(docs/glossary.md) has the word to use. Prints ``file:line: word`` for each, ``file:1: ...`` for a
source without its SPDX line and for a module of more than 500 lines, docstrings not counted, and
exits with 1 if there is one: `make lint`.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

_ANYWHERE = """
errand errands rung rungs legside sessionside upkeep lifeline toolbox keytaker quietports dialler
parting
"""
ANYWHERE = frozenset(_ANYWHERE.split())
"""Not to be written at all."""

_IN_NAMES = """
aside asides course ear keeping carriers rescue afterwards ladder prober journal
laws hurry purses brothers farewell untold unsaid silence_log
"""
IN_NAMES = frozenset(_IN_NAMES.split())
"""English words, which prose may use; no name of ours may have one in it."""

EXEMPT = (
    "deploy/setup/check_words.py",
    "gateway/config/renamed.py",  # old keys of the configuration, and their names of today
    "tests/unit/config/test_renamed.py",
)
TEXTS = (".py", ".md", ".toml", ".sh", ".service", ".cfg", ".conf", ".yml", ".html")

LICENCE = "SPDX-License-Identifier: GPL-2.0-or-later"
SOURCES = (".py", ".sh", ".cpp", ".hpp", ".h", ".i")
MOST_LINES = 500
"""Of a module in ``gateway/``, docstrings not counted: what is longer is more than one thing."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CODE_SPAN = re.compile(r"`([^`\n]+)`")


def words(text: str) -> set[str]:
    """The words of a text, those within snake_case and CamelCase names too."""
    return {word.lower() for word in _WORD.findall(text)}


def names_of(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Names and where they stand: Python's identifiers; in the manual, what is written as code."""
    if file.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            plain = token.type == tokenize.STRING and re.fullmatch(r"\W?\w+\W?", token.string)
            if token.type == tokenize.NAME or plain:
                yield token.start[0], token.string
    elif file.suffix == ".md":
        for number, line in enumerate(text.splitlines(), 1):
            for span in _CODE_SPAN.findall(line):
                yield number, span


def found_in(file: Path) -> Iterator[tuple[int, str]]:
    """Each word that is not to be there, with its line."""
    text = file.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        for word in words(line) & ANYWHERE:
            yield number, word
    if not str(file).startswith("tests/"):
        for number, name in names_of(file, text):
            for word in words(name) & IN_NAMES:
                yield number, word


def lacks_licence(file: Path) -> bool:
    """Whether a source that is not empty has no SPDX line first, or second after ``#!``."""
    lines = file.read_text(encoding="utf-8").splitlines()
    first = lines[1:2] if lines and lines[0].startswith("#!") else lines[:1]
    return bool(lines) and not any(LICENCE in line for line in first)


def lines_of(file: Path) -> int:
    """Count the lines of a module that are not of a docstring, of a function, class or field."""
    text = file.read_text(encoding="utf-8")
    strings = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node.value.value, str)
    )
    return len(text.splitlines()) - sum(
        (node.end_lineno or node.lineno) - node.lineno + 1 for node in strings
    )


def main() -> int:
    """Look through all files that git knows."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout
    found = 0
    for name in listed.splitlines():
        file = Path(name)
        ours = name.startswith(("gateway/", "deploy/", "tests/")) and file.suffix in SOURCES
        if ours and file.is_file() and lacks_licence(file):
            print(f"{name}:1: the line {LICENCE} is missing")
            found += 1
        if name.startswith("gateway/") and file.suffix == ".py" and file.is_file():
            count = lines_of(file)
            if count > MOST_LINES:
                print(f"{name}:1: {count} lines, where {MOST_LINES} are allowed")
                found += 1
        if name in EXEMPT or file.suffix not in TEXTS or not file.is_file():
            continue
        for number, word in sorted(set(found_in(file))):
            print(f"{name}:{number}: {word}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

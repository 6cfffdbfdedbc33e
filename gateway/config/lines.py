"""Which line of a TOML file each key stands on.

The standard library's parser tells no positions. But it does say whether a text is complete:
a statement that is still open (an array, a multi-line string) does not parse. So the file is cut
into statements by parsing it piece by piece, and each piece is asked which keys it sets. All that
is known of TOML's grammar here is how a header begins and how a statement of many lines ends.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from gateway.config.problems import KeyPath

_CLOSINGS = ("]", '"""', "'''")
"""What the last line of a statement that spans lines must hold."""


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map every key path of the valid TOML ``text`` to its line, counted from 1.

    Elements of an array that spans lines have their own lines; all keys of an inline table have
    the line of the statement that holds it. The empty path is line 1.
    """
    found: dict[KeyPath, int] = {(): 1}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, chunk, value in _statements(text):
        if chunk[0].lstrip().startswith("["):
            table = _enter(value, arrays)
            for depth in range(1, len(table) + 1):
                found.setdefault(table[:depth], line)
            continue
        for path, offset in _leaves(chunk, value):
            for depth in range(1, len(path) + 1):
                found.setdefault(table + path[:depth], line + offset)
    return found


def _statements(text: str) -> Iterator[tuple[int, list[str], dict[str, Any]]]:
    """Cut valid TOML into statements: first line, its lines, and what it means on its own."""
    chunk: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        chunk.append(line)
        if len(chunk) > 1 and not any(closing in line for closing in _CLOSINGS):
            continue  # still inside; trying each line of a long prompt would take its time squared
        try:
            value = tomllib.loads("\n".join(chunk))
        except tomllib.TOMLDecodeError:
            continue
        if value:
            yield number - len(chunk) + 1, chunk, value
        chunk = []


def _enter(header: dict[str, Any], arrays: dict[KeyPath, int]) -> KeyPath:
    """Turn a header parsed alone into the path of the table it opens; count array elements."""
    path: KeyPath = ()
    node: Any = header
    while isinstance(node, dict) and node:
        ((name, node),) = node.items()
        path = (*path, name)
        if isinstance(node, list):
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
        if isinstance(node, list):
            break
    return path


def _leaves(chunk: list[str], value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Every path below a statement, with the number of lines below the statement's first."""
    if isinstance(value, dict):
        if path:
            yield path, 0
        for name, inner in value.items():
            yield from _leaves(chunk, inner, (*path, name))
        return
    yield path, 0
    if not isinstance(value, list):
        return
    offsets = _element_offsets(chunk, path, len(value))
    for index, inner in enumerate(value):
        for below, _ in _leaves([], inner, (*path, index)):
            yield below, offsets[index]


def _element_offsets(chunk: list[str], path: KeyPath, count: int) -> list[int]:
    """The line of each element of a statement's array, found by closing the array early."""
    offsets: list[int] = []
    first_free = 0
    for end in range(len(chunk) if len(chunk) > 1 else 0):
        try:
            node: Any = tomllib.loads("\n".join([*chunk[: end + 1], "]"]))
            for part in path:
                node = node[part]
        except (tomllib.TOMLDecodeError, KeyError, IndexError, TypeError):
            continue
        for _ in range(len(offsets), len(node)):
            offsets.append(_first_content(chunk, first_free, end))
        first_free = end + 1
    return [*offsets, *[0] * (count - len(offsets))][:count]


def _first_content(chunk: list[str], start: int, end: int) -> int:
    for offset in range(start, end):
        text = chunk[offset].strip()
        if text and not text.startswith("#"):
            return offset
    return end

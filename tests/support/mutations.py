# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages, packets and events with something wrong, the same ones for the same seed."""

from __future__ import annotations

import copy
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

PIECES = (
    b"%s%s%n", b"\x00", b"\xff\xfe", b"999999999999999999999", b"-1", b"0", b"4294967296",
    b"<", b">", b'"', b"\\", b";;", b"@", b":", b"[::1]", b"[", b",", b"\r\n", b"\r\n ", b"=",
    b"/", b"?", b"%", b"a" * 300, b" ", b"\t", b"z9hG4bK", b"(", b")", b"SIP/2.0", b"tel:", b"*",
)  # fmt: skip
NUMBERS = (
    b"0", b"-1", b"65536", b"2147483648", b"4294967295", b"99999999999999999999", b"1e9", b"",
)  # fmt: skip


def mutated(chance: random.Random, message: bytes) -> bytes:
    """The message with one to six things changed: bytes, pieces, lines, numbers, or its end."""
    changed = bytearray(message)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if not changed:
            break
        _MUTATIONS[chance.randrange(len(_MUTATIONS))](chance, changed)
    return bytes(changed[:60_000])


def _flip(chance: random.Random, message: bytearray) -> None:
    message[chance.randrange(len(message))] = chance.randrange(256)


def _insert(chance: random.Random, message: bytearray) -> None:
    at = chance.randrange(len(message))
    message[at:at] = chance.choice(PIECES)


def _remove(chance: random.Random, message: bytearray) -> None:
    at = chance.randrange(len(message))
    del message[at : at + chance.randrange(1, 30)]


def _replace(chance: random.Random, message: bytearray) -> None:
    at = chance.randrange(len(message))
    message[at : at + chance.randrange(1, 12)] = chance.choice(PIECES)


def _repeat_line(chance: random.Random, message: bytearray) -> None:
    lines = bytes(message).split(b"\r\n")
    lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    message[:] = b"\r\n".join(lines)


def _drop_line(chance: random.Random, message: bytearray) -> None:
    lines = bytes(message).split(b"\r\n")
    del lines[chance.randrange(len(lines))]
    message[:] = b"\r\n".join(lines)


def _odd_value(chance: random.Random, message: bytearray) -> None:
    lines = bytes(message).split(b"\r\n")
    at = chance.randrange(len(lines))
    name, colon, _value = lines[at].partition(b":" if b":" in lines[at] else b"=")
    lines[at] = name + colon + chance.choice(PIECES)
    message[:] = b"\r\n".join(lines)


def _cut(chance: random.Random, message: bytearray) -> None:
    del message[chance.randrange(len(message)) :]


def _odd_number(chance: random.Random, message: bytearray) -> None:
    numbers = list(re.finditer(rb"\d+", bytes(message)))
    if numbers:
        number = chance.choice(numbers)
        message[number.start() : number.end()] = chance.choice(NUMBERS)


_MUTATIONS = (
    _flip, _insert, _remove, _replace, _repeat_line, _drop_line, _odd_value, _cut, _odd_number,
)  # fmt: skip


def rtp(chance: random.Random, number: int) -> bytes:
    """Something like RTP (RFC 3550 section 5.1): headers, types and lengths at random."""
    kind = chance.choice((0, 0, 0, 101, 101, 8, 13, 127, chance.randrange(128)))
    first = chance.choice((0x80, 0x80, 0x90, 0xA0, 0x8F, chance.randrange(256)))
    header = struct.pack(
        "!BBHII",
        first,
        kind | chance.choice((0, 0x80)),
        chance.choice((number & 0xFFFF, chance.randrange(65536))),
        chance.choice((number * 160 & 0xFFFFFFFF, chance.getrandbits(32))),
        chance.choice((1, 1, 1, chance.getrandbits(32))),
    )
    sizes = (0, 1, 3, 4, 80, 160, 160, 240, 320, 480, 800, 1400, chance.randrange(1440))
    packet = header + chance.randbytes(chance.choice(sizes))
    return mutated(chance, packet)[:1450] if chance.random() < 0.2 else packet


def rtcp(chance: random.Random) -> bytes:
    """Something like RTCP (RFC 3550 section 6.4): reports whose parts belong to nothing."""

    def part(kind: int, count: int, words: int) -> bytes:
        return struct.pack("!BBH", 0x80 | count, kind, words) + chance.randbytes(4 * words)

    kinds = (200, 201, 202, 203, 204, 205, 206, 207, 192, chance.randrange(256))
    packet = part(
        chance.choice(kinds),
        chance.randrange(32),
        chance.choice((0, 1, 5, 6, 7, 12, chance.randrange(60))),
    )
    if chance.random() < 0.5:
        packet += part(202, chance.randrange(3), chance.randrange(1, 9))
    return (mutated(chance, packet) if chance.random() < 0.3 else packet)[:1400]


LEFT_OUT = object()
"""In place of a value: the field is not there."""


def paths_in(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths (keys and indexes) of all fields and entries of an event."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*before, key)
        if isinstance(inner, dict | list):
            yield from paths_in(inner, (*before, key))


def damaged(event: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of the event with this value at that path, or with nothing there."""
    copied = copy.deepcopy(event)
    target: Any = copied
    for key in path[:-1]:
        target = target[key]
    if value is LEFT_OUT:
        del target[path[-1]]
    else:
        target[path[-1]] = copy.deepcopy(value)
    return copied

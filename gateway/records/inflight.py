# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots in a memory-mapped file, one for each call that has no closed row yet.

Writing a slot copies some hundred bytes into memory: it needs no system call and waits for no disk,
so it is done before the first provisional response. The kernel keeps the pages when the process is
killed. Each process has a file of its own and holds a lock on it; a file that nobody locks was left
by a process that died, and its slots are the calls that were cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import secrets
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from gateway.records.files import private
from gateway.text import unicode_in

MAGIC = b"calls-1\n"
HEADER_BYTES = 4096
SLOT_BYTES = 2048
SLOTS = 4096
"""Calls in progress, and ended ones whose rows wait for a disk; 8 MiB of file."""
MAX_TEXT = 200
"""Characters kept of one text in a slot: a URI may be longer than the slot."""

SUFFIX = ".slots"

_TIME = struct.Struct("<d")
_LENGTH = struct.Struct("<I")

log = structlog.get_logger("records")


@dataclass(frozen=True, slots=True)
class CutCall:
    """A call that was up when its process died: what its slot says, and when that still ran."""

    call_id: str
    facts: Mapping[str, Any]
    alive_at: float
    """Unix time (s)."""


class InFlight:
    """The slots of this process. :meth:`take` and :meth:`free` may be called from any thread.

    Args:
        folder: for the file.
        slots: how many calls there may be; further ones have no slot, and are counted.
    """

    def __init__(self, folder: Path, slots: int = SLOTS) -> None:
        self.missed = 0
        """Calls that had no slot."""
        self.path = folder / f"{secrets.token_hex(8)}{SUFFIX}"
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}
        self._free = list(range(slots))
        self._map: mmap.mmap | None = None
        self._descriptor: int | None = None
        self._size = HEADER_BYTES + slots * SLOT_BYTES

    def open(self) -> None:
        """Make and lock the file. Raises OSError."""
        # Under another name until it is locked: an unlocked one is that of a dead process.
        made = self.path.with_suffix(".new")
        descriptor = private(os.fspath(made), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # With its blocks: a page of a sparse file that finds the disk full would be a SIGBUS.
            os.posix_fallocate(descriptor, 0, self._size)
            pages = mmap.mmap(descriptor, self._size)
            made.rename(self.path)
        except OSError:
            os.close(descriptor)
            made.unlink(missing_ok=True)
            raise
        with self._lock:
            old, self._map = self._map, pages
            old_descriptor, self._descriptor = self._descriptor, descriptor
            if old is not None:
                pages[:] = old[:]
                old.close()
            else:
                pages[: len(MAGIC)] = MAGIC
        if old_descriptor is not None:
            os.close(old_descriptor)

    @property
    def lost(self) -> bool:
        """Whether somebody removed the file; :meth:`open` makes it anew, with its slots."""
        return self._map is not None and not self.path.exists()

    def take(self, call_id: str, facts: Mapping[str, Any]) -> None:
        """Keep a call's facts until :meth:`free`. Never raises and never waits for a disk."""
        text = _fitting(call_id, facts)
        with self._lock:
            pages = self._map
            if pages is None or call_id in self._used:
                return
            if not self._free:
                self.missed += 1
                return
            index = self._used[call_id] = self._free.pop()
            start = HEADER_BYTES + index * SLOT_BYTES
            pages[start + _LENGTH.size : start + _LENGTH.size + len(text)] = text
            # The length last: a slot that is half written is none.
            pages[start : start + _LENGTH.size] = _LENGTH.pack(len(text))

    def free(self, call_id: str) -> None:
        """Give the slot back: the call's closed row is on the disk."""
        with self._lock:
            index = self._used.pop(call_id, None)
            if index is None or self._map is None:
                return
            start = HEADER_BYTES + index * SLOT_BYTES
            self._map[start : start + _LENGTH.size] = _LENGTH.pack(0)
            self._free.append(index)

    def alive(self, now: float) -> None:
        """Note that the process still runs; ``now`` is Unix time (s)."""
        with self._lock:
            if self._map is not None:
                self._map[len(MAGIC) : len(MAGIC) + _TIME.size] = _TIME.pack(now)

    def close(self) -> None:
        """Remove the file when no call is in it; else it is left for the next start."""
        with self._lock:
            pages, self._map = self._map, None
            descriptor, self._descriptor = self._descriptor, None
            if pages is not None:
                pages.close()
            if not self._used:
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def _fitting(call_id: str, facts: Mapping[str, Any]) -> bytes:
    """Return facts of a call as bytes that fit into a slot."""
    kept = {
        name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in facts.items()
    }
    text = json.dumps(unicode_in({"call_id": call_id, **kept})).encode()
    if len(text) > SLOT_BYTES - _LENGTH.size:
        text = json.dumps({"call_id": call_id}).encode()
    return text


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """Slots of a process that died; their file is locked by us."""

    path: Path
    calls: tuple[CutCall, ...]
    descriptor: int

    def remove(self) -> None:
        """Delete it, once its calls have their rows."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def leave(self) -> None:
        """Release the file as it is, for the next process to find."""
        os.close(self.descriptor)


def left_behind(folder: Path) -> Iterator[LeftBehind]:
    """Each file that no process holds. Its consumer removes or leaves it."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = path.read_bytes()
        except OSError:
            os.close(descriptor)
            continue
        yield LeftBehind(path, tuple(_calls_in(content)), descriptor)


def _calls_in(content: bytes) -> Iterator[CutCall]:
    """Yield the calls in the slots of a process that has ended."""
    if not content.startswith(MAGIC):
        return
    (alive_at,) = _TIME.unpack_from(content, len(MAGIC))
    for start in range(HEADER_BYTES, len(content) - SLOT_BYTES + 1, SLOT_BYTES):
        (length,) = _LENGTH.unpack_from(content, start)
        if not 0 < length <= SLOT_BYTES - _LENGTH.size:
            continue
        begin = start + _LENGTH.size
        try:
            facts = json.loads(content[begin : begin + length])
            call_id = str(facts.pop("call_id"))
        except (ValueError, KeyError, AttributeError):
            log.error("records.slot_unreadable", file="slots", at=start)
            continue
        yield CutCall(call_id, facts, alive_at)

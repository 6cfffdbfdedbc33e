"""What reached the caller's ear, frame by frame: the emulator's event log against the recording.

The demo's call is A-law, where every byte survives decoding and encoding (u-law has two zeros), and
the emulator sends a delta for each 20 ms and logs its hash. So a frame that was heard is one whose
hash is found in the recording, and the last one tells how much of an answer was heard.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.audio.g711 import BYTES_PER_MS, FRAME_BYTES, FRAME_MS, Codec

_AGREE = 5
"""Frames in a row's order that make a place in the recording credible: a tenth of a second."""

_SILENCE = hashlib.sha256(Codec.PCMA.silence * FRAME_BYTES).hexdigest()[:16]


@dataclass(slots=True)
class Item:
    """An answer as the emulator sent it: a hash for each 20 ms, ``""`` for a shorter rest."""

    item_id: str
    frames: list[str] = field(default_factory=list)
    bytes: int = 0

    @property
    def ms(self) -> int:
        """Its length, ms, as the protocol counts: whole ones."""
        return self.bytes // BYTES_PER_MS


@dataclass(slots=True)
class EventLog:
    """What the demo needs of a session's event log."""

    items: dict[str, Item] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    """Items that the emulator confirmed as truncated, and at which ms."""
    said: list[str] = field(default_factory=list)
    """Texts that the gateway sent as the caller's words: the digits."""
    errors: list[str] = field(default_factory=list)


def read_events(file: Path) -> EventLog:
    """Read a session's ``*.jsonl``. Raises OSError, ValueError."""
    log = EventLog()
    for line in file.read_text("utf-8").splitlines():
        event = json.loads(line)["event"]
        match event.get("type"):
            case "response.output_audio.delta":
                item = log.items.setdefault(event["item_id"], Item(event["item_id"]))
                whole = event["audio_bytes"] == FRAME_BYTES
                item.frames.append(event["audio_sha256"] if whole else "")
                item.bytes += event["audio_bytes"]
            case "conversation.item.truncated":
                log.truncated[event["item_id"]] = event["audio_end_ms"]
            case "conversation.item.create":
                log.said += _texts(event.get("item") or {})
            case "error":
                log.errors.append(str(event["error"].get("code")))
    return log


def _texts(item: Mapping[str, Any]) -> list[str]:
    parts: Iterable[Mapping[str, Any]] = item.get("content") or ()
    return [str(part["text"]) for part in parts if part.get("type") == "input_text"]


@dataclass(frozen=True, slots=True)
class Heard:
    """How much of an item was heard: at least and at most, since silent frames cannot be told."""

    least_ms: int
    most_ms: int
    matched: int
    """Frames found byte for byte; below ``least_ms`` only where the network lost some."""

    def agrees(self, played_ms: int) -> bool:
        """Whether the gateway's count is what was heard."""
        return self.least_ms <= played_ms <= self.most_ms

    def __str__(self) -> str:
        if self.least_ms == self.most_ms:
            return f"{self.least_ms:,} ms"
        return f"{self.least_ms:,} to {self.most_ms:,} ms (the end is silent)"


class HeardAudio:
    """A recording in which frames can be looked up."""

    def __init__(self, heard: bytes) -> None:
        """Takes A-law; half a second of work for a minute of it."""
        self.places: dict[str, list[int]] = {}
        for at in range(len(heard) - FRAME_BYTES + 1):
            digest = hashlib.sha256(heard[at : at + FRAME_BYTES]).hexdigest()[:16]
            if digest != _SILENCE:
                self.places.setdefault(digest, []).append(at)


def heard_of(item: Item, heard_audio: HeardAudio) -> Heard:
    """How much of ``item`` is in the recording.

    Frames follow each other, so most of them agree on where the item begins; a loss on the way
    moves the rest by a jitter buffer's step, and a frame counts wherever some others agree with it.
    """
    found = [
        (at - number * FRAME_BYTES, number)
        for number, digest in enumerate(item.frames)
        for at in heard_audio.places.get(digest, ())
    ]
    votes = Counter(begin for begin, _ in found)
    numbers = {number for begin, number in found if votes[begin] >= min(_AGREE, len(item.frames))}
    if not numbers:
        return Heard(0, 0, 0)
    last = max(numbers)
    after = last + 1
    while after < len(item.frames) and item.frames[after] == _SILENCE:
        after += 1
    # A rest shorter than a frame is filled up by the gateway: its bytes were heard, then silence.
    rest = after == len(item.frames) - 1 and not item.frames[after]
    most = item.ms if after >= len(item.frames) or rest else after * FRAME_MS
    return Heard((last + 1) * FRAME_MS, max(most, (last + 1) * FRAME_MS), len(numbers))

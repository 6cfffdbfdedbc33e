"""The playout ledger: what of each answer the caller heard, to the byte.

The realtime server believes that the caller heard all it sent. On a telephone line the client
owns playback, so the client has to say where an answer was cut
(``conversation.item.truncate``). The ledger cuts each part (item, content index) into whole
20 ms frames for the playout queue; told how many frames came back unplayed, it knows what was
heard of each part, since frames leave the queue in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gateway.audio.g711 import BYTES_PER_MS, FRAME_BYTES

PartKey = tuple[str, int]
"""``(item_id, content_index)``: what a truncation names."""

_CLOSED_PARTS = 256
"""Parts remembered after their cut, to drop what still comes of them; far more than one answer
has, and a late delta belongs to the latest."""


@dataclass(slots=True)
class Part:
    """Audio of one part as far as it has come; counts in G.711 bytes and 20 ms frames."""

    response_id: str
    key: PartKey
    received: int = 0
    frames: int = 0
    rest: bytes = b""
    done: bool = False

    @property
    def received_ms(self) -> int:
        """Audio that came from the server, ms rounded down."""
        return self.received // BYTES_PER_MS


@dataclass(frozen=True, slots=True)
class Heard:
    """What the caller heard of one part by the time playout was cut."""

    response_id: str
    item_id: str
    content_index: int
    played_ms: int
    received_ms: int
    complete: bool
    """Everything was heard, and no more was to come."""


class Ledger:
    """The parts of one call that are not known to have been heard to their end.

    Args:
        silence: one byte of silence in the call's law; fills the last frame of a part.
    """

    def __init__(self, silence: bytes) -> None:
        self._silence = silence
        self._parts: deque[Part] = deque()
        self._closed: deque[PartKey] = deque(maxlen=_CLOSED_PARTS)
        self.dropped_bytes = 0
        """Audio that came after its part had been cut."""

    def receive(self, response_id: str, key: PartKey, audio: bytes) -> bytes:
        """Take a delta; returns the whole frames that are now due for playout (may be empty).

        Audio of another part ends the one before: its last frame is filled up with silence.
        """
        if key in self._closed:
            self.dropped_bytes += len(audio)
            return b""
        due = b""
        part = self._parts[-1] if self._parts else None
        if part is None or part.key != key:
            due = self._fill(part) if part is not None else b""
            part = Part(response_id, key)
            self._parts.append(part)
        part.received += len(audio)
        audio = part.rest + audio
        whole = len(audio) // FRAME_BYTES * FRAME_BYTES
        part.rest = audio[whole:]
        part.frames += whole // FRAME_BYTES
        return due + audio[:whole]

    def finish(self, key: PartKey) -> bytes:
        """No more audio of this part; returns its filled last frame, if it has one."""
        part = self._find(key)
        if part is None or part.done:
            return b""
        part.done = True
        return self._fill(part)

    def finish_response(self, response_id: str) -> bytes:
        """No more audio of any part of this response; returns their filled last frames."""
        due = b""
        for part in self._parts:
            if part.response_id == response_id and not part.done:
                part.done = True
                due += self._fill(part)
        return due

    def refused(self, frames: int) -> None:
        """The last frames returned did not fit the queue: that part is cut where it stands."""
        for part in reversed(self._parts):
            taken = min(frames, part.frames)
            part.frames -= taken
            frames -= taken
            part.rest = b""
            self._closed.append(part.key)
            if frames == 0:
                return

    def drained(self) -> None:
        """The queue ran empty: every part that is done has been heard to its end."""
        self._parts = deque(part for part in self._parts if not part.done)

    def flush(self, unplayed_frames: int) -> list[Heard]:
        """Playout was cut with this many frames unplayed; says what was heard of each part.

        Only parts that the server may think were heard further are of interest: those not heard
        to their end, or still being sent. All parts are closed; more audio of them is dropped.
        """
        heard: list[Heard] = []
        for part in reversed(self._parts):
            unplayed = min(unplayed_frames, part.frames)
            unplayed_frames -= unplayed
            played = min(part.received, (part.frames - unplayed) * FRAME_BYTES)
            heard.append(
                Heard(
                    response_id=part.response_id,
                    item_id=part.key[0],
                    content_index=part.key[1],
                    played_ms=played // BYTES_PER_MS,
                    received_ms=part.received_ms,
                    complete=part.done and played == part.received,
                )
            )
            self._closed.append(part.key)
        self._parts.clear()
        heard.reverse()
        return heard

    def was_cut(self, item_id: str) -> bool:
        """Whether a part of this item was cut; the server has been told of it then."""
        return any(key[0] == item_id for key in self._closed)

    def __bool__(self) -> bool:
        """Whether there is a part not known to have been heard to its end."""
        return bool(self._parts)

    @property
    def first_item(self) -> str:
        """The item that is heard first of those that are left; empty without one."""
        return self._parts[0].key[0] if self._parts else ""

    def _find(self, key: PartKey) -> Part | None:
        return next((part for part in reversed(self._parts) if part.key == key), None)

    def _fill(self, part: Part) -> bytes:
        if not part.rest:
            return b""
        frame = part.rest + self._silence * (FRAME_BYTES - len(part.rest))
        part.rest = b""
        part.frames += 1
        return frame

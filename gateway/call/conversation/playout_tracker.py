# SPDX-License-Identifier: GPL-2.0-or-later
"""Playout tracker: how much of each response the caller has heard, to the byte.

The realtime server assumes that the caller heard all it sent. On a telephone line the client owns
playback, so it has to report where a response was interrupted (``conversation.item.truncate``). The
tracker divides each part (item, content index) into whole 20 ms frames for the playout queue, which
it does not touch itself: it counts what its callers put there. From the number of frames that a
flush left unplayed it knows what was heard of each part, since frames leave in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gateway.audio import BYTES_PER_MS, FRAME_MS

PartKey = tuple[str, int]
"""``(item_id, content_index)``: what a truncation names."""

PAST = "past/"
"""Prefix of the ids of responses whose session is over and that are still queued: once for each
session that has ended since."""

MAX_PARTS = 64
"""Parts remembered, not counting those still to be heard: late audio of a part that was cut, which
is dropped, belongs to one of the latest."""

MAX_UNENDED = 4 * MAX_PARTS
"""The same of parts that were heard and that the server does not end."""


@dataclass(slots=True)
class _Part:
    """Counts (bytes) of the audio of one content part."""

    response_id: str
    key: PartKey
    received: int = 0
    heard: int = 0
    """Bytes known to have been handed to RTP."""
    done: bool = False
    """All audio of it was received."""
    cut: bool = False
    """Audio that still comes is dropped."""
    told: bool = False
    """The cut was reported; nothing more is to be reported of this part."""
    past: int = 0
    """How many sessions have ended since it came; 0: it is of the present one."""

    @property
    def known_heard(self) -> bool:
        """Whether everything received so far is known to have been handed to RTP; what was queued
        is known only once the queue ran empty or was flushed."""
        return self.heard == self.received

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left to be heard or reported: its cut was reported, or it was
        received and is known to have been heard to its end."""
        return self.told or (self.done and self.known_heard)


@dataclass(slots=True)
class _QueuedFrames:
    """Consecutive frames of one part in the playout queue."""

    part: _Part
    frames: int
    audio: int
    """Bytes of the part in them: fewer than they hold where the last one is padded."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the caller heard of one content part when playout was stopped. "Heard" is: handed to
    RTP."""

    response_id: str
    item_id: str
    content_index: int
    played_ms: int
    received_ms: int
    complete: bool
    """All of it was received and heard."""
    item_played_ms: int
    item_received_ms: int
    """Of all parts of the item together."""
    past: int = 0
    """How many sessions have ended since it came; 0: it is of the present one."""


class PlayoutTracker:
    """Cuts audio deltas into 20 ms frames, and knows how much of each content part was handed to
    RTP.

    The last incomplete frame of a part is kept until more audio of it, or its end, comes.

    Args:
        silence: one byte of silence in the session's codec; fills the last frame of a part.
        bytes_per_ms: of the session's audio.
    """

    def __init__(self, silence: bytes, bytes_per_ms: int = BYTES_PER_MS) -> None:
        self._silence = silence
        self._bytes_per_ms = bytes_per_ms
        self._frame_bytes = bytes_per_ms * FRAME_MS
        self._parts: dict[PartKey, _Part] = {}
        self._past: list[_Part] = []
        """Parts of sessions that are over, until all of them are heard or reported."""
        self._queue: deque[_QueuedFrames] = deque()
        self._open: _Part | None = None
        self._rest = b""
        """The incomplete frame of the open part."""
        self.dropped_bytes = 0
        """Audio that came after its part had been cut."""

    def receive(self, response_id: str, key: PartKey, audio: bytes) -> bytes:
        """Take an audio delta of the part ``key``; return the whole frames to be queued now, which
        may be none, and count them as queued. What is left of less than 20 ms is kept.

        Where the audio before was of another part, the incomplete frame of that part comes first in
        what is returned, filled with silence. Audio of a part that was cut is counted in
        ``dropped_bytes`` only. Audio after the end of its part (:meth:`finish`) opens the part
        again. A key with another response id is a new part; the old one is forgotten, and is not
        reported any more.
        """
        if not audio:
            return b""
        part = self._parts.get(key)
        if part is None or part.response_id != response_id:  # some servers use ids again
            part = self._add_part(response_id, key)
        if part.cut:
            self.dropped_bytes += len(audio)
            return b""
        due = b"" if self._open is part else self._close_part()
        self._open = part
        part.done = False
        part.received += len(audio)
        size = self._frame_bytes
        if self._rest or len(audio) % size:
            audio = self._rest + audio
            whole = len(audio) // size * size
            self._rest = audio[whole:]
            audio = audio[:whole]
        self._add_frames(part, len(audio) // size, len(audio))
        return due + audio if due else audio

    def finish(self, key: PartKey) -> bytes:
        """End this part: all its audio was received. Return its incomplete frame, filled with
        silence and counted as queued; empty without one."""
        part = self._parts.get(key)
        if part is None:
            return b""
        part.done = True
        return self._close_part() if self._open is part else b""

    def finish_response(self, response_id: str) -> bytes:
        """End all parts of this response: all their audio was received. Return its incomplete
        frame, filled with silence and counted as queued; empty without one."""
        for part in self._parts.values():
            if part.response_id == response_id:
                part.done = True
        begun = self._open
        return self._close_part() if begun is not None and begun.response_id == response_id else b""

    def finish_all(self) -> bytes:
        """End all parts: all their audio was received, and their session is over, so that their
        ids may come again; those of their responses get the prefix ``PAST``, also those that have
        it. Return the incomplete frame, filled with silence and counted as queued; empty without
        one."""
        rest = self._close_part()
        queued = (queued.part for queued in self._queue)
        for part in {id(part): part for part in (*self._all_parts, *queued)}.values():
            part.done = True
            part.past += 1
            part.response_id = PAST + part.response_id
        self._past = [*self._all_parts]
        self._parts.clear()
        return rest

    def on_refused(self, frames: int) -> None:
        """Take the last ``frames`` frames off the count of the queue, which they did not fit. The
        rest of their parts is dropped: the incomplete frame, and audio still to come. The next
        :meth:`on_drained` or :meth:`flush` returns what was heard of these parts."""
        while frames > 0 and self._queue:
            queued = self._queue[-1]
            taken = min(frames, queued.frames)
            frames -= taken
            queued.frames -= taken
            queued.audio = min(queued.audio, queued.frames * self._frame_bytes)
            queued.part.cut = True
            if queued.part is self._open:
                self._open, self._rest = None, b""
            if queued.frames == 0:
                self._queue.pop()

    def on_drained(self) -> list[Heard]:
        """Count all queued audio as heard, since the queue ran empty.

        Returns what was heard of parts of which frames did not fit the queue (:meth:`on_refused`),
        once; other parts need no report.
        """
        for queued in self._queue:
            queued.part.heard += queued.audio
        self._queue.clear()
        return self._cut_and_report([p for p in self._all_parts if p.cut and not p.finished])

    def flush(self, unplayed_frames: int) -> list[Heard]:
        """Reckon what was heard from the number of frames that a flush left unplayed, the last ones
        of the queue; return it for each part that was not known to be received and heard to its
        end, and of which no cut was reported before.

        A part that now proves to have been heard to its end has ``complete``. Audio of these parts
        that comes later is dropped, also of a complete one, as is the incomplete frame.
        """
        unfinished = [part for part in self._all_parts if not part.finished]
        for queued in reversed(self._queue):
            unplayed = min(unplayed_frames, queued.frames)
            unplayed_frames -= unplayed
            queued.part.heard += min(queued.audio, (queued.frames - unplayed) * self._frame_bytes)
        self._queue.clear()
        self._open, self._rest = None, b""
        return self._cut_and_report(unfinished)

    def knows(self, item_id: str) -> bool:
        """Return whether audio of this item was received, and a part of the item is still
        remembered (``MAX_PARTS``)."""
        return any(key[0] == item_id for key in self._parts)

    @property
    def unfinished(self) -> bool:
        """Whether some part is not known to have been received and heard to its end, and no cut of
        it was reported."""
        return any(not part.finished for part in self._all_parts)

    def received_ms(self, item_id: str) -> int:
        """Return the audio (ms) of this item received so far, all its parts together, without what
        came after a cut; 0 where no part of it is remembered."""
        parts = (part for key, part in self._parts.items() if key[0] == item_id)
        return sum(part.received for part in parts) // self._bytes_per_ms

    def response_received_ms(self, response_id: str) -> int | None:
        """Return the audio (ms) of this response received so far, without what came after a cut;
        None where no part of it is remembered."""
        parts = [part for part in self._parts.values() if part.response_id == response_id]
        return sum(part.received for part in parts) // self._bytes_per_ms if parts else None

    def heard_ms(self, response_id: str) -> int:
        """Return the audio (ms) of this response, all its parts together, that is known to have
        been handed to RTP; what is being played counts once the queue is empty or flushed. 0 where
        no part of the response is remembered."""
        parts = (part for part in self._parts.values() if part.response_id == response_id)
        return sum(part.heard for part in parts) // self._bytes_per_ms

    def heard_ms_by(self, response_id: str, played_ms: float) -> int:
        """Return the audio (ms) of this response that was handed to RTP (:meth:`heard_ms`), also
        where it is not known yet.

        Args:
            played_ms: what was played since the queue was last empty or flushed.
        """
        left, audio = int(played_ms) // FRAME_MS, 0
        for queued in self._queue:
            frames = min(left, queued.frames)
            left -= frames
            if queued.part.response_id == response_id:
                audio += min(queued.audio, frames * self._frame_bytes)
        return self.heard_ms(response_id) + audio // self._bytes_per_ms

    def is_queued(self, response_id: str) -> bool:
        """Return whether audio of this response was queued since the queue was last empty or
        flushed; it may all have been played since, while audio behind it is still queued."""
        return any(queued.part.response_id == response_id for queued in self._queue)

    @property
    def queued_responses(self) -> set[str]:
        """Ids of the responses of which audio was queued since the queue was last empty or flushed
        (:meth:`is_queued`); some may have been played since. None of a session that is over."""
        return {queued.part.response_id for queued in self._queue if not queued.part.past}

    @property
    def first_item(self) -> str:
        """Id of the item of the first audio that was queued since the queue was last empty or
        flushed; "" where none was."""
        return self._queue[0].part.key[0] if self._queue else ""

    @property
    def _all_parts(self) -> tuple[_Part, ...]:
        """All parts that are remembered, those of sessions that are over first."""
        return (*self._past, *self._parts.values())

    def _add_part(self, response_id: str, key: PartKey) -> _Part:
        """Add a part, and remove one of the same key. From ``MAX_PARTS`` on the oldest finished one
        is removed; from ``MAX_UNENDED`` on, if none is finished, the oldest that was all heard,
        since a server need not tell the end of any. Parts that are still to be heard stay, however
        many there are."""
        self._parts.pop(key, None)
        if len(self._parts) >= MAX_PARTS:
            parts = self._parts.items()
            oldest = next((k for k, part in parts if part.finished), None)
            if oldest is None and len(self._parts) >= MAX_UNENDED:
                heard = (k for k, part in parts if part is not self._open and part.known_heard)
                oldest = next(heard, None)
            if oldest is not None:
                del self._parts[oldest]
        part = self._parts[key] = _Part(response_id, key)
        return part

    def _add_frames(self, part: _Part, frames: int, audio: int) -> None:
        """Count frames of a part as queued.

        Args:
            audio: bytes of the part in them; fewer than they hold where the last is filled with
                silence.
        """
        if frames == 0:
            return
        queued = self._queue[-1] if self._queue else None
        if (
            queued is None
            or queued.part is not part
            or queued.audio < queued.frames * self._frame_bytes
        ):
            queued = _QueuedFrames(part, 0, 0)
            self._queue.append(queued)
        queued.frames += frames
        queued.audio += audio

    def _close_part(self) -> bytes:
        """Close the open part, if there is one: return its incomplete frame, filled with silence,
        and count it as queued; empty without one. Further audio of the part begins a new frame."""
        part, rest = self._open, self._rest
        self._open, self._rest = None, b""
        if part is None or not rest:
            return b""
        self._add_frames(part, 1, len(rest))
        return rest + self._silence * (self._frame_bytes - len(rest))

    def _cut_and_report(self, parts: list[_Part]) -> list[Heard]:
        """Cut these parts, once the queue is cleared: their audio that the server sends from now on
        is dropped. Return what was heard of each, with the totals of its item over all parts that
        are remembered, and mark them as reported; which of them still are to be, callers decide.
        Forget the parts of past sessions once all of those are finished."""
        totals: dict[tuple[int, str], tuple[int, int]] = {}
        for part in self._all_parts:
            item = (part.past, part.key[0])
            heard, received = totals.get(item, (0, 0))
            totals[item] = heard + part.heard, received + part.received
        for part in parts:
            part.cut = part.told = True
        if all(part.finished for part in self._past):
            self._past.clear()
        return [
            Heard(
                response_id=part.response_id,
                item_id=part.key[0],
                content_index=part.key[1],
                played_ms=part.heard // self._bytes_per_ms,
                received_ms=part.received // self._bytes_per_ms,
                complete=part.done and part.known_heard,
                item_played_ms=totals[part.past, part.key[0]][0] // self._bytes_per_ms,
                item_received_ms=totals[part.past, part.key[0]][1] // self._bytes_per_ms,
                past=part.past,
            )
            for part in parts
        ]

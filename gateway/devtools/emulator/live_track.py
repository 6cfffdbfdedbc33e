# SPDX-License-Identifier: GPL-2.0-or-later
"""The output track of a Live session: what is said and played, and silence between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.devtools.emulator.script import Answer
from gateway.devtools.emulator.speech import AudioFormat


@dataclass(slots=True)
class Utterance:
    """Something to be said, or a fixture: ``audio`` in the session's format."""

    audio: bytes
    text: str = ""
    answer: Answer = field(default_factory=Answer)
    began: Callable[[], None] | None = None
    ended: Callable[[], None] | None = None
    fixture: bool = False
    cuttable: bool = True
    taken: int = 0
    """Bytes of it that were sent."""
    start_ms: int = 0


class Track:
    """Utterances in turn. ``begun`` is called with each as its first byte is taken."""

    def __init__(
        self, audio_format: AudioFormat, chunk_ms: int, begun: Callable[[Utterance], None]
    ) -> None:
        self._format = audio_format
        self._chunk_ms = chunk_ms
        self._begun = begun
        self._queue: deque[Utterance] = deque()
        self._held = bytearray()
        self._held_until_ms: float | None = None

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def fixture(self) -> bool:
        """Whether a fixture plays, or waits to."""
        return any(one.fixture for one in self._queue)

    def put(self, utterance: Utterance) -> None:
        """Say or play something after what is on the track."""
        self._queue.append(utterance)

    def cut(self) -> None:
        """Stop speaking; what was not sent is never sent. A fixture goes on."""
        self._queue = deque(one for one in self._queue if one.fixture or not one.cuttable)
        self._held_until_ms = None

    def sent_until_ms(self, one: Utterance) -> int:
        """The session's time to which ``one`` was sent."""
        return one.start_ms + self._format.length_ms(one.taken)

    def take(self, position_ms: int) -> list[bytes]:
        """The chunks to send as the clock reaches ``position_ms``: one, as a rule.

        None while an answer stalls, several after it and for a burst.
        """
        size = self._format.bytes_for(self._chunk_ms)
        audio = bytearray()
        while len(audio) < size and self._queue:
            one = self._queue[0]
            if not one.taken:
                offset_ms = self._format.length_ms(len(audio))
                one.start_ms = position_ms - self._chunk_ms + offset_ms
                self._begun(one)
            wanted = len(one.audio) if one.answer.burst else size - len(audio)
            part = one.audio[one.taken : one.taken + wanted]
            if one.answer.stall_at_ms is not None:
                stall_at = self._format.bytes_for(one.answer.stall_at_ms)
                if one.taken <= stall_at < one.taken + len(part):
                    self._held_until_ms = position_ms + one.answer.stall_s * 1000
            one.taken += max(1, len(part))
            audio += part
            if one.taken >= len(one.audio):
                self._queue.popleft()
                if one.ended is not None:
                    one.ended()
        if len(audio) < size:
            audio += self._format.silence(self._chunk_ms)[: size - len(audio)]
        self._held += audio
        if self._held_until_ms is not None and position_ms < self._held_until_ms:
            return []
        audio, self._held, self._held_until_ms = self._held, bytearray(), None
        return [bytes(audio[start : start + size]) for start in range(0, len(audio), size)]

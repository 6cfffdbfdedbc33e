"""When something was heard, from the levels of the 20 ms frames."""

from __future__ import annotations

from gateway.audio.g711 import FRAME_MS
from gateway.devtools.scripted_caller.report import Span
from gateway.devtools.scripted_caller.script import SPEECH_DBFS

PAUSE_MS = 300
"""A pause shorter than this is inside a sentence, for the report's spans."""


class Speech:
    """Sound heard since this was made: a loud frame counts for it, a quiet one against it.

    So clicks do not add up to speech over a minute, and the stops of a word do not undo it.
    """

    def __init__(self, threshold_dbfs: float) -> None:
        self.threshold_dbfs = threshold_dbfs
        self.ms = 0

    def add(self, level_dbfs: float) -> None:
        """One more frame."""
        loud = level_dbfs >= self.threshold_dbfs
        self.ms = self.ms + FRAME_MS if loud else max(self.ms - FRAME_MS // 2, 0)


class Hearing:
    """Levels of a call so far, and what follows from them."""

    def __init__(self) -> None:
        self._levels: list[float] = []
        self._speech: Speech | None = None

    def add(self, levels: list[float]) -> None:
        """Frames that were heard, in order."""
        self._levels += levels
        if self._speech is not None:
            for level in levels:
                self._speech.add(level)

    def speech(self, threshold_dbfs: float) -> Speech:
        """Count speech from now on, in place of the count begun before."""
        self._speech = Speech(threshold_dbfs)
        return self._speech

    def quiet_for(self, ms: int, threshold_dbfs: float) -> bool:
        """Whether the last ``ms`` were all quieter than the threshold."""
        frames = -(-ms // FRAME_MS)
        last = self._levels[-frames:]
        return len(last) == frames and max(last) < threshold_dbfs

    def spans(self, threshold_dbfs: float = SPEECH_DBFS) -> list[Span]:
        """Stretches of sound, ms of the recording; pauses below ``PAUSE_MS`` belong to them."""
        found: list[list[int]] = []
        for index, level in enumerate(self._levels):
            if level < threshold_dbfs:
                continue
            at = index * FRAME_MS
            if found and at - found[-1][1] < PAUSE_MS:
                found[-1][1] = at + FRAME_MS
            else:
                found.append([at, at + FRAME_MS])
        return [Span(from_ms=first, to_ms=last) for first, last in found]

"""The caller's end of a call's audio, taken down on its own 20 ms clock.

The media clock first asks for what is to be said and then hands over what is heard; both of one
turn make one :class:`Tick`, so the two tracks of a recording lie exactly as they lay at the phone.
"""

from __future__ import annotations

import audioop
import math
import time
from array import array
from collections import deque
from dataclasses import dataclass

from gateway.audio.g711 import FRAME_MS, PCM_FRAME_BYTES, Codec
from gateway.audio.playout import Playout
from gateway.audio.uplink import Uplink
from gateway.sip.ports import CallAudio

MAX_WAITING = 1500
"""Ticks between the media clock and the event loop, 30 s: a recording has no holes but after a
loop that hung for so long, and then the count of lost ticks says so."""

MAX_TICKS = 3600 * 1000 // FRAME_MS
"""An hour of recording (58 MB); what comes after it is listened to, but not kept."""

MAX_PLAYOUT_FRAMES = 2 * 600 * 1000 // FRAME_MS
"""Two sounds of the greatest length; speech waits here for its turn."""

_SILENCE = bytes(PCM_FRAME_BYTES)
_QUIETEST_DBFS = -96.0


@dataclass(frozen=True, slots=True)
class Tick:
    """20 ms: the samples said and heard; ``speaking`` when the former came from the queue."""

    said: bytes
    heard: bytes
    speaking: bool


class _Said(Playout):
    def __init__(self, codec: Codec, tape: Tape) -> None:
        super().__init__(codec, MAX_PLAYOUT_FRAMES)
        self._tape = tape
        self.pulls = 0

    def pull(self) -> bytes | None:
        frame = super().pull()
        self.pulls += 1
        self._tape.said(frame)
        return frame


class _Heard(Uplink):
    def __init__(self, codec: Codec, tape: Tape) -> None:
        super().__init__(codec)
        self._tape = tape

    def push(self, pcm: bytes) -> None:
        self.frames += 1
        self._tape.heard(pcm)


class Tape:
    """Ticks from the media clock, and the two tracks that the event loop makes of them."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.audio = CallAudio(codec, 1)
        self.playout = _Said(codec, self)
        self.audio.playout = self.playout
        self.audio.uplink = _Heard(codec, self)
        self.first_at: float | None = None
        """When the first tick came (``time.monotonic()``)."""
        self.ticks = 0
        """Ticks that the event loop has seen."""
        self.lost = 0
        """Ticks that are in no recording: the loop hung, or the call was too long."""
        self.said_track = bytearray()
        self.heard_track = bytearray()
        self._waiting: deque[Tick] = deque()
        self._pulled: tuple[bytes | None] | None = None
        self._spoken_at = array("I")

    def negotiated(self, codec: Codec) -> None:
        """The law of the call; told before the first sound is queued."""
        if not self.ticks:
            self.codec = self.playout.codec = self.audio.codec = codec
            self.audio.uplink.codec = codec

    # ---- the media clock's side

    def said(self, pcm: bytes | None) -> None:
        """What was taken for the other side, None for silence."""
        if self._pulled is not None:
            self._end_tick(_SILENCE)
        self._pulled = (pcm,)

    def heard(self, pcm: bytes) -> None:
        """What came from the other side; ends the tick."""
        self._end_tick(pcm)

    def _end_tick(self, heard: bytes) -> None:
        said = self._pulled[0] if self._pulled is not None else None
        self._pulled = None
        tick = Tick(said or _SILENCE, heard, said is not None)
        if self.first_at is None:
            self.first_at = time.monotonic()
        if len(self._waiting) >= MAX_WAITING:
            self.lost += 1
        else:
            self._waiting.append(tick)

    # ---- the event loop's side

    def collect(self) -> list[float]:
        """Write down the ticks that came; returns the level of each as heard, dBFS."""
        levels: list[float] = []
        for _ in range(len(self._waiting)):
            tick = self._waiting.popleft()
            levels.append(level_dbfs(tick.heard))
            if tick.speaking:
                self._spoken_at.append(self.ticks)
            self.ticks += 1
            if self.ticks > MAX_TICKS:
                self.lost += 1
                continue
            self.said_track += self.codec.from_linear(tick.said)
            self.heard_track += self.codec.from_linear(tick.heard)
        return levels

    def spoken_ms(self, first: int, count: int) -> tuple[int, int] | None:
        """Where in the recording the ``count`` frames from the ``first`` one (0-based) lie, ms.

        None while none of them has been said; a part of them when the call ended in between.
        """
        ticks = self._spoken_at[first : first + count]
        return (ticks[0] * FRAME_MS, (ticks[-1] + 1) * FRAME_MS) if ticks else None

    @property
    def now_ms(self) -> int:
        """Length of the recording so far, ms."""
        return self.ticks * FRAME_MS


def level_dbfs(pcm: bytes) -> float:
    """Root mean square of 16-bit samples against full scale, dB; -96 is silence."""
    rms = audioop.rms(pcm, 2)
    return 20 * math.log10(rms / 32768) if rms else _QUIETEST_DBFS

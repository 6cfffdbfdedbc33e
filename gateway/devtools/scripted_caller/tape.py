"""The caller's end of a call's audio, recorded on its own 20 ms clock.

The media clock first asks for what is to be said and then hands over what is heard; both of one
turn make one tick, so the two tracks of a recording lie exactly as they lay at the phone.
"""

from __future__ import annotations

import audioop
import math
import time
from array import array

from gateway.audio.g711 import FRAME_MS, PCM_FRAME_BYTES, Codec
from gateway.sip.media.ports import CallAudio

MAX_WAITING = 1500
"""Ticks between the media clock and the event loop, 30 s: a recording has no holes but after a
loop that hung for so long, and then the count of lost ticks says so."""

MAX_TICKS = 3600 * 1000 // FRAME_MS
"""An hour of recording (58 MB); what comes after it is listened to, but not kept."""

MAX_PLAYOUT_FRAMES = 2 * 600 * 1000 // FRAME_MS
"""Two sounds of the greatest length; speech waits here for its turn."""

_QUIETEST_DBFS = -96.0


class Tape:
    """The two tracks of one call, put together on the event loop of what the clock recorded."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.audio = CallAudio(codec, MAX_PLAYOUT_FRAMES)
        self.audio.queues.record(MAX_WAITING)
        self.playout = self.audio.playout
        self.first_at: float | None = None
        """When the first tick was seen (``time.monotonic()``)."""
        self.ticks = 0
        """Ticks that the event loop has seen."""
        self.said_track = bytearray()
        self.heard_track = bytearray()
        self._lost_waiting = 0
        self._lost_late = 0
        self._spoken_at = array("I")

    @property
    def lost(self) -> int:
        """Ticks that are in no recording: the loop hung, or the call was too long."""
        return self._lost_waiting + self._lost_late

    def negotiated(self, codec: Codec) -> None:
        """The law of the call; told before the first sound is queued."""
        if not self.ticks:
            self.codec = self.playout.codec = self.audio.codec = codec

    def collect(self) -> list[float]:
        """Write down the ticks that came; returns the level of each as heard, dBFS."""
        said, heard, spoke, self._lost_waiting = self.audio.queues.takeTicks()
        if spoke and self.first_at is None:
            self.first_at = time.monotonic()
        kept = min(len(spoke), max(0, MAX_TICKS - self.ticks))
        self._lost_late += len(spoke) - kept
        self.said_track += self.codec.from_linear(said[: kept * PCM_FRAME_BYTES])
        self.heard_track += self.codec.from_linear(heard[: kept * PCM_FRAME_BYTES])
        levels = []
        for tick, speaking in enumerate(spoke):
            levels.append(level_dbfs(heard[tick * PCM_FRAME_BYTES : (tick + 1) * PCM_FRAME_BYTES]))
            if speaking:
                self._spoken_at.append(self.ticks)
            self.ticks += 1
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

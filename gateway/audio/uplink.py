"""The queue from the 20 ms media clock to the event loop: what the caller says."""

from __future__ import annotations

from collections import deque

from gateway.audio.g711 import Codec

MAX_FRAMES = 250
"""Five seconds. The loop drains the queue every 20 ms; only a loop that hangs fills it, and audio
older than that is worth less to a conversation than what is said now."""


class Uplink:
    """20 ms frames of one caller, in order, bounded, with a count of what was lost."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.frames = 0
        """Frames taken from the media clock."""
        self.dropped = 0
        """Frames lost because the event loop did not keep up."""
        self._frames: deque[bytes] = deque()

    def push(self, pcm: bytes) -> None:
        """Add one frame of linear samples. Called on the media clock; never waits."""
        self.frames += 1
        if len(self._frames) >= MAX_FRAMES:
            try:
                self._frames.popleft()
            except IndexError:
                pass  # the loop came back meanwhile and took them all
            else:
                self.dropped += 1
        self._frames.append(pcm)

    def drain(self) -> bytes:
        """All that waits, as G.711 bytes; empty when nothing does. Called on the event loop."""
        waiting: list[bytes] = []
        try:
            for _ in range(len(self._frames)):
                waiting.append(self._frames.popleft())
        except IndexError:
            pass  # the clock dropped what was too old
        return self.codec.from_linear(b"".join(waiting)) if waiting else b""

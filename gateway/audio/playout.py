"""The queue between a session's bursts and the 20 ms media clock, without a lock.

The event loop puts whole frames in and, on barge-in, takes what is left out again; the media
clock takes one frame every 20 ms. Both ends are single ``deque`` operations, which the
interpreter makes atomic: a frame is taken by the clock (and so goes into RTP) or by the flush,
never by both and never by neither. That is what makes ``audio_end_ms`` exact.
"""

from __future__ import annotations

import time
from collections import deque

from gateway.audio.g711 import FRAME_MS, PCM_FRAME_BYTES, Codec
from gateway.audio.queues import Transition

__all__ = ["Playout", "Transition"]

_TRANSITIONS = 64
"""Starts and stops remembered until the event loop looks, every 20 ms; more cannot happen."""


class Playout:
    """Frames of one call, in the order in which the caller is to hear them.

    Args:
        codec: law of the audio put in.
        max_frames: bound of the queue; audio comes faster than real time, so it has to hold a
            whole answer. A frame of speech costs about 400 bytes.
    """

    def __init__(self, codec: Codec, max_frames: int) -> None:
        self.codec = codec
        self.max_frames = max_frames
        self.expecting = False
        """True while more audio of the current part is to come; an empty queue then is an
        underrun and not an end."""
        self.underruns = 0
        """Times the clock found the queue empty in the middle of a part."""
        self.underrun_frames = 0
        """20 ms frames of silence played because of that."""
        self.frames_played = 0
        """Frames handed to the media clock, silence not counted."""
        self.frames_refused = 0
        """Frames that did not fit."""
        self._frames: deque[bytes] = deque()
        self._transitions: deque[Transition] = deque(maxlen=_TRANSITIONS)
        self._playing = False
        self._cut = False
        self._paused = False

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, audio: bytes) -> int:
        """Queue whole frames of G.711 audio; returns how many of them were refused (0 or all).

        Called on the event loop. All or nothing, so that what was heard of a part is always a
        prefix of it.
        """
        pcm = self.codec.to_linear(audio)
        count = len(pcm) // PCM_FRAME_BYTES
        if len(self._frames) + count > self.max_frames:
            self.frames_refused += count
            return count
        self._frames.extend(
            [pcm[i : i + PCM_FRAME_BYTES] for i in range(0, len(pcm), PCM_FRAME_BYTES)]
        )
        return 0

    def flush(self) -> int:
        """Take out everything not yet handed to the clock; returns the frames taken out.

        Called on the event loop. Pops from the far end, so that the clock may take the next frame
        meanwhile and the count is still exact.
        """
        taken = 0
        try:
            while True:
                self._frames.pop()
                taken += 1
        except IndexError:
            self.expecting = False
            self._cut = True
            return taken

    def pause(self, paused: bool) -> None:
        """Hold the queue as it is and play silence, or go on."""
        self._paused = paused

    def pull(self) -> bytes | None:
        """The next 20 ms as linear samples, or None where silence is due. On the media clock."""
        if self._paused:
            return None
        if self._cut:
            # Whoever flushed knows of that end; what is played next begins anew.
            self._cut = self._playing = False
        try:
            frame = self._frames.popleft()
        except IndexError:
            if self._playing:
                self._playing = False
                self._transitions.append(Transition(False, time.monotonic()))
                if self.expecting:
                    self.underruns += 1
            if self.expecting:
                self.underrun_frames += 1
            return None
        self.frames_played += 1
        if not self._playing:
            self._playing = True
            self._transitions.append(Transition(True, time.monotonic()))
        return frame

    def transition(self) -> Transition | None:
        """The oldest start or stop that the event loop has not seen yet."""
        try:
            return self._transitions.popleft()
        except IndexError:
            return None

    @property
    def queued_ms(self) -> int:
        """Audio waiting, ms."""
        return len(self._frames) * FRAME_MS

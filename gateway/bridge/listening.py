# SPDX-License-Identifier: GPL-2.0-or-later
"""Listening in on a call: each listener gets both sides, as the caller hears them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.audio.codecs import FRAME_MS, Codec
from gateway.sip.call_audio import Recorder
from gateway.tasks import TaskSet

FRAME_BYTES = 2 * 160
"""20 ms of both sides, by turns: caller, agent."""

LOOK_SECONDS = 0.04
"""From one look at what there is to the next; frames wait in the media's queue meanwhile."""
WAITING_FRAMES = 1000 // FRAME_MS
"""In the media's queue, if the event loop stands still: a second, then frames are dropped."""
QUEUED_FRAMES = 2000 // FRAME_MS
"""Of a listener whose network is slow: two seconds, then the oldest are dropped."""
MAX_LISTENERS = 16
"""Of one call."""


class FullError(Exception):
    """The call has as many listeners as it may."""


class Listener:
    """Queue of frames for one listener. Used on the event loop."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.dropped = 0
        """Frames that were dropped."""
        self._frames: deque[bytes] = deque()
        self._pulse = asyncio.Event()
        self._over = False

    def put(self, frames: list[bytes]) -> None:
        """Queue frames; the oldest are dropped when it is full."""
        self._frames.extend(frames)
        while len(self._frames) > QUEUED_FRAMES:
            self._frames.popleft()
            self.dropped += 1
        self._pulse.set()

    def end(self) -> None:
        """End after the frames that are queued."""
        self._over = True
        self._pulse.set()

    async def next(self) -> tuple[int, bytes] | None:
        """Await audio; return the count of frames dropped so far and all queued frames, None at
        the end."""
        while not self._frames:
            if self._over:
                return None
            self._pulse.clear()
            await self._pulse.wait()
        found = b"".join(self._frames)
        self._frames.clear()
        return self.dropped, found


class Listeners:
    """The listeners of one call. Audio is taken from the media only while there are any.

    Args:
        monitor: has both sides as the caller hears them.
        codec: current codec of the call.
    """

    def __init__(self, monitor: Recorder, codec: Callable[[], Codec]) -> None:
        self._monitor = monitor
        self._codec_now = codec
        self._codec = codec()
        self._there: list[Listener] = []
        self._tasks = TaskSet()
        self._handing = self._concealed = self._over = False
        self._lost = 0
        """Frames that the media's queue had no room for."""

    def __len__(self) -> int:
        return len(self._there)

    def join(self) -> Listener:
        """Add a listener; the first starts the copy of the call's audio. Raises FullError."""
        if len(self._there) >= MAX_LISTENERS:
            raise FullError(f"{MAX_LISTENERS} listen already")
        if not self._there and not self._over:
            self._lost, self._codec = 0, self._codec_now()
            self._monitor.start(WAITING_FRAMES)
            self._monitor.silence(self._concealed)
            if not self._handing:
                self._handing = True
                self._tasks.spawn(self._hand_out(), "listeners")
        listener = Listener(self._codec)
        if self._over:
            listener.end()
        else:
            self._there.append(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """Remove a listener; with the last, the call's audio is no longer copied."""
        if listener in self._there:
            self._there.remove(listener)
            if not self._there:
                self._monitor.end()

    def conceal(self, concealed: bool) -> None:
        """Replace the sound by silence while sensitive digits are entered."""
        self._concealed = concealed
        self._monitor.silence(concealed)

    def end(self) -> None:
        """End all listening: the call has ended."""
        self._over = True
        for listener in self._there:
            listener.end()
        self._there.clear()
        self._monitor.end()

    async def _hand_out(self) -> None:
        """Give the frames of both sides to all listeners, as long as there are any."""
        try:
            while self._there:
                taken, dropped = self._monitor.take(), self._monitor.counts.dropped
                lost, self._lost = dropped - self._lost, dropped
                frames = [taken[at : at + FRAME_BYTES] for at in range(0, len(taken), FRAME_BYTES)]
                for listener in self._there if frames else ():
                    listener.dropped += lost
                    listener.put(frames)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._handing = False

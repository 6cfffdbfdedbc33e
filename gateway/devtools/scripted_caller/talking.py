# SPDX-License-Identifier: GPL-2.0-or-later
"""A scripted call that goes on after its steps with a conversation that nobody has scripted."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.audio.g711 import FRAME_BYTES, PCM_FRAME_BYTES
from gateway.devtools.scripted_caller.call import EndedError, ScriptedCall
from gateway.devtools.scripted_caller.report import Span
from gateway.devtools.scripted_caller.script import SPEECH_DBFS
from gateway.devtools.scripted_caller.sound import Clip, Hearing, level_dbfs

TURN_MS, TURN_SECONDS = 200, 60.0
"""Sound that is a turn of the other side, and the longest one."""

Talk = Callable[["TalkingCall"], Awaitable[None]]
"""A conversation, by turns of sound (``turn``, ``speak``) or by audio (``audio``, ``queue``)."""


class TalkingCall(ScriptedCall):
    """A call with a conversation; what raises EndedError in it is the end of the call."""

    def __init__(self, talk: Talk, *args: Any) -> None:
        super().__init__(*args)
        self._talk = talk
        self._given = 0
        self._by_audio = False

    async def converse(self) -> None:
        """Talk; the other side may hang up meanwhile."""
        try:
            await self._talk(self)
        except EndedError:
            if self.lost:
                raise

    async def turn(self, within: float, pause_ms: int) -> Span | None:
        """Listen until the other side has spoken and paused; None when it says nothing within."""
        heard = self.hearing.speech(SPEECH_DBFS)
        began = self.tape.now_ms
        try:
            await self.until(lambda: heard.ms >= TURN_MS, within)
        except TimeoutError:
            return None
        with contextlib.suppress(TimeoutError):  # it goes on and on
            await self.until(lambda: self.hearing.quiet_for(pause_ms, SPEECH_DBFS), TURN_SECONDS)
        return Span(from_ms=began, to_ms=self.tape.now_ms)

    async def speak(self, clip: Clip) -> None:
        """Say something, to its end."""
        self.progress(f"says: {clip.name}")
        with self.noted(f'say "{clip.name}"'):
            await self.play(clip)

    async def audio(self) -> bytes:
        """What was heard since the last time, at least a frame, in the codec of the tape."""
        self._by_audio = True
        await self.until(lambda: len(self.tape.heard_track) > self._given, TURN_SECONDS)
        taken = bytes(self.tape.heard_track[self._given :])
        self._given += len(taken)
        return taken

    def queue(self, frames: bytes) -> None:
        """Say whole frames of the codec of the tape behind what is queued."""
        if not self.tape.playout.put(frames):
            self.queued_frames += len(frames) // FRAME_BYTES

    def flush(self) -> None:
        """Stop speaking."""
        self.queued_frames -= self.tape.playout.flush()

    async def said(self) -> None:
        """Wait until all that is queued was said."""
        await self.until(lambda: not len(self.tape.playout), TURN_SECONDS)

    def spans(self) -> dict[str, list[Span]]:
        """Where sounds lie in the recording; of what was said by audio, its loud stretches."""
        found = super().spans()
        if self._by_audio:
            pcm = self.tape.codec.to_linear(bytes(self.tape.said_track))
            said = Hearing()
            frames = range(0, len(pcm), PCM_FRAME_BYTES)
            said.add([level_dbfs(pcm[at : at + PCM_FRAME_BYTES]) for at in frames])
            found["spoken"] = said.spans()
        return found

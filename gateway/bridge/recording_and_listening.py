# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording of a call, and listening in: both get a copy of what caller and agent say."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from gateway.audio import FRAME_BYTES, FRAME_MS, SAMPLE_RATE, Codec
from gateway.bridge.machine_driver import CallHost, CallPart
from gateway.call import outputs
from gateway.call.plan import CallPlan
from gateway.records.files import file_stem
from gateway.records.recording_files import RecordingError
from gateway.records.recordings import WAITING_FRAMES, Recording, Recordings, seconds_of
from gateway.sip.call_audio import CallAudio, Recorder
from gateway.tasks import TaskSet

log = structlog.get_logger("media")


class CallRecorder(CallPart):
    """Starts and stops the recordings of one call, and writes their figures into its record.

    Args:
        plan: of the call, with the format of the files.
        b_leg_audio: returns the audio of a B-leg, whose briefing has a recording of its own.
    """

    def __init__(
        self,
        host: CallHost,
        plan: CallPlan,
        audio: CallAudio,
        b_leg_audio: Callable[[], CallAudio | None] = lambda: None,
    ) -> None:
        super().__init__(host)
        self.recordings: Recordings | None = None
        self._plan = plan.recording
        self._audio = audio
        self._b_leg_audio = b_leg_audio
        self._briefings: list[tuple[Recording, CallAudio]] = []
        """Recordings of briefings; the last one may still be written."""
        self._recording: Recording | None = None
        self._ended: Recording | None = None
        """The last one that was stopped, which may still be deleted."""
        self._names: set[str] = set()
        """Names of its files so far, which no further one gets."""
        self._paused = self._concealed = False
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.StartRecording: self._start,
            outputs.StopRecording: self._stop,
            outputs.SilenceRecording: self._silence,
        }

    def conceal(self, concealed: bool) -> None:
        """Record silence in the call's recording while sensitive digits are entered; or no more,
        unless it is paused."""
        self._concealed = concealed
        self._audio.recorder.silence(self._paused or concealed)

    def finish(self) -> None:
        """Stop what is still recorded, and complete file and figures: the state of a recording that
        ran, or was paused, is ``stopped`` then."""
        record = self._host.record.recording
        if record is not None and record.state in ("recording", "paused"):
            record.state = "stopped"
        self._stop_briefing()
        self._stop(outputs.StopRecording())

    def _start_briefing(self) -> None:
        """Start the recording of a briefing, and name its file in the record of the last B-leg.
        Nothing for a B-leg without audio of its own, or without recordings; a failure is logged."""
        audio, legs = self._b_leg_audio(), self._host.record.actions.b_legs
        if audio is None or not legs or self.recordings is None:
            return
        call = self._host.record
        stem = f"{file_stem(call.started_at, call.call_id)}.briefing"
        try:
            made = self.recordings.begin(
                call.call_id,
                stem,
                audio.recorder,
                audio.codec.narrow,
                self._plan.format,
                taken=self._names,
            )
        except RecordingError as error:
            log.error("recording.not_started", call=call.call_id, error=str(error))
            return
        self._briefings.append((made, audio))
        legs[-1].recording = made.path.name
        self._names.add(made.path.name)
        audio.recorder.start(WAITING_FRAMES)

    def _stop_briefing(self) -> None:
        """Complete the last recording of a briefing, if it is still written."""
        if self._briefings and self.recordings is not None:
            made, audio = self._briefings[-1]
            if not made.over:
                audio.recorder.end()
                self.recordings.end(made)

    def _start(self, output: outputs.StartRecording) -> None:
        """Start a recording of the call, or of a briefing (``b_leg``); put file, format and
        encryption into the record. A failure of the former is logged, and the state ``failed`` in
        the record."""
        if output.b_leg:
            self._start_briefing()
            return
        call, recorder = self._host.record, self._audio.recorder
        record = call.recording
        assert record is not None
        try:
            if self.recordings is None:
                raise RecordingError("no recording.folder is set")
            self._recording = made = self.recordings.begin(
                call.call_id,
                file_stem(call.started_at, call.call_id),
                recorder,
                self._audio.codec.narrow,
                self._plan.format,
                taken=self._names,
            )
        except RecordingError as error:
            record.state = "failed"
            log.error("recording.not_started", call=call.call_id, error=str(error))
            return
        self._names.add(made.path.name)
        record.file, record.format = made.path.name, self._plan.format
        record.encryption = "age" if made.encrypted else ""
        recorder.start(WAITING_FRAMES)
        recorder.silence(self._paused or self._concealed)

    def _silence(self, output: outputs.SilenceRecording) -> None:
        """Pause the call's recording (``silent``): silence is recorded; or resume it, unless
        sensitive digits are entered."""
        self._paused = output.silent
        self._audio.recorder.silence(self._paused or self._concealed)

    def _stop(self, output: outputs.StopRecording) -> None:
        """Stop the recording of the call, and put its figures into the record; of a briefing with
        ``b_leg``, which touches nothing else.

        With ``discard``, delete it, or else the one that was stopped before, and all briefings; the
        record then names no file. The state is ``failed`` where part of it could not be written.
        """
        if output.b_leg:
            self._stop_briefing()
            return
        if output.discard:
            self._erase_briefings()
        made, self._recording = self._recording, None
        record = self._host.record.recording
        if record is None or self.recordings is None:
            return
        if made is None:
            if output.discard and self._ended is not None:
                self.recordings.erase(self._ended)
                record.file, record.seconds = "", 0.0
            return
        self._ended = made
        self._audio.recorder.end()
        counts = self._audio.recorder.counts
        record.seconds = seconds_of(counts.frames)
        record.silenced_seconds = seconds_of(counts.silenced)
        record.dropped_frames = counts.dropped
        record.shifted_ms = counts.shifted_samples * 1000 // SAMPLE_RATE
        if output.discard:
            record.file, record.seconds = "", 0.0
        elif made.failed:
            record.state = "failed"  # what there is of it is short
        self.recordings.end(made, discard=output.discard)

    def _erase_briefings(self) -> None:
        """Delete all recordings of briefings of the call, and their names in the record."""
        self._stop_briefing()
        for made, _audio in self._briefings:
            if self.recordings is not None:
                self.recordings.erase(made)
        self._briefings.clear()
        for leg in self._host.record.actions.b_legs:
            leg.recording = ""


STEREO_FRAME_BYTES = 2 * FRAME_BYTES
"""20 ms of both sides, by turns: caller, agent."""

LOOK_SECONDS = 0.04
"""Interval at which frames are taken from the media's queue."""
MONITOR_FRAMES = 1000 // FRAME_MS
"""Frames in the media's queue at most (1 s); then new ones are dropped."""
QUEUED_FRAMES = 2000 // FRAME_MS
"""Frames that wait for one listener at most (2 s); then the oldest are dropped."""
MAX_LISTENERS = 16
"""Listeners of one call at most."""


class FullError(Exception):
    """The call has as many listeners as it may."""


class Listener:
    """Queue of frames for one listener. Used on the event loop.

    Args:
        codec: of the frames, G.711.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.dropped = 0
        """Frames that were dropped."""
        self._frames: deque[bytes] = deque()
        self._pulse = asyncio.Event()
        self._over = False

    def put(self, frames: list[bytes]) -> None:
        """Queue frames; of more than ``QUEUED_FRAMES`` the oldest are dropped and counted. Wakes
        :meth:`next`."""
        self._frames.extend(frames)
        while len(self._frames) > QUEUED_FRAMES:
            self._frames.popleft()
            self.dropped += 1
        self._pulse.set()

    def end(self) -> None:
        """End this listener: :meth:`next` returns what is queued, and then None."""
        self._over = True
        self._pulse.set()

    async def next(self) -> tuple[int, bytes] | None:
        """Await audio; return the number of frames dropped so far, and all queued frames: bytes of
        caller and agent by turns.

        None at the end.
        """
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
        """Return the number of listeners."""
        return len(self._there)

    def join(self) -> Listener:
        """Add a listener; the first starts the copy of the call's audio. In a call that is over the
        listener has ended. Raises FullError at ``MAX_LISTENERS``."""
        if len(self._there) >= MAX_LISTENERS:
            raise FullError(f"{MAX_LISTENERS} listen already")
        if not self._there and not self._over:
            self._lost, self._codec = 0, self._codec_now()
            self._monitor.start(MONITOR_FRAMES)
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
        """Remove a listener; with the last, the call's audio is no longer copied. Nothing for one
        that has left, or after the call's end."""
        if listener in self._there:
            self._there.remove(listener)
            if not self._there:
                self._monitor.end()

    def conceal(self, concealed: bool) -> None:
        """Let listeners hear silence while sensitive digits are entered, also those who join
        meanwhile; or end that."""
        self._concealed = concealed
        self._monitor.silence(concealed)

    def end(self) -> None:
        """End all listeners after what is queued for them, and the copy of the audio: the call is
        over. One who joins later has ended at once."""
        self._over = True
        for listener in self._there:
            listener.end()
        self._there.clear()
        self._monitor.end()

    async def _hand_out(self) -> None:
        """Give the frames in the media's queue to all listeners, every ``LOOK_SECONDS``, until none
        is left; frames that the media's queue had no room for count as dropped for each."""
        try:
            while self._there:
                taken, dropped = self._monitor.take(), self._monitor.counts.dropped
                lost, self._lost = dropped - self._lost, dropped
                frames = [
                    taken[at : at + STEREO_FRAME_BYTES]
                    for at in range(0, len(taken), STEREO_FRAME_BYTES)
                ]
                for listener in self._there if frames else ():
                    listener.dropped += lost
                    listener.put(frames)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._handing = False

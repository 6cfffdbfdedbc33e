# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio of one call between leg and session, and the pump that moves the audio of all calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import structlog

from gateway.audio.codecs import FRAME_MS, SAMPLE_RATE
from gateway.bridge.inbound_audio import InboundAudioAnalyzer
from gateway.bridge.machine_driver import CallHost, CallPart
from gateway.call import inputs, outputs
from gateway.call.plan import CallPlan
from gateway.measures import LAG, Distribution
from gateway.records.files import file_stem
from gateway.records.recording_files import RecordingError
from gateway.records.recordings import (
    WAITING_FRAMES,
    Recording,
    Recordings,
    seconds_of,
)
from gateway.sip import call_audio, library
from gateway.sip.call_audio import CallAudio

log = structlog.get_logger("media")

AHEAD_MS = 5000
"""Caller's audio that may come at once: what a network held back for five seconds."""

FASTEST = 1.05
"""Of real time, in the long run: a clock that is fast by a twentieth."""

WITHHELD_MS = 2500
"""Of audio that is kept from the session: it was analysed a second at a time, and the beginning of
a word is in the second before."""


class MediaPump:
    """Moves audio of the calls that have any, and reports starts and ends of their playout."""

    def __init__(self) -> None:
        self._moves: dict[int, Callable[[], None]] = {}
        self._last_tick = self._beats = 0
        self._faulty: set[int] = set()
        self.delay = Distribution(LAG)
        """Seconds from a caller's packet, as it was received, to its call being served."""
        self.faults = 0
        """Exceptions of moves; each is a defect."""

    @property
    def beats(self) -> int:
        """Return the count of moves, which stands still when no audio moves in either direction."""
        return self._beats if self._moves else library.beats()

    def add(self, audio: CallAudio, move: Callable[[], None]) -> None:
        """Call ``move`` whenever this call has audio or a change of playout."""
        self._moves[audio.uplink.id] = move

    def remove(self, audio: CallAudio) -> None:
        """Stop moving the audio of a call that has ended."""
        self._moves.pop(audio.uplink.id, None)
        self._faulty.discard(audio.uplink.id)

    def serve(self, calls: Iterable[int]) -> None:
        """Move audio of these calls, given by the ids of their uplinks."""
        tick = library.beats()
        if tick != self._last_tick:
            self._last_tick = tick
            self._beats += 1
        self.delay.observe(call_audio.waited())
        for call in calls:
            move = self._moves.get(call)
            if move is None:
                continue  # its call has not begun, or has ended
            try:
                move()
            except Exception:
                # One call's defect must not silence the others; said once, not every 20 ms.
                self.faults += 1
                if call not in self._faulty:
                    self._faulty.add(call)
                    log.exception("media.fault")


class CallRecorder(CallPart):
    """Starts and stops the recording of one call, and writes its figures into the call's record.

    Args:
        b_leg_audio: returns the audio of a briefed B-leg, which has a recording of its own.
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
        """Those of B-legs; the last one may still be written."""
        self._recording: Recording | None = None
        self._ended: Recording | None = None
        """The last one that is over, and may still be deleted."""
        self._paused = self._concealed = False
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.StartRecording: self._start,
            outputs.StopRecording: self._stop,
            outputs.SilenceRecording: self._silence,
        }

    def conceal(self, concealed: bool) -> None:
        """Record silence while sensitive digits are entered."""
        self._concealed = concealed
        self._audio.recorder.silence(self._paused or concealed)

    def finish(self) -> None:
        """Complete the recording's file and figures."""
        record = self._host.record.recording
        if record is not None and record.state in ("recording", "paused"):
            record.state = "stopped"
        self._stop_briefing()
        self._stop(outputs.StopRecording())

    def _start_briefing(self) -> None:
        audio, legs = self._b_leg_audio(), self._host.record.actions.b_legs
        if audio is None or not legs or self.recordings is None:
            return
        call = self._host.record
        stem = f"{file_stem(call.started_at, call.call_id)}.briefing"
        try:
            made = self.recordings.begin(
                call.call_id, stem, audio.recorder, audio.codec.narrow, self._plan.format
            )
        except RecordingError as error:
            log.error("recording.not_started", call=call.call_id, error=str(error))
            return
        self._briefings.append((made, audio))
        legs[-1].recording = made.path.name
        audio.recorder.start(WAITING_FRAMES)

    def _stop_briefing(self) -> None:
        if self._briefings and self.recordings is not None:
            made, audio = self._briefings[-1]
            if not made.over:
                audio.recorder.end()
                self.recordings.end(made)

    def _start(self, output: outputs.StartRecording) -> None:
        """Start or resume the recording; a failure is in the record."""
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
            )
        except RecordingError as error:
            record.state = "failed"
            log.error("recording.not_started", call=call.call_id, error=str(error))
            return
        record.file, record.format = made.path.name, self._plan.format
        record.encryption = "age" if made.encrypted else ""
        recorder.start(WAITING_FRAMES)
        recorder.silence(self._paused or self._concealed)

    def _silence(self, output: outputs.SilenceRecording) -> None:
        self._paused = output.silent
        self._audio.recorder.silence(self._paused or self._concealed)

    def _stop(self, output: outputs.StopRecording) -> None:
        """Stop the recording, and erase it if it is discarded."""
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
        self._stop_briefing()
        for made, _audio in self._briefings:
            if self.recordings is not None:
                self.recordings.erase(made)
        self._briefings.clear()
        for leg in self._host.record.actions.b_legs:
            leg.recording = ""


class CallMedia(CallPart):
    """Moves audio between leg and session, and feeds the machine what it detects on the way.

    Args:
        feed_first: feeds an input to the machine before all others that wait.
        send: sends caller audio to the session.
        feed_at: feeds an input that happened at that time of the event loop (s).
        on_conceal: called when the caller's audio is hidden from the session, and shown again.
    """

    def __init__(
        self,
        host: CallHost,
        plan: CallPlan,
        audio: CallAudio,
        pump: MediaPump,
        send: Callable[[bytes], None],
        feed_first: Callable[[inputs.Input], None],
        feed_at: Callable[[inputs.Input, float], None],
        on_conceal: Callable[[bool], None] = lambda _concealed: None,
    ) -> None:
        super().__init__(host)
        self._audio = audio
        self._pump = pump
        self._send = send
        self._feed_first = feed_first
        self._feed_at = feed_at
        self._on_conceal = on_conceal
        self._analyzer = InboundAudioAnalyzer(plan)
        self._hold: outputs.Hold | None = None
        self._streaming = self._concealed = self._muted = False
        self._bytes_per_ms = plan.codec.bytes_per_ms
        self._room, self._heard_at = float(AHEAD_MS * self._bytes_per_ms), time.monotonic()
        self._too_fast = 0
        """Bytes that came faster than real time, and were left out."""
        self._withheld: bytearray | None = None
        """The last of the caller's audio, while the session is not to hear it."""
        self._paused: set[str] = {"not started"}
        """Reasons for which playout is paused."""
        audio.playout.pause(True)
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.StartMedia: self._start,
            outputs.Hold: self._on_hold,
            outputs.Mute: self._on_mute,
            outputs.Withhold: self._on_withhold,
            outputs.Pause: lambda output: self._pause("paused", output.paused),
            outputs.Play: self._play,
            outputs.Conceal: self._conceal,
        }

    def redirect(self, send: Callable[[bytes], None]) -> None:
        """Send caller audio to another session from now on."""
        self._send = send

    def stop(self) -> None:
        self._pump.remove(self._audio)

    def finish(self) -> None:
        """Write the figures of the call's audio into its record."""
        playout, record = self._audio.playout, self._host.record
        playout.flush()
        record.media.underruns = playout.underruns
        record.media.underrun_ms = playout.underrun_frames * FRAME_MS
        record.media.refused_playout_frames = playout.frames_refused
        counts = self._audio.uplink.counts
        record.media.dropped_uplink_frames = -(-counts.dropped_ms // FRAME_MS)
        record.media.dropped_uplink_frames += self._too_fast // (FRAME_MS * self._bytes_per_ms)
        record.media.uplink = asdict(counts)

    @property
    def heard(self) -> tuple[float | None, float | None]:
        """Return when the caller's current speech began, and when the caller was last loud (s)."""
        return self._analyzer.since, self._analyzer.until

    def _move(self) -> None:
        """Send caller audio to the session and feed what was detected in it. Fifty times a
        second."""
        try:  # as entry does: this runs fifty times a second
            audio, moved = self._audio.uplink.take()
            if audio:
                audio = self._as_fast_as_real(audio)
                for heard in self._analyzer.feed(audio, held=self._hold is not None):
                    self._host.feed(heard)
                if self._hold is not None or self._concealed or self._muted:
                    audio = self._in_place_of(audio)
                if self._withheld is not None:
                    self._withheld += audio
                    del self._withheld[: -WITHHELD_MS * self._bytes_per_ms]
                    audio = self._audio.codec.silence * len(audio)
                if audio and self._streaming:
                    self._send(audio)
            if moved:
                self._note_transitions()
        except Exception as error:
            self.on_fault(error)

    def _as_fast_as_real(self, audio: bytes) -> bytes:
        """Cut audio that comes faster than real time, and count it: each second of it costs."""
        now = time.monotonic()
        passed = (now - self._heard_at) * 1000 * FASTEST * self._bytes_per_ms
        room = min(AHEAD_MS * self._bytes_per_ms, self._room + passed)
        self._heard_at = now
        if len(audio) > room:
            if not self._too_fast:
                log.warning("call.audio_too_fast", call=self._host.record.call_id)
            kept = int(room) - int(room) % (self._bytes_per_ms // 8)
            self._too_fast += len(audio) - kept
            audio = audio[:kept]
        self._room = room - len(audio)
        return audio

    def _in_place_of(self, audio: bytes) -> bytes:
        """Return what the session gets on hold or mute: silence, or nothing."""
        if self._hold is not None and not self._hold.silent:
            return b""
        return self._audio.codec.silence * len(audio)

    def _note_transitions(self) -> None:
        """Feed starts and ends of playout with their times."""
        playout = self._audio.playout
        while (transition := playout.transition()) is not None:
            if transition.playing:
                self._feed_at(inputs.PlayoutStarted(), transition.at)
            elif not playout:
                # What was queued since has its own start to come; only a queue that is still
                # empty has drained.
                self._feed_at(inputs.PlayoutDrained(), transition.at)

    def _start(self, output: outputs.StartMedia) -> None:
        """Start to move audio, without what came before the ACK."""
        if not self._streaming:  # else it is in the middle of what a callee says
            self._audio.uplink.take()  # what came before the ACK is older than the conversation
        self._streaming = True
        self._pause("not started", not output.playout)
        self._pump.add(self._audio, self._move)

    def _on_hold(self, output: outputs.Hold) -> None:
        self._hold = output if output.held else None
        self._pause("held", output.held)

    def _conceal(self, output: outputs.Conceal) -> None:
        self._concealed = output.concealed
        self._on_conceal(output.concealed)

    def _on_mute(self, output: outputs.Mute) -> None:
        self._muted = output.muted

    def _on_withhold(self, output: outputs.Withhold) -> None:
        """Keep caller audio back, or send what was kept."""
        kept, self._withheld = self._withheld, bytearray() if output.withheld else None
        if kept and self._streaming and not output.withheld:
            self._send(bytes(kept))

    def _pause(self, why: str, paused: bool) -> None:
        (self._paused.add if paused else self._paused.discard)(why)
        self._audio.playout.pause(bool(self._paused))

    def _play(self, output: outputs.Play) -> None:
        """Queue audio of the session for playout; feed how many frames did not fit."""
        playout = self._audio.playout
        playout.expecting = output.more
        if output.audio:
            refused = playout.put(output.audio)
            if refused:
                self._feed_first(inputs.PlayoutRefused(refused))

# SPDX-License-Identifier: GPL-2.0-or-later
"""The audio of one call between its caller's leg and its session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.audio.g711 import FRAME_MS
from gateway.audio.inband import InBandDetector
from gateway.audio.tone_analysis import Beep, Listener
from gateway.bridge.entries import CallHost, CallPart, entry
from gateway.bridge.media_clock import MediaClock
from gateway.call import inputs, outputs
from gateway.call.inputs import BeepHeard, DigitPressed, SoundHeard
from gateway.call.plan import CallPlan
from gateway.sip.media.ports import CallAudio


class CallMedia(CallPart):
    """Sends the caller's audio to the session at each beat of the media clock, queues the
    session's audio for playout, and feeds the machine what it learns from either.

    Args:
        feed_first: hands an input to the machine before all others that wait.
        send: takes caller audio for the session.
        feed_at: hands an input to the machine that happened at that time of the event loop.
    """

    def __init__(
        self,
        host: CallHost,
        plan: CallPlan,
        audio: CallAudio,
        clock: MediaClock,
        send: Callable[[bytes], None],
        feed_first: Callable[[inputs.Input], None],
        feed_at: Callable[[inputs.Input, float], None],
    ) -> None:
        super().__init__(host)
        self._audio = audio
        self._clock = clock
        self._send = send
        self._feed_first = feed_first
        self._feed_at = feed_at
        self._analyzer = InboundAudioAnalyzer(plan)
        self._hold: outputs.Hold | None = None
        self._streaming = False
        self._paused: set[str] = {"not started"}
        """Why playout stands still."""
        audio.playout.pause(True)
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.StartMedia: self._start,
            outputs.Hold: self._on_hold,
            outputs.Pause: lambda output: self._pause("paused", output.paused),
            outputs.Play: self._play,
        }

    def stop(self) -> None:
        """Move no more audio."""
        self._clock.remove(self._beat)

    def finish(self) -> None:
        """Write the figures of the call's audio into its record."""
        playout, record = self._audio.playout, self._host.record
        playout.flush()
        record.underruns = playout.underruns
        record.underrun_ms = playout.underrun_frames * FRAME_MS
        record.playout_frames_refused = playout.frames_refused
        record.uplink_frames_dropped = self._audio.uplink.dropped

    @entry
    def _beat(self) -> None:
        audio = self._audio.uplink.drain()
        for heard in self._analyzer.feed(audio, held=self._hold is not None):
            self._host.feed(heard)
        if self._hold is not None:
            audio = self._audio.codec.silence * len(audio) if self._hold.silent else b""
        if audio and self._streaming:
            self._send(audio)
        playout = self._audio.playout
        while (transition := playout.transition()) is not None:
            if transition.playing:
                self._feed_at(inputs.PlayoutStarted(), transition.at)
            elif not playout:
                # What was queued since has its own start to come; only a queue that is still
                # empty has drained.
                self._feed_at(inputs.PlayoutDrained(), transition.at)

    def _start(self, output: outputs.StartMedia) -> None:
        self._audio.uplink.drain()  # what came before the ACK is older than the conversation
        self._streaming = True
        self._pause("not started", not output.playout)
        self._clock.add(self._beat)

    def _on_hold(self, output: outputs.Hold) -> None:
        self._hold = output if output.held else None
        self._pause("held", output.held)

    def _pause(self, why: str, paused: bool) -> None:
        (self._paused.add if paused else self._paused.discard)(why)
        self._audio.playout.pause(bool(self._paused))

    def _play(self, output: outputs.Play) -> None:
        playout = self._audio.playout
        playout.expecting = output.more
        if output.audio:
            refused = playout.put(output.audio)
            if refused:
                self._feed_first(inputs.PlayoutRefused(refused))


class InboundAudioAnalyzer:
    """Detects DTMF tones, beeps and music in the caller's audio, where the route asks for it."""

    def __init__(self, plan: CallPlan) -> None:
        self._keys = InBandDetector(plan.codec) if plan.dtmf.inband else None
        self._sounds = Listener(plan.codec) if plan.machine_detection.listens else None
        self._held = False

    def feed(self, audio: bytes, *, held: bool) -> list[DigitPressed | SoundHeard | BeepHeard]:
        """Return what is found in these G.711 bytes.

        While the call is on hold only keys are: the caller's side may play music then.
        """
        if not audio:
            return []
        heard: list[DigitPressed | SoundHeard | BeepHeard] = []
        if self._keys is not None:
            heard += [DigitPressed(digit, in_band=True) for digit in self._keys.feed(audio)]
        if self._sounds is None:
            return heard
        if held != self._held:
            self._held = held
            self._sounds.reset()
        for sound in () if held else self._sounds.feed(audio):
            if isinstance(sound, Beep):
                heard.append(BeepHeard(sound.hz, sound.ms))
            else:
                heard.append(SoundHeard(sound.sounding, sound.held, sound.change))
        return heard

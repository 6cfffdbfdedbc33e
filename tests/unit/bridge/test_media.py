# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio between leg and session, what the machine is told of it, and the pump that moves it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import pytest

from gateway.audio import SAMPLE_RATE, Codec
from gateway.bridge.media import CallMedia, InboundAudioAnalyzer, MediaPump
from gateway.call import inputs, outputs
from gateway.call.inputs import CallerSounds
from gateway.call.plan import CallPlan
from gateway.devtools.speech import resample, synthesise
from gateway.sip.call_audio import CallAudio
from gateway.sip.rtp import UplinkCounts
from tests.support.call_fakes import Fed

FRAME = b"\x42" * 160


@dataclass
class Transition:
    """Playout began or drained."""

    playing: bool
    at: float


class Playout:
    """A queue of frames that nobody plays."""

    def __init__(self) -> None:
        self.frames = 0
        self.room = 10
        self.paused = False
        self.expecting = False
        self.transitions: list[Transition] = []
        self.underruns, self.underrun_frames, self.frames_refused = 2, 5, 0

    def __len__(self) -> int:
        return self.frames

    def pause(self, paused: bool) -> None:
        """Stand still, or go on."""
        self.paused = paused

    def put(self, audio: bytes) -> int:
        """Queue; returns the frames that have no room."""
        frames = len(audio) // 160
        taken = min(frames, self.room - self.frames)
        self.frames += taken
        self.frames_refused += frames - taken
        return frames - taken

    def flush(self) -> int:
        """Take back what waits."""
        unplayed, self.frames = self.frames, 0
        return unplayed

    def transition(self) -> Transition | None:
        """The next one, if there is one."""
        return self.transitions.pop(0) if self.transitions else None


class Uplink:
    """What the caller says."""

    def __init__(self) -> None:
        self.waiting = b""
        self.id = 7
        self.counts = UplinkCounts(*range(12))

    def take(self) -> tuple[bytes, bool]:
        """All of it; playout may have something to tell, too."""
        audio, self.waiting = self.waiting, b""
        return audio, True


class Call:
    """The media of a call; its pump is driven by hand."""

    def __init__(self) -> None:
        self.fed = Fed()
        self.playout, self.uplink = Playout(), Uplink()
        self.codec = Codec.PCMU
        self.beats: set[Any] = set()
        self.sent: list[bytes] = []
        self.first: list[inputs.Input] = []
        self.timed: list[tuple[inputs.Input, float]] = []
        self.media = CallMedia(
            self.fed.host,
            CallPlan("r", Codec.PCMU),
            cast(CallAudio, self),
            cast(MediaPump, self),
            self.sent.append,
            self.first.append,
            lambda one, at: self.timed.append((one, at)),
        )

    def add(self, audio: Any, move: Any) -> None:
        """As the pump's."""
        assert audio is self
        self.beats.add(move)

    def remove(self, audio: Any) -> None:
        """As the pump's."""
        assert audio is self
        self.beats.clear()

    def do(self, output: outputs.Output) -> None:
        """As the machine says."""
        self.media.executors[type(output)](output)

    def beat(self, said: bytes = b"") -> list[bytes]:
        """One turn of the pump; returns what the session got."""
        self.sent.clear()
        self.uplink.waiting += said
        for move in tuple(self.beats):
            move()
        return list(self.sent)


def test_audio_from_before_the_start_is_not_sent() -> None:
    call = Call()
    assert call.playout.paused
    call.uplink.waiting = b"older"
    assert call.beat() == []
    call.do(outputs.StartMedia())
    assert not call.playout.paused
    assert call.beat(FRAME) == [FRAME]
    call.media.stop()
    assert call.beat(FRAME) == []


def test_playout_stands_still_for_each_reason_until_none_is_left() -> None:
    call = Call()
    call.do(outputs.StartMedia(playout=False))
    assert call.playout.paused
    call.do(outputs.StartMedia())
    call.do(outputs.Hold(held=True, silent=False))
    call.do(outputs.Pause(True))
    call.do(outputs.Hold(held=False, silent=False))
    assert call.playout.paused
    call.do(outputs.Pause(False))
    assert not call.playout.paused


def test_on_hold_the_session_hears_nothing_or_silence() -> None:
    call = Call()
    call.do(outputs.StartMedia())
    call.do(outputs.Hold(held=True, silent=False))
    assert call.beat(FRAME) == []
    call.do(outputs.Hold(held=True, silent=True))
    assert call.beat(FRAME) == [Codec.PCMU.silence * 160]
    call.do(outputs.Hold(held=False, silent=False))
    assert call.beat(FRAME) == [FRAME]


def test_what_has_no_room_is_told_before_anything_else() -> None:
    call = Call()
    call.do(outputs.Play(FRAME * 12, more=True))
    assert call.first == [inputs.PlayoutRefused(2)]
    assert call.playout.expecting


def test_playout_that_has_drained_and_was_filled_again_has_not_drained() -> None:
    call = Call()
    call.do(outputs.StartMedia())
    call.playout.transitions = [Transition(True, 1.0), Transition(False, 2.0)]
    call.playout.frames = 1
    call.beat()
    assert call.timed == [(inputs.PlayoutStarted(), 1.0)]
    call.playout.frames = 0
    call.playout.transitions = [Transition(False, 3.0)]
    call.beat()
    assert call.timed[1:] == [(inputs.PlayoutDrained(), 3.0)]


def test_figures_of_the_audio_are_in_the_record() -> None:
    call = Call()
    call.media.finish()
    record = call.fed.record
    assert (
        record.media.underruns,
        record.media.underrun_ms,
        record.media.dropped_uplink_frames,
    ) == (2, 100, 1)
    assert record.media.uplink == asdict(call.uplink.counts)


STEADY = np.random.default_rng(7).normal(0, 1, SAMPLE_RATE)
_PCM, _RATE = synthesise("I would like to change the address of my next delivery to another one.")
WORDS = np.frombuffer(resample(_PCM, _RATE, SAMPLE_RATE), np.int16)[: 3 * SAMPLE_RATE].astype(float)
FAINT = CallerSounds(faint=True)


def at(dbfs: float, samples: np.ndarray) -> np.ndarray:
    """The same at this level (RMS)."""
    factor = 32768 * 10 ** (dbfs / 20) / float(np.sqrt((samples**2).mean()))
    return samples * factor


@pytest.mark.parametrize("codec", [Codec.PCMU, Codec.PCMA])
@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (at(-20, WORDS), {CallerSounds()}),
        (at(-43, WORDS), {FAINT}),
        (at(-46, WORDS), {FAINT}),
        (at(-44, WORDS) + at(-60, np.resize(STEADY, len(WORDS))), {FAINT}),
        (at(-20, STEADY), {CallerSounds()}),
        (at(-42, STEADY), set()),
        (at(-42, STEADY) + at(-42, WORDS)[:SAMPLE_RATE] / 4, set()),
        (at(-65, WORDS), set()),
        (np.zeros(SAMPLE_RATE), set()),
    ],
)
def test_sounds_of_a_caller(codec: Codec, samples: np.ndarray, told: set[CallerSounds]) -> None:
    analyzer = InboundAudioAnalyzer(CallPlan("route", codec))
    audio = codec.from_linear(np.clip(samples, -32768, 32767).astype(np.int16).tobytes())
    found = {
        one
        for start in range(0, len(audio), 160)
        for one in analyzer.feed(audio[start : start + 160], held=False)
    }
    assert found == told
    assert not [*analyzer.feed(audio, held=True)]


def test_audio_of_which_nothing_is_left_is_not_loud() -> None:
    analyzer = InboundAudioAnalyzer(CallPlan("r", Codec.PCMU))
    analyzer.feed(b"", held=False)  # all of it came faster than real time
    assert (analyzer.since, analyzer.until) == (None, None)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The recording of a call beside its record: waveforms, and delays as the caller felt them."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gateway.devtools.timeline.story import CALLERS_TURN, REPLY_WITHIN_MS, Story

BIN_MS = 10
"""Resolution of levels and waveforms."""

LOUD_DBFS = -45.0
"""Above this a bin has sound in it."""

_GAP_MS = 300
"""A pause shorter than this is inside a sentence."""


class SoundFileError(Exception):
    """A recording that cannot be used; the message names the file."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's delay from the caller's last sound to the agent's first, both as heard."""

    item_id: str
    from_ms: float
    to_ms: float

    @property
    def delay_ms(self) -> float:
        """Its length."""
        return self.to_ms - self.from_ms


@dataclass(frozen=True, slots=True)
class Sound:
    """Peaks of both channels, 0 to 1 for each ``BIN_MS``; the first lies at ``at_ms``."""

    caller: NDArray[np.float32]
    agent: NDArray[np.float32]
    at_ms: float

    def times_s(self) -> NDArray[np.float64]:
        """The moment of each bin, s since the INVITE."""
        at: NDArray[np.float64] = (self.at_ms + np.arange(len(self.caller)) * BIN_MS) / 1000
        return at

    def spans(self, peaks: NDArray[np.float32]) -> list[tuple[float, float]]:
        """Stretches of sound of a channel, ms since the INVITE."""
        loud = np.flatnonzero(peaks > 10 ** (LOUD_DBFS / 20))
        found: list[list[float]] = []
        for index in loud:
            at = self.at_ms + float(index) * BIN_MS
            if found and at - found[-1][1] < _GAP_MS:
                found[-1][1] = at + BIN_MS
            else:
                found.append([at, at + BIN_MS])
        return [(first, last) for first, last in found]


def read_sound(file: Path, at_ms: float) -> Sound:
    """Read a stereo WAV, caller left; its first sample lies at ``at_ms`` of the record.

    Raises SoundFileError.
    """
    try:
        with wave.open(str(file), "rb") as source:
            if source.getnchannels() != 2 or source.getsampwidth() != 2:
                raise SoundFileError(f"{file}: not a stereo WAV of 16 bit")
            rate = source.getframerate()
            samples = np.frombuffer(source.readframes(source.getnframes()), dtype="<i2")
    except (OSError, EOFError, wave.Error) as error:
        raise SoundFileError(f"{file}: cannot be read: {error}") from None
    both = np.abs(samples.reshape(-1, 2).astype(np.float32)) / 32768
    size = max(rate * BIN_MS // 1000, 1)
    whole = both[: len(both) // size * size].reshape(-1, size, 2).max(axis=1)
    return Sound(whole[:, 0], whole[:, 1], at_ms)


def replies(story: Story, sound: Sound) -> list[Reply]:
    """The delay of each answer to speech, measured in the recording."""
    callers, agents = sound.spans(sound.caller), sound.spans(sound.agent)
    found: list[Reply] = []
    for turn in story.agent:
        if turn.after != CALLERS_TURN:
            continue
        # What is heard comes a little after what the gateway played, never before.
        begins = next((first for first, _ in agents if first >= turn.from_ms - BIN_MS), None)
        if begins is None or begins - turn.from_ms > 2000:
            continue
        ends = max((last for _, last in callers if last <= begins), default=None)
        if ends is not None and begins - ends <= REPLY_WITHIN_MS:
            found.append(Reply(turn.item_id, ends, begins))
    return found


def began_speaking(sound: Sound, cut_ms: float) -> float | None:
    """When the caller's sound began that cut playback at ``cut_ms``; None when there was none."""
    for first, last in sound.spans(sound.caller):
        if first <= cut_ms <= last + _GAP_MS:
            return first
    return None

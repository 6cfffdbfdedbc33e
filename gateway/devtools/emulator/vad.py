# SPDX-License-Identifier: GPL-2.0-or-later
"""Voice activity detection of the emulator: ``server_vad`` and ``semantic_vad``.

The decision for each 20 ms frame is webrtcvad's; this module turns frames into the two events
of the protocol, ``speech_started`` and ``speech_stopped``. ``semantic_vad`` has no model behind it
here: its eagerness becomes a length of silence.
"""

from __future__ import annotations

import audioop
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
import webrtcvad

from gateway.devtools.emulator.audio import G711_RATE, AudioFormat

FRAME_MS = 20
_FRAME_BYTES = 2 * G711_RATE * FRAME_MS // 1000
# Speech begins with 60 ms of voice within 100 ms: a click is shorter.
_ONSET_WINDOW = 5
_ONSET_FRAMES = 3
_SILENCE_OF_EAGERNESS = {"low": 1200, "medium": 700, "auto": 700, "high": 350}


@dataclass(frozen=True, slots=True)
class Started:
    """The caller speaks since ``at_ms`` (ms of audio written in the session, without padding)."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The caller's turn ended at ``at_ms``; the last voiced frame ended at ``voice_end_ms``."""

    at_ms: int
    voice_end_ms: int


@dataclass(frozen=True, slots=True)
class VadSettings:
    """Turn detection as frames count it: from the session's ``turn_detection`` object."""

    threshold: float
    prefix_padding_ms: int
    silence_ms: int

    @classmethod
    def of(cls, turn_detection: Mapping[str, Any]) -> VadSettings:
        """Settings of a complete ``server_vad`` or ``semantic_vad`` object."""
        if turn_detection["type"] == "semantic_vad":
            silence = _SILENCE_OF_EAGERNESS[turn_detection["eagerness"]]
            return cls(threshold=0.5, prefix_padding_ms=300, silence_ms=silence)
        return cls(
            threshold=turn_detection["threshold"],
            prefix_padding_ms=turn_detection["prefix_padding_ms"],
            silence_ms=turn_detection["silence_duration_ms"],
        )


class VoiceDetector:
    """Finds the beginning and the end of speech in a stream of audio.

    ``start_ms`` is the position in the session's audio at which its first byte lies.
    """

    def __init__(self, settings: VadSettings, audio_format: AudioFormat, start_ms: int) -> None:
        self.settings = settings
        self._format = audio_format
        # The API's threshold (0..1, default 0.5) picks webrtcvad's mode (0..3) and a floor.
        self._vad = webrtcvad.Vad(min(3, int(settings.threshold * 4)))
        floor_dbfs = -65 + 40 * settings.threshold
        self._floor_rms = 32768 * 10 ** (floor_dbfs / 20)
        self._resampler = (
            None
            if audio_format.rate == G711_RATE
            else soxr.ResampleStream(audio_format.rate, G711_RATE, 1, dtype="int16", quality="QQ")
        )
        self._pending = b""
        self._recent: deque[bool] = deque([False] * _ONSET_WINDOW, maxlen=_ONSET_WINDOW)
        self._position_ms = start_ms
        self._silence_ms = 0
        self.speaking = False

    def feed(self, data: bytes) -> list[Started | Stopped]:
        """Take ``data`` in the session's input format; whatever began or ended in it."""
        pcm = self._format.decode(data)
        if self._resampler is not None:
            chunk = self._resampler.resample_chunk(np.frombuffer(pcm, dtype="<i2"))
            pcm = chunk.astype("<i2").tobytes()
        pcm = self._pending + pcm if self._pending else pcm
        found: list[Started | Stopped] = []
        offset = 0
        while len(pcm) - offset >= _FRAME_BYTES:
            event = self._frame(pcm[offset : offset + _FRAME_BYTES])
            if event is not None:
                found.append(event)
            offset += _FRAME_BYTES
        self._pending = pcm[offset:]
        return found

    def _frame(self, frame: bytes) -> Started | Stopped | None:
        self._position_ms += FRAME_MS
        voiced = audioop.rms(frame, 2) > self._floor_rms and self._vad.is_speech(frame, G711_RATE)
        self._recent.append(voiced)
        if not self.speaking:
            if sum(self._recent) < _ONSET_FRAMES:
                return None
            self.speaking = True
            self._silence_ms = 0
            first = self._recent.index(True)
            return Started(max(0, self._position_ms - FRAME_MS * (_ONSET_WINDOW - first)))
        self._silence_ms = 0 if voiced else self._silence_ms + FRAME_MS
        if self._silence_ms < self.settings.silence_ms:
            return None
        self.speaking = False
        self._recent.extend([False] * _ONSET_WINDOW)
        return Stopped(self._position_ms, self._position_ms - self._silence_ms)

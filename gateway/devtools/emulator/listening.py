# SPDX-License-Identifier: GPL-2.0-or-later
"""The listening side of a session: the input audio buffer, turn detection, the idle clock.

webrtcvad decides for each 20 ms frame, whether the session says ``server_vad`` or ``semantic_vad``:
that has no model behind it here, and its eagerness becomes a length of silence.
"""

from __future__ import annotations

import audioop
import random
from asyncio import TimerHandle
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import soxr
import webrtcvad

from gateway.devtools.emulator.conversation import Item
from gateway.devtools.emulator.objects import (
    Json,
    ProtocolError,
    Sender,
    new_id,
    split_at_spaces,
    transcription_usage,
)
from gateway.devtools.emulator.script import Script
from gateway.devtools.speech import FORMATS, G711_RATE, AudioFormat

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
    """Settings of :class:`VoiceDetector`, from the session's ``turn_detection``."""

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
        """Take audio in the session's input format; return beginnings and ends of speech in it."""
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


_TYPE = "conversation.item.input_audio_transcription"
_WORDS_IN_A_SEGMENT = 4


class Transcribing:
    """Sends the transcription events of one session's turns, with the script's words."""

    def __init__(self, host: Listener) -> None:
        self._host = host
        self._turns = 0

    def turn(self, item: Item, spoken_ms: int, model: str) -> None:
        """Send transcription events for a committed turn, late or failed as the script asks."""
        number, script = self._turns, self._host.script
        self._turns += 1
        words = script.transcript(number, spoken_ms)
        fails = number in script.transcription_fails
        delays = script.transcription_delays_ms
        if number < len(delays) and delays[number]:
            tell = partial(self._tell, item, words, model, fails=fails)
            self._host.later(delays[number] / 1000, tell)
        else:
            self._tell(item, words, model, fails=fails)

    def _tell(self, item: Item, words: str, model: str, *, fails: bool) -> None:
        where = {"item_id": item.id, "content_index": 0}
        if fails:
            error = {
                "type": "server_error",
                "code": "transcription_failed",
                "message": "Failed by the emulator's script.",
                "param": None,
            }
            self._host.emit({"type": f"{_TYPE}.failed", **where, "error": error})
            return
        self._host.emit({"type": f"{_TYPE}.delta", **where, "delta": words, "logprobs": None})
        if self._host.script.transcription_segments:
            self._segments(item, words, where)
        self._host.emit(
            {
                "type": f"{_TYPE}.completed",
                **where,
                "transcript": words,
                "languages": None,
                "logprobs": None,
                "usage": transcription_usage(model, item.audio_ms, words),
            }
        )
        item.body["content"][0]["transcript"] = words

    def _segments(self, item: Item, words: str, where: Json) -> None:
        """Send the words four by four as segments of even length, all of one speaker."""
        texts = split_at_spaces(words, max(1, -(-len(words.split()) // _WORDS_IN_A_SEGMENT)))
        part_s = item.audio_ms / 1000 / max(1, len(texts))
        for number, text in enumerate(texts):
            self._host.emit(
                {
                    "type": f"{_TYPE}.segment",
                    **where,
                    "id": new_id("seg"),
                    "text": text.strip(),
                    "speaker": "speaker_0",
                    "start": round(number * part_s, 3),
                    "end": round((number + 1) * part_s, 3),
                }
            )


MAX_BUFFERED_S = 600
"""Audio waiting for a commit; of a longer turn the beginning is forgotten."""
_PREROLL_S = 10
_SHORTEST_COMMIT_MS = 100


class Listener(Sender, Protocol):
    """A session as :class:`Listening` uses it."""

    script: Script

    def speech_began(self) -> None:
        """``speech_started`` was sent: interrupt what runs, if the settings say so."""

    def caller_item(
        self, item_id: str, audio: bytes, audio_format: AudioFormat, spoken_ms: int
    ) -> None:
        """Add committed audio to the conversation as this item."""

    def turn_over(self, *, idle: bool) -> None:
        """A turn ended by itself: answer it, if the settings say so."""


class Listening:
    """The input audio buffer with turn detection; positions are ms of all audio appended."""

    def __init__(self, session: Listener) -> None:
        self._session = session
        self.format: AudioFormat = FORMATS["audio/pcm"]
        """The session's input format."""
        self._turn_detection: Mapping[str, Any] | None = None
        self._buffer = bytearray()
        self._buffer_end_ms = 0.0
        self._detector: VoiceDetector | None = None
        self._item_id: str | None = None
        self._began_ms = 0
        self._voice_began_ms = 0
        self._idle: TimerHandle | None = None
        self._random = random.Random(session.script.speech.seed)
        self._interruptions = 0
        self._scripted: TimerHandle | None = None

    @property
    def written_ms(self) -> int:
        """Return how much audio was appended in this session (ms)."""
        return int(self._buffer_end_ms)

    def configure(self, audio_input: Mapping[str, Any]) -> None:
        """Take over ``session.audio.input``; a turn that is open goes on when nothing changed."""
        format_ = FORMATS[audio_input["format"]["type"]]
        detection = audio_input["turn_detection"]
        changed = format_ is not self.format or detection != self._turn_detection
        first = self._detector is None
        if format_ is not self.format:
            self._buffer.clear()
            self._item_id = None
        self.format, self._turn_detection = format_, detection
        if not changed and not first:
            return
        self.stop_idle()
        if detection is None or self._session.script.vad != "auto":
            self._detector = None
        else:
            self._detector = VoiceDetector(VadSettings.of(detection), format_, self.written_ms)
            self._item_id = None

    def append(self, data: bytes) -> None:
        """``input_audio_buffer.append``. Cheap: the detector runs only when one is wanted."""
        self._buffer += data
        self._buffer_end_ms += len(data) / self.format.bytes_per_ms
        if self._detector is not None:
            for event in self._detector.feed(data):
                if isinstance(event, Started):
                    padded = event.at_ms - self._detector.settings.prefix_padding_ms
                    self._start(max(0, padded), event.at_ms)
                else:
                    self._stop(event)
        kept_s = MAX_BUFFERED_S if self._detector is None or self._item_id else _PREROLL_S
        limit = self.format.bytes_for(kept_s * 1000)
        if len(self._buffer) > limit * 1.25:
            del self._buffer[: len(self._buffer) - limit]

    def commit(self) -> None:
        """``input_audio_buffer.commit``. Raises :class:`ProtocolError` below 100 ms of audio."""
        length = len(self._buffer) / self.format.bytes_per_ms
        if length < _SHORTEST_COMMIT_MS:
            raise ProtocolError(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. Expected at least 100ms "
                f"of audio, but buffer only has {length:.2f}ms of audio.",
            )
        self._commit(self._item_id or new_id("item"), bytes(self._buffer), int(length))

    def clear(self) -> None:
        """``input_audio_buffer.clear``."""
        self._buffer.clear()
        self._item_id = None
        self._session.emit({"type": "input_audio_buffer.cleared"})

    # Turns found by the detector

    def _start(self, began_ms: int, voice_began_ms: int) -> None:
        self.stop_idle()
        self._item_id = new_id("item")
        self._began_ms, self._voice_began_ms = began_ms, voice_began_ms
        self._session.emit(
            {
                "type": "input_audio_buffer.speech_started",
                "item_id": self._item_id,
                "audio_start_ms": began_ms,
            }
        )
        self._session.speech_began()

    def _stop(self, event: Stopped) -> None:
        item_id = self._item_id
        if item_id is None:  # the client cleared the buffer in the middle of the turn
            return
        self._session.emit(
            {
                "type": "input_audio_buffer.speech_stopped",
                "item_id": item_id,
                "audio_end_ms": event.at_ms,
            }
        )
        wanted = self.format.bytes_for(self.written_ms - self._began_ms)
        spoken = max(FRAME_MS, event.voice_end_ms - self._voice_began_ms)
        self._commit(item_id, bytes(self._buffer[-wanted:]) if wanted else b"", spoken)
        self._session.turn_over(idle=False)

    def _commit(self, item_id: str, audio: bytes, spoken_ms: int) -> None:
        self._buffer.clear()
        self._item_id = None
        self._session.caller_item(item_id, audio, self.format, spoken_ms)

    # Scripted speech

    def agent_audio_began(self) -> None:
        """Plan the next scripted interruption, since the first audio of a response went out."""
        script = self._session.script
        if script.vad != "scripted" or self._scripted is not None:
            return
        speech = script.speech
        moments = speech.at_ms
        if self._interruptions >= (len(moments) or speech.count):
            return
        after_ms = (
            moments[self._interruptions]
            if moments
            else self._random.randint(speech.min_ms, speech.max_ms)
        )
        self._interruptions += 1
        self._scripted = self._session.later(after_ms / 1000, self._scripted_start)

    def _scripted_start(self) -> None:
        self._scripted = None
        self.pretend_speech(self._session.script.speech.length_ms)

    def pretend_speech(self, length_ms: int = 300) -> None:
        """Send ``speech_started`` now, ``speech_stopped`` and the end of the turn ``length_ms``
        later, whatever the caller does."""
        if self._item_id is None:
            self._start(self.written_ms, self.written_ms)
            self._scripted = self._session.later(length_ms / 1000, self._scripted_stop)

    def end_speech(self) -> None:
        """End the speech of :meth:`pretend_speech` now; nothing without it."""
        if self._scripted is not None:
            self._scripted.cancel()
            self._scripted_stop()

    def _scripted_stop(self) -> None:
        self._scripted = None
        self._stop(Stopped(self.written_ms, self.written_ms))

    # The idle clock

    def start_idle(self, delay_s: float) -> None:
        """Start ``idle_timeout_ms`` in ``delay_s``, when the audio of a response was heard."""
        self.stop_idle()
        timeout_ms = (self._turn_detection or {}).get("idle_timeout_ms")
        if timeout_ms is not None and self._item_id is None:
            self._idle = self._session.later(delay_s + timeout_ms / 1000, self._idled)

    def stop_idle(self) -> None:
        """Stop the idle timeout: the caller or the model speaks."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _idled(self) -> None:
        self._idle = None
        timeout_ms = (self._turn_detection or {}).get("idle_timeout_ms") or 0
        item_id = new_id("item")
        end = self.written_ms
        self._session.emit(
            {
                "type": "input_audio_buffer.timeout_triggered",
                "item_id": item_id,
                "audio_start_ms": max(0, end - timeout_ms),
                "audio_end_ms": end,
            }
        )
        audio = bytes(self._buffer[-self.format.bytes_for(timeout_ms) :])
        self._commit(item_id, audio, 0)
        self._session.turn_over(idle=True)

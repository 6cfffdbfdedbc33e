"""Transcription of the caller's turns: the events, in time and out of it.

The emulator knows no words: it sends the script's, or how long the caller spoke.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from gateway.devtools.emulator.conversation import Item
from gateway.devtools.emulator.listening import Cancellable
from gateway.devtools.emulator.objects import Json, new_id, transcription_usage
from gateway.devtools.emulator.pieces import pieces
from gateway.devtools.emulator.script import Script

_TYPE = "conversation.item.input_audio_transcription"
_WORDS_IN_A_SEGMENT = 4


class Host(Protocol):
    """What is needed of the session."""

    script: Script

    def emit(self, event: Json, audio: bytes = b"") -> None:
        """Put an event in the way to the client."""

    def later(self, delay_s: float, action: Callable[[], None]) -> Cancellable:
        """Call ``action`` after a delay, unless the connection ends before."""


class Transcribing:
    """Counts the turns of one session, and says what each was."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._turns = 0

    def turn(self, item: Item, spoken_ms: int, model: str) -> None:
        """A turn was committed whose session wants transcription, by this model."""
        number, script = self._turns, self._host.script
        self._turns += 1
        words = f"({spoken_ms / 1000:.1f} seconds of speech, not transcribed)"
        if scripted := script.transcripts:
            words = scripted[min(number, len(scripted) - 1)]
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
        """The words by fours, over the turn's length in even parts, all of one speaker."""
        texts = pieces(words, max(1, -(-len(words.split()) // _WORDS_IN_A_SEGMENT)))
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The listening side of a Live session, and the transcripts of both sides."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Protocol

from gateway.devtools.emulator.dialogue import CallerAudio, Turn
from gateway.devtools.emulator.listening import Started, VadSettings, VoiceDetector
from gateway.devtools.emulator.objects import Json, pieces
from gateway.devtools.emulator.script import Answer, Script
from gateway.devtools.emulator.speech import AudioFormat

_PREROLL_MS = 300
_BACKCHANNEL_AFTER_MS = 600
_FRAGMENT_MS = 200


class Host(Protocol):
    """What is needed of the session."""

    script: Script
    position_ms: int

    def at(self, delay_ms: float, action: Callable[[], None]) -> None:
        """Call ``action`` when the session's clock is so far on."""

    def cut(self) -> None:
        """Stop speaking."""

    def next_answer(self) -> Answer:
        """What the script says for the next answer."""

    def answer(
        self,
        turn: Turn,
        answer: Answer,
        caller: CallerAudio | None = None,
        *,
        cuttable: bool = True,
    ) -> None:
        """Answer ``turn``; ``caller`` is its sound."""

    def fragment(self, event: Json) -> None:
        """Send a transcript fragment."""


class Transcripts:
    """Fragments of both sides, ``live.transcript_lag_ms`` after their sound."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._begun: set[str] = set()
        self._waiting: dict[int, tuple[int, Callable[[], None]]] = {}
        self._numbers = itertools.count()

    def flush(self) -> None:
        """Send the fragments of what was said so far: the session ends."""
        for key, (end, _) in list(self._waiting.items()):
            if end <= self._host.position_ms:
                self._due(key)

    def plan(
        self,
        side: str,
        text: str,
        start_ms: int,
        length_ms: int,
        sent_until_ms: Callable[[], int] | None = None,
    ) -> None:
        """Transcribe ``text``, spoken since ``start_ms``, in fragments of 200 ms and longer.

        Fragments from ``sent_until_ms`` on, which is asked when each is due, are left out.
        """
        parts = pieces(text, max(1, length_ms // _FRAGMENT_MS)) if text.strip() else []
        lag = self._host.script.live.transcript_lag_ms
        for number, part in enumerate(parts):
            begin = start_ms + length_ms * number // len(parts)
            end = start_ms + length_ms * (number + 1) // len(parts)

            def tell(part: str = part, begin: int = begin, end: int = end) -> None:
                if sent_until_ms is None or begin < sent_until_ms():
                    self._tell(side, part, begin, end)

            key = next(self._numbers)
            self._waiting[key] = (end, tell)
            delay = max(0, end + lag - self._host.position_ms)
            self._host.at(delay, partial(self._due, key))

    def _due(self, key: int) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting[1]()

    def _tell(self, side: str, part: str, begin: int, end: int) -> None:
        if side in self._begun and not part.startswith(" "):
            part = f" {part}"
        self._begun.add(side)
        event = {"type": f"session.{side}_transcript.delta", "delta": part}
        self._host.fragment({**event, "start_ms": begin, "end_ms": end})


class LiveListening:
    """Takes the caller's audio as the clock does, and finds the turns in it."""

    def __init__(self, host: Host, transcripts: Transcripts, audio_format: AudioFormat) -> None:
        self._host = host
        self._transcripts = transcripts
        self._format = audio_format
        self._live = host.script.live
        self._detector: VoiceDetector | None = None
        if host.script.vad == "auto":
            settings = VadSettings(0.5, 0, self._live.turn_silence_ms)
            self._detector = VoiceDetector(settings, audio_format, 0)
        self._recent = bytearray()
        self._turn = bytearray()
        self._began_ms: int | None = None
        self._backchannelled = False
        self._turns = 0
        self._random = random.Random(host.script.speech.seed)
        self._interruptions = 0

    def agent_began(self) -> None:
        """The agent speaks: plan the next interruption of a script with ``vad = "scripted"``."""
        script, number = self._host.script, self._interruptions
        speech = script.speech
        if script.vad != "scripted" or number >= (len(speech.at_ms) or speech.count):
            return
        self._interruptions += 1
        random_ms = self._random.randint(speech.min_ms, speech.max_ms)
        after_ms = speech.at_ms[number] if speech.at_ms else random_ms
        self._host.at(after_ms, partial(self.pretend_speech, speech.length_ms))

    def hear(self, chunk: bytes) -> None:
        """Take the next ``live.chunk_ms`` of the caller."""
        self._recent += chunk
        if self._began_ms is not None:
            self._turn += chunk
        keep = self._format.bytes_for(_PREROLL_MS)
        del self._recent[: max(0, len(self._recent) - keep)]
        for event in self._detector.feed(chunk) if self._detector is not None else ():
            if isinstance(event, Started):
                self._began(event.at_ms)
            else:
                self._ended(event.voice_end_ms)
        if self._began_ms is None:
            return
        spoken = self._host.position_ms + self._live.chunk_ms - self._began_ms
        if self._live.backchannel and spoken >= _BACKCHANNEL_AFTER_MS and not self._backchannelled:
            self._backchannelled = True
            words = Answer(kind="say", text=self._live.backchannel)
            self._host.answer(Turn(), words, cuttable=False)
        if not self._live.talks_on and spoken >= self._live.interrupt_ms:
            self._host.cut()

    def pretend_speech(self, length_ms: int) -> None:
        """Behave as if the caller spoke for ``length_ms`` from now, whatever comes."""
        self._began(self._host.position_ms)
        self._host.at(length_ms, lambda: self._ended(self._host.position_ms))

    def _began(self, at_ms: int) -> None:
        if self._began_ms is None:
            self._began_ms = at_ms
            self._turn = bytearray(self._recent)
            self._backchannelled = False

    def _ended(self, at_ms: int) -> None:
        if self._began_ms is None:
            return
        began, self._began_ms = self._began_ms, None
        spoken = max(20, at_ms - began)
        number, scripted = self._turns, self._host.script.transcripts
        self._turns += 1
        words = f"({spoken / 1000:.1f} seconds of speech, not transcribed)"
        if scripted:
            words = scripted[min(number, len(scripted) - 1)]
        self._transcripts.plan("input", words, began, spoken)
        turn = Turn(caller_spoke=True, spoken_ms=spoken)
        self._host.answer(turn, self._host.next_answer(), (bytes(self._turn), self._format))
        self._turn = bytearray()

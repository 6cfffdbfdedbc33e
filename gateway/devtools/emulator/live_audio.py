# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio of a Live session: the output track, turn detection of the input, transcripts."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from gateway.devtools.emulator.dialogue import CallerAudio, Turn
from gateway.devtools.emulator.listening import Started, VadSettings, VoiceDetector
from gateway.devtools.emulator.objects import Json, Sender, split_at_spaces
from gateway.devtools.emulator.response import Content
from gateway.devtools.emulator.script import Answer, Script
from gateway.devtools.speech import AudioFormat

_PREROLL_MS = 300
_BACKCHANNEL_AFTER_MS = 600
_FRAGMENT_MS = 200


@dataclass(slots=True)
class Utterance:
    """Speech or a fixture on a track: ``audio`` in the session's format."""

    audio: bytes
    text: str = ""
    answer: Answer = field(default_factory=Answer)
    began: Callable[[], None] | None = None
    ended: Callable[[], None] | None = None
    fixture: bool = False
    interruptible: bool = True
    taken: int = 0
    """Bytes of it that were sent."""
    start_ms: int = 0
    number: int = 0
    """Which one it is on its track."""


class Track:
    """The output audio: utterances in turn, silence between.

    ``begun`` is called with each utterance as its first byte is taken.
    """

    def __init__(
        self, audio_format: AudioFormat, chunk_ms: int, begun: Callable[[Utterance], None]
    ) -> None:
        self._format = audio_format
        self._chunk_ms = chunk_ms
        self._begun = begun
        self._queue: deque[Utterance] = deque()
        self.count = 0
        """Utterances that were put here."""
        self._held = bytearray()
        self._held_until_ms: float | None = None

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def fixture(self) -> bool:
        """Whether a fixture plays, or waits to."""
        return any(one.fixture for one in self._queue)

    def put(self, utterance: Utterance) -> None:
        """Append an utterance to the track."""
        self.count += 1
        utterance.number = self.count
        self._queue.append(utterance)

    def stop_speaking(self, until: int | None = None) -> None:
        """Drop what was not sent of the utterances up to number ``until``, or of all.

        Fixtures and utterances that are not ``interruptible`` stay.
        """
        last = self.count if until is None else until
        self._queue = deque(
            one for one in self._queue if one.fixture or not one.interruptible or one.number > last
        )
        self._held_until_ms = None

    def sent_until_ms(self, one: Utterance) -> int:
        """Return the session's time (ms) up to which an utterance was sent."""
        return one.start_ms + self._format.length_ms(one.taken)

    def take(self, position_ms: int) -> list[bytes]:
        """Return the chunks to send as the clock reaches ``position_ms``: one, as a rule.

        No chunk while an answer stalls, several after that and for a burst.
        """
        size = self._format.bytes_for(self._chunk_ms)
        audio = bytearray()
        while len(audio) < size and self._queue:
            one = self._queue[0]
            if not one.taken:
                offset_ms = self._format.length_ms(len(audio))
                one.start_ms = position_ms - self._chunk_ms + offset_ms
                self._begun(one)
            wanted = len(one.audio) if one.answer.burst else size - len(audio)
            part = one.audio[one.taken : one.taken + wanted]
            if one.answer.stall_at_ms is not None:
                stall_at = self._format.bytes_for(one.answer.stall_at_ms)
                if one.taken <= stall_at < one.taken + len(part):
                    self._held_until_ms = position_ms + one.answer.stall_s * 1000
            one.taken += max(1, len(part))
            audio += part
            if one.taken >= len(one.audio):
                self._queue.popleft()
                if one.ended is not None:
                    one.ended()
        if len(audio) < size:
            audio += self._format.silence(self._chunk_ms)[: size - len(audio)]
        self._held += audio
        if self._held_until_ms is not None and position_ms < self._held_until_ms:
            return []
        audio, self._held, self._held_until_ms = self._held, bytearray(), None
        return [bytes(audio[start : start + size]) for start in range(0, len(audio), size)]


class LiveHost(Sender, Protocol):
    """A Live session, as its audio and its delegations use it."""

    script: Script
    settings: Json
    position_ms: int

    @property
    def speaking(self) -> bool:
        """Whether the output track has speech."""

    def at(self, delay_ms: float, action: Callable[[], None]) -> None:
        """Call ``action`` after ``delay_ms`` of the session's clock."""

    def next_answer(self) -> Answer:
        """Return what the script has for the next answer."""

    def answer(
        self,
        turn: Turn,
        answer: Answer,
        caller: CallerAudio | None = None,
        *,
        interruptible: bool = True,
    ) -> None:
        """Answer ``turn``; ``caller`` is the audio of it."""

    def make(self, answer: Answer, turn: Turn, made: Callable[[Content], None]) -> None:
        """Make the audio of an answer; call ``made`` with it."""

    def say_content(self, content: Content, answer: Answer) -> None:
        """Put the audio of an answer on the track."""

    def speak_text(self, text: str) -> None:
        """Speak ``text``."""

    def stop_speaking(self) -> None:
        """Stop speaking."""

    def fragment(self, event: Json) -> None:
        """Send a transcript fragment."""

    def acknowledge(self, type_: str, **fields: Any) -> None:
        """Answer the client event that is being handled."""

    def handoff_incomplete(self) -> None:
        """Send the ``error`` of a backend that used up its tokens."""


class Transcripts:
    """Sends transcript fragments of both sides, ``live.transcript_lag_ms`` after their sound."""

    def __init__(self, host: LiveHost) -> None:
        self._host = host
        self._begun: set[str] = set()
        self._waiting: dict[int, tuple[int, Callable[[], None]]] = {}
        self._numbers = itertools.count()

    def flush(self) -> None:
        """Send all fragments whose sound has ended, as the session ends."""
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
        """Schedule transcript fragments of 200 ms or more for ``text``, spoken since ``start_ms``.

        Fragments that begin after ``sent_until_ms()``, asked when each is due, are left out.
        """
        parts = split_at_spaces(text, max(1, length_ms // _FRAGMENT_MS)) if text.strip() else []
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
    """Finds turns in the caller's audio, and answers, interrupts or backchannels by the script."""

    def __init__(self, host: LiveHost, transcripts: Transcripts, audio_format: AudioFormat) -> None:
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
        """Schedule the next scripted interruption (``vad = "scripted"``), as the agent begins."""
        script, number = self._host.script, self._interruptions
        speech = script.speech
        if script.vad != "scripted" or number >= (len(speech.at_ms) or speech.count):
            return
        self._interruptions += 1
        random_ms = self._random.randint(speech.min_ms, speech.max_ms)
        after_ms = speech.at_ms[number] if speech.at_ms else random_ms
        self._host.at(after_ms, partial(self.pretend_speech, speech.length_ms))

    def hear(self, chunk: bytes) -> None:
        """Take the next ``live.chunk_ms`` of the caller's audio."""
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
            self._host.answer(Turn(), words, interruptible=False)
        if not self._live.talks_on and spoken >= self._live.interrupt_ms:
            self._host.stop_speaking()

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
        """Handle the end of the caller's speech at ``at_ms``."""
        if self._began_ms is None:
            return
        began, self._began_ms = self._began_ms, None
        spoken = max(20, at_ms - began)
        words = self._host.script.transcript(self._turns, spoken)
        self._turns += 1
        self._transcripts.plan("input", words, began, spoken)
        turn = Turn(caller_spoke=True, spoken_ms=spoken)
        self._host.answer(turn, self._host.next_answer(), (bytes(self._turn), self._format))
        self._turn = bytearray()

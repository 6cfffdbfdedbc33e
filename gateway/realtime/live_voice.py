# SPDX-License-Identifier: GPL-2.0-or-later
"""The voice of a Live session: its endless track as responses of one item each.

Each stretch of speech is a response, whose words follow seconds later; its name says nothing to the
server. What is said to somebody else than the caller (a briefing) is a response with the metadata
of its request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.audio.g711 import Codec
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    AudioDelta,
    AudioDone,
    CreateResponse,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
    TrackWords,
)
from gateway.realtime.live_audio import END_MS, SpeechBegins, SpeechTrack, Stretches
from gateway.realtime.live_backend import texts

BRIEFING_END_MS = 1500
"""Silence that ends what is said to somebody else than the caller: all of it is one stretch."""

NOT_TO_THE_CALLER = (
    "What you say next is heard by a colleague who is about to take over this caller, and not by "
    "the caller, who waits."
)

TO_THE_CALLER = (
    "Stop what you are saying to the colleague: they have heard enough. From now on it is the "
    "caller again who hears you."
)

DISCARD_SECONDS, DISCARDED_END_MS = 1.5, 200
"""How long a voice that was told to stop may still begin what nobody is to hear (s); and the
silence that ends it (ms)."""


@dataclass(frozen=True, slots=True)
class LivePlayout:
    """What the call has for a Live session: the conversation so far, and a queue to play from."""

    queued_ms: Callable[[], int]
    """Returns what waits to be heard."""
    underruns: Callable[[], int] = lambda: 0
    """Returns how often nothing did while more was to come."""
    max_queue_ms: int = 300
    """Where more waits, silence is left out."""
    history: Sequence[Mapping[str, Any]] = ()
    """Items of the conversation that it goes on with."""


BY_SECONDS = {"type": "duration", "seconds": 0}
"""Usage of a stretch of speech: the session is billed, and not what is said in it."""

NO_PLAYOUT = LivePlayout(lambda: 0)
"""Where nobody hears it."""


class Voice:
    """What a Live session says. Methods take the time (s).

    Args:
        deliver: takes the events that tell of it.
    """

    def __init__(
        self, codec: Codec, playout: LivePlayout, deliver: Callable[[ServerEvent], None]
    ) -> None:
        self._deliver = deliver
        self.track = SpeechTrack(codec, playout.max_queue_ms, playout.queued_ms, playout.underruns)
        self._stretches = Stretches("speech_")
        self._briefing: Mapping[str, Any] | None = None
        """Metadata of what is to be said next, to somebody else than the caller."""
        self._briefed = ""
        """Id of the stretch that is heard by somebody else."""
        self._discarding = False
        """What is being said is heard by nobody."""
        self._discard_until = 0.0
        """Until when what begins is heard by nobody (s)."""
        self.clip_words = ""
        """Of a clip that is to be played."""

    def brief(self, command: CreateResponse) -> list[dict[str, Any]]:
        """Return the client events by which the voice says something to somebody else than the
        caller: nobody else is to hear what it says next."""
        response, words = command.response or {}, command.words
        self._briefing = response.get("metadata") or {}
        self._discard_until = 0.0
        self.track.end_ms = BRIEFING_END_MS
        told = texts("thinking", NOT_TO_THE_CALLER)
        if words:
            return told + texts("commentary", words)
        return told + texts("instructions", str(response.get("instructions") or ""))

    def briefs(self, response_id: str) -> bool:
        """Return whether this names what is being said to somebody else, or is about to be."""
        return response_id == self._briefed and bool(response_id or self._briefing)

    def end_briefing(self, now: float) -> list[dict[str, Any]]:
        """End what is said to somebody else, and let nobody hear the rest of it."""
        self._briefing, self._briefed = None, ""
        self._discarding = self.track.speaking
        self._discard_until = now + DISCARD_SECONDS
        self._speech_over(self.track.ms)
        self.track.end_ms = DISCARDED_END_MS
        return texts("instructions", TO_THE_CALLER)

    def feed(self, audio: bytes, now: float) -> None:
        """Take the next piece of the track."""
        if self._discarding and now >= self._discard_until:
            # It has gone on without a pause: what comes now is for the caller.
            self._discarding, self.track.end_ms = False, END_MS
            begun = self._stretches.begin(self.track.ms)
            self._deliver(ResponseCreated(begun.id, {}))
        for part in self.track.feed(audio):
            if isinstance(part, bytes):
                speech = self._stretches.latest
                if part and speech is not None and not self._discarding:
                    self._deliver(AudioDelta(speech.id, speech.id, 0, part))
            elif isinstance(part, SpeechBegins):
                begun = self._stretches.begin(part.at_ms)
                if now < self._discard_until:
                    self._discarding = begun.told = True
                    continue
                clip, self.clip_words = self.clip_words, ""
                metadata, self._briefing = self._briefing or {}, None
                self._briefed = begun.id if metadata else ""
                self._deliver(ResponseCreated(begun.id, metadata))
                if clip:  # of a clip the server has no words
                    begun.told = True
                    self._deliver(AgentTranscript(begun.id, begun.id, 0, clip))
            elif self._discarding:
                self._discarding, self._discard_until = False, 0.0
                self.track.end_ms = END_MS
                if (speech := self._stretches.latest) is not None:
                    speech.end_ms = part.at_ms
            else:
                self._speech_over(part.at_ms)

    def _speech_over(self, at_ms: int) -> None:
        """Complete the response of this speech; ``at_ms`` is its end in the model's audio (ms)."""
        speech = self._stretches.latest
        if speech is None or speech.end_ms is not None:
            return
        speech.end_ms = at_ms
        if self._briefing is None:
            self.track.end_ms = END_MS
        self._deliver(AudioDone(speech.id, speech.id, 0))
        self._deliver(ResponseDone(speech.id, "completed", None, None, None, (), BY_SECONDS))

    def over(self) -> None:
        """End the stretch that is being said: the session is over."""
        self._speech_over(self.track.ms)

    def words(self, words: TrackWords, now: float) -> None:
        """Take words of what was said."""
        stretch = self._stretches.words(words.text, words.start_ms, now)
        until = max(0, words.end_ms - stretch.start_ms)
        self._deliver(AgentTranscriptDelta(stretch.id, stretch.id, 0, words.text, until))

    def tell_complete(self, now: float, *, all: bool) -> None:
        """Hand on the words of stretches that have come to their end."""
        for one in self._stretches.complete(now, all=all):
            self._deliver(AgentTranscript(one.id, one.id, 0, one.text.strip()))

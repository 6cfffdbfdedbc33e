# SPDX-License-Identifier: GPL-2.0-or-later
"""The voice of a Live session as responses, and its backend's (``delegation.type = "responses"``).

Each stretch of speech in the endless track is a response of one item, whose words follow seconds
later; its name says nothing to the server. What is said to somebody else than the caller (a
briefing) is a response with the metadata of its request.

The backend's responses come as ``response.event``, one event of a Responses stream each. What they
call is gathered from ``response.output_item.done``, as ``response.completed`` has no output; all
calls of a response have to be answered before one ``response.create`` goes on with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import orjson

from gateway.audio.codecs import Codec
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    AppendText,
    AudioDelta,
    AudioDone,
    BackendEvent,
    Channel,
    ClientCommand,
    CreateResponse,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
    TrackWords,
)
from gateway.realtime.live_audio import END_MS, SpeechBegins, SpeechTrack, Stretches
from gateway.realtime.parse import item_of, items_of

MAX_STREAMS = 16
"""Responses that run at a time; the oldest is forgotten."""

MAX_ITEMS = 64
"""Items kept of one response."""

MAX_OPEN = 256
"""Calls that wait for their results."""

MAX_QUESTIONS = 16
"""Questions of ours that wait for their turn."""

MAX_APPEND = 1400
"""Bytes of UTF-8 in one piece of text: 500 tokens have three at least."""

_OUT_OF_BAND = (
    "A question of the operator, which the caller neither asked nor is to hear. Answer it in text, "
    "without calling any function, and then go on as if it had not been asked.\n\n"
)
_NO_FUNCTIONS = '{"error": "no functions while a question of the operator is answered"}'

_ENDS = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
    "error": "failed",
}


@dataclass(slots=True)
class _Stream:
    """One response as far as it has come."""

    id: str = ""
    model: str = ""
    items: list[Mapping[str, Any]] = field(default_factory=list)


class Backend:
    """Gathers the calls of the backend's responses, and knows when it may go on.

    Args:
        model: that the session was started with; a response may name another.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._streams: dict[str, _Stream] = {}
        """By the delegation that they belong to; "" for what we began ourselves."""
        self._open: dict[str, None] = {}
        """Ids of calls that are not answered."""
        self._waits = False
        """``response.create`` waits for results that are missing."""
        self._questions: deque[CreateResponse] = deque()
        """Questions of ours that wait."""
        self._answered = self._undelegated = False
        """Calls of a response were answered; and what it does next belongs to no delegation."""
        self._asked: CreateResponse | None = None
        """The one that is being answered."""
        self._over_count = 0
        """Responses that are over."""

    def ask(self, question: CreateResponse) -> None:
        """Queue a question beside the conversation, for when the backend does nothing else."""
        if len(self._questions) < MAX_QUESTIONS:
            self._questions.append(question)

    def next_question(self) -> tuple[CreateResponse, list[dict[str, Any]]] | None:
        """Return the question that may be asked now, with its client events."""
        busy = self._streams or self._open or self._waits or self._asked is not None
        if busy or not self._questions:
            return None
        self._asked = self._questions.popleft()
        text = _OUT_OF_BAND + str((self._asked.response or {}).get("instructions") or "")
        part = {"type": "input_text", "text": text}
        item = {"type": "message", "role": "developer", "content": [part]}
        bodies: list[dict[str, Any]] = [
            {"type": "response.item.create", "item": item},
            {"type": "response.create"},
        ]
        return self._asked, bodies

    def refused(self, question: object) -> None:
        """Handle a question that the server has refused."""
        if question is self._asked:
            self._asked = None

    def on_event(self, event: BackendEvent) -> list[ResponseCreated | ResponseDone]:
        """Take the next event of a response; return the response when it is over.

        That of a question of ours is created only then, with the metadata of the question.
        """
        done = self._done(event)
        if done is None or event.delegation_id or self._asked is None:
            return [] if done is None else [done]
        asked, self._asked = self._asked, None
        return [ResponseCreated(done.response_id, (asked.response or {})["metadata"]), done]

    def found_later(self, event: BackendEvent, done: ResponseDone) -> str:
        """Return what the voice is to say of a response that nobody delegated, as it is not told of
        it."""
        if event.delegation_id or not self._undelegated:
            return ""
        self._undelegated = False
        return words_of(done)

    def refuse_functions(self, done: ResponseDone) -> list[dict[str, Any]]:
        """Answer functions that were called for a question of ours; that needs no response."""
        calls = [one.get("call_id") for one in done.output if one.get("type") == "function_call"]
        return [
            body
            for call_id in calls
            for body in self.answer(
                {"type": "function_call_output", "call_id": call_id, "output": _NO_FUNCTIONS}
            )
        ]

    def _done(self, event: BackendEvent) -> ResponseDone | None:
        """Handle an event of the backend's response; return the response if it is done."""
        inner, name = event.event, event.delegation_id
        kind = inner.get("type")
        told = inner.get("response")
        told = told if isinstance(told, Mapping) else {}
        if kind == "response.created" or name not in self._streams:
            self._streams.pop(name, None)
            self._streams[name] = _Stream(model=self._model)
            if len(self._streams) > MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
        stream = self._streams[name]
        stream.id = _text(told.get("id")) or stream.id
        stream.model = _text(told.get("model")) or stream.model
        item = inner.get("item")
        if kind == "response.output_item.done" and isinstance(item, Mapping):
            if len(stream.items) < MAX_ITEMS:
                stream.items.append(item_of(item))
            return None
        status = _ENDS.get(kind) if isinstance(kind, str) else None
        if status is None:
            return None
        del self._streams[name]
        return self._over(stream, status, told, inner)

    def _over(
        self,
        stream: _Stream,
        status: str,
        told: Mapping[str, Any],
        inner: Mapping[str, Any],
    ) -> ResponseDone:
        """Complete a response of the backend."""
        output = told.get("output")
        if not stream.items:
            stream.items += items_of(output)[:MAX_ITEMS]
        if status == "completed":
            for item in stream.items:
                call_id = item.get("call_id")
                if item.get("type") == "function_call" and isinstance(call_id, str):
                    self._open[call_id] = None
                    if len(self._open) > MAX_OPEN:
                        del self._open[next(iter(self._open))]
        error = told.get("error")
        error = error if isinstance(error, Mapping) else inner
        details = told.get("incomplete_details")
        usage = told.get("usage")
        self._over_count += 1
        return ResponseDone(
            stream.id or f"backend_{self._over_count}",
            status,
            _text(details.get("reason")) if isinstance(details, Mapping) else None,
            _text(error.get("code")) if status == "failed" else None,
            _text(error.get("message")) if status == "failed" else None,
            tuple(stream.items),
            usage if isinstance(usage, Mapping) else None,
            stream.model or "backend",
        )

    def answer(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the client events that hand over the result of a call.

        Of a call that this session does not know (one before asked for it) it is a message.
        """
        call_id = item.get("call_id")
        if call_id not in self._open:
            text = f"The result of a function that was called before: {item.get('output')}"
            part = {"type": "input_text", "text": text}
            item = {"type": "message", "role": "developer", "content": [part]}
        else:
            del self._open[call_id]
            self._answered = True
        return [{"type": "response.item.create", "item": dict(item)}, *self._due()]

    def go_on(self) -> list[dict[str, Any]]:
        """Return ``response.create``, once all calls are answered."""
        self._waits = True
        return self._due()

    def _due(self) -> list[dict[str, Any]]:
        if self._open or not self._waits:
            return []
        self._waits = False
        # Another attempt, or results of calls that an earlier session has made.
        self._undelegated = not self._answered
        self._answered = False
        return [{"type": "response.create"}]


def _text(value: object) -> str | None:
    return value[:500] if isinstance(value, str) else None


def words_of(done: ResponseDone) -> str:
    """Return the text of a response that is complete."""
    messages = [item for item in done.output if item.get("type") == "message"]
    parts = [part for item in messages for part in item.get("content") or ()]
    texts = [_text(part.get("text")) or "" for part in parts if isinstance(part, Mapping)]
    return "" if done.status != "completed" else "".join(texts)


def is_question(command: ClientCommand) -> TypeGuard[CreateResponse]:
    """Whether this asks something in text, beside the conversation."""
    if not isinstance(command, CreateResponse) or "conversation" not in (command.response or {}):
        return False
    return "audio" not in (command.response or {}).get("output_modalities", ())


def answers(output: str, task: str) -> list[dict[str, Any]]:
    """Return the client events that give the voice what a function found for a delegated task.

    A text is spoken; of an object ``commentary`` is spoken, and ``thinking`` known; any other
    object is known.
    """
    try:
        found = orjson.loads(output)
    except orjson.JSONDecodeError:
        found = output
    if isinstance(found, str):
        return texts("commentary", found, task)
    said = found if isinstance(found, dict) else {}
    channels: tuple[Channel, Channel] = ("thinking", "commentary")
    known = [(one, said[one]) for one in channels if isinstance(said.get(one), str)]
    if not known:
        return texts("thinking", output, task)
    return [body for channel, text in known for body in texts(channel, text, task)]


def texts(channel: Channel, text: str, task: str | None = None) -> list[dict[str, Any]]:
    """``text`` in as many appends as its length takes, cut between words.

    ``task`` is that which was handed over, where they answer one.
    """
    bodies: list[dict[str, Any]] = []
    piece = ""
    for word in text.split(" "):
        longer = f"{piece} {word}" if piece else word
        if len(longer.encode()) > MAX_APPEND and piece:
            bodies.append(AppendText(channel, piece, task).body())
            longer = word
        piece = longer
    while len(piece.encode()) > MAX_APPEND:  # a word that is none
        head = piece.encode()[:MAX_APPEND].decode(errors="ignore")
        bodies.append(AppendText(channel, head, task).body())
        piece = piece[len(head) :]
    return [*bodies, AppendText(channel, piece, task).body()] if piece else bodies


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
        """Return whether this response is the briefing of a B-leg, spoken now or about to be."""
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
        """Take the next piece of the track: deliver its speech as events of responses."""
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
        """Take words of the track and deliver them as transcript of the stretch that they are
        of."""
        stretch = self._stretches.words(words.text, words.start_ms, now)
        until = max(0, words.end_ms - stretch.start_ms)
        self._deliver(AgentTranscriptDelta(stretch.id, stretch.id, 0, words.text, until))

    def tell_complete(self, now: float, *, all: bool) -> None:
        """Hand on the words of stretches that have come to their end."""
        for one in self._stretches.complete(now, all=all):
            self._deliver(AgentTranscript(one.id, one.id, 0, one.text.strip()))

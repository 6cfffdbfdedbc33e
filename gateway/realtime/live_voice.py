# SPDX-License-Identifier: GPL-2.0-or-later
"""Responses of a Live session: those of its voice, and of its backend (``responses`` delegation).

Each stretch of speech in the endless track becomes a response of one item, whose words follow
seconds later; its id is ours. The briefing of a colleague is a response with the metadata of its
request.

The backend's responses come as ``response.event``, one event of a Responses stream each. Function
calls are collected from ``response.output_item.done``, as ``response.completed`` has no output; all
calls of a response must be answered before one ``response.create`` continues it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import orjson

from gateway.audio import Codec
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    AppendText,
    AudioDelta,
    AudioDone,
    BackendEvent,
    Channel,
    ClientCommand,
    ContinueWork,
    CreateResponse,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
    TrackWords,
)
from gateway.realtime.live_audio import END_MS, SpeechBegins, SpeechTrack, Stretches
from gateway.realtime.parse import item_of, items_of

MAX_STREAMS = 16
"""Responses of the backend that run at a time; beyond that the oldest is dropped."""

MAX_ITEMS = 64
"""Items kept of one response."""

MAX_OPEN = 256
"""Function calls that wait for their results."""

MAX_QUESTIONS = 16
"""Out-of-band questions that wait for the backend."""

STUCK_SECONDS = 60.0
"""How long a question waits for a busy backend of which no event comes (s); then it is asked."""

MAX_APPEND = 1400
"""Bytes of UTF-8 in one append: the limit is 500 tokens, of three bytes at least."""

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
    """One response of the backend that has not ended: its id, the backend's model, the out-of-band
    question that it answers, if any, and the items that are complete, 64 at most."""

    id: str = ""
    model: str = ""
    question: CreateResponse | None = None
    items: list[Mapping[str, Any]] = field(default_factory=list)


class Backend:
    """Collects the responses and function calls of a Live session's backend, and asks it
    out-of-band questions, one at a time.

    Args:
        model: of the backend at the start of the session, "" if unknown; a response may name
            another.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._streams: BoundedDict[str, _Stream] = BoundedDict(MAX_STREAMS)
        """By delegation id; "" for a response that we requested."""
        self._open: BoundedDict[str, None] = BoundedDict(MAX_OPEN)
        """Ids of function calls without a result."""
        self._waits = False
        """A ``response.create`` waits for missing results."""
        self._questions: deque[CreateResponse] = deque()
        """Out-of-band questions that wait."""
        self._answered = False
        """Function calls of this session were answered since the last ``response.create``."""
        self._undelegated = False
        """The next response belongs to no delegation, so that the voice is not told of it."""
        self._asked: CreateResponse | None = None
        """Question that is being answered."""
        self._held_since: float | None = None
        """When a question first waited for other work (s); None once an event came since."""
        self._over_count = 0
        """Responses that are complete."""

    def ask(self, question: CreateResponse) -> None:
        """Queue an out-of-band question for :meth:`next_question`; dropped without a word if 16
        wait."""
        if len(self._questions) < MAX_QUESTIONS:
            self._questions.append(question)

    def next_question(self, now: float) -> tuple[CreateResponse, list[dict[str, Any]]] | None:
        """Take the next question out of the queue; return it with its client events: a developer
        message and ``response.create``.

        None without a question, while another is being answered, and while the backend is busy: it
        responds or is to respond, or function calls wait for results. It no longer counts as busy
        once a question has waited for ``STUCK_SECONDS`` without any event of it.
        """
        if not self._questions or self._asked is not None:
            return None
        works = any(one.question is None for one in self._streams.values())
        if works or self._open or self._waits or self._undelegated:
            self._held_since = now if self._held_since is None else self._held_since
            if not self.is_stuck(now):
                return None
            self._undelegated = False
        self._asked = self._questions.popleft()
        text = _OUT_OF_BAND + str((self._asked.response or {}).get("instructions") or "")
        return self._asked, [_create_item(_developer_message(text)), {"type": "response.create"}]

    def is_stuck(self, now: float) -> bool:
        """Return whether a question has waited for ``STUCK_SECONDS`` without any event of the
        backend, so that :meth:`next_question` no longer takes it for busy."""
        since = self._held_since
        return bool(self._questions) and since is not None and now - since >= STUCK_SECONDS

    def forget(self, command: ClientCommand | None) -> bool:
        """Drop a question that waits or is being answered, if it is ``command``, which nobody waits
        for any more or which the server has rejected, so that the next can be asked; a rejected
        continuation is no longer waited for, either. Return whether it was one of these."""
        if isinstance(command, ContinueWork):
            waited, self._undelegated = self._undelegated, False
            return waited
        if not isinstance(command, CreateResponse):
            return False
        if command is self._asked:
            self._asked = None
        elif command in self._questions:
            self._questions.remove(command)
        else:
            return False
        return True

    def on_event(self, event: BackendEvent) -> list[ResponseCreated | ResponseDone]:
        """Take the next event of the backend's response; at its end return [:class:`ResponseDone`],
        until then an empty list.

        A response outside any delegation that begins while a question is being answered is its
        answer: :class:`ResponseCreated` with the question's metadata comes before its end, and the
        question is over. So it is where the question was dropped meanwhile.
        """
        self._held_since = None
        found = self._done(event)
        if found is None:
            return []
        done, question = found
        if question is None:
            return [done]
        if question is self._asked:
            self._asked = None
        return [ResponseCreated(done.response_id, (question.response or {})["metadata"]), done]

    def found_later(self, event: BackendEvent, done: ResponseDone) -> str:
        """Return the text of a completed response that answers no delegation, for the voice to say:
        the server does not tell it of those. It is the first one after a ``response.create`` of
        ours with no function results of this session before it. "" for any other."""
        if event.delegation_id or not self._undelegated:
            return ""
        self._undelegated = False
        return words_of(done)

    def refuse_functions(self, done: ResponseDone) -> list[dict[str, Any]]:
        """Return client events that answer each function call of ``done``, the response to an
        out-of-band question, with an error; the calls are not run, and no ``response.create``
        follows."""
        calls = [one.get("call_id") for one in done.output if one.get("type") == "function_call"]
        answered = self._answered
        bodies = [
            body
            for call_id in calls
            for body in self.answer(
                {"type": "function_call_output", "call_id": call_id, "output": _NO_FUNCTIONS}
            )
        ]
        self._answered = answered and self._answered
        return bodies

    def _done(self, event: BackendEvent) -> tuple[ResponseDone, CreateResponse | None] | None:
        """Take an event of the response of its delegation; if this ends it, return the response and
        the question that it answers, else None.

        ``response.created``, or any event where none runs, begins one, in place of one that runs
        for the same delegation; beyond 16 the oldest is dropped. Nothing for an event that names a
        response whose place was taken.
        """
        inner, name = event.event, event.delegation_id
        kind = inner.get("type")
        told = inner.get("response")
        told = told if isinstance(told, Mapping) else {}
        response_id = _text(told.get("id"))
        if kind == "response.created" or name not in self._streams:
            question = None if name else self._asked
            self._streams[name] = _Stream(model=self._model, question=question)
        stream = self._streams[name]
        if response_id and stream.id and response_id != stream.id:
            return None
        stream.id = response_id or stream.id
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
        return self._over(stream, status, told, inner), stream.question

    def _over(
        self,
        stream: _Stream,
        status: str,
        told: Mapping[str, Any],
        inner: Mapping[str, Any],
    ) -> ResponseDone:
        """Return the end of a response, with ``status``. Its items are those collected, or else
        those of ``told`` (its ``response`` object). Function calls of a completed one are noted as
        open, 256 at most; ``inner`` is the event, which has the error if ``told`` has none."""
        output = told.get("output")
        if not stream.items:
            stream.items += items_of(output)[:MAX_ITEMS]
        if status == "completed":
            for item in stream.items:
                call_id = item.get("call_id")
                if item.get("type") == "function_call" and isinstance(call_id, str):
                    self._open[call_id] = None
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
        """Return the client events for a ``function_call_output``: the result, then
        ``response.create`` if it was the last that a requested continuation waited for.

        The result of a call that is not open here, as one that an earlier session made, is sent as
        a developer's message instead.
        """
        call_id = str(item.get("call_id"))
        if call_id not in self._open:
            item = _developer_message(
                f"The result of a function that was called before: {item.get('output')}"
            )
        else:
            del self._open[call_id]
            self._answered = True
        return [_create_item(item), *self._due()]

    def continue_response(self) -> list[dict[str, Any]]:
        """Return ``response.create``; an empty list while results of function calls are missing, in
        which case :meth:`answer` of the last one returns it."""
        self._waits = True
        return self._due()

    def _due(self) -> list[dict[str, Any]]:
        """Return ``response.create`` if one is wanted and no function call is open, and note
        whether its response is one that the voice must be told of; else an empty list."""
        if self._open or not self._waits:
            return []
        self._waits = False
        # Another attempt, or results of calls that an earlier session has made.
        self._undelegated = not self._answered
        self._answered = False
        return [{"type": "response.create"}]


def _create_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``response.item.create``, which adds an item to the backend's conversation."""
    return {"type": "response.item.create", "item": dict(item)}


def _developer_message(text: str) -> dict[str, Any]:
    """Return a message item of the developer with this text."""
    part = {"type": "input_text", "text": text}
    return {"type": "message", "role": "developer", "content": [part]}


def _text(value: object) -> str | None:
    """Return a text, cut to 500 characters; None for what is not a string."""
    return value[:500] if isinstance(value, str) else None


def words_of(done: ResponseDone) -> str:
    """Return the text of a response's messages, 500 characters of each part; "" unless the response
    has ``status`` completed."""
    messages = [item for item in done.output if item.get("type") == "message"]
    parts = [part for item in messages for part in item.get("content") or ()]
    texts = [_text(part.get("text")) or "" for part in parts if isinstance(part, Mapping)]
    return "" if done.status != "completed" else "".join(texts)


def is_question(command: ClientCommand) -> TypeGuard[CreateResponse]:
    """Return whether a command is an out-of-band ``response.create`` for text: ``conversation`` is
    in it, and ``audio`` is not among its modalities."""
    if not isinstance(command, CreateResponse) or "conversation" not in (command.response or {}):
        return False
    return "audio" not in (command.response or {}).get("output_modalities", ())


def answers(output: str, task: str) -> list[dict[str, Any]]:
    """Return the client events that give the voice a function's result for a delegated task.

    A JSON string, or text that is no JSON, is spoken (``commentary``). Of an object, first
    ``thinking`` is added to what the voice knows, then ``commentary`` is spoken; any other JSON is
    added to what it knows as a whole. ``task`` is the delegation's id.
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
    """Return the client events that append ``text``, in pieces of 1,400 bytes at most (500 tokens),
    split between words, and within a word only if that is longer. An empty list for "".

    Args:
        channel: ``commentary`` to be said, ``instructions`` to be followed, ``thinking`` to be
            known.
        task: id of the delegation that they answer, if any.
    """
    bodies: list[dict[str, Any]] = []
    piece = ""
    for word in text.split(" "):
        longer = f"{piece} {word}" if piece else word
        if len(longer.encode()) > MAX_APPEND and piece:
            bodies.append(AppendText(channel, piece, task).body())
            longer = word
        while len(longer.encode()) > MAX_APPEND:  # a word that is too long
            head = longer.encode()[:MAX_APPEND].decode(errors="ignore")
            bodies.append(AppendText(channel, head, task).body())
            longer = longer[len(head) :]
        piece = longer
    return [*bodies, AppendText(channel, piece, task).body()] if piece else bodies


BRIEFING_END_MS = 1500
"""Silence (ms) that ends a stretch of speech in a briefing, all of which is one stretch."""

NOT_TO_THE_CALLER = (
    "What you say next is heard by a colleague who is about to take over this caller, and not by "
    "the caller, who waits."
)

TO_THE_CALLER = (
    "Stop what you are saying to the colleague: they have heard enough. From now on it is the "
    "caller again who hears you."
)

DISCARD_SECONDS, DISCARDED_END_MS = 1.5, 200
"""After a briefing that was stopped: time in which speech that begins is dropped (s), and silence
that ends it (ms)."""


@dataclass(frozen=True, slots=True)
class LivePlayout:
    """Conversation so far and playout queue of a call, for its Live session."""

    queued_ms: Callable[[], int]
    """Returns the length of the queue (ms)."""
    underruns: Callable[[], int] = lambda: 0
    """Returns how often the queue ran empty within speech."""
    max_queue_ms: int = 300
    """Length above which silence is left out."""
    history: Sequence[Mapping[str, Any]] = ()
    """Items of the conversation so far."""


BY_SECONDS = {"type": "duration", "seconds": 0}
"""Usage of a response that is a stretch of speech: the session is billed by time instead."""

NO_PLAYOUT = LivePlayout(lambda: 0)
"""Playout of a session that nobody hears."""


class Voice:
    """Makes events of Realtime responses from the output track of a Live session: each stretch of
    speech is a response of one item, both with the id of the stretch (``speech_1``).

    Args:
        deliver: called with each event.
    """

    def __init__(
        self, codec: Codec, playout: LivePlayout, deliver: Callable[[ServerEvent], None]
    ) -> None:
        self._deliver = deliver
        self.track = SpeechTrack(codec, playout.max_queue_ms, playout.queued_ms, playout.underruns)
        self._stretches = Stretches("speech_")
        self._briefing: Mapping[str, Any] | None = None
        """Metadata of a requested briefing that has not begun."""
        self._briefed = ""
        """Id of the stretch that is the current briefing."""
        self._discarding = False
        """The current speech is dropped."""
        self._discard_until = 0.0
        """Speech that begins before this time is dropped (s)."""
        self.clip_words = ""
        """Words of the clip that plays next."""

    def brief(self, command: CreateResponse) -> list[dict[str, Any]]:
        """Return the client events that have the voice brief a colleague, with the words of
        ``command`` or else by its instructions.

        The next stretch of speech that begins is the briefing, a response with the metadata of
        ``command``; it ends after 1.5 s of silence, not 0.6 s. What is still said of a briefing
        that was stopped before is dropped first, until it pauses.
        """
        response, words = command.response or {}, command.words
        self._briefing = response.get("metadata") or {}
        if not self._discarding:
            self._discard_until = 0.0
            self.track.end_ms = BRIEFING_END_MS
        told = texts("thinking", NOT_TO_THE_CALLER)
        if words:
            return told + texts("commentary", words)
        return told + texts("instructions", str(response.get("instructions") or ""))

    def briefs(self, response_id: str) -> bool:
        """Return whether this response is the briefing that is spoken, or was last; for "", whether
        one was requested that has not begun."""
        return response_id == self._briefed and bool(response_id or self._briefing)

    def end_briefing(self, now: float) -> list[dict[str, Any]]:
        """End the briefing at ``now`` (s), requested or spoken: its response is completed, and its
        rest is not delivered, nor is speech that begins within 1.5 s. Return the client events that
        send the voice back to the caller."""
        self._briefing, self._briefed = None, ""
        self._discarding = self.track.speaking
        self._discard_until = now + DISCARD_SECONDS
        self._speech_over(self.track.ms)
        self.track.end_ms = DISCARDED_END_MS
        return texts("instructions", TO_THE_CALLER)

    def feed(self, audio: bytes, now: float) -> None:
        """Take the next piece of the track, arrived at ``now`` (s), and deliver its speech as
        events of responses.

        Speech begins with :class:`ResponseCreated` (with the metadata of a briefing that was
        requested), audio follows, :class:`AudioDone` and :class:`ResponseDone` end it. The words of
        a clip are delivered at its beginning. After a stopped briefing speech is dropped until it
        pauses for 0.2 s; what goes on for more than 1.5 s becomes a response for the caller, or the
        next briefing.
        """
        if self._discarding and now >= self._discard_until:
            # It has gone on without a pause: what comes now is for the caller, or a new briefing.
            self._discarding = False
            self._begin(self.track.ms)
        for part in self.track.feed(audio):
            if isinstance(part, bytes):
                speech = self._stretches.latest
                if part and speech is not None and not self._discarding:
                    self._deliver(AudioDelta(speech.id, speech.id, 0, part))
            elif isinstance(part, SpeechBegins):
                if now < self._discard_until:
                    begun = self._stretches.begin(part.at_ms)
                    self._discarding = begun.told = begun.dropped = True
                else:
                    self._begin(part.at_ms)
            elif self._discarding:
                self._discarding, self._discard_until = False, 0.0
                self.track.end_ms = END_MS
                if (speech := self._stretches.latest) is not None:
                    speech.end_ms = part.at_ms
            else:
                self._speech_over(part.at_ms)

    def _begin(self, at_ms: int) -> None:
        """Begin the response of speech from ``at_ms`` of the track on, with the metadata of a
        briefing that was requested, and with the words of a clip that was sent."""
        begun = self._stretches.begin(at_ms)
        clip, self.clip_words = self.clip_words, ""
        metadata, self._briefing = self._briefing or {}, None
        self._briefed = begun.id if metadata else ""
        # After a stopped briefing it is still shorter.
        self.track.end_ms = BRIEFING_END_MS if metadata else END_MS
        self._deliver(ResponseCreated(begun.id, metadata))
        if clip:  # of a clip the server has no words
            begun.told = True
            self._deliver(AgentTranscript(begun.id, begun.id, 0, clip))

    def _speech_over(self, at_ms: int) -> None:
        """Complete the response of the latest stretch of speech, which ended at ``at_ms`` of the
        track, by :class:`AudioDone` and :class:`ResponseDone`; nothing if there is none, it is
        dropped, or it has ended before. From then on 0.6 s of silence end a stretch, unless a
        briefing was requested."""
        speech = self._stretches.latest
        if speech is None or speech.dropped or speech.end_ms is not None:
            return
        speech.end_ms = at_ms
        if self._briefing is None:
            self.track.end_ms = END_MS
        self._deliver(AudioDone(speech.id, speech.id, 0))
        self._deliver(ResponseDone(speech.id, "completed", None, None, None, (), BY_SECONDS))

    def over(self) -> None:
        """Complete the response of speech that is still running, since the session has ended."""
        self._speech_over(self.track.ms)

    def words(self, words: TrackWords, now: float) -> None:
        """Deliver words of the track, which came at ``now`` (s), as transcript delta of the stretch
        in which they were spoken, with the place in its audio where they end; nothing for dropped
        speech."""
        stretch = self._stretches.words(words.text, words.start_ms, words.end_ms, now)
        if stretch.dropped:
            return
        until = max(0, words.end_ms - stretch.start_ms)
        self._deliver(AgentTranscriptDelta(stretch.id, stretch.id, 0, words.text, until))

    def tell_complete(self, now: float, *, all: bool) -> None:
        """Deliver the transcript of each stretch, once, when its words are complete at ``now`` (s);
        with ``all``, of every stretch that has words. None of dropped speech and of clips."""
        for one in self._stretches.complete(now, all=all):
            self._deliver(AgentTranscript(one.id, one.id, 0, one.text.strip()))

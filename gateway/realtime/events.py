# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of a realtime session, as types (GA names).

https://platform.openai.com/docs/api-reference/realtime has their fields. Client events come first;
``body`` returns each as JSON object, without its ``event_id``. Audio has a path of its own
(:meth:`gateway.realtime.session.Session.append`).

Each class of a server event stands for one ``type`` and has the fields that the gateway uses. Other
types are :class:`OtherEvent`. Times named ``*_ms`` are ms of the audio written into the session, as
the server counts them. A missing id is empty, a missing time None.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Mapping[str, Any]


UNNAMED = "unnamed_"
"""Prefix of our own ids for responses to which the server gave none."""


@dataclass(frozen=True, slots=True)
class UpdateSession:
    """``session.update``; ``session`` is the GA session object, only what shall change.

    GA wants ``session.type`` in every update, so ``realtime`` is put in where it is missing.
    """

    session: Json

    def body(self) -> dict[str, Any]:
        """Return the client event."""
        return {"type": "session.update", "session": {"type": "realtime", **self.session}}


@dataclass(frozen=True, slots=True)
class CreateItem:
    """``conversation.item.create``: append ``item`` to the conversation, or put it after another
    one (``previous_item_id``; ``root`` for the beginning)."""

    item: Json
    after: str = ""

    def body(self) -> dict[str, Any]:
        """Return the client event, with ``previous_item_id`` only if ``after`` is given."""
        after = {"previous_item_id": self.after} if self.after else {}
        return {"type": "conversation.item.create", **after, "item": dict(self.item)}


@dataclass(frozen=True, slots=True)
class CreateResponse:
    """``response.create``; ``response`` overrides session settings for this response only.

    ``words`` are those to be spoken, where it asks for given words: a Live session gets only these
    (``session.commentary.append``), or without them the instructions. A Realtime session gets
    ``response``, and neither words nor clip.
    """

    response: Json | None = None
    words: str = ""
    clip: bytes = field(default=b"", repr=False)
    """The words as audio (:class:`PlayClip`), for a session that plays it in their place."""
    exact: bool = False
    """Synthesise the words, and play them as clip, in a session that would rephrase them."""

    def body(self) -> dict[str, Any]:
        """Return the client event of a Realtime session, with ``response`` only if there is one."""
        event: dict[str, Any] = {"type": "response.create"}
        if self.response is not None:
            event["response"] = dict(self.response)
        return event


@dataclass(frozen=True, slots=True)
class CancelResponse:
    """``response.cancel`` for one response; for the one that runs, where its id is our own
    (:data:`UNNAMED`), as the server gave none at its beginning, or one that was used before."""

    response_id: str
    request: CreateResponse | None = None
    """Of a Live session's out-of-band question, which has no id before its answer: the question
    that nobody waits for any more."""

    def body(self) -> dict[str, Any]:
        """Return the client event, without an id that is our own."""
        if self.response_id.startswith(UNNAMED):
            return {"type": "response.cancel"}
        return {"type": "response.cancel", "response_id": self.response_id}


@dataclass(frozen=True, slots=True)
class TruncateItem:
    """``conversation.item.truncate``: the caller heard ``audio_end_ms`` ms of this part."""

    item_id: str
    content_index: int
    audio_end_ms: int

    def body(self) -> dict[str, Any]:
        """Return the client event, with item, index of the part and ms."""
        return {
            "type": "conversation.item.truncate",
            "item_id": self.item_id,
            "content_index": self.content_index,
            "audio_end_ms": self.audio_end_ms,
        }


@dataclass(frozen=True, slots=True)
class DeleteItem:
    """``conversation.item.delete``: the caller heard nothing of this item."""

    item_id: str

    def body(self) -> dict[str, Any]:
        """Return the client event, with the item's id."""
        return {"type": "conversation.item.delete", "item_id": self.item_id}


Channel = Literal["commentary", "instructions", "thinking"]


@dataclass(frozen=True, slots=True)
class AppendText:
    """Text for a Live session: to be said (``session.commentary.append``), to be followed
    (``session.instructions.append``), or to be known (``session.thinking.append``).

    ``content`` has 500 tokens at most; ``delegation_id`` names the delegation of type ``client``
    that it answers, None for none.
    """

    channel: Channel
    content: str
    delegation_id: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the client event."""
        return {
            "type": f"session.{self.channel}.append",
            "content": self.content,
            "delegation_id": self.delegation_id,
        }


@dataclass(frozen=True, slots=True)
class PlayClip:
    """``session.output_audio.fixture.play``: play audio through the output of a Live session.

    ``audio`` is linear PCM, 16 bits little-endian, mono, 24 kHz, 30 s at most.
    """

    audio: bytes = field(repr=False)

    def body(self) -> dict[str, Any]:
        """Return the client event, with the audio in base64."""
        audio = b2a_base64(self.audio, newline=False).decode()
        return {"type": "session.output_audio.fixture.play", "audio": audio}


@dataclass(frozen=True, slots=True)
class ContinueWork:
    """``response.create`` for the backend of a Live session, after results or another item."""

    def body(self) -> dict[str, Any]:
        """Return the client event, which has only its type."""
        return {"type": "response.create"}


@dataclass(frozen=True, slots=True)
class Relayed:
    """A client event of an application, passed on unchanged but for its ``event_id``, which is
    ours. An ``error`` about it is the application's affair, not the gateway's."""

    event: Json

    def body(self) -> dict[str, Any]:
        """Return the application's event without its ``event_id``."""
        return {name: value for name, value in self.event.items() if name != "event_id"}


@dataclass(frozen=True, slots=True)
class RelayedUpdate(UpdateSession):
    """``session.update`` of an application. An ``error`` about it is the application's affair, not
    the gateway's."""


ClientCommand = (
    UpdateSession
    | CreateItem
    | CreateResponse
    | CancelResponse
    | TruncateItem
    | DeleteItem
    | AppendText
    | PlayClip
    | ContinueWork
    | Relayed
)


@dataclass(frozen=True, slots=True)
class SessionCreated:
    """``session.created``: always the first frame of a session that was let in. Of a Live session
    ``session.started``: the answer to its ``session.start``."""

    session: Json


@dataclass(frozen=True, slots=True)
class SessionUpdated:
    """``session.updated``: the full effective configuration after a ``session.update``."""

    session: Json


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """``input_audio_buffer.speech_started``: the caller began to speak (barge-in begins here), at
    ``audio_start_ms``, with the padding that the model gets before it; ``item_id`` is the item that
    their words will become."""

    item_id: str
    audio_start_ms: int | None


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """``input_audio_buffer.speech_stopped``: the caller's turn ended, at ``audio_end_ms``, which
    includes the silence by which the server noticed it."""

    item_id: str
    audio_end_ms: int | None


@dataclass(frozen=True, slots=True)
class InputCommitted:
    """``input_audio_buffer.committed``: the buffered caller audio became item ``item_id``."""

    item_id: str


@dataclass(frozen=True, slots=True)
class InputTranscribed:
    """``conversation.item.input_audio_transcription.completed``: all words of the caller's item."""

    item_id: str
    transcript: str
    usage: Json | None = None
    """Usage of the transcription, which is billed by itself: in tokens or seconds."""


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """``conversation.item.added`` (or Beta's ``conversation.item.created``): an item of ours, the
    caller's or a response has become part of the conversation."""

    item: Json


@dataclass(frozen=True, slots=True)
class ItemTruncated:
    """``conversation.item.truncated``: the server has cut the item's audio at ``audio_end_ms`` (ms
    of that part), as we asked, and dropped its text beyond."""

    item_id: str
    content_index: int
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class ItemDeleted:
    """``conversation.item.deleted``: the server has removed the item, as we asked."""

    item_id: str


@dataclass(frozen=True, slots=True)
class ResponseCreated:
    """``response.created``: a response is in progress from here to its ``response.done``."""

    response_id: str
    metadata: Json


@dataclass(frozen=True, slots=True)
class ResponseDone:
    """``response.done``: the end of a response, completed or not.

    ``status`` is one of completed, cancelled, failed, incomplete; ``reason`` (``turn_detected``,
    ``client_cancelled``, ``max_output_tokens``, ``content_filter``) and the error come from
    ``status_details``. ``output`` holds the items as the server sent them.
    """

    response_id: str
    status: str
    reason: str | None
    error_code: str | None
    error_message: str | None
    output: tuple[Json, ...]
    usage: Json | None
    backend: str = ""
    """Model of a Live session's backend, for a response of the backend, which is not heard
    itself."""


@dataclass(slots=True)
class AudioDelta:
    """``response.output_audio.delta``: decoded bytes in the session's output format.

    Not frozen, as that takes twice the time to make one, up to fifty times a second and call.
    """

    response_id: str
    item_id: str
    content_index: int
    audio: bytes
    silent: bool = False
    """Audio is silence; set by the bridge, which knows the codec."""

    @property
    def part(self) -> tuple[str, str, int]:
        """Response, item and index of the content part that it belongs to."""
        return self.response_id, self.item_id, self.content_index


@dataclass(frozen=True, slots=True)
class AudioDone:
    """``response.output_audio.done``: no more audio for this part (carries none itself)."""

    response_id: str
    item_id: str
    content_index: int


@dataclass(frozen=True, slots=True)
class AgentTranscript:
    """``response.output_audio_transcript.done``: all words of one part, heard or not."""

    response_id: str
    item_id: str
    content_index: int
    transcript: str


@dataclass(frozen=True, slots=True)
class AgentTranscriptDelta:
    """``response.output_audio_transcript.delta``: words of one part, as a rule ahead of playout."""

    response_id: str
    item_id: str
    content_index: int
    delta: str
    until_ms: int | None = None
    """Where in the part's audio these words end, where the server tells."""


@dataclass(slots=True)
class TrackAudio:
    """``session.output_audio.delta`` of a Live session: the next piece of its endless track."""

    audio: bytes

    @property
    def part(self) -> tuple[str, str, int]:
        """The same for all pieces, since a Live session has one track."""
        return "", "", 0


@dataclass(frozen=True, slots=True)
class TrackWords:
    """``session.output_transcript.delta`` and ``session.input_transcript.delta`` of a Live session:
    words of the agent (``agent``) or of the caller, and where they were spoken in that side's audio
    (ms)."""

    agent: bool
    text: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class WorkDelegated:
    """``session.delegation.created`` of a Live session: the voice delegates a task.

    ``target`` is ``responses`` (the backend), ``client`` (us, answered with :class:`AppendText`) or
    ``decisions`` (the classifier).
    """

    id: str
    target: str


@dataclass(frozen=True, slots=True)
class DecisionMade:
    """``decision.event`` of a Live session: answers to the questions of a delegation or a trigger.

    ``delegation_id`` is empty for a trigger; then ``source`` is the type of event that fired it.
    """

    delegation_id: str
    source: str
    answers: tuple[Json, ...]
    model: str
    usage: Json | None


@dataclass(frozen=True, slots=True)
class BackendEvent:
    """``response.event`` of a Live session: one event of a response of its backend."""

    delegation_id: str
    event: Json


@dataclass(frozen=True, slots=True)
class SessionUsage:
    """Seconds for which a Live session is billed so far, never fewer than before; the total, not
    what was added.

    ``reported`` by the server (``session.usage.updated``, ``session.closed``), or counted by our
    clock.
    """

    session_id: str
    model: str
    seconds: float
    reported: bool


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """``session.closed``: the last event of a Live session, before its WebSocket is closed.
    ``seconds`` is what is billed, None where the server does not tell."""

    reason: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ServerError:
    """``error``; :mod:`gateway.realtime.errors` classifies whether it ends the session.

    ``param`` is the path of the field that is at fault; ``client_event_id`` is the ``event_id`` of
    the client event it answers, None if it names none.
    """

    code: str | None
    message: str
    type: str | None = None
    param: str | None = None
    client_event_id: str | None = None


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """An event without a class of its own, known or not; never an error.

    Nothing acts on most of them; on those of items and MCP by their type.
    """

    type: str
    raw: Json


ServerEvent = (
    SessionCreated
    | SessionUpdated
    | SpeechStarted
    | SpeechStopped
    | InputCommitted
    | InputTranscribed
    | ItemAdded
    | ItemTruncated
    | ItemDeleted
    | ResponseCreated
    | ResponseDone
    | AudioDelta
    | AudioDone
    | AgentTranscript
    | AgentTranscriptDelta
    | TrackAudio
    | TrackWords
    | WorkDelegated
    | DecisionMade
    | BackendEvent
    | SessionUsage
    | SessionEnded
    | ServerError
    | OtherEvent
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of a realtime server, read into the types of :mod:`gateway.realtime.events`.

Tolerant where the protocol asks for it: unknown event types become :class:`OtherEvent`, unknown
keys are passed over, white space around ``type`` is stripped (one published example has some).
Fields that the gateway can do without are optional: servers leave them out. A known event without
its substance (the audio of a delta) is a :class:`BadEvent` that names both.

All frames, audio too, go through orjson, which takes half a microsecond for an audio delta of
20 ms. Cutting the base64 out by hand is no faster (``tests/load/micro_realtime.py``).
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    AudioDelta,
    AudioDone,
    BackendEvent,
    DecisionMade,
    InputCommitted,
    InputTranscribed,
    ItemAdded,
    ItemDeleted,
    ItemTruncated,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    ServerError,
    ServerEvent,
    SessionCreated,
    SessionEnded,
    SessionUpdated,
    SessionUsage,
    SpeechStarted,
    SpeechStopped,
    TrackAudio,
    TrackWords,
    WorkDelegated,
)
from gateway.text import unicode_in

# GA events that become OtherEvent and are no news to an operator. Most are of no use; those of
# items and MCP are told apart by their type (call.tools.approvals, call.rules.silence).
_WITHOUT_CLASS = frozenset(
    {
        "conversation.created",
        "conversation.item.done",
        "conversation.item.retrieved",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.segment",
        "conversation.item.input_audio_transcription.failed",
        "input_audio_buffer.cleared",
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.dtmf_event_received",
        "output_audio_buffer.started",
        "output_audio_buffer.stopped",
        "output_audio_buffer.cleared",
        "mcp_list_tools.in_progress",
        "mcp_list_tools.completed",
        "mcp_list_tools.failed",
        "rate_limits.updated",
        "response.content_part.added",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.mcp_call.in_progress",
        "response.mcp_call.completed",
        "response.mcp_call.failed",
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
    }
)


MAX_AUDIO_TEXT = 4 * 1024 * 1024
"""Characters of base64 in one delta: six minutes of G.711, or one of 24 kHz PCM."""

MAX_DEPTH = 100
"""Of tables and lists in each other; no event of the protocol has a fifth of that."""

MAX_VALUES = 100_000
"""Values in one large event; a parser makes an object of each, all at once."""

MAX_ANSWERS = 32
"""Answers kept of one decision."""

_LARGE = 64 * 1024

AUDIO_DELTA = "response.output_audio.delta"

_CONSEQUENCES = {
    "response.output_audio.delta": "this part of the response is not heard",
    "session.output_audio.delta": "this piece of the track is not heard",
    "session.usage.updated": "the seconds are counted here",
    "response.output_audio_transcript.delta": "these words are missing in the transcript",
    "response.output_audio_transcript.done": "the transcript has what came before",
    "conversation.item.input_audio_transcription.completed": "the caller's words are not known",
    "conversation.item.added": "the item is not known",
    "conversation.item.created": "the item is not known",
    "conversation.item.truncated": "it is not noted that the server took the truncation",
    "conversation.item.deleted": "the transcript keeps the item",
}


class BadEvent(ValueError):  # noqa: N818 - names what came, as the other events do
    """A frame that is no event, or a known event without what it must carry.

    ``event_type`` is the event's ``type`` or ``None`` when it has none that can be read;
    ``field`` is the path of the key that is missing or wrong, or ``None`` for a frame that is not
    JSON at all. The message never quotes the frame: it may hold what a caller said.
    """

    def __init__(self, event_type: str | None, field: str | None, detail: str) -> None:
        self.event_type = event_type
        self.field = field
        self.detail = detail
        self.consequence = _CONSEQUENCES.get(event_type or "", "it is passed over")
        where = f"{event_type or 'frame'}: {field}" if field else (event_type or "frame")
        super().__init__(f"{where}: {detail}")


def parse_event(
    frame: str | bytes, translate: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> ServerEvent:
    """Return the event in one message (text or UTF-8); ``translate`` makes its object a GA event
    first. A type that nothing here reads is :class:`OtherEvent`.

    Raises :class:`BadEvent` for malformed JSON, for a message with too many values or nested too
    deeply, and for a known event without a field that the gateway needs; nothing else, whatever it
    holds.
    """
    event_type, event = _object_of(frame, translate)
    if event_type == AUDIO_DELTA:
        return _audio_delta(event)
    reader = _READERS.get(event_type)
    return OtherEvent(event_type, event) if reader is None else reader(_Fields(event_type, event))


def parse_live_event(frame: str | bytes) -> ServerEvent:
    """Return the event in one message of a Live session; as :func:`parse_event`, with Live's
    types."""
    event_type, event = _object_of(frame)
    reader = _LIVE_READERS.get(event_type)
    return OtherEvent(event_type, event) if reader is None else reader(_Fields(event_type, event))


def _object_of(
    frame: str | bytes, translate: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the type of an event, without white space around it, and its object. Raises BadEvent
    for what is no JSON object with a text as ``type``, for 100,000 values and more in a message of
    more than 64 KiB, and for one nested more than 100 deep."""
    if len(frame) > _LARGE:
        raw = frame.encode() if isinstance(frame, str) else frame
        if raw.count(b",") + raw.count(b"[") + raw.count(b"{") >= MAX_VALUES:
            raise BadEvent(None, None, f"more than {MAX_VALUES} values")
    try:
        event = orjson.loads(frame)
    except orjson.JSONDecodeError:
        event = _lenient(frame)
    if not isinstance(event, dict):
        raise BadEvent(None, None, f"a JSON {type(event).__name__}, not an object")
    if nested_deeply(event, frame):
        raise BadEvent(None, None, f"nested more than {MAX_DEPTH} deep")
    if translate is not None:
        event = translate(event)
    event_type = event.get("type")
    if not isinstance(event_type, str):
        raise BadEvent(None, "type", "missing" if event_type is None else "not a string")
    return event_type.strip(), event


def nested_deeply(event: dict[str, Any], frame: str | bytes) -> bool:
    """Return whether an event is nested more than 100 deep; ``frame`` is its JSON, whose brackets
    are counted first."""
    raw = frame.encode() if isinstance(frame, str) else frame
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    level: list[Any] = [event]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)


def _lenient(frame: str | bytes) -> Any:
    """Parse JSON that the strict parser rejects: NaN, lone surrogates (which are replaced). Raises
    BadEvent, with the position of the fault and never the content."""
    try:
        return unicode_in(json.loads(frame if isinstance(frame, str) else frame.decode()))
    except (ValueError, RecursionError) as error:
        # The JSON decoder's own text holds a position only, never the content.
        detail = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise BadEvent(None, None, f"not JSON ({detail})") from None


def is_known_type(event_type: str) -> bool:
    """Return whether ``event_type`` is a server event of GA, used here or not."""
    return event_type in _READERS or event_type in _WITHOUT_CLASS


def is_live_type(event_type: str) -> bool:
    """Return whether a Live session may send events of this type, used here or not."""
    return event_type in _LIVE_READERS or event_type in _LIVE_WITHOUT_CLASS


_ITEM_TEXTS = frozenset(
    {"id", "type", "role", "status", "name", "call_id", "server_label", "approval_request_id"}
)
_CONTENT_TEXTS = frozenset({"type", "text", "transcript"})


def item_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a conversation item whose known fields are absent, or of the type in the protocol.

    Content parts are objects, ``arguments`` is JSON text even where the server sent an object, and
    a ``function_call`` without ``call_id`` gets its own id as one. Unknown fields stay as they are.
    """
    item = {
        name: field
        for name, field in value.items()
        if name not in _ITEM_TEXTS or (isinstance(field, str) and field)
    }
    if "content" in item:
        item["content"] = [
            {
                name: field
                for name, field in part.items()
                if name not in _CONTENT_TEXTS or isinstance(field, str)
            }
            for part in _objects(item["content"])
        ]
    if "arguments" in item and not isinstance(item["arguments"], str):
        item["arguments"] = json.dumps(item["arguments"]) if item["arguments"] else "{}"
    if item.get("type") == "function_call" and "id" in item:
        item.setdefault("call_id", item["id"])
    return item


def items_of(value: object) -> tuple[dict[str, Any], ...]:
    """Return the conversation items of a list, each as :func:`item_of` returns it."""
    return tuple(map(item_of, _objects(value)))


def _objects(value: object) -> list[dict[str, Any]]:
    """Return the JSON objects in a list; of anything else, none."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


class _Fields:
    """Fields of an event, read by type; :class:`BadEvent` names event and path of a missing one."""

    __slots__ = ("_path", "_type", "raw", "values")

    def __init__(self, event_type: str, values: Mapping[str, Any], path: str = "") -> None:
        self._type = event_type
        self.values = values
        self._path = path
        self.raw = values.get

    def bad(self, key: str, detail: str) -> BadEvent:
        """Return (not raise) the exception for the field ``key`` of this event."""
        return BadEvent(self._type, self._path + key, detail)

    def _wrong(self, key: str, wanted: str) -> BadEvent:
        """Return the exception for a field that is missing, or else not of the type ``wanted``."""
        return self.bad(key, "missing" if self.raw(key) is None else f"not {wanted}")

    def text(self, key: str) -> str:
        """Return a text field, which may be empty. Raises BadEvent where it is missing or no
        text."""
        if not isinstance(value := self.raw(key), str):
            raise self._wrong(key, "a string")
        return value

    def text_or_none(self, key: str) -> str | None:
        """Return a text field; None where it is missing or no text."""
        value = self.raw(key)
        return value if isinstance(value, str) else None

    def id(self, key: str) -> str:
        """Return a text field; "" where it is missing or no text."""
        return self.text_or_none(key) or ""

    def number_or_none(self, key: str) -> int | None:
        """Return a number, without its fraction; None where it is missing or not finite."""
        try:
            return self.number(key)
        except BadEvent:
            return None

    def number(self, key: str) -> int:
        """Return a number, without its fraction. Raises BadEvent where it is missing, no number (a
        bool is none) or not finite."""
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, "a number")
        try:
            return int(value)
        except (ValueError, OverflowError):
            raise self.bad(key, "not a finite number") from None

    def content_index(self) -> int:
        """Return the index of the content part; 0 where it is missing or no number."""
        # 0 is the only value seen in the field, and some servers leave it out.
        return self.number_or_none("content_index") or 0

    def object(self, key: str) -> dict[str, Any]:
        """Return an object. Raises BadEvent where it is missing or no object."""
        if not isinstance(value := self.raw(key), dict):
            raise self._wrong(key, "an object")
        return value

    def object_or_none(self, key: str) -> dict[str, Any] | None:
        """Return an object; None where it is missing or no object."""
        value = self.raw(key)
        return value if isinstance(value, dict) else None

    def inner(self, key: str) -> _Fields:
        """Return the fields of the object at ``key``; of an empty one where there is none."""
        return _Fields(self._type, self.object_or_none(key) or {}, f"{self._path}{key}.")


def _audio(event: _Fields) -> bytes:
    """Return the audio of ``delta``, decoded, which may be empty. Raises BadEvent where it is
    missing, no base64, or has more than 4 Mi characters."""
    encoded = event.text("delta")
    if len(encoded) > MAX_AUDIO_TEXT:
        raise event.bad("delta", f"more than {MAX_AUDIO_TEXT} characters")
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:
        raise event.bad("delta", "not base64") from None


def _audio_delta(event: Mapping[str, Any]) -> AudioDelta:
    """Read an audio delta in as few steps as it takes: fifty of them come a second and call. Ids
    that are no text are ""; raises BadEvent as :func:`_audio` does."""
    value: Callable[[str], Any] = event.get
    response_id, item_id = value("response_id"), value("item_id")
    encoded, index = value("delta"), value("content_index")
    try:
        audio = binascii.a2b_base64(encoded, strict_mode=True)
    except (TypeError, ValueError):
        audio = b""
    if not audio or len(audio) > _LARGE:
        audio = _audio(_Fields(AUDIO_DELTA, event))  # which says what is wrong
    return AudioDelta(
        response_id if type(response_id) is str else "",
        item_id if type(item_id) is str else "",
        index if type(index) is int else _Fields(AUDIO_DELTA, event).content_index(),
        audio,
    )


def _response_done(event: _Fields) -> ResponseDone:
    """Read ``response.done``. Without a status it is ``failed`` if it has an error, else
    ``completed``; the error's type stands for a missing code."""
    response = event.inner("response")
    details = response.inner("status_details")
    error = details.inner("error")
    return ResponseDone(
        response_id=response.id("id"),
        status=response.text_or_none("status") or ("failed" if error.values else "completed"),
        reason=details.text_or_none("reason"),
        # Servers differ in which of the two they fill.
        error_code=error.text_or_none("code") or error.text_or_none("type"),
        error_message=error.text_or_none("message"),
        output=items_of(response.raw("output")),
        usage=response.object_or_none("usage"),
    )


def _response_created(event: _Fields) -> ResponseCreated:
    """Read ``response.created``; a missing id is "", missing metadata an empty object."""
    response = event.inner("response")
    return ResponseCreated(response.id("id"), response.object_or_none("metadata") or {})


def _server_error(event: _Fields) -> ServerError:
    """Read ``error``, which is an object, a text, or missing, with code and message beside
    ``type``. Never raises BadEvent."""
    # An error must never be lost to its own shape: some servers send a string, or put code and
    # message beside ``type``.
    error = event.raw("error")
    if isinstance(error, str):
        return ServerError(code=event.text_or_none("code"), message=error)
    fields = event.inner("error") if isinstance(error, dict) else event
    return ServerError(
        code=fields.text_or_none("code"),
        message=fields.text_or_none("message") or "",
        type=fields.text_or_none("type") if isinstance(error, dict) else None,
        param=fields.text_or_none("param"),
        client_event_id=fields.text_or_none("event_id") if isinstance(error, dict) else None,
    )


def _live_error(event: _Fields) -> ServerError:
    """Read a Live session's ``error``, as :func:`_server_error`; it names the client event in
    ``client_event_id``, inside ``error`` or beside it."""
    event_id = event.inner("error").id("client_event_id") or event.text_or_none("client_event_id")
    return replace(_server_error(event), client_event_id=event_id)


def _words(event: _Fields, *, agent: bool) -> TrackWords:
    """Read a delta of a Live transcript, the agent's or the caller's. A missing start is 0, a
    missing end the start, and the end is never before that. Raises BadEvent without words."""
    start = max(0, event.number_or_none("start_ms") or 0)
    end = event.number_or_none("end_ms")
    return TrackWords(agent, event.text("delta"), start, start if end is None else max(start, end))


def _seconds(event: _Fields) -> float | None:
    """Return ``usage.seconds``; None unless it is a number from 0 to below 1e9."""
    value = event.inner("usage").raw("seconds")
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        return float(value)
    return None


def _usage(event: _Fields) -> SessionUsage:
    """Read ``session.usage.updated``; id and model are left "", for the session knows them. Raises
    BadEvent without seconds."""
    if (seconds := _seconds(event)) is None:
        raise event.bad("usage.seconds", "missing, or no number of seconds")
    return SessionUsage("", "", seconds, True)


def _delegated(event: _Fields) -> WorkDelegated:
    """Read ``session.delegation.created``; without a target it is ``client``."""
    delegation = event.inner("delegation")
    return WorkDelegated(delegation.id("id"), delegation.text_or_none("target") or "client")


def _decided(event: _Fields) -> DecisionMade:
    """Read ``decision.event``, a decision of the classifier, with its first 32 answers."""
    decision = event.inner("event").inner("decision")
    return DecisionMade(
        event.id("delegation_id"),
        event.id("source_event_type"),
        tuple(_objects(decision.raw("answers"))[:MAX_ANSWERS]),
        decision.text_or_none("model") or "decisions",
        decision.object_or_none("usage"),
    )


_READERS: dict[str, Callable[[_Fields], ServerEvent]] = {
    "session.created": lambda e: SessionCreated(e.object_or_none("session") or {}),
    "session.updated": lambda e: SessionUpdated(e.object_or_none("session") or {}),
    "error": _server_error,
    "input_audio_buffer.speech_started": lambda e: SpeechStarted(
        e.id("item_id"), e.number_or_none("audio_start_ms")
    ),
    "input_audio_buffer.speech_stopped": lambda e: SpeechStopped(
        e.id("item_id"), e.number_or_none("audio_end_ms")
    ),
    "input_audio_buffer.committed": lambda e: InputCommitted(e.id("item_id")),
    "conversation.item.input_audio_transcription.completed": lambda e: InputTranscribed(
        e.id("item_id"), e.text("transcript"), e.object_or_none("usage")
    ),
    "conversation.item.added": lambda e: ItemAdded(item_of(e.object("item"))),
    "conversation.item.created": lambda e: ItemAdded(item_of(e.object("item"))),
    "conversation.item.truncated": lambda e: ItemTruncated(
        e.text("item_id"), e.content_index(), e.number("audio_end_ms")
    ),
    "conversation.item.deleted": lambda e: ItemDeleted(e.text("item_id")),
    "response.created": _response_created,
    "response.done": _response_done,
    AUDIO_DELTA: lambda e: _audio_delta(e.values),
    "response.output_audio.done": lambda e: AudioDone(
        e.id("response_id"), e.id("item_id"), e.content_index()
    ),
    "response.output_audio_transcript.delta": lambda e: AgentTranscriptDelta(
        e.id("response_id"), e.id("item_id"), e.content_index(), e.text("delta")
    ),
    "response.output_audio_transcript.done": lambda e: AgentTranscript(
        e.id("response_id"), e.id("item_id"), e.content_index(), e.text("transcript")
    ),
}


_LIVE_READERS: dict[str, Callable[[_Fields], ServerEvent]] = {
    "session.started": lambda e: SessionCreated(e.object_or_none("session") or {}),
    "session.updated": lambda e: SessionUpdated(e.object_or_none("session") or {}),
    "session.output_audio.delta": lambda e: TrackAudio(_audio(e)),
    "session.output_transcript.delta": lambda e: _words(e, agent=True),
    "session.input_transcript.delta": lambda e: _words(e, agent=False),
    "session.delegation.created": _delegated,
    "response.event": lambda e: BackendEvent(e.id("delegation_id"), e.object("event")),
    "decision.event": _decided,
    "session.usage.updated": _usage,
    "session.closed": lambda e: SessionEnded(e.id("reason"), _seconds(e)),
    "error": _live_error,
}
_LIVE_WITHOUT_CLASS = frozenset(
    {
        "decision.item.created",
        "decision.item.deleted",
        "info",
        "session.commentary.appended",
        "session.input_audio.append",
        "session.input_audio.muted",
        "session.input_audio.unmuted",
        "session.instructions.appended",
        "session.output_audio.fixture.played",
        "session.output_audio.fixture.playing",
        "session.paused",
        "session.resumed",
        "session.thinking.appended",
    }
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Realtime session after its set-up: caller audio and commands go out, typed events come in.

:func:`gateway.realtime.setup.open_session` makes one. Events are given to a callback in the order
in which they came, and so is the end of the session.
"""

from __future__ import annotations

import asyncio
import binascii
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import structlog
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from gateway.realtime.connection import CLOSE_TIMEOUT, LARGE_MESSAGE, Connection, Endpoint
from gateway.realtime.errors import Kind, Verdict, classify_close
from gateway.realtime.events import (
    AudioDelta,
    AudioDone,
    ClientCommand,
    OtherEvent,
    ResponseDone,
    ServerError,
    ServerEvent,
    SessionUpdated,
    TrackAudio,
)
from gateway.realtime.parse import BadEvent, is_known_type
from gateway.realtime.session_object import REALTIME, Capabilities, Refused
from gateway.realtime.wire import Linear24, Pcm24, SentCommands, encode_command

log = structlog.get_logger(__name__)

MAX_UNIX_SECONDS = 1e12
WRITE_BUFFER_LIMIT = 256 * 1024
"""Bytes that may wait in the socket's write buffer before caller audio is dropped.

A 20 ms message is about 270 bytes on the wire, so this is some 19 s of audio behind a network
that takes nothing: older than that it serves no conversation.
"""

_APPEND_TAIL = b'"}'
# Complaints about one session's events; the counters keep the rest.
_LOGGED_COMPLAINTS = 10
_REMEMBERED_TYPES = 32

_b2a_base64 = binascii.b2a_base64
_AUDIO = (AudioDelta, TrackAudio)


class Wire(Protocol):
    """Translates one session between the gateway (GA, the call's codec) and its server's wire:
    dialect and audio format. ``pcm`` is the audio converter, None where call and server both use
    G.711; ``parse`` returns the event of a message, or raises :class:`BadEvent`."""

    pcm: Pcm24 | Linear24 | None
    parse: Callable[[str | bytes], ServerEvent]

    def command(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a client event's JSON object as it goes on the wire; ``event_id`` is added by the
        caller."""


class Tap(Protocol):
    """Sees every message of a session as it is on the wire: event log and sideband. Its methods are
    called on the event loop, and must neither wait nor raise."""

    def sent(self, message: bytes, audio: bytes | None = None) -> None:
        """Take a message that has been written to the socket. ``audio`` is the raw caller audio of
        an audio append (in the wire's format); None for every other message."""

    def received(self, message: bytes, delta: AudioDelta | TrackAudio | None = None) -> None:
        """Take a message of the server. ``delta`` is its event if that is audio (as on the wire,
        not yet resampled); None for others, and for a message that cannot be parsed."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """Result of the set-up of a session, from which a :class:`Session` is made."""

    connection: Connection
    endpoint: Endpoint
    edge: Wire
    effective: dict[str, Any]
    """Session object that the server reported."""
    waiting: Sequence[ServerEvent]
    """Events that came during the set-up."""
    refused: Sequence[Refused]
    """Settings that the server rejected."""
    server_time: float | None
    """The server's clock now (Unix s), None where it is not known."""
    tap: Tap | None


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The end of a session.

    ``code`` and ``reason`` are those of the WebSocket close (1006: lost without one).
    ``by_us`` tells that :meth:`Session.close` ended it before the server did.
    """

    code: int
    reason: str
    by_us: bool
    verdict: Verdict


@dataclass(slots=True)
class Counters:
    """Counters of one session, in messages unless the name says bytes."""

    audio_sent: int = 0
    audio_sent_bytes: int = 0
    audio_dropped: int = 0
    """Caller audio not sent: the network was too slow or the session had ended."""
    commands_sent: int = 0
    commands_dropped: int = 0
    """Commands after the end of the session."""
    events_received: int = 0
    bad_events: int = 0
    handler_errors: int = 0
    """Exceptions out of the event callback."""
    unknown_types: dict[str, int] = field(default_factory=dict)
    """Event types that are not GA's, with their counts; the first 32 of them."""


class Session:
    """One realtime session after its ``session.updated``. To be used on its event loop only.

    A task reads the socket until the connection closes; it is started here.

    Args:
        on_event: called with each event in the order of arrival, first with those of the
            set-up. What it raises is logged and counted.
        on_closed: called once, after the last event.
    """

    capabilities: Capabilities = REALTIME
    append_head: ClassVar[bytes] = b'{"type":"input_audio_buffer.append","audio":"'

    part_bytes: int | None = None
    """Audio of a large delta that is worked on at a time; None: all of it."""

    def __init__(
        self,
        handshake: Handshake,
        on_event: Callable[[ServerEvent], None],
        on_closed: Callable[[SessionClosed], None],
    ) -> None:
        self.effective = effective = handshake.effective
        """Session object that the server reported last."""
        self.id = str(effective.get("id") or "")
        """The server's ``sess_…``."""
        expires_at = effective.get("expires_at")
        self.expires_at: float | None = None
        """End of the session (Unix s), where the server tells it."""
        # Neither NaN, nor infinity, nor what is too large for a float.
        if isinstance(expires_at, (int, float)) and abs(expires_at) < MAX_UNIX_SECONDS:
            self.expires_at = float(expires_at)
        server_time = handshake.server_time
        if server_time is None:
            server_time = time.time()
        self.seconds_left = None if self.expires_at is None else self.expires_at - server_time
        """Seconds from the set-up to ``expires_at``, by the server's clock where it is known."""
        self.counters = Counters()
        self._connection = handshake.connection
        self._transport = self._connection.transport
        self._redact = handshake.endpoint.redact
        self._edge = handshake.edge
        self._on_event = on_event
        self._on_closed = on_closed
        self._tap = handshake.tap
        self._log = log.bind(session=self.id)
        self.commands = SentCommands(handshake.refused, self.id)
        self._close_asked: str | None = None
        self._ended = False
        self._reader = asyncio.create_task(
            self._read(tuple(handshake.waiting)), name=f"realtime-session-{self.id}"
        )

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more: the session has ended, or its WebSocket is not in
        state OPEN (either side has begun to close)."""
        return self._ended or self._connection.protocol.state is not State.OPEN

    @property
    def round_trip_ms(self) -> float:
        """Round trip of the last WebSocket ping and its pong, ms; 0 before the first pong."""
        return 1000 * self._connection.latency

    def append(self, audio: bytes) -> None:
        """Send caller audio (``input_audio_buffer.append``), bytes of the session's input format.

        Called every 20 ms of every call, so it writes a frame of its own making instead of awaiting
        the library's ``send``. Never waits and never raises. Audio is dropped and counted
        (``audio_dropped``) if more than 256 KiB wait in the socket's write buffer
        (:data:`WRITE_BUFFER_LIMIT`), or if the WebSocket is closing; the first drop of an open
        session is logged.
        """
        counters = self.counters
        full = self._transport.get_write_buffer_size() > WRITE_BUFFER_LIMIT
        message = self.append_head + _b2a_base64(audio, newline=False) + _APPEND_TAIL
        if full or not self._write(message, audio):
            counters.audio_dropped += 1
            if counters.audio_dropped == 1 and not self.closed:
                self._log.warning(
                    "session.audio_dropped", why="network too slow", limit=WRITE_BUFFER_LIMIT
                )
            return
        counters.audio_sent += 1
        counters.audio_sent_bytes += len(audio)

    def send(self, command: ClientCommand) -> str:
        """Send a command now and return its ``event_id``, which an ``error`` about it will name.

        Never waits and never raises, however full the write buffer is. Only if the session is
        closed it is dropped and counted (``commands_dropped``); the id is returned all the same. A
        change of voice is taken out of a ``session.update`` once the server has sent audio, and a
        ``response.create`` gets its id into its metadata (:class:`SentCommands`).
        """
        event_id = self.commands.next_id()
        command = self.commands.without_locked_voice(command, self.effective)
        body = self._edge.command(self.commands.body_of(command, event_id))
        if self.closed:
            self.counters.commands_dropped += 1
            self._log.debug("session.command_dropped", type=body["type"], why="session ended")
            return event_id
        self.commands.remember(event_id, command)
        self._write(encode_command(body, event_id))
        self.counters.commands_sent += 1
        return event_id

    def audio_counts(self) -> dict[str, int]:
        """Return by name how much audio was filled in or left out, for the record: an empty dict
        here, as only Live sessions do that."""
        return {}

    def tell_usage(self) -> None:
        """Deliver the seconds of use so far as :class:`SessionUsage`; does nothing here, as
        ``response.done`` has the usage of a Realtime session."""

    async def close(self, reason: str = "") -> None:
        """Send a close frame (1000), and return when socket and reading task are gone and
        ``on_closed`` was called: within about 2 s, also if the server does not answer; 4 s at most.

        Any number of calls, at any time; only the first one's ``reason`` (cut to 123 bytes of
        UTF-8) goes to the server, and none if it has begun to close itself. A cancelled call aborts
        the connection. Not to be awaited inside the callbacks, which would wait for themselves.
        """
        if self._close_asked is None and not self.closed:
            # A close frame has room for 123 bytes of reason (RFC 6455 section 5.5).
            reason = reason.encode()[:123].decode(errors="ignore")
            self._close_asked = reason
            try:
                async with asyncio.timeout(2 * CLOSE_TIMEOUT):
                    await self._connection.close(1000, reason)
            except TimeoutError:
                self._log.warning("session.close_timeout")
            finally:
                # Cuts what the closing handshake, a timeout or a cancellation left open.
                self._transport.abort()
        # The reader ends with the connection; a cancelled caller must not take it along.
        await asyncio.shield(self._reader)

    def _write(self, message: bytes, audio: bytes | None = None) -> bool:
        """Write a message to the socket and show it to the tap. Return False, with nothing written,
        if the WebSocket is not open; True also where the transport fails. Never raises."""
        try:
            written = self._connection.write_text(message)
        except Exception:
            # The transport is gone; the reader is about to be told and to report the end.
            self._log.debug("session.write_failed", exc_info=True)
            written = True
        if written and self._tap is not None:
            self._tap.sent(message, audio)
        return written

    async def _read(self, waiting: Sequence[ServerEvent]) -> None:
        """Task: deliver the events of the set-up, then each message until the connection closes; at
        last abort the transport and report the end.

        Messages are taken from the library's queue only until that is empty: from then on the
        connection calls :meth:`_take` directly, until a large or fragmented message goes through
        the queue.
        """
        closed = SessionClosed(1006, "", False, classify_close(1006, ""))
        try:
            for event in waiting:
                self._deliver(event)
            connection = self._connection
            while True:
                if connection.read == connection.queued:
                    connection.take = self._take
                message = await connection.next_message()
                if len(message) > LARGE_MESSAGE:
                    await self._take_large(message)
                else:
                    self._take(message)
        except ConnectionClosed as error:
            closed = self._closed(error)
        except asyncio.CancelledError:
            # Only the end of the event loop does this: Session.close lets the reader finish.
            closed = replace(closed, reason="event loop ended", by_us=True)
            raise
        except Exception:
            self._log.exception("session.reader_failed")
        finally:
            self._transport.abort()
            self._end(closed)

    def _take(self, frame: bytes) -> None:
        """Parse a message, count it, show it to the tap, and handle its event. One that cannot be
        parsed is counted and logged as bad."""
        try:
            event = self._edge.parse(frame)
        except BadEvent as error:
            self._bad(error, frame)
            return
        self._count_in(frame, event)
        self._on_parsed(event)

    async def _take_large(self, frame: bytes) -> None:
        """Do as :meth:`_take` with a message of more than 64 KiB, parsed on a thread; other calls
        are served meanwhile, and between the parts of ``part_bytes`` in which its audio is
        handled."""
        try:
            event = await asyncio.to_thread(self._edge.parse, frame)
        except BadEvent as error:
            self._bad(error, frame)
            return
        self._count_in(frame, event)
        part = self.part_bytes
        if part is None or not isinstance(event, AudioDelta):
            self._on_parsed(event)
            return
        for start in range(0, len(event.audio), part):
            self._on_parsed(replace(event, audio=event.audio[start : start + part]))
            await asyncio.sleep(0)

    def _count_in(self, frame: bytes, event: ServerEvent | None) -> None:
        """Count a received message and show it to the tap; ``event`` is None if it could not be
        parsed."""
        self.counters.events_received += 1
        if self._tap is not None:
            delta = event if isinstance(event, _AUDIO) else None
            self._tap.received(frame, delta)

    def _bad(self, error: BadEvent, frame: bytes) -> None:
        """Count a message that cannot be parsed, as received and as bad, and log the first 10."""
        self._count_in(frame, None)
        self.counters.bad_events += 1
        if self.counters.bad_events <= _LOGGED_COMPLAINTS:
            self._log.warning(
                "session.invalid_event",
                type=error.event_type,
                field=error.field,
                detail=error.detail,
                consequence=error.consequence,
                bytes=len(frame),
            )

    def _on_parsed(self, event: ServerEvent) -> None:
        """Handle an event, then deliver it to ``on_event``.

        The first audio locks the voice; a type that GA does not have is counted;
        ``session.updated`` replaces :attr:`effective`; secrets are taken out of an ``error``. An
        ``error`` that rejects the metadata which we added to a ``response.create`` is not
        delivered: the request is sent again without it. One that rejects a field of a
        ``session.update`` is delivered after the rest was sent again.
        """
        if type(event) is AudioDelta:
            self.commands.voice_locked = True
        elif isinstance(event, OtherEvent):
            if not is_known_type(event.type):
                self._count_unknown(event.type)
        elif isinstance(event, SessionUpdated):
            self.effective = dict(event.session)
        elif isinstance(event, ServerError):
            event = replace(event, message=self._redact(event.message))
            if (request := self.commands.without_metadata(event)) is not None:
                self.send(request)
                return
            if (update := self.commands.without_refused_field(event)) is not None:
                self.send(update)
        self._deliver(event)

    def _count_unknown(self, event_type: str) -> None:
        """Count an event type; the first 32 types are kept, each logged once, and others are not
        counted."""
        seen = self.counters.unknown_types
        if event_type in seen:
            seen[event_type] += 1
        elif len(seen) < _REMEMBERED_TYPES:
            seen[event_type] = 1
            self._log.info("session.unknown_event", type=event_type[:100])

    def _deliver(self, event: ServerEvent) -> None:
        """Call ``on_event``. An exception of it is counted, and the first 10 are logged; none goes
        further."""
        try:
            self._on_event(event)
        except Exception:
            self.counters.handler_errors += 1
            if self.counters.handler_errors <= _LOGGED_COMPLAINTS:
                self._log.exception("session.handler_failed", event_class=type(event).__name__)

    def _closed(self, error: ConnectionClosed) -> SessionClosed:
        """Return who closed the connection, with code, reason (RFC 6455 section 7.1.5) and verdict.

        It was us if :meth:`close` was called and the server's close frame did not come first.
        Without a close frame of the server it is 1006, with the reason of the library's own close,
        such as ``keepalive ping timeout``.
        """
        received, sent = error.rcvd, error.sent
        if self._close_asked is not None and not (received and error.rcvd_then_sent):
            verdict = Verdict(Kind.BENIGN, "1000", "closed by us", True)
            return SessionClosed(1000, self._close_asked, True, verdict)
        if received is not None:
            code, reason = int(received.code), self._redact(received.reason)
        else:
            # Without a close from the server, ours tells why: "keepalive ping timeout".
            code, reason = 1006, sent.reason if sent is not None else ""
        return SessionClosed(code, reason, False, classify_close(code, reason))

    def _end(self, closed: SessionClosed) -> None:
        """Note the session as ended, log its counters, and call ``on_closed``, whose exceptions are
        logged. Called once, by the reading task."""
        self._ended = True
        counters = self.counters
        self._log.info(
            "session.closed",
            code=closed.code,
            reason=closed.reason,
            by_us=closed.by_us,
            verdict=str(closed.verdict.kind),
            meaning=closed.verdict.meaning,
            audio_sent=counters.audio_sent,
            audio_dropped=counters.audio_dropped,
            commands_sent=counters.commands_sent,
            events_received=counters.events_received,
            bad_events=counters.bad_events,
            held_back=self._connection.held_back,
            handler_errors=counters.handler_errors,
        )
        try:
            self._on_closed(closed)
        except Exception:
            self._log.exception("session.closed_handler_failed")


class ResampledSession(Session):
    """A session whose wire has 24 kHz PCM; audio is appended and delivered in the codec of the
    call.

    At the end of a content part (its :class:`AudioDone`, its response's :class:`ResponseDone`, or
    the first delta of another part) what is left in the resampler is delivered as one more delta
    before that event. ``audio_sent_bytes`` counts PCM.
    """

    part_bytes = 48_000
    """A second, which takes 5 ms to resample."""

    _part: tuple[str, str, int] | None = None

    def append(self, audio: bytes) -> None:
        """Resample caller audio (bytes in the call's codec) and send it. The resampler delays it by
        30 ms: the first calls send nothing."""
        assert self._edge.pcm is not None
        wire = self._edge.pcm.up(audio)
        if wire:
            super().append(wire)

    def _deliver(self, event: ServerEvent) -> None:
        """Deliver an event: of an audio delta the resampled audio, if it yields any yet; before a
        delta of another part, and before the end of the current one, the rest of the current
        part."""
        if isinstance(event, AudioDelta):
            part = (event.response_id, event.item_id, event.content_index)
            if part != self._part:
                self._part_over()
                self._part = part
            assert self._edge.pcm is not None
            audio = self._edge.pcm.down(event.audio)
            if audio:
                super()._deliver(replace(event, audio=audio))
            return
        if isinstance(event, (AudioDone, ResponseDone)) and self._is_of_part(event):
            self._part_over()
        super()._deliver(event)

    def _is_of_part(self, done: AudioDone | ResponseDone) -> bool:
        """Return whether ``done`` ends the current content part: it names the part's response, or
        none. The end of another response, such as one out of band, leaves the part alone."""
        return self._part is not None and done.response_id in ("", self._part[0])

    def _part_over(self) -> None:
        """Deliver what is left in the resampler of the current part as its last delta, if there is
        any, and reset the resampler. Nothing without a current part."""
        if self._part is None:
            return
        assert self._edge.pcm is not None
        tail = self._edge.pcm.part_over()
        part, self._part = self._part, None
        if tail:
            super()._deliver(AudioDelta(*part, tail))

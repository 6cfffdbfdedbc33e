# SPDX-License-Identifier: GPL-2.0-or-later
"""Sideband of a call: the WebSocket by which an application sees the events of the call's session
and sends some of its own, as with OpenAI's SIP interface.

Audio deltas are left out; DTMF and playout are events of that interface
(``input_audio_buffer.dtmf_event_received``, ``output_audio_buffer.started``).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import orjson
import structlog

from gateway.call import inputs
from gateway.call.machine import MachineInput
from gateway.call.tools.commands import CallCommand, Interrupt, PressKeys
from gateway.dialplan.route_session import merged
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    AudioDelta,
    ClientCommand,
    Relayed,
    RelayedUpdate,
    TrackAudio,
)
from gateway.realtime.parse import nested_deeply
from gateway.realtime.session import Tap
from gateway.text import json_text, unicode_in

QUEUED = 512
"""Events that may wait for a slow application; then it is disconnected (1013)."""

HELD = 256
"""Events of the application that may wait for the session and for the ACK."""

OWN_IDS = 256
"""Events of the application whose ids are known when the server answers them."""

TOO_SLOW, OVER = 1013, 1000
"""WebSocket close codes (RFC 6455 section 7.4)."""

_BEFORE = frozenset({"session.created", "session.started", "session.updated", "error"})
"""Types of events that an application is not told of before its session is up."""

AUDIO = frozenset(
    {"response.output_audio.delta", "response.audio.delta", "session.output_audio.delta"}
)
"""Types of events that an application does not get."""
_AUDIO_HEAD = b'audio.delta"'
RELAYED = frozenset(
    {
        "conversation.item.create",
        "conversation.item.delete",
        "conversation.item.retrieve",
        "conversation.item.truncate",
        "input_audio_buffer.clear",
        "input_audio_buffer.commit",
        "response.cancel",
        "response.create",
    }
)
LIVE_RELAYED = frozenset(
    {
        "decision.create",
        "decision.item.create",
        "decision.item.delete",
        "response.create",
        "response.item.create",
        "session.commentary.append",
        "session.input_audio.mute",
        "session.input_audio.unmute",
        "session.instructions.append",
        "session.output_audio.fixture.play",
        "session.thinking.append",
    }
)
_KEYS = frozenset("0123456789ABCD*#")
CLOSED_SECONDS = 6.0
"""How long the followers of a Live session wait for its ``session.closed``."""

CODEC_FIELDS = (("audio", "input", "format"), ("audio", "output", "format"))
"""Fields of a session object that the call's codec determines."""
NOT_SENT = (("model",), ("tracing",), *CODEC_FIELDS)
"""Fields of a ``session.update`` that are confirmed to the application, but not sent."""

log = structlog.get_logger("sideband")


class SidebandTap:
    """Passes a session's messages to the event log (None: there is none), and those received to the
    sideband."""

    def __init__(self, events: Tap | None, received: Callable[[bytes], None]) -> None:
        self._events = events
        self._received = received

    def sent(self, message: bytes, audio: bytes | None = None) -> None:
        """Log a message that was sent; see :meth:`gateway.realtime.session.Tap.sent`."""
        if self._events is not None:
            self._events.sent(message, audio)

    def received(self, message: bytes, delta: AudioDelta | TrackAudio | None = None) -> None:
        """Pass on a message that was received; see
        :meth:`gateway.realtime.session.Tap.received`."""
        if self._events is not None:
            self._events.received(message, delta)
        self._received(message)


class Follower:
    """One WebSocket of an application: the queue of events that it still gets."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque()
        self._pulse = asyncio.Event()
        self.close_code: int | None = None
        """WebSocket close code to end with after the queued events; None while it is open."""

    def put(self, event: Mapping[str, Any]) -> None:
        """Queue an event; nothing once it is being closed. One for which ``QUEUED`` wait already
        loses them all, and is closed (1013)."""
        if self.close_code is not None:
            return
        if len(self._events) >= QUEUED:
            self._events.clear()
            self.close(TOO_SLOW)
            return
        self._events.append(json_text(unicode_in(dict(event))).encode())
        self._pulse.set()

    def close(self, code: int) -> None:
        """End this WebSocket with ``code`` after the queued events; only the first call counts."""
        self.close_code = self.close_code or code
        self._pulse.set()

    async def next(self) -> bytes | None:
        """Await the next event (JSON); None at the end, when :attr:`close_code` is set and no event
        is left."""
        while not self._events:
            if self.close_code is not None:
                return None
            self._pulse.clear()
            await self._pulse.wait()
        return self._events.popleft()


class Sideband:
    """Connects a call's session with the application that has the call, which may follow it on
    several WebSockets (followers). Lives on the event loop.

    Args:
        on_end: called when the call is over.
    """

    relayed = RELAYED
    """Types of events that are sent on as they are."""
    greeting = "session.created"
    """Type of the first event that a follower gets."""
    id_key = "event_id"
    """Key of an ``error`` that has the id of the rejected event."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.send: Callable[[ClientCommand], str] = lambda _command: ""
        """Sends a command to the session; returns its ``event_id``."""
        self.act: Callable[[CallCommand], None] = lambda _command: None
        """Feeds a command of the application to the machine."""
        self.hang_up: Callable[[], None] = lambda: None
        """Has the machine end the call."""
        self.tools: list[dict[str, Any]] = []
        """Tools of the route, added to each update of the tools by the application."""
        self.concealed = False
        """Sensitive digits are entered, which the application does not get."""
        self._on_end = on_end
        self._followers: list[Follower] = []
        self._session: dict[str, Any] | None = None
        self._echo: dict[str, Any] = {}
        self._early: deque[dict[str, Any]] = deque(maxlen=HELD)
        self._held: deque[dict[str, Any]] = deque()
        self._confirmed = False
        self._own_ids: BoundedDict[str, str | None] = BoundedDict(OWN_IDS)
        self._response = ""
        self._playing = False
        self._over = False
        self._count = 0

    # ---- the application

    def attach(self) -> Follower:
        """Add a follower; it gets ``session.created`` now or once the first session is open, then
        all events. After the call's end it is closed at once (1000)."""
        follower = Follower()
        if self._over:
            follower.close(OVER)
            return follower
        self._followers.append(follower)
        if self._session is not None:
            self._greet(follower)
        return follower

    def detach(self, follower: Follower) -> None:
        """Remove a follower; the call goes on, and what it has sent is still sent on. Nothing for
        one that is not there."""
        if follower in self._followers:
            self._followers.remove(follower)

    def take(self, message: str | bytes, follower: Follower) -> None:
        """Handle an event of the application: execute it, send it to the session, or answer it with
        an error (to this follower only).

        A ``session.update`` waits for the first session; the types in :attr:`relayed` for the ACK,
        too. Others are rejected, as is what is no JSON object with a ``type``, or nested too
        deeply.
        """
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and nested_deeply(event, message):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            self._refuse(follower, None, "is no JSON object with a type", "invalid_json")
            return
        kind, event_id = event["type"], event.get("event_id")
        if event_id is not None and not isinstance(event_id, str):
            self._refuse(follower, None, "event_id must be a text", "invalid_value")
        elif self._taken(kind, event):
            pass
        elif kind == "session.update" and isinstance(event.get("session"), dict):
            self._hold(event, follower, now=self._session is not None)
        elif kind in self.relayed:
            self._hold(event, follower, now=self._session is not None and self._confirmed)
        else:
            message = f"{kind[:100]} cannot be sent here: the audio is the telephone's"
            self._refuse(follower, event_id, message, "invalid_value")

    def _taken(self, kind: str, event: Mapping[str, Any]) -> bool:
        """Handle an event that the gateway executes itself: ``output_audio_buffer.clear``
        interrupts the model. Return False for other events."""
        del event
        if kind == "output_audio_buffer.clear":
            self.act(Interrupt())
            return True
        return False

    def _hold(self, event: dict[str, Any], follower: Follower, *, now: bool) -> None:
        """Send an event ``now``, or queue it until :meth:`_release`; if ``HELD`` wait already,
        answer it with an error."""
        if now:
            self._send(event)
        elif len(self._held) >= HELD:
            self._refuse(follower, event.get("event_id"), "too many events wait", "rate_limit")
        else:
            self._held.append(event)

    def _release(self) -> None:
        """Send queued events, in their order: updates once there is a session, others after the
        ACK, too. Nothing before the first session."""
        if self._session is None:
            return
        kept = [
            one for one in self._held if not (self._confirmed or one["type"] == "session.update")
        ]
        due = [one for one in self._held if self._confirmed or one["type"] == "session.update"]
        self._held = deque(kept)
        for event in due:
            self._send(event)

    def _send(self, event: dict[str, Any]) -> None:
        """Send an event to the session, with the route's tools added to those of an update.

        Fields of :data:`NOT_SENT` are taken out of an update and only confirmed; an update with no
        others is answered with ``session.updated`` here. A ``response.create`` loses its format.
        """
        command: ClientCommand
        if event["type"] == "session.update":
            session = deepcopy(event["session"])
            for path in NOT_SENT:
                move_field(session, path, self._echo)
            if isinstance(session.get("tools"), list):
                session["tools"] += self.tools
            if not _changes_something(session):
                self._tell({"type": "session.updated", "session": self._session or {}})
                return
            command = RelayedUpdate(session)
        else:
            body = event
            if event["type"] == "response.create" and isinstance(event.get("response"), dict):
                body = {**event, "response": deepcopy(event["response"])}
                move_field(body["response"], CODEC_FIELDS[1])
            command = Relayed(body)
        self._remember(self.send(command), event)

    def _remember(self, sent: str, event: Mapping[str, Any]) -> None:
        """Note the id with which an event was sent, and the application's own id for it, of the
        last ``OWN_IDS``. Without an id (``sent`` is "": no session is up), answer it with an error,
        unless it is an update, which is kept for the next session."""
        if not sent:
            if event["type"] != "session.update":  # that is kept for the next session
                why = f"{event['type']} was not sent: the call has no session now"
                self._tell(self._error(event.get("event_id"), why, "no_session"))
            return
        self._own_ids[sent] = event.get("event_id")

    def _refuse(self, follower: Follower, event_id: str | None, why: str, code: str) -> None:
        """Answer an event of a follower with ``error``; ``why`` is its message."""
        follower.put(self._error(event_id, why, code))

    def _error(self, event_id: str | None, why: str, code: str) -> dict[str, Any]:
        """Return an ``error`` of our own about the application's event with this id."""
        error = {"type": "invalid_request_error", "code": code, "message": why, "param": None}
        error[self.id_key] = event_id
        return {"event_id": self._id(), "type": "error", "error": error}

    # ---- the session

    def up(self, session: Mapping[str, Any]) -> None:
        """Note the session object of a session that has become the active one. The first one starts
        the sideband: followers get ``session.created``, then the events that came before, and what
        the application has sent meanwhile is sent on."""
        first, self._session = self._session is None, dict(session)
        self._own_ids.clear()  # each session counts them anew
        if not first:
            return
        for follower in self._followers:
            self._greet(follower)
        early, self._early = self._early, deque()
        for event in early:
            self._pass_on(event)
        self._release()

    def received(self, message: bytes) -> None:
        """Pass a message of the active session on to the application, or keep it until the first
        session is up. Neither waits nor raises.

        Left out are audio deltas, what is no JSON object or nested too deeply, and before a session
        is up the events of its set-up.
        """
        if _AUDIO_HEAD in message[:200]:
            return
        try:
            event = orjson.loads(message)
        except orjson.JSONDecodeError:
            return
        if not isinstance(event, dict) or event.get("type") in AUDIO:
            return
        if nested_deeply(event, message):
            return
        if self._session is None:
            if event.get("type") not in _BEFORE:
                self._early.append(event)
        else:
            self._pass_on(event)

    def _pass_on(self, event: dict[str, Any]) -> None:
        """Pass an event on, with the ``event_id`` that the application gave it. Left out are
        ``session.created``, and an ``error`` about an event of the gateway's.

        Notes settings of a ``session.updated`` and the id of a new response; before an item that
        was truncated while it played comes ``output_audio_buffer.cleared``.
        """
        kind = event.get("type")
        if kind == "session.created":
            return
        if kind == "session.updated" and isinstance(event.get("session"), dict):
            self._session = event["session"]
        elif kind == "response.created":
            response = event.get("response")
            self._response = str(response.get("id", "")) if isinstance(response, dict) else ""
        elif kind == "error" and isinstance(event.get("error"), dict):
            named = event["error"].get("event_id")
            if named is not None and not (isinstance(named, str) and named in self._own_ids):
                return  # about something of the gateway's
            own = None if named is None else self._own_ids[named]
            event["error"] = {**event["error"], "event_id": own}
        elif kind == "conversation.item.truncated" and self._playing:
            self._played("cleared")
        self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        """Give an event to all followers, with an ``event_id`` if it has none; settings that were
        only confirmed are added to ``session.updated``. Forget followers that are being closed."""
        if event.get("type") == "session.updated":
            event = {**event, "session": merged(event.get("session"), self._echo)}
        event.setdefault("event_id", self._id())
        for follower in self._followers:
            follower.put(event)
        self._followers = [one for one in self._followers if one.close_code is None]

    def _greet(self, follower: Follower) -> None:
        """Give a follower its first event: ``session.created`` with the settings as the application
        has them."""
        session = merged(self._session, self._echo)
        follower.put({"type": self.greeting, "event_id": self._id(), "session": session})

    def seeing(self, feed: Callable[..., None]) -> Callable[..., None]:
        """Return a function that feeds the call's machine, and then shows the input to the
        sideband."""

        def fed(input: MachineInput, *rest: Any) -> None:
            feed(input, *rest)
            self._on_input(input)

        return fed

    def _on_input(self, input: MachineInput) -> None:
        """Tell followers of DTMF digits, unless they are sensitive, and of start and end of
        playout; release waiting events at the ACK."""
        match input:
            case inputs.DigitPressed(digit) if not self.concealed:
                told = {"event": digit, "received_at": int(time.time())}
                for follower in self._followers:
                    follower.put({"type": "input_audio_buffer.dtmf_event_received", **told})
            case inputs.Confirmed():
                self._confirmed = True
                self._release()
            case inputs.PlayoutStarted() if not self._playing:
                self._played("started")
            case inputs.PlayoutDrained() if self._playing:
                self._played("stopped")

    def _played(self, what: str) -> None:
        """Note whether audio is played, and send followers ``output_audio_buffer.started``,
        ``.stopped`` or ``.cleared`` (``what``), with the id of the last response."""
        self._playing = what == "started"
        self._tell({"type": f"output_audio_buffer.{what}", "response_id": self._response})

    def end(self) -> None:
        """End all followers (1000) after their queued events, since the call is over; call
        ``on_end``."""
        self._over = True
        for follower in self._followers:
            follower.close(OVER)
        self._followers.clear()
        self._on_end()

    def _id(self) -> str:
        """Return the ``event_id`` of an event of our own."""
        self._count += 1
        return f"event_gw_{self._count}"


class LiveSideband(Sideband):
    """Sideband of a Live session: ``/v1/live/sessions/{session_id}/attach``. Its events of DTMF are
    ``transport.dtmf.*``, and there are none of playout."""

    relayed = LIVE_RELAYED
    greeting = "session.started"
    id_key = "client_event_id"

    def __init__(self, on_end: Callable[[], None]) -> None:
        super().__init__(on_end)
        self._hung_up = False
        """The caller has ended the call."""
        self._waits: asyncio.TimerHandle | None = None

    def _taken(self, kind: str, event: Mapping[str, Any]) -> bool:
        """Execute ``session.close`` (hang up) and ``transport.dtmf.send`` (send a digit, and
        confirm it to all followers); return False for other events, and for a digit that is
        none."""
        digit = event.get("event")
        if kind == "session.close":
            self.hang_up()
        elif kind == "transport.dtmf.send" and isinstance(digit, str) and digit in _KEYS:
            self.act(PressKeys(digit))
            told = {"type": "transport.dtmf.sent", "event": digit}
            self._tell({**told, "client_event_id": event.get("event_id")})
        else:
            return False
        return True

    def _send(self, event: dict[str, Any]) -> None:
        """Send an event to the session, with the route's tools added to those of its backend, if an
        update has any."""
        if event["type"] == "session.update" and self.tools:
            event = deepcopy(event)
            delegation = event["session"].get("delegation")
            backend = delegation.get("responses") if isinstance(delegation, dict) else None
            if isinstance(backend, dict) and isinstance(backend.get("tools"), list):
                backend["tools"] += self.tools
        self._remember(self.send(Relayed(event)), event)

    def _pass_on(self, event: dict[str, Any]) -> None:
        """Pass an event on, with the ``client_event_id`` that the application gave it; without it,
        if the event answers none of the application's. Left out are ``session.started``, and an
        ``error`` about an event of the gateway's.

        Notes the session object of any event. The reason of ``session.closed`` is ``remote_hangup``
        where the caller has hung up; after the call's end that event is the last.
        """
        kind = event.get("type")
        if kind == "session.started":
            return
        inner = event.get("error")
        named = inner if kind == "error" and isinstance(inner, dict) else event
        sent = named.get("client_event_id")
        if sent is not None:
            if not isinstance(sent, str) or (kind == "error" and sent not in self._own_ids):
                return  # about something of the gateway's
            named["client_event_id"] = self._own_ids.get(sent)
        if kind == "session.closed" and self._hung_up:
            event["reason"] = "remote_hangup"
        session = event.get("session")
        if isinstance(session, dict):
            self._session = session
        self._tell(event)
        if kind == "session.closed" and self._over:
            self._let_go()

    def _tell(self, event: dict[str, Any]) -> None:
        """Give an event to all followers, without a ``client_event_id`` that is null."""
        if event.get("client_event_id", "") is None:
            del event["client_event_id"]
        super()._tell(event)

    def _on_input(self, input: MachineInput) -> None:
        """Tell followers of DTMF digits, unless they are sensitive; note that the caller hung up;
        release waiting events at the ACK."""
        match input:
            case inputs.DigitPressed(digit) if not self.concealed:
                self._tell({"type": "transport.dtmf.received", "event": digit})
            case inputs.Confirmed():
                super()._on_input(input)
            case inputs.LegEnded(local=False):
                self._hung_up = True

    def end(self) -> None:
        """End all followers after the ``session.closed`` that they still get, ``CLOSED_SECONDS``
        from now at the latest; at once where no session was up. Call ``on_end`` now."""
        if self._over or self._session is None or not self._followers:
            super().end()
            return
        self._over = True
        self._waits = asyncio.get_running_loop().call_later(CLOSED_SECONDS, self._let_go)
        self._on_end()

    def _let_go(self) -> None:
        """End all followers (1000) after their queued events."""
        if self._waits is not None:
            self._waits.cancel()
        for follower in self._followers:
            follower.close(OVER)
        self._followers.clear()


def move_field(
    session: dict[str, Any], path: tuple[str, ...], kept: dict[str, Any] | None = None
) -> None:
    """Remove the field at ``path`` from a session object; put it at the same path of ``kept``, if
    given. Nothing where there is no such field."""
    node, kept = session, {} if kept is None else kept
    for step in path[:-1]:
        inner = node.get(step)
        if not isinstance(inner, dict):
            return
        node, kept = inner, kept.setdefault(step, {})
    if path[-1] in node:
        kept[path[-1]] = node.pop(path[-1])


def _changes_something(session: Mapping[str, Any]) -> bool:
    """Return whether a ``session.update`` has fields besides ``type`` and an ``audio`` without
    content."""
    audio = session.get("audio")
    sides = any(audio.values()) if isinstance(audio, dict) else audio is not None
    return sides or bool(session.keys() - {"type", "audio"})

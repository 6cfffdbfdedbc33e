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
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import orjson
import structlog

from gateway.call import inputs
from gateway.call.machine import MachineInput
from gateway.call.tools.commands import CallCommand, Interrupt, PressKeys
from gateway.dialplan.route_session import merged
from gateway.realtime.events import (
    AudioDelta,
    ClientCommand,
    Relayed,
    RelayedUpdate,
    TrackAudio,
)
from gateway.realtime.parse import nested_deeply
from gateway.realtime.session import Tap
from gateway.text import unicode_in

QUEUED = 512
"""Events that may wait for a slow application; then it is disconnected (1013)."""

HELD = 256
"""Events of the application that may wait for the session and for the ACK."""

OWN_IDS = 256
TOO_SLOW, OVER = 1013, 1000
"""WebSocket close codes (RFC 6455 section 7.4)."""

_BEFORE = frozenset({"session.created", "session.started", "session.updated", "error"})
"""Types of events that an application is not told of before its session is up."""

AUDIO = frozenset(
    {"response.output_audio.delta", "response.audio.delta", "session.output_audio.delta"}
)
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
    """Passes a session's messages to the event log, and those received to the sideband."""

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
    """One WebSocket of an application."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque()
        self._pulse = asyncio.Event()
        self.close_code: int | None = None
        """WebSocket close code to end with after the queued events; None while it is open."""

    def put(self, event: Mapping[str, Any]) -> None:
        """Queue an event; a follower that is too slow is disconnected."""
        if self.close_code is not None:
            return
        if len(self._events) >= QUEUED:
            self._events.clear()
            self.close(TOO_SLOW)
            return
        told = unicode_in(dict(event))
        try:
            self._events.append(orjson.dumps(told))
        except TypeError:  # an integer of more than 64 bits
            self._events.append(json.dumps(told).encode())
        self._pulse.set()

    def close(self, code: int) -> None:
        """End this WebSocket with ``code`` after the queued events; the first call counts."""
        self.close_code = self.close_code or code
        self._pulse.set()

    async def next(self) -> bytes | None:
        """Await the next event (JSON); None at the end, see :attr:`close_code`."""
        while not self._events:
            if self.close_code is not None:
                return None
            self._pulse.clear()
            await self._pulse.wait()
        return self._events.popleft()


class Sideband:
    """Connects a call's session with the application that has the call. Lives on the event loop.

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
        self.hang_up: Callable[[], None] = lambda: None
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
        self._own_ids: OrderedDict[str, str | None] = OrderedDict()
        self._response = ""
        self._playing = False
        self._over = False
        self._count = 0

    # ---- the application

    def attach(self) -> Follower:
        """Add a follower; it gets ``session.created`` once the session is open."""
        follower = Follower()
        if self._over:
            follower.close(OVER)
            return follower
        self._followers.append(follower)
        if self._session is not None:
            self._greet(follower)
        return follower

    def detach(self, follower: Follower) -> None:
        """Remove a follower; the call goes on."""
        if follower in self._followers:
            self._followers.remove(follower)

    def take(self, message: str | bytes, follower: Follower) -> None:
        """Handle an event of the application: send it on, or answer it with an error."""
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
        """Handle an event that the gateway executes itself; return False for other events."""
        del event
        if kind == "output_audio_buffer.clear":
            self.act(Interrupt())
            return True
        return False

    def _hold(self, event: dict[str, Any], follower: Follower, *, now: bool) -> None:
        """Send an event ``now``, or queue it until :meth:`_release`; ``HELD`` at most."""
        if now:
            self._send(event)
        elif len(self._held) >= HELD:
            self._refuse(follower, event.get("event_id"), "too many events wait", "rate_limit")
        else:
            self._held.append(event)

    def _release(self) -> None:
        """Send queued events: with a session, updates; after the ACK, all others."""
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
        """Send an event to the session; fields of :data:`NOT_SENT` are only confirmed."""
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
        if not sent:
            if event["type"] != "session.update":  # that is kept for the next session
                why = f"{event['type']} was not sent: the call has no session now"
                self._tell(self._error(event.get("event_id"), why, "no_session"))
            return
        self._own_ids[sent] = event.get("event_id")
        while len(self._own_ids) > OWN_IDS:
            self._own_ids.popitem(last=False)

    def _refuse(self, follower: Follower, event_id: str | None, why: str, code: str) -> None:
        """Answer an event of the application with ``error``; ``why`` is its message."""
        follower.put(self._error(event_id, why, code))

    def _error(self, event_id: str | None, why: str, code: str) -> dict[str, Any]:
        """Return an ``error`` of our own about the application's event with this id."""
        error = {"type": "invalid_request_error", "code": code, "message": why, "param": None}
        error[self.id_key] = event_id
        return {"event_id": self._id(), "type": "error", "error": error}

    # ---- the session

    def up(self, session: Mapping[str, Any]) -> None:
        """Note the session object of a session that is open; the first one starts the sideband."""
        first, self._session = self._session is None, dict(session)
        if not first:
            return
        for follower in self._followers:
            self._greet(follower)
        early, self._early = self._early, deque()
        for event in early:
            self._pass_on(event)
        self._release()

    def received(self, message: bytes) -> None:
        """Pass a message of the session on to the application. Neither waits nor raises."""
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
        """Pass an event on, with the ``event_id`` that the application gave it."""
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
        if event.get("type") == "session.updated":
            event = {**event, "session": merged(event.get("session"), self._echo)}
        event.setdefault("event_id", self._id())
        for follower in self._followers:
            follower.put(event)
        self._followers = [one for one in self._followers if one.close_code is None]

    def _greet(self, follower: Follower) -> None:
        session = merged(self._session, self._echo)
        follower.put({"type": self.greeting, "event_id": self._id(), "session": session})

    def seeing(self, feed: Callable[..., None]) -> Callable[..., None]:
        """Return a function that feeds the call's machine, and shows each input to the sideband."""

        def fed(input: MachineInput, *rest: Any) -> None:
            feed(input, *rest)
            self._on_input(input)

        return fed

    def _on_input(self, input: MachineInput) -> None:
        """Tell followers of DTMF digits and playout, and release events at the ACK."""
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
        """Send followers ``output_audio_buffer.started``, ``.stopped`` or ``.cleared``."""
        self._playing = what == "started"
        self._tell({"type": f"output_audio_buffer.{what}", "response_id": self._response})

    def end(self) -> None:
        """End all followers, since the call is over."""
        self._over = True
        for follower in self._followers:
            follower.close(OVER)
        self._followers.clear()
        self._on_end()

    def _id(self) -> str:
        self._count += 1
        return f"event_gw_{self._count}"


class LiveSideband(Sideband):
    """Sideband of a Live session: ``/v1/live/sessions/{session_id}/attach``."""

    relayed = LIVE_RELAYED
    greeting = "session.started"
    id_key = "client_event_id"

    def __init__(self, on_end: Callable[[], None]) -> None:
        super().__init__(on_end)
        self._hung_up = False
        """The caller has ended the call."""
        self._waits: asyncio.TimerHandle | None = None

    def _taken(self, kind: str, event: Mapping[str, Any]) -> bool:
        """Execute ``session.close`` and ``transport.dtmf.send``; return False for other events."""
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
        """Send an event, with the gateway's tools added to those of the backend."""
        if event["type"] == "session.update" and self.tools:
            event = deepcopy(event)
            delegation = event["session"].get("delegation")
            backend = delegation.get("responses") if isinstance(delegation, dict) else None
            if isinstance(backend, dict) and isinstance(backend.get("tools"), list):
                backend["tools"] += self.tools
        self._remember(self.send(Relayed(event)), event)

    def _pass_on(self, event: dict[str, Any]) -> None:
        """Pass an event on, with the ``client_event_id`` that the application gave it."""
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
        if event.get("client_event_id", "") is None:
            del event["client_event_id"]
        super()._tell(event)

    def _on_input(self, input: MachineInput) -> None:
        """Tell followers of DTMF digits, and note who hung up."""
        match input:
            case inputs.DigitPressed(digit) if not self.concealed:
                self._tell({"type": "transport.dtmf.received", "event": digit})
            case inputs.Confirmed():
                super()._on_input(input)
            case inputs.LegEnded(local=False):
                self._hung_up = True

    def end(self) -> None:
        """End all followers, after the ``session.closed`` that they still get."""
        if self._over or self._session is None or not self._followers:
            super().end()
            return
        self._over = True
        self._waits = asyncio.get_running_loop().call_later(CLOSED_SECONDS, self._let_go)
        self._on_end()

    def _let_go(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
        for follower in self._followers:
            follower.close(OVER)
        self._followers.clear()


def move_field(
    session: dict[str, Any], path: tuple[str, ...], kept: dict[str, Any] | None = None
) -> None:
    """Remove the field at ``path`` from a session object; put it at the same path of ``kept``."""
    node, kept = session, {} if kept is None else kept
    for step in path[:-1]:
        inner = node.get(step)
        if not isinstance(inner, dict):
            return
        node, kept = inner, kept.setdefault(step, {})
    if path[-1] in node:
        kept[path[-1]] = node.pop(path[-1])


def _changes_something(session: Mapping[str, Any]) -> bool:
    """Return whether a ``session.update`` has fields besides ``type``."""
    audio = session.get("audio")
    sides = any(audio.values()) if isinstance(audio, dict) else audio is not None
    return sides or bool(session.keys() - {"type", "audio"})

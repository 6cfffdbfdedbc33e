# SPDX-License-Identifier: GPL-2.0-or-later
"""Two realtime sessions that interpret between the joined legs of a call, one for each direction.

Each hears one party, and is heard by the other. What follows from their events is decided by
:mod:`gateway.call.interpretation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from gateway.bridge.legs import Legs
from gateway.bridge.machine_driver import CallHost, CallPart, entry, entry_task
from gateway.bridge.media import MediaPump
from gateway.bridge.sessions import ATTEMPTS, BILLED, Sessions
from gateway.call import inputs, outputs
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import SetupFailed, classify_error
from gateway.realtime.events import ServerError, ServerEvent
from gateway.realtime.session import Session, SessionClosed
from gateway.realtime.setup import open_with_retry
from gateway.records.event_logs import SessionTap
from gateway.sip.call_audio import CallAudio
from gateway.tasks import TaskSet


@dataclass(slots=True, eq=False)
class _Direction:
    """Interpretation in one direction: the session that hears one party and speaks to the other."""

    listener: str
    """caller or callee."""
    settings: Mapping[str, Any]
    audio: CallAudio
    """Audio of the listener."""
    log: SessionTap | None = None
    """Event log of the session."""
    session: Session | None = None
    rest: bytearray = field(default_factory=bytearray)
    """Audio of less than a frame."""

    def hear(self, audio: bytes) -> None:
        """Send the speaker's audio to the session; dropped while none is up."""
        if self.session is not None:
            self.session.append(audio)

    def play(self, audio: bytes, *, more: bool) -> None:
        """Queue the session's audio for the listener in whole frames; what has no room is dropped.

        With ``more`` to come, a rest of less than a frame waits for it; else silence fills it up.
        """
        self.rest += audio
        codec = self.audio.playout.codec
        if not more and self.rest:
            self.rest += codec.silence * (-len(self.rest) % codec.frame_bytes)
        whole = len(self.rest) - len(self.rest) % codec.frame_bytes
        if whole:
            self.audio.playout.put(bytes(self.rest[:whole]))
            del self.rest[:whole]


class Interpreter(CallPart):
    """Executes :class:`outputs.Interpret` and what is sent to its two sessions, for one call.

    Args:
        sessions: of the call: server, limits, event log and account are theirs.
        audio: of the caller.
        redirect: sends the caller's audio to another session than the call's own.
    """

    def __init__(
        self,
        host: CallHost,
        sessions: Sessions,
        legs: Legs,
        audio: CallAudio,
        pump: MediaPump,
        redirect: Callable[[Callable[[bytes], None]], None],
    ) -> None:
        super().__init__(host)
        self._sessions = sessions
        self._legs = legs
        self._audio = audio
        self._pump = pump
        self._redirect = redirect
        self._b_audio: CallAudio | None = None
        self._directions: dict[str, _Direction] = {}
        """By listener (``caller``, ``callee``); empty while nothing is interpreted."""
        self._opening: set[asyncio.Task[None]] = set()
        self._closing = TaskSet()
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.Interpret: self._interpret,
            outputs.OpenInterpreter: lambda output: self._open(self._directions[output.listener]),
            outputs.InterpreterSend: self._send,
            outputs.InterpreterPlay: lambda output: self._directions[output.listener].play(
                output.audio, more=output.more
            ),
            outputs.HearFully: lambda output: legs.hear_fully(output.listener),
        }

    @property
    def open(self) -> list[Endpoint]:
        """Servers of the interpreting sessions that are up, one entry for each."""
        return [self._endpoint for one in self._directions.values() if one.session is not None]

    def _interpret(self, output: outputs.Interpret) -> None:
        """Open a session for each direction, at the server of the call's session, and move the
        audio of both parties to them from now on; without session objects in ``output``, or a B-leg
        with audio of its own, close both."""
        b_audio = self._legs.b_leg_audio
        if not output.to_caller or b_audio is None:
            self.end()
            return
        self._endpoint = (self._sessions.open or [self._sessions.plan.endpoint])[0]
        self._b_audio = b_audio
        to_callee = _Direction("callee", output.to_callee, b_audio)
        to_caller = _Direction("caller", output.to_caller, self._audio)
        self._directions = {"callee": to_callee, "caller": to_caller}
        for direction in self._directions.values():
            direction.log = self._sessions.tap_of(f"to_{direction.listener}")
        self._redirect(to_callee.hear)
        self._pump.add(b_audio, lambda: self._move(b_audio, to_caller))
        for direction in self._directions.values():
            self._open(direction)

    def end(self) -> None:
        """Close both sessions, and let the legs hear each other at full volume; nothing while
        nothing is interpreted. Sessions that are being opened are given up. Returns at once."""
        directions, self._directions = self._directions, {}
        if self._b_audio is not None:
            self._pump.remove(self._b_audio)
            self._b_audio = None
        for task in self._opening:
            task.cancel()
        for direction in directions.values():
            self._legs.hear_fully(direction.listener)
            session, direction.session = direction.session, None
            if session is not None:
                session.tell_usage()
                self._closing.spawn(session.close("over"), f"close {session.id}")

    def _send(self, output: outputs.InterpreterSend) -> None:
        """Send a command to the session that ``listener`` hears; dropped while it is not up."""
        session = self._directions[output.listener].session
        if session is not None:
            session.send(output.command)

    async def wait_closed(self) -> None:
        """Wait until the tasks that open and close sessions are gone; they have their own
        deadlines."""
        await asyncio.gather(*self._opening, return_exceptions=True)
        await self._closing.wait()

    @entry
    def _move(self, audio: CallAudio, direction: _Direction) -> None:
        """Send what a party has said to the session of ``direction``."""
        said, moved = audio.uplink.take()
        if said:
            direction.hear(said)
        while moved and audio.playout.transition() is not None:
            pass  # nobody asks when the callee hears something

    def _open(self, direction: _Direction) -> None:
        """Start the task that opens a direction's session."""
        name = f"open interpreter {self._host.record.call_id}"
        task = asyncio.create_task(self._set_up(direction), name=name)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    @entry_task
    async def _set_up(self, direction: _Direction) -> None:
        """Open a direction's session, in ``ATTEMPTS`` attempts; feed :class:`inputs.InterpreterUp`,
        or ``InterpreterLost`` when that fails, as at a server with Live sessions, which cannot
        interpret.

        The server watch is told either way. If it is not wanted any more, it is closed and nothing
        is fed.
        """
        record, listener = self._host.record, direction.listener
        structlog.contextvars.bind_contextvars(
            call=record.call_id, route=record.route, listener=listener
        )
        clock, watch = asyncio.get_running_loop().time, self._sessions.plan.watch
        began, endpoint = clock(), self._endpoint
        if endpoint.live:
            self._lost(direction, "its server has Live sessions only")
            return
        try:
            session = await open_with_retry(
                endpoint,
                direction.settings,
                timeout=self._sessions.plan.connect_timeout,
                on_event=lambda event: self._on_event(direction, event),
                on_closed=lambda closed: self._on_closed(direction, closed),
                tap=direction.log,
                attempts=ATTEMPTS,
            )
        except SetupFailed as failure:
            watch.met(endpoint, failure, clock() - began)
            self._lost(direction, f"{failure.verdict.code}: {failure.detail}")
            return
        watch.met(endpoint, None, clock() - began)
        if not self._wanted(direction) or session.closed:
            self._closing.spawn(session.close("not wanted any more"), f"close {session.id}")
            return
        direction.session = session
        self._host.feed(inputs.InterpreterUp(direction.listener, session.id))

    def _wanted(self, direction: _Direction) -> bool:
        """Return whether this direction is still interpreted."""
        return self._directions.get(direction.listener) is direction

    def _lost(self, direction: _Direction, detail: str) -> None:
        """Feed :class:`inputs.InterpreterLost` with the reason, unless the direction is not
        interpreted any more."""
        if self._wanted(direction):
            self._host.feed(inputs.InterpreterLost(direction.listener, detail))

    @entry
    def _on_event(self, direction: _Direction, event: ServerEvent) -> None:
        """Count the cost of an event, or an error at the server watch; feed the event to the
        machine, unless the direction is not interpreted any more."""
        if isinstance(event, BILLED):
            self._sessions.count(self._endpoint, event)
        elif isinstance(event, ServerError):
            self._sessions.plan.watch.error(self._endpoint, classify_error(event))
        if self._wanted(direction):
            self._host.feed(inputs.InterpreterEvent(direction.listener, event))

    @entry
    def _on_closed(self, direction: _Direction, closed: SessionClosed) -> None:
        """Tell the server watch and the event log of a session's end; feed ``InterpreterLost``
        unless we closed it."""
        self._sessions.plan.watch.closed(self._endpoint, closed)
        if direction.log is not None:
            direction.log.closed(closed.code, closed.reason, closed.by_us)
        direction.session = None
        if not closed.by_us:
            self._lost(direction, f"{closed.code} {closed.reason}".strip())

# SPDX-License-Identifier: GPL-2.0-or-later
"""The realtime sessions of one call: the active one, and a standby that may replace it.

Executes the machine's outputs for sessions and feeds what they report. Events of a session that
was replaced are ignored, except for what they cost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from random import uniform
from typing import Any
from urllib.parse import urlsplit

import structlog

from gateway.audio.sounds import SpeechError, clip_of
from gateway.billing import Account, Level, Reached, transcriber_of
from gateway.bridge.machine_driver import CallHost, CallPart, entry, entry_task
from gateway.bridge.route_data import DataLookup
from gateway.bridge.sideband import Sideband, SidebandTap
from gateway.call import inputs, outputs
from gateway.call.conversation.control import message
from gateway.call.plan import Prepared
from gateway.dialplan.route_session import merged
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import SetupFailed, Verdict, classify_error
from gateway.realtime.events import (
    AudioDelta,
    ClientCommand,
    CreateResponse,
    DecisionMade,
    InputCommitted,
    InputTranscribed,
    Relayed,
    RelayedUpdate,
    ResponseCreated,
    ResponseDone,
    ServerError,
    ServerEvent,
    SessionUsage,
    SpeechStarted,
    SpeechStopped,
)
from gateway.realtime.live_voice import NO_PLAYOUT, LivePlayout
from gateway.realtime.session import Session, SessionClosed, Tap
from gateway.realtime.session_object import Refused
from gateway.realtime.setup import open_with_retry
from gateway.records.event_logs import EventLog, SessionTap
from gateway.tasks import TaskSet

log = structlog.get_logger(__name__)

_EARLY_EVENTS = 256
"""Events kept until :class:`inputs.SessionReady` was fed, a turn of the event loop later."""

BILLED = (ResponseDone, InputTranscribed, SessionUsage, DecisionMade)
"""Events that report what a session has used."""

_SESSIONS = 8
"""Sessions of one call whose rejected settings go into the record."""

ATTEMPTS = 2
"""Attempts to open a session at one server before the route's next fallback step."""

SPREAD_SECONDS = 0.25
"""Random delay of a session that replaces a lost one, at most: all calls of a server lose theirs at
once."""


class ServerWatch:
    """Observer of what calls meet at realtime servers. This one ignores it all; see
    :class:`gateway.app.health_checks.HealthChecker`."""

    def met(self, endpoint: Endpoint, failure: SetupFailed | None, seconds: float) -> None:
        """Note an attempt to open a session, with its retries, which took ``seconds``; ``failure``
        is None if it is open."""

    def closed(self, endpoint: Endpoint, closed: SessionClosed) -> None:
        """Note the end of a session that was up, closed by either side."""

    def error(self, endpoint: Endpoint, verdict: Verdict) -> None:
        """Note an ``error`` event of a session, unless it answers an event of an application."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """How to open the sessions of one call."""

    endpoint: Endpoint
    settings: Mapping[str, Any]
    """The GA session object to send."""
    connect_timeout: float
    max_playout_frames: int
    preparation: DataLookup | None = None
    """Fetches data that the settings need; None once they are complete."""
    watch: ServerWatch = field(default_factory=ServerWatch)
    others: tuple[Endpoint, ...] = ()
    """Servers of the route's fallback; :class:`outputs.OpenSession` counts them from 1."""
    live_settings: Mapping[str, Any] = field(default_factory=dict)
    """The session object for a server with Live sessions."""
    speech_command: tuple[str, ...] = ()
    """Program that synthesises words which a Live session must say exactly."""
    live_queue_ms: int = 300
    """Speech of a Live session in the playout queue (ms) above which its silence is left out."""

    def settings_for(self, endpoint: Endpoint) -> Mapping[str, Any]:
        """Return the session object for a server: ``live_settings`` if it has Live sessions, else
        ``settings``."""
        return self.live_settings if endpoint.live else self.settings


@dataclass(slots=True, eq=False)
class _Slot:
    """One session of the call, from the start of its set-up to its end."""

    endpoint: Endpoint
    session: Session | None = None
    opening: asyncio.Task[None] | None = None
    over: bool = False
    """Closed, or being closed: it gets no more audio."""
    seed: list[Mapping[str, Any]] = field(default_factory=list)
    """Items of the conversation so far, for a Live session's start."""
    early: deque[ServerEvent] | None = field(default_factory=lambda: deque(maxlen=_EARLY_EVENTS))
    """Events from before the session was reported as up; None after that."""
    missed: dict[str, Any] = field(default_factory=dict)
    """Settings that an application has sent since those of the set-up were taken."""

    def relay(self, command: ClientCommand, settings: Mapping[str, Any] | None) -> str:
        """Send an application's event; keep the ``settings`` in it, if any, of a session that is
        being opened. Return the event's id; "" where it was not sent."""
        if self.over:
            return ""
        if self.session is not None:
            return self.session.send(command)
        self.missed = merged(self.missed, settings or {})
        return ""


class Sessions(CallPart):
    """Opens, feeds and closes the sessions of one call: the active one, and a standby, which only
    waits to take over.

    Args:
        sideband: of the application that has the call: it sees the active session's events, and
            sends commands to it.
        playout: of the call, for Live sessions.
    """

    def __init__(
        self,
        host: CallHost,
        plan: SessionPlan,
        sideband: Sideband | None = None,
        playout: LivePlayout = NO_PLAYOUT,
    ) -> None:
        super().__init__(host)
        self._playout = playout
        self.plan = plan
        self._sideband = sideband
        if sideband is not None:
            sideband.send = self._relay
        self.id = ""
        """Server's id of the active session, or of the last one."""
        self._account: Account | None = None
        self._events: EventLog | None = None
        self._active: _Slot | None = None
        self._standby: _Slot | None = None
        self._closing = TaskSet()
        self._frames_dropped = 0
        self._refused: deque[list[Refused]] = deque(maxlen=_SESSIONS)
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.OpenSession: self._open,
            outputs.CloseSession: self.close,
            outputs.PromoteStandby: lambda _output: self._promote(),
            outputs.Send: self._send,
        }

    def watch(self, account: Account, events: EventLog | None) -> None:
        """Set the account that the sessions' usage is added to, and which feeds a budget that is
        reached; and the log of their events (None: none). To be called before the start."""
        self._account, self._events = account, events
        account.on_reached = self._on_reached

    @property
    def open(self) -> list[Endpoint]:
        """Return the servers of the sessions that are up and are not being closed: the active one,
        then a standby."""
        slots = (self._active, self._standby)
        return [one.endpoint for one in slots if one and one.session and not one.over]

    def append(self, audio: bytes) -> None:
        """Send caller audio, in the session's codec, to the active session; dropped while none is
        up, and once it is being closed."""
        slot = self._active
        if slot is not None and slot.session is not None and not slot.over:
            slot.session.append(audio)

    def finish(self) -> None:
        """Complete the record at the end of the call; closes no session (see :meth:`close`).

        Cancels the request for the route's data, and set-ups. The record gets the frames that the
        sessions dropped, counts of Live audio, the settings that servers rejected (each once), and
        the event log.
        """
        if self.plan.preparation is not None:
            self.plan.preparation.stop()
        for slot in (self._active, self._standby):
            if slot is not None:
                self._stop_opening(slot)
                self._count_dropped(slot)
        self._host.record.media.dropped_append_frames = self._frames_dropped
        refused = dict.fromkeys(one for session in self._refused for one in session)
        self._host.record.session.settings_refused = list(refused)
        if self._events is not None:
            self._host.record.session.event_log = self._events.as_json()

    async def wait_closed(self) -> None:
        """Wait until set-ups and closing have ended, which have their own deadlines; close a
        session that is still open; then end the event log."""
        slots = [slot for slot in (self._active, self._standby) if slot is not None]
        tasks = [slot.opening for slot in slots if slot.opening is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._closing.wait()
        for slot in slots:
            if slot.session is not None:
                await slot.session.close("over")  # where its end failed; else it is closed
        if self._events is not None:
            self._events.end()

    def _open(self, output: outputs.OpenSession) -> None:
        """Start the task that opens a session at the server of ``output``, as standby or as the
        active one; that closes the active one before (1000), or cancels its set-up, and counts what
        it dropped. Either closes the standby before. The first call also starts the request for the
        route's data."""
        endpoint = (self.plan.endpoint, *self.plan.others)[output.server]
        slot = _Slot(endpoint, seed=list(output.seed))
        again = False
        if self._standby is not None:  # that of a session which is lost
            self._release(self._standby, "not wanted any more")
        self._standby = slot if output.standby else None
        if not output.standby:
            if self._active is not None:
                again = self._active.session is not None
                self._count_dropped(self._active)
                self._release(self._active, "replaced")
            self._active = slot
        if self.plan.preparation is not None:
            self.plan.preparation.start(self._host.record.call_id)
        name = f"open {self._host.record.call_id}"
        slot.opening = asyncio.create_task(self._set_up(slot, again), name=name)

    @entry_task
    async def _set_up(self, slot: _Slot, again: bool) -> None:
        """Open a slot's session, and feed :class:`inputs.SessionReady` or ``StandbyReady``, then
        the events that came before it; or feed ``SessionFailed`` or ``StandbyFailed``.

        The server watch is told either way; the sideband of an active session that is up, before
        the machine. If the slot was replaced meanwhile, the session is closed and nothing is fed.
        There are ``ATTEMPTS`` attempts, one for a standby.

        Args:
            again: it replaces a session that was up: wait up to ``SPREAD_SECONDS`` first.
        """
        record, endpoint, watch = self._host.record, slot.endpoint, self.plan.watch
        # This task's own: what the session logs, from here to its end, names the call.
        structlog.contextvars.bind_contextvars(call=record.call_id, route=record.route)
        if again:
            # The calls that lost a server at one moment do not all come back at one.
            await asyncio.sleep(uniform(0, SPREAD_SECONDS))
        clock = asyncio.get_running_loop().time
        began = clock()
        slot.missed.clear()
        try:
            # Few attempts: the machine decides what follows (the route's fallback).
            session = await open_with_retry(
                endpoint,
                self.plan.settings_for(endpoint),
                timeout=self.plan.connect_timeout,
                on_event=partial(self._on_event, slot),
                on_closed=lambda closed: self._on_closed(slot, closed),
                tap=self._tap(slot),
                late=None if self.plan.preparation is None else partial(self._prepare, slot),
                attempts=1 if slot is self._standby else ATTEMPTS,
                playout=replace(
                    self._playout, max_queue_ms=self.plan.live_queue_ms, history=slot.seed
                ),
            )
        except SetupFailed as failure:
            watch.met(endpoint, failure, clock() - began)
            if slot is self._standby:
                self._standby = None
                self._host.feed(inputs.StandbyFailed(str(failure)))
            elif slot is self._active:
                failed = inputs.SessionFailed(failure.verdict, failure.detail, failure.retry_after)
                self._host.feed(failed)
            return
        slot.session = session  # first of all, so that it is closed whatever raises
        watch.met(endpoint, None, clock() - began)
        if self._sideband is not None and slot is self._active:
            self._sideband.up(session.effective)
        self._refused.append(session.commands.refused)
        if slot is not self._active and slot is not self._standby:
            self._release(slot, "not wanted any more")
            return
        if slot.missed:
            update = {"type": "session.update", "session": slot.missed}
            session.send(Relayed(update) if endpoint.live else RelayedUpdate(slot.missed))
        up: type[inputs.StandbyReady | inputs.SessionReady] = inputs.StandbyReady
        if slot is self._active:
            self.id, up = session.id, inputs.SessionReady
        self._host.feed(up(session.id, session.seconds_left, session.capabilities))
        early, slot.early = slot.early or deque(), None
        for event in early:
            self._on_event(slot, event)

    async def _prepare(self, slot: _Slot) -> Mapping[str, Any]:
        """Await the data of the call, and return the session object for the slot's server.

        The first slot to get here completes the plan of all sessions, replaces the route's messages
        in its own seed, and feeds :class:`Prepared`. Raises SetupFailed where the route rejects
        calls without data.
        """
        if self.plan.preparation is not None:
            prepared = await self.plan.preparation.ready()
            if self.plan.preparation is not None:  # nobody else waited for it, and was first
                self.plan = replace(
                    self.plan,
                    settings=prepared.settings,
                    live_settings=prepared.live_settings,
                    preparation=None,
                )
                first = [message(*one) for one in prepared.plan.content.messages]
                slot.seed[: prepared.messages] = first
                self._host.feed(
                    Prepared(prepared.plan, prepared.ms, prepared.failure, prepared.history)
                )
        return self.plan.settings_for(slot.endpoint)

    def close(self, output: outputs.CloseSession) -> None:
        """Close the active and the standby session, or cancel their set-up, with the reason of
        ``output``; returns at once. No standby is left."""
        for slot in (self._active, self._standby):
            if slot is not None:
                self._release(slot, output.reason)
        self._standby = None

    def _promote(self) -> None:
        """Make the standby session the active one, also towards the sideband; count what the other
        dropped, and close it (1000, "handed over"). Nothing without a standby."""
        old, standby = self._active, self._standby
        if standby is None:
            return
        self._active, self._standby = standby, None
        self.id = "" if standby.session is None else standby.session.id
        if self._sideband is not None and standby.session is not None:
            self._sideband.up(standby.session.effective)
        if old is not None:
            self._count_dropped(old)
            self._release(old, "handed over")

    def _send(self, output: outputs.Send) -> None:
        """Send a command to the active session; dropped while it is not up.

        A response with exact words is synthesised first, in a task, where a program for it is set
        and the session can play audio; what is sent after it may overtake it.
        """
        if self._active is None or self._active.session is None:
            return
        command, session = output.command, self._active.session
        possible = session.capabilities.clips and bool(self.plan.speech_command)
        if possible and isinstance(command, CreateResponse) and command.exact and not command.clip:
            self._closing.spawn(self._say_exactly(session, command), "speech")
        else:
            session.send(command)

    async def _say_exactly(self, session: Session, command: CreateResponse) -> None:
        """Synthesise the words of a response, and send it with their audio; if that fails, log why,
        and send it without, so that the model speaks them."""
        try:
            clip = await clip_of(self.plan.speech_command, command.words)
        except SpeechError as error:
            call = self._host.record.call_id
            log.warning("call.speech_failed", call=call, reason=str(error))
            session.send(command)
        else:
            session.send(replace(command, clip=clip))

    def _relay(self, command: ClientCommand) -> str:
        """Send an application's event to the active session; return its ``event_id``, or "" where
        no session is up: then the event is lost.

        Settings in it are kept for the session objects of later sessions, too; a standby gets them
        now, and a session that is being opened once it is up.
        """
        settings: Mapping[str, Any] | None = None
        if isinstance(command, RelayedUpdate):
            # A session that replaces this one begins with what holds now.
            settings = command.session
            self.plan = replace(self.plan, settings=merged(self.plan.settings, settings))
        elif isinstance(command, Relayed) and command.event["type"] == "session.update":
            settings = command.event["session"]
            live = merged(self.plan.live_settings, settings)
            self.plan = replace(self.plan, live_settings=live)
        if settings is not None and self._standby is not None:
            self._standby.relay(command, settings)
        return "" if self._active is None else self._active.relay(command, settings)

    def tap_of(self, name: str) -> SessionTap | None:
        """Return a log, in the call's event log, of another session of the call, whose lines have
        ``name``; None where no events are logged."""
        return None if self._events is None else SessionTap(self._events, name)

    def _tap(self, slot: _Slot) -> Tap | None:
        """Return what sees a slot's messages: the event log and, of those received while the slot
        is the active one, the sideband. None without either."""
        sideband = self._sideband
        if sideband is None:
            return self._events

        def received(message: bytes) -> None:
            if slot is self._active:
                sideband.received(message)

        return SidebandTap(self._events, received)

    def _on_event(self, slot: _Slot, event: ServerEvent) -> None:
        """Handle an event of a session: audio of the active one the short way, others as
        :meth:`_on_other` says. An exception ends the call."""
        try:
            if type(event) is AudioDelta and slot is self._active and slot.early is None:
                self._host.feed_audio(event)  # fifty times a second
            else:
                self._on_other(slot, event)
        except Exception as error:
            self.on_fault(error)

    def _on_other(self, slot: _Slot, event: ServerEvent) -> None:
        """Handle an event that is not audio of the active session. The first that fits:

        - the session was not reported as up yet: keep it until then;
        - the session is not the active one: only count its cost;
        - usage: count it;
        - an error: drop one that answers an application's event; else tell the server watch, and
          feed it with the command that it answers;
        - anything else: feed it, with the request that a new response answers; and count its cost.
          Before the start and end of the caller's speech comes :meth:`_tell_heard`.
        """
        if slot.early is not None:
            slot.early.append(event)
            return
        if slot is not self._active:
            # Past for the call, but it is paid for.
            if isinstance(event, BILLED):
                self.count(slot.endpoint, event)
            return
        if isinstance(event, SessionUsage):
            self.count(slot.endpoint, event)
            return
        if isinstance(event, ServerError):
            command = None
            if slot.session is not None:
                command = slot.session.commands.command_of(event.client_event_id)
            if isinstance(command, Relayed | RelayedUpdate):
                return  # the application's affair
            self.plan.watch.error(slot.endpoint, classify_error(event))
            self._host.feed(inputs.ServerErrorReceived(event, command))
            return
        if isinstance(event, SpeechStarted | SpeechStopped | InputCommitted):
            self._tell_heard(slot)
        asked = None
        if isinstance(event, ResponseCreated) and slot.session is not None:
            asked = slot.session.commands.request_of(event)
        self._host.feed(inputs.ServerEventReceived(event, asked))
        if isinstance(event, BILLED):
            self.count(slot.endpoint, event)

    def _tell_heard(self, slot: _Slot) -> None:
        """Feed :class:`inputs.CallerHeard`: when the caller's speech began and when they were last
        loud (s; None: never), and the round trips to caller and server (ms; 0: not known)."""
        since, until = self._host.heard()
        leg = (self._host.record.media.quality.get("rtt_ms") or {}).get("mean")
        server = 0.0 if slot.session is None else slot.session.round_trip_ms
        self._host.feed(inputs.CallerHeard(since, until, leg or 0.0, server))

    def count(self, endpoint: Endpoint, event: ServerEvent) -> None:
        """Add the usage that an event reports to the call's cost, at the prices of ``endpoint``'s
        models; feed :class:`inputs.BudgetThreshold` if a budget is reached. Nothing without an
        account; once the record is complete, only the account is changed."""
        if self._account is None:
            return
        # A fallback's server has a model and prices of its own.
        asked = transcriber_of(self.plan.settings_for(endpoint))
        self._account.use(endpoint.model, urlsplit(endpoint.url).hostname or "", asked)
        reached = self._account.take(event)
        if self._host.is_over():
            return  # it is paid for all the same, but the record is written
        self._host.record.cost = self._account.as_json()
        if reached is not None:
            self._on_reached(reached)

    def _on_reached(self, reached: Reached) -> None:
        """Feed that a budget is used up (its limit), or nearly (its warning)."""
        self._host.feed(inputs.BudgetThreshold(reached.level is Level.LIMIT, str(reached)))

    @entry
    def _on_closed(self, slot: _Slot, closed: SessionClosed) -> None:
        """Handle the end of a session, whoever closed it: tell the server watch and the event log;
        feed ``SessionClosed`` of the active one, ``StandbyFailed`` of the standby, which is
        forgotten. Of another one nothing is fed."""
        slot.over = True
        self.plan.watch.closed(slot.endpoint, closed)
        if self._events is not None:
            self._events.closed(closed.code, closed.reason, closed.by_us)
        if slot is self._active:
            self._host.feed(inputs.SessionClosed(closed.code, closed.reason))
        elif slot is self._standby:
            self._standby = None
            self._host.feed(inputs.StandbyFailed(f"{closed.code} {closed.reason}".strip()))

    def _release(self, slot: _Slot, reason: str) -> None:
        """Close a slot's session (1000) in a task, after it has reported the usage so far; or
        cancel its set-up. It gets no more audio."""
        slot.over = True
        if slot.session is not None:
            slot.session.tell_usage()  # before the record is written
            closing = slot.session.close(reason)
            self._closing.spawn(closing, f"close {slot.session.id}")
        else:
            self._stop_opening(slot)

    @staticmethod
    def _stop_opening(slot: _Slot) -> None:
        """Cancel the set-up of a slot, unless that is what calls this."""
        if slot.opening is not None and slot.opening is not asyncio.current_task():
            slot.opening.cancel()

    def _count_dropped(self, slot: _Slot) -> None:
        """Add the caller's frames that a session dropped, and its counts of Live audio, to those of
        the call; nothing if it was never up. To be called once for each session."""
        if slot.session is None:
            return
        self._frames_dropped += slot.session.counters.audio_dropped
        told = self._host.record.media.live_audio
        for name, count in slot.session.audio_counts().items():
            told[name] = told.get(name, 0) + count

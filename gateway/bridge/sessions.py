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
from gateway.billing.costs import Account, Level, Reached, transcriber_of
from gateway.bridge.machine_driver import CallHost, CallPart, entry, entry_task
from gateway.bridge.route_data import DataLookup
from gateway.bridge.sideband import Sideband, SidebandTap
from gateway.call import inputs, outputs
from gateway.call.conversation.control import message
from gateway.call.plan import Prepared
from gateway.dialplan.route_session import merged
from gateway.realtime.endpoint import Endpoint
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
"""Events kept between the session's first event and the answer to it; a turn of the loop."""

BILLED = (ResponseDone, InputTranscribed, SessionUsage, DecisionMade)
"""Events that say what a session has used."""

_SESSIONS = 8
"""Sessions of one call whose rejected settings go into the record."""

ATTEMPTS = 2
"""Of one server, before the route's next step is taken."""

SPREAD_SECONDS = 0.25
"""A session that replaces one that was lost is opened up to this much later."""


class ServerWatch:
    """Observer of attempts, errors and ends of sessions at realtime servers; does nothing
    itself."""

    def met(self, endpoint: Endpoint, failure: SetupFailed | None, seconds: float) -> None:
        """Handle an attempt to open a session that has ended after ``seconds``."""

    def closed(self, endpoint: Endpoint, closed: SessionClosed) -> None:
        """Handle the end of a session that was up."""

    def error(self, endpoint: Endpoint, verdict: Verdict) -> None:
        """Handle an ``error`` event of a session."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """How to open the sessions of one call."""

    endpoint: Endpoint
    settings: Mapping[str, Any]
    """The GA session object to send."""
    connect_timeout: float
    max_playout_frames: int
    preparation: DataLookup | None = None
    """What the settings wait for; they say only the audio formats until it is there."""
    watch: ServerWatch = field(default_factory=ServerWatch)
    others: tuple[Endpoint, ...] = ()
    """Servers to turn to when the first is in trouble; :class:`outputs.OpenSession` counts them
    from 1."""
    live_settings: Mapping[str, Any] = field(default_factory=dict)
    """The session object for a server with Live sessions."""
    speech_command: tuple[str, ...] = ()
    """The program that makes audio of words that a Live session is to say exactly."""
    live_queue_ms: int = 300
    """Of a Live session's speech, waiting to be played, from which silence is left out."""

    def settings_for(self, endpoint: Endpoint) -> Mapping[str, Any]:
        """Return the session object for a server: Live sessions have one of their own."""
        return self.live_settings if endpoint.live else self.settings


@dataclass(slots=True, eq=False)
class _Line:
    """One session, beginning with the attempt to open it."""

    spare: bool
    endpoint: Endpoint
    session: Session | None = None
    opening: asyncio.Task[None] | None = None
    over: bool = False
    """It is closed, or is being closed: it takes no more audio."""
    seed: list[Mapping[str, Any]] = field(default_factory=list)
    """The conversation that a session is told of at its start."""
    early: deque[ServerEvent] | None = field(default_factory=lambda: deque(maxlen=_EARLY_EVENTS))


class Sessions(CallPart):
    """Opens, feeds and closes the sessions of one call; lives as long as it."""

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
        """The server's name of the active session, or of the last one there was."""
        self._account: Account | None = None
        self._events: EventLog | None = None
        self._line: _Line | None = None
        self._spare: _Line | None = None
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
        """Set what observes the call: costs, and events of its sessions. To be called before the
        start."""
        self._account, self._events = account, events
        account.on_reached = self._on_reached

    @property
    def open(self) -> list[Endpoint]:
        """Endpoints of the sessions that are up: the active one, and a standby session."""
        lines = (self._line, self._spare)
        return [one.endpoint for one in lines if one and one.session and not one.over]

    def append(self, audio: bytes) -> None:
        """Send caller audio in the session's codec; dropped while there is no session."""
        line = self._line
        if line is not None and line.session is not None and not line.over:
            line.session.append(audio)

    def finish(self) -> None:
        """Stop opening sessions, and complete the record with what they dropped and refused."""
        if self.plan.preparation is not None:
            self.plan.preparation.stop()
        for line in (self._line, self._spare):
            if line is not None:
                self._stop_opening(line)
                self._count_dropped(line)
        self._host.record.media.dropped_append_frames = self._frames_dropped
        refused = dict.fromkeys(one for session in self._refused for one in session)
        self._host.record.session.settings_refused = list(refused)
        if self._events is not None:
            self._host.record.session.event_log = self._events.as_json()

    async def wait_closed(self) -> None:
        """Wait until the tasks of the sessions have ended; they have their own deadlines."""
        lines = [line for line in (self._line, self._spare) if line is not None]
        tasks = [line.opening for line in lines if line.opening is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._closing.wait()
        for line in lines:
            if line.session is not None:
                await line.session.close(1000, "over")  # where its end failed; else it is closed
        if self._events is not None:
            self._events.end()

    # ---- what the machine says

    def _open(self, output: outputs.OpenSession) -> None:
        """Start the task that opens a session, the active one or a standby."""
        endpoint = (self.plan.endpoint, *self.plan.others)[output.server]
        line = _Line(output.standby, endpoint, seed=list(output.seed))
        again = False
        if output.standby:
            self._spare = line
        else:
            if self._line is not None:
                again = self._line.session is not None
                self._release(self._line, 1000, "replaced")
            self._line = line
        if self.plan.preparation is not None:
            self.plan.preparation.start(self._host.record.call_id)
        name = f"open {self._host.record.call_id}"
        line.opening = asyncio.create_task(self._set_up(line, again), name=name)

    @entry_task
    async def _set_up(self, line: _Line, again: bool) -> None:
        """Open a session; feed :class:`inputs.SessionReady`, or why it failed."""
        record, endpoint, watch = self._host.record, line.endpoint, self.plan.watch
        # This task's own: what the session logs, from here to its end, names the call.
        structlog.contextvars.bind_contextvars(call=record.call_id, route=record.route)
        if again:
            # The calls that lost a server at one moment do not all come back at one.
            await asyncio.sleep(uniform(0, SPREAD_SECONDS))
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            # Once more at most: what is done then, and when another attempt is made, is the
            # machine's to say (the route's fallback), and nobody rings for long in vain.
            session = await open_with_retry(
                endpoint,
                self.plan.settings_for(endpoint),
                timeout=self.plan.connect_timeout,
                on_event=partial(self._on_event, line),
                on_closed=lambda closed: self._on_closed(line, closed),
                tap=self._tap(line),
                late=None if self.plan.preparation is None else partial(self._prepare, line),
                attempts=1 if line.spare else ATTEMPTS,
                playout=replace(
                    self._playout, max_queue_ms=self.plan.live_queue_ms, history=line.seed
                ),
            )
        except SetupFailed as failure:
            watch.met(endpoint, failure, clock() - began)
            if line is self._spare:
                self._spare = None
                self._host.feed(inputs.StandbyFailed(str(failure)))
            elif line is self._line:
                failed = inputs.SessionFailed(failure.verdict, failure.detail, failure.retry_after)
                self._host.feed(failed)
            return
        line.session = session  # first of all, so that it is closed whatever raises
        watch.met(endpoint, None, clock() - began)
        if self._sideband is not None and line is self._line:
            self._sideband.up(session.effective)
        self._refused.append(session.commands.refused)
        if line is not self._line and line is not self._spare:
            self._release(line, 1000, "not wanted any more")
            return
        if not line.spare:
            self.id = session.id
        up = inputs.StandbyReady if line.spare else inputs.SessionReady
        self._host.feed(up(session.id, session.seconds_left, session.capabilities))
        early, line.early = line.early or deque(), None
        for event in early:
            self._on_event(line, event)

    async def _prepare(self, line: _Line) -> Mapping[str, Any]:
        """Wait for the data of the call; return the complete settings."""
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
                line.seed[: prepared.messages] = first
                self._host.feed(
                    Prepared(prepared.plan, prepared.ms, prepared.failure, prepared.history)
                )
        return self.plan.settings_for(line.endpoint)

    def close(self, output: outputs.CloseSession) -> None:
        """Close the active and the standby session with the code and reason of ``output``."""
        for line in (self._line, self._spare):
            if line is not None:
                self._release(line, output.code, output.reason)
        self._spare = None

    def _promote(self) -> None:
        """Make the standby session the active one, and close the other."""
        old, spare = self._line, self._spare
        if spare is None:
            return
        self._line, self._spare = spare, None
        spare.spare = False
        self.id = "" if spare.session is None else spare.session.id
        if old is not None:
            self._count_dropped(old)
            self._release(old, 1000, "handed over")

    def _send(self, output: outputs.Send) -> None:
        """Send a command to the active session; words that must be exact are synthesised first."""
        if self._line is None or self._line.session is None:
            return
        command, session = output.command, self._line.session
        possible = session.capabilities.clips and bool(self.plan.speech_command)
        if possible and isinstance(command, CreateResponse) and command.exact and not command.clip:
            self._closing.spawn(self._say_exactly(session, command), "speech")
        else:
            session.send(command)

    async def _say_exactly(self, session: Session, command: CreateResponse) -> None:
        """Synthesise the words of a response and have them played; if that fails, ask the model
        for them."""
        try:
            clip = await clip_of(self.plan.speech_command, command.words)
        except SpeechError as error:
            call = self._host.record.call_id
            log.warning("call.speech_failed", call=call, reason=str(error))
            session.send(command)
        else:
            session.send(replace(command, clip=clip))

    def _relay(self, command: ClientCommand) -> str:
        """Send an application's event; return its id, "" where no session is open."""
        line = self._line
        if isinstance(command, RelayedUpdate):
            # A session that replaces this one begins with what holds now.
            self.plan = replace(self.plan, settings=merged(self.plan.settings, command.session))
        elif isinstance(command, Relayed) and command.event["type"] == "session.update":
            live = merged(self.plan.live_settings, command.event["session"])
            self.plan = replace(self.plan, live_settings=live)
        return "" if line is None or line.session is None else line.session.send(command)

    def tap_of(self, name: str) -> SessionTap | None:
        """Return the event log of another session of the call; None where no events are logged."""
        return None if self._events is None else SessionTap(self._events, name)

    def _tap(self, line: _Line) -> Tap | None:
        """Return the tap of a session: the event log, and the application's sideband."""
        sideband = self._sideband
        if sideband is None:
            return self._events

        def received(message: bytes) -> None:
            if line is self._line:
                sideband.received(message)

        return SidebandTap(self._events, received)

    # ---- what the sessions tell

    def _on_event(self, line: _Line, event: ServerEvent) -> None:
        """Feed an event of a session; an exception ends the call."""
        try:
            if type(event) is AudioDelta and line is self._line and line.early is None:
                self._host.feed_audio(event)  # fifty times a second
            else:
                self._on_other(line, event)
        except Exception as error:
            self.on_fault(error)

    def _on_other(self, line: _Line, event: ServerEvent) -> None:
        """Count the cost of an event, and feed it if its session is the active one."""
        if line.early is not None:
            line.early.append(event)
            return
        if line is not self._line:
            # Past for the call, but it is paid for.
            if isinstance(event, BILLED):
                self.count(line.endpoint, event)
            return
        if isinstance(event, SessionUsage):
            self.count(line.endpoint, event)
            return
        if isinstance(event, ServerError):
            command = None
            if line.session is not None:
                command = line.session.commands.command_of(event.client_event_id)
            if isinstance(command, Relayed | RelayedUpdate):
                return  # the application's affair
            self.plan.watch.error(line.endpoint, classify_error(event))
            self._host.feed(inputs.ServerErrorReceived(event, command))
            return
        if isinstance(event, SpeechStarted | SpeechStopped | InputCommitted):
            self._tell_heard(line)
        asked = None
        if isinstance(event, ResponseCreated) and line.session is not None:
            asked = line.session.commands.request_of(event)
        self._host.feed(inputs.ServerEventReceived(event, asked))
        if isinstance(event, BILLED):
            self.count(line.endpoint, event)

    def _tell_heard(self, line: _Line) -> None:
        """Feed when the caller spoke, and the round trips to caller and server (ms)."""
        since, until = self._host.heard()
        leg = (self._host.record.media.quality.get("rtt_ms") or {}).get("mean")
        server = 0.0 if line.session is None else line.session.round_trip_ms
        self._host.feed(inputs.CallerHeard(since, until, leg or 0.0, server))

    def count(self, endpoint: Endpoint, event: ServerEvent) -> None:
        """Add the usage that an event of a session at this server reports to the call's cost."""
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
        self._host.feed(inputs.BudgetThreshold(reached.level is Level.LIMIT, str(reached)))

    @entry
    def _on_closed(self, line: _Line, closed: SessionClosed) -> None:
        """Feed the end of the active or the standby session."""
        line.over = True
        self.plan.watch.closed(line.endpoint, closed)
        if self._events is not None:
            self._events.closed(closed.code, closed.reason, closed.by_us)
        if line is self._line:
            self._host.feed(inputs.SessionClosed(closed.code, closed.reason, closed.by_us))
        elif line is self._spare:
            self._spare = None
            self._host.feed(inputs.StandbyFailed(f"{closed.code} {closed.reason}".strip()))

    # ---- how

    def _release(self, line: _Line, code: int, reason: str) -> None:
        """Close a session, or stop opening it."""
        line.over = True
        if line.session is not None:
            line.session.tell_usage()  # before the record is written
            closing = line.session.close(code, reason)
            self._closing.spawn(closing, f"close {line.session.id}")
        else:
            self._stop_opening(line)

    @staticmethod
    def _stop_opening(line: _Line) -> None:
        if line.opening is not None and line.opening is not asyncio.current_task():
            line.opening.cancel()

    def _count_dropped(self, line: _Line) -> None:
        """Add a session's dropped frames and audio counts to the record."""
        if line.session is None:
            return
        self._frames_dropped += line.session.counters.audio_dropped
        told = self._host.record.media.live_audio
        for name, count in line.session.audio_counts().items():
            told[name] = told.get(name, 0) + count

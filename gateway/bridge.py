"""Where a leg, a session and a machine meet. It carries out and feeds in; it decides nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from gateway.audio.g711 import FRAME_MS, Codec
from gateway.audio.inband import InBandDetector
from gateway.call import inputs, outputs
from gateway.call.ending import Why, ending_of, reason_header
from gateway.call.machine import CallMachine
from gateway.call.plan import CallPlan
from gateway.call.quality import QualityOfCall
from gateway.call.record import CallRecord
from gateway.cost.account import Account
from gateway.cost.budget import Level
from gateway.legs import Dialler, Legs, Outward, quality_of
from gateway.pump import MediaPump
from gateway.realtime.endpoint import Endpoint
from gateway.realtime.events import (
    AudioDelta,
    InputTranscribed,
    ResponseDone,
    ServerError,
    ServerEvent,
)
from gateway.realtime.opening import SetupFailed, open_with_retry
from gateway.realtime.session import Session, SessionClosed
from gateway.records.events import EventLog
from gateway.sip.leg import Leg
from gateway.sip.ports import call_audio
from gateway.sip.types import LegEnd, RtpQuality
from gateway.tools.runner import Question, ToolCall, ToolRunner

_EARLY_EVENTS = 256
"""Events kept between the session's first event and the answer to it; a turn of the loop."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """How to get the session of one call."""

    endpoint: Endpoint
    settings: Mapping[str, Any]
    """The GA session object to send."""
    connect_timeout: float
    max_playout_frames: int


class Bridge:
    """One call. Lives on the event loop from its INVITE to :class:`outputs.Finished`.

    Args:
        leg: that came in, or where to place the call.
        on_finished: told once, when both sides are over and the record is complete.
        dial: places calls for the caller; None where none may be placed.
        tools: runs functions of ``plan.functions``.
    """

    def __init__(
        self,
        leg: Leg | Outward,
        plan: CallPlan,
        session_plan: SessionPlan,
        record: CallRecord,
        pump: MediaPump,
        on_finished: Callable[[Bridge], None],
        *,
        dial: Dialler | None = None,
        tools: ToolRunner | None = None,
    ) -> None:
        self.record = record
        self._loop = asyncio.get_running_loop()
        self._tools = tools
        self._variables = plan.variables
        self._account: Account | None = None
        self._events: EventLog | None = None
        self._session_plan = session_plan
        self._pump = pump
        self._on_finished = on_finished
        self._log = structlog.get_logger("call").bind(call=record.call_id, route=plan.route)
        self._quality = QualityOfCall()
        self._machine = CallMachine(plan, record, self._loop.time())
        self._audio = call_audio(plan.codec, session_plan.max_playout_frames)
        self._audio.playout.pause(True)
        self._legs = Legs(
            leg if isinstance(leg, Leg) else None,
            leg if isinstance(leg, Outward) else None,
            self,
            self._audio,
            record,
            dial,
            self.feed,
            lambda: (self._loop.time() - self._began) * 1000,
            plan.follow_refer,
        )
        self._session: Session | None = None
        self._early: deque[ServerEvent] | None = deque(maxlen=_EARLY_EVENTS)
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._streaming = False
        self._started = False
        self._held: outputs.Hold | None = None
        self._paused = False
        self._in_band = InBandDetector(plan.codec) if plan.digits.in_band else None
        self._inbox: deque[tuple[inputs.Input, float]] = deque()
        self._busy = False
        self._faulted = False
        self._over = False
        self._began = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._carriers: dict[type, Callable[[Any], None]] = {
            **self._legs.carriers,
            outputs.OpenSession: self._open_session,
            outputs.CloseSession: self._close_session,
            outputs.Send: self._send,
            outputs.StartMedia: self._start_media,
            outputs.Hold: self._hold,
            outputs.Pause: self._pause,
            outputs.RunTool: self._run_tool,
            outputs.AskOperator: self._ask_operator,
            outputs.Play: self._play,
            outputs.Flush: self._flush,
            outputs.Note: self._note,
            outputs.Finished: self._finished,
        }

    @property
    def session_plan(self) -> SessionPlan:
        """How its session is had."""
        return self._session_plan

    def watch(self, account: Account, events: EventLog | None) -> None:
        """Before the start: count what the call uses, and let ``events`` see its session."""
        self._account, self._events = account, events

    def start(self) -> None:
        """Take the leg on: ring and connect. Or connect, and dial."""
        self._legs.take()
        self._log.info(
            "call.invite",
            **{"from": self.record.from_uri, "to": self.record.to_uri},
            source=self.record.source,
            codec=self.record.codec,
        )
        self._busy = True
        self._carry_out(self._machine.start(self._loop.time()))
        self._busy = False
        self._work()

    def shut_down(self) -> None:
        """End the call now, properly on both sides."""
        self.feed(inputs.ShutDown())

    def feed(self, input: inputs.Input, at: float | None = None) -> None:
        """Hand something that happened to the machine and do what it says.

        What carrying out brings up again (frames flushed, a queue that was full) is handled
        before anything else.
        """
        self._inbox.append((input, self._loop.time() if at is None else at))
        self._work()

    # ---- what the leg tells

    def on_ringing(self, code: int) -> None:
        """The callee's side says how far it is."""
        if code >= 180:
            self.feed(inputs.RingingThere(code))

    def on_media(self, codec: Codec) -> None:
        """RTP flows."""
        self.record.security = self._legs.security
        self.feed(inputs.MediaUp(codec))

    def on_confirmed(self) -> None:
        """The ACK came."""
        self.feed(inputs.Confirmed())

    def on_hold(self, held: bool) -> None:
        """The caller put us on hold, or took us back."""
        self.feed(inputs.Held(held))

    def on_digit(self, digit: str) -> None:
        """A key."""
        self.feed(inputs.DigitPressed(digit))

    def on_quality(self, quality: RtpQuality) -> None:
        """RTP counters."""
        self.record.security = self._legs.security
        self.record.rtp = quality_of(quality)
        self.record.quality = self._quality.add(quality)
        self.feed(inputs.RtpCounted(quality.rx_packets, quality.expected))

    def on_ended(self, end: LegEnd) -> None:
        """The dialog is over."""
        self.record.security = self._legs.security
        self.feed(inputs.LegEnded(end.code, end.reason, end.method, end.reason_header, end.local))

    # ---- what the session tells

    def _on_event(self, event: ServerEvent) -> None:
        if self._early is not None:
            self._early.append(event)
        elif isinstance(event, ServerError):
            command = None
            if self._session is not None:
                command = self._session.command_of(event.client_event_id)
            self.feed(inputs.ServerFailed(event, command))
        else:
            self.feed(inputs.ServerSaid(event))
            if isinstance(event, ResponseDone | InputTranscribed):
                self._count(event)

    def _count(self, event: ServerEvent) -> None:
        if self._account is None:
            return
        reached = self._account.take(event)
        if self._over:
            return  # it is paid for all the same, but the record is written
        self.record.cost = self._account.as_json()
        if reached is not None:
            self.feed(inputs.BudgetReached(reached.level is Level.LIMIT, str(reached)))

    def _on_closed(self, closed: SessionClosed) -> None:
        self._streaming = False
        if self._events is not None:
            self._events.closed(closed.code, closed.reason, closed.by_us)
        self.feed(inputs.SessionClosed(closed.code, closed.reason, closed.by_us))

    # ---- what the media clock tells

    def _beat(self) -> None:
        audio = self._audio.uplink.drain()
        if self._in_band is not None and audio:
            for digit in self._in_band.feed(audio):
                self.feed(inputs.DigitPressed(digit, in_band=True))
        if self._held is not None:
            audio = self._audio.codec.silence * len(audio) if self._held.silent else b""
        if audio and self._streaming and self._session is not None:
            self._session.append(audio)
        playout = self._audio.playout
        while (transition := playout.transition()) is not None:
            if transition.playing:
                self.feed(inputs.PlayoutStarted(), transition.at)
            elif not playout:
                # What was queued since has its own start to come; only a queue that is still
                # empty has drained.
                self.feed(inputs.PlayoutDrained(), transition.at)

    # ---- what the machine says

    def _work(self) -> None:
        if self._busy or self._over:
            return
        self._busy = True
        audio_only = True
        try:
            while self._inbox:
                input, at = self._inbox.popleft()
                self._carry_out(self._machine.handle(input, at))
                if type(input) is not inputs.ServerSaid or type(input.event) is not AudioDelta:
                    audio_only = False
        except Exception as error:
            self._log.exception("call.fault")
            self._fault(error)
        finally:
            self._busy = False
        # Audio that is queued moves no deadline, and comes fifty times a second.
        if not audio_only and not self._over:
            self._schedule()

    def _carry_out(self, todo: list[outputs.Output]) -> None:
        for output in todo:
            self._carriers[type(output)](output)

    def _fault(self, error: Exception) -> None:
        detail = f"{type(error).__name__}: {error}"
        if not self._faulted:
            # What else waits is kept: the end of the leg may be among it.
            self._faulted = True
            self._inbox.appendleft((inputs.Faulted(detail), self._loop.time()))
            self._loop.call_soon(self._work)
        elif not self._over:
            # The machine cannot end this call either; both sides are let go without it.
            record = self.record
            answered = record.times.answered is not None
            record.ending = ending_of(Why.FAULT, answered=answered, detail=detail)
            record.times.end = record.times.end or (self._loop.time() - self._began) * 1000
            self._legs.let_go({"Reason": reason_header(Why.FAULT)})
            self._close_session(outputs.CloseSession(1000, Why.FAULT.value))
            self._finished(None)

    def _schedule(self) -> None:
        at = self._machine.deadline
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at is None else self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_at = None
        self.feed(inputs.Tick())

    def _open_session(self, _output: outputs.OpenSession) -> None:
        self._opening = asyncio.create_task(self._open(), name=f"open {self.record.call_id}")

    async def _open(self) -> None:
        plan = self._session_plan
        # This task's own: what the session logs, from here to its end, names the call.
        structlog.contextvars.bind_contextvars(call=self.record.call_id, route=self.record.route)
        try:
            session = await open_with_retry(
                plan.endpoint,
                plan.settings,
                timeout=plan.connect_timeout,
                on_event=self._on_event,
                on_closed=self._on_closed,
                tap=self._events,
            )
        except SetupFailed as failure:
            self.feed(inputs.SessionFailed(failure.verdict, failure.detail))
            return
        except Exception as error:
            self._log.exception("call.fault")
            self._fault(error)
            return
        self._session = session
        self.record.settings_refused = session.refused
        self._log = self._log.bind(session=session.id)
        self.feed(inputs.SessionUp(session.id))
        early, self._early = self._early or deque(), None
        for event in early:
            self._on_event(event)

    def _close_session(self, output: outputs.CloseSession) -> None:
        self._streaming = False
        if self._session is not None:
            self._closing = asyncio.create_task(
                self._session.close(output.code, output.reason), name=f"close {self._session.id}"
            )
        elif self._opening is not None:
            self._opening.cancel()

    def _send(self, output: outputs.Send) -> None:
        if self._session is not None:
            self._session.send(output.command)

    def _start_media(self, output: outputs.StartMedia) -> None:
        self._audio.uplink.drain()  # what came before the ACK is older than the conversation
        self._streaming = True
        self._started = output.playout
        self._stand_still()
        self._pump.add(self._beat)

    def _hold(self, output: outputs.Hold) -> None:
        self._held = output if output.held else None
        self._stand_still()

    def _pause(self, output: outputs.Pause) -> None:
        self._paused = output.paused
        self._stand_still()

    def _stand_still(self) -> None:
        self._audio.playout.pause(self._held is not None or self._paused or not self._started)

    def _run_tool(self, output: outputs.RunTool) -> None:
        call_id = output.call_id

        def done(text: str) -> None:
            self.feed(inputs.ToolDone(call_id, text))

        if self._tools is None:
            done('{"error": "nothing runs this function"}')
        else:
            self._tools.run(self._tool_call(call_id, output.name, output.arguments), done)

    def _ask_operator(self, output: outputs.AskOperator) -> None:
        def done(approve: bool, reason: str) -> None:
            self.feed(inputs.OperatorAnswered(output.key, approve, reason))

        if self._tools is None:
            done(False, "nobody can be asked")
        else:
            call = self._tool_call(output.key, output.name, output.arguments)
            self._tools.ask(Question(call, output.rule), done)

    def _tool_call(self, call_id: str, name: str, arguments: str) -> ToolCall:
        record = self.record
        return ToolCall(
            call_id,
            name,
            arguments,
            call=record.call_id,
            route=record.route,
            caller=record.from_uri,
            called=record.to_uri,
            variables=self._variables,
            act=lambda act: self.feed(inputs.ToolActs(act)),
        )

    def _play(self, output: outputs.Play) -> None:
        playout = self._audio.playout
        playout.expecting = output.more
        if output.audio:
            refused = playout.put(output.audio)
            if refused:
                self._inbox.append((inputs.PlayoutRefused(refused), self._loop.time()))

    def _flush(self, _output: outputs.Flush) -> None:
        unplayed = self._audio.playout.flush()
        self._inbox.appendleft((inputs.Flushed(unplayed), self._loop.time()))

    def _note(self, output: outputs.Note) -> None:
        getattr(self._log, output.level)(f"call.{output.event}", **output.fields)

    def _finished(self, _output: outputs.Finished | None) -> None:
        self._over = True
        self._inbox.clear()
        self._pump.remove(self._beat)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._opening is not None and self._opening is not asyncio.current_task():
            self._opening.cancel()
        playout, record = self._audio.playout, self.record
        playout.flush()
        self._legs.finish()
        record.underruns = playout.underruns
        record.underrun_ms = playout.underrun_frames * FRAME_MS
        record.playout_frames_refused = playout.frames_refused
        record.uplink_frames_dropped = self._audio.uplink.dropped
        if self._session is not None:
            record.append_frames_dropped = self._session.counters.audio_dropped
        if self._events is not None:
            record.event_log = self._events.as_json()
        self._log.info("call.summary", **_flat(record.summary()))
        self._on_finished(self)

    async def gone(self) -> None:
        """Wait until the session's tasks are gone too; they have their own deadlines."""
        tasks = [task for task in (self._opening, self._closing) if task is not None]
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._events is not None:
            self._events.end()


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without what the log line is bound to already."""
    return {key: value for key, value in summary.items() if key not in ("call_id", "route")}

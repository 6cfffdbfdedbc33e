"""Where a leg, a session and a machine meet. It carries out and feeds in; it decides nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from gateway.audio.g711 import FRAME_MS, Codec
from gateway.billing.account import Account
from gateway.bridge.entries import entry
from gateway.bridge.inband_detection import InboundAudioAnalyzer
from gateway.bridge.legs import Dialer, Legs, OutboundTarget, quality_of
from gateway.bridge.media_clock import MediaClock
from gateway.bridge.out_of_band import OutOfBandWaiters
from gateway.bridge.sessions import SessionPlan, Sessions
from gateway.call import inputs, outputs
from gateway.call.ending import EndReason, ending_of, reason_header, refusal_code
from gateway.call.machine import LEG_END_SECONDS, CallMachine
from gateway.call.plan import CallPlan
from gateway.call.quality import QualityOfCall
from gateway.call.record import CallRecord
from gateway.call.states import State
from gateway.call.tools.commands import CallCommand, CommandsFromTools
from gateway.realtime.events import AudioDelta
from gateway.records.events import EventLog
from gateway.sip.leg import Leg
from gateway.sip.media.ports import CallAudio
from gateway.sip.types import LegEnd, RtpQuality
from gateway.tools.runner import Question, ToolCall, ToolRunner


class CallController:
    """One call. Lives on the event loop from its INVITE to :class:`outputs.Finished`.

    Args:
        leg: that came in, or where to place the call.
        on_finished: told once, when both sides are over and the record is complete.
        dial: places calls for the caller; None where none may be placed.
        permit_refer: asked before the caller's side is sent somewhere; raises DialRefusedError.
        tools: runs functions of ``plan.functions``.
    """

    def __init__(
        self,
        leg: Leg | OutboundTarget,
        plan: CallPlan,
        session_plan: SessionPlan,
        record: CallRecord,
        pump: MediaClock,
        on_finished: Callable[[CallController], None],
        *,
        dial: Dialer | None = None,
        permit_refer: Callable[[str, bool], None] = lambda _uri, _by_pattern: None,
        tools: ToolRunner | None = None,
    ) -> None:
        self.record = record
        self._loop = asyncio.get_running_loop()
        self._tools = tools
        self._sessions = Sessions(
            session_plan, record, self._on_session, self.on_fault, lambda: self._over
        )
        self._pump = pump
        self._on_finished = on_finished
        self._log = structlog.get_logger("call").bind(call=record.call_id, route=plan.route)
        self._quality = QualityOfCall()
        self._audio = CallAudio(plan.codec, session_plan.max_playout_frames)
        self._audio.playout.pause(True)
        self._machine = CallMachine(plan, record, self._loop.time(), self._audio.playout)
        self._legs = Legs(
            leg if isinstance(leg, Leg) else None,
            leg if isinstance(leg, OutboundTarget) else None,
            self,
            self._audio,
            record,
            dial,
            self.feed,
            lambda: (self._loop.time() - self._began) * 1000,
            self.on_fault,
            plan.allowed_refer_to,
            permit_refer,
        )
        self._guards = plan.content.guardrails
        self.transfer_plan = plan.transfer
        self.out_of_band = OutOfBandWaiters()
        """Those who wait for an answer beside the conversation."""
        self._streaming = False
        self._started = False
        self._held: outputs.Hold | None = None
        self._paused = False
        self._audio_analyzer = InboundAudioAnalyzer(plan)
        self._inbox: deque[tuple[inputs.Input, float]] = deque()
        self._busy = False
        self._begun = False
        self._leg_over = False
        self._backstop: asyncio.TimerHandle | None = None
        """Set from the first defect on: ends the call if the machine does not."""
        self._over = False
        self._began = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._executors: dict[type, Callable[[Any], None]] = {
            **self._legs.executors,
            **self._sessions.executors,
            outputs.PromoteStandby: self._take_over,
            outputs.StartMedia: self._start_media,
            outputs.Hold: self._hold,
            outputs.Pause: self._pause,
            outputs.RunTool: self._run_tool,
            outputs.RequestApproval: self._ask_operator,
            outputs.CheckContent: self._check_words,
            outputs.OutOfBandDone: lambda output: self.out_of_band.done(output),
            outputs.Play: self._play,
            outputs.LogEvent: self._note,
            outputs.Finished: self._finished,
        }

    @property
    def session_plan(self) -> SessionPlan:
        """How its session is had."""
        return self._sessions.plan

    def watch(self, account: Account, events: EventLog | None) -> None:
        """Before the start: count what the call uses, and let ``events`` see its session."""
        self._sessions.watch(account, events)

    @entry
    def start(self, prepare: Callable[[], None] = lambda: None) -> None:
        """Take the leg on: ring and connect. Or connect, and dial. ``prepare`` runs first."""
        prepare()
        self._legs.take()
        self._log.info(
            "call.invite",
            sip_call_id=self.record.sip_call_id,
            **self.record.private.masked({"from": self.record.from_uri, "to": self.record.to_uri}),
            source=self.record.source,
            codec=self.record.codec,
        )
        self._busy = True
        try:
            self._execute(self._machine.start(self._loop.time()))
            self._begun = True
        finally:
            self._busy = False
        self._work()

    @property
    def talking(self) -> bool:
        """Caller and model have each other."""
        return self._machine.state is State.TALKING

    @property
    def conversing(self) -> bool:
        """It is up, with a session that talks."""
        return self._machine.talking

    def act(self, act: CallCommand) -> None:
        """Do this in the conversation; nothing is done where nobody talks."""
        self.feed(inputs.ToolRequest(act))

    def give_up(self, detail: str) -> None:
        """End the call at once, without waiting for either side: nothing carries it any more."""
        self._end_without_machine(detail)

    def shut_down(self) -> None:
        """End the call now, properly on both sides."""
        self.feed(inputs.ShutDown())

    @entry
    def feed(self, input: inputs.Input, at: float | None = None) -> None:
        """Hand something that happened to the machine and do what it says.

        What carrying out brings up again (a queue that was full) is handled before anything else.
        """
        if self._over:
            return  # a function, say, that outlives its call
        self._inbox.append((input, self._loop.time() if at is None else at))
        self._work()

    # ---- what the leg tells

    @entry
    def on_ringing(self, code: int) -> None:
        """The callee's side says how far it is."""
        if code >= 180:
            self.feed(inputs.RemoteRinging(code))

    @entry
    def on_media(self, codec: Codec) -> None:
        """RTP flows."""
        if self._over:
            return  # the record is written
        self.record.security = self._legs.security
        self.feed(inputs.MediaUp(codec))

    @entry
    def on_confirmed(self) -> None:
        """The ACK came."""
        self.feed(inputs.Confirmed())

    @entry
    def on_hold(self, held: bool) -> None:
        """The caller put us on hold, or took us back."""
        self.feed(inputs.HoldChanged(held))

    @entry
    def on_digit(self, digit: str) -> None:
        """A key."""
        self.feed(inputs.DigitPressed(digit))

    @entry
    def on_quality(self, quality: RtpQuality) -> None:
        """RTP counters."""
        if self._over:
            return  # the record is written
        self.record.security = self._legs.security
        self.record.rtp = quality_of(quality)
        self.record.quality = self._quality.add(quality)
        self.feed(inputs.RtpStats(quality.rx_packets, quality.expected))

    @entry
    def on_ended(self, end: LegEnd) -> None:
        """The dialog is over."""
        if self._over:
            return  # the record is written
        self._leg_over = True
        self.record.security = self._legs.security
        self.record.bye_undelivered = end.undelivered
        self.feed(inputs.LegEnded(end.code, end.reason, end.method, end.reason_header, end.local))

    # ---- what the sessions tell

    @entry
    def _on_session(self, input: inputs.Input) -> None:
        if isinstance(input, inputs.SessionReady):
            self._log = self._log.bind(session=input.session_id)
        self.feed(input)

    # ---- what the media clock tells

    @entry
    def _beat(self) -> None:
        if self._backstop is not None:
            return  # ends after a defect, which may be in here
        audio = self._audio.uplink.drain()
        for heard in self._audio_analyzer.feed(audio, held=self._held is not None):
            self.feed(heard)
        if self._held is not None:
            audio = self._audio.codec.silence * len(audio) if self._held.silent else b""
        if audio and self._streaming:
            self._sessions.append(audio)
        playout = self._audio.playout
        while (transition := playout.transition()) is not None:
            if transition.playing:
                self.feed(inputs.PlayoutStarted(), transition.at)
            elif not playout:
                # What was queued since has its own start to come; only a queue that is still
                # empty has drained.
                self.feed(inputs.PlayoutDrained(), transition.at)

    # ---- what the machine says

    @entry
    def _work(self) -> None:
        if self._busy or self._over:
            return
        self._busy = True
        audio_only = True
        try:
            while self._inbox:
                input, at = self._inbox.popleft()
                self._execute(self._machine.handle(input, at))
                if (
                    type(input) is not inputs.ServerEventReceived
                    or type(input.event) is not AudioDelta
                ):
                    audio_only = False
        finally:
            self._busy = False
        # Audio that is queued moves no deadline, and comes fifty times a second.
        if not audio_only and not self._over:
            self._schedule()

    def _execute(self, todo: list[outputs.Output]) -> None:
        for output in todo:
            self._executors[type(output)](output)

    # ---- when something of ours raises

    def on_fault(self, error: Exception) -> None:
        """End the call because of a defect of ours: by the machine, or else without it."""
        self._log.error("call.internal_error", exc_info=error)
        if self._over:
            return
        detail = f"{type(error).__name__}: {error}"
        ends = not self._leg_over and self._machine.state is not State.FINISHED
        if self._begun and self._backstop is None and ends:
            # What else waits is kept: the end of the leg may be among it.
            self._inbox.appendleft((inputs.InternalError(detail), self._loop.time()))
            self._backstop = self._loop.call_later(
                LEG_END_SECONDS + 5.0, self._end_without_machine, detail
            )
            self._loop.call_soon(self._work)
        else:
            self._end_without_machine(detail)

    def _end_without_machine(self, detail: str) -> None:
        """Let both sides go; each step is done whatever became of those before it."""
        if self._over:
            return
        record = self.record
        answered = record.times.answered is not None
        if record.ending is None:
            ending = record.ending = ending_of(
                EndReason.INTERNAL_ERROR, answered=answered, detail=detail
            )
            record.times.end = record.times.end or (self._loop.time() - self._began) * 1000
            told = {"by": ending.by.value, "why": ending.why.value, "detail": detail}
            record.mark(record.times.end, "end", **told)
        headers = {"Reason": reason_header(EndReason.INTERNAL_ERROR)}
        self._attempt(lambda: self._legs.let_go(refusal_code(EndReason.INTERNAL_ERROR), headers))
        self._attempt(
            lambda: self._sessions.close(outputs.CloseSession(1000, EndReason.INTERNAL_ERROR.value))
        )
        self._finished(None)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:
            self._log.exception("call.internal_error")

    def _schedule(self) -> None:
        at = self._machine.deadline
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at is None else self._loop.call_at(at, self._tick)

    @entry
    def _tick(self) -> None:
        self._timer = self._timer_at = None
        self.feed(inputs.Tick())

    def _take_over(self, _output: outputs.PromoteStandby) -> None:
        self._sessions.take_over()
        self._log = self._log.bind(session=self._sessions.id)

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

    def _ask_operator(self, output: outputs.RequestApproval) -> None:
        def done(approve: bool, reason: str) -> None:
            self.feed(inputs.ApprovalResult(output.key, approve, reason))

        if self._tools is None:
            done(False, "nobody can be asked")
        else:
            call = self._tool_call(output.key, output.name, output.arguments)
            self._tools.ask(Question(call, output.rule), done)

    def _check_words(self, output: outputs.CheckContent) -> None:
        def done(allow: bool | None, reason: str) -> None:
            self.feed(inputs.ContentChecked(output.key, allow, reason))

        if self._tools is None:
            done(None, "nobody can be asked")
        else:
            call = self._tool_call(output.key, output.who, output.text)
            self._tools.check(self._guards[output.rule], call, done)

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
            variables=self._machine.variables,
            control=CommandsFromTools(self.act),
        )

    def _play(self, output: outputs.Play) -> None:
        playout = self._audio.playout
        playout.expecting = output.more
        if output.audio:
            refused = playout.put(output.audio)
            if refused:
                self._inbox.appendleft((inputs.PlayoutRefused(refused), self._loop.time()))

    def _note(self, output: outputs.LogEvent) -> None:
        getattr(self._log, output.level)(
            f"call.{output.event}", **self.record.private.masked(output.fields)
        )

    def _finished(self, _output: outputs.Finished | None) -> None:
        if self._over:
            return
        self._over = True
        self._inbox.clear()
        for timer in (self._timer, self._backstop):
            if timer is not None:
                timer.cancel()
        self._pump.remove(self._beat)
        # Whatever fails in completing the record, the place is freed and the record is written.
        for step in (
            self.out_of_band.close,
            self._count_audio,
            self._legs.finish,
            self._sessions.finish,
            self._summarize,
            lambda: self._on_finished(self),
        ):
            self._attempt(step)

    def _count_audio(self) -> None:
        playout, record = self._audio.playout, self.record
        playout.flush()
        record.underruns = playout.underruns
        record.underrun_ms = playout.underrun_frames * FRAME_MS
        record.playout_frames_refused = playout.frames_refused
        record.uplink_frames_dropped = self._audio.uplink.dropped

    def _summarize(self) -> None:
        self._log.info("call.summary", **_flat(self.record.summary()))

    async def gone(self) -> None:
        """Wait until the tasks of its sessions are gone too; they have their own deadlines."""
        await self._sessions.gone()


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without what the log line is bound to already."""
    return {key: value for key, value in summary.items() if key not in ("call_id", "route")}

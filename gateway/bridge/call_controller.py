# SPDX-License-Identifier: GPL-2.0-or-later
"""One call: its SIP legs and its realtime session, connected to its state machine.

Delivers events to the machine and executes the outputs it returns. Contains no call logic.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog

from gateway.billing import Account
from gateway.bridge.black_box import RecordedMachine, WireLog
from gateway.bridge.interpreter import Interpreter
from gateway.bridge.legs import Dialer, Legs, OutboundTarget, PermitDial
from gateway.bridge.machine_driver import CallHost, MachineDriver, ToolCalls, entry
from gateway.bridge.media import CallMedia, MediaPump
from gateway.bridge.recording_and_listening import CallRecorder, Listeners
from gateway.bridge.sessions import SessionPlan, Sessions
from gateway.bridge.sideband import Sideband
from gateway.call import inputs, outputs
from gateway.call.call_record import CallRecord
from gateway.call.machine import LEG_END_SECONDS, CallMachine, MachineInput
from gateway.call.plan import CallPlan
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import CallCommand
from gateway.ending import EndReason, ending_of, reason_header, refusal_code
from gateway.realtime.connection import Endpoint
from gateway.realtime.live_voice import LivePlayout
from gateway.records.black_boxes import BlackBox
from gateway.records.event_logs import EventLog
from gateway.records.recordings import Recordings
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import Leg
from gateway.sip.source_limits import SourceBuckets
from gateway.text import json_text
from gateway.tools import ToolRunner

TEARDOWN_SECONDS = LEG_END_SECONDS + 5.0
"""After a defect: time that the machine has to end the call, before it is ended without it."""

LINES_AT_ONCE, LINES_PER_SECOND = 100, 5
"""Log lines of one event of a call: peers may cause as many as they like."""


class CallController:
    """Owns one call, on the event loop, from its INVITE to :class:`outputs.Finished`.

    Args:
        leg: the caller's leg, or the target of an outbound call.
        on_finished: called once, when leg and session have ended and the record is complete.
        dial: places B-legs; None where none may be placed.
        permit_refer: raises DialRefusedError where the caller may not be sent to a URI.
        permit_dial: awaited before a B-leg is dialled; None without limits that processes share.
        tools: runs functions of ``plan.tools.functions``.
        sideband: of the application that has the call.
        began: when the INVITE came (loop's time, s); None for now.
    """

    def __init__(
        self,
        leg: Leg | OutboundTarget,
        plan: CallPlan,
        session_plan: SessionPlan,
        record: CallRecord,
        pump: MediaPump,
        on_finished: Callable[[CallController], None],
        *,
        dial: Dialer | None = None,
        permit_refer: Callable[[str, bool], None] = lambda _uri, _by_pattern: None,
        permit_dial: PermitDial | None = None,
        tools: ToolRunner | None = None,
        sideband: Sideband | None = None,
        began: float | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time() if began is None else began
        self.record = record
        self.plan = plan
        """Plan at the start of the call."""
        self.out_of_band = OutOfBandWaiters()
        self._on_finished = on_finished
        self.explain: Callable[[], None] = lambda: None
        """Writes into the record which setting has ended the call."""
        self._log = structlog.get_logger("call").bind(call=record.call_id, route=plan.route)
        self._lines = SourceBuckets()
        self._not_logged: Counter[str] = Counter()
        """Log lines left out by the rate limit, by event, since its last line."""
        self._backstop: asyncio.TimerHandle | None = None
        """Timer after the first internal error: ends the call if the machine does not."""
        audio = CallAudio(plan.codec, session_plan.max_playout_frames)
        machine = CallMachine(plan, record, began, audio.playout)
        self._audio = audio
        self._began = began
        self._black_box: BlackBox | None = None
        self.listeners = Listeners(audio.monitor, lambda: audio.playout.codec.narrow)
        """People who listen in."""
        self._driver = driver = MachineDriver(machine, self.on_fault, audio.playout.put, plan.codec)
        self._sideband = sideband
        feed = driver.feed if sideband is None else sideband.seeing(driver.feed)
        self._host = host = CallHost(
            record,
            feed,
            driver.feed_audio,
            lambda: (loop.time() - began) * 1000,
            self.on_fault,
            lambda: driver.over,
            lambda: self._media.heard,
        )
        playout = LivePlayout(lambda: audio.playout.queued_ms, lambda: audio.playout.underruns)
        self._sessions = Sessions(host, session_plan, sideband, playout)
        self._legs = Legs(
            host,
            leg,
            audio,
            dial,
            plan.allowed_refer_to,
            permit_refer,
            permit_dial,
            tell_quality=plan.line.enabled,
        )
        self._recorder = CallRecorder(host, plan, audio, lambda: self._legs.b_leg_audio)
        self._media = CallMedia(
            host,
            plan,
            audio,
            pump,
            self._sessions.append,
            driver.feed_first,
            feed,
            self._conceal,
        )
        self._interpreter = Interpreter(
            host, self._sessions, self._legs, audio, pump, self._media.redirect
        )
        tool_calls = ToolCalls(
            host,
            tools,
            plan.content.guardrails,
            lambda: driver.machine.variables,
            plan.tools.collect_digits,
        )
        driver.executors = {
            **self._legs.executors,
            **self._sessions.executors,
            **self._media.executors,
            **self._recorder.executors,
            **self._interpreter.executors,
            **tool_calls.executors,
            outputs.OutOfBandDone: self.out_of_band.done,
            outputs.LogEvent: self._log_event,
            outputs.Finished: lambda _output: self._finish(),
        }

    @property
    def session_plan(self) -> SessionPlan:
        """Settings with which the call's sessions are opened, as they are now."""
        return self._sessions.plan

    @property
    def servers(self) -> list[Endpoint]:
        """Realtime servers that the call has a session at now, one entry for each session: active,
        standby and interpreting ones."""
        return [*self._sessions.open, *self._interpreter.open]

    @property
    def talking(self) -> bool:
        """Whether the call is answered and neither joined with another leg nor ending (TALKING),
        with a session or while one is being replaced."""
        return self._driver.machine.state is State.TALKING

    @property
    def conversing(self) -> bool:
        """Whether the caller is in conversation with the model, over a session that is up."""
        return self._driver.machine.talking

    @property
    def levels(self) -> tuple[int, int]:
        """Return the current peaks (of 32,767) of what the caller sends and of what the caller
        hears."""
        return self._audio.levels

    def record_with(self, recordings: Recordings) -> None:
        """Set where recordings of the call are written; without, each fails. To be called before
        the start."""
        self._recorder.recordings = recordings

    def watch(
        self, account: Account, events: EventLog | None, black_box: BlackBox | None = None
    ) -> None:
        """Set the account of its costs, the log of its session's events (None: none) and its black
        box.

        With a black box, the machine is replaced by one that records its steps, and SIP messages
        and RTP headers of all legs are logged. To be called before the start.
        """
        self._sessions.watch(account, events)
        if black_box is not None:
            self._black_box = black_box
            made = (self.plan, self.record, self._began, self._audio.playout)
            self._driver.machine = RecordedMachine(*made, black_box.write, masked=black_box.masks)
            black_box.write(json_text({"facts": black_box.wanted.facts}))
            wire = WireLog(
                black_box.messages,
                lambda: self._legs.on_wire,
                with_payload=black_box.wanted.payload,
                masked=black_box.masks,
            )
            wire.log_packets(self._audio)
            self._legs.log_packets = wire.log_packets
            black_box.wire = lambda last: map(json_text, wire.lines(last))

    @entry
    def start(self, prepare: Callable[[], None] = lambda: None) -> None:
        """Start the machine: it rings or answers, and opens the session; an outbound call is
        dialled once that is up.

        ``prepare`` runs first; an exception of it, or of the start, ends the call.
        """
        prepare()
        self._legs.take()
        self._log.info(
            "call.invite",
            sip_call_id=self.record.sip_call_id,
            **self.record.private.masked({"from": self.record.from_uri, "to": self.record.to_uri}),
            source=self.record.leg.source,
            codec=self.record.leg.codec,
        )
        self._driver.start()

    def feed(self, input: MachineInput) -> None:
        """Queue an input for the machine, which handles it at once unless it is at work; dropped
        once the call is finished. On the event loop."""
        self._driver.feed(input)

    def act(self, act: CallCommand) -> None:
        """Feed a command of an operator, tool or application; the machine ignores it while no
        session is up."""
        self.feed(inputs.ToolRequest(act))

    def shut_down(self) -> None:
        """Have the machine end the call now, since the gateway stops: BYE (or a rejection), and the
        session is closed."""
        self.feed(inputs.ShutDown())

    def give_up(self, detail: str) -> None:
        """Finish the call at once, without its machine and without waiting for either side: its
        legs get BYE, CANCEL or a rejection, its sessions are closed, its record is completed.
        Nothing if it is finished.

        Args:
            detail: of the ending ``internal_error``, unless the call has an ending already.
        """
        if self._driver.over:
            return
        record = self.record
        if record.ending is None:
            answered = record.times.answered is not None
            ending = record.ending = ending_of(
                EndReason.INTERNAL_ERROR, answered=answered, detail=detail
            )
            record.times.end = record.times.end or self._host.now_ms()
            told = {"by": ending.by.value, "why": ending.why.value, "detail": detail}
            record.mark(record.times.end, "end", **told)
        headers = {"Reason": reason_header(EndReason.INTERNAL_ERROR)}
        closing = outputs.CloseSession(EndReason.INTERNAL_ERROR.value)
        self._attempt(lambda: self._legs.release(refusal_code(EndReason.INTERNAL_ERROR), headers))
        self._attempt(lambda: self._sessions.close(closing))
        self._finish()

    async def wait_closed(self) -> None:
        """Wait until the tasks of its sessions have ended; they have their own deadlines. To be
        called once the call is finished."""
        await self._interpreter.wait_closed()
        await self._sessions.wait_closed()

    def on_fault(self, error: Exception) -> None:
        """End the call after an internal error, which is logged; once it is finished only that.

        The first time the machine ends it, and no audio is moved any more; if it is not finished
        after ``TEARDOWN_SECONDS``, :meth:`give_up` does it. So it does at once for a second error,
        where the machine has not started or is finished, and where the caller's leg is over.
        """
        self._log.error("call.internal_error", exc_info=error)
        if self._driver.over:
            return
        detail = f"{type(error).__name__}: {error}"
        if self._backstop is None and self._driver.may_end_call() and not self._legs.caller_gone:
            self._media.stop()  # the defect may be in there
            # What else waits is kept: the end of the leg may be among it.
            self._driver.feed_first(inputs.InternalError(detail))
            loop = asyncio.get_running_loop()
            self._backstop = loop.call_later(TEARDOWN_SECONDS, self.give_up, detail)
            loop.call_soon(self._driver.work)
        else:
            self.give_up(detail)

    def _conceal(self, concealed: bool) -> None:
        """Conceal what the caller enters (sensitive digits) from recording, listeners and
        application; or end that."""
        self._recorder.conceal(concealed)
        self.listeners.conceal(concealed)
        if self._sideband is not None:
            self._sideband.concealed = concealed

    def _finish(self) -> None:
        """Finish the call, once: take no more inputs, move no audio, complete the record, and call
        ``on_finished`` last; each step runs even if another raises, which is logged."""
        if self._driver.over:
            return
        self._driver.stop()
        if self._backstop is not None:
            self._backstop.cancel()
        self._media.stop()
        # Whatever fails in completing the record, the place is freed and the record is written.
        for step in (
            self.out_of_band.close,
            self._interpreter.end,
            self._media.finish,
            self.listeners.end,
            self._recorder.finish,
            self._legs.finish,
            self._sessions.finish,
            lambda: self.explain(),
            self._end_black_box,
            self._summarize,
            *(() if self._sideband is None else (self._sideband.end,)),
            lambda: self._on_finished(self),
        ):
            self._attempt(step)

    def keep_black_box(self) -> bool:
        """Have the black box kept however the call ends; return False where none is written."""
        if self._black_box is not None:
            self._black_box.keep()
        return self._black_box is not None

    def _end_black_box(self) -> None:
        """Complete the black box, if there is one; it waits for the BYE of a B-leg that is still
        up."""
        if self._black_box is not None:
            self._black_box.end(self.record, linger=self._legs.b_leg_ending)

    def _attempt(self, step: Callable[[], None]) -> None:
        """Run a step; log its exception in place of raising it."""
        try:
            step()
        except Exception:
            self._log.exception("call.internal_error")

    def _log_event(self, output: outputs.LogEvent) -> None:
        """Log an event of the machine as ``call.EVENT``, with the session's id, and private digits
        masked.

        Of each event, ``LINES_AT_ONCE`` lines and then ``LINES_PER_SECOND`` are logged; the next
        one says how many were left out (``not_logged``). Debug lines are not limited.
        """
        event, now = output.event, self._host.now_ms() / 1000
        if output.level != "debug" and not self._lines.take(
            event, LINES_PER_SECOND, LINES_AT_ONCE, now
        ):
            self._not_logged[event] += 1
            return
        left_out = self._not_logged.pop(event, 0)
        told: dict[str, Any] = {"not_logged": left_out} if left_out else {}
        told |= {"session": self._sessions.id} if self._sessions.id else {}
        fields = self.record.private.masked(output.fields)
        getattr(self._log, output.level)(f"call.{event}", **told, **fields)

    def _summarize(self) -> None:
        """Log the record's summary, the last line of a call."""
        session = {"session": self._sessions.id} if self._sessions.id else {}
        told = self.record.summary()
        del told["call_id"], told["route"]  # each line of the call has them
        self._log.info("call.summary", **session, **told)


class OutOfBandWaiters:
    """Waits for out-of-band responses that were requested from outside of the call (API), by
    key."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[outputs.OutOfBandDone]] = {}
        self._asked = 0

    def key(self) -> str:
        """Return a key that no other request of the call has."""
        self._asked += 1
        return f"outside-{self._asked}"

    def wait(self, key: str) -> asyncio.Future[outputs.OutOfBandDone]:
        """Return a future for the response to ``key``. To be called before it is requested."""
        future: asyncio.Future[outputs.OutOfBandDone] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        return future

    def done(self, output: outputs.OutOfBandDone) -> None:
        """End the wait under the output's key with this output; nothing if nobody waits (any
        more)."""
        future = self._waiting.pop(output.key, None)
        if future is not None and not future.done():
            future.set_result(output)

    def close(self) -> None:
        """End every wait with the status ``over``: the call has ended."""
        for key in tuple(self._waiting):
            self.done(outputs.OutOfBandDone(key, "over", ""))

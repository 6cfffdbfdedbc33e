"""The life of one call: ring, connect, answer, talk, end.

Pure: what happens comes in as :mod:`gateway.call.inputs`, with the time; what to do goes out as
:mod:`gateway.call.outputs`. The same inputs give the same outputs, so a call can be tested as a
table and replayed from a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gateway.call import inputs, outputs
from gateway.call.conversation import Conversation
from gateway.call.ending import (
    Ending,
    Why,
    ending_of,
    reason_header,
    refusal_code,
    why_leg_ended,
    why_not_answered,
)
from gateway.call.handover import Handover
from gateway.call.journal import Journal
from gateway.call.opening import Opening
from gateway.call.plan import CallPlan, OutboundPlan, Rung
from gateway.call.record import CallRecord
from gateway.call.recovery import Recovery, refusal_of
from gateway.call.states import State as State
from gateway.call.timers import Timers
from gateway.call.transfers import Happening
from gateway.realtime.commands import UpdateSession
from gateway.realtime.errors import Kind

LEG_END_SECONDS = 35.0
"""A BYE is retransmitted for 32 s (RFC 3261 timer F); a leg not over by then is given up."""


class CallMachine:
    """Decides for one call, that came in or that we place.

    Args:
        plan: the settings of its route.
        record: filled in as the call goes on.
        now: time of the INVITE (s, any monotonic clock; every ``now`` is of the same).
    """

    def __init__(self, plan: CallPlan, record: CallRecord, now: float) -> None:
        self.state = State.CONNECTING
        self.record = record
        self._plan = plan
        record.metadata = dict(plan.metadata)
        self._codec = plan.codec
        self._journal = Journal(record, now)
        self._conversation = Conversation(plan, self._journal)
        self._ending: Ending | None = None
        self._session_up = False
        self._held = False
        self._hold = (False, False)
        self._listening_early = False
        self._lost_meanwhile: tuple[Why, str] | None = None
        self._timers = Timers(plan)
        self._opening = Opening(plan.answer, self._journal)
        talk, transcript = self._conversation.talk, self._conversation.transcript
        self._recovery = Recovery(talk, transcript, self._journal)
        self._handover = Handover(
            talk,
            transcript,
            self._journal,
            lambda: self._conversation.quiet,
            self._conversation.detach,
        )
        self._opened = False
        self._end_at: float | None = None
        self._leg_end: inputs.LegEnded | None = None
        conversation, note = self._conversation, self._journal.note
        self._handlers: dict[type, Callable[[Any, float], list[outputs.Output]]] = {
            inputs.Prepared: self._on_prepared,
            inputs.SessionUp: self._on_session_up,
            inputs.SessionFailed: self._on_session_failed,
            inputs.SessionClosed: self._on_session_closed,
            inputs.SpareUp: self._on_spare_up,
            inputs.SpareFailed: self._on_spare_failed,
            inputs.ServerSaid: self._on_server_said,
            inputs.ServerFailed: self._on_server_failed,
            inputs.MediaUp: self._on_media_up,
            inputs.Confirmed: self._on_confirmed,
            inputs.Held: self._on_held,
            inputs.RingingThere: self._on_ringing_there,
            inputs.TransferTold: self._on_transfer,
            inputs.SecondRinging: self._on_transfer,
            inputs.SecondAnswered: self._on_transfer,
            inputs.SecondEnded: self._on_transfer,
            inputs.SecondDigit: self._on_second_digit,
            inputs.ToolDone: self._on_tool_done,
            inputs.ToolActs: self._on_tool_acts,
            inputs.OperatorAnswered: lambda _input, _now: [],
            inputs.Moved: lambda input, now: [note(now, "moved", "info", uri=input.uri)],
            inputs.BudgetReached: self._on_budget,
            inputs.DigitPressed: self._on_digit,
            inputs.RtpCounted: self._on_rtp,
            inputs.LegEnded: self._on_leg_ended,
            inputs.PlayoutStarted: self._on_playout_started,
            inputs.PlayoutDrained: lambda _input, now: conversation.on_playout_drained(now),
            inputs.PlayoutRefused: lambda input, now: conversation.on_playout_refused(
                input.frames, now
            ),
            inputs.Flushed: self._on_flushed,
            inputs.Tick: self._on_tick,
            inputs.ShutDown: lambda _input, now: self._end(Why.SHUTDOWN, now),
            inputs.Faulted: self._on_fault,
        }

    def start(self, now: float) -> list[outputs.Output]:
        """The INVITE has a route: ring, and get the model. Or get it before somebody is called."""
        if self._plan.outbound is not None:
            return [self._journal.note(now, "preparing", "info"), outputs.OpenSession()]
        if self._opening.at_once:
            self._timers.answered(now)
        return [*self._opening.begin(now), outputs.OpenSession()]

    def handle(self, input: inputs.Input, now: float) -> list[outputs.Output]:
        """Something happened at ``now``; returns what to do, in order."""
        if self.state is State.FINISHED:
            return []
        if self._leg_end is not None and type(input) is not inputs.Flushed:
            return self._on_leg_ended(self._leg_end, now)
        session_was_up = self._session_up
        todo = self._handlers[type(input)](input, now)
        if self._live:
            todo = todo + self._conversation.look_on(input, now) + self._recovery.on(input, now)
            todo += self._settle(now)
        elif self._recovery.over is not None:
            todo = todo + self._give_up(now)
        if not (session_was_up or self._session_up):
            if self._recovery.active:
                # A tool's result, a key: the session that is to come will be told.
                self._conversation.transcript.sent(todo, now)
            return [output for output in todo if not isinstance(output, outputs.Send)]
        self._conversation.transcript.sent(todo, now)
        return todo

    @property
    def variables(self) -> Mapping[str, str]:
        """The values of the route's variables in this call."""
        return self._plan.variables

    @property
    def deadline(self) -> float | None:
        """When a :class:`inputs.Tick` is due next (s); None while nothing waits for time."""
        if self.state is State.FINISHED:
            return None
        if self.state is State.ENDING:
            return self._end_at
        heard_out = self._opening.deadline if self._opening.waiting else None
        due = (
            self._conversation.deadline,
            self._timers.deadline,
            heard_out,
            self._recovery.deadline,
            self._handover.deadline if self._session_up and self._talking_to_us else None,
        )
        return min((at for at in due if at is not None), default=None)

    def _settle(self, now: float) -> list[outputs.Output]:
        """What follows for the call from what has just happened in its conversation."""
        talk = self._conversation
        todo = talk.settle(now, confirmed=self.state is not State.ANSWERED)
        if talk.errands.joined and self.state is State.TALKING:
            todo += self._bridge(now)
        if self._session_up and self._talking_to_us:
            todo += self._handover.settle(now)
        if self._recovery.over is not None:
            return todo + self._give_up(now)
        why, detail = talk.errands.over or (None, "")
        if why is None and self._lost_meanwhile is None:
            why, detail = talk.ended(now)
        elif why is None and self._lost_meanwhile is not None and not talk.errands.underway:
            why, detail = self._lost_meanwhile
        if why is not None:
            return todo + self._end(why, now, detail)
        hold = (self._held or talk.errands.away, self._held and self._plan.silence_on_hold)
        if hold != self._hold:
            self._hold = hold
            todo.append(outputs.Hold(*hold))
        return todo

    def _bridge(self, now: float) -> list[outputs.Output]:
        self.state = State.BRIDGED
        note = self._journal.note(now, "bridged", "info")
        if self._session_up and self._plan.transfer.listen:
            return [note, outputs.Send(UpdateSession(self._plan.listening))]
        if not self._session_up:
            return [note]
        self._session_up = False
        return [note, outputs.CloseSession(1000, "bridged")]

    # ---- session

    def _on_prepared(self, input: inputs.Prepared, now: float) -> list[outputs.Output]:
        self._plan = input.plan
        self.record.metadata = dict(input.plan.metadata)
        self._conversation.prepare(input.plan)
        if input.failure:
            return [self._journal.note(now, "data", "warning", ms=input.ms, failed=input.failure)]
        return [self._journal.note(now, "data", "info", ms=input.ms)]

    def _on_session_up(self, input: inputs.SessionUp, now: float) -> list[outputs.Output]:
        if self.state is State.ENDING:
            # It came up while it was being given up; nobody else will close it.
            return [outputs.CloseSession(1000, "call over")]
        if self._recovery.active and self.state is not State.CONNECTING:
            return self._on_session_again(input, now)
        if self.state is not State.CONNECTING:
            return []
        self._session_up = True
        self._handover.session_up(input.seconds_left, now)
        recovered = self._recovery.up(now) if self._recovery.active else []
        if self._plan.outbound is not None:
            return self._dial(input, self._plan.outbound, now)
        self.record.session_id = input.session_id
        self.record.times.session = self._journal.ms(now)
        note = self._journal.note(now, "session_up", "info", session_id=input.session_id)
        answer = self._answer(now) if self._opening.heard_out(now) else []
        return [*recovered, note, *answer]

    def _on_session_again(self, input: inputs.SessionUp, now: float) -> list[outputs.Output]:
        self._session_up = True
        self._handover.session_up(input.seconds_left, now)
        self.record.session_id = input.session_id
        self._conversation.attach()
        todo = self._recovery.up(now)
        return todo + ([] if self._opened else self._open(now))

    def _on_spare_up(self, input: inputs.SpareUp, now: float) -> list[outputs.Output]:
        self._handover.spare_up(input.session_id, input.seconds_left, now)
        return []

    def _on_spare_failed(self, input: inputs.SpareFailed, now: float) -> list[outputs.Output]:
        return self._handover.spare_failed(input.detail, now) if self._session_up else []

    def _open(self, now: float) -> list[outputs.Output]:
        self._opened = True
        return self._conversation.open(now)

    def _answer(self, now: float) -> list[outputs.Output]:
        """The model is ready, and has the word."""
        self._opening.waiting = False
        todo = self._opening.answer(now)
        if self._opening.confirmed:
            self.state = State.TALKING
            todo.append(outputs.StartMedia())
        else:
            self.state = State.ANSWERED
            self._timers.answered(now)
        return todo + self._open(now)

    def _answer_for_trouble(self, now: float) -> list[outputs.Output]:
        """There is no model, but something to be said."""
        self._opening.waiting = False
        todo = self._opening.answer(now)
        if self._opening.confirmed:
            self.state = State.TALKING
            return [*todo, outputs.StartMedia(), *self._recovery.answered(now)]
        self.state = State.ANSWERED
        self._timers.answered(now)
        return todo

    def _give_up(self, now: float) -> list[outputs.Output]:
        over = self._recovery.over
        assert over is not None
        return self._end(over.why, now, over.detail, rung=over.rung)

    def _dial(self, up: inputs.SessionUp, plan: OutboundPlan, now: float) -> list[outputs.Output]:
        """The model is ready: whoever answers is not left waiting for it."""
        self.state = State.DIALLING
        self._timers.dialling(now, plan.ring_seconds)
        self.record.session_id = up.session_id
        self.record.times.session = self._journal.ms(now)
        return [
            self._journal.note(now, "session_up", "info", session_id=up.session_id),
            outputs.Dial(),
            self._journal.note(now, "dialling", "info"),
        ]

    def _on_session_failed(self, input: inputs.SessionFailed, now: float) -> list[outputs.Output]:
        fatal = input.verdict.kind is Kind.FATAL
        why = Why.SESSION_REFUSED if fatal else Why.SESSION_UNREACHABLE
        detail = f"{input.verdict.code}: {input.detail}"
        if self._recovery.active:
            return self._trouble(self._recovery.failed(detail, now, fatal=fatal), now)
        if self.state is not State.CONNECTING or not self._ladder:
            return self._end(why, now, detail)
        answered = self._opening.confirmed
        return self._trouble(
            self._recovery.begin(why, detail, now, answered=answered, fatal=fatal), now
        )

    def _trouble(self, todo: list[outputs.Output], now: float) -> list[outputs.Output]:
        if self._recovery.wants_answer and self.state is State.CONNECTING:
            todo = todo + self._answer_for_trouble(now)
        return todo

    @property
    def _ladder(self) -> bool:
        """Something may be done about a session that is not there."""
        leaving = self._conversation.talk.parting is not None or self._conversation.leaving
        return bool(self._plan.on_trouble) and self._plan.outbound is None and not leaving

    def _on_session_closed(self, input: inputs.SessionClosed, now: float) -> list[outputs.Output]:
        was_up, self._session_up = self._session_up, False
        if self.state in (State.ENDING, State.BRIDGED) or (not was_up and self._recovery.active):
            return []
        if self._handover.ready and self._live and input.code != 1000:
            self._session_up = True
            return self._handover.settle(now, at_once=True)
        self._handover.session_over()
        if self._conversation.errands.underway:
            return self._without_session(Why.SESSION_LOST, now, f"{input.code} {input.reason}")
        if self._live and (input.code == 1000 or self._conversation.goodbye_is_here):
            rest = self._conversation.on_session_over(now)
            return [*rest, self._journal.note(now, "session_closed", "info", code=input.code)]
        why = Why.SESSION_CLOSED if input.code == 1000 else Why.SESSION_LOST
        return self._without_session(why, now, f"{input.code} {input.reason}".strip())

    def _without_session(self, why: Why, now: float, detail: str) -> list[outputs.Output]:
        if self.state is not State.BRIDGED and not self._conversation.errands.underway:
            if not (self._live and self._ladder):
                return self._end(why, now, detail)
            self._session_up = False
            rest = self._conversation.detach(now)
            # Until the ACK there is nobody who could hear anything.
            answered = self.state is State.TALKING
            return rest + self._recovery.begin(why, detail, now, answered=answered)
        # The caller is on the way to somebody else: it matters only if they come back.
        self._lost_meanwhile = (why, detail)
        self._session_up = False
        note = self._journal.note(now, "session_gone", "warning", why=why.value, detail=detail)
        return [note, outputs.CloseSession(1000, why.value)]

    def _on_server_said(self, input: inputs.ServerSaid, now: float) -> list[outputs.Output]:
        if not self._session_up:
            return []
        return self._conversation.on_event(input.event, now)

    def _on_server_failed(self, input: inputs.ServerFailed, now: float) -> list[outputs.Output]:
        if not self._session_up:
            return []
        todo = self._conversation.on_error(input.error, input.command, now)
        if self._conversation.ended(now)[0] is Why.SESSION_ERROR:
            detail = f"{input.error.code}: {input.error.message}"
            return todo + self._without_session(Why.SESSION_ERROR, now, detail)
        return todo

    # ---- leg

    def _on_ringing_there(self, input: inputs.RingingThere, now: float) -> list[outputs.Output]:
        if self.state is not State.DIALLING or self.record.times.ringing is not None:
            return []
        self.record.times.ringing = self._journal.ms(now)
        return [self._journal.note(now, "ringing", "info", code=input.code)]

    def _on_media_up(self, input: inputs.MediaUp, now: float) -> list[outputs.Output]:
        if self.state is State.DIALLING and self._plan.outbound is not None:
            if not self._plan.outbound.early_media or self._listening_early:
                return []
            self._listening_early = True
            return [
                self._journal.note(now, "early_media", "info"),
                outputs.StartMedia(playout=False),
            ]
        if input.codec is self._codec or not (self._live or self.state is State.CONNECTING):
            return []
        self._codec = input.codec
        self.record.codec = input.codec.value
        # The session keeps its law. What lies between the two sides is linear, so each is right
        # in its own; a change in the session would meet answers that are on their way in the old.
        return [self._journal.note(now, "codec_changed", "info", codec=input.codec.value)]

    def _on_confirmed(self, _input: inputs.Confirmed, now: float) -> list[outputs.Output]:
        if self.state is State.CONNECTING and self._opening.at_once:
            self.record.times.confirmed = self._journal.ms(now)
            self._timers.confirmed(now, held=self._held)
            self._opening.on_confirmed(now)
            if self._session_up:
                self._opening.heard_out(now)
            return [self._journal.note(now, "confirmed", "info")]
        if self.state is State.DIALLING:
            self.record.times.answered = self._journal.ms(now)
        elif self.state is not State.ANSWERED:
            return []
        dialled = self.state is State.DIALLING
        self.state = State.TALKING
        self.record.times.confirmed = self._journal.ms(now)
        self._timers.confirmed(now, held=self._held)
        note = self._journal.note(now, "confirmed", "info")
        todo: list[outputs.Output] = [note, outputs.StartMedia()]
        todo += self._recovery.answered(now)
        return todo + self._open(now) if dialled else todo

    def _on_held(self, input: inputs.Held, now: float) -> list[outputs.Output]:
        if not (self._live or self.state is State.CONNECTING) or input.held is self._held:
            return []
        self._held = input.held
        if self.record.times.confirmed is not None:
            self._timers.held(now, input.held)
        return [self._journal.note(now, "held" if input.held else "resumed", "info")]

    def _on_digit(self, input: inputs.DigitPressed, now: float) -> list[outputs.Output]:
        if not (self._session_up or self._recovery.active or self.state is State.BRIDGED):
            return []
        return self._conversation.on_digit(input.digit, now, in_band=input.in_band)

    def _on_second_digit(self, input: inputs.SecondDigit, now: float) -> list[outputs.Output]:
        return [outputs.Press(input.digit)] if self.state is State.BRIDGED else []

    def _on_transfer(self, input: Happening, now: float) -> list[outputs.Output]:
        return self._conversation.errands.on(input, now) if self._live else []

    def _on_tool_done(self, input: inputs.ToolDone, now: float) -> list[outputs.Output]:
        if not (self._session_up or self._recovery.active):
            return []
        return self._conversation.on_tool_done(input.call_id, input.output, now)

    def _on_tool_acts(self, input: inputs.ToolActs, now: float) -> list[outputs.Output]:
        if not (self._session_up and self._live) or self.state is State.BRIDGED:
            return []
        return self._conversation.on_act(input.act, now)

    def _on_budget(self, input: inputs.BudgetReached, now: float) -> list[outputs.Output]:
        if self.state is not State.BRIDGED or not (self._session_up and input.spent):
            return []
        # The two go on by themselves; only the listening session costs money.
        self._session_up = False
        note = self._journal.note(now, "budget_spent", "warning", budget=input.detail)
        return [note, outputs.CloseSession(1000, Why.BUDGET.value)]

    def _on_rtp(self, input: inputs.RtpCounted, now: float) -> list[outputs.Output]:
        confirmed = self.record.times.confirmed is not None
        if not self._held and confirmed and self.state is not State.ENDING:
            self._timers.packets(input.packets, now, expected=input.expected)
        return []

    def _on_leg_ended(self, input: inputs.LegEnded, now: float) -> list[outputs.Output]:
        if self._ending is not None:
            return self._finish(now)
        if (
            self._leg_end is None
            and self._live
            and (flush := self._conversation.talk.playback.stop())
        ):
            # First of all, what was heard; the answer to this comes at once, and leads back here.
            self._leg_end = input
            return flush
        outcome = f"{input.code} {input.phrase}".strip()
        if self.state is State.DIALLING:
            why = why_not_answered(input.code)
            return self._end(why, now, outcome, leg_over=True, code=input.code)
        if input.method == "BYE" and self._conversation.errands.taken_over(now):
            why, outcome = Why.TRANSFERRED, "the caller's side let go; it told no outcome"
        else:
            talked = self.state in (State.TALKING, State.BRIDGED)
            why = why_leg_ended(input.code, input.method, local=input.local, talked=talked)
        return self._end(why, now, outcome, reason=input.reason_header, leg_over=True)

    # ---- playout

    def _on_flushed(self, input: inputs.Flushed, now: float) -> list[outputs.Output]:
        todo = self._conversation.on_flushed(input.unplayed_frames, now)
        if self._leg_end is None:
            return todo
        self._conversation.transcript.on(input, now)
        return todo + self._on_leg_ended(self._leg_end, now)

    def _on_playout_started(
        self, _input: inputs.PlayoutStarted, now: float
    ) -> list[outputs.Output]:
        if self.record.times.first_audio is None:
            self.record.times.first_audio = self._journal.ms(now)
        return self._conversation.on_playout_started(now)

    # ---- time

    def _on_tick(self, _input: inputs.Tick, now: float) -> list[outputs.Output]:
        if self.state is State.ENDING:
            if self._end_at is not None and now >= self._end_at:
                return [self._journal.note(now, "leg_given_up", "error"), *self._finish(now)]
            return []
        due = self._timers.due(now)
        if due is not None:
            return self._end(due[0], now, due[1])
        if self._opening.waiting and self._opening.heard_out(now):
            return self._answer(now)
        todo = self._trouble(self._recovery.tick(now), now)
        if self._session_up and self._talking_to_us:
            todo += self._handover.tick(now)
        return todo + self._conversation.on_tick(now)

    # ---- ending

    @property
    def _talking_to_us(self) -> bool:
        return self.state in (State.ANSWERED, State.TALKING)

    @property
    def _live(self) -> bool:
        return self.state in (State.ANSWERED, State.TALKING, State.BRIDGED)

    def _end(
        self,
        why: Why,
        now: float,
        detail: str = "",
        *,
        reason: str | None = None,
        leg_over: bool = False,
        code: int = 0,
        rung: Rung | None = None,
    ) -> list[outputs.Output]:
        if self._ending is not None:
            return []
        if why is Why.CANCELLED:
            self.record.times.answered = None  # the 200 did not go out, or too late
        answered = self.record.times.answered is not None
        outbound = self._plan.outbound is not None
        self._ending = ending_of(
            why, answered=answered, detail=detail, reason=reason, outbound=outbound, code=code
        )
        # Of a call of ours that was not dialled yet, there is no leg to end.
        leg_over = leg_over or (outbound and self.state is State.CONNECTING)
        self.state = State.ENDING
        self._session_up = False
        self._end_at = now + LEG_END_SECONDS
        self._conversation.on_end(now)
        todo = self._conversation.errands.abandon(now)
        todo.append(outputs.CloseSession(1000, why.value))
        if leg_over:
            return todo + self._finish(now)
        headers = {"Reason": reason_header(why)}
        if answered or outbound:
            return [*todo, outputs.HangUp(headers)]
        code, more = refusal_of(rung, refusal_code(why))
        headers |= more
        self._ending = replace(self._ending, sip_code=code)
        if code == 503:
            headers["Retry-After"] = str(self._plan.retry_after)
        return [*todo, outputs.Refuse(code, headers)]

    def _on_fault(self, input: inputs.Faulted, now: float) -> list[outputs.Output]:
        if self.state is not State.ENDING:
            return self._end(Why.FAULT, now, input.detail)
        # Ending it may be what failed, and a leg or a session left up costs somebody money.
        note = self._journal.note(now, "fault_at_end", "error", detail=input.detail)
        close = outputs.CloseSession(1000, Why.FAULT.value)
        return [note, close, outputs.HangUp({"Reason": reason_header(Why.FAULT)})]

    def _finish(self, now: float) -> list[outputs.Output]:
        assert self._ending is not None
        self.state = State.FINISHED
        record, ending = self.record, self._ending
        record.ending = ending
        record.times.end = self._journal.ms(now)
        record.late_audio_ms = self._conversation.late_audio_ms
        note = self._journal.note(
            now, "end", "debug", by=ending.by.value, why=ending.why.value, detail=ending.detail
        )
        return [note, outputs.Finished(ending)]

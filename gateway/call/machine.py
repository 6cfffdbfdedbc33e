"""The life of one call: ring, connect, answer, talk, end.

Pure: what happens comes in as :mod:`gateway.call.inputs`, with the time; what to do goes out as
:mod:`gateway.call.outputs`. The same inputs give the same outputs, so a call can be tested as a
table and replayed from a recording.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from gateway.call.conversation import Conversation
from gateway.call.ending import (
    Ending,
    Why,
    ending_of,
    reason_header,
    refusal_code,
    why_not_answered,
)
from gateway.call.inputs import (
    BudgetReached,
    Confirmed,
    DigitPressed,
    Faulted,
    Flushed,
    Held,
    Input,
    LegEnded,
    MediaUp,
    PlayoutDrained,
    PlayoutRefused,
    PlayoutStarted,
    RingingThere,
    RtpCounted,
    SecondAnswered,
    SecondDigit,
    SecondEnded,
    SecondRinging,
    ServerFailed,
    ServerSaid,
    SessionClosed,
    SessionFailed,
    SessionUp,
    ShutDown,
    Tick,
    ToolDone,
    TransferTold,
)
from gateway.call.journal import Journal
from gateway.call.outputs import (
    Answer,
    CloseSession,
    Dial,
    Finished,
    HangUp,
    Hold,
    OpenSession,
    Output,
    Press,
    Refuse,
    Ring,
    Send,
    StartMedia,
)
from gateway.call.plan import CallPlan, OutboundPlan
from gateway.call.record import CallRecord
from gateway.call.transfers import Happening
from gateway.realtime.commands import UpdateSession
from gateway.realtime.errors import Kind

ACK_SECONDS = 40.0
"""The ACK of a 200 is waited for at most 32 s below (RFC 3261 section 13.3.1.4), and then told."""

LEG_END_SECONDS = 35.0
"""A BYE is retransmitted for 32 s (RFC 3261 timer F); a leg not over by then is given up."""


class State(Enum):
    """Where a call is."""

    CONNECTING = auto()
    """180 is sent, or nobody was called yet: the session is being set up."""
    DIALLING = auto()
    """The callee is being called, and has not answered."""
    ANSWERED = auto()
    """200 is sent, its ACK has not come."""
    TALKING = auto()
    BRIDGED = auto()
    """Caller and somebody else talk with each other, through us."""
    ENDING = auto()
    """The ending is decided, the leg is not over yet."""
    FINISHED = auto()


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
        self._codec = plan.codec
        self._journal = Journal(record, now)
        self._conversation = Conversation(plan, self._journal)
        self._ending: Ending | None = None
        self._session_up = False
        self._held = False
        self._hold = (False, False)
        self._listening_early = False
        self._lost_meanwhile: tuple[Why, str] | None = None
        self._ring_until: float | None = None
        self._ack_at: float | None = None
        self._max_at: float | None = None
        self._rtp_packets = -1
        self._rtp_at: float | None = None
        self._end_at: float | None = None
        self._handlers: dict[type, Callable[[Any, float], list[Output]]] = {
            SessionUp: self._on_session_up,
            SessionFailed: self._on_session_failed,
            SessionClosed: self._on_session_closed,
            ServerSaid: self._on_server_said,
            ServerFailed: self._on_server_failed,
            MediaUp: self._on_media_up,
            Confirmed: self._on_confirmed,
            Held: self._on_held,
            RingingThere: self._on_ringing_there,
            TransferTold: self._on_transfer,
            SecondRinging: self._on_transfer,
            SecondAnswered: self._on_transfer,
            SecondEnded: self._on_transfer,
            SecondDigit: self._on_second_digit,
            ToolDone: self._on_tool_done,
            BudgetReached: self._on_budget,
            DigitPressed: self._on_digit,
            RtpCounted: self._on_rtp,
            LegEnded: self._on_leg_ended,
            PlayoutStarted: self._on_playout_started,
            PlayoutDrained: self._on_playout_drained,
            PlayoutRefused: self._on_playout_refused,
            Flushed: self._on_flushed,
            Tick: self._on_tick,
            ShutDown: lambda _input, now: self._end(Why.SHUTDOWN, now),
            Faulted: self._on_fault,
        }

    def start(self, now: float) -> list[Output]:
        """The INVITE has a route: ring, and get the model. Or get it before somebody is called."""
        if self._plan.outbound is not None:
            return [self._journal.note(now, "preparing", "info"), OpenSession()]
        self.record.times.ringing = self._journal.ms(now)
        return [self._journal.note(now, "ringing", "info"), Ring(), OpenSession()]

    def handle(self, input: Input, now: float) -> list[Output]:
        """Something happened at ``now``; returns what to do, in order."""
        if self.state is State.FINISHED:
            return []
        session_was_up = self._session_up
        outputs = self._handlers[type(input)](input, now)
        if self._live:
            outputs = outputs + self._settle(now)
        if not (session_was_up or self._session_up):
            outputs = [output for output in outputs if not isinstance(output, Send)]
        return outputs

    @property
    def deadline(self) -> float | None:
        """When a :class:`Tick` is due next (s); None while nothing waits for time."""
        if self.state is State.FINISHED:
            return None
        if self.state is State.ENDING:
            return self._end_at
        rtp_at = None
        if self._rtp_at is not None and self._plan.rtp_timeout > 0:
            rtp_at = self._rtp_at + self._plan.rtp_timeout
        due = [self._conversation.deadline, self._ring_until, self._ack_at, self._max_at, rtp_at]
        return min((at for at in due if at is not None), default=None)

    def _settle(self, now: float) -> list[Output]:
        """What follows for the call from what has just happened in its conversation."""
        talk = self._conversation
        outputs = talk.settle(now, confirmed=self.state is not State.ANSWERED)
        if talk.errands.joined and self.state is State.TALKING:
            outputs += self._bridge(now)
        why, detail = talk.errands.over or (None, "")
        if why is None and self._lost_meanwhile is None:
            why = talk.ended(now)
            detail = talk.spent if why is Why.BUDGET else ""
        elif why is None and self._lost_meanwhile is not None and not talk.errands.underway:
            why, detail = self._lost_meanwhile
        if why is not None:
            return outputs + self._end(why, now, detail)
        hold = (self._held or talk.errands.away, self._held and self._plan.silence_on_hold)
        if hold != self._hold:
            self._hold = hold
            outputs.append(Hold(*hold))
        return outputs

    def _bridge(self, now: float) -> list[Output]:
        self.state = State.BRIDGED
        note = self._journal.note(now, "bridged", "info")
        if self._session_up and self._plan.transfer.listen:
            return [note, Send(UpdateSession(self._plan.listening))]
        if not self._session_up:
            return [note]
        self._session_up = False
        return [note, CloseSession(1000, "bridged")]

    # ---- session

    def _on_session_up(self, input: SessionUp, now: float) -> list[Output]:
        if self.state is State.ENDING:
            # It came up while it was being given up; nobody else will close it.
            return [CloseSession(1000, "call over")]
        if self.state is not State.CONNECTING:
            return []
        self._session_up = True
        if self._plan.outbound is not None:
            return self._dial(input, self._plan.outbound, now)
        self.state = State.ANSWERED
        self._ack_at = now + ACK_SECONDS
        self.record.session_id = input.session_id
        self.record.times.session = self.record.times.answered = self._journal.ms(now)
        return [
            self._journal.note(now, "session_up", "info", session_id=input.session_id),
            Answer(),
            self._journal.note(now, "answered", "info"),
            *self._conversation.open(now),
        ]

    def _dial(self, up: SessionUp, plan: OutboundPlan, now: float) -> list[Output]:
        """The model is ready: whoever answers is not left waiting for it."""
        self.state = State.DIALLING
        self._ring_until = now + plan.ring_seconds
        self.record.session_id = up.session_id
        self.record.times.session = self._journal.ms(now)
        return [
            self._journal.note(now, "session_up", "info", session_id=up.session_id),
            Dial(),
            self._journal.note(now, "dialling", "info"),
        ]

    def _on_session_failed(self, input: SessionFailed, now: float) -> list[Output]:
        fatal = input.verdict.kind is Kind.FATAL
        why = Why.SESSION_REFUSED if fatal else Why.SESSION_UNREACHABLE
        return self._end(why, now, f"{input.verdict.code}: {input.detail}")

    def _on_session_closed(self, input: SessionClosed, now: float) -> list[Output]:
        self._session_up = False
        if self.state in (State.ENDING, State.BRIDGED):
            return []
        if self._live and (input.code == 1000 or self._conversation.goodbye_is_here):
            self._conversation.on_session_over(now)
            return [self._journal.note(now, "session_closed", "info", code=input.code)]
        why = Why.SESSION_CLOSED if input.code == 1000 else Why.SESSION_LOST
        return self._without_session(why, now, f"{input.code} {input.reason}".strip())

    def _without_session(self, why: Why, now: float, detail: str) -> list[Output]:
        if self.state is not State.BRIDGED and not self._conversation.errands.underway:
            return self._end(why, now, detail)
        # The caller is on the way to somebody else: it matters only if they come back.
        self._lost_meanwhile = (why, detail)
        self._session_up = False
        note = self._journal.note(now, "session_gone", "warning", why=why.value, detail=detail)
        return [note, CloseSession(1000, why.value)]

    def _on_server_said(self, input: ServerSaid, now: float) -> list[Output]:
        if not self._session_up:
            return []
        return self._conversation.on_event(input.event, now)

    def _on_server_failed(self, input: ServerFailed, now: float) -> list[Output]:
        if not self._session_up:
            return []
        outputs = self._conversation.on_error(input.error, input.command, now)
        if self._conversation.ended(now) is Why.SESSION_ERROR:
            detail = f"{input.error.code}: {input.error.message}"
            return outputs + self._without_session(Why.SESSION_ERROR, now, detail)
        return outputs

    # ---- leg

    def _on_ringing_there(self, input: RingingThere, now: float) -> list[Output]:
        if self.state is not State.DIALLING or self.record.times.ringing is not None:
            return []
        self.record.times.ringing = self._journal.ms(now)
        return [self._journal.note(now, "ringing", "info", code=input.code)]

    def _on_media_up(self, input: MediaUp, now: float) -> list[Output]:
        if self.state is State.DIALLING and self._plan.outbound is not None:
            if not self._plan.outbound.early_media or self._listening_early:
                return []
            self._listening_early = True
            return [self._journal.note(now, "early_media", "info"), StartMedia(playout=False)]
        if input.codec is self._codec or not self._live:
            return []
        self._codec = input.codec
        self.record.codec = input.codec.value
        # The session keeps its law. What lies between the two sides is linear, so each is right
        # in its own; a change in the session would meet answers that are on their way in the old.
        return [self._journal.note(now, "codec_changed", "info", codec=input.codec.value)]

    def _on_confirmed(self, _input: Confirmed, now: float) -> list[Output]:
        if self.state is State.DIALLING:
            self.record.times.answered = self._journal.ms(now)
        elif self.state is not State.ANSWERED:
            return []
        dialled, self._ring_until = self.state is State.DIALLING, None
        self.state = State.TALKING
        self.record.times.confirmed = self._journal.ms(now)
        self._ack_at = None
        self._max_at = now + self._plan.max_call_seconds
        self._rtp_at = None if self._held else now
        outputs: list[Output] = [self._journal.note(now, "confirmed", "info"), StartMedia()]
        return outputs + self._conversation.open(now) if dialled else outputs

    def _on_held(self, input: Held, now: float) -> list[Output]:
        if not self._live or input.held is self._held:
            return []
        self._held = input.held
        # A caller on hold may send no RTP at all; that is no dead line.
        self._rtp_at = None if input.held else now
        return [self._journal.note(now, "held" if input.held else "resumed", "info")]

    def _on_digit(self, input: DigitPressed, now: float) -> list[Output]:
        if not (self._session_up or self.state is State.BRIDGED):
            return []
        return self._conversation.on_digit(input.digit, now, in_band=input.in_band)

    def _on_second_digit(self, input: SecondDigit, now: float) -> list[Output]:
        return [Press(input.digit)] if self.state is State.BRIDGED else []

    def _on_transfer(self, input: Happening, now: float) -> list[Output]:
        return self._conversation.on_transfer(input, now) if self._live else []

    def _on_tool_done(self, input: ToolDone, now: float) -> list[Output]:
        if not self._session_up:
            return []
        return self._conversation.on_tool_done(input.call_id, input.output, now)

    def _on_budget(self, input: BudgetReached, now: float) -> list[Output]:
        if not self._session_up:
            return []
        if self.state is State.BRIDGED:
            if not input.spent:
                return []
            # The two go on by themselves; only the listening session costs money.
            self._session_up = False
            note = self._journal.note(now, "budget_spent", "warning", budget=input.detail)
            return [note, CloseSession(1000, Why.BUDGET.value)]
        return self._conversation.on_budget(input.spent, input.detail, now) if self._live else []

    def _on_rtp(self, input: RtpCounted, now: float) -> list[Output]:
        if self._held:
            return []
        heard = input.packets != self._rtp_packets or not input.expected
        if heard and self.state in (State.TALKING, State.BRIDGED):
            self._rtp_packets = input.packets
            self._rtp_at = now
        return []

    def _on_leg_ended(self, input: LegEnded, now: float) -> list[Output]:
        if self._ending is not None:
            return self._finish(now)
        outcome = f"{input.code} {input.phrase}".strip()
        if self.state is State.DIALLING:
            why = why_not_answered(input.code)
            return self._end(why, now, outcome, leg_over=True, code=input.code)
        talked = self.state in (State.TALKING, State.BRIDGED)
        if input.method == "BYE" and self._conversation.errands.taken_over(now):
            why, outcome = Why.TRANSFERRED, "the caller's side let go; it told no outcome"
        elif not talked and (input.method == "CANCEL" or input.code == 487):
            why = Why.CANCELLED
        elif input.method in ("BYE", "CANCEL"):
            # A CANCEL that our 200 had crossed has no effect (RFC 3261 section 9.2).
            why = Why.HUNG_UP
        elif input.local:
            why = Why.FAULT
        else:
            why = Why.LEG_LOST
        return self._end(why, now, outcome, reason=input.reason_header, leg_over=True)

    # ---- playout

    def _on_playout_started(self, _input: PlayoutStarted, now: float) -> list[Output]:
        if self.record.times.first_audio is None:
            self.record.times.first_audio = self._journal.ms(now)
        return self._conversation.on_playout_started(now)

    def _on_playout_drained(self, _input: PlayoutDrained, now: float) -> list[Output]:
        return self._conversation.on_playout_drained(now)

    def _on_playout_refused(self, input: PlayoutRefused, now: float) -> list[Output]:
        return self._conversation.on_playout_refused(input.frames, now)

    def _on_flushed(self, input: Flushed, now: float) -> list[Output]:
        return self._conversation.on_flushed(input.unplayed_frames, now)

    # ---- time

    def _on_tick(self, _input: Tick, now: float) -> list[Output]:
        if self.state is State.ENDING:
            if self._end_at is not None and now >= self._end_at:
                return [self._journal.note(now, "leg_given_up", "error"), *self._finish(now)]
            return []
        if self._ack_at is not None and now >= self._ack_at:
            return self._end(Why.LEG_LOST, now, "no ACK")
        if self._ring_until is not None and now >= self._ring_until:
            return self._end(Why.NO_ANSWER, now, "rang too long")
        if self._max_at is not None and now >= self._max_at:
            return self._end(Why.MAX_DURATION, now)
        timeout = self._plan.rtp_timeout
        if self._rtp_at is not None and timeout > 0 and now >= self._rtp_at + timeout:
            return self._end(Why.RTP_SILENCE, now, f"no packet for {timeout:g} s")
        return self._conversation.on_tick(now)

    # ---- ending

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
    ) -> list[Output]:
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
        outputs = self._conversation.errands.abandon(now)
        outputs.append(CloseSession(1000, why.value))
        if leg_over:
            return outputs + self._finish(now)
        headers = {"Reason": reason_header(why)}
        if answered or outbound:
            return [*outputs, HangUp(headers)]
        code = refusal_code(why)
        if code == 503:
            headers["Retry-After"] = str(self._plan.retry_after)
        return [*outputs, Refuse(code, headers)]

    def _on_fault(self, input: Faulted, now: float) -> list[Output]:
        if self.state is not State.ENDING:
            return self._end(Why.FAULT, now, input.detail)
        # Ending it may be what failed, and a leg or a session left up costs somebody money.
        note = self._journal.note(now, "fault_at_end", "error", detail=input.detail)
        close = CloseSession(1000, Why.FAULT.value)
        return [note, close, HangUp({"Reason": reason_header(Why.FAULT)})]

    def _finish(self, now: float) -> list[Output]:
        assert self._ending is not None
        self.state = State.FINISHED
        record, ending = self.record, self._ending
        record.ending = ending
        record.times.end = self._journal.ms(now)
        record.late_audio_ms = self._conversation.late_audio_ms
        note = self._journal.note(
            now, "end", "debug", by=ending.by.value, why=ending.why.value, detail=ending.detail
        )
        return [note, Finished(ending)]

"""Where one call is, and what it has: what the sides of its machine share."""

from __future__ import annotations

from typing import Protocol

from gateway.call.conversation.conversation import Conversation
from gateway.call.ending import EndReason
from gateway.call.leg.answering import AnswerPolicy
from gateway.call.leg.timers import Timers
from gateway.call.outputs import Output
from gateway.call.plan import CallPlan, FallbackStep
from gateway.call.playout.playback import Playout
from gateway.call.record import CallRecord
from gateway.call.states import State
from gateway.call.timeline import CallTimeline


class CallContext:
    """Written by the machine and its sides, each its own part of it."""

    def __init__(self, plan: CallPlan, record: CallRecord, now: float, playout: Playout) -> None:
        self.state = State.CONNECTING
        self.plan = plan
        self.record = record
        self.timeline = CallTimeline(record, now)
        self.conversation = Conversation(plan, self.timeline, playout)
        self.timers = Timers(plan)
        self.opening = AnswerPolicy(plan.answer, self.timeline)
        self.session_up = False
        self.retry_after: float | None = None
        """What the server that gave no session last wants to be left alone for (s)."""
        self.held = False
        """The caller has put us on hold."""

    @property
    def live(self) -> bool:
        """It is answered, and not being ended."""
        return self.state in (State.ANSWERED, State.TALKING, State.BRIDGED)

    @property
    def talking(self) -> bool:
        """It is live, and the caller has nobody but the model."""
        return self.state in (State.ANSWERED, State.TALKING)


class End(Protocol):
    """Ends the call, once; ``step`` may say how a call is refused that is not answered."""

    def __call__(
        self, why: EndReason, now: float, detail: str = "", *, step: FallbackStep | None = None
    ) -> list[Output]: ...

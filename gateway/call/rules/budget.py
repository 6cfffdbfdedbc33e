# SPDX-License-Identifier: GPL-2.0-or-later
"""Budget of a call: warn the model near the limit, end or transfer the call at it."""

from __future__ import annotations

from typing import ClassVar

from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.ending import EndReason
from gateway.call.inputs import BudgetThreshold, Input
from gateway.call.outputs import Output
from gateway.realtime.events import CreateResponse


class Budget:
    """Warns the model when a budget is nearly spent, and ends the call when one is spent."""

    reacts_to: ClassVar[tuple[type, ...]] = (BudgetThreshold,)
    deadline: float | None = None

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._plan = control.plan.budget

    def on(self, input: Input, now: float) -> list[Output]:
        """Take a threshold of the budget."""
        control = self._control
        if (
            not isinstance(input, BudgetThreshold)
            or control.termination is not None
            or control.call_actions.joined
        ):
            return []
        if not input.spent:
            warned = control.timeline.note(now, "budget_warning", "info", budget=input.detail)
            asked = control.ask(CreateResponse(), now) if self._plan.warning_response else []
            return [warned, *control.tell(self._plan.warning_message), *asked]
        goodbye, transfer_to = self._plan.goodbye, self._plan.transfer_to
        control.terminate(Termination(EndReason.BUDGET, input.detail, goodbye, transfer_to))
        return [control.timeline.note(now, "budget_exceeded", "warning", budget=input.detail)]

    def tick(self, now: float) -> list[Output]:
        """Nothing here waits for time."""
        return []

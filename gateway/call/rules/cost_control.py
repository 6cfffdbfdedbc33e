# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep the cost of a call in bounds: its budget, and context trimming.

Near the limit of a budget the model is warned; at it the call is ended or transferred.

Context trimming deletes old turns of a long conversation, or replaces them by a summary. Every
response is billed for all items of the session, and the server truncates by itself what exceeds the
model's context window. A deletion invalidates the server's prompt cache, so several turns are
deleted at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from gateway.call import inputs
from gateway.call.conversation.control import ConversationControl, Termination, message
from gateway.call.inputs import BudgetThreshold, Input
from gateway.call.outputs import Output, Send
from gateway.call.record_entries import ContextTrim, append_capped
from gateway.ending import EndReason
from gateway.realtime.events import (
    CreateItem,
    CreateResponse,
    DeleteItem,
    ItemAdded,
    ItemDeleted,
    ResponseDone,
)


class Budget:
    """Warns the model when a budget of the call is nearly spent, and ends the conversation when one
    is spent."""

    reacts_to: ClassVar[tuple[type, ...]] = (BudgetThreshold,)
    deadline: float | None = None

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._plan = control.plan.budget

    def on(self, input: Input, now: float) -> list[Output]:
        """Handle a budget threshold: send the warning message, or end with goodbye or transfer.
        Bridged calls are left alone."""
        control = self._control
        if (
            not isinstance(input, BudgetThreshold)
            or control.termination is not None
            or control.call_actions.joined
        ):
            return []
        if not input.spent:
            warned = control.timeline.note(now, "budget_warning", "info", budget=input.detail)
            asked = (
                control.request_response(CreateResponse(), now)
                if self._plan.warning_response
                else []
            )
            return [warned, *control.add_message(self._plan.warning_message), *asked]
        goodbye, transfer_to = self._plan.goodbye, self._plan.transfer_to
        control.terminate(Termination(EndReason.BUDGET, input.detail, goodbye, transfer_to))
        return [control.timeline.note(now, "budget_exceeded", "warning", budget=input.detail)]

    def tick(self, now: float) -> list[Output]:
        """Return nothing: the budget has no deadline."""
        return []


MAX_ITEMS = 5000
"""Items remembered of one session; older ones are not trimmed."""

SUMMARY_ITEM = "item_gw_summary_"
"""What our summaries' ids begin with."""

_TOLD = "What was said earlier in this call, in short: "


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of the session's conversation that may be deleted later."""

    kind: str
    role: str
    call_id: str


class ContextTrimmer:
    """Deletes old turns from the session (``[route.context]``), or has them summarized first."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        ItemAdded,
        ItemDeleted,
        ResponseDone,
    )
    deadline: float | None = None

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._plan = control.plan.content.context
        self._items: OrderedDict[str, _Item] = OrderedDict()
        self._session = ""
        self._summaries = 0
        self._asking = False

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Follow the session's items; at ``response.done`` trim old turns where there are too
        many."""
        if self._plan.max_turns <= 0 or not isinstance(input, inputs.ServerEventReceived):
            return []
        session = self._control.timeline.record.session.session_id
        if session != self._session:
            self._session, self._asking = session, False
            self._items.clear()  # another session, with items of its own
        match input.event:
            case ItemAdded(item):
                self._item_added(str(item.get("id") or ""), item)
            case ItemDeleted(item_id):
                self._items.pop(item_id, None)
            case ResponseDone():
                return self._trim_old_turns(now)
        return []

    def tick(self, now: float) -> list[Output]:
        """Return nothing: trimming has no deadline."""
        return []

    # ---- how

    def _item_added(self, item_id: str, item: object) -> None:
        """Remember an item of the session; a summary of ours counts as the oldest."""
        if not item_id or item_id in self._items or not hasattr(item, "get"):
            return
        kind, role = str(item.get("type") or ""), str(item.get("role") or "")
        known = _Item(kind, role, str(item.get("call_id") or ""))
        self._items[item_id] = known
        if item_id.startswith(SUMMARY_ITEM):
            self._items.move_to_end(item_id, last=False)
        if len(self._items) > MAX_ITEMS:
            self._items.popitem(last=False)

    def _trim_old_turns(self, now: float) -> list[Output]:
        """Delete the oldest turns, or request their summary, once there are half as many more as
        ``max_turns``."""
        control, keep = self._control, self._plan.max_turns
        turns = [item_id for item_id, item in self._items.items() if item.role == "user"]
        if self._asking or control.termination is not None or control.call_actions.joined:
            return []
        if len(turns) < keep + max(1, keep // 2):
            return []
        old = self._items_before(turns[-keep])
        count = len(turns) - keep
        if self._plan.strategy == "delete":
            return self._delete_items(old, count, "", now)
        self._asking = True
        session = self._session

        def summarised(status: str, text: str, at: float) -> list[Output]:
            """Delete the old turns, with their summary in their place if there is one."""
            self._asking = False
            if self._session != session:
                return []
            return self._delete_items(old, count, text if status == "completed" else "", at)

        self._summaries += 1
        return control.out_of_band.request(
            f"summary-{self._summaries}",
            "old turns",
            self._plan.instructions,
            now,
            items=old,
            seconds=self._plan.timeout,
            then=summarised,
        )

    def _items_before(self, first_kept: str) -> list[str]:
        """Return the items before a turn, without system messages; results of function calls go
        with their calls."""
        ids = list(self._items)
        at = ids.index(first_kept)
        old = [
            item_id
            for item_id in ids[:at]
            if self._items[item_id].role != "system" or item_id.startswith(SUMMARY_ITEM)
        ]
        calls = {
            self._items[item_id].call_id
            for item_id in old
            if self._items[item_id].kind == "function_call"
        }
        return old + [
            item_id
            for item_id in ids[at:]
            if self._items[item_id].kind == "function_call_output"
            and self._items[item_id].call_id in calls
        ]

    def _delete_items(self, old: list[str], turns: int, summary: str, now: float) -> list[Output]:
        """Return ``conversation.item.delete`` for these items, and before it the message with their
        summary, where there is one."""
        control = self._control
        there = [item_id for item_id in old if item_id in self._items]
        outputs: list[Output] = []
        how = "summarize" if summary else "delete"
        if summary:
            item = {"id": f"{SUMMARY_ITEM}{self._summaries}", **message("system", _TOLD + summary)}
            outputs.append(Send(CreateItem(item, after="root")))
        for item_id in there:
            self._items.pop(item_id)
            control.trimmed_items.add(item_id)
            outputs.append(Send(DeleteItem(item_id)))
        trim = ContextTrim(round(control.timeline.ms(now), 1), how, len(there), turns)
        append_capped(control.timeline.record.content.context_trims, trim)
        note = control.timeline.note(
            now, "context_trimmed", "info", how=how, items=len(there), turns=turns
        )
        return [note, *outputs]

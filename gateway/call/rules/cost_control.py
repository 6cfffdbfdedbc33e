# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep the cost of a call in bounds: its budget, and context trimming.

Near the limit of a budget the model is warned; at it the call is ended or transferred.

Context trimming deletes old turns of a long conversation, or replaces them by a summary. A turn is
what the caller said (a user item) with all items up to the next. Every response is billed for all
items of the session, and the server truncates by itself what exceeds the model's context window. A
deletion invalidates the server's prompt cache, so several turns are deleted at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from gateway.call import inputs
from gateway.call.call_record import ContextTrim, append_capped
from gateway.call.conversation.control import ConversationControl, Termination, message
from gateway.call.inputs import BudgetThreshold, Input
from gateway.call.outputs import Output, Send
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
    is spent (``[route.budget]``)."""

    reacts_to: ClassVar[tuple[type, ...]] = (BudgetThreshold,)
    deadline: float | None = None

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._plan = control.plan.budget

    def on(self, input: Input, now: float) -> list[Output]:
        """Handle a budget threshold. Where a budget is nearly spent, add ``warning_message`` to the
        conversation, and with ``warning_response`` request a response. Where it is spent, terminate
        (reason ``BUDGET``): transfer the caller to ``transfer_to`` if it is set; without it, or if
        the transfer fails, the model says ``goodbye`` and the call is hung up. Nothing while the
        call is ending or its legs are joined.
        """
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
        """Return nothing: thresholds come as inputs, and there is no deadline."""
        return []


MAX_ITEMS = 5000
"""Items remembered of one session; the oldest beyond these are forgotten, and never trimmed."""

SUMMARY_ITEM = "item_gw_summary_"
"""Prefix of the item ids of our summaries."""

_TOLD = "What was said earlier in this call, in short: "


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of the session's conversation that may be deleted later: ``type``, ``role`` and
    ``call_id`` as ``conversation.item.added`` has them, "" where it has none."""

    kind: str
    role: str
    call_id: str


class ContextTrimmer:
    """Deletes old turns of the session (``[route.context]``) once there are too many, or has the
    model summarize them first, by an out-of-band response. Off where ``max_turns`` is 0."""

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
        self._summaries = 0
        self._awaited = 0
        """Number of the summary that is awaited; 0 while none is."""

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Follow items that the server adds and deletes; at ``response.done`` trim old turns if
        there are too many."""
        if self._plan.max_turns <= 0 or not isinstance(input, inputs.ServerEventReceived):
            return []
        match input.event:
            case ItemAdded(item):
                self._on_item_added(str(item.get("id") or ""), item)
            case ItemDeleted(item_id):
                self._items.pop(item_id, None)
            case ResponseDone():
                return self._trim_old_turns(now)
        return []

    def on_session_over(self) -> None:
        """Forget the items and the summary that is awaited, since the session is lost, closed on
        hold or handed over: the next one has items of its own, perhaps under the same ids."""
        self._items.clear()
        self._control.trimmed_items.clear()
        self._awaited = 0

    def tick(self, now: float) -> list[Output]:
        """Return nothing: the deadline of a summary is kept by its out-of-band response."""
        return []

    # ---- how

    def _on_item_added(self, item_id: str, item: object) -> None:
        """Remember an item of the session, unless it has no id or is known; a summary of ours
        counts as the oldest. Above ``MAX_ITEMS`` the oldest is forgotten."""
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
        """Trim to the last ``max_turns`` turns, once there are at least half as many more (one
        more, if that is more). Nothing while a summary is awaited, the call is ending or its legs
        are joined.

        With the strategy ``delete`` the items are deleted at once; else their summary is requested,
        and they are deleted when it comes, or without one if it fails, takes longer than
        ``timeout``, or cannot be requested of this session. If the session is over by then,
        nothing is deleted.
        """
        control, keep = self._control, self._plan.max_turns
        turns = [item_id for item_id, item in self._items.items() if item.role == "user"]
        if self._awaited or control.termination is not None or control.call_actions.joined:
            return []
        if len(turns) < keep + max(1, keep // 2):
            return []
        old = self._items_before(turns[-keep])
        count = len(turns) - keep
        if self._plan.strategy == "delete":
            return self._delete_items(old, count, "", now)
        self._summaries += 1
        number = self._awaited = self._summaries

        def summarised(status: str, text: str, at: float) -> list[Output]:
            """Delete the old turns, with their summary in their place if the out-of-band response
            completed. Nothing if the session is over."""
            if self._awaited != number:
                return []
            self._awaited = 0
            return self._delete_items(old, count, text if status == "completed" else "", at)

        return control.out_of_band.request(
            f"summary-{number}",
            "old turns",
            self._plan.instructions,
            now,
            items=old,
            seconds=self._plan.timeout,
            then=summarised,
        )

    def _items_before(self, first_kept: str) -> list[str]:
        """Return the ids of all items before the turn ``first_kept``, oldest first: without system
        messages, but with our summaries, and with the later outputs of function calls among
        them."""
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
        """Return ``conversation.item.delete`` for those of ``old`` that are still in the session,
        and before it a system message with the summary, at the conversation's beginning. They stay
        in the transcript; the trim is recorded and logged (``context_trimmed``).

        Args:
            turns: how many turns they are, for record and log.
            summary: "" for none.
        """
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

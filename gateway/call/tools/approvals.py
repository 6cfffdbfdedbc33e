# SPDX-License-Identifier: GPL-2.0-or-later
"""Approvals of tool calls, by rules of the route, the caller or an HTTP service; and MCP tools,
which the realtime server calls by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from gateway.call.call_record import ToolUse
from gateway.call.conversation.control import ConversationControl, Prompt
from gateway.call.conversation.playback import SHORTEST_MS
from gateway.call.inputs import (
    ApprovalResult,
    Input,
    PlayoutDrained,
    ServerEventReceived,
    SessionClosed,
)
from gateway.call.outputs import Output, RequestApproval, Send
from gateway.call.plan import ApprovalRule
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    CreateItem,
    CreateResponse,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    SpeechStarted,
)
from gateway.realtime.parse import item_of
from gateway.text import json_of, text_or_json

YES, NO = "1", "2"

MAX_ASKED = 8
"""Tool calls of one telephone call that wait for a decision; more are refused at once."""

QUESTION_SECONDS = 15.0
"""Longest time for the question to the caller to be said; the rule's time begins when it was
heard, or after this."""

CUT_MS = 1000
"""A question that was interrupted before so much of it was heard (ms) counts as not heard."""

MAX_REPEATS = 3
"""How often such a question is said again."""

LATE = "nobody confirmed it in time"
"""Reason for the model."""

Decided = Callable[[bool, str, str, float], list[Output]]
"""Takes yes (True) or no, who decided (rule, caller, operator or time), the reason for the model
("" for yes), and the time (s)."""


@dataclass(slots=True)
class _Pending:
    """A tool call that waits for the decision of caller or HTTP service."""

    key: str
    name: str
    rule: ApprovalRule
    given: Mapping[str, Any]
    decided: Decided
    deadline: float | None = None
    """When it is refused (s); None while the caller is asked about another call first."""
    repeats: int = 0
    """How often the caller was asked again before they had heard the question."""


class Approvals:
    """Decides whether a tool call may run, by the route's rules (``[[route.approval]]``): allowed,
    denied, or asked of the caller (DTMF) or an HTTP service.

    Each ends once, by the call of its ``decided``, or is withdrawn. The caller is asked about one
    call at a time.
    """

    reacts_to: ClassVar[tuple[type, ...]] = (
        ApprovalResult,
        PlayoutDrained,
        ResponseCreated,
    )

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._pending: dict[str, _Pending] = {}
        self._callers: deque[_Pending] = deque()
        """What the caller is asked, the first of it now."""
        self._question = Prompt(control)
        """The question about the first."""

    @property
    def _rules(self) -> tuple[ApprovalRule, ...]:
        """Approval rules of the route, in order."""
        return self._control.plan.tools.approvals

    def rule_for(self, name: str, given: Mapping[str, Any], *, needed: bool) -> ApprovalRule | None:
        """Return the first rule whose ``tool`` (which may have ``*`` and ``?``) is the tool's name,
        and whose ``when`` fits the arguments. Where none fits, return None, or with ``needed`` a
        rule that denies.

        Args:
            given: arguments of the tool call; ``when`` fits if each argument that it names is given
                and the pattern for it is found in the argument.
            needed: the tool may run only where a rule approves it.
        """
        for rule in self._rules:
            if fnmatchcase(name, rule.tool) and all(
                argument in given and pattern.search(text_or_json(given[argument]))
                for argument, pattern in rule.when.items()
            ):
                return rule
        return ApprovalRule(name, "deny") if needed else None

    def ask(
        self,
        key: str,
        name: str,
        arguments: str,
        decided: Decided,
        now: float,
        *,
        needed: bool,
    ) -> list[Output] | None:
        """Begin the decision about a tool call, and log ``approval``; return None, without either,
        where no rule applies, so that it may run.

        A rule ``allow`` or ``deny`` is decided at once. For the others the call is refused at once
        if ``MAX_ASKED`` calls wait for a decision already, or one with this ``key`` does. A rule
        ``ask_http`` returns ``RequestApproval``. A rule ``ask_caller`` has the model ask the
        caller, once the questions before this one are decided.

        Args:
            key: id of the call, or of an MCP approval request, unique in the telephone call.
            name: of the tool, as rules have it.
            arguments: JSON text; anything but an object counts as no arguments.
            decided: called once, within this call or when caller or service have answered or are
                late; its outputs follow.
            needed: refuse it where no rule applies.
        """
        given = _arguments_of(arguments)
        rule = self.rule_for(name, given, needed=needed)
        if rule is None:
            return None
        note = self._control.timeline.note(now, "approval", "info", name=name, by=rule.policy)
        if rule.policy in ("allow", "deny"):
            yes = rule.policy == "allow"
            return [note, *decided(yes, "rule", "" if yes else "this may not be done", now)]
        if len(self._pending) >= MAX_ASKED or key in self._pending:
            return [note, *decided(False, "rule", "too many questions wait for answers", now)]
        pending = _Pending(key, name, rule, given, decided)
        self._pending[key] = pending
        if rule.policy == "ask_http":
            # What asks has the deadline; this one is for when it does not keep it.
            pending.deadline = now + rule.timeout + 1.0
            return [note, RequestApproval(key, name, arguments, self._rules.index(rule))]
        self._callers.append(pending)
        return [note, *(self._ask_caller(now) if len(self._callers) == 1 else [])]

    def is_pending(self, key: str) -> bool:
        """Return whether the decision about this tool call is still to come."""
        return key in self._pending

    @property
    def busy(self) -> bool:
        """Whether a decision of caller or service is still to come."""
        return bool(self._pending)

    # ---- what happens

    def on(self, input: Input, now: float) -> list[Output]:
        """Handle the answer of the HTTP service: decide; nothing if the call does not wait for it
        any more. Whenever playout has run empty and no response runs, is requested or waits, the
        caller counts as having heard the question they are asked now, the first in line: its time
        for an answer (the rule's ``timeout``) starts, or starts anew; the questions behind it have
        no deadline yet. A question without audio counts never, nor one that was not complete when
        its session ended; one without audio, or that was interrupted within ``CUT_MS``, is
        requested again then (``MAX_REPEATS``)."""
        if isinstance(input, ApprovalResult):
            pending = self._pending.get(input.key)
            if pending is None:
                return []
            reason = input.reason or "the operator said no"
            return self._decide(pending, input.approve, "operator", reason, now)
        if isinstance(input, ServerEventReceived):
            assert isinstance(input.event, ResponseCreated)
            self._question.on_response_created(input.event.response_id)
            return []
        if not self.wants_digits or not self._control.responses.idle:
            return []
        first = self._callers[0]
        if self._begun(now):
            self._question.heard = True
            first.deadline = now + first.rule.timeout
        elif first.repeats < MAX_REPEATS and self._question.lost:
            first.repeats += 1
            return self._ask_caller(now)
        return []

    def on_session_over(self, now: float) -> None:
        """Take a question that the model has not said to its end, or that has not begun to be
        heard, as not heard, since its session is over; another may be answered all the same. To be
        called before responses are reset."""
        heard = self._question.heard or self._control.responses.idle
        begun, self._question = self._begun(now), Prompt(self._control)
        self._question.heard = begun and heard

    def withdraw(self, keys: Collection[str]) -> None:
        """Forget the questions to caller and service about these tool calls, as the session that
        wanted them is over; to be called before :meth:`on_session_over`."""
        if self._callers and self._callers[0].key in keys:
            self._question = Prompt(self._control)
        for one in [self._pending.pop(key) for key in keys]:
            if one in self._callers:
                self._callers.remove(one)

    def ask_again(self, now: float) -> list[Output]:
        """Go on with the questions, as another session has taken over: request the one whose
        session ended before it was complete, or that has waited meanwhile; nothing without."""
        return self._ask_caller(now) if self._callers and not self._question.heard else []

    def on_digit(self, digit: str, now: float) -> list[Output]:
        """Handle the caller's DTMF digit, only where it is not dropped (:meth:`drops`): 1 approves
        the call that they are asked about, 2 refuses it."""
        yes = digit == YES
        return self._decide(self._callers[0], yes, "caller", "the caller said no", now)

    def drops(self, digit: str, now: float) -> bool:
        """Return whether a digit is no answer: others than 1 and 2, and 1 before the question has
        begun to be heard, also where ``CUT_MS`` of it were not heard as it was interrupted."""
        return digit not in (YES, NO) or (digit == YES and not self._begun(now))

    @property
    def wants_digits(self) -> bool:
        """Whether the caller is being asked, so that DTMF digits go here: from the request for the
        question on, also before it was heard; but not once the session has ended before it was
        complete, until it is requested again."""
        return bool(self._callers) and (self._question.heard or not self._control.between_sessions)

    def _begun(self, now: float) -> bool:
        """Return whether the question that the caller is asked now has begun to be heard; of one
        that was interrupted ``CUT_MS`` must have been heard."""
        question = self._question
        least = CUT_MS if question.interrupted else SHORTEST_MS
        return question.heard or question.heard_ms(now) >= least

    def tick(self, now: float) -> list[Output]:
        """Refuse tool calls about which neither caller nor service has decided in time."""
        outputs: list[Output] = []
        for one in list(self._pending.values()):
            if one.deadline is not None and now >= one.deadline:
                outputs += self._decide(one, False, "time", LATE, now)
        return outputs

    @property
    def deadline(self) -> float | None:
        """When the next decision of caller or service is late (s); None while nobody is asked."""
        due = [one.deadline for one in self._pending.values() if one.deadline is not None]
        return min(due, default=None)

    def _ask_caller(self, now: float) -> list[Output]:
        """Request a response that asks the caller about the first tool call in line, and set its
        deadline, the sum of ``QUESTION_SECONDS`` and the rule's ``timeout`` from now; once the
        question was heard, :meth:`on` sets it anew. Without a session only set the deadline."""
        first = self._callers[0]
        first.deadline = now + QUESTION_SECONDS + first.rule.timeout
        return self._question.say(first.rule.prompt(first.name, first.given), now)

    def _decide(
        self, pending: _Pending, yes: bool, by: str, reason: str, now: float
    ) -> list[Output]:
        """Log the decision (``approved`` or ``not_approved``), and call ``decided``, which runs or
        refuses the tool call; if the caller was being asked about it, ask them the next question.

        Args:
            by: caller, operator (the HTTP service) or time.
            reason: for the model, where the decision is no.
        """
        del self._pending[pending.key]
        note = self._control.timeline.note(
            now, "approved" if yes else "not_approved", "info", name=pending.name, by=by
        )
        outputs: list[Output] = [note, *pending.decided(yes, by, "" if yes else reason, now)]
        if pending in self._callers:
            asked = self._callers[0] is pending
            self._callers.remove(pending)
            if asked and self._callers:
                outputs += self._ask_caller(now)
        return outputs


RESPOND_SECONDS = 1.0
"""How long the server has to begin a response by itself after an MCP call or an approval (s)."""

MAX_REMEMBERED = 256
"""MCP items that are not handled twice; the server reports each in several events."""

_CALL_ENDS = ("response.mcp_call.completed", "response.mcp_call.failed")


class McpWatch:
    """Watches the MCP tools that the server itself calls: answers its approval requests, requests
    the response that it does not begin by itself after an MCP call, and records each call."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        SessionClosed,
        ResponseCreated,
        SpeechStarted,
        ResponseDone,
        OtherEvent,
    )

    def __init__(self, control: ConversationControl, approvals: Approvals) -> None:
        self._control = control
        self._approvals = approvals
        self._seen: BoundedDict[str, None] = BoundedDict(MAX_REMEMBERED)
        """Ids of items that were handled, oldest first."""
        self._requests: set[str] = set()
        """Keys of this session's requests for approval that are still to be decided."""
        self._approved: dict[str, str] = {}
        """Who approved of it, by request; until the call that was asked about is over."""
        self._answered = 0
        self.deadline: float | None = None
        """When the response that is due is requested (s); None where none is due."""

    def on(self, input: Input, now: float) -> list[Output]:
        """Handle an event of the session that is about MCP. If a response begins that answers what
        was said, or the caller speaks, this rule will request no response (:attr:`deadline` becomes
        None). So it is when the session is closed, which also drops its requests for approval."""
        if not isinstance(input, ServerEventReceived):
            self.on_session_over()
            return []
        match input.event:
            case ResponseCreated(response_id) if self._control.responses.answers_turn(response_id):
                self.deadline = None  # a phrase of ours says nothing about the call
            case SpeechStarted():
                self.deadline = None
            case ResponseDone() as event:
                return self._on_response_done(event, now)
            case OtherEvent() as event:
                return self._on_other_event(event, now)
        return []

    def on_session_over(self) -> None:
        """Forget the session's items and drop its requests for approval: the caller is not asked
        about them any more, and the decision of a service that was asked is ignored. This rule
        requests no response that the session owes; whoever replaces the session does
        (``Conversation.response_due``)."""
        self.deadline = None
        self._approvals.withdraw(self._requests)
        self._requests.clear()
        self._approved.clear()
        self._seen.clear()

    @property
    def owes_response(self) -> bool:
        """Whether the server owes a response to an MCP call or an approval, also to one that is
        still to be decided."""
        return bool(self._requests) or self.deadline is not None

    def tick(self, now: float) -> list[Output]:
        """Request the response that has not come within ``RESPOND_SECONDS`` after an MCP call or an
        approval; nothing if one that answers what was said runs or is requested."""
        if self.deadline is None or now < self.deadline:
            return []
        self.deadline = None
        return (
            []
            if self._control.responses.answering
            else self._control.request_response(CreateResponse(), now)
        )

    def _on_response_done(self, event: ResponseDone, now: float) -> list[Output]:
        """Handle the items of a ``response.done``. After a completed response whose last item is an
        MCP call, the server has ``RESPOND_SECONDS`` to begin another one; then it is requested."""
        outputs = [output for item in event.output for output in self._on_item(item, now)]
        last = event.output[-1].get("type") if event.output else None
        if last == "mcp_call" and event.status == "completed":
            self.deadline = now + RESPOND_SECONDS
        return outputs

    def _on_other_event(self, event: OtherEvent, now: float) -> list[Output]:
        """Handle an item that is done, and log ``mcp_list_tools.failed``. While an MCP call is in
        progress, this rule will request no response. When one ends while no response runs, the
        server has ``RESPOND_SECONDS`` to begin one; then it is requested."""
        if event.type in ("conversation.item.done", "response.output_item.done"):
            item = event.raw.get("item")
            if not isinstance(item, Mapping):
                return []
            return self._on_item(item_of(item), now)
        if event.type == "mcp_list_tools.failed":
            item_id = str(event.raw.get("item_id"))
            return [self._control.timeline.note(now, "mcp_list_failed", "warning", item_id=item_id)]
        if event.type == "response.mcp_call.in_progress":
            self.deadline = None
        elif event.type in _CALL_ENDS and self._control.responses.active is None:
            self.deadline = now + RESPOND_SECONDS
        return []

    def _on_item(self, item: Mapping[str, Any], now: float) -> list[Output]:
        """Handle an item that is done: log a list of tools, log and record an MCP call, or have an
        approval request decided; each item once, other items not at all."""
        kind, item_id = item.get("type"), str(item.get("id"))
        note = self._control.timeline.note
        if kind == "mcp_list_tools" and self._remember_item(item_id):
            tools = item.get("tools")
            count = len(tools) if isinstance(tools, list) else 0
            label = str(item.get("server_label"))
            return [note(now, "mcp_listed", "info", server=label, tools=count)]
        if kind == "mcp_call" and self._remember_item(item_id):
            name, failed = _name_of(item), item.get("error")
            outcome = "failed" if failed else "done"
            approved = self._approved.pop(str(item.get("approval_request_id") or ""), "")
            self._record_use(name, outcome, approved, now)
            why = {"why": failed.get("type")} if isinstance(failed, Mapping) else {}
            return [note(now, "mcp_call", "info", name=name, outcome=outcome, **why)]
        if kind == "mcp_approval_request" and self._remember_item(item_id):
            return self._on_approval_request(item, item_id, now)
        return []

    def _on_approval_request(
        self, item: Mapping[str, Any], item_id: str, now: float
    ) -> list[Output]:
        """Have :class:`Approvals` decide about an ``mcp_approval_request``, and send the decision
        as ``mcp_approval_response``. Where no rule applies it is refused."""
        name, arguments = _name_of(item), str(item.get("arguments") or "{}")
        key = self._control.call_ids.unique(item_id)

        def decided(yes: bool, by: str, reason: str, now: float) -> list[Output]:
            """Send the decision to the server, and expect its response within
            ``RESPOND_SECONDS``. A refusal is recorded as use of the tool."""
            self._requests.discard(key)
            self._answered += 1
            answer: dict[str, Any] = {
                "id": f"gw_approval_{self._answered}",
                "type": "mcp_approval_response",
                "approval_request_id": item_id,
                "approve": yes,
            }
            if yes:
                self._approved[item_id] = by
            else:
                answer["reason"] = reason
                self._record_use(name, "refused", f"refused: {by}", now)
            self.deadline = now + RESPOND_SECONDS
            return [Send(CreateItem(answer))]

        self._requests.add(key)
        asked = self._approvals.ask(key, name, arguments, decided, now, needed=True)
        return asked or []

    def _record_use(self, name: str, outcome: str, approval: str, now: float) -> None:
        """Append a use of an MCP tool to the record.

        Args:
            outcome: done, failed or refused.
            approval: who approved or refused it; "" where nobody was asked.
        """
        at_ms = round(self._control.timeline.ms(now), 1)
        self._control.timeline.record.actions.add_tool_use(
            ToolUse(at_ms, name, outcome, approval=approval)
        )

    def _remember_item(self, item_id: str) -> bool:
        """Remember an item, of the last ``MAX_REMEMBERED``; return whether it is new."""
        if item_id in self._seen:
            return False
        self._seen[item_id] = None
        return True


def _name_of(item: Mapping[str, Any]) -> str:
    """Return the name of an MCP tool as rules have it: label of its server, underscore, name."""
    return f"{item.get('server_label')}_{item.get('name')}"


def _arguments_of(arguments: str) -> Mapping[str, Any]:
    """Return the arguments (JSON text) as a mapping; an empty one where they are no JSON object."""
    try:
        given = json_of(arguments)
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Approval of tool calls: by rule, by the operator's application over HTTP, or by the caller.

The same for functions and for calls of MCP servers; who asks passes a callback for the decision.
The caller is asked in words and answers with key 1 or 2, one question at a time.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from gateway.call.conversation.control import ConversationControl
from gateway.call.inputs import ApprovalResult, Input, PlayoutDrained
from gateway.call.outputs import Output, RequestApproval
from gateway.call.plan import ApprovalRule

YES, NO = "1", "2"

QUESTION_SECONDS = 15.0
"""For the question itself to be said; the rule's time begins when it was heard."""

LATE = "nobody confirmed it in time"

Decided = Callable[[bool, str, str, float], list[Output]]
"""Takes yes or no, who decided, the reason for the model, and the time."""


@dataclass(slots=True)
class _Pending:
    key: str
    name: str
    rule: ApprovalRule
    given: Mapping[str, Any]
    decided: Decided
    deadline: float | None = None
    """None while another question is asked first."""


class Approvals:
    """Decides whether tools may be used, by the route's rules. Methods take the time (s)."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        ApprovalResult,
        PlayoutDrained,
    )

    def __init__(self, talk: ConversationControl) -> None:
        self._talk = talk
        self._pending: dict[str, _Pending] = {}
        self._callers: deque[_Pending] = deque()
        """What the caller is asked, the first of it now. Bounded by what asks."""

    @property
    def _rules(self) -> tuple[ApprovalRule, ...]:
        return self._talk.plan.approvals

    def rule_for(self, name: str, given: Mapping[str, Any], *, needed: bool) -> ApprovalRule | None:
        """The first rule that fits; without one, that it is refused where it is ``needed``."""
        for rule in self._rules:
            if fnmatchcase(name, rule.tool) and all(
                argument in given and pattern.search(_text(given[argument]))
                for argument, pattern in rule.when.items()
            ):
                return rule
        return ApprovalRule(name, "deny") if needed else None

    def ask(
        self,
        key: str,
        name: str,
        arguments: str,
        given: Mapping[str, Any],
        decided: Decided,
        now: float,
        *,
        needed: bool,
    ) -> list[Output] | None:
        """What to do for a decision; None where there is nothing to decide, and it is allowed.

        Args:
            key: of this use, for the answer.
            arguments: JSON text of ``given``.
            needed: without a rule that allows it, it is refused.
        """
        rule = self.rule_for(name, given, needed=needed)
        if rule is None:
            return None
        note = self._talk.timeline.note(now, "approval", "info", name=name, by=rule.policy)
        if rule.policy in ("allow", "deny"):
            yes = rule.policy == "allow"
            return [note, *decided(yes, "rule", "" if yes else "this may not be done", now)]
        pending = _Pending(key, name, rule, given, decided)
        self._pending[key] = pending
        if rule.policy == "ask_http":
            # What asks has the deadline; this one is for when it does not keep it.
            pending.deadline = now + rule.timeout + 1.0
            return [note, RequestApproval(key, name, arguments, self._rules.index(rule))]
        self._callers.append(pending)
        return [note, *(self._ask_caller(now) if len(self._callers) == 1 else [])]

    # ---- what happens

    def on(self, input: Input, now: float) -> list[Output]:
        """Take the operator's decision; or start the caller's time once the question was heard."""
        if isinstance(input, ApprovalResult):
            pending = self._pending.get(input.key)
            if pending is None:
                return []
            reason = input.reason or "the operator said no"
            return self._decide(pending, input.approve, "operator", reason, now)
        if isinstance(input, PlayoutDrained) and self._callers and self._talk.gate.idle:
            first = self._callers[0]
            first.deadline = now + first.rule.timeout
        return []

    def key(self, digit: str, now: float) -> list[Output]:
        """The caller pressed a key while they were asked."""
        if digit not in (YES, NO):
            return []
        yes = digit == YES
        return self._decide(self._callers[0], yes, "caller", "the caller said no", now)

    @property
    def wants_digits(self) -> bool:
        """Whether keys are answers now."""
        return bool(self._callers)

    def tick(self, now: float) -> list[Output]:
        """A time may be over."""
        outputs: list[Output] = []
        for one in list(self._pending.values()):
            if one.deadline is not None and now >= one.deadline:
                outputs += self._decide(one, False, "time", LATE, now)
        return outputs

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s)."""
        due = [one.deadline for one in self._pending.values() if one.deadline is not None]
        return min(due, default=None)

    def _ask_caller(self, now: float) -> list[Output]:
        first = self._callers[0]
        first.deadline = now + QUESTION_SECONDS + first.rule.timeout
        return self._talk.say(first.rule.prompt(first.name, first.given), now)

    def _decide(
        self, pending: _Pending, yes: bool, by: str, reason: str, now: float
    ) -> list[Output]:
        del self._pending[pending.key]
        note = self._talk.timeline.note(
            now, "approved" if yes else "not_approved", "info", name=pending.name, by=by
        )
        outputs: list[Output] = [note, *pending.decided(yes, by, "" if yes else reason, now)]
        if pending in self._callers:
            asked = self._callers[0] is pending
            self._callers.remove(pending)
            if asked and self._callers:
                outputs += self._ask_caller(now)
        return outputs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

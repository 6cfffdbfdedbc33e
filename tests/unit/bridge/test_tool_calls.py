# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions, approvals and content checks, as they leave a call and come back."""

from __future__ import annotations

from typing import Any, cast

from gateway.bridge.tool_calls import ToolCalls
from gateway.call import inputs, outputs
from gateway.call.plan import GuardrailPlan
from gateway.tools.functions import ToolRunner
from tests.support.call_fakes import Fed


class Runner:
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def run(self, *given: Any) -> None:
        """A function."""
        self.asked.append(given)

    ask = check = run


def test_a_function_is_asked_with_its_call_and_its_result_is_fed() -> None:
    fed, runner = Fed(), Runner()
    fed.record.route, fed.record.from_uri = "desk", "sip:a@x"
    calls = ToolCalls(fed.host, cast(ToolRunner, runner), (), lambda: {"from": "+49"})
    calls.executors[outputs.RunTool](outputs.RunTool("c1", "book", '{"n": 1}'))
    ((call, done),) = runner.asked
    assert (call.name, call.arguments, call.call, call.route) == (
        *("book", '{"n": 1}'),
        *("call-1", "desk"),
    )
    assert (call.caller, dict(call.variables)) == ("sip:a@x", {"from": "+49"})
    done("booked")
    assert fed.take() == [inputs.ToolDone("c1", "booked")]


def test_an_approval_and_a_content_check() -> None:
    fed, runner = Fed(), Runner()
    rule = GuardrailPlan("blue")
    calls = ToolCalls(fed.host, cast(ToolRunner, runner), (rule,), dict)
    calls.executors[outputs.RequestApproval](outputs.RequestApproval("k", "pay", "{}", 2))
    calls.executors[outputs.CheckContent](outputs.CheckContent("k2", 0, "agent", "words"))
    (question, approve), (asked_rule, _call, allow) = runner.asked
    assert (question.rule, asked_rule) == (2, rule)
    approve(True, "fine")
    allow(None, "late")
    assert fed.take() == [
        inputs.ApprovalResult("k", True, "fine"),
        inputs.ContentChecked("k2", None, "late"),
    ]


def test_without_a_runner_everything_is_answered_at_once() -> None:
    fed = Fed()
    calls = ToolCalls(fed.host, None, (), dict)
    calls.executors[outputs.RunTool](outputs.RunTool("c1", "book", "{}"))
    calls.executors[outputs.RequestApproval](outputs.RequestApproval("k", "pay", "{}", 0))
    calls.executors[outputs.CheckContent](outputs.CheckContent("k2", 0, "agent", "words"))
    done, approval, checked = fed.take()
    assert isinstance(done, inputs.ToolDone)
    assert "error" in done.output
    assert approval == inputs.ApprovalResult("k", False, "nobody can be asked")
    assert checked == inputs.ContentChecked("k2", None, "nobody can be asked")

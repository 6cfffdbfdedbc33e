# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the functions, approvals and content checks of one call, by a tool runner outside of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.bridge.machine_driver import CallHost
from gateway.call import inputs, outputs
from gateway.call.plan import GuardrailPlan
from gateway.call.tools.commands import CommandsFromTools
from gateway.tools.functions import Question, ToolCall, ToolRunner


class ToolCalls:
    """Asks ``runner`` for what the machine wants, and feeds the results.

    Args:
        runner: None where nothing runs functions: each is answered with an error.
        guardrails: the route's; :class:`outputs.CheckContent` counts them from 0.
        variables: the call's own, as they are when a function is called.
    """

    def __init__(
        self,
        host: CallHost,
        runner: ToolRunner | None,
        guardrails: Sequence[GuardrailPlan],
        variables: Callable[[], Mapping[str, str]],
    ) -> None:
        self._host = host
        self._runner = runner
        self._guardrails = guardrails
        self._variables = variables
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.RunTool: self._run,
            outputs.RequestApproval: self._ask,
            outputs.CheckContent: self._check,
        }

    def _run(self, output: outputs.RunTool) -> None:
        def done(text: str) -> None:
            self._host.feed(inputs.ToolDone(output.call_id, text))

        if self._runner is None:
            done('{"error": "nothing runs this function"}')
        else:
            self._runner.run(self._call(output.call_id, output.name, output.arguments), done)

    def _ask(self, output: outputs.RequestApproval) -> None:
        def done(approve: bool, reason: str) -> None:
            self._host.feed(inputs.ApprovalResult(output.key, approve, reason))

        if self._runner is None:
            done(False, "nobody can be asked")
        else:
            call = self._call(output.key, output.name, output.arguments)
            self._runner.ask(Question(call, output.rule), done)

    def _check(self, output: outputs.CheckContent) -> None:
        def done(allow: bool | None, reason: str) -> None:
            self._host.feed(inputs.ContentChecked(output.key, allow, reason))

        if self._runner is None:
            done(None, "nobody can be asked")
        else:
            call = self._call(output.key, output.who, output.text)
            self._runner.check(self._guardrails[output.rule], call, done)

    def _call(self, call_id: str, name: str, arguments: str) -> ToolCall:
        record = self._host.record
        return ToolCall(
            call_id,
            name,
            arguments,
            call=record.call_id,
            route=record.route,
            caller=record.from_uri,
            called=record.to_uri,
            variables=self._variables(),
            control=CommandsFromTools(lambda command: self._host.feed(inputs.ToolRequest(command))),
        )

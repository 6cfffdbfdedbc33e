# SPDX-License-Identifier: GPL-2.0-or-later
"""A guardrail that fails on our side denies: ``on_timeout`` is about others' failures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.call.plan import GuardrailPlan
from gateway.tasks import TaskSet
from gateway.tools import ToolCall, executor, http
from gateway.tools.executor import ToolExecutor


def test_what_raises_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> Any:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(http, "ask_content", broken)
    made, said = ToolExecutor.__new__(ToolExecutor), list[tuple[bool | None, str]]()
    made.http = None  # type: ignore[assignment]
    call = ToolCall("", "agent", "words", call="c1")
    with capture_logs() as logs:
        asyncio.run(made._check(GuardrailPlan("r"), call, lambda *answer: said.append(answer)))
    assert [allowed for allowed, _why in said] == [False]
    assert [line["event"] for line in logs] == ["guardrail.failed"]


def test_too_much_at_once_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "MAX_RUNNING", 0)
    made, said = ToolExecutor.__new__(ToolExecutor), list[tuple[bool | None, str]]()
    made._tasks = TaskSet()
    call = ToolCall("", "agent", "words", call="c1")
    made.check(GuardrailPlan("r"), call, lambda *answer: said.append(answer))
    assert [allowed for allowed, _why in said] == [False]

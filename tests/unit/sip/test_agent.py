# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of the user agent ends all calls, and the library, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.sip import SipSettings
from gateway.sip import agent as agent_module
from gateway.sip.agent import AgentError, UserAgent
from gateway.sip.leg import IgnoringHandler, LegEnd
from gateway.sip.stack import Stack


class Ends(IgnoringHandler):
    def __init__(self) -> None:
        self.ends: list[LegEnd] = []

    def on_ended(self, end: LegEnd) -> None:
        self.ends.append(end)


def an_agent() -> UserAgent:
    return UserAgent(
        SipSettings(listen=()),
        on_invite=lambda _leg: None,
        on_refused=lambda _refused: None,
        on_caller_audio=lambda _ids: None,
    )


def test_a_call_that_waits_for_a_name_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_host: str) -> bool:
        await asyncio.Event().wait()
        return False

    handler = Ends()

    async def run() -> None:
        agent = an_agent()
        monkeypatch.setattr(agent._names, "resolve", never)
        agent.dial("sip:100@pbx.invalid", handler, None, [Codec.PCMU])
        await asyncio.sleep(0)
        await agent.stop()

    asyncio.run(run())
    assert [(end.code, end.local) for end in handler.ends] == [(487, True)]


def test_a_start_that_takes_too_long_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "START_SECONDS", 0.01)
    monkeypatch.setattr(agent_module, "STOP_SECONDS", 0.01)
    go_on, closed = threading.Event(), list[bool]()

    async def run() -> UserAgent:
        agent = an_agent()
        monkeypatch.setattr(agent, "_open", lambda: go_on.wait(30))
        monkeypatch.setattr(agent._thread, "_poll", lambda _ms: time.sleep(0.001))
        monkeypatch.setattr(agent._thread, "_housekeeping", lambda: None)
        monkeypatch.setattr(agent, "_close", lambda: closed.append(True))
        with pytest.raises(AgentError, match="pjsip has not started within"):
            await agent.start()
        return agent

    agent = asyncio.run(run())
    go_on.set()
    assert agent._thread.join(10)
    assert closed, "what the library has opened meanwhile is closed"


def test_an_error_does_not_leave_the_library_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise KeyError("slot")

    destroyed: list[bool] = []
    stack: Any = SimpleNamespace(
        _endpoint=SimpleNamespace(hangupAllCalls=fails), _destroy=lambda: destroyed.append(True)
    )
    with pytest.raises(KeyError, match="slot"):
        Stack.close(stack)
    assert destroyed

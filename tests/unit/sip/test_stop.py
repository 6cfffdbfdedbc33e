# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of the user agent ends all calls, and the library, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.sip.agent import UserAgent
from gateway.sip.leg import IgnoringHandler, LegEnd
from gateway.sip.settings import SipSettings
from gateway.sip.stack import Stack


class Ends(IgnoringHandler):
    def __init__(self) -> None:
        self.ends: list[LegEnd] = []

    def on_ended(self, end: LegEnd) -> None:
        self.ends.append(end)


def test_a_call_that_waits_for_a_name_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_host: str) -> bool:
        await asyncio.Event().wait()
        return False

    handler = Ends()

    async def run() -> None:
        agent = UserAgent(
            SipSettings(listen=()),
            on_invite=lambda _leg: None,
            on_refused=lambda _refused: None,
            on_caller_audio=lambda _ids: None,
        )
        monkeypatch.setattr(agent._names, "resolve", never)
        agent.dial("sip:100@pbx.invalid", handler, None, [Codec.PCMU])
        await asyncio.sleep(0)
        await agent.stop()

    asyncio.run(run())
    assert [(end.code, end.local) for end in handler.ends] == [(487, True)]


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

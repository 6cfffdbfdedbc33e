# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sessions that interpret between joined legs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.bridge import interpreter as module
from gateway.bridge.interpreter import Interpreter
from gateway.bridge.sessions import ServerWatch, SessionPlan
from gateway.call import outputs
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import Verdict
from gateway.realtime.events import ServerError
from gateway.realtime.session import SessionClosed
from tests.support.call_fakes import FakeServer, Fed, settle

SERVER = Endpoint("ws://first/v1/realtime")


class Watch(ServerWatch):
    """Counts what is met at servers."""

    def __init__(self) -> None:
        self.met_there: list[str] = []

    def closed(self, endpoint: Endpoint, closed: SessionClosed) -> None:
        self.met_there.append(f"closed {endpoint.url} {closed.code}")

    def error(self, endpoint: Endpoint, _verdict: Verdict) -> None:
        self.met_there.append(f"error {endpoint.url}")


async def test_errors_and_ends_of_its_sessions_count_at_their_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, fed, watch = FakeServer(monkeypatch), Fed(), Watch()

    async def opened(*given: Any, **more: Any) -> Any:
        return await server._open_with_retry(*given, **{"late": None, **more})

    monkeypatch.setattr(module, "open_with_retry", opened)
    plan = SessionPlan(SERVER, {}, 1.0, 100, watch=watch)
    sessions = SimpleNamespace(open=[], plan=plan, tap_of=lambda _name: None)
    legs = SimpleNamespace(b_leg_audio=SimpleNamespace(), hear_fully=lambda _listener: None)
    pump = SimpleNamespace(add=lambda *_given: None, remove=lambda _audio: None)
    interpreter = Interpreter(
        fed.host,
        cast(Any, sessions),
        cast(Any, legs),
        cast(Any, SimpleNamespace()),
        cast(Any, pump),
        lambda _send: None,
    )
    interpreter.executors[outputs.Interpret](outputs.Interpret({"a": 1}, {"b": 1}))
    await settle()
    first, second = server.sessions
    first.says(ServerError("server_error", "it failed"))
    second.lost()
    assert watch.met_there == [f"error {SERVER.url}", f"closed {SERVER.url} 1006"]
    assert fed.faults == []
    interpreter.end()
    await interpreter.wait_closed()

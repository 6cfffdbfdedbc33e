# SPDX-License-Identifier: GPL-2.0-or-later
"""The sessions of one call: opened, replaced, lost, closed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.audio import Codec
from gateway.bridge.route_data import DataLookup, Prepared
from gateway.bridge.sessions import ServerWatch, SessionPlan, Sessions
from gateway.bridge.sideband import Sideband
from gateway.call import inputs, outputs
from gateway.call.plan import CallPlan
from gateway.call.plan import Prepared as PreparedPlan
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import SetupFailed
from gateway.realtime.events import (
    CancelResponse,
    OtherEvent,
    Relayed,
    RelayedUpdate,
    ResponseDone,
)
from tests.support.call_fakes import FakeServer, Fed, settle
from tests.support.harness import eventually

FIRST, OTHER = Endpoint("ws://first/v1/realtime"), Endpoint("ws://other/v1/realtime")
DONE = ResponseDone("r1", "completed", None, None, None, (), None)


class Watch(ServerWatch):
    """Writes down what is met at a server."""

    def __init__(self, met: list[tuple[str, str | None]]) -> None:
        self._met = met

    def met(self, endpoint: Endpoint, failure: SetupFailed | None, _seconds: float) -> None:
        self._met.append((endpoint.url, None if failure is None else str(failure)))


class Call:
    """The sessions of a call, with a fake server."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        preparation: Any = None,
        sideband: Sideband | None = None,
    ) -> None:
        self.server = FakeServer(monkeypatch)
        self.fed = Fed()
        self.met: list[tuple[str, str | None]] = []
        plan = SessionPlan(
            FIRST,
            {},
            1.0,
            100,
            preparation,
            watch=Watch(self.met),
            others=(OTHER,),
        )
        self.sessions = Sessions(self.fed.host, plan, sideband)

    def do(self, output: outputs.Output) -> None:
        """As the machine says."""
        self.sessions.executors[type(output)](output)

    async def up(self) -> None:
        """Open the first session."""
        self.do(outputs.OpenSession())
        await settle()
        self.fed.take()


async def test_a_session_that_is_up_is_told_before_its_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call(monkeypatch)
    call.server.early = [OtherEvent("one", {}), OtherEvent("two", {})]
    call.do(outputs.OpenSession())
    await settle()
    assert call.fed.take() == [
        inputs.SessionReady("sess_1"),
        inputs.ServerEventReceived(OtherEvent("one", {})),
        inputs.ServerEventReceived(OtherEvent("two", {})),
    ]
    assert call.sessions.id == "sess_1"
    assert call.met == [(FIRST.url, None)]


async def test_a_session_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(monkeypatch)
    call.server.fails("busy", retry_after=3.0)
    call.do(outputs.OpenSession(server=1))
    await settle()
    (failed,) = call.fed.take()
    assert isinstance(failed, inputs.SessionFailed)
    assert (failed.detail, failed.retry_after) == ("busy", 3.0)
    assert call.server.asked == [OTHER.url]
    assert call.met[0][1] is not None


async def test_audio_and_commands_go_to_the_session_that_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call(monkeypatch)
    call.sessions.append(b"before")
    await call.up()
    call.sessions.append(b"now")
    call.do(outputs.Send(CancelResponse("r1")))
    call.do(outputs.CloseSession("over"))
    call.sessions.append(b"after")
    await settle()
    (session,) = call.server.sessions
    assert (session.audio, session.sent) == (b"now", [CancelResponse("r1")])
    assert session.ended == (1000, "over")
    assert call.fed.take() == [inputs.SessionClosed(1000, "over")]


async def test_a_standby_takes_the_place_of_the_active_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call(monkeypatch)
    await call.up()
    call.do(outputs.OpenSession(standby=True))
    await settle()
    assert call.fed.take() == [inputs.StandbyReady("sess_2")]
    assert call.sessions.id == "sess_1"
    call.sessions.append(b"old")
    call.do(outputs.PromoteStandby())
    call.sessions.append(b"new")
    await settle()
    old, new = call.server.sessions
    assert (old.audio, new.audio) == (b"old", b"new")
    assert old.ended == (1000, "handed over")
    assert call.sessions.id == "sess_2"
    assert call.fed.take() == [], "the end of the old one is nobody's business"


async def test_what_a_replaced_session_says_is_only_paid_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call(monkeypatch)
    paid: list[Any] = []
    prices: list[Any] = []
    account = SimpleNamespace(
        use=lambda *server: prices.append(server),
        take=paid.append,
        as_json=lambda: {"priced": len(paid)},
    )
    call.sessions.watch(cast(Any, account), None)
    await call.up()
    call.do(outputs.OpenSession(standby=True))
    await settle()
    call.do(outputs.PromoteStandby())
    call.fed.take()
    old, new = call.server.sessions
    old.says(DONE)
    assert (call.fed.take(), paid) == ([], [DONE])
    new.says(DONE)
    assert call.fed.take() == [inputs.ServerEventReceived(DONE)]
    assert call.fed.record.cost == {"priced": 2}
    assert len(prices) == 2, "each at the prices of its own server"


@pytest.mark.parametrize("when", ["set-up", "up"])
async def test_a_standby_that_is_lost_costs_the_call_nothing(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    call = Call(monkeypatch)
    await call.up()
    if when == "set-up":
        call.server.fails()
    call.do(outputs.OpenSession(standby=True))
    await settle()
    if when == "up":
        call.server.sessions[1].lost()
    assert [type(one) for one in call.fed.take()][-1] is inputs.StandbyFailed
    call.do(outputs.PromoteStandby())
    assert call.sessions.id == "sess_1"


@pytest.mark.parametrize("up", [True, False])
async def test_the_standby_of_a_session_that_is_lost_is_closed_with_it(
    monkeypatch: pytest.MonkeyPatch, *, up: bool
) -> None:
    """Nobody else would: the next standby takes its place."""
    call = Call(monkeypatch)
    await call.up()
    if not up:
        call.server.open.clear()
    call.do(outputs.OpenSession(standby=True))
    await settle()
    call.server.sessions[0].lost()
    call.server.open.set()
    call.fed.take()
    call.do(outputs.OpenSession())
    await settle()
    assert [one.closed for one in call.server.sessions] == [*([True] if up else []), True, False]
    assert [type(one) for one in call.fed.take()] == [inputs.SessionReady]
    assert len(call.sessions.open) == 1


async def test_another_attempt_closes_the_session_before(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(monkeypatch)
    await call.up()
    call.do(outputs.OpenSession(server=1))
    await settle()
    assert call.server.asked == [FIRST.url, OTHER.url]
    assert call.server.sessions[0].ended == (1000, "replaced")
    assert call.fed.take() == [inputs.SessionReady("sess_2")]


async def test_audio_that_a_lost_session_dropped_is_in_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call(monkeypatch)
    await call.up()
    call.server.sessions[0].counters.audio_dropped = 3
    call.server.sessions[0].lost()
    call.do(outputs.OpenSession(server=1))
    await settle()
    call.server.sessions[1].counters.audio_dropped = 2
    call.sessions.finish()
    assert call.fed.record.media.dropped_append_frames == 5


async def test_an_application_is_told_of_the_session_that_took_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sideband = Sideband(lambda: None)
    call = Call(monkeypatch, sideband=sideband)
    await call.up()
    call.do(outputs.OpenSession(standby=True))
    await settle()
    call.do(outputs.PromoteStandby())
    greeting = await sideband.attach().next()
    assert greeting is not None
    assert json.loads(greeting)["session"]["id"] == "sess_2"


async def test_an_event_of_an_application_is_not_sent_to_a_session_that_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sideband = Sideband(lambda: None)
    call = Call(monkeypatch, sideband=sideband)
    await call.up()
    call.server.sessions[0].lost()
    assert sideband.send(Relayed({"type": "response.create"})) == ""
    assert call.server.sessions[0].sent == []


@pytest.mark.parametrize("live", [False, True])
async def test_settings_of_an_application_reach_a_standby_and_a_session_being_opened(
    monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    def update(**session: Any) -> Relayed | RelayedUpdate:
        return (
            Relayed({"type": "session.update", "session": session})
            if live
            else RelayedUpdate(session)
        )

    sideband = Sideband(lambda: None)
    call = Call(monkeypatch, sideband=sideband)
    if live:
        endpoint = replace(FIRST, model="gpt-live-1")
        assert endpoint.live
        call.sessions.plan = replace(call.sessions.plan, endpoint=endpoint)
    await call.up()
    call.do(outputs.OpenSession(standby=True))
    await settle()
    sideband.send(update(instructions="new"))
    call.do(outputs.PromoteStandby())
    old, standby = call.server.sessions
    assert old.sent == standby.sent == [update(instructions="new")]
    standby.lost()
    call.server.open.clear()
    call.do(outputs.OpenSession())
    await eventually(lambda: len(call.server.asked) == 3, "the set-up")
    sideband.send(update(instructions="newer", tools=[]))
    sideband.send(update(instructions="newest"))
    call.server.open.set()
    await settle()
    assert call.server.sessions[2].sent == [update(instructions="newest", tools=[])]


async def test_a_session_that_comes_when_the_call_is_over_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = Call(monkeypatch)
    call.server.open.clear()
    call.do(outputs.OpenSession())
    await settle()
    call.do(outputs.CloseSession())
    call.fed.over = True
    call.sessions.finish()
    call.server.open.set()
    await call.sessions.wait_closed()
    assert call.fed.take() == []
    assert [session.ended for session in call.server.sessions] in ([], [(1000, "over")])


async def test_a_defect_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(monkeypatch)
    await call.up()
    session = call.server.sessions[0]
    account = SimpleNamespace(use=lambda *_server: None, take=lambda _event: 1 / 0)
    call.sessions.watch(cast(Any, account), None)
    session.says(DONE)
    assert [type(error) for error in call.fed.faults] == [ZeroDivisionError]


async def test_settings_wait_for_the_data_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = CallPlan("r", Codec.PCMU)

    class Lookup:
        def __init__(self) -> None:
            self.started: list[str] = []

        def start(self, call_id: str) -> None:
            self.started.append(call_id)

        async def ready(self) -> Prepared:
            return Prepared(plan, {"instructions": "Hello Ada"}, 12)

        def stop(self) -> None: ...

    lookup = Lookup()
    call = Call(monkeypatch, cast(DataLookup, lookup))
    call.do(outputs.OpenSession())
    await settle()
    assert lookup.started == ["call-1"]
    assert call.fed.take() == [PreparedPlan(plan, 12), inputs.SessionReady("sess_1")]
    settings: Mapping[str, Any] = call.sessions.plan.settings
    assert settings == {"instructions": "Hello Ada"}

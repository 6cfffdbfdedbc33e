# SPDX-License-Identifier: GPL-2.0-or-later
"""A conversation that outlives its session, or leaves for somebody else: failover, hand-over and
transfer of a whole call."""

from __future__ import annotations

import pytest

from gateway.call.plan import FallbackStep, ServerPlan, ToolsPlan
from gateway.call.tools.commands import Destination, OperatorTransfer, TransferPlan
from gateway.realtime.connection import Endpoint
from gateway.realtime.events import CreateItem, InputCommitted, InputTranscribed
from gateway.sip.leg import LegEnd, ReferProgress
from tests.support.call_fakes import FakeCall, FakeServer, settle
from tests.support.harness import eventually

OTHER = Endpoint("ws://other/v1/realtime")
STEPS = (FallbackStep("reconnect", 0.05), FallbackStep("server", 5.0, server=1))
DESK = TransferPlan((Destination("front desk", "sip:1002@pbx.example"),))


async def asked(call: FakeCall, question: str) -> None:
    """The caller says something."""
    call.session.says(InputCommitted("u1"))
    call.session.says(InputTranscribed("u1", question))
    await settle()


async def test_failover_to_another_server_which_is_told_the_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = FakeCall(monkeypatch, OTHER, server=ServerPlan(fallback=STEPS))
    await call.up()
    await asked(call, "What is open?")
    call.server.fails(only_at="ws://first/v1/realtime")
    call.session.lost(1011)
    await settle()
    assert call.server.asked[1] == "ws://first/v1/realtime"
    await eventually(lambda: len(call.server.sessions) == 2, "another session")
    await settle()
    assert call.server.asked[-1] == OTHER.url
    told = [one for one in call.server.sessions[1].sent if isinstance(one, CreateItem)]
    assert "What is open?" in str(told)
    assert call.controller.talking
    (failover,) = call.record.session.failovers
    assert (failover.steps, failover.outcome) == (["reconnect", "server"], "recovered")
    assert call.leg.verbs == ["ring", "answer"]


async def test_no_step_left_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    call = FakeCall(monkeypatch, server=ServerPlan(fallback=()))
    await call.up()
    call.session.lost(1011)
    await settle()
    assert call.leg.verbs[-1] == "hang_up"
    call.leg.handler.on_ended(LegEnd(200, "OK", "", "", True))
    assert call.ending[1] == "session_lost"


async def test_hand_over_before_the_server_ends_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = FakeCall(monkeypatch, server=ServerPlan(handover_before_expiry=60.0))
    left = iter((60.02, 3600.0))
    seconds_left = property(lambda _server: next(left), lambda *_: None)
    monkeypatch.setattr(FakeServer, "seconds_left", seconds_left, raising=False)
    await call.up()
    await eventually(lambda: call.session.ended is not None, "the end of the first session")
    await settle()
    assert call.session.ended == (1000, "handed over")
    assert len(call.server.sessions) == 2
    assert call.record.session.handovers == 1
    assert call.controller.talking
    assert call.leg.verbs == ["ring", "answer"]


@pytest.mark.parametrize("code", [200, 486])
async def test_a_transfer_and_its_outcome(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    call = FakeCall(monkeypatch, tools=ToolsPlan(DESK))
    await call.up()
    call.controller.act(OperatorTransfer("front desk"))
    await settle()
    ((_verb, target, tell),) = [one for one in call.leg.done if one[0] == "refer"]
    assert target == "sip:1002@pbx.example"
    tell(ReferProgress(100, "Trying", False))
    tell(ReferProgress(code, "outcome", True))
    await settle()
    (attempt,) = call.record.actions.transfers
    if code == 200:
        assert call.leg.verbs[-1] == "hang_up"
        call.leg.handler.on_ended(LegEnd(200, "OK", "", "", True))
        assert call.ending[1] == "transferred"
    else:
        assert call.controller.talking, "the caller comes back to the model, which is told"
        assert call.session.sent
        assert attempt.sip_code == 486

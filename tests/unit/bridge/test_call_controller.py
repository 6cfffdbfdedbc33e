# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole call with its state machine; leg and server are stand-ins."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from gateway.bridge import call_controller as controller_module
from gateway.sip.leg import LegEnd
from tests.support.call_fakes import FakeCall, settle
from tests.support.harness import eventually

BYE = LegEnd(200, "OK", "BYE", "Q.850;cause=16", False)
OUR_BYE = LegEnd(200, "OK", "", "", True)


async def test_a_call_from_invite_to_bye(monkeypatch: pytest.MonkeyPatch) -> None:
    call = FakeCall(monkeypatch)
    with capture_logs() as logs:
        await call.up()
        assert call.leg.verbs[:2] == ["ring", "answer"]
        assert call.controller.talking
        call.leg.handler.on_ended(BYE)
        await settle()
    assert call.finished == [call.controller]
    assert call.ending == ("caller", "remote_hangup")
    assert call.session.ended[0] == 1000
    (summary,) = [line for line in logs if line["event"] == "call.summary"]
    assert summary["session"] == "sess_1"
    await call.controller.wait_closed()


async def test_a_server_that_gives_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    call = FakeCall(monkeypatch)
    call.server.fails("wrong key")
    call.controller.start()
    await settle()
    assert call.leg.verbs == ["ring", "refuse"]
    call.leg.handler.on_ended(LegEnd(503, "", "", "", True))
    assert call.ending == ("network", "session_unreachable")
    assert call.finished


async def test_a_call_that_is_shut_down_says_bye(monkeypatch: pytest.MonkeyPatch) -> None:
    call = FakeCall(monkeypatch)
    await call.up()
    call.controller.shut_down()
    assert call.leg.verbs[-1] == "hang_up"
    assert not call.finished, "the BYE is not answered yet"
    call.leg.handler.on_ended(OUR_BYE)
    assert call.finished
    assert call.ending[1] == "shutdown"


async def test_a_defect_ends_the_call_by_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    call = FakeCall(monkeypatch)
    await call.up()
    with capture_logs() as logs:
        call.leg.handler.on_quality(None)
        await settle()
        assert call.leg.verbs[-1] == "hang_up"
        call.leg.handler.on_ended(OUR_BYE)
    assert call.ending == ("gateway", "internal_error")
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["event"] == "call.internal_error"
    assert call.finished


async def test_a_defect_in_the_start_ends_the_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    call = FakeCall(monkeypatch)

    def broken() -> None:
        raise ZeroDivisionError

    call.controller.start(broken)
    assert call.finished
    assert call.ending == ("gateway", "internal_error")


async def test_a_call_whose_leg_never_ends_after_a_defect_is_over_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller_module, "TEARDOWN_SECONDS", 0.01)
    call = FakeCall(monkeypatch)
    await call.up()
    call.controller.on_fault(ZeroDivisionError())
    await eventually(lambda: bool(call.finished), "its end")
    assert call.leg.verbs[-1] in ("hang_up", "refuse")


async def test_a_call_that_is_given_up_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    call = FakeCall(monkeypatch)
    await call.up()
    call.controller.give_up("no beat for 5 s")
    assert call.finished == [call.controller]
    assert call.record.ending is not None
    assert call.record.ending.detail == "no beat for 5 s"
    call.controller.give_up("again")
    call.leg.handler.on_ended(BYE)
    assert len(call.finished) == 1
    await call.controller.wait_closed()
    assert call.session.ended is not None


async def test_the_place_is_freed_whatever_fails_in_completing_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = FakeCall(monkeypatch)
    await call.up()
    monkeypatch.setattr(call.controller._legs, "finish", None)
    call.leg.handler.on_ended(BYE)
    assert call.finished == [call.controller]

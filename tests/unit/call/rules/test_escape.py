# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller who asks for a human, by a key or a phrase: without the model, and whoever answers."""

from __future__ import annotations

from dataclasses import replace

from gateway.call import inputs
from gateway.call.plan import EscapePlan, FallbackStep, ServerPlan, ToolsPlan
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import Destination, HoldPlan, OperatorHold, TransferPlan
from tests.support.call_scene import UNREACHABLE, Scene, closed, created, key
from tests.unit.call.test_call_control import ESCAPING, PLAN, results, wants
from tests.unit.call.test_live_sessions import GREETED, live


def test_a_caller_on_hold_asks_for_a_human_whom_nobody_can_call() -> None:
    scene = Scene(replace(PLAN, escape=EscapePlan(key="0", to=("nobody",)))).up()
    scene.do(inputs.ToolRequest(OperatorHold(True)))
    seen = scene.do(key("0"))
    logged = [note.event for note in scene.notes if note.event == "escape_failed"]
    assert len(logged) == 2, "the destination that cannot be called, and that nobody answered"
    assert "sound" in seen, "the music stops"
    assert "resume" in seen
    assert [mark["event"] for mark in scene.record.timeline].count("hold_ended") == 1


def test_a_hold_of_the_model_is_answered_once_where_the_caller_asks_for_a_human() -> None:
    scene = Scene(replace(PLAN, escape=EscapePlan(key="0", to=("nobody",)))).up()
    scene.at(1.0, created("r1"), wants("hold", seconds=10))
    assert "sound" in scene.do(key("0"))
    scene.at(30.0)
    assert results(scene) == [{"status": "ended", "reason": "the caller asked for a human"}]


def test_a_session_that_is_given_up_for_a_human_may_fail_behind_it() -> None:
    scene = Scene(replace(ESCAPING, server=ServerPlan(fallback=(FallbackStep("reconnect", 9.0),))))
    scene.up()
    scene.at(2.0, closed(1006))
    assert "second sip:2@pbx" in scene.at(3.0, key("0"))
    assert scene.do(UNREACHABLE) == []
    assert scene.state is State.TALKING


def test_a_caller_who_asked_for_a_human_on_hold_gets_no_other_session() -> None:
    tools = ToolsPlan(
        hold=HoldPlan(release_after=5.0),
        transfer=TransferPlan((Destination("anna", "sip:2@pbx", "bridge"),)),
    )
    scene = live(replace(GREETED, tools=tools, escape=EscapePlan(key="0", to=("anna",))))
    scene.at(2.0, inputs.HoldChanged(True))
    assert "close 1000 on hold" in scene.at(7.0)
    assert "second sip:2@pbx" in scene.at(8.0, key("0"))
    assert "open" not in scene.at(9.0, inputs.HoldChanged(False))

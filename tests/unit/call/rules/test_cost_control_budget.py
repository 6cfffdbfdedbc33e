# SPDX-License-Identifier: GPL-2.0-or-later
"""A call whose money is nearly spent, and spent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import BudgetPlan, CallPlan, FunctionPlan
from gateway.call.tools.commands import Destination, InterpreterPlan, TransferPlan
from gateway.realtime.events import UpdateSession
from tests.support.call_scene import (
    BYE,
    OUR_END,
    SPEECH,
    Scene,
    audio,
    audio_done,
    created,
    done,
    key,
)

WARNING = inputs.BudgetThreshold(False, "call: 0.41 of 0.50")
SPENT = inputs.BudgetThreshold(True, "call: 0.52 of 0.50")
PLAN = CallPlan("r", Codec.PCMU, budget=BudgetPlan("Wrap up.", goodbye="Time is up."))
GOODBYE = ["session.update", "create ['instructions', 'tools']"]


def _scene(plan: CallPlan = PLAN) -> Scene:
    return Scene(plan).up()


def test_the_model_is_told_to_come_to_an_end_and_goes_on_as_it_was() -> None:
    scene = _scene()
    assert scene.do(WARNING) == ["item Wrap up."]
    assert "budget_warning" in scene.events
    assert scene.state.name == "TALKING"


def test_it_is_asked_to_say_so_where_the_route_wants_that() -> None:
    scene = _scene(replace(PLAN, budget=replace(PLAN.budget, warning_response=True)))
    assert scene.do(WARNING) == ["item Wrap up.", "create"]


def test_at_the_limit_there_is_a_goodbye_that_nobody_interrupts_and_then_the_end() -> None:
    scene = _scene()
    scene.do(created("r1"), audio("r1", "i1", 1000), audio_done("r1", "i1"), done("r1"))
    assert scene.do(SPENT) == GOODBYE
    assert scene.requests[-1].response == {"instructions": "Say exactly: Time is up.", "tools": []}
    update = next(one for one in scene.sent if isinstance(one, UpdateSession))
    assert update.session == {"audio": {"input": {"turn_detection": None}}}
    assert scene.do(SPENT, WARNING, key("1")) == []
    assert scene.do(created("r2"), audio("r2", "i2", 2000), audio_done("r2", "i2"), done("r2")) == [
        "play 2000"
    ]
    scene.listen(2900)
    assert scene.state.name == "TALKING", "the goodbye is heard to its end"
    scene.listen(400)
    assert scene.state.name == "ENDING"
    scene.do(OUR_END)
    assert scene.ending == ("gateway", "budget", 200)
    assert scene.record.ending is not None
    assert scene.record.ending.detail == "call: 0.52 of 0.50"
    assert 'text="Budget used up"' in scene.record.ending.reason


def test_a_response_that_runs_is_waited_for_and_those_that_waited_are_not_asked_for() -> None:
    scene = _scene()
    scene.do(created("r1"), key("1"), key("#"))
    assert "create" not in scene.seen, "it waits for r1"
    assert scene.do(SPENT) == ["session.update"]
    assert scene.do(done("r1", "cancelled")) == [GOODBYE[1]]
    assert len(scene.requests) == 1


def test_speech_that_came_before_the_server_was_deaf_does_not_keep_the_call() -> None:
    scene = _scene()
    scene.do(SPENT, created("r2"), audio("r2", "i2", 2000))
    scene.do(SPEECH, done("r2", "cancelled"))
    scene.listen(400)
    assert scene.state.name == "ENDING"


def test_a_goodbye_that_does_not_come_is_not_waited_for_long() -> None:
    scene = _scene()
    scene.do(SPENT)
    scene.at(PLAN.limits.goodbye_timeout + 1)
    assert scene.seen[-1] == f"sound {PLAN.content.response_failure.sound}", (
        "something is heard, at least"
    )
    scene.at(scene.now + PLAN.content.response_failure.sound_duration + 1)
    assert scene.state.name == "ENDING"
    scene.do(OUR_END)
    assert scene.ending[1] == "budget"


def test_a_goodbye_of_the_models_own_is_enough() -> None:
    scene = _scene()
    scene.do(created("r1"), audio("r1", "i1", 500), done("r1", calls=[("end_call", "c1")]))
    assert scene.do(SPENT) == []
    scene.listen(900)
    scene.do(OUR_END)
    assert scene.ending[1] == "agent_hangup"


def test_one_that_the_caller_stops_is_followed_by_ours() -> None:
    scene = _scene()
    scene.do(created("r1"), audio("r1", "i1", 5000), done("r1", calls=[("end_call", "c1")]), SPENT)
    scene.listen(500)
    seen = scene.do(SPEECH)
    assert [word for word in seen if word in GOODBYE] == GOODBYE


def test_a_tool_that_returns_later_asks_for_nothing_more() -> None:
    scene = _scene(replace(PLAN, tools=replace(PLAN.tools, functions={"look_up": FunctionPlan()})))
    scene.do(created("r1"), done("r1", calls=[("look_up", "c1")]), SPENT)
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["output c1"]


def test_the_caller_is_handed_on_where_the_route_says_so() -> None:
    desk = Destination("desk", "sip:1@pbx")
    plan = replace(
        PLAN,
        tools=replace(PLAN.tools, transfer=TransferPlan((desk,))),
        budget=replace(PLAN.budget, transfer_to="desk"),
    )
    scene = _scene(plan)
    scene.do(SPENT)
    assert not scene.requests
    scene.do(inputs.ReferProgress(200, "OK", True))
    scene.do(OUR_END)
    assert scene.ending[1] == "transferred"

    scene = _scene(plan)
    scene.do(SPENT)
    seen = scene.do(inputs.ReferProgress(486, "Busy Here", True))
    assert [word for word in seen if word in GOODBYE] == GOODBYE, "it failed"
    assert not any("output" in word for word in seen), "no model asked for it"


@pytest.mark.parametrize("interpreted", [False, True])
def test_spent_while_a_callee_rings_no_session_goes_on_once_they_have_answered(
    interpreted: bool,
) -> None:
    """The two go on by themselves: no session listens to them, and none interprets."""
    anna = Destination("anna", "sip:2@pbx", "bridge")
    interpreter = InterpreterPlan("anna", {}, {}, at_once=False) if interpreted else None
    transfer = TransferPlan((anna,), listen=True, interpreter=interpreter)
    scene = _scene(replace(PLAN, tools=replace(PLAN.tools, transfer=transfer)))
    call = ("transfer_call", "c1", '{"destination": "anna"}')
    scene.do(created("r1"), done("r1", calls=[call]))
    assert scene.do(SPENT) == []
    seen = scene.do(inputs.BLegAnswered())
    assert ("interpret no more" in seen) is interpreted
    assert "close 1000 bridged" in seen
    assert scene.do(SPENT) == [], "there is nothing to close"
    assert scene.at(20.0) == []
    assert scene.state.name == "BRIDGED"


def test_before_the_session_and_after_the_end_it_is_nothing() -> None:
    assert Scene(PLAN).do(SPENT) == []
    scene = _scene()
    scene.do(BYE)
    assert scene.do(SPENT) == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sessions of an interpreted call: responses that are owed, sessions that are lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.interpretation import REOPENED_SECONDS
from gateway.call.plan import CallPlan, EscapePlan, ToolsPlan
from gateway.call.tools.commands import Destination, InterpreterPlan, TransferPlan
from gateway.realtime.events import (
    AgentTranscript,
    AudioDelta,
    AudioDone,
    InputTranscribed,
    ServerError,
    ServerEvent,
)
from tests.support.call_scene import ACK, BYE, UP, Scene, audio, created, done, key
from tests.unit.call.test_call_control import PICKED_UP, wants

ANNA = Destination("anna", "sip:2@pbx", "bridge")
BOTH = InterpreterPlan("anna", {"instructions": "a"}, {"instructions": "b"})
PLAN = CallPlan(
    "route", Codec.PCMU, tools=ToolsPlan(transfer=TransferPlan((ANNA,), "", False, BOTH))
)
BUSY = ServerError("conversation_already_has_active_response", "Busy.")


def says(listener: str, event: ServerEvent) -> inputs.InterpreterEvent:
    return inputs.InterpreterEvent(listener, event)


def interpreted(plan: CallPlan = PLAN) -> Scene:
    """Anna has answered at 2 s; both sessions are up at 3 s."""
    scene = Scene(plan).up()
    scene.at(1.0, created("r1"), wants("transfer_call", destination="anna"))
    assert "interpret" in scene.at(2.0, PICKED_UP)
    scene.at(3.0, *(inputs.InterpreterUp(one, f"sess_{one}") for one in ("caller", "callee")))
    return scene


def test_a_call_whose_ack_is_late_calls_the_destination_then() -> None:
    """No deadline that has come stays until then: the process would do nothing else."""
    scene = Scene(replace(PLAN, greeting={"instructions": "Say hello."}))
    scene.do(UP)
    scene.do(created("r1"), audio("r1", "i1", 100), done("r1"))
    assert "second sip:2@pbx" not in scene.at(8.0)
    scene.do(ACK)
    assert "second sip:2@pbx" in scene.listen(200)


def test_what_the_agent_said_meanwhile_is_not_heard_in_the_joined_call() -> None:
    """It was kept for a caller who would be back with the agent."""
    scene = Scene(PLAN).up()
    scene.at(1.0, created("r1"), wants("transfer_call", destination="anna"))
    scene.at(1.5, created("r2"), audio("r2", "i2", 1000), done("r2"))
    assert scene.queue
    scene.at(2.0, PICKED_UP)
    assert not scene.queue


def test_a_turn_that_had_no_response_has_one_when_the_other_is_over() -> None:
    scene = interpreted()
    over = done("r2").event
    assert scene.do(says("caller", BUSY)) == []
    assert scene.do(says("callee", over)) == [], "that is the other session's"
    assert scene.do(says("caller", over)) == ["create for caller"]
    assert scene.do(says("caller", over)) == []


@pytest.mark.parametrize(
    ("after", "seen"),
    [(REOPENED_SECONDS - 1, "hear fully callee"), (REOPENED_SECONDS, "open callee")],
)
def test_a_session_that_is_lost_after_a_minute_is_opened_again(after: float, seen: str) -> None:
    scene = interpreted()
    scene.at(25.0, inputs.RtpStats(1250))
    scene.at(50.0, inputs.RtpStats(2500))
    assert scene.at(3.0 + after, inputs.InterpreterLost("callee", "1001")) == [seen]
    assert ("interpreter_lost" in scene.events) is (seen != "open callee")
    # Whatever came of it, the next one that cannot be opened is told.
    assert scene.do(inputs.InterpreterLost("callee", "late")) == ["hear fully callee"]


def test_what_is_said_is_played_whole_and_is_in_the_transcript() -> None:
    scene = interpreted()
    assert scene.do(says("callee", AudioDelta("r", "i", 0, b"\x42" * 100))) == ["play 100 callee"]
    assert scene.do(says("callee", AudioDone("r", "i", 0))) == ["play 0 callee, the last"]
    scene.do(says("callee", InputTranscribed("i", "Good morning.")))
    scene.do(says("callee", AgentTranscript("r", "i", 0, "Guten Morgen.")))
    scene.do(says("caller", InputTranscribed("i", "Danke.")))
    assert scene.record.transcript is not None
    words = [(one["who"], one["text"]) for one in scene.record.transcript.as_json()]
    assert words[-3:] == [
        ("caller", "Good morning."),
        ("to_callee", "Guten Morgen."),
        ("callee", "Danke."),
    ]


def test_once_a_budget_has_closed_both_the_legs_are_joined_as_any_others() -> None:
    """The next budget that is spent has nothing to close, and the caller's key is the callee's."""
    escape = EscapePlan("0", to=("anna",))
    scene = interpreted(replace(PLAN, escape=escape))
    scene.do(inputs.BudgetThreshold(True, "call: 1 of 1"))
    assert scene.do(inputs.BudgetThreshold(True, "day: 9 of 9")) == []
    assert scene.events.count("budget_exceeded") == 1
    assert scene.do(key("0")) == ["press 0 second"]


@pytest.mark.parametrize(
    "end",
    [inputs.BudgetThreshold(True, "call: 1 of 1"), inputs.BLegEnded(200, "OK", "BYE", False), BYE],
)
def test_both_are_closed_once_and_say_nothing_more(end: inputs.Input) -> None:
    scene = interpreted()
    assert "interpret no more" in scene.do(end)
    assert scene.do(says("caller", AudioDelta("r", "i", 0, b"\x42" * 160))) == []
    assert scene.do(inputs.InterpreterLost("caller", "over")) == []
    assert "interpret no more" not in scene.do(BYE)

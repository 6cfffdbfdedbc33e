# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of operators, functions and applications; how a conversation is ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.call import inputs
from gateway.call.plan import BudgetPlan, FallbackStep, ServerPlan, ToolsPlan
from gateway.call.tools.commands import (
    CallCommand,
    Destination,
    EndCall,
    MuteCaller,
    OperatorHold,
    PressKeys,
    RequestOutOfBand,
    RequestResponse,
    Say,
    SendMessage,
    TransferPlan,
)
from tests.support.call_scene import BYE, Scene, audio, closed, created, done
from tests.unit.call.test_call_control import PLAN, results
from tests.unit.call.test_live_sessions import ends, live, request, speaks


def test_an_operator_holds_until_they_take_the_caller_back() -> None:
    scene = Scene(PLAN).up()
    held = scene.do(inputs.ToolRequest(OperatorHold(True)))
    assert "sound chime" in held
    assert "hold" in held
    scene.do(created("r1"), audio("r1", "i1", 200), done("r1"))
    assert not any("sound" in one for one in scene.at(10.0)), "the model's words end no such hold"
    refused = scene.do(inputs.ToolRequest(OperatorHold(True)))
    assert rejected(scene) == ["something else is being done for this call (hold)"], refused
    back = scene.do(inputs.ToolRequest(OperatorHold(False)))
    assert "sound" in back
    assert "resume" in back
    assert results(scene) == []
    scene.do(inputs.ToolRequest(OperatorHold(False)))
    assert rejected(scene)[1:] == ["the caller is not on hold"]


@pytest.mark.parametrize("why", ["budget", "session lost"])
def test_an_operator_takes_back_a_caller_whose_call_is_to_end(why: str) -> None:
    """The end waits for that; nobody else would end the hold."""
    steps = (FallbackStep("transfer", transfer_to="anna"),)
    tools = ToolsPlan(transfer=TransferPlan((Destination("anna", "sip:a@x", mode="bridge"),)))
    plan = replace(PLAN, tools=tools, server=ServerPlan(fallback=steps), budget=BudgetPlan())
    scene = Scene(plan).up()
    scene.do(inputs.ToolRequest(OperatorHold(True)))
    scene.do(inputs.BudgetThreshold(True, "money") if why == "budget" else closed(1011))
    scene.at(20.0)
    back = scene.do(inputs.ToolRequest(OperatorHold(False)))
    assert "sound" in back
    if why == "budget":
        assert scene.requests[-1].words == plan.budget.goodbye
    else:
        assert "second sip:a@x" in back


def test_an_operator_presses_keys_and_mutes() -> None:
    scene = Scene(PLAN).up()
    seen = scene.do(inputs.ToolRequest(PressKeys("1w2"))) + scene.at(10.0)
    assert [one for one in seen if one.startswith("press")] == ["press 1 auto", "press 2 auto"]
    scene.do(inputs.ToolRequest(PressKeys("hello")))
    assert "is no key" in rejected(scene)[0]
    assert "mute" in scene.do(inputs.ToolRequest(MuteCaller(True)))
    assert "unmute" in scene.do(inputs.ToolRequest(MuteCaller(False)))


@pytest.mark.parametrize("act", [OperatorHold(True), PressKeys("1"), MuteCaller(True)])
def test_after_its_end_a_call_takes_no_command(act: CallCommand) -> None:
    scene = Scene(PLAN).up()
    scene.do(BYE)
    assert scene.do(inputs.ToolRequest(act)) == []


def rejected(scene: Scene) -> list[str]:
    """Why commands were rejected."""
    marks = scene.record.timeline
    return [str(one["reason"]) for one in marks if one["event"] == "command_rejected"]


def test_commands_without_a_response_to_them() -> None:
    scene = live()
    scene.do(request(Say("Welcome.")))
    assert scene.requests[-1].words == "Welcome."
    speaks(scene, "speech_1", 100)
    ends(scene, "speech_1")
    assert scene.do(request(SendMessage("The shop is closed.", "system", True))) == [
        "item The shop is closed."
    ]
    scene.do(request(RequestResponse("Ask for the name.")))
    assert scene.requests[-1].response == {"instructions": "Ask for the name."}
    scene.do(request(RequestOutOfBand("k", "Sum up.", {})))
    assert scene.record.content.out_of_band[-1].status == "refused"
    assert len(scene.requests) == 2


def test_last_words_of_an_application_are_said_and_heard() -> None:
    scene = live()
    scene.do(request(EndCall("Goodbye.")))
    assert scene.requests[-1].words == "Goodbye."
    speaks(scene, "speech_1", 600)
    scene.listen(560)
    assert "bye 16" not in scene.seen
    ends(scene, "speech_1")
    scene.listen(400)
    assert scene.heard_ms == 600
    assert "bye 16" in scene.seen

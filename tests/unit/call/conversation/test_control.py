# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of operators, functions and applications; how a conversation is ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.call import inputs
from gateway.call.plan import ApprovalRule, BudgetPlan, FallbackStep, ServerPlan, ToolsPlan
from gateway.call.tools.commands import (
    CallCommand,
    CollectPlan,
    Destination,
    EndCall,
    MuteCaller,
    OperatorHold,
    OperatorTransfer,
    PressKeys,
    ReferTo,
    RequestOutOfBand,
    RequestResponse,
    Say,
    SendImage,
    SendMessage,
    TransferPlan,
    TransferTo,
)
from gateway.realtime.events import CreateItem, UpdateSession
from gateway.realtime.session_object import TRANSCRIPTION
from tests.support.call_scene import ACK, BYE, Scene, audio, audio_done, closed, created, done, key
from tests.unit.call.test_call_control import PLAN, results
from tests.unit.call.test_live_sessions import ends, live, request, speaks
from tests.unit.call.test_transfer import gone


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


@pytest.mark.parametrize("respond", [True, False])
def test_a_message_or_an_image_is_answered_where_that_is_wanted(respond: bool) -> None:
    scene = Scene(PLAN).up()
    asked = ["create"] * respond
    seen = scene.do(request(SendMessage("I am Ann.", "user", respond)))
    assert seen == ["item I am Ann.", *asked]
    scene.do(created("r1"), done("r1", "cancelled"))
    seen = scene.do(request(SendImage("data:image/png;base64,AA", "Me.", respond)))
    assert seen == ["item Me.", *asked]
    text, image = (one.item for one in scene.sent if isinstance(one, CreateItem))
    assert text["role"] == image["role"] == "user"
    assert image["content"][1] == {
        "type": "input_image",
        "image_url": "data:image/png;base64,AA",
    }


def test_instructions_of_a_command_are_for_one_response() -> None:
    scene = Scene(PLAN).up()
    scene.do(request(RequestResponse("Ask for the name.")))
    assert [one.response for one in scene.requests] == [{"instructions": "Ask for the name."}]


@pytest.mark.parametrize(
    "command",
    [
        Say("Hello."),
        SendMessage("I am Ann.", "user", True),
        SendImage("data:image/png;base64,AA"),
        RequestResponse("Ask."),
        RequestOutOfBand("k", "Sum up.", {}),
    ],
)
def test_a_session_that_only_transcribes_is_told_nothing(command: CallCommand) -> None:
    scene = Scene(PLAN)
    scene.do(inputs.SessionReady("sess_1", None, TRANSCRIPTION), ACK)
    scene.do(request(command))
    assert scene.sent == []
    assert rejected(scene) == ["the session only transcribes, it does not speak"]


def test_an_application_refers_the_caller_to_an_address_of_its_own() -> None:
    scene = Scene(PLAN).up()
    assert "refer sip:7@pbx" in scene.do(request(ReferTo("sip:7@pbx")))
    scene.do(request(ReferTo("sip:8@pbx")), request(OperatorTransfer("anna")))
    assert len(rejected(scene)) == 2
    scene.do(inputs.ReferProgress(603, "Decline", True))
    scene.do(request(OperatorTransfer("nobody")))
    assert "'nobody' is not allowed" in rejected(scene)[2]


def test_a_transfer_of_a_function_that_fails_ends_the_call_with_its_words() -> None:
    """The server is to answer nobody any more; commands that come later are dropped."""
    scene = Scene(PLAN).up()
    assert "second sip:2@pbx" in scene.do(request(TransferTo("anna", "Nobody is there.")))
    late = [SendMessage("Wait.", "user"), Say("Wait."), EndCall("Other words.")]
    assert scene.do(*map(request, late)) == []
    seen = scene.do(gone(486))
    assert "create ['instructions', 'tools']" in seen
    assert UpdateSession({"audio": {"input": {"turn_detection": None}}}) in scene.sent
    assert [one.words for one in scene.requests] == ["Nobody is there."]
    scene.do(created("r1"), audio("r1", "i1", 400), audio_done("r1", "i1"), done("r1"))
    assert "bye 16" in scene.listen(900)
    assert scene.heard_ms == 400


@pytest.mark.parametrize("words", ["Goodbye.", ""])
def test_a_transfer_to_nobody_ends_the_call(words: str) -> None:
    scene = Scene(PLAN).up()
    seen = scene.do(request(TransferTo("nobody", words)))
    assert "tool_refused" in scene.events
    assert ("create ['instructions', 'tools']" in seen) is bool(words)
    assert ("bye 16" in seen + scene.at(1.0)) is not bool(words)


def test_what_waits_is_dropped_once_the_conversation_is_to_end() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), request(Say("One.")), request(SendMessage("Two.", "user", True)))
    assert scene.requests == []
    scene.do(request(EndCall("Goodbye.")), done("r1"))
    assert [one.words for one in scene.requests] == ["Goodbye."]


def test_the_end_waits_for_what_is_being_done_for_the_call() -> None:
    scene = Scene(PLAN).up()
    scene.do(request(PressKeys("1")))
    assert not any("create" in one for one in scene.do(request(EndCall("Goodbye."))))
    assert any("create" in one for one in scene.at(10.0))


def test_a_key_answers_the_question_about_a_tool_before_it_is_collected() -> None:
    """Each key answers one question only."""
    tools = replace(
        PLAN.tools,
        approvals=(ApprovalRule("lookup", "ask_caller"),),
        collect_digits=CollectPlan(True),
    )
    scene = Scene(replace(PLAN, tools=tools)).up()
    calls = [("lookup", "c1"), ("collect_digits", "c2", '{"digits": 1}')]
    scene.do(created("r1"), done("r1", calls=calls))
    scene.do(created("r2"), audio("r2", "i2", 200), audio_done("r2", "i2"), done("r2"))
    scene.listen(300)
    assert any(one.startswith("run lookup") for one in scene.do(key("1")))
    scene.do(key("5"), inputs.ToolDone("c1", "{}"))
    assert [one["digits"] for one in results(scene) if "digits" in one] == ["5"]

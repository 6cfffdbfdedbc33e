# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers, holds and keys on the virtual clock: what is done, and what the model is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.call_control import KEY_SECONDS
from gateway.call.conversation.control import HELD, RESUMED
from gateway.call.plan import (
    ApprovalRule,
    CallPlan,
    EscapePlan,
    FallbackStep,
    FunctionPlan,
    LimitsPlan,
    OutboundPlan,
    ToolsPlan,
)
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import (
    Destination,
    HoldPlan,
    Interrupt,
    OperatorTransfer,
    RecordingPlan,
    RequestResponse,
    SendDtmfPlan,
    TransferPlan,
    TransferTo,
)
from gateway.realtime.events import CreateItem
from tests.support.call_scene import (
    ACK,
    OUR_END,
    SPEECH,
    UP,
    Scene,
    audio,
    audio_done,
    closed,
    created,
    done,
    key,
)

DESK = Destination("front desk", "tel:+4930123", ring_timeout=20)
NUMBERS = Destination("staff", "sip:{number}@pbx", allowed_numbers=re.compile("1[0-9]{3}"))
BOSS = Destination("boss", "sip:1@pbx", "attended", trunk="office", ring_timeout=20)
ANNA = Destination("anna", "sip:2@pbx", "bridge", ring_timeout=20)
PLAN = CallPlan(
    "route",
    Codec.PCMU,
    tools=ToolsPlan(
        transfer=TransferPlan((DESK, NUMBERS, BOSS, ANNA)),
        send_dtmf=SendDtmfPlan(True),
        hold=HoldPlan(True, "chime", 30.0),
        functions={"lookup": FunctionPlan(timeout=5.0)},
    ),
    limits=LimitsPlan(say_seconds=4.0),
)
LISTENING = CallPlan(
    "route",
    Codec.PCMU,
    tools=ToolsPlan(transfer=TransferPlan((ANNA,), listen=True)),
    listening={"tools": []},
)
ACCEPTED = inputs.ReferProgress(100, "Accepted", False)
RINGING = inputs.ReferProgress(180, "Ringing", False)
ANSWERED = inputs.ReferProgress(200, "OK", True)
PICKED_UP = inputs.BLegAnswered()


def told(code: int, *, final: bool = True) -> inputs.ReferProgress:
    """A NOTIFY, or a refusal of the REFER."""
    return inputs.ReferProgress(code, "", final)


def wants(name: str, **arguments: Any) -> inputs.ServerEventReceived:
    """The model calls a tool, and says nothing with it."""
    return done("r1", calls=[(name, "c1", json.dumps(arguments))])


def asked(destination: str, plan: CallPlan = PLAN) -> Scene:
    """A call in which the model has asked for a transfer."""
    scene = Scene(plan).up()
    scene.at(1.0, created("r1"), wants("transfer_call", destination=destination))
    return scene


def results(scene: Scene) -> list[dict[str, Any]]:
    """What the model was told of its calls."""
    items = [command.item for command in scene.sent if isinstance(command, CreateItem)]
    return [json.loads(one["output"]) for one in items if one["type"] == "function_call_output"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"destination": "+19005551234"}', "'+19005551234' is not allowed; there are: 'front"),
        ('{"destination": "12345"}', "is not allowed"),
        ('{"destination": "1234@evil.example"}', "is not allowed"),
        ('{"destination": "sip:1234@pbx"}', "is not allowed"),
        ('{"destination": "staff"}', "is not allowed"),
        ('{"destination": ""}', "destination: String should have at least 1 character"),
        ("{}", "destination: Field required"),
        ("", "destination: Field required"),
        ("{", "arguments: Invalid JSON"),
        ('{"destination": "boss", "uri": "sip:x@y"}', "uri: Extra inputs are not permitted"),
    ],
)
def test_what_is_not_allowed_is_answered_to_the_model(arguments: str, words: str) -> None:
    scene = Scene(PLAN).up()
    seen = scene.at(1.0, created("r1"), done("r1", calls=[("transfer_call", "c1", arguments)]))
    assert seen == ["output c1", "create"]
    assert words in results(scene)[0]["error"]
    assert scene.record.actions.transfers == []


def test_what_was_said_is_heard_first() -> None:
    scene = Scene(PLAN).up()
    said = [created("r1"), audio("r1", "i1", 400), audio_done("r1", "i1")]
    assert "refer tel:+4930123" not in scene.do(*said, wants("transfer_call", destination="boss"))
    assert scene.listen(300) == []
    assert scene.listen(200)[0] == "sound ringback"
    assert scene.heard_ms == 400


def test_a_sentence_that_does_not_end_is_not_waited_for() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 9000), wants("transfer_call", destination="boss"))
    assert scene.at(3.9) == []
    assert "second sip:1@pbx office" in scene.at(4.1)


@pytest.mark.parametrize("interruption", [SPEECH, key("1"), inputs.ToolRequest(Interrupt())])
def test_an_interruption_stops_it_before_it_begins(interruption: inputs.Input) -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 2000), wants("transfer_call", destination="boss"))
    scene.listen(200)
    seen = scene.do(interruption)
    assert "output c1" in seen
    assert results(scene) == [{"status": "not done", "reason": "you were interrupted"}]
    assert not any("second" in words for words in scene.at(20.0))


@pytest.mark.parametrize("interruption", [SPEECH, key("1")])
@pytest.mark.parametrize(
    "act", [OperatorTransfer("front desk"), TransferTo("front desk", "One moment.")]
)
def test_what_the_model_did_not_ask_for_is_no_callers_to_stop(
    act: OperatorTransfer | TransferTo, interruption: inputs.Input
) -> None:
    """Of an operator or a function: it is done, and no tool call that nobody made is answered."""
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 2000))
    scene.listen(200)
    seen = scene.do(inputs.ToolRequest(act), interruption, done("r1", "cancelled"))
    if isinstance(act, TransferTo):
        seen += scene.at(5.0, created("r2"), audio("r2", "i2", 2000), done("r2"))
        scene.listen(200)
        seen += scene.do(interruption)
    seen += scene.at(20.0)
    assert [one for one in seen if one.startswith("refer")] == ["refer tel:+4930123"]
    assert not any(one.startswith("output") for one in seen)
    assert results(scene) == []


def test_only_one_thing_at_a_time() -> None:
    scene = asked("front desk")
    scene.do(created("r2"), done("r2", calls=[("hold", "c2", '{"seconds": 5}')]))
    assert "something else is being done" in results(scene)[0]["error"]


def test_a_session_that_listens_says_nothing() -> None:
    scene = asked("anna", LISTENING)
    assert scene.at(3.0, PICKED_UP) == ["sound", "join, listening", "session.update", "resume"]
    assert scene.do(created("r2"), audio("r2", "i2", 500), done("r2"), SPEECH) == []
    assert scene.do(closed(1011)) == []
    assert scene.state is State.BRIDGED


@pytest.mark.parametrize("due", ["tool", "keys", "waiting"])
def test_what_is_due_when_the_legs_are_joined_has_a_session_that_listens_say_nothing(
    due: str,
) -> None:
    functions = {"lookup": FunctionPlan(timeout=60.0)}
    scene = Scene(replace(LISTENING, tools=replace(LISTENING.tools, functions=functions))).up()
    calls = [("transfer_call", "c1", '{"destination": "anna"}'), ("lookup", "c2")]
    if due == "keys":
        scene.do(key("4"))
    scene.at(1.0, created("r1"), done("r1", calls=calls if due == "tool" else calls[:1]))
    if due == "waiting":  # behind a request that the server has not answered yet
        scene.do(*(inputs.ToolRequest(RequestResponse(words)) for words in ("One.", "Two.")))
    requested = len(scene.requests)
    scene.at(1.5, PICKED_UP)
    if due == "tool":
        assert scene.do(inputs.ToolDone("c2", "nine")) == ["output c2"]
    assert scene.at(20.0) == []
    assert len(scene.requests) == requested
    assert scene.state is State.BRIDGED
    assert [run.ended_by for run in scene.record.actions.digits] == ["call_end"] * (due == "keys")


@pytest.mark.parametrize("code", [1000, 1011])
def test_a_session_lost_during_a_transfer_matters_only_if_the_caller_comes_back(code: int) -> None:
    scene = asked("front desk")
    scene.at(2.0, ACCEPTED, closed(code))
    assert scene.state is State.TALKING
    scene.at(3.0, ANSWERED, OUR_END)
    assert scene.ending[1] == "transferred"
    scene = asked("front desk")
    scene.at(2.0, ACCEPTED, closed(code))
    scene.at(3.0, told(486), OUR_END)
    assert scene.ending[1] == "session_lost"


@pytest.mark.parametrize("steps", [(), (FallbackStep("reconnect", timeout=10.0),)])
@pytest.mark.parametrize("code", [1000, 1006])
@pytest.mark.parametrize("destination", ["front desk", "anna"])
def test_a_transfer_that_the_model_has_announced_outlives_its_session(
    destination: str, code: int, steps: tuple[FallbackStep, ...]
) -> None:
    """Neither the loss nor the end of its failover takes the caller from whom they have reached."""
    scene = Scene(replace(PLAN, server=replace(PLAN.server, fallback=steps))).up()
    call = wants("transfer_call", destination=destination)
    scene.do(created("r1"), audio("r1", "i1", 1000), call)
    assert scene.do(closed(code)) == ["close 1000 session_lost"]
    seen = scene.listen(1200)
    assert scene.heard_ms == 1000
    if destination == "anna":
        assert "second sip:2@pbx" in seen
        scene.at(5.0, PICKED_UP)
        scene.at(20.0)
        assert scene.state is State.BRIDGED
        return
    assert "refer tel:+4930123" in seen
    scene.at(5.0, ACCEPTED, RINGING)
    scene.at(15.0)
    assert scene.state is State.TALKING
    assert "bye 16" in scene.do(told(200))


def test_a_transfer_that_is_approved_while_the_session_is_replaced_ends_the_failover() -> None:
    rules = (ApprovalRule("transfer_*", "ask_http", timeout=20.0),)
    steps = (FallbackStep("reconnect", timeout=10.0, sound="chime"),)
    tools = replace(PLAN.tools, approvals=rules)
    scene = Scene(replace(PLAN, tools=tools, server=replace(PLAN.server, fallback=steps))).up()
    scene.do(created("r1"), wants("transfer_call", destination="anna"))
    scene.at(2.0, closed(1006))
    seen = scene.at(3.0, inputs.ApprovalResult("c1", True))
    assert seen == ["sound ringback", "second sip:2@pbx", "close 1000 session_lost", "hold"]
    scene.at(5.0, PICKED_UP)
    scene.at(20.0, inputs.SessionReady("sess_2"))
    assert scene.state is State.BRIDGED
    assert scene.sent == []
    assert scene.record.session.failovers[0].outcome == "transferred"


ESCAPING = replace(PLAN, escape=EscapePlan(key="0", to=("anna",)))
GOODBYE = done("r2", calls=[("end_call", "c2")])


def test_a_model_that_hangs_up_cuts_no_transfer() -> None:
    """It answers the words with which the caller asked for a human, and ends the call."""
    scene = Scene(ESCAPING).up()
    assert "second sip:2@pbx" in scene.do(key("0"))
    scene.do(created("r2"), audio("r2", "i2", 500), GOODBYE)
    assert results(scene) == [{"status": "not done", "reason": "the caller is being transferred"}]
    scene.at(9.0, PICKED_UP)
    scene.at(25.0)
    assert scene.state is State.BRIDGED


def test_an_operator_who_transfers_the_caller_during_the_goodbye() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r2"), audio("r2", "i2", 500), GOODBYE)
    scene.do(inputs.ToolRequest(OperatorTransfer("anna", "")))
    assert "second sip:2@pbx" in scene.listen(600)
    assert results(scene) == [{"status": "not ended", "reason": "the caller is being transferred"}]
    scene.at(9.0, PICKED_UP)
    scene.at(25.0)
    assert scene.state is State.BRIDGED


def test_a_model_that_hangs_up_before_the_callee_has_answered() -> None:
    plan = replace(PLAN, outbound=OutboundPlan(ring_timeout=60.0, early_media=True))
    scene = Scene(plan)
    scene.do(UP, created("r2"), GOODBYE)
    scene.at(30.0, OUR_END)
    assert scene.ending[1] == "agent_hangup"


def test_hold() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"))
    assert scene.do(wants("hold", seconds=10)) == ["sound chime", "hold"]
    assert scene.at(9.9) == []
    assert scene.at(10.1) == ["sound", "output c1", "create", "resume"]
    assert results(scene) == [{"status": "the caller is back", "seconds": 10.0}]


def test_music_ends_when_the_model_speaks() -> None:
    scene = Scene(PLAN).up()
    lookup = ("lookup", "c2", '{"room": 7}')
    hold = ("hold", "c1", '{"seconds": 20}')
    seen = scene.do(created("r1"), done("r1", calls=[lookup, hold]))
    assert seen == ['run lookup c2 {"room": 7}', "sound chime", "hold"]
    assert scene.at(3.0, inputs.ToolDone("c2", "free")) == ["output c2", "create"]
    seen = scene.do(created("r2"), audio("r2", "i2", 200))
    assert seen == ["sound", "play 200", "output c1", "resume"]


def test_our_hold_and_the_callers() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), wants("hold", seconds=10))
    assert scene.at(2.0, inputs.HoldChanged(True)) == [f"item {HELD}", "hold"]
    assert scene.at(11.0) == ["sound", "output c1", "create"]
    assert scene.at(12.0, inputs.HoldChanged(False)) == [f"item {RESUMED}", "resume"]


def test_keys() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"))
    assert scene.do(wants("send_dtmf", digits="1W2")) == ["press 1 auto"]
    assert scene.at(KEY_SECONDS + 0.9) == []
    assert scene.at(KEY_SECONDS + 1.1) == ["press 2 auto"]
    assert scene.at(2 * KEY_SECONDS + 1.1) == ["output c1", "create"]
    assert results(scene) == [{"status": "sent", "digits": "12"}]


@pytest.mark.parametrize(
    ("digits", "words"),
    [("12x", "'x' is no key"), ("", "at least 1 character"), ("ww", "no key"), ("1" * 65, "65")],
)
def test_keys_that_there_are_not(digits: str, words: str) -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), wants("send_dtmf", digits=digits))
    assert words in results(scene)[0]["error"]


def test_a_function_that_does_not_return() -> None:
    scene = Scene(PLAN).up()
    assert scene.do(created("r1"), wants("lookup")) == ["run lookup c1 {}"]
    assert scene.at(4.9) == []
    assert scene.at(5.1) == ["output c1", "create"]
    assert results(scene) == [{"error": "no result within 5 s"}]
    assert scene.do(inputs.ToolDone("c1", "late")) == []


def test_keys_in_the_audio_count_until_one_is_signalled() -> None:
    scene = Scene(PLAN).up()
    scene.do(inputs.DigitPressed("1", in_band=True))
    scene.do(inputs.DigitPressed("2"), inputs.DigitPressed("2", in_band=True))
    scene.do(inputs.DigitPressed("#"))
    assert [run.digits for run in scene.record.actions.digits] == ["12"]


def test_nothing_begins_before_the_ack() -> None:
    scene = Scene(PLAN)
    scene.do(UP, created("r1"))
    assert scene.do(wants("transfer_call", destination="anna")) == []
    assert "second sip:2@pbx" in scene.do(ACK)


def test_a_bridged_call_is_not_greeted_after_a_question_about_its_recording() -> None:
    recording = RecordingPlan(mode="always", consent="ask", prompt="May we record this call?")
    scene = Scene(replace(LISTENING, recording=recording, greeting={})).up()
    scene.do(inputs.ToolRequest(OperatorTransfer("anna")))
    scene.at(1.0, created("r1", scene.requests[-1]), audio("r1", "i1", 1000), done("r1"))
    scene.listen(1200)
    asked_before = len(scene.requests)
    scene.at(6.0, PICKED_UP)
    assert scene.state is State.BRIDGED
    recorded = scene.record.recording
    assert recorded is not None
    assert (recorded.state, recorded.consent) == ("unanswered", "unanswered")
    scene.at(7.0)
    assert len(scene.requests) == asked_before


def test_a_request_without_a_response_is_not_repeated_in_a_bridged_call() -> None:
    scene = asked("anna", LISTENING)
    scene.do(inputs.ToolRequest(RequestResponse("Say that it rings.")))
    asked_before = len(scene.requests)
    scene.at(6.0, PICKED_UP)
    scene.at(17.0)
    assert "response_unanswered" in scene.events
    assert len(scene.requests) == asked_before

# SPDX-License-Identifier: GPL-2.0-or-later
"""Approval of tools on the virtual clock: by rule, by the operator, by the caller's key."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import (
    ApprovalRule,
    CallPlan,
    ContentPlan,
    DtmfPlan,
    FallbackStep,
    FunctionPlan,
    InterruptionPlan,
    LimitsPlan,
    ResponseFailurePlan,
    ServerPlan,
    ToolsPlan,
    UserIdlePlan,
)
from gateway.call.tools.commands import Destination, HoldPlan, TransferPlan
from gateway.realtime.events import (
    AgentTranscriptDelta,
    CreateItem,
    CreateResponse,
    InputCommitted,
    ItemAdded,
    OtherEvent,
    ResponseDone,
    SpeechStopped,
)
from tests.support.call_scene import (
    ACK,
    SPEECH,
    Scene,
    audio,
    audio_done,
    closed,
    created,
    done,
    error,
    key,
    said,
)
from tests.unit.call.tools.test_function_calls import outputs_of

PLAN = CallPlan(
    "route",
    Codec.PCMU,
    tools=ToolsPlan(
        functions={"refund": FunctionPlan(), "crm_delete": FunctionPlan(approval=True)}
    ),
)
BIG = {"amount": re.compile(r"^\d{3,}$")}
REFUND = ("refund", "c1", '{"amount": 250}')


def asked(*rules: ApprovalRule, call: tuple[str, ...] = REFUND) -> tuple[Scene, list[str]]:
    """A call in which the model wants to use a tool; what was done about it."""
    scene = Scene(replace(PLAN, tools=replace(PLAN.tools, approvals=rules))).up()
    return scene, scene.at(1.0, created("r1"), done("r1", calls=[call]))


@pytest.mark.parametrize(
    ("rules", "call", "runs"),
    [
        ((), REFUND, True),
        ((), ("crm_delete", "c1"), False),
        ((ApprovalRule("crm_*", "allow"),), ("crm_delete", "c1"), True),
        ((ApprovalRule("*", "deny"),), REFUND, False),
        ((ApprovalRule("refund", "deny", BIG),), REFUND, False),
        ((ApprovalRule("refund", "deny", BIG),), ("refund", "c1", '{"amount": 25}'), True),
        ((ApprovalRule("refund", "deny", BIG),), ("refund", "c1", "{}"), True),
        ((ApprovalRule("refund", "allow", BIG), ApprovalRule("*", "deny")), REFUND, True),
    ],
)
def test_by_rule(rules: tuple[ApprovalRule, ...], call: tuple[str, ...], runs: bool) -> None:
    scene, seen = asked(*rules, call=call)
    if runs:
        assert seen[-1].startswith(f"run {call[0]}")
    else:
        assert seen == ["output c1", "create"]
        assert outputs_of(scene)["c1"] == {"status": "not done", "reason": "this may not be done"}


def test_the_gateways_own_tools_need_approval_where_a_rule_says_so() -> None:
    rules = (ApprovalRule("hold", "deny"), ApprovalRule("transfer_*", "ask_http", timeout=5.0))
    desk = TransferPlan((Destination("desk", "tel:1"),))
    scene = Scene(
        replace(
            PLAN,
            tools=replace(PLAN.tools, approvals=rules, hold=HoldPlan(True), transfer=desk),
        )
    ).up()
    wanted = ("transfer_call", "c2", '{"destination": "desk"}')
    calls = [("hold", "c1", '{"seconds": 1}'), wanted]
    assert scene.at(1.0, created("r1"), done("r1", calls=calls)) == ["ask transfer_call 1"]
    seen = scene.do(inputs.ApprovalResult("c2", True))
    assert seen[:2] == ["output c1", "create"]
    assert "refer tel:1" in seen
    assert outputs_of(scene)["c1"] == {"status": "not done", "reason": "this may not be done"}


def test_what_a_rule_refuses_waits_for_the_others_of_its_response() -> None:
    scene = Scene(
        replace(PLAN, tools=replace(PLAN.tools, approvals=(ApprovalRule("crm_*", "deny"),)))
    ).up()
    calls = [("crm_delete", "c1"), ("refund", "c2", "{}")]
    seen = scene.at(1.0, created("r1"), done("r1", calls=calls))
    assert seen == ["run refund c2 {}"]
    assert scene.do(inputs.ToolDone("c2", "{}")) == ["output c1", "output c2", "create"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (inputs.ApprovalResult("c1", True), None),
        (inputs.ApprovalResult("c1", False), "the operator said no"),
        (inputs.ApprovalResult("c1", False, "too much"), "too much"),
        (inputs.Tick(), "nobody confirmed it in time"),
    ],
)
def test_by_the_operator(answer: inputs.Input, told: str | None) -> None:
    scene, seen = asked(ApprovalRule("refund", "ask_http", timeout=10.0))
    assert seen == ["ask refund 0"]
    seen = scene.at(3.0 if isinstance(answer, inputs.ApprovalResult) else 12.1, answer)
    if told is None:
        assert seen == ['run refund c1 {"amount": 250}']
    else:
        assert seen == ["output c1", "create"]
        assert outputs_of(scene)["c1"] == {"status": "not done", "reason": told}
    assert scene.do(inputs.ApprovalResult("c1", True)) == [], "an answer that comes twice"


def test_words_while_the_operator_thinks() -> None:
    search = FunctionPlan(filler_delay=2.0, filler_text="One moment.")
    rule = ApprovalRule("search", "ask_http", timeout=10.0)
    scene = Scene(
        replace(
            PLAN,
            tools=replace(PLAN.tools, functions={"search": search}, approvals=(rule,)),
        )
    ).up()
    assert scene.at(1.0, created("r1"), done("r1", calls=[("search", "c1")])) == ["ask search 0"]
    assert scene.at(3.1) == ["create ['instructions', 'tools']"]
    scene.do(created("r2"), audio("r2", "i2", 20), done("r2"))
    scene.listen(100)
    assert scene.at(6.0, inputs.ApprovalResult("c1", True)) == ["run search c1 {}"]
    assert scene.at(20.0) == [], "they are told once"


def test_a_call_that_is_slow_before_its_approval_and_after_it_is_told_once() -> None:
    search = FunctionPlan(filler_delay=2.0, filler_text="One moment.")
    rule = ApprovalRule("search", "ask_http", timeout=10.0)
    tools = replace(PLAN.tools, functions={"search": search}, approvals=(rule,))
    scene = Scene(replace(PLAN, tools=tools)).up()
    scene.at(1.0, created("r1"), audio("r1", "i1", 2500), audio_done("r1", "i1"))
    scene.do(done("r1", calls=[("search", "c1")]))
    scene.listen(2400)
    assert "tool_slow" in scene.events
    scene.do(inputs.ApprovalResult("c1", True))
    scene.listen(2400)
    assert scene.requests, "then the caller is told"
    assert scene.events.count("tool_slow") == 1


def _say(tool: str, given: Any) -> str:
    return f"{tool} {given['amount']}?"


CALLER = ApprovalRule("refund", "ask_caller", timeout=10.0, prompt=_say)


def heard(scene: Scene, response: str) -> None:
    """The question is said and heard."""
    scene.do(created(response), audio(response, f"i_{response}", 600))
    scene.do(audio_done(response, f"i_{response}"), done(response))
    scene.listen(700)


@pytest.mark.parametrize(
    ("pressed", "told"),
    [("1", None), ("2", "the caller said no"), ("9", "nobody confirmed it in time")],
)
def test_by_the_callers_key(pressed: str, told: str | None) -> None:
    scene, seen = asked(CALLER)
    assert seen == ["create ['instructions', 'tools']"]
    assert scene.requests[-1].response == {
        "instructions": "Say exactly: refund 250?",
        "tools": [],
    }
    heard(scene, "r2")
    seen = scene.do(key(pressed))
    assert not [words for words in seen if words.startswith("item ")], "no message of theirs"
    if pressed == "9":
        assert scene.at(scene.now + 9.0) == []
        seen = scene.at(scene.now + 1.1)
    if told is None:
        assert seen == ['run refund c1 {"amount": 250}']
    else:
        assert outputs_of(scene)["c1"] == {"status": "not done", "reason": told}
    uses = [one.approval for one in scene.record.actions.tools]
    assert uses == [{"1": "caller", "2": "refused: caller", "9": "refused: time"}[pressed]]


def test_a_key_cuts_the_question_short() -> None:
    scene, _ = asked(CALLER)
    scene.do(created("r2"), audio("r2", "i2", 4000))
    scene.listen(500)
    seen = scene.do(key("1"))
    assert seen[0] == "flush"
    assert seen[-1] == 'run refund c1 {"amount": 250}'


def test_a_question_is_heard_also_behind_an_underrun_whose_end_was_not_told() -> None:
    """It was short: audio was queued again before word of it came."""
    scene = Scene(replace(PLAN, tools=replace(PLAN.tools, approvals=(CALLER,)))).up()
    scene.do(created("r1"), audio("r1", "i1", 2000), done("r1", calls=[REFUND]))
    scene.listen(2000)
    scene.do(created("r2"), audio("r2", "i2", 2000))
    scene.listen(100)
    assert scene.do(inputs.PlayoutStarted()) == []
    assert scene.do(key("1"))[-1] == 'run refund c1 {"amount": 250}'


@pytest.mark.parametrize("trouble", ["unanswered", "refused", "without audio"])
def test_a_question_that_nobody_heard_is_not_approved_by_a_key(trouble: str) -> None:
    """Whatever else is said meanwhile: it is refused in time, or by the key for that."""
    content = ContentPlan(response_failure=ResponseFailurePlan(retries=0, message="Sorry."))
    tools = replace(PLAN.tools, approvals=(CALLER,))
    scene = Scene(replace(PLAN, tools=tools, content=content)).up()
    scene.at(1.0, created("r0", CreateResponse()), audio("r0", "i0", 200), done("r0"))
    scene.do(created("r1"), done("r1", calls=[REFUND]))
    question = next(one for one in scene.requests if "250" in str(one.response))
    assert not [words for words in scene.do(key("1")) if words.startswith("run")]
    match trouble:
        case "unanswered":
            scene.at(scene.now + 10.5)
        case "refused":
            scene.do(error("server_error", question))
        case "without audio":
            scene.do(created("r2", question), done("r2"))
    assert scene.requests[-1] is not question
    heard(scene, "r3")
    assert not [words for words in scene.do(key("1")) if words.startswith("run")]
    assert "output c1" in scene.do(key("2"))


@pytest.mark.parametrize("interrupting", [True, False])
def test_a_question_that_waits_behind_other_words_is_not_approved(interrupting: bool) -> None:
    """Nor does the key that comes too early cut what is said; it counts once the question is
    heard."""
    dtmf = DtmfPlan(interrupt=interrupting)
    tools = replace(PLAN.tools, approvals=(CALLER,))
    scene = Scene(replace(PLAN, tools=tools, dtmf=dtmf)).up()
    scene.at(1.0, created("r1"), audio("r1", "i1", 3000), audio_done("r1", "i1"))
    scene.do(done("r1", calls=[REFUND]))
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 600), done("r2"))
    scene.listen(2000)
    assert scene.do(key("1")) == scene.do(key("9")) == []
    scene.listen(1300)
    assert scene.do(key("1"))[-1] == 'run refund c1 {"amount": 250}'


@pytest.mark.parametrize(
    ("pause", "go_on"),
    [
        (SPEECH, said(SpeechStopped("item_user", 1010))),
        (inputs.HoldChanged(True), inputs.HoldChanged(False)),
    ],
)
def test_playout_that_is_paused_brings_no_question_nearer(
    pause: inputs.Input, go_on: inputs.Input
) -> None:
    dtmf = DtmfPlan(interrupt=False)
    adaptive = InterruptionPlan("adaptive", by_gateway=True)
    tools = replace(PLAN.tools, approvals=(CALLER,))
    scene = Scene(replace(PLAN, tools=tools, dtmf=dtmf, interruptions=adaptive)).up()
    scene.at(1.0, created("r1"), audio("r1", "i1", 1000), audio_done("r1", "i1"))
    scene.do(done("r1", calls=[REFUND]))
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 600), done("r2"))
    scene.listen(700)
    scene.do(pause)
    scene.at(scene.now + 0.3)
    scene.do(go_on)
    scene.listen(200)
    assert scene.do(key("1")) == []
    scene.listen(200)
    assert scene.do(key("1"))[-1] == 'run refund c1 {"amount": 250}'


@pytest.mark.parametrize("heard_ms", [0, 40])
def test_a_question_that_speech_cut_off_is_asked_again(heard_ms: int) -> None:
    """Three times at most, and no key approves meanwhile."""
    scene, _ = asked(CALLER)
    for time in range(4):
        question = scene.requests[-1]
        scene.do(created(f"q{time}", question))
        if heard_ms:
            scene.do(audio(f"q{time}", f"iq{time}", 600))
            scene.listen(heard_ms)
        scene.do(SPEECH, done(f"q{time}", "cancelled"))
        scene.do(said(InputCommitted("item_user")), created(f"a{time}"))
        assert scene.do(key("1")) == []
        scene.do(audio(f"a{time}", f"ia{time}", 200), done(f"a{time}"))
        scene.listen(300)
        assert (scene.requests[-1] is not question) == (time < 3)
    assert [(one.response or {}).get("instructions") for one in scene.requests] == [
        "Say exactly: refund 250?"
    ] * 4
    assert scene.do(key("1")) == []
    assert "output c1" in scene.do(key("2"))


@pytest.mark.parametrize("turn", [False, True])
def test_a_server_that_names_no_requests_has_its_questions_answered(turn: bool) -> None:
    scene, _ = asked(CALLER)
    if turn:
        scene.do(inputs.ServerEventReceived(InputCommitted("u1")), created("r2"))
        scene.do(audio("r2", "i2", 200), done("r2"))
    heard(scene, "r3")
    assert scene.do(key("1"))[-1] == 'run refund c1 {"amount": 250}'


def test_no_other_answer_of_a_server_that_names_no_requests_is_taken_for_a_question() -> None:
    """Such as to the turn that has cut the question off, which is then asked again."""
    scene, _ = asked(CALLER)
    scene.do(created("q1"), audio("q1", "i1", 600))
    scene.listen(100)
    scene.do(SPEECH, done("q1", "cancelled"), said(InputCommitted("item_user")), created("a1"))
    scene.do(audio("a1", "i2", 2000))
    scene.listen(1500)
    assert scene.do(key("1")) == []
    scene.do(done("a1"))
    scene.listen(600)
    assert scene.requests[-1].response == {"instructions": "Say exactly: refund 250?", "tools": []}
    heard(scene, "q2")
    assert scene.do(key("1"))[-1] == 'run refund c1 {"amount": 250}'


def test_a_question_is_asked_again_where_what_was_taken_for_it_had_no_sound() -> None:
    """A server that names no requests may answer a turn before the question."""
    scene, _ = asked(CALLER)
    scene.do(
        inputs.ServerEventReceived(InputCommitted("u1")), created("r2"), done("r2", "cancelled")
    )
    heard(scene, "r3")
    assert len(scene.requests) == 2
    heard(scene, "r4")
    assert scene.do(key("1"))[-1] == 'run refund c1 {"amount": 250}'


def test_questions_come_one_after_the_other() -> None:
    scene = Scene(replace(PLAN, tools=replace(PLAN.tools, approvals=(CALLER,)))).up()
    calls = [("refund", "c1", '{"amount": 1}'), ("refund", "c2", '{"amount": 2}')]
    scene.at(1.0, created("r1"), done("r1", calls=calls))
    assert len(scene.requests) == 1
    heard(scene, "r2")
    seen = scene.do(key("2"))
    assert seen == ["create ['instructions', 'tools']"]
    assert scene.requests[-1].response == {"instructions": "Say exactly: refund 2?", "tools": []}
    heard(scene, "r3")
    assert scene.do(key("1")) == ['run refund c2 {"amount": 2}']
    assert scene.do(inputs.ToolDone("c2", "{}")) == ["output c1", "output c2", "create"]


@pytest.mark.parametrize("heard_ms", [0, 300])
def test_a_question_that_was_lost_with_its_session_is_asked_again(heard_ms: int) -> None:
    """And no digit answers it before that."""
    steps = (FallbackStep("reconnect", 10.0),)
    tools = replace(PLAN.tools, approvals=(CALLER,))
    scene = Scene(replace(PLAN, tools=tools, server=ServerPlan(fallback=steps))).up()
    calls = [REFUND, ("refund", "c2", '{"amount": 2}')]
    scene.at(1.0, created("r1"), done("r1", calls=calls))
    if heard_ms:
        words = AgentTranscriptDelta("r2", "i2", 0, "refund")
        scene.do(created("r2", scene.requests[-1]), inputs.ServerEventReceived(words))
        scene.do(audio("r2", "i2", 500))
        scene.listen(heard_ms)
    scene.at(2.0, closed(1006))
    scene.listen(600)
    assert not [words for words in scene.do(key("1")) if words.startswith("run")]
    assert "create ['instructions', 'tools']" in scene.do(inputs.SessionReady("sess_2"))
    asked = [(one.response or {}).get("instructions") for one in scene.requests]
    assert asked == ["Say exactly: refund 250?"] * 2
    heard(scene, "r3")
    assert 'run refund c1 {"amount": 250}' in scene.do(key("1"))


def test_a_question_that_was_heard_is_answered_without_a_session() -> None:
    """The one behind it is asked by the session that is to come."""
    steps = (FallbackStep("reconnect", 10.0),)
    tools = replace(PLAN.tools, approvals=(CALLER,))
    scene = Scene(replace(PLAN, tools=tools, server=ServerPlan(fallback=steps))).up()
    calls = [REFUND, ("refund", "c2", '{"amount": 2}')]
    scene.at(1.0, created("r1"), done("r1", calls=calls))
    heard(scene, "r2")
    scene.at(2.0, closed(1006))
    assert scene.do(key("1")) == ['run refund c1 {"amount": 250}']
    assert not [words for words in scene.do(key("1")) if words.startswith("run")]
    scene.at(3.0, inputs.SessionReady("sess_2"))
    assert (scene.requests[-1].response or {})["instructions"] == "Say exactly: refund 2?"
    heard(scene, "r3")
    assert scene.do(key("1")) == ['run refund c2 {"amount": 2}']


# ---- MCP servers that the realtime server calls

REQUEST = {
    "type": "mcp_approval_request",
    "id": "mcpr_1",
    "server_label": "crm",
    "name": "delete",
    "arguments": '{"amount": 250}',
}


def mcp_asked(
    *rules: ApprovalRule, on_trouble: tuple[FallbackStep, ...] = ()
) -> tuple[Scene, list[str]]:
    """A response ends with a request for approval."""
    scene = Scene(
        replace(
            PLAN,
            tools=replace(PLAN.tools, approvals=rules),
            server=replace(PLAN.server, fallback=on_trouble),
        )
    ).up()
    scene.at(
        1.0, created("r1"), inputs.ServerEventReceived(ItemAdded({**REQUEST, "arguments": ""}))
    )
    item_done = OtherEvent("response.output_item.done", {"item": REQUEST})
    seen = scene.do(inputs.ServerEventReceived(item_done))
    end = ResponseDone("r1", "completed", None, None, None, (REQUEST,), None)
    return scene, seen + scene.do(inputs.ServerEventReceived(end))


def expiring(rule: ApprovalRule, *on_trouble: FallbackStep) -> Scene:
    """A session that ends at 3600 s; in its last minute it asks for approval."""
    scene = Scene(
        replace(
            PLAN,
            tools=replace(PLAN.tools, approvals=(rule,)),
            server=replace(PLAN.server, fallback=on_trouble),
            limits=LimitsPlan(rtp_timeout=0, max_call_duration=20_000),
        )
    )
    scene.do(inputs.SessionReady("sess_1", 3600.0), ACK)
    assert "open spare" in scene.at(3540.5)
    item_done = OtherEvent("response.output_item.done", {"item": REQUEST})
    end = ResponseDone("r1", "completed", None, None, None, (REQUEST,), None)
    asking = (created("r1"), inputs.ServerEventReceived(item_done))
    assert scene.do(*asking, inputs.ServerEventReceived(end)) == ["ask crm_delete 0"]
    return scene


def mcp_call(state: str) -> inputs.ServerEventReceived:
    """An event of a call to an MCP server, which the realtime server makes."""
    event = OtherEvent(f"response.mcp_call.{state}", {"item_id": "m1"})
    return inputs.ServerEventReceived(event)


def answers(scene: Scene) -> list[dict[str, Any]]:
    """The approval responses that were sent."""
    items = [dict(one.item) for one in scene.sent if isinstance(one, CreateItem)]
    return [one for one in items if one["type"] == "mcp_approval_response"]


@pytest.mark.parametrize(
    ("rules", "answer"),
    [
        ((ApprovalRule("crm_delete", "allow"),), {"approve": True}),
        ((), {"approve": False, "reason": "this may not be done"}),
        (
            (ApprovalRule("crm_*", "deny", BIG),),
            {"approve": False, "reason": "this may not be done"},
        ),
    ],
)
def test_a_request_for_approval_is_answered_once(
    rules: tuple[ApprovalRule, ...], answer: dict[str, Any]
) -> None:
    scene, _ = mcp_asked(*rules)
    wanted = {
        "id": "gw_approval_1",
        "type": "mcp_approval_response",
        "approval_request_id": "mcpr_1",
        **answer,
    }
    assert answers(scene) == [wanted]
    # The server says nothing by itself: it is asked to.
    assert scene.at(2.5) == ["create"]


def test_a_server_that_goes_on_by_itself_is_not_asked_to() -> None:
    scene, _ = mcp_asked(ApprovalRule("crm_delete", "allow"))
    scene.at(
        1.5,
        inputs.ServerEventReceived(OtherEvent("response.mcp_call.in_progress", {"item_id": "m"})),
    )
    assert scene.at(9.0) == [], "it takes its time"
    scene.do(
        inputs.ServerEventReceived(OtherEvent("response.mcp_call.completed", {"item_id": "m"}))
    )
    assert scene.at(9.5, created("r2")) == []
    assert scene.at(20.0) == []


def test_a_request_of_a_session_that_is_gone_is_not_answered() -> None:
    rule = ApprovalRule("crm_delete", "ask_http", timeout=10.0)
    trouble = (FallbackStep("reconnect", 10.0, ""),)
    scene, seen = mcp_asked(rule, on_trouble=trouble)
    assert seen == ["ask crm_delete 0"]
    scene.do(inputs.SessionClosed(1011, ""), inputs.SessionReady("sess_2"))
    scene.do(inputs.ApprovalResult("mcpr_1", True))
    assert answers(scene) == []


@pytest.mark.parametrize("heard_ms", [0, 300, 700])
def test_a_request_that_the_caller_was_asked_about_ends_with_its_session(heard_ms: int) -> None:
    """The next session answers, and may ask for the same."""
    rule = ApprovalRule("crm_delete", "ask_caller", timeout=10.0, prompt=_say)
    scene, _ = mcp_asked(rule, on_trouble=(FallbackStep("reconnect", 10.0, ""),))
    if heard_ms:
        words = AgentTranscriptDelta("r2", "i2", 0, "crm_delete 250?")
        scene.do(created("r2", scene.requests[-1]), inputs.ServerEventReceived(words))
        scene.do(audio("r2", "i2", 600), audio_done("r2", "i2"))
        scene.do(*[done("r2")] if heard_ms > 600 else [])
        scene.listen(heard_ms)
    scene.do(closed(1006))
    scene.listen(700)
    scene.do(key("1"), inputs.SessionReady("sess_2"))
    assert [one.response is None for one in scene.requests] == [False, True]
    scene.do(created("r3", scene.requests[-1]))
    item_done = OtherEvent("response.output_item.done", {"item": REQUEST})
    scene.do(inputs.ServerEventReceived(item_done), done("r3"))
    scene.do(created("r4", scene.requests[-1]), audio("r4", "i4", 600), done("r4"))
    scene.listen(700)
    scene.do(key("1"))
    assert [one["approve"] for one in answers(scene)] == [True]


@pytest.mark.parametrize("stage", ["approved", "runs", "over"])
@pytest.mark.parametrize("how", ["closed", "error", "standby"])
def test_an_answer_to_an_mcp_call_is_given_by_the_session_that_takes_over(
    how: str, stage: str
) -> None:
    rule = ApprovalRule("crm_delete", "ask_http", timeout=10.0)
    scene = expiring(rule, FallbackStep("reconnect", 10.0))
    scene.do(inputs.ApprovalResult("mcpr_1", True))
    if stage != "approved":
        scene.do(mcp_call("in_progress"))
    if stage == "over":
        scene.do(mcp_call("completed"))
    assert scene.requests == []
    if how == "standby":
        scene.do(inputs.StandbyReady("sess_2"))
    seen = scene.at(3541.0, error("session_expired") if how == "error" else closed(1011))
    assert ("take over" in seen) is (how == "standby")
    if how != "standby":
        assert scene.at(3545.0) == []
        seen = scene.do(inputs.SessionReady("sess_2"))
    assert seen[-1] == "create"
    scene.do(created("r2"), audio("r2", "i2", 200), audio_done("r2", "i2"), done("r2"))
    scene.listen(300)
    assert len(scene.requests) == 1
    assert "create" not in scene.at(scene.now + 20.0), "it was given"


def test_a_hand_over_waits_for_an_mcp_server() -> None:
    """From the request for approval to the response after the call: another session knows none."""
    rule = ApprovalRule("crm_delete", "ask_http", timeout=10.0)
    scene = expiring(rule)
    scene.at(3541.0, inputs.StandbyReady("sess_2", None))
    assert "take over" not in scene.seen, "somebody decides"
    scene.at(3545.0, inputs.ApprovalResult("mcpr_1", True))
    scene.at(3546.0, mcp_call("in_progress"))
    scene.at(3560.0, mcp_call("completed"))
    scene.do(created("r2"), audio("r2", "i2", 200), audio_done("r2", "i2"), done("r2"))
    assert "take over" not in scene.seen
    assert len(answers(scene)) == 1
    assert "take over" in scene.listen(300)


def test_a_request_of_a_session_that_was_handed_over_is_not_answered() -> None:
    scene = expiring(ApprovalRule("crm_delete", "ask_http", timeout=90.0))
    scene.at(3541.0, inputs.StandbyReady("sess_2", None))
    assert "take over" in scene.at(3597.5), "there is no more time"
    scene.do(inputs.ApprovalResult("mcpr_1", True))
    assert answers(scene) == []


def test_nobody_is_asked_to_speak_while_a_service_decides() -> None:
    rules = (ApprovalRule("hold", "ask_http", timeout=30.0),)
    tools = replace(PLAN.tools, approvals=rules, hold=HoldPlan(True))
    scene = Scene(replace(PLAN, tools=tools, idle=UserIdlePlan(timeout=5.0, prompt="Hello?"))).up()
    calls = [("hold", "c1", '{"seconds": 1}')]
    assert scene.at(1.0, created("r1"), done("r1", calls=calls)) == ["ask hold 0"]
    assert scene.at(20.0) == []
    scene.do(inputs.ApprovalResult("c1", False))
    scene.do(created("r2"), done("r2"))
    assert scene.at(40.0) != []


def test_the_caller_approves_of_what_an_mcp_server_does() -> None:
    rule = ApprovalRule("crm_delete", "ask_caller", timeout=10.0, prompt=_say)
    scene, seen = mcp_asked(rule)
    assert scene.requests[-1].response == {
        "instructions": "Say exactly: crm_delete 250?",
        "tools": [],
    }
    heard(scene, "r2")
    seen = scene.do(key("2"))
    assert answers(scene)[0]["approve"] is False
    assert answers(scene)[0]["reason"] == "the caller said no"
    assert seen
    (use,) = scene.record.actions.tools
    assert (use.name, use.outcome, use.approval) == ("crm_delete", "refused", "refused: caller")


def test_who_approved_of_a_call_of_an_mcp_server_is_in_the_record() -> None:
    scene, _ = mcp_asked(ApprovalRule("crm_delete", "ask_caller", timeout=10.0, prompt=_say))
    heard(scene, "r2")
    scene.do(key("1"))
    assert answers(scene)[0]["approve"] is True
    call = {"type": "mcp_call", "id": "m1", "server_label": "crm", "name": "delete"}
    for more in ({"id": "m1", "approval_request_id": "mcpr_1"}, {"id": "m2"}):
        item = {"item": {**call, **more}}
        scene.do(inputs.ServerEventReceived(OtherEvent("response.output_item.done", item)))
    uses = [(one.name, one.outcome, one.approval) for one in scene.record.actions.tools]
    assert uses == [("crm_delete", "done", "caller"), ("crm_delete", "done", "")]


def test_what_mcp_servers_do_is_in_the_record() -> None:
    scene = Scene(PLAN).up()
    tools = {"type": "mcp_list_tools", "id": "l1", "server_label": "crm", "tools": [{}, {}]}
    scene.do(inputs.ServerEventReceived(OtherEvent("conversation.item.done", {"item": tools})))
    call = {"type": "mcp_call", "id": "m1", "server_label": "crm", "name": "find"}
    broken = {**call, "id": "m2", "error": {"type": "http_error", "message": "secret"}}
    scene.at(1.0, created("r1"))
    end = ResponseDone("r1", "completed", None, None, None, (call, broken), None)
    scene.do(inputs.ServerEventReceived(end))
    scene.do(inputs.ServerEventReceived(OtherEvent("mcp_list_tools.failed", {"item_id": "l2"})))
    told = {one.event: one.fields for one in scene.notes}
    assert told["mcp_listed"] == {"server": "crm", "tools": 2}
    assert told["mcp_list_failed"] == {"item_id": "l2"}
    assert [(one.name, one.outcome) for one in scene.record.actions.tools] == [
        ("crm_find", "done"),
        ("crm_find", "failed"),
    ]
    assert scene.at(2.5) == ["create"], "nothing was said about it"

# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller who asks for a human, by a key or a phrase: without the model, and whoever answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import (
    ApprovalRule,
    CallPlan,
    EscapePlan,
    FallbackStep,
    ServerPlan,
    ToolsPlan,
)
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import (
    CollectPlan,
    Destination,
    EndCall,
    HoldPlan,
    OperatorHold,
    TransferPlan,
)
from gateway.realtime.events import InputTranscribed
from gateway.realtime.session_object import TRANSCRIPTION
from tests.support.call_scene import (
    ACK,
    OUR_END,
    UNREACHABLE,
    Scene,
    audio,
    closed,
    created,
    done,
    key,
    said,
)
from tests.unit.call.test_call_control import ESCAPING, PLAN, results, wants
from tests.unit.call.test_interpretation import PLAN as INTERPRETED
from tests.unit.call.test_interpretation import interpreted
from tests.unit.call.test_live_sessions import GREETED, live
from tests.unit.call.test_transfer import gone


def test_a_caller_on_hold_asks_for_a_human_whom_nobody_can_call() -> None:
    scene = Scene(replace(PLAN, escape=EscapePlan(key="0", to=("nobody",)))).up()
    scene.do(inputs.ToolRequest(OperatorHold(True)))
    seen = scene.do(key("0"))
    logged = [note.event for note in scene.notes if note.event == "escape_failed"]
    assert len(logged) == 2, "the destination that cannot be called, and that nobody answered"
    assert "sound" in seen, "the music stops"
    assert "resume" in seen
    assert [mark["event"] for mark in scene.record.timeline].count("hold_ended") == 1
    assert results(scene) == [], "the hold was no tool call"


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


HUMAN = EscapePlan("0", (("a", "human"), ("operator",)), ("anna", "boss"))


def heard(words: str) -> inputs.ServerEventReceived:
    """The transcript of a turn of the caller."""
    return said(InputTranscribed("u1", words))


@pytest.mark.parametrize(
    ("asks", "by"), [(key("0"), "key"), (heard("Can I speak to... a human, please?"), "word")]
)
def test_who_asks_for_a_human_is_transferred_at_once(asks: inputs.Input, by: str) -> None:
    """The agent stops in the middle of its words, and the model is asked nothing."""
    scene = Scene(replace(PLAN, escape=HUMAN)).up()
    scene.do(created("r1"), audio("r1", "i1", 3000))
    scene.listen(400)
    seen = scene.do(asks)
    assert seen[0] == "flush"
    assert {"truncate i1/0 400", "cancel r1", "second sip:2@pbx"} <= set(seen)
    assert scene.requests == []
    assert [note.fields["by"] for note in scene.notes if note.event == "escape"] == [by]
    scene.do(inputs.BLegAnswered())
    assert scene.state is State.BRIDGED


@pytest.mark.parametrize("words", ["A humane offer.", "human, a", "Operators are standing by.", ""])
def test_other_words_ask_for_nobody(words: str) -> None:
    scene = Scene(replace(PLAN, escape=HUMAN)).up()
    scene.do(heard(words))
    assert "escape" not in scene.events


def test_destinations_are_tried_in_their_order_until_none_is_left() -> None:
    """Then the model is told so, and speaks; and the caller may ask again."""
    scene = Scene(replace(PLAN, escape=HUMAN)).up()
    for _ in range(2):
        assert "second sip:2@pbx" in scene.do(key("0"))
        seen = scene.do(gone(486))
        assert "second sip:1@pbx office" in seen
        assert "create" not in seen
        seen = scene.do(gone(480))
        assert any(one.startswith("item The caller asked for a human, but nobody") for one in seen)
        assert seen[-2:] == ["create", "resume"]
        scene.do(created("r1"), done("r1", "cancelled"))
    assert [one.outcome for one in scene.record.actions.transfers] == ["busy", "no_answer"] * 2
    assert results(scene) == [], "no tool call of the model's was answered"


def test_a_destination_that_cannot_be_called_is_skipped() -> None:
    scene = Scene(replace(PLAN, escape=replace(HUMAN, to=("nobody", "anna")))).up()
    assert "second sip:2@pbx" in scene.do(key("0"))
    assert scene.events.count("escape_failed") == 1


def test_the_key_leaves_a_call_that_is_joined_through_an_interpreter() -> None:
    scene = interpreted(replace(INTERPRETED, escape=EscapePlan("0", to=("anna",))))
    seen = scene.do(key("0"))
    assert {"interpret no more", "hang up second", "second sip:2@pbx"} <= set(seen)
    assert scene.state is State.TALKING


def test_a_key_during_the_escape_begins_no_second_one() -> None:
    scene = Scene(replace(PLAN, escape=HUMAN)).up()
    scene.do(key("0"))
    assert scene.do(key("0"), heard("operator")) == []
    assert scene.events.count("escape") == 1


def test_the_key_is_a_digit_while_digits_are_collected() -> None:
    tools = replace(PLAN.tools, collect_digits=CollectPlan(True))
    scene = Scene(replace(PLAN, escape=HUMAN, tools=tools)).up()
    scene.do(created("r1"), wants("collect_digits", digits=2))
    scene.do(key("0"), key("7"))
    assert "escape" not in scene.events
    assert results(scene)[0]["digits"] == "07"
    assert "second sip:2@pbx" in scene.do(key("0"))


def test_the_key_reaches_a_human_while_the_caller_is_asked_about_a_tool() -> None:
    ask = (ApprovalRule("lookup", "ask_caller"),)
    tools = replace(PLAN.tools, approvals=ask)
    scene = Scene(replace(PLAN, escape=HUMAN, tools=tools)).up()
    scene.do(created("r1"), wants("lookup"))
    assert "second sip:2@pbx" in scene.do(key("0"))


def test_without_destinations_the_key_is_a_digit_and_words_are_words() -> None:
    scene = Scene(replace(PLAN, escape=replace(HUMAN, to=()))).up()
    scene.do(heard("operator"), key("0"), key("#"))
    assert "escape" not in scene.events
    assert [run.digits for run in scene.record.actions.digits] == ["0"]


def test_who_asks_while_the_conversation_is_being_ended_is_not_transferred() -> None:
    scene = Scene(replace(PLAN, escape=HUMAN)).up()
    scene.do(inputs.ToolRequest(EndCall("Goodbye.")))
    scene.do(heard("operator"), key("0"))
    assert "escape" not in scene.events


@pytest.mark.parametrize(("words", "ends"), [("Well, good bye then.", True), ("Bye, good", False)])
def test_the_callers_goodbye_ends_a_call_that_is_only_transcribed(words: str, ends: bool) -> None:
    plan = CallPlan("route", Codec.PCMU, escape=EscapePlan(end_phrases=(("good", "bye"),)))
    scene = Scene(plan)
    scene.do(inputs.SessionReady("sess_1", None, TRANSCRIPTION), ACK)
    assert ("bye 16" in scene.do(heard(words)) + scene.at(2.0)) is ends
    if ends:
        scene.do(OUR_END)
        assert scene.ending[1] == "agent_hangup"
        assert scene.record.ending is not None
        assert scene.record.ending.detail == "the caller said: good bye"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Digits of a caller: runs of them become an item and a request, and cut what is heard."""

from __future__ import annotations

import pytest

from gateway.call import inputs
from gateway.call.plan import DtmfPlan
from gateway.realtime.events import CreateItem
from tests.support.call_scene import SPEECH, UP, Scene, audio, created, done, key
from tests.unit.call.conversation.test_conversation import PRESSED, plan_of, talking


@pytest.mark.parametrize(
    ("keys", "plan", "items"),
    [
        ("42#", DtmfPlan(), [(0.2, "42", "terminator")]),
        ("42", DtmfPlan(), [(3.1, "42", "timeout")]),
        ("4242", DtmfPlan(max_digits=2), [(0.1, "42", "full"), (0.3, "42", "full")]),
        ("#", DtmfPlan(), [(0.0, "#", "terminator")]),
        ("##", DtmfPlan(), [(0.0, "#", "terminator"), (0.1, "#", "terminator")]),
        (
            "12*34",
            DtmfPlan(finish_on_key="*"),
            [(0.2, "12", "terminator"), (3.4, "34", "timeout")],
        ),
        ("1#2", DtmfPlan(finish_on_key="", inter_digit_timeout=1.0), [(1.2, "1#2", "timeout")]),
        ("1", DtmfPlan(finish_on_key="", max_digits=1), [(0.0, "1", "full")]),
        ("*9D", DtmfPlan(inter_digit_timeout=0.5), [(0.7, "*9D", "timeout")]),
    ],
)
def test_digits_become_an_item_and_a_request(
    keys: str, plan: DtmfPlan, items: list[tuple[float, str, str]]
) -> None:
    scene = Scene(plan_of(dtmf=plan)).up()
    for number, digit in enumerate(keys):
        scene.at(number / 10, key(digit))
    scene.at(20.0)
    found = [
        (round(run.at_ms / 1000, 3), run.digits, run.ended_by)
        for run in scene.record.actions.digits
    ]
    assert found == items
    texts = [c.item["content"][0]["text"] for c in scene.sent if isinstance(c, CreateItem)]
    assert texts == [f"The caller pressed {d} on the telephone keypad." for _, d, _ in items]
    assert len(scene.requests) >= 1
    assert scene.events.count("dtmf") == len(keys)


def test_a_pause_splits_runs_even_when_no_tick_came_in_between() -> None:
    scene = Scene().up()
    scene.do(key("1"))
    scene.now = 3.5  # the loop was late
    seen = scene.do(key("2"))
    assert seen == [PRESSED.format("1"), "create"]
    scene.at(8.0)
    assert [run.digits for run in scene.record.actions.digits] == ["1", "2"]


def test_a_digit_cuts_and_cancels_then_asks() -> None:
    scene = talking(1000, 200)
    assert scene.do(key("7")) == ["flush", "truncate i1/0 200", "cancel r1"]
    assert scene.do(audio("r1", "i1", 100)) == []
    # Further keys find nothing to cut, and cancel nothing twice.
    assert scene.do(key("8")) == ["flush"]
    assert scene.do(key("#")) == ["flush", PRESSED.format("78")]
    assert scene.do(done("r1", "cancelled")) == ["create"]


def test_truncation_is_told_before_the_digits_that_cut() -> None:
    scene = talking(1000)
    scene.do(done("r1"))
    scene.listen(200)
    assert scene.do(key("#")) == ["flush", "truncate i1/0 200", PRESSED.format("#"), "create"]


def test_a_digit_after_speech_leaves_the_cancelling_to_the_server() -> None:
    scene = talking(1000, 200)
    scene.do(SPEECH)
    assert scene.do(key("7")) == ["flush"]


def test_digits_that_do_not_interrupt_wait_for_the_answer() -> None:
    scene = talking(1000, 200, plan_of(dtmf=DtmfPlan(interrupt=False)))
    assert scene.do(key("7"), key("#")) == [PRESSED.format("7")]
    assert scene.queue == 40
    assert scene.do(done("r1")) == ["create"]


def test_digits_that_are_switched_off_are_noted_only() -> None:
    scene = talking(1000, 200, plan_of(dtmf=DtmfPlan(enabled=False)))
    assert scene.do(key("7"), key("#")) == []
    assert scene.queue == 40
    scene.at(30.0)
    assert scene.record.actions.digits == []
    assert scene.events.count("dtmf") == 2


def test_digits_are_given_to_the_text_of_the_plan() -> None:
    scene = Scene(plan_of(dtmf=DtmfPlan(text=lambda pressed: "-".join(pressed)))).up()
    assert scene.do(key("1"), key("2"), key("#")) == ["item 1-2", "create"]


def test_digits_before_the_session_is_up_are_nobodys() -> None:
    scene = Scene()
    assert scene.do(key("1"), UP) == ["200"]
    scene.at(5.0)
    assert scene.record.actions.digits == []


def test_digits_of_a_caller_who_hangs_up_are_in_the_record() -> None:
    scene = Scene().up()
    scene.do(key("1"), key("2"), inputs.LegEnded(200, "", "BYE", "", False))
    assert [(run.digits, run.ended_by) for run in scene.record.actions.digits] == [
        ("12", "call_end")
    ]


def test_runs_that_wait_are_answered_together() -> None:
    scene = talking(1000, 200, plan_of(dtmf=DtmfPlan(interrupt=False)))
    seen = scene.do(key("1"), key("#"), key("2"), key("#"), key("3"), key("#"))
    assert seen == [PRESSED.format(digit) for digit in "123"]
    assert scene.do(done("r1")) == ["create"]
    assert scene.do(created("r2"), audio("r2", "i2", 20), done("r2")) == ["play 20"]

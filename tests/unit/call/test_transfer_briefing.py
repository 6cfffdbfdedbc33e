# SPDX-License-Identifier: GPL-2.0-or-later
"""Briefing of whoever answers a transfer, on the virtual clock: keys, silence, losses, races."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import CallPlan, EscapePlan, FallbackStep, ToolsPlan
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import (
    BriefingPlan,
    CollectPlan,
    Destination,
    OperatorTransfer,
    RecordCall,
    RecordingPlan,
    TransferPlan,
)
from gateway.call.tools.definitions import transfer_call
from gateway.call.transfer import REPEAT_SECONDS, SPEECH_SECONDS
from tests.support.call_scene import (
    ACK,
    BYE,
    OUR_END,
    Scene,
    audio,
    closed,
    created,
    done,
    failed,
    key,
)
from tests.unit.call.test_call_control import PICKED_UP, results, wants
from tests.unit.call.test_transfer import gone

BRIEFING = BriefingPlan(timeout=20.0)
ANNA = Destination("anna", "sip:2@pbx", "bridge", ring_timeout=20, briefing=BRIEFING)
TRANSFER = TransferPlan((ANNA,))
PLAN = CallPlan("route", Codec.PCMU, tools=ToolsPlan(transfer=TRANSFER))


def plan_with(mode: str = "bridge", **settings: Any) -> CallPlan:
    """The route with other settings of its briefing."""
    anna = replace(ANNA, mode=mode, briefing=replace(BRIEFING, **settings))
    return replace(PLAN, tools=ToolsPlan(transfer=TransferPlan((anna,))))


def answered(plan: CallPlan = PLAN, **more: str) -> Scene:
    """Anna has answered at 2.0 s, and the briefing was requested."""
    scene = Scene(plan).up()
    scene.at(1.0, created("r1"), wants("transfer_call", destination="anna", **more))
    scene.at(2.0, PICKED_UP)
    return scene


def briefed(plan: CallPlan = PLAN) -> Scene:
    """The model has said all of it, two seconds long."""
    scene = answered(plan)
    scene.at(2.5, created("b1", scene.requests[-1]), audio("b1", "i1", 2000), done("b1"))
    return scene


def pressed(digit: str) -> inputs.BLegDigit:
    """A key of Anna's."""
    return inputs.BLegDigit(digit)


def outcome(scene: Scene) -> tuple[str, str]:
    """Outcome of the transfer and of its briefing in the record."""
    (attempt,) = scene.record.actions.transfers
    return attempt.outcome, attempt.briefing


@pytest.mark.parametrize("sound", ["chime", ""])
def test_a_transfer_that_was_queued_when_the_session_was_lost_waits_for_no_briefing(
    sound: str,
) -> None:
    plan = plan_with(sound=sound)
    steps = (FallbackStep("reconnect", timeout=30.0),)
    scene = Scene(replace(plan, server=replace(plan.server, fallback=steps))).up()
    scene.do(created("r1"), audio("r1", "i1", 1000), wants("transfer_call", destination="anna"))
    scene.do(closed(1006))
    scene.listen(1100)
    assert "second sip:2@pbx" in scene.seen
    begun = scene.at(2.0, PICKED_UP)
    assert (f"sound {sound} second" if sound else "join") in begun
    assert scene.machine.state is (State.TALKING if sound else State.BRIDGED)


def test_a_briefing_in_a_session_that_is_handed_over_goes_on_with_the_sound() -> None:
    scene = Scene(plan_with(sound="chime"))
    scene.do(inputs.SessionReady("sess_1", 60.0), ACK)
    scene.do(created("r1"), wants("transfer_call", destination="anna"))
    scene.at(2.0, PICKED_UP)
    scene.do(created("b1", scene.requests[-1]), audio("b1", "i1", 1000))
    scene.do(inputs.StandbyReady("sess_2", 3600.0))
    assert "sound chime second" in scene.do(closed(1006))
    assert "take over" in scene.seen


def test_she_hears_it_and_the_caller_hears_music() -> None:
    scene = answered(briefing="Mr Smith calls about his bill.")
    assert scene.seen[-2:][0] == "sound music"
    wanted = scene.requests[-1].response or {}
    assert wanted["conversation"] == "none"
    assert wanted["output_modalities"] == ["audio"]
    assert wanted["instructions"] == (
        "Say exactly: Mr Smith calls about his bill. Press 1 to take the call, or 2 to decline it."
    )
    begun = scene.at(2.5, created("b1", scene.requests[-1]), audio("b1", "i1", 100))
    assert begun == ["brief 100"], "and nothing of it is played to the caller"
    assert scene.at(3.0, audio("b1", "i1", 30), done("b1")) == ["brief 20"]
    assert scene.machine.state is State.TALKING


@pytest.mark.parametrize(
    ("text", "given", "begins"),
    [
        ("", "", "You are on the telephone with a colleague"),
        ("", "He is angry.", "Say exactly: He is angry. Press 1"),
        ("A guest of the hotel.", "He is angry.", "Say exactly: A guest of the hotel. Press 1"),
    ],
)
def test_whose_words_they_are(text: str, given: str, begins: str) -> None:
    scene = answered(plan_with(text=text), briefing=given)
    assert (scene.requests[-1].response or {})["instructions"].startswith(begins)


def test_accepted_they_are_joined() -> None:
    scene = briefed()
    assert scene.at(5.0, pressed("1"))[:4] == ["brief 0", "sound second", "sound", "join"]
    assert scene.machine.state is State.BRIDGED
    assert outcome(scene) == ("answered", "accepted")
    assert scene.do(pressed("5")) == ["press 5 auto"], "from now on her keys are for the caller"
    scene.do(gone(200, "BYE"), OUR_END)
    assert scene.ending == ("callee", "bridge_ended", 200)


def test_accepted_the_callers_side_takes_the_call_over() -> None:
    scene = briefed(plan_with("attended"))
    assert scene.at(5.0, pressed("1")) == ["brief 0", "sound second", "refer to the second"]
    assert scene.do(pressed("2")) == [], "it is decided"


@pytest.mark.parametrize(
    ("at", "what", "status", "answer"),
    [
        (5.0, pressed("2"), "declined", "declined"),
        (5.0, gone(200, "BYE"), "declined", "hung_up"),
        (22.0, None, "no_answer", "no_key"),
        (3.0, pressed("2"), "declined", "declined"),
    ],
)
def test_refused_the_caller_is_back(
    at: float, what: inputs.Input | None, status: str, answer: str
) -> None:
    scene = briefed()
    seen = scene.at(at, *([] if what is None else [what]))
    begin = ["brief 0", "sound second", "sound", "hang up second"]
    assert [one for one in seen if one != "brief 2000"] == [*begin, "output c1", "create", "resume"]
    (told,) = results(scene)
    assert (told["status"], told["destination"]) == (status, "anna")
    assert told["reason"].startswith(("they answered", "the call was answered"))
    assert outcome(scene) == (status, answer)
    assert scene.do(pressed("1"), gone(487)) == [], "too late"


@pytest.mark.parametrize("code", [486, 480, 603])
def test_who_does_not_answer_is_not_briefed(code: int) -> None:
    scene = Scene(PLAN).up()
    scene.at(1.0, created("r1"), wants("transfer_call", destination="anna"), gone(code))
    assert "reason" not in results(scene)[0]
    assert outcome(scene)[1] == ""


def test_other_keys_mean_nothing_and_early_ones_neither() -> None:
    scene = Scene(PLAN).up()
    scene.at(1.0, created("r1"), wants("transfer_call", destination="anna"))
    assert scene.at(1.5, pressed("1")) == [], "before she has answered"
    scene.at(2.0, PICKED_UP)
    assert scene.do(pressed("7"), pressed("#")) == []
    assert "join" in scene.do(pressed("1")), "before anything was said"


def test_it_is_repeated_until_she_decides() -> None:
    scene = briefed()
    scene.at(4.5 + REPEAT_SECONDS - 0.1)
    assert scene.at(4.5 + REPEAT_SECONDS) == ["brief 2000"]
    assert scene.at(4.5 + 2 * REPEAT_SECONDS + 2.0) == ["brief 2000"]


def test_accept_at_the_last_moment() -> None:
    """The deadline and the key come at the same time: whichever is handled first decides."""
    scene = briefed()
    scene.at(21.999)
    assert "join" in scene.do(pressed("1"))
    late = briefed()
    late.at(22.0)
    assert late.do(pressed("1")) == []
    assert outcome(late) == ("no_answer", "no_key")


def test_she_accepts_and_hangs_up() -> None:
    scene = briefed()
    scene.at(5.0, pressed("1"), gone(200, "BYE"), OUR_END)
    assert scene.ending == ("callee", "bridge_ended", 200)


def test_she_hangs_up_as_she_accepts() -> None:
    scene = briefed()
    scene.at(5.0, gone(200, "BYE"), pressed("1"))
    assert outcome(scene) == ("declined", "hung_up")
    assert scene.machine.state is State.TALKING


def test_the_caller_hangs_up_meanwhile() -> None:
    scene = briefed()
    assert "hang up second" in scene.at(5.0, BYE)
    assert scene.do(pressed("1"), gone(200)) == []
    assert scene.ending == ("caller", "remote_hangup", 200)


def test_the_caller_puts_it_on_hold_meanwhile() -> None:
    scene = briefed()
    scene.at(4.0, inputs.HoldChanged(True))
    assert "join" in scene.at(5.0, pressed("1"))
    scene.do(inputs.HoldChanged(False))
    assert scene.machine.state is State.BRIDGED


@pytest.mark.parametrize(
    ("sound", "done_then", "answer"),
    [
        ("brief.wav", ["brief 0", "sound brief.wav second"], ""),
        ("", ["brief 0", "sound second", "sound", "join"], "skipped"),
    ],
)
@pytest.mark.parametrize("trouble", ["silent", "failed", "lost"])
def test_the_model_cannot_say_it(
    trouble: str, sound: str, done_then: list[str], answer: str
) -> None:
    scene = answered(plan_with(sound=sound))
    if trouble == "silent":
        seen = scene.at(2.0 + SPEECH_SECONDS)
    elif trouble == "failed":
        request = scene.requests[-1]
        seen = scene.at(2.5, created("b1", request), audio("b1", "i1", 20), failed("b1"))[1:]
    else:
        seen = scene.at(2.5, closed(1006))
    assert [one for one in seen if not one.startswith("close")][: len(done_then)] == done_then
    assert "briefing_failed" in scene.events
    assert outcome(scene)[1] == answer
    if sound:
        assert "join" in scene.at(9.0, pressed("1")), "by a key, as ever"


def test_lost_after_it_was_said_it_goes_on() -> None:
    scene = briefed()
    scene.at(4.0, closed(1006))
    assert scene.at(4.5 + REPEAT_SECONDS) == ["brief 2000"]
    assert "join" in scene.do(pressed("1"))


def test_a_transfer_of_a_fallback_step_is_briefed_by_the_sound_at_once() -> None:
    anna = plan_with(sound="/briefing.wav")
    server = replace(anna.server, fallback=(FallbackStep("transfer", transfer_to="anna"),))
    scene = Scene(replace(anna, server=server)).up()
    scene.do(closed(1011, "gone"))
    said = scene.at(2.0, PICKED_UP)
    assert "sound /briefing.wav second" in said, "no session is up that could say something"


def test_lost_and_refused_ends_the_call() -> None:
    scene = briefed()
    scene.at(4.0, closed(1006))
    scene.at(5.0, pressed("2"), OUR_END)
    assert scene.ending[1] == "session_lost"


def test_escape_and_operator_are_briefed_by_a_summary() -> None:
    escaping = replace(PLAN, escape=EscapePlan(key="0", to=("anna",)))
    scene = Scene(escaping).up()
    scene.at(1.0, key("0"))
    scene.at(2.0, PICKED_UP)
    assert "colleague" in (scene.requests[-1].response or {})["instructions"]
    scene = Scene(PLAN).up()
    scene.at(1.0, inputs.ToolRequest(OperatorTransfer("anna", "He waits.")))
    scene.at(2.0, PICKED_UP)
    assert "Say exactly: He waits." in (scene.requests[-1].response or {})["instructions"]


def test_one_transfer_at_a_time() -> None:
    scene = briefed()
    scene.at(5.0, inputs.ToolRequest(OperatorTransfer("anna")))
    assert "command_rejected" in scene.events
    assert len(scene.record.actions.transfers) == 1


def test_the_tool_asks_for_it_where_the_model_writes_it() -> None:
    fixed = replace(ANNA, briefing=replace(BRIEFING, text="A guest."))
    for destination, names in ((ANNA, ["destination", "briefing"]), (fixed, ["destination"])):
        tool = transfer_call(TransferPlan((destination,)), "")
        assert tool is not None
        assert tool["parameters"]["required"] == names


@pytest.mark.parametrize("paused", [False, True])
def test_it_is_recorded_where_the_call_is_and_the_route_says_so(paused: bool) -> None:
    plan = replace(plan_with(record=True), recording=RecordingPlan(mode="always"))
    scene = Scene(plan).up()
    if paused:
        scene.do(inputs.ToolRequest(RecordCall("pause", "operator")))
    scene.at(1.0, created("r1"), wants("transfer_call", destination="anna"))
    begun = scene.at(2.0, PICKED_UP)
    ended = scene.at(5.0, pressed("1"))
    assert ("record second" in begun) is not paused
    assert ("stop recording second" in ended) is not paused
    without = answered(replace(PLAN, recording=RecordingPlan(mode="always")))
    assert "record second" not in without.seen


def test_nobody_is_called_while_sensitive_digits_are_entered() -> None:
    """They are kept from whoever would be joined; the transfer begins after them."""
    collect = CollectPlan(enabled=True, sensitive=True, timeout=5.0, url="https://vault")
    tools = ToolsPlan(transfer=TRANSFER, collect_digits=collect)
    scene = Scene(replace(PLAN, tools=tools)).up()
    scene.at(1.0, created("r1"), wants("collect_digits", digits=4))
    scene.do(inputs.ToolRequest(OperatorTransfer("anna")))
    assert "second sip:2@pbx" not in scene.at(5.5)
    assert "second sip:2@pbx" in scene.at(12.0), "nothing was entered for five seconds"

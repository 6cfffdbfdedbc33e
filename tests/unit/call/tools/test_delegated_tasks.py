# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks that a Live session delegates to us, and decisions that it tells of."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import CallPlan, FunctionPlan, LimitsPlan, ToolsPlan
from gateway.call.tools.delegated_tasks import (
    MAX_ENTRIES,
    MAX_NAME,
    MAX_WAITING,
    NOT_POSSIBLE,
    WORDS_SECONDS,
)
from gateway.realtime.events import (
    AppendText,
    DecisionMade,
    InputCommitted,
    InputTranscribed,
    SpeechStarted,
    SpeechStopped,
    WorkDelegated,
)
from gateway.realtime.session_object import LIVE
from tests.support.call_scene import Scene, said
from tests.unit.call.test_live_sessions import GREETED, TURN, UP_LIVE, live


@pytest.fixture(autouse=True)
def _live_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers a task is no event of a Realtime client."""
    monkeypatch.setattr("tests.support.call_scene.check_client_event", lambda _body: None)


@pytest.mark.parametrize("apart", [0.5, 4.0, 6.0])
def test_a_voice_that_hands_over_task_after_task(apart: float) -> None:
    """It is served twelve times a minute; the others are told that it cannot be done."""
    tools = ToolsPlan(functions={"look": FunctionPlan()}, delegate="look")
    limits = LimitsPlan(rtp_timeout=0)
    scene = live(CallPlan("route", Codec.PCMU, tools=tools, limits=limits))
    began = scene.now
    while scene.now < began + 59:
        scene.do(
            said(WorkDelegated(f"task_{scene.now}", "client")),
            said(InputTranscribed("t", "and?")),
        )
        scene.at(scene.now + apart)
    runs = [event for event in scene.events if event == "tool"]
    assert len(runs) == min(12, 59 // apart + 1)
    assert ("tool_loop" in scene.events) is (apart < 5)


def test_of_too_many_tasks_at_once_the_oldest_is_told_that_it_cannot_be_done() -> None:
    tools = ToolsPlan(functions={"look": FunctionPlan()}, delegate="look")
    scene = live(CallPlan("route", Codec.PCMU, tools=tools))
    scene.do(*TURN)
    scene.do(*(said(WorkDelegated(f"task_{n}", "client")) for n in range(MAX_WAITING + 1)))
    assert scene.sent == [AppendText("thinking", NOT_POSSIBLE, "task_0")]


def test_a_task_of_a_lost_session_is_told_apart_from_that_of_the_next_with_the_same_id() -> None:
    """The next one is told its result, as an answer to nothing that it has asked."""
    tools = ToolsPlan(functions={"look": FunctionPlan()}, delegate="look")
    scene = live(replace(GREETED, greeting=None, tools=tools))
    asks = said(WorkDelegated("task_1", "client"))
    scene.do(asks, said(InputTranscribed("t", "and?")))
    scene.do(inputs.SessionClosed(1011, ""), replace(UP_LIVE, session_id="live_2"))
    scene.do(asks, said(InputTranscribed("t", "and?")))
    runs = [one.split()[2] for one in scene.seen if one.startswith("run look")]
    assert len(set(runs)) == 2
    seen = [scene.do(inputs.ToolDone(one, "{}"))[0] for one in runs]
    assert seen == ["output past_task_1", "output task_1"]
    scene.do(*TURN, *(said(WorkDelegated(f"task_{n}", "client")) for n in range(MAX_WAITING + 1)))
    assert scene.sent[-1] == AppendText("thinking", NOT_POSSIBLE, "task_0")
    scene.do(inputs.SessionClosed(1011, ""), replace(UP_LIVE, session_id="live_3"))
    scene.do(asks)
    assert scene.sent[-1] == AppendText("thinking", NOT_POSSIBLE), "it has asked for no such thing"


def test_a_result_that_comes_before_a_hand_over_is_told_to_the_session_that_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends what kept the call from being quiet, and is told to the session that asked for it."""
    monkeypatch.setattr("tests.support.call_scene.check_client_event", lambda _body: None)
    tools = ToolsPlan(functions={"look": FunctionPlan(timeout=60.0)}, delegate="look")
    limits = LimitsPlan(rtp_timeout=0, max_call_duration=9000)
    scene = live(replace(GREETED, greeting=None, tools=tools, limits=limits))
    assert "open spare" in scene.at(7140.5)
    scene.do(said(WorkDelegated("task_1", "client")), said(InputTranscribed("t", "And?")))
    scene.do(inputs.StandbyReady("live_2", 7200.0, LIVE))
    assert scene.do(inputs.ToolDone("task_1", "found")) == ["output task_1", "response.create"]
    seen = scene.do(inputs.CallerSounds())
    assert seen[0] == "take over"
    assert "Result: found" in seen[1]


def test_decisions_are_noted_and_their_repetitions_are_not() -> None:
    scene = live()
    heard = "session.input_transcript.delta"
    wants = {"type": "predicate", "name": "wants_human", "probability": 0.25}
    mood = {"type": "choice", "name": "mood", "choice": "calm", "confidence": 0.5}
    decided = DecisionMade("", heard, (wants, mood, {"type": "refusal", "name": "x"}), "d-1", None)
    scene.do(said(decided), said(decided), said(replace(decided, delegation_id="dlg", source="")))
    assert scene.events.count("decided") == 2
    scene.do(said(replace(decided, answers=({**wants, "probability": 0.9},))))
    assert scene.events.count("decided") == 3
    notes = [one for one in scene.record.timeline if one["event"] == "decided"]
    assert notes[0]["answers"] == {"wants_human": 0.25, "mood": "calm", "x": None}


LOOKS = ToolsPlan(functions={"look": FunctionPlan()}, delegate="look")
TASK = said(WorkDelegated("task_1", "client"))


def turn(item: str) -> list[inputs.Input]:
    """A turn of the caller, whose words are still to come."""
    return [
        said(event)
        for event in (SpeechStarted(item, 1000), SpeechStopped(item, 2000), InputCommitted(item))
    ]


def begun(scene: Scene) -> list[str]:
    """What the function was given, of each task that was begun."""
    return [one.partition("task_1 ")[2] for one in scene.seen if one.startswith("run look")]


def test_a_task_begins_with_the_words_that_it_is_about() -> None:
    scene = live(CallPlan("route", Codec.PCMU, tools=LOOKS))
    scene.do(*TURN, TASK)
    scene.at(2.0)
    assert begun(scene) == []
    scene.do(said(InputTranscribed("turn_1", "Is room 12 free?")))
    assert begun(scene) == ['{"conversation": "caller: Is room 12 free?"}']


def test_a_task_whose_words_are_there_begins_at_once() -> None:
    scene = live(CallPlan("route", Codec.PCMU, tools=LOOKS))
    scene.do(*TURN, said(InputTranscribed("turn_1", "Is it free?")))
    scene.do(TASK)
    assert len(begun(scene)) == 1


def test_words_that_do_not_come_hold_a_task_up_for_four_seconds() -> None:
    scene = live(CallPlan("route", Codec.PCMU, tools=LOOKS))
    scene.do(*TURN, TASK)
    scene.at(WORDS_SECONDS - 0.1)
    assert begun(scene) == []
    scene.at(WORDS_SECONDS)
    assert begun(scene) == ['{"conversation": ""}']


@pytest.mark.parametrize(
    ("target", "tools", "told"),
    [
        ("client", ToolsPlan(), [AppendText("thinking", NOT_POSSIBLE, "task_1")]),
        ("client", ToolsPlan(application=True), []),
        ("responses", LOOKS, []),
    ],
    ids=["nobody", "application", "backend"],
)
def test_a_task_that_is_not_for_a_function_of_ours(
    target: str, tools: ToolsPlan, told: list[AppendText]
) -> None:
    scene = live(CallPlan("route", Codec.PCMU, tools=tools))
    scene.do(said(WorkDelegated("task_1", target)))
    scene.at(10.0)
    assert scene.sent == told
    assert begun(scene) == []
    assert "work_delegated" in scene.events


def test_a_task_waits_for_the_words_of_all_turns_before_it() -> None:
    scene = live(CallPlan("route", Codec.PCMU, tools=LOOKS))
    scene.do(*TURN, *turn("turn_2"), TASK)
    scene.do(said(InputTranscribed("turn_1", "Room 12.")))
    assert begun(scene) == []
    scene.do(said(InputTranscribed("turn_2", "Is it free?")))
    assert begun(scene) == ['{"conversation": "caller: Room 12.\\ncaller: Is it free?"}']


def test_a_task_is_given_the_latest_of_a_long_conversation() -> None:
    scene = live(CallPlan("route", Codec.PCMU, tools=LOOKS))
    for number in range(MAX_ENTRIES + 3):
        words = said(InputTranscribed(f"turn_{number}", f"Word {number}."))
        scene.do(*turn(f"turn_{number}"), words)
    scene.do(TASK)
    (given,) = begun(scene)
    lines = json.loads(given)["conversation"].splitlines()
    assert (len(lines), lines[0]) == (MAX_ENTRIES, "caller: Word 3.")


def test_decisions_without_a_trigger_are_all_noted_and_names_are_cut() -> None:
    scene = live()
    long = {"type": "choice", "name": "n" * 100, "choice": "c" * 100}
    decided = DecisionMade("", "", (long,), "d-1", None)
    scene.do(said(decided), said(decided))
    notes = [one for one in scene.record.timeline if one["event"] == "decided"]
    assert [one["answers"] for one in notes] == [{"n" * MAX_NAME: "c" * MAX_NAME}] * 2

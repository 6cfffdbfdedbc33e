# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks that a Live session delegates to us, and decisions that it tells of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import CallPlan, FunctionPlan, LimitsPlan, ToolsPlan
from gateway.call.tools.delegated_tasks import MAX_WAITING, NOT_POSSIBLE
from gateway.realtime.events import AppendText, DecisionMade, InputTranscribed, WorkDelegated
from tests.support.call_scene import said
from tests.unit.call.test_live_sessions import GREETED, TURN, UP_LIVE, live


@pytest.mark.parametrize("apart", [0.5, 4.0, 6.0])
def test_a_voice_that_hands_over_task_after_task(
    apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is served twelve times a minute; the others are told that it cannot be done."""
    monkeypatch.setattr("tests.support.call_scene.check_client_event", lambda _body: None)
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


def test_of_too_many_tasks_at_once_the_oldest_is_told_that_it_cannot_be_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.support.call_scene.check_client_event", lambda _body: None)
    tools = ToolsPlan(functions={"look": FunctionPlan()}, delegate="look")
    scene = live(CallPlan("route", Codec.PCMU, tools=tools))
    scene.do(*TURN)
    scene.do(*(said(WorkDelegated(f"task_{n}", "client")) for n in range(MAX_WAITING + 1)))
    assert scene.sent == [AppendText("thinking", NOT_POSSIBLE, "task_0")]


def test_a_task_of_a_lost_session_is_told_apart_from_that_of_the_next_with_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next one is told its result, as an answer to nothing that it has asked."""
    monkeypatch.setattr("tests.support.call_scene.check_client_event", lambda _body: None)
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

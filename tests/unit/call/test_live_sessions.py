# SPDX-License-Identifier: GPL-2.0-or-later
"""Decisions in a call whose session has no turns, no truncation and no requested answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.conversation.barge_in import STOP
from gateway.call.conversation.control import HELD
from gateway.call.conversation.out_of_band import LATE_WORDS_SECONDS
from gateway.call.conversation.out_of_band import SECONDS as OUT_OF_BAND_SECONDS
from gateway.call.plan import CallPlan, FallbackStep, FunctionPlan, ServerPlan, ToolsPlan
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import (
    Destination,
    HoldPlan,
    Interrupt,
    RequestOutOfBand,
    TransferPlan,
)
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    CancelResponse,
    ContinueWork,
    InputCommitted,
    InputTranscribed,
    OtherEvent,
    ResponseDone,
    SpeechStarted,
    SpeechStopped,
    WorkDelegated,
)
from gateway.realtime.session_object import LIVE
from tests.support.call_scene import (
    ACK,
    BYE,
    OUR_END,
    Scene,
    audio,
    audio_done,
    created,
    done,
    key,
    said,
)

UP_LIVE = inputs.SessionReady("live_1", 7200.0, LIVE)
GREETED = CallPlan(
    "route",
    Codec.PCMU,
    greeting={"instructions": "Say exactly: Hello."},
    greeting_words="Hello.",
    server=ServerPlan(fallback=(FallbackStep("reconnect", timeout=10.0),)),
)
TURN = (
    said(SpeechStarted("turn_1", 1000)),
    said(SpeechStopped("turn_1", 2000)),
    said(InputCommitted("turn_1")),
)


def live(plan: CallPlan | None = None) -> Scene:
    scene = Scene(plan)
    scene.do(UP_LIVE, ACK)
    return scene


def speaks(scene: Scene, name: str, ms: int) -> None:
    scene.do(created(name), audio(name, name, ms))


def ends(scene: Scene, name: str) -> None:
    scene.do(audio_done(name, name), done(name))


def request(command: object) -> inputs.ToolRequest:
    return inputs.ToolRequest(command)  # type: ignore[arg-type]


def test_a_caller_who_speaks_cuts_nothing() -> None:
    scene = live()
    speaks(scene, "speech_1", 1000)
    scene.listen(200)
    assert not {"flush", "create"} & set(scene.do(*TURN))
    assert "flush" not in scene.do(key("1"))
    scene.listen(1000)
    assert scene.heard_ms == 1000
    assert not [one for one in scene.seen if one.startswith(("truncate", "delete", "cancel"))]


def test_a_question_that_is_late_holds_no_later_one() -> None:
    scene = Scene()
    scene.do(replace(UP_LIVE, capabilities=replace(LIVE, out_of_band=True)), ACK)
    scene.at(1.0, request(RequestOutOfBand("query-1", "Who calls?", {})))
    (first,) = scene.requests
    scene.at(1.0 + OUT_OF_BAND_SECONDS)
    assert scene.sent[-1] == CancelResponse("", first)
    (late,) = scene.record.content.out_of_band
    assert late.status == "late"


def test_an_operator_who_interrupts_stops_what_is_heard() -> None:
    scene = live()
    speaks(scene, "speech_1", 1000)
    scene.listen(200)
    assert [one for one in scene.do(request(Interrupt())) if one.startswith(("item", "flush"))] == [
        "flush",
        f"item {STOP}",
    ]
    scene.do(audio("speech_1", "speech_1", 400))
    scene.listen(400)
    assert scene.heard_ms == 200
    (cut,) = scene.record.actions.interruptions
    assert (cut.action, cut.played_ms) == ("none", 200)


def test_digits_are_context() -> None:
    scene = live()
    scene.do(key("4"), key("#"))
    assert scene.seen[-1].startswith("item ")
    assert not scene.requests


@pytest.mark.parametrize("spoken", [True, False])
def test_a_goodbye_is_heard_before_the_end_that_a_backend_asks_for(spoken: bool) -> None:
    scene = live()
    scene.do(created("resp_1"), done("resp_1", calls=[("end_call", "call_1")]))
    assert scene.seen[-2:] == ["output call_1", "response.create"]
    if spoken:
        scene.at(2.0)
        speaks(scene, "speech_1", 800)
        scene.listen(700)
        assert "bye 16" not in scene.seen
        ends(scene, "speech_1")
        scene.listen(500)
        assert scene.heard_ms == 800
    else:
        scene.at(3.9)
        assert "bye 16" not in scene.seen
        scene.at(4.1)
    assert "bye 16" in scene.seen
    scene.do(OUR_END)
    scene.at(scene.now + LATE_WORDS_SECONDS)
    assert scene.ending[1] == "agent_hangup"


def test_words_that_come_after_the_end_are_in_the_record() -> None:
    scene = live()
    scene.do(*TURN)
    speaks(scene, "speech_1", 4000)
    scene.listen(1000)
    scene.do(BYE)
    assert "finished" not in scene.seen
    scene.do(said(AgentTranscriptDelta("speech_1", "speech_1", 0, "One two", 1000)))
    scene.do(said(AgentTranscriptDelta("speech_1", "speech_1", 0, " three four", 3000)))
    scene.do(said(AgentTranscript("speech_1", "speech_1", 0, "One two three four")))
    assert "finished" not in scene.seen
    scene.do(said(InputTranscribed("turn_1", "Count.")))
    assert "finished" in scene.seen
    assert [
        (one["who"], one["text"], one.get("heard")) for one in scene.record.as_json()["transcript"]
    ] == [
        ("caller", "Count.", None),
        ("agent", "One two three four", "One two"),
    ]


def test_a_question_that_is_asked_meanwhile_is_not_waited_for() -> None:
    scene = Scene()
    scene.do(inputs.SessionReady("live_1", 7200.0, replace(LIVE, out_of_band=True)), ACK)
    speaks(scene, "speech_1", 400)
    scene.do(done("speech_1"), inputs.ToolRequest(RequestOutOfBand("k", "Is it a complaint?")), BYE)
    assert scene.machine.deadline == scene.now + LATE_WORDS_SECONDS
    assert scene.at(scene.now + LATE_WORDS_SECONDS)[-1] == "finished"


def test_words_that_do_not_come_hold_nothing_up() -> None:
    scene = live()
    scene.do(*TURN)
    scene.do(BYE)
    scene.at(scene.now + LATE_WORDS_SECONDS + 0.1)
    assert "finished" in scene.seen


def test_a_caller_on_hold_again_before_the_next_session_is_up() -> None:
    scene = live(replace(GREETED, tools=ToolsPlan(hold=HoldPlan(release_after=5.0))))
    scene.at(2.0, inputs.HoldChanged(True))
    assert "close 1000 on hold" in scene.at(7.0)
    scene.at(9.0, inputs.HoldChanged(False))
    scene.at(9.1, inputs.HoldChanged(True))
    assert f"item {HELD}" in scene.at(9.5, UP_LIVE)
    assert "close 1000 on hold" in scene.at(14.5)
    scene.at(20.0, inputs.HoldChanged(False))


@pytest.mark.parametrize("what", ["an MCP call", "a function", "a backend"])
def test_a_session_that_works_for_the_caller_is_closed_later_in_the_hold(what: str) -> None:
    """What is done would be lost with it, or done again by the next one."""
    slow = FunctionPlan(timeout=60.0)
    tools = ToolsPlan(hold=HoldPlan(release_after=5.0), functions={"look": slow})
    scene = live(replace(GREETED, tools=tools))
    work: dict[str, tuple[inputs.Input, inputs.Input]] = {
        "an MCP call": (
            said(OtherEvent("response.mcp_call.in_progress", {"item_id": "m1"})),
            said(OtherEvent("response.mcp_call.completed", {"item_id": "m1"})),
        ),
        "a function": (done("r1", calls=[("look", "c1")]), inputs.ToolDone("c1", "{}")),
        "a backend": (
            said(WorkDelegated("d1", "responses")),
            said(ResponseDone("b1", "completed", None, None, None, (), None, "mind")),
        ),
    }
    begins, over = work[what]
    scene.at(2.0, inputs.HoldChanged(True), begins)
    scene.at(25.0)
    assert "close 1000 on hold" not in scene.seen
    scene.do(over)
    assert "close 1000 on hold" in scene.at(30.0)


@pytest.mark.parametrize("joined", [False, True])
def test_a_backend_is_not_told_to_go_on_where_the_voice_only_listens(joined: bool) -> None:
    anna = Destination("anna", "sip:2@pbx", "bridge")
    tools = ToolsPlan(
        functions={"look": FunctionPlan()}, transfer=TransferPlan((anna,), listen=True)
    )
    scene = live(CallPlan("route", Codec.PCMU, tools=tools))
    calls = [("look", "c1"), ("transfer_call", "c2", '{"destination": "anna"}')]
    scene.at(2.0, created("r1"), done("r1", calls=calls[: 1 + joined]))
    if joined:
        scene.at(5.0, inputs.BLegAnswered())
        assert scene.state is State.BRIDGED
    scene.do(inputs.ToolDone("c1", "{}"))
    assert [one for one in scene.sent if isinstance(one, ContinueWork)] == [ContinueWork()] * (
        not joined
    )

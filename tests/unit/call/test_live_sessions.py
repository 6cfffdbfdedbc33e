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
from gateway.call.plan import (
    CallPlan,
    EscapePlan,
    FallbackStep,
    FunctionPlan,
    LimitsPlan,
    ServerPlan,
    SilencePlan,
    ToolsPlan,
)
from gateway.call.rules.silence import BACKEND_SECONDS, FIRST_WORDS_SECONDS
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import (
    Destination,
    EndCall,
    HoldPlan,
    Interrupt,
    RequestOutOfBand,
    RequestResponse,
    Say,
    SendMessage,
    TransferPlan,
)
from gateway.call.tools.delegated_tasks import MAX_WAITING, NOT_POSSIBLE
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    AppendText,
    CancelResponse,
    ContinueWork,
    DecisionMade,
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


def test_a_session_that_never_speaks_is_replaced() -> None:
    scene = live(GREETED)
    scene.at(FIRST_WORDS_SECONDS - 0.1)
    assert "silence_detected" not in scene.events
    scene.at(FIRST_WORDS_SECONDS + 0.1)
    assert scene.record.session.failovers[0].why == "session_silent"
    assert scene.seen[-1] == "open"


def test_a_model_that_has_spoken_may_be_silent() -> None:
    scene = live(GREETED)
    speaks(scene, "speech_1", 500)
    ends(scene, "speech_1")
    scene.listen(600)
    scene.do(*TURN)
    scene.at(20.0)
    assert scene.state is State.TALKING
    assert "silence_detected" not in scene.events


def says(scene: Scene, at: float) -> None:
    """A turn of the caller that ends then."""
    scene.at(at, *TURN)


def test_a_model_that_says_nothing_to_several_turns_is_replaced() -> None:
    scene = live(replace(ANSWERS, silence=SilencePlan(6.0)))
    speaks(scene, "speech_1", 500)
    ends(scene, "speech_1")
    scene.listen(600)
    for at in (10.0, 20.0, 38.0):
        says(scene, at)
    scene.at(43.9)
    assert "silence_detected" not in scene.events
    scene.at(44.1)
    assert scene.record.session.failovers[0].why == "session_silent"
    assert scene.seen[-1] == "open"


@pytest.mark.parametrize("between", ["words", "hold", "time"])
def test_what_comes_between_unanswered_turns(between: str) -> None:
    """The voice has spoken, we were on hold, or three turns were soon over."""
    scene = live(replace(ANSWERS, silence=SilencePlan(6.0)))
    speaks(scene, "speech_1", 500)
    ends(scene, "speech_1")
    scene.listen(600)
    for at in (10.0, 11.0):
        says(scene, at)
    if between == "words":
        speaks(scene, "speech_2", 500)
        ends(scene, "speech_2")
        scene.listen(600)
    elif between == "hold":
        scene.do(inputs.HoldChanged(True))
        scene.do(inputs.HoldChanged(False))
    says(scene, 13.0)
    scene.at(39.5)
    assert "silence_detected" not in scene.events


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


ANSWERS = replace(GREETED, greeting=None, limits=LimitsPlan(rtp_timeout=0))


def backend_done(*calls: str) -> inputs.ServerEventReceived:
    """The end of a response of the backend, which calls these functions."""
    items = tuple(
        {"type": "function_call", "name": "look", "call_id": call, "arguments": "{}"}
        for call in calls
    )
    return said(ResponseDone("r", "completed", None, None, None, items, None, "backend-1"))


def test_a_backend_that_takes_its_time_is_no_silence() -> None:
    """The caller hears the filler meanwhile; once it is done the voice has to speak, as ever."""
    plan = replace(ANSWERS, silence=SilencePlan(0.0, "chime", 3.0))
    scene = live(plan)
    scene.do(*TURN, said(WorkDelegated("dlg_1", "responses")))
    scene.at(30.0)
    assert "silence_detected" not in scene.events
    assert [one for one in scene.seen if one.startswith("sound")] == ["sound chime"]
    scene.at(59.0, backend_done())
    scene.at(59.0 + FIRST_WORDS_SECONDS - 0.5)
    assert "silence_detected" not in scene.events
    scene.at(59.0 + FIRST_WORDS_SECONDS + 0.5)
    assert scene.record.session.failovers[0].why == "session_silent"


def test_a_backend_that_never_ends_counts_as_at_work_for_a_minute() -> None:
    scene = live(ANSWERS)
    scene.do(*TURN, said(WorkDelegated("dlg_1", "responses")))
    scene.at(BACKEND_SECONDS)
    scene.at(BACKEND_SECONDS + FIRST_WORDS_SECONDS - 1)
    assert "silence_detected" not in scene.events
    scene.at(BACKEND_SECONDS + FIRST_WORDS_SECONDS + 1)
    assert "silence_detected" in scene.events


def test_after_its_first_words_a_voice_may_wait_for_its_backend_with_a_filler() -> None:
    scene = live(replace(ANSWERS, silence=SilencePlan(0.0, "chime", 3.0)))
    speaks(scene, "speech_1", 500)
    ends(scene, "speech_1")
    scene.listen(600)
    scene.do(*TURN, said(WorkDelegated("dlg_1", "responses")))
    scene.at(10.0)
    assert "sound chime" in scene.seen
    speaks(scene, "speech_2", 500)
    assert scene.seen[-1] != "sound chime"
    ends(scene, "speech_2")
    scene.do(backend_done())
    scene.at(80.0)
    assert "silence_detected" not in scene.events


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

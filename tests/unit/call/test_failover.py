# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions that are lost, or not to be had: the ladder, and what another session is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import (
    AnswerPlan,
    CallPlan,
    DisclosurePlan,
    FallbackStep,
    FunctionPlan,
    LimitsPlan,
    OutboundPlan,
    ServerPlan,
    SilencePlan,
    ToolsPlan,
)
from gateway.call.tools.commands import (
    Destination,
    HoldPlan,
    OperatorHold,
    RecordCall,
    RecordingPlan,
    RequestResponse,
    TransferPlan,
)
from gateway.realtime.errors import Kind, Verdict
from gateway.realtime.events import (
    AgentTranscriptDelta,
    CreateItem,
    InputCommitted,
    InputTranscribed,
)
from tests.support.call_scene import (
    ACK,
    OUR_END,
    REFUSED,
    SPEECH,
    TICK,
    UNREACHABLE,
    UP,
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

RECONNECT = FallbackStep("reconnect", 10.0, "chime")
SECOND = FallbackStep("server", 6.0, "chime", server=1)
PLAN = CallPlan(
    "r",
    Codec.PCMU,
    server=ServerPlan(fallback=(RECONNECT,)),
    limits=LimitsPlan(rtp_timeout=0, max_call_duration=20_000),
)
AGAIN = inputs.SessionReady("sess_2")
LOST = closed(1011, "oops")


def ladder(*steps: FallbackStep) -> CallPlan:
    """A plan with these."""
    return replace(PLAN, server=replace(PLAN.server, fallback=steps))


def talked(plan: CallPlan = PLAN) -> Scene:
    """A question and its answer."""
    scene = Scene(plan).up()
    scene.do(said(InputCommitted("u1")), said(InputTranscribed("u1", "What is open?")))
    scene.do(created("r1"), said(AgentTranscriptDelta("r1", "i1", 0, "The desk is.")))
    scene.do(audio("r1", "i1", 1000), audio_done("r1", "i1"), done("r1"))
    scene.listen(1100)
    return scene


def test_each_session_is_told_its_first_messages() -> None:
    first = (("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."))
    plan = replace(PLAN, content=replace(PLAN.content, messages=first))
    begun = ["item Be brief.", "item Hi.", "item Hello."]
    scene = Scene(plan)
    assert scene.do(UP)[:3] == begun
    roles = [one.item["role"] for one in scene.sent[:3] if isinstance(one, CreateItem)]
    assert roles == ["system", "user", "assistant"]
    scene.do(ACK, said(InputCommitted("u1")), said(InputTranscribed("u1", "What is open?")))
    scene.do(LOST)
    assert scene.do(AGAIN)[:5] == ["sound", *begun, "item What is open?"]
    assert scene.record.as_json()["transcript"][0]["text"] == "What is open?", "they were not said"
    placed = Scene(replace(plan, outbound=OutboundPlan()))
    assert placed.do(UP)[:3] == begun


def test_a_lost_session_is_replaced_and_told_what_was_said() -> None:
    scene = talked()
    assert scene.do(LOST) == ["sound chime", "open"]
    assert scene.do(AGAIN) == ["sound", "item What is open?", "item The desk is."]
    assert scene.state.name == "TALKING"
    (trouble,) = scene.record.session.failovers
    assert (trouble.why, trouble.steps, trouble.outcome) == (
        "session_lost",
        ["reconnect"],
        "recovered",
    )
    assert scene.record.session.session_id == "sess_2"


def test_a_question_that_was_not_answered_is_answered_by_the_next() -> None:
    scene = talked()
    scene.do(said(InputCommitted("u2")), said(InputTranscribed("u2", "Since when?")))
    scene.do(created("r2"), LOST)
    assert scene.do(AGAIN)[-2:] == ["item Since when?", "create"]
    scene.do(created("r9"), audio("r9", "i9", 400))
    scene.listen(500)
    assert scene.record.session.failovers[0].heard_after_ms is not None


def test_an_answer_that_was_under_way_is_heard_as_far_as_it_came_and_gone_on_with() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), said(AgentTranscriptDelta("r1", "i1", 0, "It opens at nine")))
    scene.do(audio("r1", "i1", 2000))
    scene.listen(500)
    assert scene.do(LOST) == ["open"], "no tone over the words that are still to be heard"
    scene.listen(1000)
    assert scene.do(AGAIN) == ["item It opens at nine …", "create"]
    scene.listen(600)
    assert scene.heard_ms == 2000


@pytest.mark.parametrize("cut", ["before", "after"])
def test_what_was_cut_of_a_lost_session_is_not_the_business_of_the_next(cut: str) -> None:
    """It has no such item, or another one under that id, which is heard."""
    scene = Scene(PLAN).up()
    scene.do(created("r1"), said(AgentTranscriptDelta("r1", "i1", 0, "It opens at nine")))
    scene.do(audio("r1", "i1", 2000))
    scene.listen(1000)
    if cut == "before":
        assert scene.do(SPEECH) == ["flush", "truncate i1/0 1000"]
        scene.do(LOST, AGAIN)
    else:
        scene.do(LOST, AGAIN)
        assert scene.do(SPEECH) == ["flush"]
    assert [one.action for one in scene.record.actions.interruptions] == [
        "truncate" if cut == "before" else "none"
    ]
    assert scene.record.transcript is not None
    assert scene.record.transcript.as_json()[0]["heard"] == "It opens"
    assert scene.do(created("r1"), audio("r1", "i1", 400)) == ["play 400"]
    scene.listen(200)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 200"]


@pytest.mark.parametrize("heard_ms", [1200, 2400])
def test_what_was_heard_of_two_lost_sessions_with_the_same_ids_is_told_apart(heard_ms: int) -> None:
    scene = Scene(PLAN).up()
    words = "one two three four five six seven eight nine ten"
    for number in (1, 2):
        scene.do(created("r1"), said(AgentTranscriptDelta("r1", "i1", 0, words)))
        scene.do(audio("r1", "i1", 2000), audio_done("r1", "i1"), done("r1"))
        scene.listen(20)
        scene.do(LOST, inputs.SessionReady(f"sess_{number + 1}"))
    scene.listen(heard_ms - 40)
    scene.do(SPEECH)
    whole = words.split()
    first, second = whole[: min(heard_ms, 2000) // 200], whole[: max(0, heard_ms - 2000) // 200]
    assert scene.record.transcript is not None
    told = scene.record.transcript.as_json()
    heard = [one.get("heard", one["text"]).split() for one in told if one["who"] == "agent"]
    assert heard == [first, second]


def test_a_response_without_sound_has_none_though_one_of_its_id_had_in_the_lost_session() -> None:
    scene = talked()
    scene.do(LOST, AGAIN)
    scene.do(created("r1"), done("r1"))
    assert "response_without_audio" in scene.events


def test_words_that_follow_without_a_pause_are_heard_when_they_come() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 2000))
    scene.listen(500)
    scene.do(LOST)
    scene.listen(200)
    scene.do(AGAIN, created("r2"), audio("r2", "i2", 1000))
    scene.listen(4000)
    assert scene.record.session.failovers[0].heard_after_ms == 200


def test_the_tone_begins_when_the_words_are_over() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 1000))
    scene.do(LOST)
    assert scene.listen(1100) == ["sound chime"]


def test_attempts_that_fail_are_repeated_with_longer_waits_until_the_step_is_over() -> None:
    scene = talked(ladder(RECONNECT, FallbackStep("hangup")))
    scene.do(LOST, UNREACHABLE)
    opened = [0.0]
    while scene.state.name == "TALKING" and scene.now < 40:
        deadline = scene.machine.deadline
        assert deadline is not None
        if "open" in scene.at(deadline):
            opened.append(round(scene.now, 2))
        scene.do(UNREACHABLE)
    gaps = [round(b - a, 2) for a, b in pairwise(opened[1:])]
    assert gaps == [0.5, 1.0, 2.0, 4.0]
    scene.do(OUR_END)
    assert scene.ending == ("network", "session_lost", 200)
    assert scene.record.session.failovers[0].outcome == "given up"


def test_a_key_that_is_refused_is_not_tried_again_but_elsewhere() -> None:
    scene = talked(ladder(RECONNECT, SECOND))
    scene.do(LOST)
    assert scene.do(REFUSED) == ["open 1"]
    assert "item What is open?" in scene.do(AGAIN)
    assert scene.record.session.failovers[0].steps == ["reconnect", "server"]


def test_an_announcement_then_the_caller_is_handed_on() -> None:
    desk = Destination("Desk", "sip:desk@pbx")
    plan = replace(
        ladder(
            FallbackStep("announcement", 4.0, "/sorry.wav"),
            FallbackStep("transfer", transfer_to="Desk"),
        ),
        tools=replace(
            ladder(
                FallbackStep("announcement", 4.0, "/sorry.wav"),
                FallbackStep("transfer", transfer_to="Desk"),
            ).tools,
            transfer=TransferPlan((desk,)),
        ),
    )
    scene = talked(plan)
    assert scene.do(LOST) == ["close 1000 session_lost", "sound /sorry.wav"]
    assert "refer sip:desk@pbx" in scene.at(scene.now + 4.1)
    assert scene.record.session.failovers[0].outcome == "transferred"


def test_an_attempt_that_fails_behind_an_announcement_opens_no_session() -> None:
    scene = talked(ladder(FallbackStep("announcement", 4.0, "/sorry.wav"), FallbackStep("hangup")))
    scene.do(LOST, UNREACHABLE)
    assert "open" not in scene.at(scene.now + 3.9)
    scene.at(scene.now + 0.2, OUR_END)
    assert scene.ending == ("network", "session_lost", 200)


def test_the_close_of_a_session_that_was_given_up_ends_nothing() -> None:
    desk = Destination("Desk", "sip:desk@pbx")
    plan = replace(
        ladder(FallbackStep("transfer", transfer_to="Desk")),
        tools=replace(
            ladder(FallbackStep("transfer", transfer_to="Desk")).tools,
            transfer=TransferPlan((desk,)),
        ),
    )
    scene = Scene(plan).up()
    scene.do(created("r1"), audio("r1", "i1", 1000))
    assert "close 1000 session_error" in scene.do(error("session_expired"))
    assert scene.do(inputs.SessionClosed(1000, "session_error")) == []
    assert "refer sip:desk@pbx" in scene.listen(1100), "behind the words that are still heard"
    assert scene.at(scene.now + 15) == [], "the transfer has its time"
    assert scene.state.name == "TALKING"


def test_a_call_that_we_placed_gets_another_session_too() -> None:
    scene = Scene(replace(PLAN, outbound=OutboundPlan()))
    scene.do(UP, ACK)
    assert scene.do(LOST) == ["sound chime", "open"]
    scene.do(AGAIN)
    assert scene.record.session.failovers[0].outcome == "recovered"
    assert scene.state.name == "TALKING"


def test_a_call_that_nobody_has_answered_yet_is_not_held_up_for_a_session() -> None:
    for before in ((), (UP,)):
        scene = Scene(replace(PLAN, outbound=OutboundPlan()))
        scene.do(*before)
        assert "open" not in scene.do(LOST if before else UNREACHABLE)
        assert scene.state.name in ("ENDING", "FINISHED")


def test_a_result_that_comes_meanwhile_is_told_to_the_next() -> None:
    scene = Scene(
        replace(PLAN, tools=replace(PLAN.tools, functions={"hours": FunctionPlan()}))
    ).up()
    scene.do(created("r1"), done("r1", calls=[("hours", "c1")]))
    scene.do(LOST)
    assert scene.do(inputs.ToolDone("c1", "nine to five")) == []
    assert scene.do(AGAIN) == ["sound", "function_call", "output past_c1", "create"]


def test_before_the_answer_another_server_is_asked_while_it_rings() -> None:
    scene = Scene(ladder(RECONNECT, SECOND))
    assert scene.do(UNREACHABLE) == ["open 1"]
    assert scene.do(AGAIN) == ["200"]
    assert scene.record.session.failovers[0].outcome == "recovered"


def test_before_the_answer_a_call_can_be_refused_as_the_route_says() -> None:
    for step, words in (
        (FallbackStep("busy"), "486 41"),
        (FallbackStep("redirect", transfer_to="sip:other@pbx"), "302 41"),
        (FallbackStep("hangup"), "503 41 retry 5"),
    ):
        scene = Scene(ladder(RECONNECT, step))
        assert scene.do(UNREACHABLE) == ["close 1000 session_unreachable", words]
        scene.do(OUR_END)
        assert scene.record.ending is not None
        assert scene.record.ending.sip_code == int(words[:3])


def test_an_announcement_needs_a_call_that_is_answered() -> None:
    scene = Scene(ladder(FallbackStep("announcement", 4.0, "/sorry.wav"), FallbackStep("hangup")))
    assert scene.do(UNREACHABLE) == ["200"]
    assert scene.do(ACK) == ["media", "close 1000 session_unreachable", "sound /sorry.wav"]
    assert "bye 41" in scene.at(scene.now + 4.1)


def test_lost_before_the_ack() -> None:
    scene = Scene(ladder(SECOND))
    scene.do(UP)
    assert scene.do(LOST) == ["open 1"]
    assert scene.do(ACK) == ["media", "sound chime"]
    assert scene.do(AGAIN) == ["sound"]
    assert scene.state.name == "TALKING"


def test_a_call_that_is_being_ended_is_not_rescued() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 1000), audio_done("r1", "i1"))
    scene.do(done("r1", calls=[("end_call", "c1")]))
    assert "open" not in scene.do(LOST)


def test_answered_at_once_the_caller_hears_the_announcement() -> None:
    plan = replace(
        ladder(FallbackStep("announcement", 4.0, "/sorry.wav")),
        answer=AnswerPlan("immediate", "ringback"),
    )
    scene = Scene(plan)
    scene.do(ACK)
    assert scene.do(UNREACHABLE)[-1:] == ["sound /sorry.wav"]


@pytest.mark.parametrize("mode", ["early_media", "immediate"])
def test_lost_while_the_sound_is_played_to_its_end(mode: str) -> None:
    """The model was ready, and is not heard yet."""
    answer = AnswerPlan(mode, "/hello.wav", play_to_end_seconds=5.0)
    scene = Scene(replace(ladder(SECOND), answer=answer))
    if mode == "immediate":
        scene.do(ACK)
    assert scene.at(1.0, UP) == []
    assert scene.at(2.0, LOST)[-1] == "open 1"
    assert scene.at(6.0) == [], "there is nobody to answer for"
    assert scene.do(AGAIN)[-1] == ("200" if mode == "early_media" else "media")


def test_lost_while_the_sound_is_played_without_another_server() -> None:
    answer = AnswerPlan("early_media", "/hello.wav", play_to_end_seconds=5.0)
    scene = Scene(replace(PLAN, answer=answer))
    scene.at(1.0, UP)
    assert scene.at(2.0, LOST) == ["close 1000 session_lost", "503 41 retry 5"]


def test_a_budget_that_is_spent_meanwhile_ends_the_call_when_all_was_heard() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 500), closed(1006))
    assert scene.do(inputs.BudgetThreshold(True, "call: 1 of 1")) == []
    assert "close 1000 budget" in scene.listen(600)
    scene.do(OUR_END)
    assert (scene.heard_ms, scene.ending[1]) == (500, "budget")


def test_music_on_hold_goes_on_while_the_session_is_replaced() -> None:
    steps = (FallbackStep("reconnect", timeout=10.0, sound="chime"),)
    tools = ToolsPlan(hold=HoldPlan(True, "music"))
    plan = replace(PLAN, tools=tools, server=ServerPlan(fallback=steps))
    scene = Scene(plan).up()
    scene.do(inputs.ToolRequest(OperatorHold(True)))
    assert scene.at(1.0, closed(1006)) == ["open"]
    assert not [one for one in scene.at(2.0, UP) if one.startswith("sound")]
    scene = Scene(plan).up()
    hold = [("hold", "c1", '{"seconds": 5}')]
    assert "sound music" in scene.do(created("r1"), done("r1", calls=hold))
    assert scene.at(1.0, closed(1006)) == ["open"]
    assert scene.at(5.0) == ["sound", "sound chime", "resume"], "the step's, once it is over"


def test_music_on_hold_that_begins_while_the_session_is_replaced() -> None:
    """The step's sound has begun before it: it is heard again after it, and ends no music."""
    plan = replace(PLAN, tools=ToolsPlan(hold=HoldPlan(True, "music")))
    hold = [("hold", "c1", '{"seconds": 5}')]
    scene = Scene(plan).up()
    scene.do(created("r1"), audio("r1", "i1", 1000), audio_done("r1", "i1"))
    scene.do(done("r1", calls=hold))
    assert scene.at(0.2, LOST) == ["open"]
    assert scene.listen(1500) == ["sound chime", "sound music", "hold"]
    assert "sound" not in scene.at(3.0, AGAIN), "it would end the music"
    assert scene.at(6.5)[0] == "sound"
    assert "hold_ended" in scene.events
    scene = Scene(plan).up()
    scene.do(created("r1"), audio("r1", "i1", 1000), audio_done("r1", "i1"))
    scene.do(done("r1", calls=hold), LOST)
    scene.listen(1500)
    assert scene.at(6.5) == ["sound", "sound chime", "resume"]


@pytest.mark.parametrize("lost_at", [0.5, 3.0])
def test_the_filler_of_a_function_leaves_the_sound_of_the_step(lost_at: float) -> None:
    """It begins before the loss or during it, and ends with the result."""
    functions = {"hours": FunctionPlan(filler_delay=2.0, filler_sound="music")}
    scene = Scene(replace(PLAN, tools=ToolsPlan(functions=functions))).up()
    scene.do(created("r1"), done("r1", calls=[("hours", "c1")]))
    done_so_far = scene.at(lost_at) + scene.do(LOST) + scene.at(4.0)
    assert "sound music" in done_so_far
    assert [one for one in done_so_far if one.startswith("sound")][-1] == "sound chime"
    assert scene.at(5.0, inputs.ToolDone("c1", "nine to five"))[-1] == "sound chime"
    assert "sound" in scene.at(6.0, AGAIN)


@pytest.mark.parametrize("consent", ["ask", "announce"])
def test_a_caller_who_has_not_heard_the_question_for_consent_is_asked_again(consent: str) -> None:
    """And greeted once, behind it."""
    recording = RecordingPlan("always", consent=consent, prompt="May we?")
    scene = Scene(replace(PLAN, greeting={"instructions": "Hello"}, recording=recording)).up()
    scene.at(1.0, closed(1006))
    scene.at(2.0, UP)
    asked = [(one.response or {})["instructions"] for one in scene.requests]
    assert asked == ["Say exactly: May we?"] * 2
    scene.do(created("r1", scene.requests[-1]), audio("r1", "i1", 500), done("r1"))
    scene.listen(600)
    scene.do(key("1"))
    assert (scene.requests[-1].response or {})["instructions"] == "Hello"
    assert scene.record.recording is not None
    assert scene.record.recording.state == "recording"


@pytest.mark.parametrize("standby", [False, True])
@pytest.mark.parametrize("consent", ["ask", "announce"])
def test_a_caller_who_has_heard_half_the_question_for_consent_is_asked_again(
    consent: str, standby: bool
) -> None:
    recording = RecordingPlan("always", consent=consent, prompt="May we?")
    plan = replace(PLAN, greeting={"instructions": "Hello"}, recording=recording)
    scene = living(70.0, plan)
    loses_halfway(scene, "May we", standby)
    if not standby:
        scene.do(key("1"))
        scene.do(AGAIN)
    assert scene.record.recording is not None
    assert scene.record.recording.state == "asking", "half a question is not answered by a yes"
    asked = [(one.response or {}).get("instructions") for one in scene.requests]
    assert asked == ["Say exactly: May we?"] * 2
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 500), done("r2"))
    scene.listen(600)
    if consent == "ask":
        scene.do(key("1"))
    assert scene.record.recording.state == "recording"
    assert (scene.requests[-1].response or {})["instructions"] == "Hello"


@pytest.mark.parametrize("consent", ["none", "announce"])
@pytest.mark.parametrize("standby", [False, True])
@pytest.mark.parametrize("disclosure", ["before", "interruptible", "in the greeting", "alone"])
def test_a_disclosure_that_was_lost_with_its_session_is_said_again(
    disclosure: str, standby: bool, consent: str
) -> None:
    """To its end, and once; the greeting follows it."""
    said_in = disclosure == "in the greeting"
    words = DisclosurePlan(
        "I am an AI.", before=not said_in, interruptible=disclosure == "interruptible"
    )
    greeting = None if disclosure == "alone" else {"instructions": "Hello"}
    recording = RecordingPlan("always", consent=consent, prompt="Recorded.")
    scene = living(70.0, replace(PLAN, disclosure=words, greeting=greeting, recording=recording))
    wanted = [] if said_in else ["Say exactly: I am an AI."]
    wanted += ["Say exactly: Recorded."] if consent == "announce" else []
    wanted += ["Hello"] if greeting is not None else []
    lost_at = wanted.index("Hello") if said_in else 0
    for number in range(lost_at):
        answer(scene, f"a{number}")
    loses_halfway(scene, "I am", standby)
    if not standby:
        scene.do(AGAIN)
    for number in range(len(wanted) - lost_at):
        answer(scene, f"b{number}")
    asked = [(one.response or {}).get("instructions") for one in scene.requests]
    assert asked == wanted[: lost_at + 1] + wanted[lost_at:]
    scene.do(LOST, AGAIN)
    assert len(scene.requests) == len(asked), "what was said is not said again"


def loses_halfway(scene: Scene, words: str, standby: bool) -> None:
    """The session is lost while the caller hears these words of the latest request's answer."""
    scene.do(created("r1", scene.requests[-1]), said(AgentTranscriptDelta("r1", "i1", 0, words)))
    scene.do(audio("r1", "i1", 300))
    scene.listen(100)
    if standby:
        scene.at(12.0, inputs.StandbyReady("sess_2", None))
    scene.do(LOST)
    scene.listen(600)


def answer(scene: Scene, response: str) -> None:
    """The latest request is answered, and heard to its end."""
    item = f"i_{response}"
    scene.do(created(response, scene.requests[-1]))
    scene.do(said(AgentTranscriptDelta(response, item, 0, "Words.")), audio(response, item, 400))
    scene.do(audio_done(response, item), done(response))
    scene.listen(600)


@pytest.mark.parametrize(("pressed", "state"), [("1", "recording"), ("2", "refused"), ("", "")])
def test_a_caller_who_answers_about_the_recording_between_sessions_is_greeted_by_the_next(
    pressed: str, state: str
) -> None:
    recording = RecordingPlan("always", consent="ask", prompt="May we?", consent_timeout=4.0)
    scene = Scene(replace(PLAN, greeting={"instructions": "Hello"}, recording=recording)).up()
    scene.do(created("r1", scene.requests[-1]), audio("r1", "i1", 500), done("r1"))
    scene.listen(600)
    scene.do(LOST)
    if pressed:
        scene.do(key(pressed))
    scene.at(6.0, AGAIN)
    scene.at(6.1)
    asked = [(one.response or {}).get("instructions") for one in scene.requests]
    assert asked == ["Say exactly: May we?", "Hello"]
    assert scene.record.recording is not None
    assert scene.record.recording.state == (state or "unanswered")


def test_who_objects_to_a_recording_while_the_disclosure_is_lost_is_greeted_once() -> None:
    recording = RecordingPlan("always", consent="announce", prompt="Recorded.")
    disclosure = DisclosurePlan("I am an AI.", before=True, interruptible=False)
    greeting = {"instructions": "Hello"}
    plan = replace(PLAN, greeting=greeting, recording=recording, disclosure=disclosure)
    scene = Scene(plan).up()
    scene.do(created("r1", scene.requests[-1]), audio("r1", "i1", 300))
    scene.do(LOST, key("2"), AGAIN)
    answer(scene, "r2")
    answer(scene, "r3")
    asked = [(one.response or {}).get("instructions") for one in scene.requests]
    assert asked == ["Say exactly: I am an AI."] * 2 + ["Hello"]


@pytest.mark.parametrize("standby", [False, True])
def test_a_turn_is_answered_behind_a_question_for_consent_that_was_lost_with_it(
    standby: bool,
) -> None:
    recording = RecordingPlan("on_demand", consent="ask", prompt="May we?")
    scene = living(70.0, replace(PLAN, recording=recording))
    scene.at(12.0, said(InputCommitted("u1")), said(InputTranscribed("u1", "What is open?")))
    scene.do(inputs.ToolRequest(RecordCall("start")))
    if standby:
        scene.do(inputs.StandbyReady("sess_2", None))
    scene.do(LOST)
    if not standby:
        scene.do(AGAIN)
    answer(scene, "r2")
    asked = [(one.response or {}).get("instructions") for one in scene.requests]
    assert asked == ["Say exactly: May we?"] * 2 + [None]


# ---- before the maximum length


def living(seconds: float, plan: CallPlan = PLAN) -> Scene:
    """A session that the server ends after so long."""
    scene = Scene(plan)
    scene.do(inputs.SessionReady("sess_1", seconds), ACK)
    return scene


def test_before_the_end_of_a_session_another_takes_over_in_a_silence() -> None:
    scene = living(3600.0)
    scene.do(said(InputCommitted("u1")), said(InputTranscribed("u1", "What is open?")))
    scene.do(created("r1"), said(AgentTranscriptDelta("r1", "i1", 0, "The desk is.")))
    assert scene.at(3539.0) == []
    assert scene.at(3540.5) == ["open spare"]
    assert scene.do(inputs.StandbyReady("sess_2", 3600.0)) == [], "the agent speaks"
    scene.do(audio("r1", "i1", 1000), audio_done("r1", "i1"), done("r1"))
    assert scene.listen(1200) == ["take over", "item What is open?", "item The desk is."]
    assert scene.record.session.session_id == "sess_2"
    assert scene.record.session.handovers == 1
    assert scene.at(3540.5 + 3538) == []
    assert "open spare" in scene.at(3541 + 3545), "and that one has its end, too"


def test_where_nobody_is_silent_it_takes_over_at_the_last_moment() -> None:
    scene = living(3600.0)
    scene.at(3541.0, created("r1"), audio("r1", "i1", 200), inputs.StandbyReady("sess_2", None))
    scene.do(said(AgentTranscriptDelta("r1", "i1", 0, "A long story")))
    assert scene.at(3596.0) == []
    assert scene.at(3597.5) == ["take over", "item A long story …", "create"]


def test_one_that_cannot_be_had_is_tried_for_again() -> None:
    scene = living(3600.0)
    assert scene.at(3540.5) == ["open spare"]
    scene.do(inputs.StandbyFailed("busy"))
    assert scene.at(3569.9) == []
    assert scene.at(3570.1) == ["open spare"]
    scene.do(inputs.StandbyFailed("busy"))
    assert "open spare" not in scene.at(3599.0), "too late for a third"


def test_a_standby_session_that_was_dropped_may_fail_behind_it() -> None:
    """What comes after it tells no end, and needs no successor."""
    scene = living(3600.0)
    assert scene.at(3540.5) == ["open spare"]
    scene.do(closed(1006))
    scene.at(3541.0, UP, inputs.StandbyFailed("1006"))
    assert "handover_failed" not in scene.events
    assert "open spare" not in scene.at(3590.0)


@pytest.mark.parametrize("left", [6.5, 29.0, 30.0, 59.0, 61.0, 90.0])
def test_what_a_server_says_of_its_end_opens_no_session_more_often_than_in_thirty_seconds(
    left: float,
) -> None:
    scene = living(
        left,
        replace(
            PLAN,
            limits=replace(PLAN.limits, rtp_timeout=0, max_call_duration=36_000),
        ),
    )
    opened = []
    while scene.now < 3600 and scene.record.ending is None:
        if "open spare" in scene.at(scene.now + 0.5):
            opened.append(scene.now)
            scene.do(inputs.StandbyReady(f"sess_{len(opened)}", left))
    assert all(later - before >= 29.5 for before, later in pairwise(opened))
    assert len(opened) <= 20
    limited = scene.events.count("handover_limit")
    assert limited == (1 if len(opened) == 20 else 0)


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("end", [LOST, error("session_expired"), None])
def test_one_that_is_there_takes_over_at_once_when_the_other_is_lost(
    end: inputs.Input | None, fallback: bool
) -> None:
    """Closed, ended by an error, or silent (None)."""
    plan = replace(PLAN, silence=SilencePlan(timeout=8.0))
    scene = living(3600.0, plan if fallback else replace(plan, server=ServerPlan()))
    scene.at(3541.0, created("r1"))
    scene.do(inputs.StandbyReady("sess_2", None))
    took_over = scene.at(3550.0) if end is None else scene.do(end)
    assert took_over == ["take over", "create"]
    assert scene.record.session.failovers == []
    assert scene.state.name == "TALKING"


def test_a_server_that_tells_no_end_gets_no_successor() -> None:
    scene = Scene(PLAN).up()
    assert "open spare" not in scene.at(3599.0)


def test_a_call_of_seventy_minutes_loses_no_word() -> None:
    """A question every twenty seconds, sessions of sixty minutes, and everything told."""
    scene = living(3600.0)
    words = []
    for turn in range(210):
        at = 20.0 * turn + 1
        question, answer = f"Question number {turn}, please?", f"Answer number {turn} is this."
        opened = scene.at(at, said(InputCommitted(f"u{turn}")))
        if "open spare" in opened:
            scene.do(inputs.StandbyReady("sess_2", 3600.0))
        scene.do(said(InputTranscribed(f"u{turn}", question)), created(f"r{turn}"))
        scene.do(said(AgentTranscriptDelta(f"r{turn}", f"i{turn}", 0, answer)))
        scene.do(audio(f"r{turn}", f"i{turn}", 2000), audio_done(f"r{turn}", f"i{turn}"))
        scene.do(done(f"r{turn}"))
        scene.listen(2100)
        words += [question, answer]
    assert scene.record.session.handovers == 1
    where = scene.seen.index("take over")
    given = [text.removeprefix("item ") for text in scene.seen[where:] if text.startswith("item ")]
    assert given == words[: len(given)]
    assert 340 < len(given) < 380, "an hour of it"
    told = [one["text"] for one in scene.record.as_json()["transcript"]]
    assert told == words


# ---- known before


def test_where_trouble_is_known_nobody_waits_to_find_out() -> None:
    for steps, seen in (
        ((), ["close 1000 session_unreachable", "503 41 retry 5"]),
        ((RECONNECT,), ["180", "close 1000 session_unreachable", "503 41 retry 5"]),
        ((FallbackStep("busy"),), ["180", "close 1000 session_unreachable", "486 41"]),
        ((SECOND,), ["180", "open 1"]),
    ):
        scene = Scene(
            replace(
                PLAN,
                server=replace(PLAN.server, known_outage="probe: no answer", fallback=steps),
            )
        )
        assert scene.seen == seen
        assert "open" not in scene.seen


def test_nobody_is_called_while_the_server_is_known_to_be_down() -> None:
    server = replace(PLAN.server, known_outage="probe: no answer", fallback=(SECOND,))
    scene = Scene(replace(PLAN, server=server, outbound=OutboundPlan(30.0, False)))
    assert scene.seen == ["close 1000 session_unreachable", "finished"]


# ---- a server that wants to be left alone


def _busy(after: float) -> inputs.SessionFailed:
    verdict = Verdict(Kind.RETRYABLE, "http 429", "too many requests for now", True)
    return inputs.SessionFailed(verdict, "slow down", after)


def test_the_next_step_is_taken_at_once_and_the_caller_told_when_to_come_back() -> None:
    scene = Scene(replace(PLAN, server=replace(PLAN.server, fallback=(SECOND,))))
    assert scene.do(_busy(30.0))[-1] == "open 1"
    alone = Scene(replace(PLAN, server=replace(PLAN.server, fallback=())))
    assert alone.do(_busy(29.5))[-1] == "503 41 retry 30"


def test_in_a_call_the_server_is_left_alone_as_long_as_it_asks() -> None:
    scene = Scene(PLAN).up()
    scene.do(LOST)
    scene.do(_busy(4.0))
    assert "open" not in scene.at(scene.now + 3.9)
    assert "open" in scene.at(scene.now + 0.2)


def test_a_request_given_up_in_the_lost_session_is_not_counted_in_the_next() -> None:
    scene = Scene(PLAN).up()
    scene.do(inputs.ToolRequest(RequestResponse("Say hello.")))
    assert scene.at(scene.now + 10.0) == ["create ['instructions']"]
    assert scene.events.count("response_unanswered") == 1
    scene.do(created("r1"), audio("r1", "i1", 40), audio_done("r1", "i1"), done("r1"))
    scene.at(scene.now + 1.0, LOST, AGAIN)
    requested = len(scene.requests)
    scene.at(scene.now + 1.0, TICK)
    assert len(scene.requests) == requested, "nobody said anything in the new session"


def test_keys_while_a_session_is_replaced_for_long_count_as_no_failed_responses() -> None:
    scene = Scene(ladder(FallbackStep("reconnect", 120.0, "chime"))).up()
    scene.do(LOST, key("1"), key("#"))
    for second in range(4, 100, 4):
        scene.at(float(second), UNREACHABLE)
    assert scene.record.ending is None
    scene.at(100.0, AGAIN)
    assert scene.seen[-1] == "create"


def test_a_key_before_the_first_session_holds_no_greeting_up() -> None:
    """It is answered after that."""
    plan = ladder(RECONNECT)
    plan = replace(plan, answer=AnswerPlan("immediate"), greeting={"instructions": "Hello"})
    scene = Scene(plan)
    scene.do(ACK)
    scene.at(1.0, UNREACHABLE, key("1"), key("#"))
    scene.at(2.0, UP)
    assert [one.response for one in scene.requests] == [{"instructions": "Hello"}]
    answer(scene, "r1")
    assert [one.response for one in scene.requests] == [{"instructions": "Hello"}, None]


@pytest.mark.parametrize("begun", [True, False])
def test_last_words_that_are_cut_off_by_the_end_of_a_session_are_said_by_the_next(
    begun: bool,
) -> None:
    scene = Scene(PLAN)
    scene.do(inputs.SessionReady("sess_1", 3600.0), ACK)
    scene.at(3530.0, SPEECH)
    scene.at(3595.0, inputs.StandbyReady("sess_2", None), inputs.BudgetThreshold(True, "money"))
    first = scene.requests[-1]
    scene.do(*([created("r1", first), audio("r1", "i1", 200)] if begun else []))
    scene.at(3597.1)
    assert "take over" in scene.seen
    assert len(scene.requests) == 2
    assert scene.requests[-1].words == first.words
    answer(scene, "r2")
    scene.listen(600)
    scene.do(OUR_END)
    assert scene.ending[1] == "budget"
    assert scene.heard_ms == 400 + 200 * begun

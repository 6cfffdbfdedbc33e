# SPDX-License-Identifier: GPL-2.0-or-later
"""Consent to a recording: prompts that are cut off, transfers, and answers that are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.call_record import RecordingRecord
from gateway.call.plan import (
    ApprovalRule,
    CallPlan,
    DtmfPlan,
    EscapePlan,
    FallbackStep,
    FunctionPlan,
    HoldWaitPlan,
    InterruptionPlan,
    LimitsPlan,
    ServerPlan,
    SilencePlan,
    ToolsPlan,
)
from gateway.call.rules.recording import MAX_REPEATS
from gateway.call.tools.commands import (
    CollectPlan,
    Destination,
    RecordCall,
    RecordingPlan,
    TransferPlan,
)
from gateway.realtime.events import (
    InputCommitted,
    InputTranscribed,
    SpeechStarted,
    SpeechStopped,
)
from gateway.realtime.session_object import LIVE, REALTIME
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
    failed,
    key,
    said,
)

PROMPT = "Say exactly: This is recorded."
ANSWERED = inputs.BLegAnswered()
BUSY = inputs.BLegEnded(486, "Busy", "", False)


def asked(
    consent: str,
    *,
    mode: str = "always",
    by_gateway: bool = False,
    waits: bool = False,
    interrupts: bool = True,
    begins: bool = True,
    live: bool = False,
    **more: Any,
) -> Scene:
    """A call whose caller is being told, or asked, and may reach a human with 0; with ``begins``
    False the request for that is unanswered.

    Args:
        more: of the plan, in place of what it has here.
    """
    plan = CallPlan(
        "r",
        Codec.PCMU,
        server=ServerPlan(fallback=(FallbackStep("reconnect", 10.0, "chime"),)),
        limits=LimitsPlan(rtp_timeout=0),
        greeting={"instructions": "Hello"},
        recording=RecordingPlan(
            mode,
            consent=consent,
            prompt="This is recorded.",
            yes_phrases=(("yes",),),
            after_transfer=True,
        ),
        tools=ToolsPlan(transfer=TransferPlan((Destination("anna", "sip:a@x", mode="bridge"),))),
        escape=EscapePlan(key="0", to=("anna",)),
        hold_wait=HoldWaitPlan(waits),
        dtmf=DtmfPlan(interrupt=interrupts),
    )
    if by_gateway:
        plan = replace(plan, interruptions=InterruptionPlan(by_gateway=True))
    scene = Scene(replace(plan, **more))
    scene.do(inputs.SessionReady("sess_1", capabilities=LIVE if live else REALTIME), ACK)
    if begins:
        scene.do(created("r1", scene.requests[-1]))
    return scene


def hears_prompt(scene: Scene) -> None:
    """The prompt is said to its end."""
    scene.do(audio("r1", "i1", 500), audio_done("r1", "i1"), done("r1"))
    scene.listen(600)


def is_answered(scene: Scene, name: str) -> None:
    """The caller's turn is over, and the server's own response to it heard."""
    scene.do(said(SpeechStopped("item_user", 1800)), said(InputCommitted("item_user")))
    scene.do(created(name), audio(name, f"i_{name}", 500), audio_done(name, f"i_{name}"))
    scene.do(done(name))
    scene.listen(600)


def recording_of(scene: Scene) -> RecordingRecord:
    """Its part of the record."""
    assert scene.record.recording is not None
    return scene.record.recording


def words(scene: Scene) -> list[str]:
    """What the model was asked to say, so far."""
    return [(one.response or {}).get("instructions", "") for one in scene.requests]


@pytest.mark.parametrize("consent", ["announce", "ask"])
def test_a_prompt_that_the_caller_cut_off_is_said_again_and_not_taken_for_heard(
    consent: str,
) -> None:
    scene = asked(consent)
    scene.do(audio("r1", "i1", 4000))
    scene.listen(200)
    scene.do(SPEECH, done("r1", "cancelled"))
    is_answered(scene, "r2")
    assert recording_of(scene).state == "asking"
    assert words(scene) == [PROMPT, PROMPT]
    scene.do(created("r3", scene.requests[-1]), audio("r3", "i3", 500), done("r3"))
    scene.listen(600)
    scene.do(*([key("1")] if consent == "ask" else []))
    assert recording_of(scene).state == "recording"
    assert words(scene) == [PROMPT, PROMPT, "Hello"]


def test_a_prompt_that_is_cut_off_each_time_is_given_up() -> None:
    scene = asked("announce")
    for turn in range(MAX_REPEATS + 1):
        name = "r1" if turn == 0 else f"p{turn}"
        if turn:
            scene.do(created(name, scene.requests[-1]))
        scene.do(audio(name, f"i_{name}", 4000))
        scene.listen(200)
        scene.do(SPEECH, done(name, "cancelled"))
        is_answered(scene, f"a{turn}")
    assert words(scene) == [*[PROMPT] * (MAX_REPEATS + 1), "Hello"]
    assert recording_of(scene).state == "unanswered"


def test_a_prompt_that_is_cut_off_and_nothing_follows_is_said_again_later() -> None:
    scene = asked("announce")
    scene.do(audio("r1", "i1", 4000))
    scene.listen(200)
    scene.do(SPEECH, done("r1", "cancelled"))
    scene.at(16.0)
    assert recording_of(scene).state == "asking"
    assert words(scene) == [PROMPT, PROMPT]


def test_an_announcement_is_not_interrupted_where_the_gateway_decides() -> None:
    scene = asked("announce", by_gateway=True)
    scene.do(audio("r1", "i1", 4000))
    scene.listen(200)
    assert scene.do(SPEECH) == []
    scene.do(said(SpeechStopped("item_user", 1800)), audio_done("r1", "i1"), done("r1"))
    scene.listen(4000)
    assert recording_of(scene).consent == "announced"


@pytest.mark.parametrize("consent", ["announce", "ask"])
@pytest.mark.parametrize("heard_ms", [300, 0])
def test_who_escapes_from_the_prompt_is_not_recorded_with_the_colleague(
    consent: str, heard_ms: int
) -> None:
    scene = asked(consent)
    scene.do(audio("r1", "i1", 4000))
    scene.listen(heard_ms)
    scene.do(key("0"), done("r1", "cancelled"))
    scene.at(3.0, ANSWERED)
    scene.at(40.0)
    assert recording_of(scene).state == "unanswered"
    assert words(scene) == [PROMPT]


def test_who_escapes_from_the_prompt_in_vain_hears_it_again() -> None:
    scene = asked("announce")
    scene.do(audio("r1", "i1", 4000))
    scene.listen(300)
    scene.do(key("0"), done("r1", "cancelled"))
    scene.at(20.0)
    assert words(scene) == [PROMPT], "they hear how it rings"
    scene.do(BUSY)
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 500), done("r2"))
    scene.listen(600)
    assert words(scene) == [PROMPT, "", PROMPT]


@pytest.mark.parametrize("pressed", ["", "1", "2"])
def test_nobody_is_greeted_about_the_recording_while_a_colleague_is_called(pressed: str) -> None:
    scene = asked("ask")
    hears_prompt(scene)
    scene.at(2.0, key("0"))
    scene.at(3.0, *([key(pressed)] if pressed else []))
    scene.at(16.0)
    assert words(scene) == [PROMPT]
    scene.do(BUSY)
    scene.at(16.1)
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 500), done("r2"))
    scene.listen(600)
    assert words(scene) == [PROMPT, "", "Hello"]


@pytest.mark.parametrize(("consent", "state"), [("ask", "unanswered"), ("announce", "recording")])
@pytest.mark.parametrize("pressed", ["1", "2"])
def test_a_key_for_the_colleague_is_no_answer(consent: str, state: str, pressed: str) -> None:
    scene = asked(consent)
    hears_prompt(scene)
    scene.at(1.0, key("0"))
    scene.at(3.0, ANSWERED)
    assert scene.at(5.0, key(pressed)) == [f"press {pressed} second"]
    assert recording_of(scene).state == state


@pytest.mark.parametrize("done_at", [1.0, 20.0])
def test_a_prompt_behind_a_long_answer_is_heard_when_it_was_said(done_at: float) -> None:
    """An operator wants a recording in the middle of it: its sound is not that of the prompt."""
    scene = asked("announce", mode="on_demand")
    scene.do(audio("r1", "i1", 20_000), audio_done("r1", "i1"))
    scene.listen(500)
    scene.do(inputs.ToolRequest(RecordCall("start", "operator")))
    scene.at(done_at, done("r1"))
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 3000), audio_done("r2", "i2"))
    scene.do(done("r2"))
    scene.at(max(17.0, done_at))
    assert recording_of(scene).state == "asking"
    scene.listen(30_000)
    assert recording_of(scene).consent == "announced"
    assert words(scene) == ["Hello", PROMPT]


def test_a_recording_that_is_wanted_between_sessions_is_announced_by_the_next() -> None:
    scene = asked("announce", mode="on_demand")
    hears_prompt(scene)
    scene.do(closed(1011), inputs.ToolRequest(RecordCall("start", "operator")))
    scene.at(3.0, inputs.SessionReady("sess_2"))
    assert words(scene) == ["Hello", PROMPT]
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 500), done("r2"))
    scene.listen(600)
    assert recording_of(scene).consent == "announced"


def music(scene: Scene) -> None:
    """Five seconds of music: the agent waits in a queue."""
    for _ in range(5):
        scene.at(scene.now + 1, inputs.SoundHeard(1.0, 0.9, 0.2))


@pytest.mark.parametrize("consent", ["announce", "ask"])
@pytest.mark.parametrize("cut", ["said", "requested", "waiting", "wanted in the queue"])
def test_who_picks_up_after_a_queue_hears_the_prompt_that_the_queue_has_cut(
    consent: str, cut: str
) -> None:
    """However long it took, and a yes before that is an answer to something else."""
    scene = asked(consent, mode="on_demand" if cut.startswith("wa") else "always", waits=True)
    wanted = inputs.ToolRequest(RecordCall("start", "operator"))
    if cut == "said":
        scene.do(audio("r1", "i1", 20_000))
        scene.listen(300)
    elif cut == "waiting":
        scene.do(audio("r1", "i1", 20_000), wanted)
        scene.listen(300)
    music(scene)
    assert scene.record.content.hold_waits
    scene.do(done("r1", "cancelled"))
    if cut == "wanted in the queue":
        scene.do(wanted)
    scene.at(40.0, said(InputTranscribed("item_user", "Yes?")))
    scene.at(50.0)
    assert recording_of(scene).state == "asking"
    before = words(scene)
    scene.do(key("1"))
    assert recording_of(scene).state == "asking"
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 500), done("r2"))
    scene.listen(600)
    assert words(scene) == [*before, "", PROMPT]
    scene.do(created("r3", scene.requests[-1]), audio("r3", "i3", 500), done("r3"))
    scene.listen(600)
    scene.do(*([key("1")] if consent == "ask" else []))
    assert recording_of(scene).state == "recording"
    greeted = [] if cut.startswith("wa") else ["Hello"]
    assert words(scene) == [*before, "", PROMPT, *greeted]


@pytest.mark.parametrize("pressed", [True, False])
def test_a_yes_before_the_question_has_begun_to_be_heard_is_no_answer(pressed: bool) -> None:
    """It is how a telephone is answered; a no counts at any time."""
    yes = key("1") if pressed else said(InputTranscribed("item_user", "Yes?"))
    scene = asked("ask")
    scene.do(yes)
    assert recording_of(scene).state == "asking"
    if pressed:
        scene.do(done("r1", "cancelled"))
        scene.at(2.0)
        assert words(scene) == [PROMPT, PROMPT]
        return
    scene.do(audio("r1", "i1", 4000))
    scene.listen(100)
    scene.do(yes)
    assert recording_of(scene).consent == "given"


@pytest.mark.parametrize("interrupts", [True, False])
def test_a_yes_during_the_speech_before_the_question_is_no_answer(interrupts: bool) -> None:
    """The operator wants a recording in the middle of it."""
    scene = asked("ask", mode="on_demand", interrupts=interrupts)
    scene.do(audio("r1", "i1", 3000), audio_done("r1", "i1"))
    scene.listen(500)
    scene.do(inputs.ToolRequest(RecordCall("start", "operator")), done("r1"))
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 3000), audio_done("r2", "i2"))
    scene.do(done("r2"), key("1"))
    assert recording_of(scene).state == "asking"
    if interrupts:
        scene.at(scene.now + 2.0)
        assert words(scene) == ["Hello", PROMPT, PROMPT]
        return
    scene.listen(3500)
    scene.do(key("1"))
    assert recording_of(scene).consent == "given"


@pytest.mark.parametrize("consent", ["announce", "ask"])
def test_nobody_is_asked_while_the_caller_speaks_with_a_colleague(consent: str) -> None:
    scene = asked(consent, mode="on_demand")
    hears_prompt(scene)
    scene.do(key("0"))
    scene.at(3.0, ANSWERED)
    scene.do(inputs.ToolRequest(RecordCall("start", "operator")))
    scene.do(said(InputTranscribed("item_user", "Yes, I see.")))
    assert scene.record.recording is None
    assert "command_rejected" in scene.events


@pytest.mark.parametrize("complete", [True, False])
def test_a_key_that_is_no_answer_has_the_question_said_again_soon(complete: bool) -> None:
    scene = asked("ask")
    scene.do(audio("r1", "i1", 4000))
    if complete:
        scene.do(audio_done("r1", "i1"), done("r1"))
    scene.listen(300)
    scene.do(key("5"))
    scene.at(2.0, *([] if complete else [done("r1", "cancelled")]))
    assert words(scene) == [PROMPT, PROMPT]
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 500), done("r2"))
    scene.listen(600)
    scene.do(key("1"))
    assert recording_of(scene).consent == "given"


@pytest.mark.parametrize("consent", ["announce", "ask"])
def test_a_long_prompt_that_plays_on_as_its_session_is_replaced_counts_as_heard(
    consent: str,
) -> None:
    scene = asked(consent)
    scene.do(audio("r1", "i1", 25_000), audio_done("r1", "i1"), done("r1"))
    scene.listen(1000)
    scene.do(closed(1011))
    scene.at(3.0, inputs.SessionReady("sess_2"))
    scene.listen(15_000)
    scene.do(*([key("1")] if consent == "ask" else []))
    assert recording_of(scene).state == "recording"
    assert words(scene) == [PROMPT, "Hello"]


def test_a_complete_prompt_is_not_said_again_for_an_answer_that_was_lost_behind_it() -> None:
    scene = asked("ask")
    scene.do(audio("r1", "i1", 2000), audio_done("r1", "i1"), done("r1"), created("r2"))
    scene.listen(1000)
    scene.do(closed(1011))
    scene.at(2.0, inputs.SessionReady("sess_2"))
    scene.do(created("r3", scene.requests[-1]), audio("r3", "i3", 500), done("r3"))
    scene.listen(2000)
    assert words(scene).count(PROMPT) == 1
    scene.do(key("1"))
    assert recording_of(scene).state == "recording"


@pytest.mark.parametrize("consent", ["announce", "ask"])
@pytest.mark.parametrize("end", [failed, done])
def test_a_prompt_that_had_no_sound_is_said_again_and_not_taken_for_heard(
    consent: str, end: Any
) -> None:
    """Its retries are used up, and the message in its place was heard."""
    scene = asked(consent)
    scene.do(end("r1"), created("r2", scene.requests[-1]))
    scene.do(end("r2"))
    scene.do(created("r3", scene.requests[-1]), audio("r3", "i3", 500), done("r3"))
    scene.listen(600)
    scene.do(said(InputTranscribed("item_user", "Yes?")))
    assert recording_of(scene).state == "asking"
    sorry = words(scene)[2]
    assert "Sorry" in sorry
    assert words(scene) == [PROMPT, PROMPT, sorry, PROMPT]
    scene.do(created("r4", scene.requests[-1]), audio("r4", "i4", 500), done("r4"))
    scene.listen(600)
    scene.do(*([key("1")] if consent == "ask" else []))
    assert recording_of(scene).state == "recording"


def test_a_prompt_that_cannot_be_said_is_given_up_and_the_call_goes_on() -> None:
    """Before failures in a row end it."""
    scene = asked("announce")
    for name in ("r1", "r3"):
        scene.do(failed(name), created(f"{name}_again", scene.requests[-1]))
        scene.do(failed(f"{name}_again"))
        scene.do(created(f"{name}_sorry", scene.requests[-1]))
        scene.do(audio(f"{name}_sorry", f"i_{name}", 500), done(f"{name}_sorry"))
        scene.listen(600)
        scene.do(created("r3", scene.requests[-1]))
    sorry = words(scene)[2]
    assert words(scene) == [*[PROMPT, PROMPT, sorry] * 2, "Hello"]
    assert recording_of(scene).state == "unanswered"
    assert scene.record.ending is None


def test_a_prompt_whose_sound_is_late_is_not_taken_for_heard() -> None:
    scene = asked("announce", mode="on_demand")
    hears_prompt(scene)
    scene.do(inputs.ToolRequest(RecordCall("start", "operator")))
    scene.do(created("r2", scene.requests[-1]), audio("r1", "i1", 500), audio_done("r1", "i1"))
    scene.listen(600)
    scene.at(20.0)
    assert recording_of(scene).state == "asking"
    scene.do(audio("r2", "i2", 500), audio_done("r2", "i2"), done("r2"))
    scene.listen(600)
    assert recording_of(scene).consent == "announced"
    assert words(scene) == ["Hello", PROMPT]


def test_a_yes_whose_words_come_once_the_question_is_heard_is_none_if_it_began_before() -> None:
    scene = asked("ask", begins=False)
    scene.do(SPEECH, created("r1", scene.requests[-1]), audio("r1", "i1", 4000))
    scene.listen(500)
    scene.do(said(InputTranscribed("item_user", "Yes, hello?")))
    assert recording_of(scene).state == "asking"
    scene.do(said(SpeechStarted("item_2", 3000)), said(InputTranscribed("item_2", "Yes.")))
    assert recording_of(scene).consent == "given"


@pytest.mark.parametrize("spoke_at", [1.0, 4.0])
def test_a_yes_too_soft_to_be_detected_is_an_answer_if_the_question_had_begun(
    spoke_at: float,
) -> None:
    """Words of a Live session come seconds after the sound."""
    scene = asked("ask", begins=False, live=True)
    scene.at(2.0, created("speech_1"), audio("speech_1", "speech_1", 3000))
    scene.listen(2900)
    scene.do(audio_done("speech_1", "speech_1"), done("speech_1"))
    scene.listen(200)
    scene.at(spoke_at + 4.0, said(InputTranscribed("turn_1", "Yes.")))
    assert recording_of(scene).state == ("recording" if spoke_at > 2.0 else "asking")


@pytest.mark.parametrize("consent", ["announce", "ask"])
def test_time_on_hold_is_none_in_which_a_prompt_is_heard_or_answered(consent: str) -> None:
    scene = asked(consent)
    scene.do(audio("r1", "i1", 4000), audio_done("r1", "i1"), done("r1"))
    scene.listen(500)
    scene.do(inputs.HoldChanged(True))
    scene.at(60.0)
    assert recording_of(scene).state == "asking"
    scene.do(inputs.HoldChanged(False))
    scene.listen(3600)
    assert words(scene) == [PROMPT, *(["Hello"] if consent == "announce" else [])]
    scene.do(inputs.HoldChanged(True))
    scene.at(120.0, inputs.HoldChanged(False))
    scene.do(key("2"))
    assert recording_of(scene).state == "refused"


COLLECTS = ToolsPlan(collect_digits=CollectPlan(enabled=True))
APPROVES = ToolsPlan(
    functions={"refund": FunctionPlan()},
    approvals=(ApprovalRule("refund", "ask_caller", prompt=lambda _name, _given: "A refund?"),),
)


def test_a_digit_of_an_entry_is_no_objection_to_an_announcement() -> None:
    scene = asked("announce", tools=COLLECTS)
    hears_prompt(scene)
    scene.do(created("r2", scene.requests[-1]), done("r2", calls=[("collect_digits", "c1")]))
    scene.do(key("2"), key("#"))
    assert recording_of(scene).state == "recording"
    scene.do(key("2"))
    assert recording_of(scene).state == "refused"


def test_a_key_that_refuses_a_tool_is_no_objection_to_an_announcement() -> None:
    scene = asked("announce", tools=APPROVES)
    hears_prompt(scene)
    scene.do(created("r2", scene.requests[-1]), done("r2", calls=[("refund", "c1")]))
    assert "output c1" in scene.do(key("2"))
    assert recording_of(scene).state == "recording"


@pytest.mark.parametrize("question_heard", [True, False])
def test_a_key_about_a_tool_is_no_consent(question_heard: bool) -> None:
    """Also where it comes too early for that, and where its tone comes, too."""
    scene = asked("ask", mode="on_demand", tools=APPROVES)
    scene.do(inputs.ToolRequest(RecordCall("start", "operator")))
    scene.do(done("r1", calls=[("refund", "c1")]))
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 500), audio_done("r2", "i2"))
    scene.do(done("r2"))
    scene.listen(600)
    scene.do(created("r3", scene.requests[-1]))
    if question_heard:
        scene.do(audio("r3", "i3", 500), audio_done("r3", "i3"), done("r3"))
        scene.listen(600)
    assert words(scene) == ["Hello", PROMPT, "Say exactly: A refund?"]
    scene.do(key("1"), inputs.DigitPressed("1", in_band=True))
    assert scene.seen.count("run refund c1 {}") == question_heard
    assert recording_of(scene).state == "asking"
    if question_heard:
        scene.do(key("1"))
        assert recording_of(scene).consent == "given"


def test_who_picks_up_is_asked_also_where_a_menu_has_heard_the_question() -> None:
    scene = asked("ask", waits=True)
    hears_prompt(scene)
    music(scene)
    assert scene.record.content.hold_waits
    scene.at(40.0, said(InputTranscribed("item_user", "Yes?")))
    scene.at(50.0)
    scene.do(key("1"))
    assert recording_of(scene).state == "asking"
    scene.do(created("r2", scene.requests[1]), audio("r2", "i2", 500), done("r2"))
    scene.listen(600)
    assert words(scene) == [PROMPT, "", PROMPT]
    scene.do(created("r3", scene.requests[-1]), audio("r3", "i3", 500), done("r3"))
    scene.listen(600)
    scene.do(key("1"))
    assert recording_of(scene).consent == "given"


@pytest.mark.parametrize("collides", [False, True])
def test_a_prompt_of_a_server_that_names_no_requests_is_heard_once(collides: bool) -> None:
    """A turn of the caller waits for an answer: what comes may be that, or the prompt."""
    scene = asked("announce", begins=False)
    scene.do(SPEECH, said(SpeechStopped("item_user", 1800)), said(InputCommitted("item_user")))
    scene.do(created("r1"), *([error("conversation_already_has_active_response")] * collides))
    scene.do(audio("r1", "i1", 500), audio_done("r1", "i1"))
    if collides:
        scene.listen(600)
        scene.at(16.0)
        assert recording_of(scene).state == "asking"
        scene.do(done("r1"), created("r2"), audio("r2", "i2", 500), audio_done("r2", "i2"))
        scene.do(done("r2"))
    else:
        scene.do(done("r1"))
    scene.listen(600)
    assert recording_of(scene).consent == "announced"
    assert words(scene) == [*[PROMPT] * (1 + collides), "Hello"]


@pytest.mark.parametrize("ms", [0, 300])
def test_a_prompt_that_is_requested_anew_after_a_silence_is_not_requested_twice(ms: int) -> None:
    """Nor is what was heard of it before taken for all of it."""
    scene = asked("announce", server=ServerPlan(), silence=SilencePlan(timeout=14.5 - ms / 1000))
    scene.do(audio("r1", "i1", ms))
    scene.listen(ms + 100)
    scene.at(14.9)
    assert words(scene) == [PROMPT, PROMPT]
    scene.at(16.0)
    assert recording_of(scene).state == "asking"
    assert words(scene) == [PROMPT, PROMPT]
    scene.do(created("r2", scene.requests[-1]), audio("r2", "i2", 500), done("r2"))
    scene.listen(600)
    assert recording_of(scene).consent == "announced"

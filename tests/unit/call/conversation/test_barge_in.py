# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has the word: what the caller's speech does to an answer under each policy."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call.inputs import SessionReady
from gateway.call.plan import (
    CallPlan,
    DisclosurePlan,
    DtmfPlan,
    FallbackStep,
    InterruptionPlan,
    ServerPlan,
)
from gateway.realtime.events import (
    AgentTranscriptDelta,
    InputCommitted,
    InputTranscribed,
    SpeechStarted,
    SpeechStopped,
)
from gateway.text import words_of
from tests.support.call_scene import Scene, audio, audio_done, closed, created, done, key, said

PAUSE = InterruptionPlan(
    mode="adaptive",
    by_gateway=True,
    transcribed=True,
    backchannel_phrases=frozenset({"mm-hm", "yes", "i see"}),
    padding_ms=800,
)
PLAN = CallPlan("r", Codec.PCMU, interruptions=PAUSE, server=ServerPlan(interrupts=False))


def speaks(item: str = "u1", at_ms: int = 5000):  # type: ignore[no-untyped-def]
    return said(SpeechStarted(item, at_ms))


def stops(item: str = "u1", at_ms: int = 6800):  # type: ignore[no-untyped-def]
    return said(SpeechStopped(item, at_ms))


def committed(item: str = "u1"):  # type: ignore[no-untyped-def]
    return said(InputCommitted(item))


def words(text: str, item: str = "u1"):  # type: ignore[no-untyped-def]
    return said(InputTranscribed(item, text))


def talking(plan: CallPlan = PLAN) -> Scene:
    """Five seconds of an answer are there, two of them heard."""
    scene = Scene(plan).up()
    scene.do(created("r1"), audio("r1", "i1", 5000), audio_done("r1", "i1"), done("r1"))
    scene.listen(2000)
    return scene


def test_a_cough_pauses_the_answer_and_it_goes_on_where_it_was() -> None:
    scene = talking()
    assert scene.do(speaks()) == ["pause"]
    scene.listen(600)
    assert scene.heard_ms == 2000, "silence meanwhile"
    assert scene.do(stops(at_ms=5000 + 800 + 200)) == ["go on"]
    assert scene.do(committed()) == ["delete u1"]
    assert "false_interruption" in scene.events
    scene.listen(3100)
    assert scene.heard_ms == 5000
    assert scene.record.actions.interruptions == []
    assert scene.requests == []


@pytest.mark.parametrize("text", ["Mm-hm.", "Yes, I see!", "I see", "yes yes", "", " ... "])
def test_words_that_only_show_that_somebody_listens_interrupt_nothing(text: str) -> None:
    scene = talking()
    plan = replace(PAUSE, backchannel_phrases=frozenset({"mm-hm", "yes", "i", "see", "i see"}))
    scene = talking(replace(PLAN, interruptions=plan))
    assert scene.do(speaks(), stops(), committed()) == ["pause"]
    assert scene.do(words(text)) == ["go on", "delete u1"]
    scene.listen(3100)
    assert scene.heard_ms == 5000


def test_other_words_cut_the_answer_where_it_had_paused() -> None:
    scene = talking()
    scene.do(speaks(), stops(), committed())
    scene.listen(400)
    assert scene.do(words("No, wait.")) == ["flush", "truncate i1/0 2000", "go on", "create"]
    (cut,) = scene.record.actions.interruptions
    assert (cut.played_ms, cut.trigger, cut.action) == (2000, "speech", "truncate")
    assert scene.queue == 0


def test_the_running_response_is_cancelled_as_the_server_does_not() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 3000))
    scene.listen(1000)
    scene.do(speaks(), stops(), committed())
    assert scene.do(words("Stop!")) == ["flush", "truncate i1/0 1000", "cancel r1", "go on"]
    assert scene.do(done("r1", "cancelled")) == ["create"]


def test_speech_that_goes_on_is_an_interruption_whatever_its_words() -> None:
    scene = talking()
    assert scene.do(speaks()) == ["pause"]
    assert scene.at(scene.now + 1.4) == []
    assert scene.at(scene.now + 0.2) == ["flush", "truncate i1/0 2000", "go on"]
    assert scene.do(stops(at_ms=9000), committed(), words("mm-hm")) == ["create"]


def test_speech_whose_words_do_not_come_is_an_interruption() -> None:
    scene = talking()
    scene.do(speaks(), stops(), committed())
    assert scene.at(scene.now + 1.6) == ["flush", "truncate i1/0 2000", "go on", "create"]
    assert scene.do(words("mm-hm")) == []


def test_without_transcripts_the_length_decides() -> None:
    plan = replace(PLAN, interruptions=replace(PAUSE, transcribed=False))
    scene = talking(plan)
    assert scene.do(speaks(), stops(at_ms=5900)) == ["pause", "go on"]
    scene = talking(plan)
    assert scene.do(speaks(), stops(at_ms=6400))[:2] == ["pause", "flush"]


def test_two_coughs_and_words_between_them() -> None:
    scene = talking()
    scene.do(speaks("u1"), stops("u1", 6800), committed("u1"))
    assert scene.do(speaks("u2", 7000)) == ["pause"], "again: it costs nothing"
    assert scene.do(words("mm-hm", "u1")) == ["delete u1"], "the second is not decided yet"
    assert scene.do(stops("u2", 7900)) == ["go on"]
    assert scene.do(committed("u2")) == ["delete u2"]


def test_a_turn_while_the_agent_is_silent_is_asked_to_be_answered() -> None:
    scene = Scene(PLAN).up()
    assert scene.do(speaks(), stops(), committed()) == ["create"]
    assert scene.do(words("mm-hm")) == []


def test_never_hears_the_agent_out_and_answers_afterwards() -> None:
    plan = replace(PLAN, interruptions=replace(PAUSE, mode="disabled"))
    scene = Scene(plan).up()
    scene.do(created("r1"), audio("r1", "i1", 3000))
    assert scene.do(speaks(), stops(), committed(), words("Stop!")) == []
    assert "interruption_suppressed" in scene.events
    assert scene.do(audio_done("r1", "i1"), done("r1")) == ["create"]
    scene.listen(3100)
    assert scene.heard_ms == 3000


def test_a_greeting_is_protected_from_speech_and_keys_and_what_follows_is_not() -> None:
    plan = replace(
        PLAN,
        greeting={"instructions": "Say exactly: This call is recorded."},
        interruptions=InterruptionPlan(by_gateway=True, uninterruptible_greeting=True),
        dtmf=DtmfPlan(finish_on_key="", max_digits=1),
    )
    scene = Scene(plan).up()
    scene.do(created("r1"), audio("r1", "i1", 2000), audio_done("r1", "i1"), done("r1"))
    scene.listen(1000)
    assert scene.do(speaks("u1")) == []
    assert "flush" not in scene.do(key("4"))
    scene.listen(1100)
    assert scene.heard_ms == 2000
    scene.do(created("r2"), audio("r2", "i2", 2000), audio_done("r2", "i2"), done("r2"))
    scene.listen(500)
    assert scene.do(speaks("u2")) == ["flush", "truncate i2/0 500"]


@pytest.mark.parametrize("complete", [True, False])
def test_a_disclosure_is_heard_to_its_end_once_the_server_has_nothing_of_it_to_cancel(
    complete: bool,
) -> None:
    """Where the server decides about interruptions."""
    plan = CallPlan("r", Codec.PCMU, disclosure=DisclosurePlan("I am an AI."))
    scene = Scene(plan).up()
    scene.do(created("r1", scene.requests[-1]), audio("r1", "i1", 2000))
    scene.do(*([audio_done("r1", "i1"), done("r1")] if complete else []))
    scene.listen(500)
    assert ("flush" in scene.do(speaks("u1"))) is not complete
    scene.listen(1600)
    assert scene.heard_ms == (2000 if complete else 500)
    scene.do(created("r2"), audio("r2", "i2", 2000), audio_done("r2", "i2"), done("r2"))
    scene.listen(500)
    assert "flush" in scene.do(speaks("u2"))


def test_an_answer_with_the_notice_in_it_is_protected() -> None:
    notice = InterruptionPlan(
        by_gateway=True, uninterruptible_patterns=(re.compile("recorded for"),)
    )
    scene = Scene(replace(PLAN, interruptions=notice)).up()
    scene.do(created("r1"))
    for delta in ("This call is rec", "orded f", "or training."):
        scene.do(said(AgentTranscriptDelta("r1", "i1", 0, delta)))
    scene.do(audio("r1", "i1", 2000), audio_done("r1", "i1"), done("r1"))
    scene.listen(500)
    assert scene.do(speaks(), stops(), committed()) == ["create"]
    assert scene.record.actions.interruptions == []


def test_a_session_that_closes_meanwhile_leaves_nobody_paused() -> None:
    scene = talking()
    scene.do(speaks())
    assert "go on" in scene.do(closed(1000))
    scene.listen(3100)
    assert scene.heard_ms == 5000


def test_turns_about_which_nothing_more_comes_are_forgotten() -> None:
    scene = talking()
    for number in range(100):
        scene.do(speaks(f"u{number}"))
    turns = scene.machine._call.conversation._interruptions._turns
    assert len(turns) == 8


def test_words() -> None:
    assert words_of("Mm-hm, D'ACCORD… ¿Sí?") == ("mm-hm", "d'accord", "sí")


def test_a_digit_in_speech_that_is_undecided_keeps_its_deadline() -> None:
    plan = replace(PLAN, dtmf=DtmfPlan(interrupt=True, inter_digit_timeout=30.0))
    scene = talking(plan)
    assert scene.do(speaks(), stops(), committed()) == ["pause"]
    assert scene.do(key("5")) == ["flush", "truncate i1/0 2000", "go on"]
    assert scene.machine.deadline is not None
    assert scene.machine.deadline <= scene.now + PAUSE.transcript_timeout
    assert "create" in scene.at(scene.now + PAUSE.transcript_timeout), "the words do not come"


def test_words_of_a_lost_session_protect_no_response_of_the_next() -> None:
    """Also where both have a response of one id."""
    plan = InterruptionPlan(by_gateway=True, uninterruptible_patterns=(re.compile("recorded"),))
    again = ServerPlan(interrupts=False, fallback=(FallbackStep("reconnect", 10.0, ""),))
    scene = Scene(replace(PLAN, interruptions=plan, server=again)).up()
    scene.do(created("r1"), said(AgentTranscriptDelta("r1", "i1", 0, "This is recorded.")))
    scene.do(done("r1"), closed(1011), SessionReady("sess_2"))
    scene.do(created("r1"), said(AgentTranscriptDelta("r1", "i1", 0, "Hello.")))
    scene.do(audio("r1", "i1", 400))
    scene.listen(200)
    assert scene.do(speaks()) == ["flush", "truncate i1/0 200", "cancel r1"]

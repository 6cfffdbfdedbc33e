# SPDX-License-Identifier: GPL-2.0-or-later
"""What was said, in order, and what the caller heard of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.conversation import transcript
from gateway.call.plan import CallPlan, DtmfPlan, FallbackStep, FunctionPlan, ServerPlan
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    InputCommitted,
    InputTranscribed,
)
from tests.support.call_scene import (
    BYE,
    SPEECH,
    Scene,
    audio,
    audio_done,
    closed,
    created,
    done,
    key,
    said,
)

PLAN = CallPlan("r", Codec.PCMU, dtmf=DtmfPlan(finish_on_key="", max_digits=1))
WORDS = "One two three four five six seven eight nine ten."


def lines(scene: Scene) -> list[tuple[str, str, str | None]]:
    """Who said what, and what was heard of it."""
    told = scene.record.as_json()["transcript"]
    return [(one["who"], one["text"], one.get("heard")) for one in told]


def speak(scene: Scene, number: int, text: str, word_ms: int = 400) -> None:
    """The model says this, word by word; the audio of each comes behind it."""
    response, item = f"r{number}", f"i{number}"
    scene.do(created(response))
    for word in text.split():
        scene.do(said(AgentTranscriptDelta(response, item, 0, f"{word} ")))
        scene.do(audio(response, item, word_ms))
    scene.do(audio_done(response, item), said(AgentTranscript(response, item, 0, text)))
    scene.do(done(response))


def test_both_sides_stand_in_the_order_in_which_they_spoke() -> None:
    scene = Scene(PLAN).up()
    speak(scene, 1, "Good morning.")
    scene.listen(1000)
    scene.do(said(InputCommitted("u1")), created("r2"))
    scene.do(said(AgentTranscriptDelta("r2", "i2", 0, "It is open.")), audio("r2", "i2", 400))
    # The words of the caller come when the answer to them has begun.
    scene.do(said(InputTranscribed("u1", " Is it open? ")))
    scene.do(audio_done("r2", "i2"), done("r2"), key("4"))
    assert lines(scene) == [
        ("agent", "Good morning.", None),
        ("caller", "Is it open?", None),
        ("agent", "It is open.", ""),
        ("caller", "The caller pressed 4 on the telephone keypad.", None),
    ]


def test_of_an_answer_that_was_cut_there_is_what_was_heard() -> None:
    scene = Scene(PLAN).up()
    speak(scene, 1, WORDS)
    scene.listen(1300)
    scene.do(SPEECH)
    assert lines(scene) == [("agent", WORDS, "One two three")]


def test_words_that_came_before_any_audio_are_shared_out_over_it() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), said(AgentTranscriptDelta("r1", "i1", 0, WORDS)))
    scene.do(audio("r1", "i1", 4000), audio_done("r1", "i1"), done("r1"))
    scene.listen(2000)
    scene.do(SPEECH)
    ((_, _, heard),) = lines(scene)
    assert heard == "One two three four five"


@pytest.mark.parametrize("heard_ms", [4000, 2000])
def test_words_that_come_behind_all_of_their_audio_are_shared_out_over_it(heard_ms: int) -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 4000))
    for word in WORDS.split():
        scene.do(said(AgentTranscriptDelta("r1", "i1", 0, f"{word} ")))
    scene.do(said(AgentTranscript("r1", "i1", 0, WORDS)))
    scene.listen(heard_ms)
    scene.do(SPEECH)
    assert lines(scene) == [("agent", WORDS, WORDS if heard_ms == 4000 else WORDS[:23])]


@pytest.mark.parametrize(
    ("heard_ms", "heard"),
    [(1400, "One two three. Four"), (1000, "One two three."), (400, "One")],
)
@pytest.mark.parametrize("lost", [False, True])
def test_of_an_item_in_two_parts_all_that_was_heard_of_either_counts(
    heard_ms: int, heard: str, lost: bool
) -> None:
    again = ServerPlan(fallback=(FallbackStep("reconnect", 10.0, ""),))
    scene = Scene(replace(PLAN, server=again)).up()
    scene.do(created("r1"))
    for part, text in enumerate(("One two three.", "Four five six.")):
        scene.do(said(AgentTranscriptDelta("r1", "i1", part, text)))
        scene.do(audio("r1", "i1", 1000, part), audio_done("r1", "i1", part))
        scene.do(said(AgentTranscript("r1", "i1", part, text)))
    scene.do(done("r1"))
    if lost:
        scene.do(closed(1011), inputs.SessionReady("sess_2"))
    scene.listen(heard_ms)
    scene.do(SPEECH)
    assert lines(scene) == [("agent", "One two three. Four five six.", heard)]


def test_a_caller_who_hangs_up_has_heard_what_was_played_by_then() -> None:
    scene = Scene(PLAN).up()
    speak(scene, 1, WORDS)
    scene.listen(900)
    scene.do(BYE)
    assert lines(scene) == [("agent", WORDS, "One two")]
    assert scene.record.actions.interruptions == [], "nobody interrupted anything"
    assert scene.ending == ("caller", "remote_hangup", 200)


def test_function_calls_and_their_results() -> None:
    scene = Scene(
        replace(PLAN, tools=replace(PLAN.tools, functions={"hours": FunctionPlan()}))
    ).up()
    scene.do(created("r1"), done("r1", calls=[("hours", "c1", '{"day":"Monday"}')]))
    scene.do(inputs.ToolDone("c1", '{"from": 9}'))
    assert lines(scene) == [
        ("call", 'hours {"day":"Monday"}', None),
        ("result", '{"from": 9}', None),
    ]


def test_a_session_that_takes_over_is_told_what_was_heard() -> None:
    scene = Scene(
        replace(PLAN, tools=replace(PLAN.tools, functions={"hours": FunctionPlan()}))
    ).up()
    speak(scene, 1, WORDS)
    scene.listen(1300)
    scene.do(SPEECH, said(InputCommitted("u1")), said(InputTranscribed("u1", "When?")))
    scene.do(created("r2"), done("r2", calls=[("hours", "c1")]), inputs.ToolDone("c1", "9 to 5"))
    seed = scene.machine._call.conversation.transcript.seed()
    assert [(item["type"], item.get("role")) for item in seed] == [
        ("message", "assistant"),
        ("message", "user"),
        ("function_call", None),
        ("function_call_output", None),
    ]
    assert seed[0]["content"][0]["text"] == "One two three …"
    assert scene.machine._call.conversation.transcript.response_due


def test_it_has_bounds_and_counts_what_they_cost() -> None:
    scene = Scene(PLAN).up()
    for number in range(transcript.MAX_ENTRIES + 5):
        scene.do(said(InputCommitted(f"u{number}")))
        # Only what the seed is made of is long: words are searched by each rule that listens.
        long = number > transcript.MAX_ENTRIES - 20
        scene.do(said(InputTranscribed(f"u{number}", "long " * (1601 if long else 1))))
    assert scene.record.as_json()["transcript_dropped"] == 5
    told = lines(scene)
    assert len(told) == transcript.MAX_ENTRIES
    assert max(len(text) for _, text, _ in told) == transcript.MAX_TEXT
    seed = scene.machine._call.conversation.transcript.seed()
    assert len(seed) == 1 + transcript.SEED_TEXT // transcript.MAX_TEXT
    assert seed[0]["content"][0]["text"] == transcript.LEFT_OUT

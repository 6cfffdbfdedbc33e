# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers that fail are told to the caller."""

from __future__ import annotations

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import (
    CallPlan,
    ContentPlan,
    DisclosurePlan,
    OutboundPlan,
    ResponseFailurePlan,
)
from gateway.call.tools.commands import PressKeys, RequestResponse
from gateway.realtime.events import InputCommitted, ResponseDone
from tests.support.call_scene import (
    ACK,
    SPEECH,
    UP,
    Scene,
    audio,
    audio_done,
    created,
    done,
    error,
    failed,
    key,
    said,
)

RESCUE = ResponseFailurePlan(
    message="Again?", content_filter_message="No.", sound="chime", max_failures=3, goodbye="Bye."
)
PHRASE = "create ['instructions', 'tools']"


def scene_of(rescue: ResponseFailurePlan = RESCUE) -> Scene:
    return Scene(CallPlan("r", Codec.PCMU, content=ContentPlan(response_failure=rescue))).up()


def incomplete(response: str, reason: str) -> inputs.ServerEventReceived:
    return said(ResponseDone(response, "incomplete", reason, None, None, (), None))


def answer(scene: Scene, response: str) -> list[str]:
    item = f"i-{response}"
    scene.do(created(response), audio(response, item, 200), audio_done(response, item))
    return scene.do(done(response))


def last_words(scene: Scene) -> str:
    response = scene.requests[-1].response
    assert response is not None
    return str(response["instructions"])


def test_a_failed_response_is_asked_again_then_told() -> None:
    scene = scene_of()
    assert scene.do(created("r1"), failed("r1")) == ["create"]
    assert scene.do(created("r2"), failed("r2")) == [PHRASE]
    assert last_words(scene) == "Say exactly: Again?"
    assert answer(scene, "r3") == []
    assert scene.do(created("r4"), failed("r4")) == ["create"], "from the beginning"


def test_the_phrase_without_sound_becomes_a_sound() -> None:
    scene = scene_of()
    scene.do(created("r1"), failed("r1"), created("r2"), failed("r2"))
    assert scene.do(created("r3"), failed("r3")) == ["sound chime"]
    assert scene.at(scene.now + 2.1) == ["sound"]
    silent = scene_of()
    silent.do(created("r1"), failed("r1"), created("r2"), failed("r2"))
    assert silent.do(created("r3"), done("r3")) == ["sound chime"]


def test_the_sound_ends_in_its_time_while_an_operator_presses_keys() -> None:
    scene = scene_of()
    scene.do(created("r1"), failed("r1"), created("r2"), failed("r2"))
    assert scene.do(created("r3"), failed("r3")) == ["sound chime"]
    scene.at(scene.now + 1.5, inputs.ToolRequest(PressKeys("123456")))
    assert "sound" in scene.at(scene.now + 0.6)


def test_a_filtered_answer_is_told_at_once() -> None:
    scene = scene_of()
    assert scene.do(created("r1"), incomplete("r1", "content_filter")) == [PHRASE]
    assert last_words(scene) == "Say exactly: No."


def test_after_several_the_call_ends_aloud() -> None:
    scene = scene_of()
    for number in (1, 2, 3):
        scene.do(created(f"r{number}"), incomplete(f"r{number}", "content_filter"))
        if number < 3:
            scene.do(created(f"p{number}"), audio(f"p{number}", "i", 200), done(f"p{number}"))
            scene.listen(300)
    assert last_words(scene) == "Say exactly: Bye."
    answer(scene, "bye")
    scene.listen(700)
    assert "bye 41" in scene.seen
    assert "response_failures_exceeded" in scene.events


@pytest.mark.parametrize("go_on", [True, False])
def test_an_answer_too_long_is_gone_on_with_where_wanted(go_on: bool) -> None:
    scene = scene_of(ResponseFailurePlan(continue_incomplete=go_on))
    asked = scene.do(created("r1"), audio("r1", "i1", 200), incomplete("r1", "max_output_tokens"))
    assert ("create ['instructions']" in asked) is go_on


def test_an_answer_that_never_comes_to_its_end_is_not_gone_on_with_for_ever() -> None:
    scene = scene_of(ResponseFailurePlan(continue_incomplete=True))
    for number in range(20):
        response, item = f"r{number}", f"i{number}"
        scene.do(created(response), audio(response, item, 200))
        scene.do(incomplete(response, "max_output_tokens"))
    assert scene.events.count("response_continued") == 5


def test_an_answer_that_ended_before_its_first_sound_is_no_answer() -> None:
    """As of a model whose reasoning took all of max_output_tokens."""
    scene = scene_of()
    assert scene.do(created("r1"), incomplete("r1", "max_output_tokens")) == ["create"]
    assert "response_without_audio" in scene.events


def test_a_request_without_any_response_is_told() -> None:
    scene = scene_of(ResponseFailurePlan(retries=0, message="Again?"))
    scene.do(key("1"), key("#"))
    assert scene.at(10.1) == [PHRASE]
    assert last_words(scene) == "Say exactly: Again?"


def test_what_the_caller_cut_short_is_no_failure() -> None:
    scene = scene_of()
    scene.do(created("r1"), audio("r1", "i1", 900), SPEECH)
    assert PHRASE not in scene.do(failed("r1"))


def test_a_call_that_nothing_can_be_said_in_does_not_end_in_silence() -> None:
    scene = scene_of(
        ResponseFailurePlan(retries=0, max_failures=1, sound="chime", sound_duration=2.0)
    )
    scene.do(created("r1"), failed("r1"))
    assert scene.do(created("bye"), failed("bye")) == ["sound chime"]
    assert scene.at(scene.now + 1.9) == []
    assert scene.at(scene.now + 0.2)[-2:] == ["close 1000 response_failures", "bye 41"]


def test_a_refused_request_is_asked_again_then_told() -> None:
    """An ``error`` in answer to ``response.create`` leaves the caller with nothing, too."""
    scene = scene_of()
    scene.do(key("1"), key("#"))
    asked = scene.requests[-1]
    assert scene.do(error("rate_limit_exceeded", asked)) == ["create"]
    assert scene.do(error("rate_limit_exceeded", scene.requests[-1])) == [PHRASE]
    assert scene.do(error("rate_limit_exceeded", scene.requests[-1])) == ["sound chime"]


@pytest.mark.parametrize("refused", [True, False])
def test_words_that_no_other_response_says_are_asked_for_again_behind_those_that_wait(
    refused: bool,
) -> None:
    """A disclosure: the greeting that waited behind it has no word of it."""
    greeting, disclosure = {"instructions": "Hello"}, DisclosurePlan("I am an AI.")
    scene = Scene(CallPlan("r", Codec.PCMU, greeting=greeting, disclosure=disclosure)).up()
    (asked,) = scene.requests
    if refused:
        scene.do(error("rate_limit_exceeded", asked))
    else:
        scene.at(10.1)
    assert last_words(scene) == "Hello"
    answer(scene, "r1")
    assert last_words(scene) == "Say exactly: I am an AI."
    answer(scene, "r2")
    assert len(scene.requests) == 3


def test_an_answer_that_is_refused_is_not_asked_for_again_where_another_follows() -> None:
    scene = scene_of()
    scene.do(key("1"), key("#"))
    asked = scene.requests[-1]
    scene.do(inputs.ToolRequest(RequestResponse("Greet them.")))
    scene.do(error("rate_limit_exceeded", asked))
    assert last_words(scene) == "Greet them."
    answer(scene, "r1")
    assert last_words(scene) == "Greet them."


def test_a_refusal_that_costs_no_answer_is_let_be() -> None:
    scene = scene_of()
    scene.do(key("1"), key("#"))
    asked = scene.requests[-1]
    assert scene.do(error("unknown_event", None), error("invalid_event", None)) == []
    scene.do(created("r1"))
    assert scene.do(error("conversation_already_has_active_response", asked)) == []


def test_a_model_that_only_calls_functions() -> None:
    """After ten responses without a word: words are asked for, then the phrase, then the end."""
    scene = scene_of()
    answered = 0
    while answered == 0 or answered <= len(scene.requests) < 50:
        scene.at(1.0 + answered, created(f"r{answered}"))
        scene.do(done(f"r{answered}", calls=[("nope", f"c{answered}", "{}")]))
        scene.at(scene.now + 0.9)  # the pause before its results
        answered += 1
    asked = [one.response or {} for one in scene.requests[10:]]
    assert all(one.response is None for one in scene.requests[:10])
    assert asked[0] == {"tool_choice": "none"}
    assert ["Again?" in str(one) for one in asked[1:3]] == [True, False]
    assert "Bye." in last_words(scene)
    assert len(asked) < 8
    assert "tool_loop" in scene.events


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_loop_is_over_with_the_next_response_however_that_ends(status: str) -> None:
    """Nothing is asked for while the caller speaks, and a failure is retried as any other."""
    scene = scene_of(ResponseFailurePlan(max_tool_rounds=1))
    scene.do(created("r1"), done("r1", calls=[("nope", "c1", "{}")]), created("r2"))
    scene.do(inputs.ToolRequest(RequestResponse("Say hello.")))
    assert scene.do(done("r2", calls=[("nope", "c2", "{}")]))[-1] == "create ['instructions']"
    assert "tool_loop" in scene.events
    scene.do(created("r3"), audio("r3", "i3", 200))
    if status == "cancelled":
        assert scene.do(SPEECH, done("r3", "cancelled")) == ["flush", "delete i3"]
    else:
        assert scene.do(failed("r3")) == ["create ['instructions']"]


def test_a_loop_before_the_call_is_live_does_not_hide_a_failure_after_it() -> None:
    content = ContentPlan(response_failure=ResponseFailurePlan(max_tool_rounds=1))
    outbound = OutboundPlan(early_media=True)
    scene = Scene(CallPlan("r", Codec.PCMU, content=content, outbound=outbound))
    scene.do(UP, inputs.MediaUp(Codec.PCMU))
    for number in (1, 2):
        scene.do(created(f"r{number}"), done(f"r{number}", calls=[("nope", f"c{number}", "{}")]))
    assert "tool_loop" in scene.events
    scene.do(ACK, created("r3", scene.requests[-1]))
    assert scene.do(failed("r3")) == [f"create {sorted(scene.requests[-1].response or {})}"]


@pytest.mark.parametrize("between", ["nothing", "turn", "digit"])
def test_a_turn_of_the_caller_ends_a_row_of_mcp_calls(between: str) -> None:
    """As it does one of function calls: also where they have interrupted what the model said."""
    scene = scene_of(ResponseFailurePlan(max_tool_rounds=1))
    for number in (1, 3):
        calls = ({"type": "mcp_call", "id": f"m{number}"},)
        scene.do(created(f"r{number}"))
        scene.do(said(ResponseDone(f"r{number}", "completed", None, None, None, calls, None)))
        scene.do(created(f"r{number + 1}"), audio(f"r{number + 1}", f"i{number + 1}", 400))
        scene.do(SPEECH, done(f"r{number + 1}", "cancelled"))
        if between != "nothing":
            scene.do(said(InputCommitted(f"u{number}")) if between == "turn" else key("5"))
    assert ("tool_loop" in scene.events) is (between == "nothing")


def test_results_of_a_model_that_only_calls_functions_wait_ever_longer() -> None:
    scene = scene_of()
    waits = []
    for number in range(8):
        before, began = len(scene.requests), scene.now
        scene.do(created(f"r{number}"), done(f"r{number}", calls=[("nope", f"c{number}", "{}")]))
        while len(scene.requests) == before:
            scene.at(round(scene.now + 0.05, 2))
        waits.append(round(scene.now - began, 2))
    assert waits == pytest.approx([0, 0, 0, 0.1, 0.2, 0.4, 0.8, 0.8], abs=0.06)


@pytest.mark.parametrize("most", [2, 10])
def test_turns_and_keys_of_the_caller_start_the_count_of_tool_rounds_anew(most: int) -> None:
    scene = scene_of(ResponseFailurePlan(max_tool_rounds=most))
    for number in range(4 * most):
        if number % most == 0:
            turn = said(InputCommitted(f"u{number}"))
            scene.at(1.0 + number / 10, turn if number % (2 * most) else key("1"))
        scene.do(created(f"r{number}"), done(f"r{number}", calls=[("nope", f"c{number}", "{}")]))
        assert all((one.response or {}).get("tool_choice") is None for one in scene.requests)
    for response in ("r", "asked for already"):
        scene.do(created(response), done(response, calls=[("nope", "c", "{}")]))
    assert {"tool_choice": "none"} in [one.response for one in scene.requests[-2:]]


def test_functions_between_words_are_no_loop() -> None:
    scene = scene_of()
    for number in range(30):
        response, item = f"r{number}", f"i{number}"
        scene.at(1.0 + number, created(response))
        if number % 5 == 4:
            scene.do(audio(response, item, 200), audio_done(response, item))
        scene.do(done(response, calls=[("nope", f"c{number}", "{}")]))
    assert len(scene.requests) > 20
    assert all((one.response or {}).get("tool_choice") is None for one in scene.requests)


def test_a_moment_of_sound_does_not_hide_a_loop_of_functions() -> None:
    scene = scene_of()
    number = 0
    while number == 0 or (number <= len(scene.requests) < 100 and scene.now < 60):
        response, item = f"r{number}", f"i{number}"
        scene.do(created(response), audio(response, item, 20), audio_done(response, item))
        before = len(scene.requests)
        scene.do(done(response, calls=[("nope", f"c{number}", "{}")]))
        scene.at(scene.now + 0.25)
        while len(scene.requests) == before and scene.now < 60:
            scene.at(scene.now + 0.1)
        number += 1
    assert {"tool_choice": "none"} in [one.response for one in scene.requests]
    assert "Bye." in last_words(scene)
    assert len(scene.requests) < 40


def test_a_response_with_thousands_of_functions_and_endless_names() -> None:
    scene = scene_of()
    calls = [("n" * 100_000, f"c{number}", "{}") for number in range(2000)]
    scene.do(created("r"), done("r", calls=calls))
    assert len(scene.events) < 100
    assert max(len(use.name) for use in scene.record.actions.tools) <= 128

# SPDX-License-Identifier: GPL-2.0-or-later
"""A Live session that says nothing, by its turns and its backend; and silence that is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.call import inputs
from gateway.call.plan import LimitsPlan, SilencePlan
from gateway.call.rules.silence import BACKEND_SECONDS, FIRST_WORDS_SECONDS
from gateway.call.session_lifecycle import State
from gateway.realtime.events import ResponseDone, WorkDelegated
from tests.support.call_scene import Scene, said
from tests.unit.call.test_live_sessions import GREETED, TURN, ends, live, speaks


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

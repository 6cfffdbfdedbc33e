# SPDX-License-Identifier: GPL-2.0-or-later
"""A call that is up: greeting, functions, the goodbye, and what is noted of events and errors."""

from __future__ import annotations

import json

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.machine import State
from gateway.call.plan import CallPlan, FunctionPlan, ServerPlan, ToolsPlan
from gateway.realtime.events import (
    AgentTranscript,
    CreateItem,
    InputTranscribed,
    ItemTruncated,
    OtherEvent,
    SpeechStopped,
    TruncateItem,
)
from tests.support.call_scene import (
    OUR_END,
    SPEECH,
    UP,
    Scene,
    audio,
    closed,
    created,
    done,
    error,
    failed,
    key,
    said,
)

PRESSED = "item The caller pressed {} on the telephone keypad."


def plan_of(**settings: object) -> CallPlan:
    return CallPlan("route", Codec.PCMU, **settings)  # type: ignore[arg-type]


def talking(ms: int = 1000, heard_ms: int = 0, plan: CallPlan | None = None) -> Scene:
    """Response r1 has sent ``ms`` of item i1, and is still running."""
    scene = Scene(plan).up()
    scene.do(created("r1"), audio("r1", "i1", ms))
    scene.listen(heard_ms)
    return scene


def test_a_server_that_does_not_interrupt_is_not_interrupted_by_speech() -> None:
    scene = talking(1000, 200, plan_of(server=ServerPlan(interrupts=False)))
    assert scene.do(SPEECH) == []
    assert scene.queue == 40
    assert "caller_speech_started" in scene.events


def test_the_greeting_is_asked_for_when_the_session_is_up() -> None:
    scene = Scene(plan_of(greeting={"instructions": "Hello"}))
    assert scene.do(UP) == ["200", "create ['instructions']"]
    assert scene.requests[0].response == {"instructions": "Hello"}


def test_a_failed_response_is_said_and_the_call_goes_on() -> None:
    scene = Scene().up()
    scene.do(created("r1"), failed("r1"))
    note = next(note for note in scene.notes if note.event == "response")
    assert note.level == "warning"
    assert note.fields["code"] == "rate_limit_exceeded"
    assert scene.requests[-1].response is None, "asked again"
    scene.do(created("r2"), audio("r2", "i2", 20), done("r2"))
    assert scene.do(key("#"))[-1] == "create"


def test_an_unknown_tool_is_answered_and_the_model_goes_on() -> None:
    scene = Scene().up()
    seen = scene.do(created("r1"), done("r1", calls=[("lookup", "c1"), ("book", "c2")]))
    assert seen == ["output c1", "output c2", "create"]
    item = scene.sent[0]
    assert isinstance(item, CreateItem)
    assert item.item["type"] == "function_call_output"
    assert "no such tool" in json.loads(item.item["output"])["error"]
    assert scene.state is State.TALKING


def test_an_unknown_tool_beside_the_hang_up() -> None:
    scene = talking(200)
    seen = scene.do(done("r1", calls=[("lookup", "c1"), ("end_call", "c2")]))
    assert seen == ["output c1"]
    assert scene.listen(240) == []  # the telephone still plays
    assert scene.listen(220) == ["close 1000 agent_hangup", "bye 16"]


def test_a_result_that_comes_during_the_goodbye_has_no_response() -> None:
    tools = ToolsPlan(functions={"lookup": FunctionPlan()})
    scene = talking(1000, 200, plan_of(tools=tools))
    scene.do(done("r1", calls=[("lookup", "c1"), ("end_call", "c2")]))
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["output c1"]
    assert scene.listen(800) == []  # the telephone still plays
    assert scene.listen(220) == ["close 1000 agent_hangup", "bye 16"]


@pytest.mark.parametrize("status", ["cancelled", "incomplete", "failed"])
def test_calls_of_a_response_that_was_not_completed_are_not_made(status: str) -> None:
    scene = Scene().up()
    scene.do(created("r1"))
    seen = scene.do(done("r1", status, calls=[("lookup", "c1"), ("end_call", "c2")]))
    assert seen == (["create"] if status == "failed" else [])


def test_a_hang_up_that_a_digit_overtook_is_answered_and_not_made() -> None:
    scene = talking(1000, 200)
    scene.do(key("4"))
    seen = scene.do(done("r1", calls=[("end_call", "c1"), ("lookup", "c2")]))
    assert seen == ["output c1", "output c2"]
    assert scene.at(4.0) == [PRESSED.format("4"), "create"]
    assert scene.state is State.TALKING


@pytest.mark.parametrize("end", [closed(1001), error("session_expired")])
def test_a_goodbye_is_heard_to_its_end_when_its_session_ends(end: inputs.Input) -> None:
    scene = talking(2000, 0)
    scene.do(done("r1", calls=[("end_call", "c1")]))
    scene.listen(300)
    scene.do(end)
    assert "bye 16" in scene.listen(2000)
    assert scene.heard_ms == 2000
    scene.do(OUR_END)
    assert scene.ending[1] == "agent_hangup"


def test_a_goodbye_taken_back_can_be_said_again() -> None:
    scene = talking(400)
    scene.do(done("r1", calls=[("end_call", "c1")]))
    scene.listen(100)
    assert scene.do(SPEECH) == ["flush", "output c1", "truncate i1/0 100"]
    scene.do(created("r2"), audio("r2", "i2", 200))
    assert scene.do(done("r2", calls=[("end_call", "c2")])) == []
    assert scene.listen(240) == []  # the telephone still plays
    assert scene.listen(220) == ["close 1000 agent_hangup", "bye 16"]


def test_a_server_that_does_not_interrupt_does_not_take_the_goodbye_back() -> None:
    scene = talking(400, 0, plan_of(server=ServerPlan(interrupts=False)))
    scene.do(done("r1", calls=[("end_call", "c1")]))
    assert scene.do(SPEECH) == []
    assert scene.listen(440) == []  # the telephone still plays
    assert scene.listen(220) == ["close 1000 agent_hangup", "bye 16"]


def test_what_was_said_is_in_the_timeline() -> None:
    scene = Scene().up()
    scene.do(
        said(SpeechStopped("i0", 2000)),
        said(InputTranscribed("i0", "hello?")),
        said(AgentTranscript("r1", "i1", 0, "Hello.")),
        said(ItemTruncated("i1", 0, 240)),
        said(OtherEvent("rate_limits.updated", {})),
    )
    entries = {entry["event"]: entry for entry in scene.record.timeline}
    assert entries["caller_speech_stopped"]["audio_ms"] == 2000
    assert entries["caller_transcript"]["text"] == "hello?"
    assert entries["agent_transcript"]["text"] == "Hello."
    assert entries["truncated"]["audio_end_ms"] == 240


def test_errors_are_noted_by_their_weight() -> None:
    scene = Scene().up()
    scene.do(
        error("response_cancel_not_active"),
        error("server_error", TruncateItem("i", 0, 5), "oops"),
        error("new_in_2027"),
    )
    notes = [note for note in scene.notes if note.event == "error"]
    assert [note.level for note in notes] == ["debug", "warning", "warning"]
    assert notes[1].fields["answers"] == "TruncateItem"
    assert notes[1].fields["message"] == "oops"

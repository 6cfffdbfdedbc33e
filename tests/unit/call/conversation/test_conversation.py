# SPDX-License-Identifier: GPL-2.0-or-later
"""A call that is up: barge-in, digits, tools and requests, as inputs and what they bring about."""

from __future__ import annotations

import json

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.machine import State
from gateway.call.plan import CallPlan, DtmfPlan, FunctionPlan, ServerPlan, ToolsPlan
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
    audio_done,
    closed,
    created,
    done,
    error,
    failed,
    key,
    said,
)

PRESSED = "item The caller pressed {} on the telephone keypad."


def _plan(**settings: object) -> CallPlan:
    return CallPlan("route", Codec.PCMU, **settings)  # type: ignore[arg-type]


def _talking(ms: int = 1000, heard_ms: int = 0, plan: CallPlan | None = None) -> Scene:
    """Response r1 has sent ``ms`` of item i1, and is still running."""
    scene = Scene(plan).up()
    scene.do(created("r1"), audio("r1", "i1", ms))
    scene.listen(heard_ms)
    return scene


# ---- interruption


def test_speech_while_the_response_runs() -> None:
    scene = _talking(1000, 240)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 240"]
    # The server cancels by itself; what it had sent until then is late.
    assert scene.do(audio("r1", "i1", 500), audio_done("r1", "i1")) == []
    assert scene.do(done("r1", "cancelled")) == []
    assert scene.record.actions.interruptions[0].played_ms == 240
    assert scene.record.actions.interruptions[0].received_ms == 1000
    assert scene.record.actions.interruptions[0].flushed_ms == 760
    assert scene.do(created("r2"), audio("r2", "i2", 20)) == ["play 20"]
    scene.do(closed(1006))
    scene.do(inputs.LegEnded(200, "", "", "", True))
    assert scene.record.media.late_audio_ms == 500


def test_speech_after_the_response_is_done_the_common_case() -> None:
    scene = _talking(5000)
    scene.do(audio_done("r1", "i1"), done("r1"))
    scene.listen(1240)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 1240"]
    assert scene.queue == 0


def test_speech_before_anything_was_heard_deletes() -> None:
    scene = _talking(1000)
    assert scene.do(SPEECH) == ["flush", "delete i1"]
    assert scene.record.actions.interruptions[0].action == "delete"


def test_speech_after_all_was_heard_changes_nothing() -> None:
    scene = _talking(200)
    scene.do(audio_done("r1", "i1"), done("r1"))
    scene.listen(400)
    assert scene.do(SPEECH) == []
    assert scene.record.actions.interruptions == []


def test_speech_when_the_last_frame_was_taken_but_not_told() -> None:
    scene = _talking(200)
    scene.do(audio_done("r1", "i1"), done("r1"))
    scene.listen(200)
    assert scene.do(SPEECH) == ["flush"]
    assert scene.record.actions.interruptions == []


def test_speech_in_an_underrun_truncates_at_what_came() -> None:
    scene = _talking(205)
    scene.listen(400)
    # 200 ms stood in whole frames; 5 ms of a frame that never filled were not heard.
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 200"]


def test_speech_before_the_first_delta_drops_what_comes() -> None:
    scene = Scene().up()
    scene.do(created("r1"))
    assert scene.do(SPEECH) == ["flush"]
    assert scene.do(audio("r1", "i1", 400), audio("r1", "i2", 400), audio("r1", "i1", 400)) == []
    assert scene.do(done("r1", "cancelled")) == ["delete i1", "delete i2"]
    assert scene.do(done("r1", "cancelled")) == []


def test_an_item_that_begins_after_the_cut_is_deleted_the_cut_one_is_not() -> None:
    scene = _talking(1000, 100)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 100"]
    scene.do(audio("r1", "i1", 100), audio("r1", "i2", 100))
    assert scene.do(done("r1", "cancelled")) == ["delete i2"]


def test_several_items_in_one_answer() -> None:
    scene = _talking(200)
    scene.do(audio_done("r1", "i1"), audio("r1", "i2", 200), audio_done("r1", "i2"))
    scene.do(audio("r1", "i3", 200), audio_done("r1", "i3"), done("r1"))
    scene.listen(300)
    assert scene.do(SPEECH) == ["flush", "truncate i2/0 100", "delete i3"]


def test_an_item_is_deleted_only_if_no_part_of_it_was_heard() -> None:
    scene = _talking(200)
    scene.do(audio_done("r1", "i1"), audio("r1", "i1", 200, part=1))
    scene.do(audio("r1", "i2", 100), audio("r1", "i2", 100, part=1))
    scene.listen(100)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 100", "truncate i1/1 0", "delete i2"]


def test_two_answers_in_the_queue() -> None:
    scene = _talking(200)
    scene.do(done("r1"), created("r2"), audio("r2", "i2", 200), done("r2"))
    scene.listen(220)
    assert scene.do(SPEECH) == ["flush", "truncate i2/0 20"]


def test_a_server_that_does_not_interrupt_is_not_interrupted_by_speech() -> None:
    scene = _talking(1000, 200, _plan(server=ServerPlan(interrupts=False)))
    assert scene.do(SPEECH) == []
    assert scene.queue == 40
    assert "caller_speech_started" in scene.events


def test_speech_twice_cuts_once() -> None:
    scene = _talking(1000, 200)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 200"]
    assert "truncate" not in " ".join(scene.do(SPEECH))
    assert len(scene.record.actions.interruptions) == 1


def test_margin_for_a_server_that_counts_shorter() -> None:
    scene = _talking(1000, 200, _plan(server=ServerPlan(truncate_margin_ms=85)))
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 115"]
    scene = _talking(1000, 60, _plan(server=ServerPlan(truncate_margin_ms=85)))
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 0"]


def test_truncation_that_the_server_finds_too_long_is_sent_once_more() -> None:
    scene = _talking(1000, 240)
    scene.do(SPEECH)
    command = scene.sent[-1]
    text = "Audio content of 155ms is already shorter than 240ms"
    assert scene.do(error("invalid_value", command, text)) == ["truncate i1/0 155"]
    text = "Audio content of 100ms is already shorter than 155ms"
    assert scene.do(error("invalid_value", scene.sent[-1], text)) == []
    assert scene.state is State.TALKING


def test_start_and_stop_of_the_agent() -> None:
    scene = _talking(100)
    scene.do(done("r1"))
    scene.listen(300)
    scene.do(created("r2"), audio("r2", "i2", 100))
    scene.listen(40)
    scene.do(SPEECH)
    agent = [(n.event, n.fields) for n in scene.notes if n.event.startswith("agent_")]
    assert agent == [
        ("agent_speech_started", {"item_id": "i1"}),
        ("agent_speech_stopped", {"cut": False}),
        ("agent_speech_started", {"item_id": "i2"}),
        ("agent_speech_stopped", {"cut": True}),
    ]


def test_word_of_a_start_that_comes_after_the_flush_is_old() -> None:
    scene = _talking(100)
    scene.queue -= 1  # the clock took a frame, the loop has not heard of it
    scene.do(SPEECH)
    scene.do(inputs.PlayoutStarted())
    assert "agent_speech_started" not in scene.events


def test_a_start_behind_a_stop_that_nobody_told() -> None:
    scene = _talking(100)
    scene.listen(40)
    scene.do(inputs.PlayoutStarted())
    agent = [note.event for note in scene.notes if note.event.startswith("agent_")]
    assert agent == ["agent_speech_started", "agent_speech_stopped", "agent_speech_started"]


# ---- a queue that is full


def test_an_answer_that_does_not_fit_is_said_and_truncated_when_heard() -> None:
    scene = Scene(max_frames=20).up()
    scene.do(created("r1"), audio("r1", "i1", 300))
    assert scene.do(audio("r1", "i1", 200)) == ["play 200"]
    assert "playout_overflow" in scene.events
    assert scene.do(audio("r1", "i1", 20), done("r1")) == []
    assert scene.listen(400) == ["truncate i1/0 300"]
    assert scene.record.actions.interruptions[0].trigger == "overflow"
    assert scene.heard_ms == 300
    assert scene.do(created("r2"), audio("r2", "i2", 100)) == ["play 100"]


def test_speech_into_an_answer_that_did_not_fit() -> None:
    scene = Scene(max_frames=20).up()
    scene.do(created("r1"), audio("r1", "i1", 300), audio("r1", "i1", 200), done("r1"))
    scene.listen(100)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 100"]


# ---- digits


@pytest.mark.parametrize(
    ("keys", "plan", "items"),
    [
        ("42#", DtmfPlan(), [(0.2, "42", "terminator")]),
        ("42", DtmfPlan(), [(3.1, "42", "timeout")]),
        ("4242", DtmfPlan(max_digits=2), [(0.1, "42", "full"), (0.3, "42", "full")]),
        ("#", DtmfPlan(), [(0.0, "#", "terminator")]),
        ("##", DtmfPlan(), [(0.0, "#", "terminator"), (0.1, "#", "terminator")]),
        (
            "12*34",
            DtmfPlan(finish_on_key="*"),
            [(0.2, "12", "terminator"), (3.4, "34", "timeout")],
        ),
        ("1#2", DtmfPlan(finish_on_key="", inter_digit_timeout=1.0), [(1.2, "1#2", "timeout")]),
        ("1", DtmfPlan(finish_on_key="", max_digits=1), [(0.0, "1", "full")]),
        ("*9D", DtmfPlan(inter_digit_timeout=0.5), [(0.7, "*9D", "timeout")]),
    ],
)
def test_digits_become_an_item_and_a_request(
    keys: str, plan: DtmfPlan, items: list[tuple[float, str, str]]
) -> None:
    scene = Scene(_plan(dtmf=plan)).up()
    for number, digit in enumerate(keys):
        scene.at(number / 10, key(digit))
    scene.at(20.0)
    found = [
        (round(run.at_ms / 1000, 3), run.digits, run.ended_by)
        for run in scene.record.actions.digits
    ]
    assert found == items
    texts = [c.item["content"][0]["text"] for c in scene.sent if isinstance(c, CreateItem)]
    assert texts == [f"The caller pressed {d} on the telephone keypad." for _, d, _ in items]
    assert len(scene.requests) >= 1
    assert scene.events.count("dtmf") == len(keys)


def test_a_pause_splits_runs_even_when_no_tick_came_in_between() -> None:
    scene = Scene().up()
    scene.do(key("1"))
    scene.now = 3.5  # the loop was late
    seen = scene.do(key("2"))
    assert seen == [PRESSED.format("1"), "create"]
    scene.at(8.0)
    assert [run.digits for run in scene.record.actions.digits] == ["1", "2"]


def test_a_digit_cuts_and_cancels_then_asks() -> None:
    scene = _talking(1000, 200)
    assert scene.do(key("7")) == ["flush", "truncate i1/0 200", "cancel r1"]
    assert scene.do(audio("r1", "i1", 100)) == []
    # Further keys find nothing to cut, and cancel nothing twice.
    assert scene.do(key("8")) == ["flush"]
    assert scene.do(key("#")) == ["flush", PRESSED.format("78")]
    assert scene.do(done("r1", "cancelled")) == ["create"]


def test_truncation_is_told_before_the_digits_that_cut() -> None:
    scene = _talking(1000)
    scene.do(done("r1"))
    scene.listen(200)
    assert scene.do(key("#")) == ["flush", "truncate i1/0 200", PRESSED.format("#"), "create"]


def test_a_digit_after_speech_leaves_the_cancelling_to_the_server() -> None:
    scene = _talking(1000, 200)
    scene.do(SPEECH)
    assert scene.do(key("7")) == ["flush"]


def test_digits_that_do_not_interrupt_wait_for_the_answer() -> None:
    scene = _talking(1000, 200, _plan(dtmf=DtmfPlan(interrupt=False)))
    assert scene.do(key("7"), key("#")) == [PRESSED.format("7")]
    assert scene.queue == 40
    assert scene.do(done("r1")) == ["create"]


def test_digits_that_are_switched_off_are_noted_only() -> None:
    scene = _talking(1000, 200, _plan(dtmf=DtmfPlan(enabled=False)))
    assert scene.do(key("7"), key("#")) == []
    assert scene.queue == 40
    scene.at(30.0)
    assert scene.record.actions.digits == []
    assert scene.events.count("dtmf") == 2


def test_digits_are_given_to_the_text_of_the_plan() -> None:
    scene = Scene(_plan(dtmf=DtmfPlan(text=lambda pressed: "-".join(pressed)))).up()
    assert scene.do(key("1"), key("2"), key("#")) == ["item 1-2", "create"]


def test_digits_before_the_session_is_up_are_nobodys() -> None:
    scene = Scene()
    assert scene.do(key("1"), UP) == ["200"]
    scene.at(5.0)
    assert scene.record.actions.digits == []


def test_digits_of_a_caller_who_hangs_up_are_in_the_record() -> None:
    scene = Scene().up()
    scene.do(key("1"), key("2"), inputs.LegEnded(200, "", "BYE", "", False))
    assert [(run.digits, run.ended_by) for run in scene.record.actions.digits] == [
        ("12", "call_end")
    ]


def test_runs_that_wait_are_answered_together() -> None:
    scene = _talking(1000, 200, _plan(dtmf=DtmfPlan(interrupt=False)))
    seen = scene.do(key("1"), key("#"), key("2"), key("#"), key("3"), key("#"))
    assert seen == [PRESSED.format(digit) for digit in "123"]
    assert scene.do(done("r1")) == ["create"]
    assert scene.do(created("r2"), audio("r2", "i2", 20), done("r2")) == ["play 20"]


# ---- requests


def test_the_greeting_is_asked_for_when_the_session_is_up() -> None:
    scene = Scene(_plan(greeting={"instructions": "Hello"}))
    assert scene.do(UP) == ["200", "create ['instructions']"]
    assert scene.requests[0].response == {"instructions": "Hello"}


def test_a_request_meets_the_servers_own_response() -> None:
    scene = Scene().up()
    assert scene.do(key("#"))[-1] == "create"
    collision = error("conversation_already_has_active_response", scene.requests[-1])
    assert scene.do(created("auto"), collision) == []
    assert scene.do(done("auto")) == ["create"]
    assert scene.requests[0] is scene.requests[1]
    assert scene.do(created("r2"), audio("r2", "i2", 20), done("r2")) == ["play 20"]


def test_a_request_meets_a_response_that_is_told_of_later() -> None:
    scene = Scene().up()
    scene.do(key("#"))
    collision = error("conversation_already_has_active_response", scene.requests[-1])
    assert scene.do(collision, created("auto")) == []
    assert scene.do(done("auto")) == ["create"]


def test_a_collision_that_names_no_request() -> None:
    scene = Scene().up()
    scene.do(key("#"))
    assert scene.do(error("conversation_already_has_active_response"), created("auto")) == []
    assert scene.do(done("auto")) == ["create"]


def test_a_collision_with_a_response_never_seen_is_tried_again_in_time() -> None:
    scene = Scene().up()
    scene.do(key("#"))
    collision = error("conversation_already_has_active_response", scene.requests[-1])
    assert scene.do(collision) == []
    assert scene.at(9.9) == []
    assert scene.at(10.0) == ["create"]
    assert scene.events.count("response_unanswered") == 1


def test_a_request_that_nobody_answers_makes_way_for_the_next() -> None:
    scene = Scene().up()
    scene.do(key("1"), key("#"))
    assert scene.at(4.0, key("2"), key("#")) == [PRESSED.format("2")]
    assert scene.at(9.9) == []
    assert scene.at(10.0) == ["create"]
    assert scene.at(19.9) == []
    assert scene.at(20.0) == ["create"], "asked again"
    assert scene.events.count("response_unanswered") == 2
    assert scene.machine.deadline is not None
    assert scene.machine.deadline > 20.0


def test_a_request_that_is_refused_makes_way_for_the_next() -> None:
    scene = Scene().up()
    scene.do(key("1"), key("#"))
    scene.do(key("2"), key("#"))
    assert scene.do(error("invalid_value", scene.requests[0])) == ["create"]


def test_an_error_about_an_older_request_does_not_free_the_way() -> None:
    scene = Scene().up()
    scene.do(key("1"), key("#"))
    scene.do(created("auto"))
    scene.do(key("2"), key("#"))
    assert scene.do(done("auto", "cancelled")) == ["create"]
    scene.do(key("3"), key("#"))
    assert scene.do(error("invalid_value", scene.requests[0])) == []
    assert scene.do(created("r2"), done("r2")) == ["create"]


def test_a_cancel_of_a_response_that_does_not_run_frees_the_way() -> None:
    scene = _talking(1000, 200)
    scene.do(key("1"), key("#"))
    cancel = next(command for command in scene.sent if "Cancel" in type(command).__name__)
    assert scene.do(error("response_cancel_not_active", cancel)) == ["create"]


def test_a_failed_response_is_said_and_the_call_goes_on() -> None:
    scene = Scene().up()
    scene.do(created("r1"), failed("r1"))
    note = next(note for note in scene.notes if note.event == "response")
    assert note.level == "warning"
    assert note.fields["code"] == "rate_limit_exceeded"
    assert scene.requests[-1].response is None, "asked again"
    scene.do(created("r2"), audio("r2", "i2", 20), done("r2"))
    assert scene.do(key("#"))[-1] == "create"


# ---- tools


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
    scene = _talking(200)
    seen = scene.do(done("r1", calls=[("lookup", "c1"), ("end_call", "c2")]))
    assert seen == ["output c1"]
    assert scene.listen(240) == []  # the telephone still plays
    assert scene.listen(220) == ["close 1000 agent_hangup", "bye 16"]


def test_a_result_that_comes_during_the_goodbye_has_no_response() -> None:
    tools = ToolsPlan(functions={"lookup": FunctionPlan()})
    scene = _talking(1000, 200, _plan(tools=tools))
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
    scene = _talking(1000, 200)
    scene.do(key("4"))
    seen = scene.do(done("r1", calls=[("end_call", "c1"), ("lookup", "c2")]))
    assert seen == ["output c1", "output c2"]
    assert scene.at(4.0) == [PRESSED.format("4"), "create"]
    assert scene.state is State.TALKING


@pytest.mark.parametrize("end", [closed(1001), error("session_expired")])
def test_a_goodbye_is_heard_to_its_end_when_its_session_ends(end: inputs.Input) -> None:
    scene = _talking(2000, 0)
    scene.do(done("r1", calls=[("end_call", "c1")]))
    scene.listen(300)
    scene.do(end)
    assert "bye 16" in scene.listen(2000)
    assert scene.heard_ms == 2000
    scene.do(OUR_END)
    assert scene.ending[1] == "agent_hangup"


def test_a_goodbye_taken_back_can_be_said_again() -> None:
    scene = _talking(400)
    scene.do(done("r1", calls=[("end_call", "c1")]))
    scene.listen(100)
    assert scene.do(SPEECH) == ["flush", "output c1", "truncate i1/0 100"]
    scene.do(created("r2"), audio("r2", "i2", 200))
    assert scene.do(done("r2", calls=[("end_call", "c2")])) == []
    assert scene.listen(240) == []  # the telephone still plays
    assert scene.listen(220) == ["close 1000 agent_hangup", "bye 16"]


def test_a_server_that_does_not_interrupt_does_not_take_the_goodbye_back() -> None:
    scene = _talking(400, 0, _plan(server=ServerPlan(interrupts=False)))
    scene.do(done("r1", calls=[("end_call", "c1")]))
    assert scene.do(SPEECH) == []
    assert scene.listen(440) == []  # the telephone still plays
    assert scene.listen(220) == ["close 1000 agent_hangup", "bye 16"]


# ---- notes


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

# SPDX-License-Identifier: GPL-2.0-or-later
"""What is played is cut: how far it was heard, and what the server is told of it."""

from __future__ import annotations

from gateway.call import inputs
from gateway.call.machine import State
from gateway.call.plan import ServerPlan
from tests.support.call_scene import SPEECH, Scene, audio, audio_done, closed, created, done, error
from tests.unit.call.conversation.test_conversation import plan_of, talking


def test_speech_while_the_response_runs() -> None:
    scene = talking(1000, 240)
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
    scene = talking(5000)
    scene.do(audio_done("r1", "i1"), done("r1"))
    scene.listen(1240)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 1240"]
    assert scene.queue == 0


def test_speech_before_anything_was_heard_deletes() -> None:
    scene = talking(1000)
    assert scene.do(SPEECH) == ["flush", "delete i1"]
    assert scene.record.actions.interruptions[0].action == "delete"


def test_speech_after_all_was_heard_changes_nothing() -> None:
    scene = talking(200)
    scene.do(audio_done("r1", "i1"), done("r1"))
    scene.listen(400)
    assert scene.do(SPEECH) == []
    assert scene.record.actions.interruptions == []


def test_speech_when_the_last_frame_was_taken_but_not_told() -> None:
    scene = talking(200)
    scene.do(audio_done("r1", "i1"), done("r1"))
    scene.listen(200)
    assert scene.do(SPEECH) == ["flush"]
    assert scene.record.actions.interruptions == []


def test_speech_in_an_underrun_truncates_at_what_came() -> None:
    scene = talking(205)
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
    scene = talking(1000, 100)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 100"]
    scene.do(audio("r1", "i1", 100), audio("r1", "i2", 100))
    assert scene.do(done("r1", "cancelled")) == ["delete i2"]


def test_several_items_in_one_answer() -> None:
    scene = talking(200)
    scene.do(audio_done("r1", "i1"), audio("r1", "i2", 200), audio_done("r1", "i2"))
    scene.do(audio("r1", "i3", 200), audio_done("r1", "i3"), done("r1"))
    scene.listen(300)
    assert scene.do(SPEECH) == ["flush", "truncate i2/0 100", "delete i3"]


def test_an_item_is_deleted_only_if_no_part_of_it_was_heard() -> None:
    scene = talking(200)
    scene.do(audio_done("r1", "i1"), audio("r1", "i1", 200, part=1))
    scene.do(audio("r1", "i2", 100), audio("r1", "i2", 100, part=1))
    scene.listen(100)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 100", "truncate i1/1 0", "delete i2"]


def test_two_answers_in_the_queue() -> None:
    scene = talking(200)
    scene.do(done("r1"), created("r2"), audio("r2", "i2", 200), done("r2"))
    scene.listen(220)
    assert scene.do(SPEECH) == ["flush", "truncate i2/0 20"]


def test_speech_twice_cuts_once() -> None:
    scene = talking(1000, 200)
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 200"]
    assert "truncate" not in " ".join(scene.do(SPEECH))
    assert len(scene.record.actions.interruptions) == 1


def test_margin_for_a_server_that_counts_shorter() -> None:
    scene = talking(1000, 200, plan_of(server=ServerPlan(truncate_margin_ms=85)))
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 115"]
    scene = talking(1000, 60, plan_of(server=ServerPlan(truncate_margin_ms=85)))
    assert scene.do(SPEECH) == ["flush", "truncate i1/0 0"]


def test_truncation_that_the_server_finds_too_long_is_sent_once_more() -> None:
    scene = talking(1000, 240)
    scene.do(SPEECH)
    command = scene.sent[-1]
    text = "Audio content of 155ms is already shorter than 240ms"
    assert scene.do(error("invalid_value", command, text)) == ["truncate i1/0 155"]
    text = "Audio content of 100ms is already shorter than 155ms"
    assert scene.do(error("invalid_value", scene.sent[-1], text)) == []
    assert scene.state is State.TALKING


def test_start_and_stop_of_the_agent() -> None:
    scene = talking(100)
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
    scene = talking(100)
    scene.queue -= 1  # the clock took a frame, the loop has not heard of it
    scene.do(SPEECH)
    scene.do(inputs.PlayoutStarted())
    assert "agent_speech_started" not in scene.events


def test_a_start_behind_a_stop_that_nobody_told() -> None:
    scene = talking(100)
    scene.listen(40)
    scene.do(inputs.PlayoutStarted())
    agent = [note.event for note in scene.notes if note.event.startswith("agent_")]
    assert agent == ["agent_speech_started", "agent_speech_stopped", "agent_speech_started"]


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

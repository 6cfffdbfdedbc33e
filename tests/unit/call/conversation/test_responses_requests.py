# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests for responses: those that collide, are refused, are not answered or wait."""

from __future__ import annotations

from tests.support.call_scene import Scene, audio, created, done, error, key
from tests.unit.call.conversation.test_conversation import PRESSED, talking


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
    scene = talking(1000, 200)
    scene.do(key("1"), key("#"))
    cancel = next(command for command in scene.sent if "Cancel" in type(command).__name__)
    assert scene.do(error("response_cancel_not_active", cancel)) == ["create"]

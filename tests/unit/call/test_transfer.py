# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers on the virtual clock: blind, attended and bridged, and how each ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.call import inputs
from gateway.call.plan import OutboundPlan
from gateway.call.session_lifecycle import State
from gateway.call.transfer import TAKE_OVER_SECONDS
from tests.support.call_scene import ACK, BYE, LOST, OUR_END, UP, Scene, closed, created, key
from tests.unit.call.test_call_control import (
    ACCEPTED,
    ANSWERED,
    PICKED_UP,
    PLAN,
    RINGING,
    asked,
    results,
    told,
    wants,
)


def gone(code: int, method: str = "") -> inputs.BLegEnded:
    """The second leg ends."""
    return inputs.BLegEnded(code, "", method, False)


@pytest.mark.parametrize(
    ("destination", "done_for_it"),
    [
        ("front desk", ["sound ringback", "refer tel:+4930123", "hold"]),
        (" Front Desk ", ["sound ringback", "refer tel:+4930123", "hold"]),
        ("1234", ["sound ringback", "refer sip:1234@pbx", "hold"]),
        ("12-34", ["sound ringback", "refer sip:1234@pbx", "hold"]),
        ("boss", ["sound ringback", "second sip:1@pbx office", "hold"]),
        ("anna", ["sound ringback", "second sip:2@pbx", "hold"]),
    ],
)
def test_how_each_destination_is_reached(destination: str, done_for_it: list[str]) -> None:
    assert asked(destination).seen[-3:] == done_for_it


@pytest.mark.parametrize(
    ("happenings", "status", "code"),
    [
        ([ACCEPTED, told(486)], "busy", 486),
        ([ACCEPTED, RINGING, told(603)], "declined", 603),
        ([ACCEPTED, told(480)], "no_answer", 480),
        ([ACCEPTED, told(404)], "no_such_number", 404),
        ([ACCEPTED, told(403)], "forbidden", 403),
        ([ACCEPTED, told(500)], "failed", 500),
        ([ACCEPTED, told(503, final=False)], "failed", 503),
        ([ACCEPTED, told(100)], "unknown", 100),
        ([told(603)], "refused", 603),
        ([told(405)], "refused", 405),
        ([told(408)], "refused", 408),
    ],
)
def test_a_blind_transfer_that_fails(
    happenings: list[inputs.Input], status: str, code: int
) -> None:
    scene = asked("front desk")
    seen = scene.at(2.0, *happenings)
    assert seen[-4:] == ["sound", "output c1", "create", "resume"]
    (result,) = results(scene)
    assert (result["status"], result["sip_code"]) == (status, code)
    assert result["destination"] == "front desk"
    assert [(one.outcome, one.sip_code) for one in scene.record.actions.transfers] == [
        (status, code)
    ]
    assert scene.state is State.TALKING


@pytest.mark.parametrize(
    ("happenings", "status"),
    [([], "failed"), ([ACCEPTED], "unknown"), ([ACCEPTED, RINGING], "no_answer")],
)
def test_a_blind_transfer_without_an_end(happenings: list[inputs.Input], status: str) -> None:
    scene = asked("front desk")
    scene.at(2.0, *happenings)
    assert "create" not in scene.at(20.9)
    assert scene.at(21.1) == ["sound", "output c1", "create", "resume"]
    assert results(scene)[0]["status"] == status


def test_a_blind_transfer_that_is_answered() -> None:
    scene = asked("front desk")
    assert scene.at(2.0, ACCEPTED) == []
    assert scene.at(3.0, RINGING, RINGING) == ["item The transfer to front desk is ringing."]
    assert scene.at(4.0, ANSWERED) == ["close 1000 transferred", "bye 16"]
    assert scene.do(OUR_END) == ["finished"]
    assert scene.ending == ("model", "transferred", 200)


def test_an_answer_after_we_gave_up() -> None:
    scene = asked("front desk")
    scene.at(2.0, ACCEPTED, RINGING)
    scene.at(25.0)
    assert scene.at(26.0, told(200)) == ["close 1000 transferred", "bye 16"]


@pytest.mark.parametrize(
    ("happenings", "end", "why"),
    [
        ([], BYE, "remote_hangup"),
        ([ACCEPTED], BYE, "transferred"),
        ([ACCEPTED, RINGING], BYE, "remote_hangup"),
        ([ACCEPTED], LOST, "leg_timeout"),
    ],
)
def test_a_caller_that_goes_meanwhile(
    happenings: list[inputs.Input], end: inputs.Input, why: str
) -> None:
    scene = asked("front desk")
    scene.at(2.0, *happenings, end)
    assert scene.ending[1] == why
    assert scene.record.actions.transfers[0].outcome in ("unknown", "failed")


def test_attended() -> None:
    scene = asked("boss")
    assert scene.at(2.0, inputs.BLegRinging(180)) == ["item The transfer to boss is ringing."]
    assert scene.at(3.0, PICKED_UP) == ["refer to the second"]
    assert scene.at(4.0, ACCEPTED, gone(200, "BYE")) == []
    assert scene.at(5.0, ANSWERED) == ["close 1000 transferred", "bye 16"]
    scene.do(OUR_END)
    assert scene.ending == ("model", "transferred", 200)


def test_attended_with_a_second_leg_that_stays() -> None:
    scene = asked("boss")
    scene.at(3.0, PICKED_UP, ACCEPTED)
    assert scene.at(5.0, ANSWERED) == ["hang up second", "close 1000 transferred", "bye 16"]


@pytest.mark.parametrize(
    ("happenings", "seconds", "seen", "status"),
    [
        ([gone(486)], 0, ["sound", "output c1", "create", "resume"], "busy"),
        ([], 20, ["sound", "hang up second", "output c1", "create", "resume"], "no_answer"),
        (
            [PICKED_UP, told(603)],
            0,
            ["refer to the second", "sound", "hang up second", "output c1", "create", "resume"],
            "refused",
        ),
        (
            [PICKED_UP, ACCEPTED],
            TAKE_OVER_SECONDS,
            ["sound", "hang up second", "output c1", "create", "resume"],
            "unknown",
        ),
    ],
)
def test_attended_that_fails(
    happenings: list[inputs.Input], seconds: float, seen: list[str], status: str
) -> None:
    scene = asked("boss")
    done_now = scene.do(*happenings)
    assert (scene.at(1.1 + seconds) if seconds else done_now) == seen
    assert results(scene)[0]["status"] == status


def test_bridge() -> None:
    scene = asked("anna")
    seen = scene.at(3.0, PICKED_UP)
    assert seen == ["sound", "join", "close 1000 bridged", "resume"]
    assert scene.state is State.BRIDGED
    assert scene.do(closed(1000)) == []
    # Keys go through, both ways.
    assert scene.do(key("5"), inputs.BLegDigit("6")) == ["press 5 second", "press 6 auto"]
    assert scene.at(9.0, gone(200, "BYE")) == ["close 1000 bridge_ended", "bye 16"]
    scene.do(OUR_END)
    assert scene.ending == ("callee", "bridge_ended", 200)


def test_bridge_that_the_caller_ends() -> None:
    scene = asked("anna")
    scene.at(3.0, PICKED_UP)
    assert scene.at(9.0, BYE) == ["hang up second", "close 1000 remote_hangup", "finished"]


def test_bridge_to_nobody() -> None:
    scene = asked("anna")
    assert scene.at(2.0, gone(403)) == ["sound", "output c1", "create", "resume"]
    assert results(scene)[0]["status"] == "forbidden"


def test_an_answer_that_crosses_our_cancel() -> None:
    scene = asked("anna")
    scene.at(21.1)
    assert scene.do(PICKED_UP) == ["hang up second"]
    assert scene.state is State.TALKING


def test_a_transfer_before_the_callee_has_answered_waits_for_the_answer() -> None:
    """The session hears the network's announcement; without a session there is no call."""
    plan = replace(PLAN, outbound=OutboundPlan(ring_timeout=60.0, early_media=True))
    scene = Scene(plan)
    scene.do(UP, created("r1"), wants("transfer_call", destination="anna"))
    assert scene.at(30.0) == []
    assert "second sip:2@pbx" in scene.do(ACK)
    scene = Scene(plan)
    scene.do(UP, created("r1"), wants("transfer_call", destination="anna"))
    assert "bye 41" in scene.do(closed(1006))

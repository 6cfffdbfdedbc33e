# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a call as a table: what happens, when, and what is done about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.call_control import ACK_SECONDS
from gateway.call.conversation.control import HELD, RESUMED
from gateway.call.machine import FOR_RULES, LEG_END_SECONDS, State
from gateway.call.plan import CallPlan, LimitsPlan, OutboundPlan, ServerPlan
from tests.support.call_scene import (
    ACK,
    BYE,
    CANCEL,
    FAULT,
    LOST,
    OUR_END,
    REFUSED,
    SHUT_DOWN,
    SPEECH,
    TICK,
    UNREACHABLE,
    UP,
    Scene,
    audio,
    audio_done,
    closed,
    created,
    done,
    error,
    key,
)


def test_every_type_of_input_has_a_handler() -> None:
    machine = Scene().machine
    assert set(machine._handlers) == set(get_args(inputs.Input))
    assert set(FOR_RULES) <= set(machine._call.conversation._rules_for)


Step = tuple[float, inputs.Input | None, list[str]]
Row = Sequence[Step]

GREETED = CallPlan("route", Codec.PCMU, greeting={"instructions": "Say hello."})
RINGING: list[Step] = [(0.0, None, ["180", "open"])]
ANSWERED: list[Step] = [*RINGING, (0.4, UP, ["200"])]
TALKING: list[Step] = [*ANSWERED, (0.5, ACK, ["media"])]
AGENT_TALKS: list[Step] = [
    *TALKING,
    (1.0, created("r1"), []),
    (1.0, audio("r1", "i1", 1000), ["play 1000"]),
]


def _over(close: str, end: str) -> list[str]:
    return [f"close 1000 {close}", end]


ROWS: dict[str, tuple[CallPlan | None, Row, tuple[str, str, int]]] = {
    # ---- the caller
    "normal call": (
        GREETED,
        [
            *RINGING,
            (0.4, UP, ["200", "create ['instructions']"]),
            (0.5, ACK, ["media"]),
            (0.6, created("r1"), []),
            (0.6, audio("r1", "i1", 100), ["play 100"]),
            (0.6, audio_done("r1", "i1"), []),
            (0.6, done("r1"), []),
            (9.0, BYE, ["flush", "close 1000 remote_hangup", "finished"]),
        ],
        ("caller", "remote_hangup", 200),
    ),
    "a caller whom nobody knows to be there: the greeting at the ACK": (
        replace(GREETED, trusted=False),
        [
            *ANSWERED,
            (0.5, ACK, ["media", "create ['instructions']"]),
            (9.0, BYE, ["close 1000 remote_hangup", "finished"]),
        ],
        ("caller", "remote_hangup", 200),
    ),
    "CANCEL before the session is up": (
        None,
        [*RINGING, (0.2, CANCEL, ["close 1000 cancelled", "finished"])],
        ("caller", "cancelled", 487),
    ),
    "CANCEL that meets our 200": (
        None,
        [*ANSWERED, (0.41, CANCEL, ["close 1000 cancelled", "finished"])],
        ("caller", "cancelled", 487),
    ),
    "487 without word of a CANCEL": (
        None,
        [
            *RINGING,
            (
                0.2,
                inputs.LegEnded(487, "Request Terminated", "", "", False),
                ["close 1000 cancelled", "finished"],
            ),
        ],
        ("caller", "cancelled", 487),
    ),
    "CANCEL that had no effect, then BYE": (
        None,
        [
            *TALKING,
            (
                5.0,
                inputs.LegEnded(200, "OK", "CANCEL", "", False),
                ["close 1000 remote_hangup", "finished"],
            ),
        ],
        ("caller", "remote_hangup", 200),
    ),
    "session comes up while the CANCEL is under way": (
        None,
        [
            *RINGING,
            (0.2, SHUT_DOWN, _over("shutdown", "503 41 retry 5")),
            (0.21, UP, ["close 1000 call over"]),
            (0.3, inputs.LegEnded(503, "Service Unavailable", "", "", True), ["finished"]),
            (0.4, UP, []),
        ],
        ("operator", "shutdown", 503),
    ),
    # ---- no session
    "session refused": (
        None,
        [
            *RINGING,
            (0.3, REFUSED, _over("session_refused", "503 41 retry 5")),
            (0.4, OUR_END, ["finished"]),
        ],
        ("model", "session_refused", 503),
    ),
    "session out of reach": (
        CallPlan("route", Codec.PCMU, server=ServerPlan(retry_after=17)),
        [
            *RINGING,
            (5.0, UNREACHABLE, _over("session_unreachable", "503 41 retry 17")),
            (5.1, OUR_END, ["finished"]),
        ],
        ("network", "session_unreachable", 503),
    ),
    "session closes before it was up": (
        None,
        [
            *RINGING,
            (0.3, closed(1006), _over("session_lost", "503 41 retry 5")),
            (0.4, OUR_END, ["finished"]),
        ],
        ("network", "session_lost", 503),
    ),
    # ---- the session ends
    "1000 before the ACK": (
        None,
        [
            *ANSWERED,
            (0.45, closed(1000), _over("session_closed", "bye 16")),
            (0.6, OUR_END, ["finished"]),
        ],
        ("model", "session_closed", 200),
    ),
    "1006 before the ACK": (
        None,
        [
            *ANSWERED,
            (0.45, closed(1006), _over("session_lost", "bye 41")),
            (0.6, OUR_END, ["finished"]),
        ],
        ("network", "session_lost", 200),
    ),
    "1000 with nothing to hear": (
        None,
        [
            *TALKING,
            (3.0, closed(1000), _over("session_closed", "bye 16")),
            (3.1, OUR_END, ["finished"]),
        ],
        ("model", "session_closed", 200),
    ),
    "1000 while the agent is heard": (
        None,
        [
            *AGENT_TALKS,
            (1.1, closed(1000), []),
            (2.0, inputs.PlayoutDrained(), []),
            (2.2, None, _over("session_closed", "bye 16")),
            (2.1, OUR_END, ["finished"]),
        ],
        ("model", "session_closed", 200),
    ),
    "1000, and the rest is never heard": (
        CallPlan("route", Codec.PCMU, limits=LimitsPlan(goodbye_timeout=4.0)),
        [
            *AGENT_TALKS,
            (1.5, closed(1000), []),
            (6.5, None, _over("session_closed", "bye 16")),
            (6.6, OUR_END, ["finished"]),
        ],
        ("model", "session_closed", 200),
    ),
    "1006 while the agent is heard": (
        None,
        [
            *AGENT_TALKS,
            (1.1, closed(1006), _over("session_lost", "bye 41")),
            (1.2, OUR_END, ["finished"]),
        ],
        ("network", "session_lost", 200),
    ),
    "1011": (
        None,
        [
            *TALKING,
            (3.0, closed(1011, "oops"), _over("session_lost", "bye 41")),
            (3.1, OUR_END, ["finished"]),
        ],
        ("network", "session_lost", 200),
    ),
    "session closed by ourselves though nobody said so": (
        None,
        [
            *TALKING,
            (
                3.0,
                inputs.SessionClosed(1000, "event loop ended"),
                _over("session_closed", "bye 16"),
            ),
            (3.1, OUR_END, ["finished"]),
        ],
        ("model", "session_closed", 200),
    ),
    "session closes while the call ends": (
        None,
        [
            *TALKING,
            (3.0, SHUT_DOWN, _over("shutdown", "bye 41")),
            (3.0, inputs.SessionClosed(1000, ""), []),
            (3.0, closed(1006), []),
            (3.1, OUR_END, ["finished"]),
            (3.2, closed(1006), []),
        ],
        ("operator", "shutdown", 200),
    ),
    "fatal error event": (
        None,
        [
            *TALKING,
            (3.0, error("insufficient_quota"), _over("session_error", "bye 41")),
            (3.1, OUR_END, ["finished"]),
        ],
        ("model", "session_error", 200),
    ),
    "fatal error event before the ACK": (
        None,
        [
            *ANSWERED,
            (0.45, error("session_expired"), _over("session_error", "bye 41")),
            (0.6, OUR_END, ["finished"]),
        ],
        ("model", "session_error", 200),
    ),
    "errors that are survived": (
        None,
        [
            *TALKING,
            (3.0, error("invalid_value"), []),
            (3.0, error("response_cancel_not_active"), []),
            (3.0, error("never_heard_of"), []),
            (3.0, error(None), []),
            (9.0, BYE, ["close 1000 remote_hangup", "finished"]),
        ],
        ("caller", "remote_hangup", 200),
    ),
    # ---- the leg is lost
    "leg lost while ringing": (
        None,
        [*RINGING, (0.3, LOST, ["close 1000 leg_timeout", "finished"])],
        ("network", "leg_timeout", 480),
    ),
    "leg lost while talking": (
        None,
        [*TALKING, (3.0, LOST, ["close 1000 leg_timeout", "finished"])],
        ("network", "leg_timeout", 200),
    ),
    "no ACK, told from below": (
        None,
        [*ANSWERED, (32.4, LOST, ["close 1000 leg_timeout", "finished"])],
        ("network", "leg_timeout", 200),
    ),
    "no ACK, and nobody says so": (
        None,
        [
            *ANSWERED,
            (0.4 + ACK_SECONDS, None, _over("leg_timeout", "bye 41")),
            (50.0, OUR_END, ["finished"]),
        ],
        ("network", "leg_timeout", 200),
    ),
    "leg ended by ourselves though nobody said so": (
        None,
        [
            *TALKING,
            (
                3.0,
                inputs.LegEnded(500, "", "", "", True),
                ["close 1000 internal_error", "finished"],
            ),
        ],
        ("gateway", "internal_error", 200),
    ),
    "leg that never ends": (
        None,
        [
            *TALKING,
            (3.0, SHUT_DOWN, _over("shutdown", "bye 41")),
            (3.0 + LEG_END_SECONDS, None, ["finished"]),
            (50.0, OUR_END, []),
        ],
        ("operator", "shutdown", 200),
    ),
    "our refusal is acknowledged by nobody": (
        None,
        [
            *RINGING,
            (0.3, REFUSED, _over("session_refused", "503 41 retry 5")),
            (99.0, None, ["finished"]),
        ],
        ("model", "session_refused", 503),
    ),
    # ---- time
    "RTP silence": (
        CallPlan("route", Codec.PCMU, limits=LimitsPlan(rtp_timeout=10.0)),
        [
            *TALKING,
            (1.0, inputs.RtpStats(50), []),
            (9.0, inputs.RtpStats(450), []),
            (10.0, inputs.RtpStats(450), []),
            (18.9, None, []),
            (19.0, None, _over("rtp_timeout", "bye 102")),
            (19.1, OUR_END, ["finished"]),
        ],
        ("network", "rtp_timeout", 200),
    ),
    "no RTP at all": (
        CallPlan("route", Codec.PCMU, limits=LimitsPlan(rtp_timeout=10.0)),
        [
            *TALKING,
            (10.4, None, []),
            (10.5, None, _over("rtp_timeout", "bye 102")),
            (10.6, OUR_END, ["finished"]),
        ],
        ("network", "rtp_timeout", 200),
    ),
    "RTP silence that is allowed": (
        CallPlan(
            "route",
            Codec.PCMU,
            limits=LimitsPlan(rtp_timeout=0.0, max_call_duration=60.0),
        ),
        [
            *TALKING,
            (60.4, None, []),
            (60.5, None, _over("max_duration", "bye 102")),
            (61.0, OUR_END, ["finished"]),
        ],
        ("gateway", "max_duration", 200),
    ),
    "RTP silence on hold is no dead line": (
        CallPlan("route", Codec.PCMU, limits=LimitsPlan(rtp_timeout=10.0)),
        [
            *TALKING,
            (1.0, inputs.HoldChanged(True), [f"item {HELD}", "hold"]),
            (1.1, inputs.HoldChanged(True), []),
            (2.0, inputs.RtpStats(7), []),
            (100.0, inputs.HoldChanged(False), [f"item {RESUMED}", "resume"]),
            (109.9, None, []),
            (110.0, None, _over("rtp_timeout", "bye 102")),
            (110.1, OUR_END, ["finished"]),
        ],
        ("network", "rtp_timeout", 200),
    ),
    "on hold before the ACK": (
        CallPlan("route", Codec.PCMU, limits=LimitsPlan(rtp_timeout=10.0)),
        [
            *ANSWERED,
            (0.45, inputs.HoldChanged(True), ["hold"]),
            (0.5, ACK, ["media"]),
            (90.0, BYE, ["close 1000 remote_hangup", "finished"]),
        ],
        ("caller", "remote_hangup", 200),
    ),
    "maximum length": (
        CallPlan("route", Codec.PCMU, limits=LimitsPlan(max_call_duration=20.0)),
        [
            *AGENT_TALKS,
            (20.4, None, []),
            (20.5, None, _over("max_duration", "bye 102")),
            (20.6, OUR_END, ["finished"]),
        ],
        ("gateway", "max_duration", 200),
    ),
    # ---- the gateway
    "shutdown while ringing": (
        None,
        [
            *RINGING,
            (0.2, SHUT_DOWN, _over("shutdown", "503 41 retry 5")),
            (0.3, OUR_END, ["finished"]),
        ],
        ("operator", "shutdown", 503),
    ),
    "shutdown before the ACK": (
        None,
        [*ANSWERED, (0.45, SHUT_DOWN, _over("shutdown", "bye 41")), (0.6, OUR_END, ["finished"])],
        ("operator", "shutdown", 200),
    ),
    "shutdown while talking": (
        None,
        [*AGENT_TALKS, (1.5, SHUT_DOWN, _over("shutdown", "bye 41")), (1.6, OUR_END, ["finished"])],
        ("operator", "shutdown", 200),
    ),
    "shutdown while the call ends, and after": (
        None,
        [
            *TALKING,
            (3.0, closed(1006), _over("session_lost", "bye 41")),
            (3.1, SHUT_DOWN, []),
            (3.2, OUR_END, ["finished"]),
            (3.3, SHUT_DOWN, []),
        ],
        ("network", "session_lost", 200),
    ),
    "fault while ringing": (
        None,
        [*RINGING, (0.2, FAULT, _over("internal_error", "500 41")), (0.3, OUR_END, ["finished"])],
        ("gateway", "internal_error", 500),
    ),
    "fault while talking": (
        None,
        [*TALKING, (3.0, FAULT, _over("internal_error", "bye 41")), (3.1, OUR_END, ["finished"])],
        ("gateway", "internal_error", 200),
    ),
    "fault while the call ends: the hang-up may be what failed": (
        None,
        [
            *TALKING,
            (3.0, SHUT_DOWN, _over("shutdown", "bye 41")),
            (3.0, FAULT, ["close 1000 internal_error", "bye 41"]),
            (3.1, OUR_END, ["finished"]),
            (3.2, FAULT, []),
        ],
        ("operator", "shutdown", 200),
    ),
    # ---- the model says goodbye
    "goodbye and hang-up in one response": (
        None,
        [
            *AGENT_TALKS,
            (1.2, done("r1", calls=[("end_call", "c1")]), []),
            (2.0, inputs.PlayoutDrained(), []),
            (2.2, None, _over("agent_hangup", "bye 16")),
            (2.1, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "goodbye heard before the response is done": (
        None,
        [
            *AGENT_TALKS,
            (1.9, audio_done("r1", "i1"), []),
            (2.0, inputs.PlayoutDrained(), []),
            (2.5, done("r1", calls=[("end_call", "c1")]), _over("agent_hangup", "bye 16")),
            (2.6, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "hang-up while an earlier answer is heard": (
        None,
        [
            *AGENT_TALKS,
            (1.1, done("r1"), []),
            (1.2, created("r2"), []),
            (1.3, done("r2", calls=[("end_call", "c1")]), []),
            (2.0, inputs.PlayoutDrained(), []),
            (2.2, None, _over("agent_hangup", "bye 16")),
            (2.1, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "hang-up without a word: a goodbye is asked for": (
        None,
        [
            *TALKING,
            (2.0, created("r1"), []),
            (2.0, done("r1", calls=[("end_call", "c1")]), ["output c1", "create ['tools']"]),
            (2.2, created("r2"), []),
            (2.3, audio("r2", "i2", 500), ["play 500"]),
            (2.3, done("r2"), []),
            (2.8, inputs.PlayoutDrained(), []),
            (3, None, _over("agent_hangup", "bye 16")),
            (2.9, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "the goodbye asked for stays silent": (
        None,
        [
            *TALKING,
            (2.0, created("r1"), []),
            (2.0, done("r1", calls=[("end_call", "c1")]), ["output c1", "create ['tools']"]),
            (2.2, created("r2"), []),
            (2.3, done("r2"), _over("agent_hangup", "bye 16")),
            (2.9, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "the goodbye asked for is refused": (
        None,
        [
            *TALKING,
            (2.0, created("r1"), []),
            (2.0, done("r1", calls=[("end_call", "c1")]), ["output c1", "create ['tools']"]),
            (2.2, created("r2"), []),
            (2.3, done("r2", "failed"), _over("agent_hangup", "bye 16")),
            (2.9, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "the goodbye asked for never comes": (
        CallPlan("route", Codec.PCMU, limits=LimitsPlan(goodbye_timeout=6.0)),
        [
            *TALKING,
            (2.0, created("r1"), []),
            (2.0, done("r1", calls=[("end_call", "c1")]), ["output c1", "create ['tools']"]),
            (7.9, None, []),
            (8.0, None, _over("agent_hangup", "bye 16")),
            (8.1, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "a goodbye without end": (
        CallPlan("route", Codec.PCMU, limits=LimitsPlan(goodbye_timeout=6.0)),
        [
            *AGENT_TALKS,
            (1.2, done("r1", calls=[("end_call", "c1")]), []),
            (8.2, None, _over("agent_hangup", "bye 16")),
            (8.3, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "the session closes during the goodbye": (
        None,
        [
            *AGENT_TALKS,
            (1.2, done("r1", calls=[("end_call", "c1")]), []),
            (1.3, closed(1000), []),
            (2.0, inputs.PlayoutDrained(), []),
            (2.2, None, _over("agent_hangup", "bye 16")),
            (2.1, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "the session is lost during the goodbye, which is all here": (
        None,
        [
            *AGENT_TALKS,
            (1.2, done("r1", calls=[("end_call", "c1")]), []),
            (1.3, closed(1006), []),
            (2.0, inputs.PlayoutDrained(), []),
            (2.2, None, _over("agent_hangup", "bye 16")),
            (2.1, OUR_END, ["finished"]),
        ],
        ("model", "agent_hangup", 200),
    ),
    "the session is lost before the goodbye came": (
        None,
        [
            *TALKING,
            (2.0, created("r1"), []),
            (2.0, done("r1", calls=[("end_call", "c1")]), ["output c1", "create ['tools']"]),
            (2.1, closed(1006), _over("session_lost", "bye 41")),
            (2.2, OUR_END, ["finished"]),
        ],
        ("network", "session_lost", 200),
    ),
    "the caller hangs up into the goodbye": (
        None,
        [
            *AGENT_TALKS,
            (1.2, done("r1", calls=[("end_call", "c1")]), []),
            (1.3, BYE, ["flush", "close 1000 remote_hangup", "finished"]),
        ],
        ("caller", "remote_hangup", 200),
    ),
    "the caller speaks into the goodbye, and the call goes on": (
        None,
        [
            *AGENT_TALKS,
            (1.2, done("r1", calls=[("end_call", "c1")]), []),
            (1.3, SPEECH, ["flush", "output c1", "delete i1"]),
            (1.4, inputs.PlayoutDrained(), []),
            (25.0, None, []),
            (25.0, BYE, ["close 1000 remote_hangup", "finished"]),
        ],
        ("caller", "remote_hangup", 200),
    ),
    "a key during the goodbye, and the call goes on": (
        None,
        [
            *AGENT_TALKS,
            (1.2, done("r1", calls=[("end_call", "c1")]), []),
            (
                1.3,
                key("#"),
                [
                    "flush",
                    "output c1",
                    "delete i1",
                    "item The caller pressed # on the telephone keypad.",
                    "create",
                ],
            ),
            (2.0, created("r2"), []),
            (25.0, BYE, ["close 1000 remote_hangup", "finished"]),
        ],
        ("caller", "remote_hangup", 200),
    ),
    "the caller speaks before the goodbye that was asked for": (
        None,
        [
            *TALKING,
            (2.0, created("r1"), []),
            (2.0, done("r1", calls=[("end_call", "c1")]), ["output c1", "create ['tools']"]),
            (2.2, created("r2"), []),
            (2.3, SPEECH, ["flush"]),
            (2.4, done("r2", "cancelled"), []),
            (25.0, BYE, ["close 1000 remote_hangup", "finished"]),
        ],
        ("caller", "remote_hangup", 200),
    ),
}


@pytest.mark.parametrize(("plan", "row", "ending"), ROWS.values(), ids=ROWS.keys())
def test_life_of_a_call(plan: CallPlan | None, row: Row, ending: tuple[str, str, int]) -> None:
    scene = Scene(plan)
    for number, (at, happening, expected) in enumerate(row):
        if number == 0:
            seen = scene.seen[:]
        else:
            seen = scene.at(at, *([] if happening is None else [happening]))
        assert seen == expected, f"step {number} at {at}: {happening}"
    assert scene.state is State.FINISHED
    assert scene.machine.deadline is None
    assert scene.ending == ending
    assert scene.seen.count("finished") == 1
    assert scene.record.times.end is not None
    answered = scene.record.times.answered is not None
    assert answered == (ending[2] == 200)


@pytest.mark.parametrize("state", ["ringing", "answered", "talking"])
@pytest.mark.parametrize(
    ("happening", "why"),
    [
        (closed(1000), "session_closed"),
        (closed(1001, "Your session hit the maximum duration of 60 minutes."), "session_lost"),
        (closed(1006), "session_lost"),
        (closed(1011), "session_lost"),
        (closed(4000), "session_lost"),
        (SHUT_DOWN, "shutdown"),
        (FAULT, "internal_error"),
        (LOST, "leg_timeout"),
        (inputs.LegEnded(500, "", "", "", True), "internal_error"),
    ],
    ids=str,
)
def test_the_same_end_in_every_state(state: str, happening: inputs.Input, why: str) -> None:
    scene = Scene()
    if state != "ringing":
        scene.at(0.4, UP)
    if state == "talking":
        scene.at(0.5, ACK)
    seen = scene.at(1.0, happening)
    assert seen[0] == f"close 1000 {why}"
    if scene.state is State.ENDING:
        assert seen[1].startswith("bye" if state != "ringing" else ("503", "480", "500"))
        assert scene.at(1.1, OUR_END) == ["finished"]
    assert scene.ending[1] == why
    assert scene.ending[2] == 200 or state == "ringing"


@pytest.mark.parametrize(
    "happening", [closed(1006), SPEECH, audio("r", "i", 20), TICK, BYE, key("1")]
)
def test_nothing_after_the_end(happening: inputs.Input) -> None:
    scene = Scene().up()
    scene.do(BYE)
    assert scene.do(happening) == []
    assert scene.machine.deadline is None


@pytest.mark.parametrize("happening", [SPEECH, key("1"), key("#"), audio("r", "i", 20), ACK, UP])
def test_a_call_that_ends_begins_nothing_new(happening: inputs.Input) -> None:
    scene = Scene().up()
    scene.do(SHUT_DOWN)
    seen = scene.do(happening)
    assert seen == (["close 1000 call over"] if happening is UP else [])


def test_reason_of_the_caller_is_in_the_record() -> None:
    scene = Scene().up()
    scene.do(inputs.LegEnded(200, "OK", "BYE", 'Q.850;cause=31;text="x"', False))
    ending = scene.record.ending
    assert ending is not None
    assert (ending.reason, ending.detail) == ('Q.850;cause=31;text="x"', "200 OK")


def test_milestones() -> None:
    scene = Scene(GREETED)
    scene.at(0.4, UP)
    scene.at(0.5, ACK)
    scene.at(0.6, created("r1"), audio("r1", "i1", 100), audio_done("r1", "i1"), done("r1"))
    scene.listen(200)
    scene.at(9.0, BYE)
    times = scene.record.summary()["times_ms"]
    assert times == {
        "ringing": 0.0,
        "session": 400.0,
        "answered": 400.0,
        "confirmed": 500.0,
        "first_audio": 620.0,
        "end": 9000.0,
    }
    assert scene.record.talk_ms == 8500.0
    assert scene.record.session.session_id == "sess_1"
    starts = [note.event for note in scene.notes if note.event.startswith("agent_")]
    assert starts == ["agent_speech_started", "agent_speech_stopped"]


def test_details_say_what_came() -> None:
    for happening, detail in (
        (REFUSED, "invalid_api_key: says so"),
        (UNREACHABLE, "timeout: after 5 s"),
        (FAULT, "ValueError: defect"),
        (closed(1011, "oops"), "1011 oops"),
    ):
        scene = Scene()
        scene.do(happening, OUR_END)
        assert scene.record.ending is not None
        assert scene.record.ending.detail == detail
    scene = Scene().up()
    scene.do(error("insufficient_quota", message="No money."), OUR_END)
    assert scene.record.ending is not None
    assert scene.record.ending.detail == "insufficient_quota: No money."


def test_codec_of_the_leg_changes_and_the_session_goes_on() -> None:
    """What is between leg and session is linear, so the session keeps the law it was opened in."""
    scene = Scene()
    scene.do(UP)
    assert scene.do(inputs.MediaUp(Codec.PCMU)) == []
    assert scene.do(inputs.MediaUp(Codec.PCMA)) == []
    assert scene.do(inputs.MediaUp(Codec.PCMA)) == []
    assert scene.events.count("codec_changed") == 1
    assert scene.record.leg.codec == "PCMA"
    scene.do(ACK, created("r1"), audio("r1", "i1", 30))
    assert scene.do(audio_done("r1", "i1")) == ["play 20"]


def test_no_command_goes_to_a_session_that_closed() -> None:
    scene = Scene().up()
    scene.do(key("4"))
    scene.do(created("r1"), audio("r1", "i1", 8000), done("r1"))
    scene.listen(100)
    scene.do(closed(1000))
    sent = len(scene.sent)
    scene.do(key("2"), SPEECH)
    scene.at(scene.now + 5.0)
    assert len(scene.sent) == sent
    # The digit that was not sent is not lost to the record.
    assert [(run.digits, run.ended_by) for run in scene.record.actions.digits] == [
        ("4", "call_end")
    ]
    assert scene.state is State.TALKING


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (486, "busy"),
        (603, "declined"),
        (480, "no_answer"),
        (404, "no_such_number"),
        (403, "forbidden"),
        (500, "call_failed"),
    ],
)
def test_a_call_of_ours_that_nobody_takes_ends_by_its_code(code: int, why: str) -> None:
    scene = Scene(CallPlan("route", Codec.PCMU, outbound=OutboundPlan()))
    scene.do(UP, inputs.RemoteRinging(180))
    scene.do(inputs.LegEnded(code, "No", "", "", False))
    assert scene.ending[1:] == (why, code)


def test_an_operator_hangs_up_in_an_answer() -> None:
    scene = Scene().up()
    scene.do(created("r1"), audio("r1", "i1", 2000))
    scene.listen(100)
    scene.do(inputs.HangupRequested(), OUR_END)
    assert scene.ending[1:] == ("operator", 200)

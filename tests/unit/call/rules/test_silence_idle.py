# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller who says nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import (
    CallPlan,
    FallbackStep,
    FunctionPlan,
    LimitsPlan,
    ServerPlan,
    UserIdlePlan,
)
from gateway.call.tools.commands import Destination, TransferPlan
from gateway.realtime.events import OtherEvent, SpeechStarted, SpeechStopped
from tests.support.call_scene import (
    ACK,
    OUR_END,
    UP,
    Scene,
    audio,
    audio_done,
    closed,
    created,
    done,
    said,
)

IDLE = UserIdlePlan(8.0, "Hello?", 2, "Goodbye then.")
PLAN = CallPlan("r", Codec.PCMU, idle=IDLE, limits=LimitsPlan(rtp_timeout=0))
ASKED = "create ['instructions', 'tools']"


def answer(scene: Scene, number: int, ms: int = 1000) -> None:
    """The model says something, and it is heard."""
    response, item = f"r{number}", f"i{number}"
    scene.do(created(response), audio(response, item, ms), audio_done(response, item))
    scene.do(done(response))
    scene.listen(ms + 40)


def test_the_caller_is_asked_twice_and_then_said_goodbye_to() -> None:
    scene = Scene(PLAN).up()
    answer(scene, 1)
    assert scene.at(scene.now + 7.9) == []
    assert scene.at(scene.now + 0.2) == [ASKED]
    assert scene.requests[-1].response == {"instructions": "Say exactly: Hello?", "tools": []}
    answer(scene, 2)
    assert scene.at(scene.now + 8.1) == [ASKED]
    answer(scene, 3)
    assert scene.at(scene.now + 8.1) == ["session.update", ASKED]
    assert scene.requests[-1].response is not None
    assert scene.requests[-1].response["instructions"] == "Say exactly: Goodbye then."
    answer(scene, 4)
    scene.listen(400)
    scene.do(OUR_END)
    assert scene.ending == ("gateway", "idle", 200)


def test_a_caller_who_answers_is_asked_from_the_beginning() -> None:
    scene = Scene(PLAN).up()
    answer(scene, 1)
    assert scene.at(scene.now + 8.1) == [ASKED]
    answer(scene, 2)
    scene.at(scene.now + 6, said(SpeechStarted("u", 0)))
    assert scene.at(scene.now + 12) == [], "a long story"
    scene.do(said(SpeechStopped("u", 9000)))
    answer(scene, 3)
    for number in (4, 5):
        assert scene.at(scene.now + 8.1) == [ASKED]
        answer(scene, number)
    assert scene.state.name == "TALKING"


def test_before_the_call_is_up_nobody_is_idle() -> None:
    scene = Scene(PLAN)
    scene.do(UP)
    assert scene.at(20) == []
    scene.do(ACK)
    assert scene.at(scene.now + 8.1) == [ASKED]


def test_who_spoke_as_the_session_was_lost_is_asked_by_the_next() -> None:
    """The end of their speech was never told, and the new session hears nobody."""
    again = ServerPlan(fallback=(FallbackStep("reconnect", 10.0),))
    scene = Scene(replace(PLAN, server=again)).up()
    answer(scene, 1)
    scene.do(said(SpeechStarted("u", 0)), closed(1011))
    scene.do(inputs.SessionReady("sess_2"))
    assert ASKED in scene.at(scene.now + 8.1)


def test_nobody_is_asked_while_the_session_is_replaced() -> None:
    """There is nobody to ask them: it counts as no prompt, and ends no call."""
    again = ServerPlan(fallback=(FallbackStep("reconnect", 40.0),))
    scene = Scene(replace(PLAN, idle=replace(IDLE, max_prompts=1), server=again)).up()
    answer(scene, 1)
    scene.do(closed(1011))
    scene.at(scene.now + 30.0)
    assert scene.state.name == "TALKING"
    assert "idle_prompted" not in scene.events
    scene.do(inputs.SessionReady("sess_2"))
    assert scene.at(scene.now + 7.9) == []
    assert scene.at(scene.now + 0.2) == [ASKED]
    assert scene.requests[-1].response == {"instructions": "Say exactly: Hello?", "tools": []}


def test_who_spoke_as_the_session_was_handed_over_is_asked_by_the_next() -> None:
    scene = Scene(PLAN)
    scene.do(inputs.SessionReady("sess_1", 100.0), ACK, said(SpeechStarted("u", 0)))
    assert scene.at(40.5) == ["open spare"]
    scene.do(inputs.StandbyReady("sess_2"))
    assert scene.at(97.5) == ["take over"]
    assert ASKED in scene.at(110.0)


@pytest.mark.parametrize("busy", ["held", "responding", "tool", "mcp"])
def test_what_the_caller_waits_for_is_no_silence(busy: str) -> None:
    scene = Scene(
        replace(PLAN, tools=replace(PLAN.tools, functions={"look_up": FunctionPlan()}))
    ).up()
    if busy == "held":
        scene.do(inputs.HoldChanged(True))
    elif busy == "responding":
        scene.do(created("r1"))
    elif busy == "mcp":
        scene.do(said(OtherEvent("response.mcp_call.in_progress", {"item_id": "m1"})))
    else:
        scene.do(created("r1"), done("r1", calls=[("look_up", "c1")]))
    before = len(scene.requests)
    scene.at(scene.now + 29)
    assert len(scene.requests) == before
    if busy == "held":
        scene.do(inputs.HoldChanged(False))
        assert scene.at(scene.now + 8.1) == [ASKED]


def test_a_silent_caller_is_handed_on_where_the_route_says_so() -> None:
    desk = Destination("Desk", "sip:desk@pbx")
    plan = replace(
        PLAN,
        idle=replace(IDLE, max_prompts=1, transfer_to="Desk"),
        tools=replace(PLAN.tools, transfer=TransferPlan((desk,))),
    )
    scene = Scene(plan).up()
    answer(scene, 1)
    scene.at(scene.now + 8.1)
    answer(scene, 2)
    assert "refer sip:desk@pbx" in scene.at(scene.now + 8.1)


def test_off_by_default() -> None:
    scene = Scene().up()
    answer(scene, 1)
    assert scene.at(scene.now + 300)[:1] != [ASKED]
    assert "idle_prompted" not in scene.events

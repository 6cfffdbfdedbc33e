# SPDX-License-Identifier: GPL-2.0-or-later
"""What the model is asked about a call at its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.conversation.out_of_band import KEY, LATE_WORDS_SECONDS
from gateway.call.inputs import Input
from gateway.call.plan import (
    CallPlan,
    ContentPlan,
    FallbackStep,
    LimitsPlan,
    PostCallPlan,
    ServerPlan,
    ToolsPlan,
)
from gateway.call.tools.commands import (
    BriefingPlan,
    Destination,
    RequestOutOfBand,
    TransferPlan,
)
from gateway.realtime.events import (
    InputCommitted,
    InputTranscribed,
    ResponseCreated,
    ResponseDone,
    SpeechStarted,
    SpeechStopped,
)
from gateway.realtime.session_object import LIVE
from tests.support.call_scene import (
    ACK,
    BYE,
    FAULT,
    OUR_END,
    SHUT_DOWN,
    Scene,
    audio,
    closed,
    created,
    done,
    said,
)
from tests.unit.call.test_call_control import PICKED_UP, wants

PLAN = CallPlan(
    "r",
    Codec.PCMU,
    content=ContentPlan(post_call=PostCallPlan({"summary": "Sum up."}, 8.0)),
    limits=LimitsPlan(max_call_duration=100.0, rtp_timeout=0),
)
ASKED = "create ['conversation', 'instructions', 'metadata', 'output_modalities', 'tools']"
KEYS = {KEY: "after-summary"}
OUTPUT = ({"type": "message", "content": [{"type": "output_text", "text": "A room."}]},)
ANSWER: list[Input] = [
    said(ResponseCreated("side", KEYS)),
    said(ResponseDone("side", "completed", None, None, None, OUTPUT, None)),
]


def test_the_session_stays_for_the_answer_and_the_caller_does_not() -> None:
    scene = Scene(PLAN).up()
    assert scene.at(5.0, BYE) == [ASKED]
    assert scene.at(7.0, *ANSWER) == ["close 1000 remote_hangup", "finished"]
    assert scene.ending == ("caller", "remote_hangup", 200)
    assert scene.record.times.end == 5000.0
    (aside,) = scene.record.as_json()["out_of_band"]
    assert (aside["purpose"], aside["status"], aside["text"]) == ("summary", "completed", "A room.")


def test_a_fault_during_the_analysis_ends_a_call_whose_leg_is_over() -> None:
    scene = Scene(PLAN).up()
    scene.at(5.0, BYE)
    assert scene.at(6.0, FAULT)[-1] == "finished"
    assert "leg_timeout" not in scene.events
    assert scene.ending == ("caller", "remote_hangup", 200)


def test_while_the_agent_speaks_the_caller_hangs_up() -> None:
    scene = Scene(PLAN).up()
    scene.do(created("r1"), audio("r1", "i1", 1000))
    assert scene.at(1.0, BYE) == ["flush", ASKED]
    scene.do(done("r1", "cancelled"))
    assert scene.at(2.0, *ANSWER) == ["close 1000 remote_hangup", "finished"]


@pytest.mark.parametrize("leg_first", [True, False])
def test_when_we_end_it_both_are_waited_for(leg_first: bool) -> None:
    scene = Scene(PLAN).up()
    assert scene.at(100.0)[-2:] == [ASKED, "bye 102"]
    if leg_first:
        assert scene.do(OUR_END) == []
        assert scene.do(*ANSWER) == ["close 1000 max_duration", "finished"]
    else:
        assert scene.do(*ANSWER) == ["close 1000 max_duration"]
        assert scene.do(OUR_END) == ["finished"]


@pytest.mark.parametrize("what", ["late", "closed", "shut down"])
def test_an_answer_that_does_not_come_is_given_up(what: str) -> None:
    scene = Scene(PLAN).up()
    scene.at(5.0, BYE)
    if what == "late":
        seen = scene.at(13.1)
    else:
        seen = scene.do(closed(1006) if what == "closed" else SHUT_DOWN)
    assert seen == ["close 1000 remote_hangup", "finished"]


def test_a_call_without_a_conversation_is_not_asked_about() -> None:
    scene = Scene(PLAN)
    assert ASKED not in scene.do(BYE)
    up = Scene(PLAN).up()
    assert ASKED not in up.do(SHUT_DOWN)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("mode", ["attended", "bridge"])
def test_a_briefing_is_cancelled_when_the_caller_hangs_up(mode: str, begun: bool) -> None:
    """Begun or not: nobody is left to be briefed, and the session closes with the answers."""
    anna = Destination("anna", "sip:2@pbx", mode, briefing=BriefingPlan())
    scene = Scene(replace(PLAN, tools=ToolsPlan(transfer=TransferPlan((anna,))))).up()
    scene.at(1.0, created("r1"), wants("transfer_call", destination="anna"), PICKED_UP)
    brief = created("b1", scene.requests[-1])
    if begun:
        scene.do(brief, audio("b1", "i1", 1000))
        assert scene.at(3.0, BYE) == ["hang up second", "cancel b1", ASKED]
    else:
        assert scene.at(3.0, BYE) == ["hang up second", ASKED]
        assert scene.do(brief) == ["cancel b1"]
    assert scene.do(audio("b1", "i1", 1000), done("b1", "cancelled")) == []
    assert scene.at(4.0, *ANSWER) == ["close 1000 remote_hangup", "finished"]
    briefing, _summary = scene.record.content.out_of_band
    assert (briefing.purpose, briefing.status) == ("briefing", "cancelled")
    assert scene.record.actions.transfers[0].briefing == ""


def test_what_an_application_has_asked_is_answered_after_the_call() -> None:
    scene = Scene(PLAN).up()
    scene.at(1.0, inputs.ToolRequest(RequestOutOfBand("query-1", "Who calls?", {})))
    scene.do(created("q1", scene.requests[-1]))
    assert scene.at(2.0, BYE) == [ASKED]
    assert scene.do(*ANSWER) == []
    assert scene.do(done("q1")) == ["close 1000 remote_hangup", "finished"]


@pytest.mark.parametrize("answered", [True, False])
def test_a_session_that_takes_over_may_give_the_same_ids(answered: bool) -> None:
    """Its responses are heard, and none is the answer to what the lost session was asked."""
    again = ServerPlan(fallback=(FallbackStep("reconnect", 10.0, "chime"),))
    scene = Scene(replace(PLAN, server=again)).up()
    scene.at(1.0, inputs.ToolRequest(RequestOutOfBand("query-1", "Who calls?", {})))
    scene.do(created("q1", scene.requests[-1]), *[done("q1")] * answered)
    scene.do(closed(1011), inputs.SessionReady("sess_2"))
    assert "play 200" in scene.do(created("q1"), audio("q1", "i1", 200))
    scene.do(done("q1"))
    (query,) = scene.record.content.out_of_band
    assert query.status == ("completed" if answered else "")
    scene.at(20.0)
    assert query.status == ("completed" if answered else "late")


@pytest.mark.parametrize("words_first", [True, False])
@pytest.mark.parametrize("all_come", [True, False])
def test_a_backend_is_asked_while_the_last_words_come(words_first: bool, all_come: bool) -> None:
    """Of a Live session with a backend: answers and words are waited for, each with its time."""
    scene = Scene(PLAN)
    scene.do(inputs.SessionReady("live_1", 7200.0, replace(LIVE, out_of_band=True)), ACK)
    scene.at(1.0, said(SpeechStarted("turn_1", 1000)), said(SpeechStopped("turn_1", 2000)))
    scene.do(said(InputCommitted("turn_1")))
    assert scene.at(5.0, BYE) == [ASKED]
    words = [said(InputTranscribed("turn_1", "Thanks."))]
    first, then = (words, ANSWER) if words_first else (ANSWER, words)
    assert "finished" not in scene.at(6.0, *first)
    if all_come:
        assert scene.at(7.0, *then)[-2:] == ["close 1000 remote_hangup", "finished"]
    else:
        until = 13.0 if words_first else 5.0 + LATE_WORDS_SECONDS
        assert "finished" not in scene.at(until - 0.1)
        assert "finished" in scene.at(until + 0.1)
    (turn,) = scene.record.as_json()["transcript"]
    assert turn["text"] == ("Thanks." if all_come or words_first else "")

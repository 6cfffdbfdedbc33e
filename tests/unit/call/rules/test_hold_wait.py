# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent waits in a queue without talking to its music."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from gateway.call.inputs import BLegAnswered, SessionReady, SoundHeard, ToolRequest
from gateway.call.plan import FallbackStep, HoldKey, HoldWaitPlan, ServerPlan, ToolsPlan
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import Destination, OperatorTransfer, TransferPlan
from gateway.dialplan.route_sections import ANNOUNCEMENTS
from gateway.realtime.events import InputTranscribed, SpeechStarted, SpeechStopped
from tests.support.call_scene import OUR_END, Scene, audio, closed, created, done, key, said
from tests.unit.call.rules.test_line_quality import seconds, up

QUIET_UPDATE = {
    "audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": False}}}
}
NORMAL_UPDATE = {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
PLAN = HoldWaitPlan(
    True,
    announcements=tuple(re.compile(one) for one in ANNOUNCEMENTS),
    keys=(HoldKey(re.compile("press one"), "1"),),
    transcribed=True,
    max_wait=300.0,
)
MUSIC, VOICE, SILENCE = (
    SoundHeard(1.0, 0.9, 0.2),
    SoundHeard(0.8, 0.2, 0.2),
    SoundHeard(0.0, 0.0, 0.0),
)
WAITING = "item You are waiting in a queue"


def waiting(server: ServerPlan | None = None, **plan: Any) -> Scene:
    """A call in whose queue music plays."""
    scene = up(hold_wait=replace(PLAN, **plan), server=server or ServerPlan())
    seconds(scene, 3, MUSIC)
    assert "hold_wait_began" not in scene.events
    seen = seconds(scene, 1, MUSIC)
    assert any(one.startswith(WAITING) for one in seen)
    assert "withhold" in seen
    return scene


def turn(
    scene: Scene, item: str, words: str, *, length: float = 2.0, end_ms: int | None = None
) -> list[str]:
    """Somebody speaks; returns what was done until their words came."""
    seen = scene.do(said(SpeechStarted(item, 0)))
    seen += seconds(scene, round(length), VOICE)
    seen += scene.do(said(SpeechStopped(item, end_ms)))
    return seen + scene.at(scene.now + 0.3, said(InputTranscribed(item, words)))


def spoken_to(seen: list[str]) -> bool:
    return "create" in seen and any("somebody speaks now" in one for one in seen)


def test_the_agent_waits_until_a_human_speaks() -> None:
    """Music stops what it says; what the server begins is cancelled; then it is told how long it
    has waited, and speaks."""
    scene = up(hold_wait=PLAN)
    scene.do(created("r1"), audio("r1", "a1", 3000))
    assert "flush" in seconds(scene, 4, MUSIC)
    assert "cancel r2" in scene.do(created("r2"))
    assert "play 500" not in scene.do(audio("r2", "a2", 500), done("r1"), done("r2", "cancelled"))
    assert seconds(scene, 40, MUSIC) == []
    assert "hear" in turn(scene, "u1", "Hello, this is Anna.")
    assert scene.at(scene.now + 1) == []
    assert spoken_to(scene.at(scene.now + 1))
    (wait,) = scene.record.summary()["hold_waits"]
    assert (wait["ended"], wait["announcements"]) == ("human", 0)
    assert 40_000 < wait["ms"] < 46_000
    assert "play 500" in scene.do(created("r3"), audio("r3", "a3", 500))


@pytest.mark.parametrize("words", ["We value you as a customer.", ""], ids=["words", "none"])
def test_music_that_comes_back_makes_it_an_announcement(words: str) -> None:
    """Whatever its words were."""
    scene = waiting()
    turn(scene, "u1", words)
    assert "withhold" in seconds(scene, 1, MUSIC)
    assert not spoken_to(seconds(scene, 20, MUSIC))
    (wait,) = scene.record.summary()["hold_waits"]
    assert (wait["ended"], wait["announcements"]) == ("", int(bool(words)))


def test_an_announcement_in_silence_is_known_by_its_words() -> None:
    """Without music: the first time by its words, and what was heard before whatever it is."""
    scene = up(hold_wait=PLAN)
    assert any(one.startswith(WAITING) for one in turn(scene, "u1", "Please hold the line."))
    for number in range(3):
        seconds(scene, 10, SILENCE)
        assert not spoken_to(turn(scene, f"v{number}", "Please hold the line."))
    assert not spoken_to(seconds(scene, 10, SILENCE))
    turn(scene, "u5", "Yes, who is there?")
    assert spoken_to(seconds(scene, 2, SILENCE))


def test_the_same_words_at_the_same_length_are_an_announcement() -> None:
    scene = up(hold_wait=PLAN)
    said_once = "Our opening hours are nine to five."
    turn(scene, "u1", said_once)
    seconds(scene, 5, SILENCE)
    assert any(one.startswith(WAITING) for one in turn(scene, "u2", said_once))


@pytest.mark.parametrize(("arrives", "lasts", "begins"), [(3.0, 2000, True), (2.0, 3000, False)])
def test_how_long_they_were_is_what_the_server_says(
    arrives: float, lasts: int, begins: bool
) -> None:
    """Its events may come late."""
    scene = up(hold_wait=PLAN)
    said_once = "Our opening hours are nine to five."
    turn(scene, "u1", said_once, end_ms=2000)
    turn(scene, "u2", said_once, length=arrives, end_ms=lasts)
    assert ("hold_wait_began" in scene.events) is begins


def test_keys_that_an_announcement_asks_for_are_pressed() -> None:
    """By rule, a few times at most, and no human is found in it."""
    scene = waiting()
    for number in range(8):
        seen = turn(scene, f"u{number}", "To keep your place, press one.")
        assert ("press 1 auto" in seen) is (number < 5)
        assert not spoken_to(seconds(scene, 3, MUSIC))
    assert scene.record.content.hold_waits[0].keys == "11111"


def test_who_presses_a_key_is_human() -> None:
    scene = waiting()
    assert spoken_to(scene.do(key("5")))
    assert scene.record.content.hold_waits[0].ended == "key"


def test_the_server_is_told_to_request_nothing_while_waiting() -> None:
    """A session that replaces a lost one, too; it is taken back at the end."""
    again = ServerPlan(fallback=(FallbackStep("reconnect", 10.0),))
    scene = waiting(again, quiet=QUIET_UPDATE, normal=NORMAL_UPDATE)
    updates = [one.body()["session"] for one in scene.sent if "update" in one.body()["type"]]
    assert updates == [{"type": "realtime", **QUIET_UPDATE}]
    scene.do(closed(1006))
    scene.do(SessionReady("sess_2"))
    turn(scene, "u1", "Hello?")
    seconds(scene, 3, SILENCE)
    updates = [one.body()["session"] for one in scene.sent if "update" in one.body()["type"]]
    assert [one["audio"] for one in updates[1:]] == [QUIET_UPDATE["audio"], NORMAL_UPDATE["audio"]]


def test_words_that_do_not_come_delay_the_decision() -> None:
    """Three seconds after a turn it is decided without them; at once where nothing transcribes."""
    for transcribed, until in ((True, 3.0), (False, 1.6)):
        scene = waiting(transcribed=transcribed)
        scene.do(said(SpeechStarted("u1", 0)))
        seconds(scene, 2, VOICE)
        scene.do(said(SpeechStopped("u1", 0)))
        stopped = scene.now
        assert not spoken_to(scene.at(stopped + until - 0.1))
        assert spoken_to(scene.at(stopped + until + 0.1))


@pytest.mark.parametrize("up_first", [True, False])
def test_a_human_whose_session_is_lost_in_mid_speech_is_answered_by_the_next(
    up_first: bool,
) -> None:
    """The end of what they said is told by no session; silence is it, also while there is none."""
    again = ServerPlan(fallback=(FallbackStep("reconnect", 30.0),))
    scene = waiting(again)
    scene.do(said(SpeechStarted("u1", 0)))
    seconds(scene, 2, VOICE)
    scene.do(closed(1006))
    seen = scene.do(SessionReady("sess_2")) if up_first else []
    assert not spoken_to(seen)
    seen = seconds(scene, 15, SILENCE)
    assert spoken_to(seen if up_first else scene.do(SessionReady("sess_2")))
    (wait,) = scene.record.content.hold_waits
    assert wait.ended == "human"


def test_an_announcement_whose_session_is_lost_is_no_human() -> None:
    """Music comes back, and what is not heard as speech between its pieces is none either."""
    scene = waiting(ServerPlan(fallback=(FallbackStep("reconnect", 30.0),)))
    scene.do(said(SpeechStarted("u1", 0)))
    seconds(scene, 2, VOICE)
    scene.do(closed(1006), SessionReady("sess_2"))
    seconds(scene, 3, MUSIC)
    seconds(scene, 2, VOICE)
    assert not spoken_to(seconds(scene, 10, SILENCE))


def test_the_wait_has_an_end() -> None:
    """The call ends, with the reason."""
    scene = waiting()
    seconds(scene, 299, MUSIC)
    assert scene.record.ending is None
    seconds(scene, 2, MUSIC)
    scene.do(OUR_END)
    assert scene.ending == ("gateway", "machine_detected", 200)
    assert scene.record.content.hold_waits[0].ended == "timeout"


@pytest.mark.parametrize("by_operator", [True, False])
def test_a_session_that_listens_hears_the_call_that_is_joined(by_operator: bool) -> None:
    """The operator transfers a call that waits, or nobody answers in time: the wait is over."""
    anna = Destination("anna", "sip:2@pbx", "bridge", ring_timeout=20)
    tools = ToolsPlan(transfer=TransferPlan((anna,), listen=True))
    plan = replace(PLAN, max_wait=20.0, transfer_to="anna")
    scene = up(hold_wait=plan, tools=tools, listening={"tools": []})
    seconds(scene, 10 if by_operator else 25, MUSIC)
    if by_operator:
        scene.do(ToolRequest(OperatorTransfer("anna")))
    assert "hear" not in scene.seen
    assert "hear" in scene.do(BLegAnswered())
    assert scene.state is State.BRIDGED
    assert {"withhold", "create"}.isdisjoint([*seconds(scene, 20, MUSIC), *scene.do(key("1"))])
    (wait,) = scene.record.content.hold_waits
    assert wait.ended == ("transfer" if by_operator else "timeout")

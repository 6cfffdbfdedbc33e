# SPDX-License-Identifier: GPL-2.0-or-later
"""A bad line is told to the model; the agent waits in a queue without talking to its music."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call.inputs import (
    BLegAnswered,
    CallerLevel,
    Input,
    LineQuality,
    SessionReady,
    SoundHeard,
    StandbyReady,
    ToolRequest,
)
from gateway.call.plan import (
    CallPlan,
    FallbackStep,
    HoldKey,
    HoldWaitPlan,
    LimitsPlan,
    LinePlan,
    ServerPlan,
    ToolsPlan,
)
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import Destination, OperatorTransfer, TransferPlan
from gateway.config import ConfigError
from gateway.dialplan import load_dialplan
from gateway.dialplan.route_sections import ANNOUNCEMENTS
from gateway.realtime.events import InputTranscribed, SpeechStarted, SpeechStopped
from tests.support.call_scene import (
    ACK,
    OUR_END,
    UP,
    Scene,
    audio,
    closed,
    created,
    done,
    key,
    said,
)

GOOD = LineQuality("to_caller", 0.5, 8.0, 4.3)
LOSSY = replace(GOOD, loss_percent=12.4)
JITTERY = replace(GOOD, side="from_caller", jitter_ms=90.0)
POOR = replace(GOOD, mos=2.4)
BAD = "item The telephone line is bad: "
HINT = "Keep to short sentences, speak slowly, and repeat numbers and names."


def up(ends: float | None = None, **plan: Any) -> Scene:
    scene = Scene(CallPlan("r", Codec.PCMU, limits=LimitsPlan(rtp_timeout=0), **plan))
    scene.do(replace(UP, seconds_left=ends), ACK)
    return scene


def seconds(scene: Scene, count: int, *happenings: Input) -> list[str]:
    """The same in each of so many seconds; returns what was done."""
    return [one for _ in range(count) for one in scene.at(scene.now + 1, *happenings)]


# ---- the line


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        (LOSSY, f"the caller hears you with gaps (12 % lost). {HINT}"),
        (POOR, f"the caller hears you with gaps (a MOS of 2.4). {HINT}"),
        (
            JITTERY,
            "you hear the caller with gaps or too softly (jitter of 90 ms). "
            f"Ask again what you are not sure of. {HINT}",
        ),
    ],
)
def test_a_bad_line_is_told_once(quality: LineQuality, words: str) -> None:
    """After five seconds beyond a limit; no response is requested."""
    scene = up(line=LinePlan(True))
    assert seconds(scene, 5, quality) == []
    assert seconds(scene, 20, quality) == [BAD + words]
    assert scene.requests == []
    (bad,) = scene.record.summary()["bad_line"]
    assert (bad["side"], bad["told"], bad["recovered_ms"]) == (quality.side, True, None)
    assert [note.event for note in scene.notes if "line" in note.event] == ["line_bad"]


def test_a_line_that_recovers_is_told_once_more() -> None:
    """A bad second begins the wait anew; the second bad time is recorded, and not told."""
    scene = up(line=LinePlan(True))
    seconds(scene, 6, LOSSY)
    assert seconds(scene, 9, GOOD) == []
    assert seconds(scene, 1, LOSSY) == []
    assert seconds(scene, 10, GOOD) == []
    assert seconds(scene, 1, GOOD) == ["item The telephone line is good again. Speak as usual."]
    assert seconds(scene, 30, LOSSY) == seconds(scene, 30, GOOD) == []
    kept = scene.record.summary()["bad_line"]
    assert [(one["told"], one["recovered_ms"] is not None) for one in kept] == [
        (True, True),
        (False, True),
    ]


def test_one_good_second_is_no_bad_line() -> None:
    """What comes and goes is not told; nor is anything without [route.line]."""
    scene = up(line=LinePlan(True))
    for _ in range(8):
        assert seconds(scene, 4, LOSSY) == seconds(scene, 1, GOOD) == []
    off = up(line=LinePlan(True, max_loss=0, min_mos=0, max_jitter=0))
    assert seconds(off, 20, LOSSY, POOR, JITTERY) == []


def test_soft_speech_is_told_and_silence_is_not() -> None:
    """Only seconds in which the server hears the caller speak are measured."""
    scene = up(line=LinePlan(True, min_level=-40.0, recovered=""))
    assert seconds(scene, 20, CallerLevel(-60.0)) == []
    told = []
    for turn in range(3):
        scene.do(said(SpeechStarted(f"u{turn}", 0)))
        told += seconds(scene, 2, CallerLevel(-47.0))
        scene.do(said(SpeechStopped(f"u{turn}", 0)))
        seconds(scene, 3, CallerLevel(-70.0))
    (words,) = told
    assert "(the caller's speech has -47 dBFS)" in words
    scene.do(said(SpeechStarted("u9", 0)))
    assert seconds(scene, 12, CallerLevel(-20.0)) == []
    assert "line_recovered" in scene.events


@pytest.mark.parametrize("handed_over", [True, False])
def test_a_new_session_hears_nobody_speak_yet(handed_over: bool) -> None:
    """Speech whose end a lost session did not tell; silence after it is not soft speech."""
    again = ServerPlan(fallback=(FallbackStep("reconnect", 10.0),))
    scene = up(100.0, line=LinePlan(True, min_level=-40.0), server=again)
    if handed_over:
        scene.at(50.0, said(SpeechStarted("u1", 0)), StandbyReady("sess_2"))
        assert "take over" in scene.at(98.0)
    else:
        scene.do(said(SpeechStarted("u1", 0)), closed(1006), SessionReady("sess_2"))
    assert seconds(scene, 20, CallerLevel(-70.0)) == []
    assert "line_bad" not in scene.events


# ---- waiting

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


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('hold_wait.enabled = true\nmachine_detection.music = "hangup"', "machine_detection.music"),
        (
            'hold_wait.enabled = true\nsession.audio.input.turn_detection = "null"',
            "session.audio.input.turn_detection",
        ),
        ('hold_wait.transfer_to = "nobody"', "hold_wait.transfer_to"),
        ('[[route.hold_wait.key]]\nwords = "1"\ndigits = "one"', "hold_wait.key"),
        ("line.min_level = 3.0", "line.min_level"),
        ("line.max_loss = 101", "line.max_loss"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "a.toml").write_text(f'[[route]]\nname = "a"\n{text}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(place)):
        load_dialplan(tmp_path, {})

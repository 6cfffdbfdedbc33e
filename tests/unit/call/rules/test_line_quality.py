# SPDX-License-Identifier: GPL-2.0-or-later
"""A bad line is told to the model, and that it is good again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call.inputs import CallerLevel, Input, LineQuality, SessionReady, StandbyReady
from gateway.call.plan import CallPlan, FallbackStep, LimitsPlan, LinePlan, ServerPlan
from gateway.realtime.events import SpeechStarted, SpeechStopped
from tests.support.call_scene import ACK, UP, Scene, closed, said

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

# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a caller waits for the agent, and its parts, on a virtual clock."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.call_record import ResponseTime
from gateway.call.plan import CallPlan, InterruptionPlan
from gateway.realtime.events import InputCommitted, InputTranscribed, SpeechStarted, SpeechStopped
from tests.support.call_scene import Scene, audio, audio_done, created, done, said

STARTED = said(SpeechStarted("u", 0))
STOPPED = said(SpeechStopped("u", 1000))
COMMITTED = said(InputCommitted("u"))
PLAYING = inputs.PlayoutStarted()
ADAPTIVE = InterruptionPlan(mode="adaptive", by_gateway=True)


def heard(until: float | None, since: float | None = None) -> inputs.CallerHeard:
    """The caller was loud until then; round trips of 40 ms to them and 20 ms to the server."""
    return inputs.CallerHeard(since, until, 40.0, 20.0)


def up() -> Scene:
    return Scene().up()


def wait(until: float | None, *, stopped: inputs.Input = STOPPED) -> ResponseTime:
    """Of a turn that the server ends at 10 s, with audio from 10.6 s that is played at 10.62 s."""
    scene = up()
    scene.at(10.0, heard(until), stopped)
    scene.at(10.1, created("r1"))
    scene.at(10.6, audio("r1", "i1", 200))
    scene.at(10.62, PLAYING)
    (found,) = scene.record.response_times
    return found


def test_the_parts_of_a_wait() -> None:
    found = asdict(wait(9.4))
    assert found.pop("at_ms") == 10620.0
    parts = {"network": 60.0, "endpointing": 580.0, "model": 600.0, "playout": 20.0}
    assert found == {"ms": 1220.0, **parts}
    on_top = 40.0  # what the caller waits longer than the gateway: the way to them and back
    assert found["ms"] + on_top == sum(parts.values())


@pytest.mark.parametrize("until", [None, -5.0, 11.0])
def test_a_turn_of_which_nothing_was_loud_ends_with_the_servers_word(until: float | None) -> None:
    assert wait(until).ms == 620.0


def test_a_server_that_tells_only_of_commits() -> None:
    assert wait(9.4, stopped=COMMITTED).ms == 1220.0


def test_a_commit_after_the_end_of_speech_begins_nothing() -> None:
    scene = up()
    scene.at(10.0, heard(9.5), STARTED, STOPPED, created("r1"), audio("r1", "i1", 200), PLAYING)
    scene.at(10.1, COMMITTED, done("r1"))
    scene.at(20.0, created("r2"), audio("r2", "i2", 200), PLAYING)
    assert [one.ms for one in scene.record.response_times] == [500.0]


def test_speech_before_the_answer_begins_the_wait_anew() -> None:
    scene = up()
    scene.at(10.0, heard(9.5), STOPPED, created("r1"))
    scene.at(10.2, STARTED)
    scene.at(11.0, heard(10.9), STOPPED)
    scene.at(11.5, created("r2"), audio("r2", "i2", 200), PLAYING)
    assert [one.ms for one in scene.record.response_times] == [600.0]


@pytest.mark.parametrize("stops", [True, False], ids=["speech_stopped", "only commits"])
@pytest.mark.parametrize("later", [True, False])
def test_nobody_waits_for_an_answer_to_a_false_interruption(later: bool, stops: bool) -> None:
    """But for one to a turn that was over before it was known to be false (``later``)."""
    listening = replace(ADAPTIVE, transcribed=True, backchannel_phrases=frozenset({"mhm"}))
    scene = Scene(CallPlan("r", Codec.PCMU, interruptions=listening)).up()
    scene.do(created("r1"), audio("r1", "i1", 4000), audio_done("r1", "i1"), done("r1"))
    scene.listen(1000)
    over = [COMMITTED] if not stops else [STOPPED, COMMITTED]
    scene.do(STARTED, *over)
    if later:
        scene.at(1.5, said(SpeechStarted("u2", 1500)), said(InputCommitted("u2")))
        scene.at(1.5, *([said(SpeechStopped("u2", 2500))] if stops else []))
    scene.do(said(InputTranscribed("u", "Mhm.")))
    if later:
        scene.do(said(InputTranscribed("u2", "And tomorrow?")))
    scene.listen(5000)
    scene.do(created("r2"), audio("r2", "i2", 200))
    scene.listen(100)
    assert len(scene.record.response_times) == (1 if later else 0)


def test_nobody_waits_while_other_audio_is_heard() -> None:
    never = InterruptionPlan("disabled", by_gateway=True)
    scene = Scene(CallPlan("route", Codec.PCMU, interruptions=never)).up()
    scene.at(10.0, created("r1"), audio("r1", "i1", 5000), audio_done("r1", "i1"), done("r1"))
    scene.at(10.1, PLAYING)
    scene.at(11.0, heard(10.9), STARTED, STOPPED)
    scene.at(11.2, created("r2"), audio("r2", "i2", 500))
    scene.at(12.0, PLAYING)
    assert scene.record.response_times == []


@pytest.mark.parametrize(
    ("plan", "after"), [(InterruptionPlan(), 250.0), (ADAPTIVE, 250.0)], ids=["server", "adaptive"]
)
def test_how_long_an_interrupting_caller_hears_the_agent(
    plan: InterruptionPlan, after: float
) -> None:
    scene = Scene(CallPlan("route", Codec.PCMU, interruptions=plan)).up()
    scene.at(10.0, created("r1"), audio("r1", "i1", 5000))
    scene.listen(500)
    scene.at(11.0, heard(11.0, since=10.75), STARTED)
    scene.at(14.0)
    (cut,) = scene.record.actions.interruptions
    assert (cut.trigger, cut.after_ms) == ("speech", after)

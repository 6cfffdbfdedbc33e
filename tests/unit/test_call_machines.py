"""A caller that is a machine, by its turns; and people who are none."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from call_scene import ACK, OUR_END, UP, Scene, said

from gateway.audio.g711 import Codec
from gateway.call.plan import CallPlan, MachinePlan
from gateway.config import ConfigError
from gateway.dialplan import load_dialplan
from gateway.dialplan.machines import VOICEMAIL
from gateway.realtime.events import InputTranscribed, SpeechStarted, SpeechStopped

KINDS = ("music", "voicemail", "bot")


def scene_with(action: str) -> Scene:
    """A call that is up, every kind of machine being looked for."""
    plan = MachinePlan(
        dict.fromkeys(KINDS, action),
        dict.fromkeys(KINDS, "Goodbye."),
        voicemail_words=tuple(re.compile(one) for one in VOICEMAIL),
    )
    scene = Scene(CallPlan("r", Codec.PCMU, machines=plan, rtp_timeout=0))
    scene.do(UP, ACK)
    return scene


def turn(scene: Scene, number: int, seconds: float, words: str = "") -> list[str]:
    """The caller speaks; returns what was done about it."""
    start = round(scene.now * 1000)
    item = f"u{number}"
    seen = scene.at(scene.now + 1, said(SpeechStarted(item, start)))
    end = start + round(seconds * 1000)
    seen += scene.at(scene.now + seconds, said(SpeechStopped(item, end)))
    return seen + (scene.do(said(InputTranscribed(item, words))) if words else [])


def found(scene: Scene) -> list[tuple[str, str]]:
    """Kinds and evidence, in the order of the timeline."""
    notes = [note.fields for note in scene.notes if note.event == "machine"]
    return [(fields["kind"], fields["why"]) for fields in notes]


def music(scene: Scene) -> None:
    turn(scene, 1, 2)
    scene.at(scene.now + 1, said(SpeechStarted("u2", 4000)))
    scene.at(scene.now + 19.9)
    assert found(scene) == []
    scene.at(scene.now + 0.2)


def long_greeting(scene: Scene) -> None:
    turn(scene, 1, 9.5)


def words_of_voicemail(scene: Scene) -> None:
    turn(scene, 1, 4, "Hi! Please leave a message after the tone.")


def same_words(scene: Scene) -> None:
    for number in range(3):
        turn(scene, number, 2 + number, "How can I help you?")


def same_lengths(scene: Scene) -> None:
    for number in range(12):
        turn(scene, number, 2.0 + 0.02 * (number % 3))


CASES = [
    (music, "music", "sound without a pause for 20 s"),
    (long_greeting, "voicemail", "a first turn of 9.5 s"),
    (words_of_voicemail, "voicemail", "said 'leave a message'"),
    (same_words, "bot", "said the same 3 times"),
    (same_lengths, "bot", "12 turns of 2.02 s each"),
]


@pytest.mark.parametrize(("happens", "kind", "why"), CASES)
def test_what_is_found_and_why(happens, kind, why) -> None:  # type: ignore[no-untyped-def]
    scene = scene_with("note")
    happens(scene)
    assert found(scene) == [(kind, why)]
    marks = [mark for mark in scene.record.timeline if mark["event"] == "machine"]
    assert len(marks) == 1, "and it is in the record"
    assert scene.state.name == "TALKING"


@pytest.mark.parametrize(("happens", "kind", "why"), CASES)
def test_the_call_ends_for_it(happens, kind, why) -> None:  # type: ignore[no-untyped-def]
    scene = scene_with("hang_up")
    happens(scene)
    scene.do(OUR_END)
    assert scene.ending == ("gateway", "machine", 200)


def test_a_message_is_left() -> None:
    scene = scene_with("say")
    words_of_voicemail(scene)
    assert scene.requests[-1].response is not None
    assert scene.requests[-1].response["instructions"] == "Say exactly: Goodbye."


def test_off_looks_for_nothing() -> None:
    scene = scene_with("off")
    for happens, _, _ in CASES:
        happens(scene)
    assert found(scene) == []


@pytest.mark.parametrize("seed", range(50))
def test_people_are_no_machines(seed: int) -> None:
    """Turns of a human's lengths, short words said again and again, and a long story."""
    dice = random.Random(seed)
    scene = scene_with("note")
    for number in range(60):
        words = dice.choice(["Yes.", "Yes please.", "No.", f"I want room {number}."])
        turn(scene, number, min(dice.lognormvariate(0.5, 0.6), 7.5 if number == 0 else 15), words)
    assert found(scene) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('machines.bot = "transfer"', "machines.bot"),
        ('machines.bot = "note"\nsession.audio.input.turn_detection = "null"', "session"),
        ("idle.seconds = 5\nsession.audio.input.turn_detection.idle_timeout_ms = 6000", "session"),
        ("machines.turns = 2", "machines.turns"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "a.toml").write_text(f'[[route]]\nname = "a"\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        load_dialplan(tmp_path)
    assert caught.value.problems[0].key.startswith(f"route[0].{key}")

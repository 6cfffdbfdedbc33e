# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller that is a machine, by its turns; and people who are none."""

from __future__ import annotations

import random
import re

import pytest

from gateway.audio import Codec
from gateway.call.inputs import BeepHeard, HoldChanged, SoundHeard
from gateway.call.plan import CallPlan, LimitsPlan, MachineDetectionPlan
from gateway.dialplan.route_sections import VOICEMAIL
from gateway.realtime.events import InputTranscribed, SpeechStarted, SpeechStopped
from tests.support.call_scene import ACK, OUR_END, UP, Scene, created, done, said

BEEP = BeepHeard(1000.0, 400)
KINDS = ("music", "voicemail", "bot")


def scene_with(action: str, beep_timeout: float = 0.0) -> Scene:
    """A call that is up, every kind of machine being looked for."""
    plan = MachineDetectionPlan(
        dict.fromkeys(KINDS, action),
        dict.fromkeys(KINDS, "Goodbye."),
        voicemail_patterns=tuple(re.compile(one) for one in VOICEMAIL),
        beep_timeout=beep_timeout,
    )
    scene = Scene(
        CallPlan("r", Codec.PCMU, machine_detection=plan, limits=LimitsPlan(rtp_timeout=0))
    )
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


def hear(scene: Scene, held: float, *, seconds: int, change: float = 0.2) -> None:
    """So much of each second of the caller's sound is of tones that stand."""
    for _ in range(seconds):
        scene.at(scene.now + 1, SoundHeard(1.0, held, change))


def found(scene: Scene) -> list[tuple[str, str]]:
    """Kinds and evidence, in the order of the timeline."""
    notes = [note.fields for note in scene.notes if note.event == "machine_detected"]
    return [(fields["kind"], fields["why"]) for fields in notes]


def music(scene: Scene) -> None:
    """Somebody sings to it."""
    turn(scene, 1, 2)
    scene.at(scene.now + 1, said(SpeechStarted("u2", 4000)))
    hear(scene, 0.5, seconds=19)
    scene.at(scene.now + 0.9)
    assert found(scene) == []
    scene.at(scene.now + 0.2)


def long_greeting(scene: Scene) -> None:
    turn(scene, 1, 9.5)


def words_of_voicemail(scene: Scene) -> None:
    turn(scene, 1, 4, "Hi! Please leave a message after the tone.")


def same_words(scene: Scene) -> None:
    for number in range(3):
        turn(scene, number, 2 + 0.03 * number, "How can I help you?")


def same_words_for_long(scene: Scene) -> None:
    for number in range(6):
        turn(scene, number, 2 + number / 2, "How can I help you?")


def same_lengths(scene: Scene) -> None:
    for number in range(12):
        turn(scene, number, 2.0 + 0.02 * (number % 3))


def sound_of_music(scene: Scene) -> None:
    """Music that the server hears no speech in; a crackle in between ends it not."""
    hear(scene, 0.9, seconds=10)
    hear(scene, 0.1, seconds=1)
    hear(scene, 0.9, seconds=9)
    assert found(scene) == []
    hear(scene, 0.9, seconds=1)


def beep_after_greeting(scene: Scene) -> None:
    turn(scene, 1, 3.2)
    scene.at(scene.now + 0.8, BEEP)


CASES = [
    (sound_of_music, "music", "20 s of music's sound, standing tones in 90% of it"),
    (beep_after_greeting, "voicemail", "a beep after the first turn, 1000 Hz for 400 ms"),
    (music, "music", "sound without a pause for 20 s, standing tones in 50% of it"),
    (long_greeting, "voicemail", "a first turn of 9.5 s"),
    (words_of_voicemail, "voicemail", "said 'leave a message'"),
    (same_words, "bot", "said the same 3 times, each time as long"),
    (same_words_for_long, "bot", "said the same 6 times"),
    (same_lengths, "bot", "12 turns of 2.02 s each"),
]


@pytest.mark.parametrize("first", [True, False])
def test_without_item_ids_the_first_transcript_is_of_the_first_turn(first: bool) -> None:
    scene = scene_with("log")
    words = ("He is out. Do you want to leave a message?", "Hello, this is Anna.")
    for text in words if first else reversed(words):
        scene.at(scene.now + 1, said(SpeechStarted("", None)))
        scene.at(scene.now + 2, said(SpeechStopped("", None)))
        scene.do(said(InputTranscribed("", text)))
    assert [kind for kind, _why in found(scene)] == (["voicemail"] if first else [])


@pytest.mark.parametrize(("happens", "kind", "why"), CASES)
def test_what_is_found_and_why(happens, kind, why) -> None:  # type: ignore[no-untyped-def]
    scene = scene_with("log")
    happens(scene)
    assert found(scene) == [(kind, why)]
    marks = [mark for mark in scene.record.timeline if mark["event"] == "machine_detected"]
    assert len(marks) == 1, "and it is in the record"
    (kept,) = scene.record.summary()["machine_detection"]
    assert (kept["kind"], kept["action"], kept["why"]) == (kind, "log", why)
    assert scene.state.name == "TALKING"


@pytest.mark.parametrize(("happens", "kind", "why"), CASES)
def test_the_call_ends_for_it(happens, kind, why) -> None:  # type: ignore[no-untyped-def]
    scene = scene_with("hangup")
    happens(scene)
    scene.do(OUR_END)
    assert scene.ending == ("gateway", "machine_detected", 200)


def test_a_message_is_left() -> None:
    scene = scene_with("leave_message")
    words_of_voicemail(scene)
    assert scene.requests[-1].response is not None
    assert scene.requests[-1].response["instructions"] == "Say exactly: Goodbye."


def last_words(scene: Scene) -> list[str]:
    """What was asked to be said."""
    asked = [create.response or {} for create in scene.requests]
    return [str(one["instructions"]) for one in asked if "instructions" in one]


def beep_in_record(scene: Scene) -> str:
    (kept,) = scene.record.summary()["machine_detection"]
    return str(kept["beep"])


def test_a_message_waits_for_the_beep() -> None:
    """A greeting that goes on is waited for; what the server answers to it is cancelled."""
    scene = scene_with("leave_message", beep_timeout=5)
    words_of_voicemail(scene)
    assert "cancel r1" in scene.do(created("r1"))
    scene.do(done("r1", "cancelled"))
    scene.at(scene.now + 3)
    turn(scene, 2, 6)
    assert last_words(scene) == []
    scene.at(scene.now + 1.5, BEEP)
    assert last_words(scene) == ["Say exactly: Goodbye."]
    assert beep_in_record(scene) == "1000 Hz for 400 ms"
    assert [(kind, why) for kind, why in found(scene)] == [("voicemail", "said 'leave a message'")]


def test_a_message_is_said_without_a_beep() -> None:
    scene = scene_with("leave_message", beep_timeout=5)
    words_of_voicemail(scene)
    scene.at(scene.now + 4.9)
    assert last_words(scene) == []
    scene.at(scene.now + 0.2)
    assert last_words(scene) == ["Say exactly: Goodbye."]
    assert beep_in_record(scene) == "none came"


def test_a_greeting_without_end_is_not_waited_for_for_ever() -> None:
    scene = scene_with("leave_message", beep_timeout=5)
    words_of_voicemail(scene)
    scene.at(scene.now + 1, said(SpeechStarted("u2", 0)))
    scene.at(scene.now + 58)
    assert last_words(scene) == []
    scene.at(scene.now + 1.5)
    assert last_words(scene) == ["Say exactly: Goodbye."]


def test_a_beep_that_was_before_the_words_is_enough() -> None:
    """The transcript comes when the box records already."""
    scene = scene_with("leave_message", beep_timeout=5)
    turn(scene, 1, 2)
    scene.at(scene.now + 0.3, BEEP)
    assert last_words(scene) == []
    scene.at(scene.now + 1, said(InputTranscribed("u1", "After the tone, please.")))
    assert last_words(scene) == ["Say exactly: Goodbye."]
    assert beep_in_record(scene) == "1000 Hz for 400 ms"


@pytest.mark.parametrize("before", [0.5, 2.0])
def test_a_beep_alone_is_no_machine(before: float) -> None:
    """After a short word, before all words, or in the middle of a conversation."""
    scene = scene_with("log")
    scene.at(scene.now + 1, BEEP)
    turn(scene, 1, before)
    scene.do(BEEP)
    turn(scene, 2, 3)
    scene.at(scene.now + 1, BEEP)
    turn(scene, 3, 5)
    scene.do(BEEP)
    assert found(scene) == []


def somebody_speaks(scene: Scene) -> None:
    hear(scene, 0.9, seconds=19)
    hear(scene, 0.3, seconds=2)
    hear(scene, 0.9, seconds=19)


def a_hum(scene: Scene) -> None:
    hear(scene, 1.0, seconds=60, change=0.001)


def music_on_hold(scene: Scene) -> None:
    hear(scene, 0.9, seconds=19)
    scene.do(HoldChanged(True))
    scene.do(HoldChanged(False))
    hear(scene, 0.9, seconds=19)


def a_long_story(scene: Scene) -> None:
    """The server hears no pause in it, for a minute and a half."""
    turn(scene, 1, 2)
    scene.at(scene.now + 1, said(SpeechStarted("u2", 4000)))
    hear(scene, 0.35, seconds=90)


def noise_around(scene: Scene) -> None:
    turn(scene, 1, 2)
    scene.at(scene.now + 1, said(SpeechStarted("u2", 4000)))
    hear(scene, 0.0, seconds=90)


def no_sound_at_all(scene: Scene) -> None:
    turn(scene, 1, 2)
    scene.at(scene.now + 1, said(SpeechStarted("u2", 4000)))
    scene.at(scene.now + 90)


def wants_a_human(scene: Scene) -> None:
    """Again and again, louder and slower."""
    for number, seconds in enumerate((1.9, 2.2, 2.6, 2.1)):
        turn(scene, number, seconds, "I want to talk to a human!")


def yes_a_dozen_times(scene: Scene) -> None:
    """Half a second each, with the server's 0.8 s of silence."""
    for number in range(24):
        turn(scene, number, 1.3 + 0.05 * (number % 3), "Yes.")


@pytest.mark.parametrize(
    "happens",
    [
        somebody_speaks,
        a_hum,
        music_on_hold,
        a_long_story,
        noise_around,
        no_sound_at_all,
        wants_a_human,
        yes_a_dozen_times,
    ],
)
def test_people_and_their_surroundings(happens) -> None:  # type: ignore[no-untyped-def]
    scene = scene_with("log")
    happens(scene)
    assert found(scene) == []


def test_off_looks_for_nothing() -> None:
    scene = scene_with("off")
    for happens, _, _ in CASES:
        happens(scene)
    assert found(scene) == []


@pytest.mark.parametrize("seed", range(50))
def test_people_are_no_machines(seed: int) -> None:
    """Turns of a human's lengths, short words said again and again, and a long story."""
    dice = random.Random(seed)
    scene = scene_with("log")
    for number in range(60):
        words = dice.choice(["Yes.", "Yes please.", "No.", f"I want room {number}."])
        turn(scene, number, min(dice.lognormvariate(0.5, 0.6), 7.5 if number == 0 else 15), words)
    assert found(scene) == []

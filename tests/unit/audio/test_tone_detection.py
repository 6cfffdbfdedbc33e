# SPDX-License-Identifier: GPL-2.0-or-later
"""The caller's sound: music and beeps are told from speech, noise and the network's tones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import soxr

from gateway.audio import FRAME_BYTES, G711, Codec
from gateway.audio.tone_detection import Beep, SecondOfAudio, ToneAnalyzer
from gateway.call.inputs import SoundHeard
from gateway.call.rules.machine_detection import MusicOnHoldDetector
from gateway.devtools.speech import synthesise
from tests.support.made_sounds import Array, g711, melody, tone

TEXT = (
    "I would like to book a room for two nights, from the fourteenth of May. We are two adults and "
    "a child, and we would like a room with a balcony if that is possible. Last time we stayed "
    "with you we had a very noisy room, and I really would not want to have that again. Could you "
    "also tell me what breakfast costs, and whether there is parking for a van."
)
VOICES = ("marin", "alloy", "cedar", "shimmer", "ash")


def speech(voice: str, speed: float = 1.0, text: str = TEXT) -> Array:
    pcm, rate = synthesise(text, voice, speed)
    made: Array = soxr.resample(np.frombuffer(pcm, "<i2") / 32768, rate, 8000) * 0.7
    return made


def noise(seconds: float, level: float) -> Array:
    return level * np.random.default_rng(7).standard_normal(round(seconds * 8000))


def noisy(voice: str, level: float) -> Array:
    clean = speech(voice)
    return clean + noise(len(clean) / 8000, level)


def babble() -> Array:
    voices = [np.roll(speech(voice), n * 7000)[:120_000] for n, voice in enumerate(VOICES)]
    crowd: Array = np.sum(voices, axis=0) / 2
    return crowd


def hum() -> Array:
    return tone(100, 20_000, 0.02) + tone(300, 20_000, 0.01)


def humming() -> Array:
    clean = speech("marin")[:160_000]
    return clean + hum()[: len(clean)]


def engine() -> Array:
    deep = np.cumsum(noise(20, 0.01))
    deep -= np.convolve(deep, np.ones(200) / 200, "same")
    engine: Array = 0.2 * deep / np.abs(deep).max()
    return engine


def busy_tone() -> Array:
    return np.tile(np.concatenate((tone(425, 480), np.zeros(3840))), 20)


def ringing() -> Array:
    return np.tile(np.concatenate((tone(425, 1000), np.zeros(32_000))), 4)


def heard(samples: Array, codec: Codec = Codec.PCMU) -> list[SecondOfAudio | Beep]:
    """What is found when it comes frame by frame."""
    audio = g711(samples, codec)
    listener = ToneAnalyzer(codec)
    frames = range(0, len(audio) - FRAME_BYTES + 1, FRAME_BYTES)
    return [one for at in frames for one in listener.feed(audio[at : at + FRAME_BYTES])]


def beeps(samples: Array, codec: Codec = Codec.PCMU) -> list[Beep]:
    return [one for one in heard(samples, codec) if isinstance(one, Beep)]


def music_seconds(samples: Array, codec: Codec = Codec.PCMU) -> int:
    """The most seconds for which it would be taken for music; 0 for less than two."""
    seconds = [one for one in heard(samples, codec) if isinstance(one, SecondOfAudio)]
    assert len(seconds) >= 10
    for wanted in range(len(seconds), 1, -1):
        watch = MusicOnHoldDetector()
        for one in seconds:
            if watch.add_second(SoundHeard(one.sounding, one.held, one.change), wanted):
                return wanted
    return 0


MUSIC = {
    "band": lambda: melody(20),
    "piano": lambda: melody(20, beat=0.3, decay=4, drums=False, chords=False),
    "slow": lambda: melody(20, beat=0.6, decay=1, drums=False),
    "quick": lambda: melody(20, beat=0.15),
    "softer": lambda: melody(20) * 0.3,
    "on a noisy line": lambda: melody(20) + noise(20, 0.003),
}
OTHERS: dict[str, Callable[[], Array]] = {
    **{f"speech of {voice}": partial(speech, voice) for voice in VOICES},
    "fast speech": lambda: speech("coral", 1.5),
    "speech in noise": lambda: noisy("marin", 0.008),
    "speech in much noise": lambda: noisy("cedar", 0.03),
    "a crowd": babble,
    "noise": lambda: noise(20, 0.02),
    "an engine": engine,
    "hum": hum,
    "speech over hum": humming,
    "busy": busy_tone,
    "ringing": ringing,
    "dial tone": lambda: tone(425, 20_000, 0.1),
    "silence": lambda: np.zeros(160_000),
}


@pytest.mark.parametrize("codec", list(G711))
@pytest.mark.parametrize("make", MUSIC.values(), ids=MUSIC.keys())
def test_music_is_music(make: Callable[[], Array], codec: Codec) -> None:
    assert music_seconds(make(), codec) >= 18


@pytest.mark.parametrize("codec", list(G711))
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_nothing_else_is(make: Callable[[], Array], codec: Codec) -> None:
    """Not even for a quarter of the shortest time that is sensible."""
    assert music_seconds(make(), codec) <= 3


def test_somebody_speaks_after_the_music() -> None:
    """Six seconds of music, somebody's sentence, six seconds more: not ten of music."""
    sentence = speech("marin", text="Sorry for the wait, I am looking for your booking right now.")
    assert 5 <= music_seconds(np.concatenate((melody(6), sentence, melody(6)))) <= 7


def test_a_radio_behind_somebody() -> None:
    """Who speaks, then listens for twenty seconds; the radio is 15 dB softer than their voice."""
    voice = speech("marin")
    call = np.concatenate((voice[:80_000], np.zeros(160_000), voice[80_000:]))
    radio = melody(len(call) / 8000)[: len(call)]
    level = np.std(voice) / np.std(radio) * 10 ** (-15 / 20)
    assert music_seconds(call + radio * level) < 10


def test_words_over_music_are_no_voice_alone() -> None:
    """As loud as each other: more standing tones than any voice has, so it counts as music where
    the server hears no pause in it; a voice alone does not, however slow."""
    voice = speech("alloy")[:160_000]
    music = melody(len(voice) / 8000)[: len(voice)]
    mixed = _weighed(music / np.std(music) * 0.05 + voice / np.std(voice) * 0.05)
    assert mixed > 0.45
    for name in VOICES:
        assert _weighed(speech(name, 0.7)) == 0


def _weighed(samples: Array) -> float:
    watch = MusicOnHoldDetector()
    for one in heard(samples):
        if isinstance(one, SecondOfAudio):
            watch.add_second(SoundHeard(one.sounding, one.held, one.change), 1000)
    return watch.mixed


@pytest.mark.parametrize(
    ("hz", "ms", "level"),
    [
        (1000, 400, 0.2),
        (440, 1000, 0.1),
        (1400, 200, 0.3),
        (800, 150, 0.1),
        (425, 250, 0.05),
        (2000, 300, 0.05),
    ],
)
@pytest.mark.parametrize("line_noise", [0.0, 0.002, 0.005])
@pytest.mark.parametrize("codec", list(G711))
def test_a_beep_is_found_once(
    codec: Codec, line_noise: float, hz: int, ms: int, level: float
) -> None:
    before = speech("marin", text="Please leave a message after the tone.")
    samples = np.concatenate((before, np.zeros(4000), tone(hz, ms, level), np.zeros(8000)))
    (beep,) = beeps(samples + noise(len(samples) / 8000, line_noise), codec)
    assert abs(beep.hz - hz) <= 5
    assert abs(beep.ms - ms) <= 40


@pytest.mark.parametrize("codec", list(G711))
@pytest.mark.parametrize(
    "make",
    [make for name, make in (MUSIC | OTHERS).items() if name not in ("busy", "ringing")],
    ids=[name for name in MUSIC | OTHERS if name not in ("busy", "ringing")],
)
def test_nothing_beeps(make: Callable[[], Array], codec: Codec) -> None:
    assert beeps(make(), codec) == []


@pytest.mark.parametrize(
    ("samples", "count"),
    [
        (busy_tone(), 1),
        (np.concatenate((tone(425, 3000), np.zeros(8000))), 0),
        (np.concatenate((tone(1000, 60), np.zeros(8000))), 0),
        (np.concatenate((tone(697, 300) + tone(1209, 300), np.zeros(8000))), 0),
    ],
    ids=["busy: its first only", "long", "a click", "a key"],
)
def test_other_tones(samples: Array, count: int) -> None:
    assert len(beeps(samples)) == count


def test_what_came_before_is_forgotten() -> None:
    """Half a beep before a hold and half of one after are none, nor is a second made of two."""
    listener = ToneAnalyzer(Codec.PCMU)
    assert listener.feed(g711(tone(1000, 800), Codec.PCMU)) == []
    listener.reset()
    assert listener.feed(b"\xff" * 7000) == []

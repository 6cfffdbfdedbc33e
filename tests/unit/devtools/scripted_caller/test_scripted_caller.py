# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripts of the caller: what is wrong with one is said with file, line and key."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from gateway.audio import FRAME_BYTES, G711, Codec
from gateway.audio.tone_detection import DtmfDetector
from gateway.config.source import ConfigError
from gateway.devtools.demo_scenario import CALLER
from gateway.devtools.scripted_caller import (
    STEPS,
    Digits,
    ExpectEnd,
    Listen,
    Play,
    load_script,
    simple_script,
)
from gateway.devtools.scripted_caller.sound import (
    Clip,
    Hearing,
    SoundError,
    Speech,
    WhiteNoise,
    key_tones,
    level_dbfs,
    read_clip,
    write_sound,
)

ANSWER = '[[step]]\ndo = "wait_answer"\n'


def problems(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_script(file)
    return [str(problem).removeprefix(f"{file}:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "a script needs steps"),
        ("[[steps]]\n" + ANSWER, 1, 'did you mean "step"?'),
        ("[[step]]\n", 1, "missing"),
        ('[[step]]\ndo = "wait_anser"\n', 2, 'did you mean "wait_answer"?'),
        (ANSWER + '[[step]]\ndo = "digits"\nkeys = "4x"\n', 5, "keys"),
        (ANSWER + '[[step]]\ndo = "digits"\n', 3, "missing"),
        (ANSWER + '[[step]]\ndo = "play"\nfile = "a.wav"\nvolume = 3\n', 6, "unknown key"),
        (ANSWER + '[[step]]\ndo = "wait"\nseconds = -1.0\n', 5, "seconds"),
        ('[[step]]\ndo = "wait_speech"\n', 2, 'needs a step do = "wait_answer" before it'),
        (ANSWER + '[[step]]\ndo = "hang_up"\n[[step]]\ndo = "wait"\nseconds = 1.0\n', 6, "after"),
        ("max_seconds = 0.0\n" + ANSWER, 1, "max_seconds"),
        ("[[step]\n", 1, "TOML syntax"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(f"{line}: ")
    assert says in found


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = '[[step]]\ndo = "wait"\nseconds = 0.0\n[[step]]\ndo = "digits"\nkeys = ""\n'
    assert len(problems(tmp_path, text)) == 2


def test_a_file_is_looked_for_beside_the_script(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(ANSWER + '[[step]]\ndo = "play"\nfile = "hello.wav"\n')
    step = load_script(file).steps[1]
    assert isinstance(step, Play)
    assert step.file == tmp_path / "hello.wav"


def test_the_demos_script_is_one(tmp_path: Path) -> None:
    file = tmp_path / "caller.toml"
    file.write_text(CALLER)
    script = load_script(file)
    assert isinstance(script.steps[-1], ExpectEnd)
    assert all(step.note for step in script.steps[1:])


def test_the_short_form_plays_presses_and_listens() -> None:
    script = simple_script(Path("hello.wav"), "42#", 7.5)
    kinds = [type(step) for step in script.steps[1:]]
    assert kinds == [Play, Digits, Listen]
    assert script.misplaced() == []


@pytest.mark.parametrize("codec", list(G711))
def test_raw_sound_passes_byte_for_byte(tmp_path: Path, codec: Codec) -> None:
    ending = {Codec.PCMU: "ulaw", Codec.PCMA: "alaw"}[codec]
    sound = bytes(byte for byte in range(256) if (codec, byte) != (Codec.PCMU, 0x7F))
    file = tmp_path / f"a.{ending}"
    file.write_bytes(sound)
    frames = read_clip(file).frames(codec)
    assert frames.startswith(sound)
    assert len(frames) == 2 * FRAME_BYTES
    assert set(frames[len(sound) :]) == set(codec.silence)
    write_sound(tmp_path / f"b.{ending}", codec, [frames])
    assert (tmp_path / f"b.{ending}").read_bytes() == frames


def wav(file: Path, rate: int, channels: int, seconds: float) -> None:
    at = np.arange(int(rate * seconds)) / rate
    tone = (np.sin(2 * np.pi * 440 * at) * 8000).astype("<i2")
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.repeat(tone, channels).tobytes())


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (44100, 2), (48000, 1)])
def test_a_wav_of_any_rate_keeps_its_length_and_tone(
    tmp_path: Path, rate: int, channels: int
) -> None:
    wav(tmp_path / "a.wav", rate, channels, 0.5)
    clip = read_clip(tmp_path / "a.wav")
    assert clip.ms == pytest.approx(500, abs=1)
    samples = np.frombuffer(clip.data, dtype="<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * 8000 / len(samples) == pytest.approx(440, abs=3)


def test_both_tracks_are_written_left_and_right(tmp_path: Path) -> None:
    left, right = Codec.PCMU.from_linear(b"\x10\x20" * 160), Codec.PCMU.silence * 160
    write_sound(tmp_path / "b.wav", Codec.PCMU, [left, right])
    with wave.open(str(tmp_path / "b.wav")) as stereo:
        samples = np.frombuffer(stereo.readframes(160), dtype="<i2").reshape(-1, 2)
    assert samples[:, 0].tobytes() == Codec.PCMU.to_linear(left)
    assert not samples[:, 1].any()


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all"])
def test_a_file_that_is_no_sound_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.wav"
    file.write_bytes(content)
    with pytest.raises(SoundError, match=r"bad\.wav"):
        read_clip(file)
    with pytest.raises(SoundError, match=r"none\.wav: .*No such file"):
        read_clip(tmp_path / "none.wav")


def test_a_clip_of_one_law_is_recoded_for_the_other() -> None:
    clip = Clip("tone", Codec.PCMU.from_linear(b"\x00\x10" * 160), Codec.PCMU)
    linear = Codec.PCMA.to_linear(clip.frames(Codec.PCMA))
    assert np.frombuffer(linear, dtype="<i2") == pytest.approx(0x1000, rel=0.05)


LOUD, QUIET = -20.0, -60.0


def test_speech_is_more_than_clicks() -> None:
    clicks = Speech(-45.0)
    for _ in range(100):
        for level in (LOUD, QUIET, QUIET, QUIET):
            clicks.add(level)
    assert clicks.ms <= 20
    words = Speech(-45.0)
    for level in [LOUD] * 8 + [QUIET] * 3 + [LOUD] * 4:
        words.add(level)
    assert words.ms == 160 - 30 + 80


def test_quiet_counts_back_from_now_and_spans_join_over_pauses() -> None:
    hearing = Hearing()
    hearing.add([LOUD] * 5 + [QUIET] * 10 + [LOUD] * 5 + [QUIET] * 20)
    assert hearing.quiet_for(400, -45.0)
    assert not hearing.quiet_for(401, -45.0)
    assert [(span.from_ms, span.to_ms) for span in hearing.spans()] == [(0, 400)]
    hearing.add([LOUD])
    assert not hearing.quiet_for(20, -45.0)
    assert len(hearing.spans()) == 2


def test_the_page_about_it_has_every_step_and_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "caller.md").read_text("utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    file = tmp_path / "s.toml"
    file.write_text(example)
    assert len(load_script(file).steps) == 8
    for name, kind in STEPS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
        for key in set(kind.model_fields) - {"do", "note"}:
            assert f"`{key}`" in row, (name, key)


@pytest.mark.parametrize("codec", G711)
def test_keys_in_band_are_heard_by_our_own_detector(codec: Codec) -> None:
    keys = "0123456789*#ABCD"
    assert DtmfDetector(codec).feed(key_tones(keys).frames(codec)) == keys


def test_noise_has_its_level_and_goes_on() -> None:
    noise = WhiteNoise(-40)
    assert level_dbfs(noise.take(16_000)) == pytest.approx(-40, abs=0.5)
    assert len(noise.take(400_000)) == 400_000
    assert level_dbfs(Codec.PCMU.to_linear(noise.under(b"\xff" * 8000, Codec.PCMU))) > -41

# SPDX-License-Identifier: GPL-2.0-or-later
"""Sounds that a caller hears: built in, from a file, or made of words."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.audio import sounds
from gateway.audio.sounds import (
    BUILT_IN,
    MILLIWATT,
    SoundError,
    SpeechError,
    check_wav,
    clip_of,
    pcm24_of,
    samples_of,
    wav_seconds,
    write_wav,
)


def test_sounds_are_there_and_not_too_loud() -> None:
    for name in BUILT_IN:
        samples = samples_of(name)
        assert len(samples) >= 8000
        assert abs(samples).max() <= 0.11 * 32767
        assert bool(samples.any()) is (name != "silence")


@pytest.mark.parametrize(
    ("name", "hertz", "on", "period"),
    [
        ("ringback", {425}, 1.0, 5.0),
        ("ringback-us", {440, 480}, 2.0, 6.0),
        (MILLIWATT, {1004}, 1.0, 1.0),
    ],
)
def test_tones_are_those_of_the_standards(
    name: str, hertz: set[int], on: float, period: float
) -> None:
    samples = samples_of(name).astype(float)
    sounding = samples[: int(on * 8000)]
    strength = np.abs(np.fft.rfft(sounding))
    loudest = sorted(np.argsort(strength)[-len(hertz) :] / on)
    assert loudest == sorted(hertz)
    assert not samples[len(sounding) :].any()
    assert len(samples) == period * 8000


def wav(rate: int = 24000, samples: int = 2400, channels: int = 1, width: int = 2) -> bytes:
    """A WAV file of a sawtooth."""
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setnchannels(channels)
        made.setsampwidth(width)
        made.setframerate(rate)
        made.writeframes(bytes(n % 251 for n in range(samples * channels * width)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"no sound", "is no WAV of PCM samples"),
        (wav()[:20], "is no WAV of PCM samples"),
        (wav(16000), "has 16000 Hz, 1 channel"),
        (wav(8000, channels=2), "8000 Hz, 2 channel"),
        (wav(8000, width=1), "1 channel.s., 8 bit"),
        (wav(8000, 3999), "is shorter than half a second"),
    ],
)
def test_a_file_that_cannot_be_played_as_it_is(
    tmp_path: Path, file: bytes | None, words: str
) -> None:
    path = tmp_path / "a.wav"
    if file is not None:
        path.write_bytes(file)
    with pytest.raises(SoundError, match=words):
        check_wav(path)


def test_a_file_is_measured_and_given_to_a_session_at_its_rate(tmp_path: Path) -> None:
    """A file that was changed is read again."""
    path = tmp_path / "a.wav"
    write_wav(path, samples_of("ringback")[:12000])
    assert wav_seconds(path) == 1.5
    made = np.frombuffer(pcm24_of(path, 1), "<i2")
    assert abs(len(made) - 3 * 12000) <= 3
    assert np.argmax(np.abs(np.fft.rfft(made[:24000]))) == 425
    write_wav(path, samples_of("silence"))
    assert pcm24_of(path, 1) == made.tobytes()
    assert abs(np.frombuffer(pcm24_of(path, 2), "<i2")).max() <= 1


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.subprocess.Process]]:
    """Programs that were started; clips of other tests are not there."""
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def kept(*command: str, **pipes: Any) -> asyncio.subprocess.Process:
        started.append(await start(*command, **pipes))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", kept)
    sounds._made.clear()
    yield started
    sounds._made.clear()


async def fails(command: list[str], started: list[asyncio.subprocess.Process]) -> str:
    """Why there is no clip, once its program is gone."""
    with pytest.raises(SpeechError) as caught:
        await clip_of(command, "secret")
    for one in started:
        await one.communicate()
    return str(caught.value)


def speaker(folder: Path, body: str) -> list[str]:
    """The command of a program with this body, which has the words in ``words``."""
    program = folder / "speak.py"
    head = "import sys, wave, time\nwords = sys.stdin.buffer.read().decode()\n"
    program.write_text(head + body)
    return [sys.executable, "-S", str(program)]


WRITES = f"""
with open({{log!r}}, "a") as log:
    log.write(words + "\\n")
sys.stdout.buffer.write(bytes.fromhex("{wav(12000, 1200).hex()}"))
"""


def test_words_become_a_clip_once(
    tmp_path: Path, programs: list[asyncio.subprocess.Process]
) -> None:
    log = tmp_path / "words"
    command = speaker(tmp_path, WRITES.format(log=str(log)))

    async def made() -> list[bytes]:
        return [await clip_of(command, words) for words in ("Grüß Gott.", "Hello.", "Grüß Gott.")]

    first, _, again = asyncio.run(made())
    assert len(first) == 2 * 2400, "at 24 kHz, twice the samples of the file"
    assert again is first
    assert len(programs) == 2
    assert log.read_text(encoding="utf-8").splitlines() == ["Grüß Gott.", "Hello."]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("sys.exit(3)", "ended with status 3"),
        ("", "no WAV file"),
        (f'sys.stdout.buffer.write(bytes.fromhex("{wav(channels=2).hex()}"))', "16 bits, mono"),
        (f'sys.stdout.buffer.write(bytes.fromhex("{wav(samples=0).hex()}"))', "0 s of audio"),
        (
            "file = wave.open(sys.stdout.buffer, 'wb')\n"
            "file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)\n"
            "file.setnframes(31 * 8000), file.writeframes(bytes(31 * 16000))",
            "31 s of audio",
        ),
        ("while True: sys.stdout.buffer.write(bytes(65536))", "more than 30 s"),
    ],
    ids=["status", "nothing", "stereo", "empty", "long", "endless"],
)
def test_a_program_that_makes_no_speech(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    programs: list[asyncio.subprocess.Process],
    body: str,
    why: str,
) -> None:
    """What is said of the failure has no word of what was to be said."""
    monkeypatch.setattr(sounds, "SPEECH_SECONDS", 60.0)
    said = asyncio.run(fails(speaker(tmp_path, body), programs))
    assert why in said
    assert "secret" not in said
    assert len(sounds._made) == 0


def test_a_program_that_is_not_there_or_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: list[asyncio.subprocess.Process]
) -> None:
    assert "/no/such: No such file" in asyncio.run(fails(["/no/such"], programs))
    monkeypatch.setattr(sounds, "SPEECH_SECONDS", 0.5)
    waits = speaker(tmp_path, "time.sleep(600)")
    assert asyncio.run(fails(waits, programs)) == "no speech within 0.5 s"
    assert [one.returncode for one in programs] in ([], [-signal.SIGKILL])

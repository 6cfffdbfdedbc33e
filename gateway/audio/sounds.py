# SPDX-License-Identifier: GPL-2.0-or-later
"""Sounds that a caller hears: built-in tones, a WAV file of the operator's, or words.

Words become audio by a program of the operator's (``media.speech_command``), for what a Live
session is to say exactly: it plays audio of ours byte for byte, and says words of ours in its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import wave
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from gateway.audio import SAMPLE_RATE
from gateway.measures import BoundedDict

BUILT_IN = ("ringback", "ringback-us", "chime", "music", "silence")
"""Names that need no file."""

ECHO, MILLIWATT = "echo", "milliwatt"
"""On test lines only: what the caller says, in place of a sound; a tone too loud for all else."""

_LEVEL = 0.1
"""Amplitude, of full scale: -20 dBFS, as loud as tones of networks."""

_FADE_SECONDS = 0.005


class SoundError(Exception):
    """A sound cannot be played; the message says what it should be."""


def samples_of(name: str) -> NDArray[np.int16]:
    """Return one period of a built-in sound at 8 kHz. Raises KeyError."""
    return _MAKERS[name]()


def write_wav(path: Path, samples: NDArray[np.int16]) -> None:
    """Write 8 kHz mono. Raises OSError."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def check_wav(path: Path) -> None:
    """Raise SoundError where a file cannot be played as it is: nothing resamples it."""
    try:
        with wave.open(str(path), "rb") as file:
            form = file.getframerate(), file.getnchannels(), file.getsampwidth() * 8
            length = file.getnframes()
    except OSError as error:
        raise SoundError(f"{path} cannot be read: {error.strerror}") from None
    except (wave.Error, EOFError) as error:
        why = str(error) or "it ends within its header"
        raise SoundError(
            f"{path} is no WAV of PCM samples: {why} "
            f"(ffmpeg -i {path.name} -ar 8000 -ac 1 -c:a pcm_s16le out.wav)"
        ) from None
    if form != (SAMPLE_RATE, 1, 16):
        rate, channels, bits = form
        raise SoundError(
            f"{path} has {rate} Hz, {channels} channel(s), {bits} bit; it must be 8000 Hz, mono, "
            f"16 bit (sox {path.name} -r 8000 -c 1 -b 16 out.wav)"
        )
    if length < SAMPLE_RATE // 2:
        raise SoundError(f"{path} is shorter than half a second")


def wav_seconds(path: Path) -> float:
    """Return the duration of a file in seconds. Raises SoundError."""
    check_wav(path)
    with wave.open(str(path), "rb") as file:
        return file.getnframes() / SAMPLE_RATE


@lru_cache(maxsize=32)
def pcm24_of(path: Path, _changed: int) -> bytes:
    """Return a WAV file as linear PCM at 24 kHz, 16 bits little-endian.

    Cached by the file's time of change, the second argument. Raises SoundError.
    """
    check_wav(path)
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    made: NDArray[np.int16] = soxr.resample(samples, SAMPLE_RATE, 24000)
    return made.astype("<i2").tobytes()


def _cadence(
    tones: list[tuple[float, ...]], seconds: list[float], pause: float
) -> NDArray[np.int16]:
    """Return tones (Hz, several at once) of these lengths (s), then a pause (s)."""
    parts = [_tone(hz, length) for hz, length in zip(tones, seconds, strict=True)]
    parts.append(np.zeros(int(pause * SAMPLE_RATE)))
    return np.rint(np.concatenate(parts) * 32767).astype(np.int16)


def _tone(frequencies: tuple[float, ...], seconds: float) -> NDArray[np.float64]:
    """Return a mix of sines (Hz), faded in and out; 1.0 is full scale."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    waves = np.sum([np.sin(2 * np.pi * hz * time) for hz in frequencies], axis=0)
    edge = np.minimum(time, time[::-1]) / _FADE_SECONDS
    return np.asarray(_LEVEL / len(frequencies) * waves * np.clip(edge, 0, 1))


_CHORDS = (
    (261.63, 329.63, 392.0),
    (220.0, 261.63, 329.63),
    (174.61, 220.0, 261.63),
    (196.0, 246.94, 293.66),
)
"""C major, A minor, F major and G major (Hz)."""


def _music() -> NDArray[np.int16]:
    """Return 16 s of broken chords: music on hold that nobody has rights in."""
    size = 16 * SAMPLE_RATE
    track = np.zeros(size)
    for number in range(32):
        chord = _CHORDS[number // 8]
        hz = (2 * chord[0], *chord[1:], 2 * chord[1])[(0, 1, 2, 3, 2, 1, 2, 1)[number % 8]]
        time = np.arange(int(1.6 * SAMPLE_RATE)) / SAMPLE_RATE
        note = np.sin(2 * np.pi * hz * time) + 0.3 * np.sin(4 * np.pi * hz * time)
        note *= np.exp(-2.5 * time) * np.clip(time / _FADE_SECONDS, 0, 1)
        at = number * SAMPLE_RATE // 2 + np.arange(len(time))
        track[at % size] += note  # the last notes sound on into the beginning
    loud = _LEVEL * track / np.abs(track).max()
    return np.asarray(np.rint(loud * 32767), np.int16)


_MAKERS: dict[str, Callable[[], NDArray[np.int16]]] = {
    # ETSI ES 201 970 section 5.2: 425 Hz, 1 s on, 4 s off.
    "ringback": lambda: _cadence([(425.0,)], [1.0], 4.0),
    # Telcordia GR-506: 440 and 480 Hz, 2 s on, 4 s off.
    "ringback-us": lambda: _cadence([(440.0, 480.0)], [2.0], 4.0),
    "chime": lambda: _cadence([(523.25,), (659.25,)], [0.25, 0.35], 3.4),
    "music": _music,
    # ITU-T O.133: 1004 Hz at 0 dBm0, whole periods; a sine at full scale has 3.17 dBm0 in G.711.
    MILLIWATT: lambda: np.rint(
        32635 * 10 ** (-3.17 / 20) * np.sin(2 * np.pi * 1004 / SAMPLE_RATE * np.arange(SAMPLE_RATE))
    ).astype(np.int16),
    "silence": lambda: np.zeros(SAMPLE_RATE, np.int16),
}


CLIP_RATE = 24000
"""Samples a second of a clip, 16 bits each, little-endian, mono."""

MAX_SECONDS = 30
"""Of one clip: what the service takes."""

SPEECH_SECONDS = 5.0
"""How long the program may take (s)."""

MAX_AT_A_TIME = 4
"""Programs that run at a time; further words wait."""

_MOST_BYTES = 2 * 48_000 * (MAX_SECONDS + 1)
_KEPT = 64

_made: BoundedDict[tuple[tuple[str, ...], str], bytes] = BoundedDict(_KEPT)
"""The latest clips: a greeting without variables is made once."""

_places = asyncio.Semaphore(MAX_AT_A_TIME)


class SpeechError(Exception):
    """The program made no speech; the text says why, and has no word of what was to be said."""


async def clip_of(command: Sequence[str], words: str) -> bytes:
    """Return ``words`` as the program speaks them: PCM at 24 kHz. Raises SpeechError.

    The program gets them on its standard input, in UTF-8, and writes a WAV file of 16 bits, mono,
    to its standard output.
    """
    key = (tuple(command), words)
    if key in _made:
        _made.move_to_end(key)
        return _made[key]
    try:
        async with asyncio.timeout(SPEECH_SECONDS), _places:
            audio = _pcm(await _output(command, words.encode()))
    except TimeoutError:
        raise SpeechError(f"no speech within {SPEECH_SECONDS:g} s") from None
    _made[key] = audio
    return audio


async def _output(command: Sequence[str], given: bytes) -> bytes:
    """Run a program with input; return its output. Raises SpeechError."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError as error:
        raise SpeechError(f"{command[0]}: {error.strerror or error}") from None
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(OSError):
            process.stdin.write(given)
            process.stdin.close()
        made = bytearray()
        while part := await process.stdout.read(65536):
            made += part
            if len(made) > _MOST_BYTES:
                raise SpeechError(f"more than {MAX_SECONDS} s of audio")
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    if status:
        raise SpeechError(f"{command[0]} ended with status {status}")
    return bytes(made)


def _pcm(file: bytes) -> bytes:
    """Return the samples of a WAV file as 24 kHz PCM. Raises SpeechError."""
    try:
        with wave.open(io.BytesIO(file), "rb") as wav:
            if wav.getnchannels() != 1 or wav.getsampwidth() != 2:
                raise SpeechError("no WAV file of 16 bits, mono")
            rate, audio = wav.getframerate(), wav.readframes(len(file))
    except (wave.Error, EOFError) as error:
        raise SpeechError(f"no WAV file: {error}") from None
    samples = np.frombuffer(audio[: len(audio) // 2 * 2], "<i2")
    if not len(samples) or len(samples) > rate * MAX_SECONDS:
        raise SpeechError(f"{len(samples) / rate:.0f} s of audio, 30 s at most")
    return bytes(soxr.resample(samples, rate, CLIP_RATE).astype("<i2").tobytes())

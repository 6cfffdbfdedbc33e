# SPDX-License-Identifier: GPL-2.0-or-later
"""Words as audio, by a program of the operator's (``media.speech_command``).

For what a Live session is to say exactly: it plays audio of ours byte for byte, and says words of
ours in its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import wave
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import soxr

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

_made: OrderedDict[tuple[tuple[str, ...], str], bytes] = OrderedDict()
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
    if len(_made) > _KEPT:
        _made.popitem(last=False)
    return audio


async def _output(command: Sequence[str], given: bytes) -> bytes:
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Sound of emulator and scripted caller: audio formats of a session, test signals, and speech by
espeak-ng.

``audio/pcmu`` and ``audio/pcma`` are G.711 at 8 kHz, one byte a sample; ``audio/pcm`` is 16-bit
little-endian mono at 24 kHz. espeak-ng comes with the ``espeakng-loader`` wheel and runs in this
process. Where that cannot be loaded (another processor, another libc) the ``espeak-ng`` program of
the distribution does the same work, one process for each phrase.
"""

from __future__ import annotations

import audioop
import ctypes
import hashlib
import io
import re
import shutil
import subprocess
import threading
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

import numpy as np
import soxr

G711_RATE = 8000
PCM_RATE = 24000


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """One of the three formats of the protocol."""

    type: str
    rate: int
    bytes_per_ms: int

    def length_ms(self, byte_count: int) -> int:
        """Whole milliseconds in ``byte_count`` bytes."""
        return byte_count // self.bytes_per_ms

    def bytes_for(self, ms: float) -> int:
        """Bytes of ``ms`` milliseconds, whole samples."""
        width = 2 if self.type == "audio/pcm" else 1
        return int(ms * self.bytes_per_ms) // width * width

    def decode(self, data: bytes) -> bytes:
        """Convert to 16-bit PCM at :attr:`rate`; an odd last byte of PCM is left out."""
        if self.type == "audio/pcmu":
            return audioop.ulaw2lin(data, 2)
        if self.type == "audio/pcma":
            return audioop.alaw2lin(data, 2)
        return data[: len(data) // 2 * 2]

    def encode(self, pcm: bytes, rate: int) -> bytes:
        """Convert 16-bit PCM of ``rate`` Hz to this format."""
        pcm = resample(pcm, rate, self.rate)
        if self.type == "audio/pcmu":
            return audioop.lin2ulaw(pcm, 2)
        if self.type == "audio/pcma":
            return audioop.lin2alaw(pcm, 2)
        return pcm

    def silence(self, ms: int) -> bytes:
        """``ms`` milliseconds of silence."""
        return self.encode(bytes(2 * self.rate * ms // 1000), self.rate)


PCMU = AudioFormat("audio/pcmu", G711_RATE, 8)
PCMA = AudioFormat("audio/pcma", G711_RATE, 8)
PCM = AudioFormat("audio/pcm", PCM_RATE, 48)
FORMATS = {format_.type: format_ for format_ in (PCMU, PCMA, PCM)}


def resample(pcm: bytes, rate: int, to_rate: int) -> bytes:
    """Resample 16-bit PCM from ``rate`` to ``to_rate`` Hz."""
    if rate == to_rate or not pcm:
        return pcm
    samples = np.frombuffer(pcm, dtype="<i2")
    converted: bytes = soxr.resample(samples, rate, to_rate).astype("<i2").tobytes()
    return converted


def pattern(seed: int, count: int) -> bytes:
    """``count`` bytes that depend on ``seed`` alone; a longer pattern begins with a shorter one.

    A test can tell from them that audio passed unchanged, and which part of it. 0x7F never
    occurs: u-law has two zeros, and a codec on the way may turn that one into the other (0xFF).
    """
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(count).replace(b"\x7f", b"\xff")


def tones(frequencies_hz: Sequence[float], seconds: float, level_dbfs: float) -> bytes:
    """16-bit PCM at 24 kHz: each frequency in turn for ``seconds``, ``level_dbfs`` at its peak."""
    count = round(seconds * PCM_RATE)
    time = np.arange(count) / PCM_RATE
    peak = 32767 * 10 ** (level_dbfs / 20)
    parts = [peak * np.sin(2 * np.pi * frequency * time) for frequency in frequencies_hz]
    return np.concatenate(parts).astype("<i2").tobytes() if parts else b""


MAX_CHARACTERS = 4000
"""Longest text spoken at once: about five minutes of it."""

_WORDS_PER_MINUTE = 165
_SLOWEST, _FASTEST = 80, 450


@dataclass(frozen=True, slots=True)
class _Voice:
    name: str
    pitch: int


_VOICES = {
    "alloy": _Voice("en-us+Andy", 45),
    "ash": _Voice("en-us+m3", 35),
    "ballad": _Voice("en-029+m7", 50),
    "coral": _Voice("en-us+f4", 55),
    "echo": _Voice("en-us+m1", 30),
    "sage": _Voice("en-us+f1", 45),
    "shimmer": _Voice("en-us+f3", 65),
    "verse": _Voice("en-us+m7", 50),
    "marin": _Voice("en-us+f2", 50),
    "cedar": _Voice("en-us+m2", 25),
    # Only Live sessions know the rest.
    "beacon": _Voice("en-gb+m4", 40),
    "bossa": _Voice("en-029+m2", 40),
    "cinder": _Voice("en-us+m6", 35),
    "delta": _Voice("en-us+m5", 30),
    "gleam": _Voice("en-gb+f1", 60),
    "meridian": _Voice("en-gb+m2", 35),
    "quartz": _Voice("en-gb+f3", 50),
    "ripple": _Voice("en-us+f5", 60),
    "shida": _Voice("en-gb+f4", 55),
    "stone": _Voice("en-us+m8", 20),
    "tempo": _Voice("en-us+f1", 65),
    "vesper": _Voice("en-gb+m7", 45),
    "willow": _Voice("en-gb+f5", 45),
}
_OTHER = _Voice("en-us", 50)

_KEYS = {"*": "star", "#": "hash"}


def synthesise(text: str, voice: str = "marin", speed: float = 1.0) -> tuple[bytes, int]:
    """Speak ``text``: mono 16-bit little-endian PCM, and its rate in Hz.

    ``voice`` is a voice name of the realtime API (an unknown one gets a plain voice), ``speed``
    a multiple of the usual pace. Text beyond :data:`MAX_CHARACTERS` is left out. Phrases are
    cached. Safe from any thread, but takes milliseconds: keep it off the event loop.
    Raises :class:`SpeechError` when no synthesiser works.
    """
    pace = round(min(max(_WORDS_PER_MINUTE * speed, _SLOWEST), _FASTEST))
    return _phrase(text[:MAX_CHARACTERS], _VOICES.get(voice, _OTHER), pace)


@lru_cache(maxsize=64)
def _phrase(text: str, voice: _Voice, pace: int) -> tuple[bytes, int]:
    speaker = engine()
    return speaker.synthesise(text, voice.name, voice.pitch, pace), speaker.rate


def words_of_keys(keys: str) -> str:
    """Telephone keys as words, one by one: ``"42#"`` becomes ``"4, 2, hash"``."""
    return ", ".join(_KEYS.get(key, key) for key in re.sub(r"[\s,]+", "", keys))


# Constants of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3
_EE_OK = 0

LONGEST_S = 600
"""Seconds of speech after which a phrase is cut off."""

_PROGRAM_DEADLINE_S = 20.0

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class SpeechError(RuntimeError):
    """No speech can be made: neither library nor program works, or espeak refused the text."""


class Engine(Protocol):
    """espeak-ng as a library or a program. Safe to call from any thread."""

    def synthesise(self, text: str, voice: str, pitch: int, words_per_minute: int) -> bytes:
        """Mono 16-bit little-endian PCM of ``text`` at :attr:`rate` Hz.

        At most :data:`LONGEST_S` of it. ``voice`` is espeak's name with variant
        (``en-us+f2``), ``pitch`` 0..99. An unknown voice speaks as the one before it.
        Raises :class:`SpeechError`.
        """
        ...

    @property
    def rate(self) -> int:
        """Sample rate in Hz of what :meth:`synthesise` returns."""
        ...


class _Library:
    """libespeak-ng of the wheel. It keeps global state, hence one lock around each phrase."""

    def __init__(self) -> None:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        library.espeak_Initialize.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
        ]
        library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
        library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        rate = library.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS,
            0,
            str(espeakng_loader.get_data_path()).encode(),
            _INITIALIZE_DONT_EXIT,
        )
        if rate <= 0:
            raise SpeechError(f"espeak_Initialize failed with {rate}")
        self.rate = int(rate)
        self._library = library
        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        self._samples = 0
        # The C side keeps this pointer: the object must live as long as the library is used.
        self._callback = _Callback(self._take)
        library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
            self._samples += count
        return int(self._samples > LONGEST_S * self.rate)  # 1 ends the synthesis

    def synthesise(self, text: str, voice: str, pitch: int, words_per_minute: int) -> bytes:
        encoded = text.replace("\0", " ").encode("utf-8", "replace")
        with self._lock:
            self._chunks.clear()
            self._samples = 0
            self._library.espeak_SetVoiceByName(voice.encode("ascii", "replace"))
            self._library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
            self._library.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
            status = self._library.espeak_Synth(
                encoded, len(encoded) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
            )
            pcm = b"".join(self._chunks)
            self._chunks.clear()
        if status != _EE_OK:
            raise SpeechError(f"espeak_Synth failed with {status}")
        return pcm


class _Program:
    """The ``espeak-ng`` program: text on its standard input, a WAV on its standard output."""

    def __init__(self) -> None:
        path = shutil.which("espeak-ng")
        if path is None:
            raise SpeechError(
                "no speech synthesis: install the espeakng-loader package or the espeak-ng program"
            )
        self._path = path
        self.rate = 0
        self.synthesise("a", "en-us", 50, 160)

    def synthesise(self, text: str, voice: str, pitch: int, words_per_minute: int) -> bytes:
        command = [self._path, "--stdin", "--stdout", "-b", "1"]
        command += ["-v", voice, "-p", str(pitch), "-s", str(words_per_minute)]
        try:
            result = subprocess.run(
                command,
                input=text.encode("utf-8", "replace"),
                capture_output=True,
                timeout=_PROGRAM_DEADLINE_S,
                check=True,
            )
            # The header of a stream has no true length: read frames until they end.
            with wave.open(io.BytesIO(result.stdout)) as reader:
                self.rate = reader.getframerate()
                frames: bytes = reader.readframes(LONGEST_S * self.rate)
                return frames
        except (OSError, subprocess.SubprocessError, wave.Error, EOFError) as error:
            raise SpeechError(f"{self._path} failed: {error}") from error


_making = threading.Lock()


def engine() -> Engine:
    """Return this process's speech engine, made at first use. Raises :class:`SpeechError`."""
    with _making:  # a cache would make two for two threads, and the library ends the process then
        return _engine()


@cache
def _engine() -> Engine:
    try:
        return _Library()
    except (ImportError, OSError, AttributeError, SpeechError):
        return _Program()

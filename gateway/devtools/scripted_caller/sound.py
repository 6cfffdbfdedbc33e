"""Sound files: what a scripted caller plays, and what it has heard.

WAV (16 bit, any rate; several channels are mixed) and raw G.711, ``.ulaw`` and ``.alaw``, which is
passed on byte for byte. Inside a call everything is 8 kHz mono.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.audio.g711 import FRAME_BYTES, SAMPLE_RATE, Codec

RAW = {".ulaw": Codec.PCMU, ".alaw": Codec.PCMA}
"""Ending of a raw file, and its law."""

MAX_SECONDS = 600
"""Longest sound played in one step: it is held in memory, and queued whole."""


class SoundError(Exception):
    """A sound file that cannot be used; the message names the file and why."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A sound to play: G.711 ``data`` in its ``law``, or 16-bit samples at 8 kHz (None)."""

    name: str
    data: bytes
    law: Codec | None

    @property
    def ms(self) -> float:
        """Length, ms."""
        return len(self.data) / (1 if self.law else 2) * 1000 / SAMPLE_RATE

    def frames(self, codec: Codec) -> bytes:
        """The bytes to send on a call in ``codec``, filled up with silence to a whole frame."""
        if self.law is codec:
            coded = self.data
        else:
            linear = self.data if self.law is None else self.law.to_linear(self.data)
            coded = codec.from_linear(linear)
        rest = -len(coded) % FRAME_BYTES
        return coded + codec.silence * rest


def read_clip(file: Path) -> Clip:
    """Read a sound file. Raises SoundError."""
    law = RAW.get(file.suffix.lower())
    try:
        if law is not None:
            clip = Clip(file.name, file.read_bytes(), law)
        else:
            clip = Clip(file.name, _read_wav(file), None)
    except (OSError, EOFError, wave.Error) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it ends too early"
        raise SoundError(f"{file}: cannot be played: {reason}") from None
    if clip.ms > MAX_SECONDS * 1000:
        raise SoundError(f"{file}: longer than {MAX_SECONDS} s")
    if not clip.data:
        raise SoundError(f"{file}: has no sound in it")
    return clip


def spoken_clip(text: str, voice: str) -> Clip:
    """Synthesise ``text``; takes tens of ms. Raises SoundError when no synthesiser is there."""
    try:
        from gateway.devtools.emulator.speech import SpeechError, synthesise
    except ImportError as error:
        raise SoundError(f"say: speech needs the emulator's packages: {error}") from None
    try:
        pcm, rate = synthesise(text, voice)
    except SpeechError as error:
        raise SoundError(f"say: {error}") from None
    return Clip(text, to_telephone(pcm, rate, 1), None)


def to_telephone(pcm: bytes, rate: int, channels: int) -> bytes:
    """16-bit samples of any rate, channels interleaved, as 16-bit mono at 8 kHz."""
    if rate == SAMPLE_RATE and channels == 1:
        return pcm
    import numpy as np

    samples = np.frombuffer(pcm, dtype="<i2").astype(np.float32)
    if channels > 1:
        samples = samples.reshape(-1, channels).mean(axis=1)
    if rate != SAMPLE_RATE:
        try:
            import soxr
        except ImportError:
            raise SoundError(f"a sound of {rate} Hz needs the package soxr") from None
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="VHQ")
    converted: bytes = np.clip(np.rint(samples), -32768, 32767).astype("<i2").tobytes()
    return converted


def write_sound(file: Path, codec: Codec, tracks: Sequence[bytes]) -> None:
    """Write G.711 ``tracks`` of one length, a channel each: WAV, or one track raw by the ending.

    Raises SoundError.
    """
    law = RAW.get(file.suffix.lower())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if law is not None and len(tracks) == 1:
            linear = tracks[0] if law is codec else law.from_linear(codec.to_linear(tracks[0]))
            file.write_bytes(linear)
            return
        with wave.open(str(file), "wb") as out:
            out.setnchannels(len(tracks))
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes(_interleaved([codec.to_linear(track) for track in tracks]))
    except OSError as error:
        raise SoundError(f"{file}: cannot be written: {error.strerror or error}") from None


def _interleaved(channels: Sequence[bytes]) -> bytes:
    if len(channels) == 1:
        return channels[0]
    import numpy as np

    columns = [np.frombuffer(channel, dtype="<i2") for channel in channels]
    joined: bytes = np.stack(columns, axis=1).tobytes()
    return joined


def _read_wav(file: Path) -> bytes:
    with wave.open(str(file), "rb") as source:
        if source.getsampwidth() != 2:
            raise wave.Error(f"{8 * source.getsampwidth()} bit a sample; 16 bit is wanted")
        limit = source.getframerate() * MAX_SECONDS
        if source.getnframes() > limit:
            raise wave.Error(f"longer than {MAX_SECONDS} s")
        pcm = source.readframes(limit)
        return to_telephone(pcm, source.getframerate(), source.getnchannels())

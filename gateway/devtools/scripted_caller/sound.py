# SPDX-License-Identifier: GPL-2.0-or-later
"""Sound of the scripted caller: clips to play, recordings of calls, levels of what is heard.

WAV (16 bit, any rate; several channels are mixed) and raw G.711, ``.ulaw`` and ``.alaw``, which is
passed on byte for byte. Inside a call everything is 8 kHz mono.
"""

from __future__ import annotations

import audioop
import math
import time
import wave
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.audio import FRAME_BYTES, FRAME_MS, PCM_FRAME_BYTES, SAMPLE_RATE, Codec
from gateway.devtools.scripted_caller import SPEECH_DBFS, Span
from gateway.records.recording_files import write_tracks
from gateway.sip.call_audio import CallAudio

PAUSE_MS = 300
"""A pause shorter than this is inside a sentence, for the report's spans."""


class Speech:
    """Counts speech from now on: a loud frame adds 20 ms, a quiet one subtracts 10.

    So clicks do not add up to speech over a minute, and the stops of a word do not undo it.
    """

    def __init__(self, threshold_dbfs: float) -> None:
        self.threshold_dbfs = threshold_dbfs
        self.ms = 0

    def add(self, level_dbfs: float) -> None:
        loud = level_dbfs >= self.threshold_dbfs
        self.ms = self.ms + FRAME_MS if loud else max(self.ms - FRAME_MS // 2, 0)


class Hearing:
    """Levels of all frames heard in a call: speech, silence, spans of sound."""

    def __init__(self) -> None:
        self._levels: list[float] = []
        self._speech: Speech | None = None

    def add(self, levels: list[float]) -> None:
        """Add the levels (dBFS) of the next frames."""
        self._levels += levels
        if self._speech is not None:
            for level in levels:
                self._speech.add(level)

    def speech(self, threshold_dbfs: float) -> Speech:
        """Count speech from now on, in place of the count begun before."""
        self._speech = Speech(threshold_dbfs)
        return self._speech

    def quiet_for(self, ms: int, threshold_dbfs: float) -> bool:
        """Whether the last ``ms`` were all quieter than the threshold."""
        frames = -(-ms // FRAME_MS)
        last = self._levels[-frames:]
        return len(last) == frames and max(last) < threshold_dbfs

    def spans(self, threshold_dbfs: float = SPEECH_DBFS) -> list[Span]:
        """Return spans of sound in the recording; pauses below ``PAUSE_MS`` belong to them."""
        found: list[list[int]] = []
        for index, level in enumerate(self._levels):
            if level < threshold_dbfs:
                continue
            at = index * FRAME_MS
            if found and at - found[-1][1] < PAUSE_MS:
                found[-1][1] = at + FRAME_MS
            else:
                found.append([at, at + FRAME_MS])
        return [Span(from_ms=first, to_ms=last) for first, last in found]


MAX_WAITING = 1500
"""Ticks between the media clock and the event loop, 30 s: a recording has no holes but after a
loop that hung for so long, and then the count of lost ticks says so."""

MAX_TICKS = 3600 * 1000 // FRAME_MS
"""An hour of recording (58 MB); what comes after it is listened to, but not kept."""

MAX_PLAYOUT_FRAMES = 2 * 600 * 1000 // FRAME_MS
"""Two sounds of the greatest length; speech waits here for its turn."""

_QUIETEST_DBFS = -96.0


@dataclass(frozen=True, slots=True)
class Played:
    """A sound that was queued: ``count`` frames from the ``first`` (0-based) of all."""

    name: str
    first: int
    count: int
    loud: tuple[int, int]
    """First loud frame of it, and how many there are up to the last one."""
    interrupts: bool


class Tape:
    """Records both directions of one call, and plays into it. Used on the event loop."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec = codec.narrow
        self.audio = CallAudio(codec, MAX_PLAYOUT_FRAMES, recorded=MAX_WAITING)
        self.playout = self.audio.playout
        self.first_at: float | None = None
        """When the first tick was seen (``time.monotonic()``)."""
        self.ticks = 0
        """Ticks that the event loop has seen."""
        self.said_track = bytearray()
        self.heard_track = bytearray()
        self._lost_waiting = 0
        self._lost_late = 0
        self._spoken_at = array("I")

    @property
    def lost(self) -> int:
        """Ticks that are in no recording: the loop hung, or the call was too long."""
        return self._lost_waiting + self._lost_late

    def negotiated(self, codec: Codec) -> None:
        """Set the codec of the tape: the call's, or its G.711; later changes leave it."""
        if not self.ticks:
            self.codec = self.playout.codec = self.audio.codec = codec.narrow

    def collect(self) -> list[float]:
        """Record the 20 ms ticks since the last call; return the level heard in each (dBFS)."""
        said, heard, spoke, self._lost_waiting = self.audio.queues.takeTicks()
        if spoke and self.first_at is None:
            self.first_at = time.monotonic()
        kept = min(len(spoke), max(0, MAX_TICKS - self.ticks))
        self._lost_late += len(spoke) - kept
        self.said_track += self.codec.from_linear(said[: kept * PCM_FRAME_BYTES])
        self.heard_track += self.codec.from_linear(heard[: kept * PCM_FRAME_BYTES])
        levels = []
        for tick, speaking in enumerate(spoke):
            levels.append(level_dbfs(heard[tick * PCM_FRAME_BYTES : (tick + 1) * PCM_FRAME_BYTES]))
            if speaking:
                self._spoken_at.append(self.ticks)
            self.ticks += 1
        return levels

    def spoken_ms(self, first: int, count: int) -> tuple[int, int] | None:
        """Return begin and end (ms of the recording) of ``count`` queued frames from ``first`` on.

        None while none of them was sent; only those sent, where the call ended in between.
        """
        ticks = self._spoken_at[first : first + count]
        return (ticks[0] * FRAME_MS, (ticks[-1] + 1) * FRAME_MS) if ticks else None

    def spans_of(self, played: Sequence[Played]) -> dict[str, list[Span]]:
        """Return the spans of these sounds in the recording, by fields of the report."""
        found: dict[str, list[Span]] = {"played": [], "spoken": [], "interruptions": []}
        for part in played:
            first, count = part.loud
            whole = self.spoken_ms(part.first, part.count)
            loud = self.spoken_ms(part.first + first, count)
            for name, span in (("played", whole), ("spoken", loud), ("interruptions", loud)):
                if span is not None and (name != "interruptions" or part.interrupts):
                    found[name].append(Span(from_ms=span[0], to_ms=span[1], what=part.name))
        return found

    @property
    def now_ms(self) -> int:
        """Length of the recording so far, ms."""
        return self.ticks * FRAME_MS


def level_dbfs(pcm: bytes) -> float:
    """Root mean square of 16-bit samples against full scale, dB; -96 is silence."""
    rms = audioop.rms(pcm, 2)
    return 20 * math.log10(rms / 32768) if rms else _QUIETEST_DBFS


RAW = {".ulaw": Codec.PCMU, ".alaw": Codec.PCMA}
"""Ending of a raw file, and its codec."""

MAX_SECONDS = 600
"""Longest sound played in one step: it is held in memory, and queued whole."""


class SoundError(Exception):
    """A sound file that cannot be used; the message names the file and why."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A sound to play: G.711 ``data`` in its ``codec``, or 16-bit samples at 8 kHz (None)."""

    name: str
    data: bytes
    codec: Codec | None

    @property
    def ms(self) -> float:
        """Length, ms."""
        return len(self.data) / (1 if self.codec else 2) * 1000 / SAMPLE_RATE

    def loud(self, codec: Codec) -> tuple[int, int]:
        """Return the first frame at or above ``SPEECH_DBFS``, and the count up to the last one."""
        pcm = codec.to_linear(self.frames(codec))
        frames = range(0, len(pcm), PCM_FRAME_BYTES)
        levels = [level_dbfs(pcm[at : at + PCM_FRAME_BYTES]) for at in frames]
        loud = [index for index, level in enumerate(levels) if level >= SPEECH_DBFS]
        return (loud[0], loud[-1] + 1 - loud[0]) if loud else (0, len(levels))

    def frames(self, codec: Codec) -> bytes:
        """Return the clip in ``codec``, filled up with silence to a whole frame."""
        if self.codec is codec:
            coded = self.data
        else:
            linear = self.data if self.codec is None else self.codec.to_linear(self.data)
            coded = codec.from_linear(linear)
        rest = -len(coded) % FRAME_BYTES
        return coded + codec.silence * rest


def read_clip(file: Path) -> Clip:
    """Read a sound file. Raises SoundError."""
    raw = RAW.get(file.suffix.lower())
    try:
        if raw is not None:
            clip = Clip(file.name, file.read_bytes(), raw)
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
        from gateway.devtools.speech import SpeechError, synthesise
    except ImportError as error:
        raise SoundError(f"say: speech needs the emulator's packages: {error}") from None
    try:
        pcm, rate = synthesise(text, voice)
    except SpeechError as error:
        raise SoundError(f"say: {error}") from None
    return Clip(text, to_telephone(pcm, rate, 1), None)


KEY_MS, KEY_PAUSE_MS = 120, 80
"""Of a key's tones and of the pause behind them; 40 ms of each is the least (ITU-T Q.24)."""

_LOW_HZ, _HIGH_HZ = (697, 770, 852, 941), (1209, 1336, 1477, 1633)
_KEYPAD = "123A456B789C*0#D"
_KEY_PEAK = 0.25
"""Of each of the two tones, of full scale: -12 dB."""


def key_tones(keys: str) -> Clip:
    """Return the DTMF tones of ``keys`` (ITU-T Q.23), one after the other."""
    import numpy as np

    times = np.arange(KEY_MS * SAMPLE_RATE // 1000) / SAMPLE_RATE
    pcm = b""
    for key in keys:
        row, column = divmod(_KEYPAD.index(key), 4)
        low, high = (np.sin(2 * np.pi * hz * times) for hz in (_LOW_HZ[row], _HIGH_HZ[column]))
        pcm += (32767 * _KEY_PEAK * (low + high)).astype("<i2").tobytes()
        pcm += bytes(2 * KEY_PAUSE_MS * SAMPLE_RATE // 1000)
    return Clip(f"keys {keys}", pcm, None)


class WhiteNoise:
    """Endless noise, 16-bit samples; the same with each call, so that runs can be compared."""

    def __init__(self, dbfs: float) -> None:
        import numpy as np

        made = np.random.default_rng(1).normal(0, 32767 * 10 ** (dbfs / 20), 10 * SAMPLE_RATE)
        self._samples: bytes = np.clip(made, -32768, 32767).astype("<i2").tobytes()
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        taken = b""
        while len(taken) < size:
            part = self._samples[self._at : self._at + size - len(taken)]
            self._at = (self._at + len(part)) % len(self._samples)
            taken += part
        return taken

    def under(self, frames: bytes, codec: Codec) -> bytes:
        """Return G.711 frames with noise added."""
        pcm = codec.to_linear(frames)
        return codec.from_linear(audioop.add(pcm, self.take(len(pcm)), 2))


def to_telephone(pcm: bytes, rate: int, channels: int) -> bytes:
    """Convert 16-bit samples of any rate, channels interleaved, to 16-bit mono at 8 kHz."""
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
    raw = RAW.get(file.suffix.lower())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if raw is not None and len(tracks) == 1:
            linear = tracks[0] if raw is codec else raw.from_linear(codec.to_linear(tracks[0]))
            file.write_bytes(linear)
            return
        write_tracks(file, codec, tracks)
    except OSError as error:
        raise SoundError(f"{file}: cannot be written: {error.strerror or error}") from None


def _read_wav(file: Path) -> bytes:
    with wave.open(str(file), "rb") as source:
        if source.getsampwidth() != 2:
            raise wave.Error(f"{8 * source.getsampwidth()} bit a sample; 16 bit is wanted")
        limit = source.getframerate() * MAX_SECONDS
        if source.getnframes() > limit:
            raise wave.Error(f"longer than {MAX_SECONDS} s")
        pcm = source.readframes(limit)
        return to_telephone(pcm, source.getframerate(), source.getnchannels())

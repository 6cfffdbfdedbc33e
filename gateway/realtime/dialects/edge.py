# SPDX-License-Identifier: GPL-2.0-or-later
"""The translation of one session at its WebSocket: a dialect and an audio format."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr
import structlog

from gateway.audio.g711 import SAMPLE_RATE, Codec
from gateway.realtime.dialects.dialect import Dialect, Json
from gateway.realtime.events import ServerEvent
from gateway.realtime.parse import parse_event
from gateway.realtime.session_object import format_of

log = structlog.get_logger(__name__)


PCM_RATE = 24000
"""Samples a second on the wire, 16 bits each, little-endian, mono (``audio/pcm``)."""
DELAY_MS = 30
"""Caller audio held back by the filter, always; an answer's is let out at its end."""

_RATIO = PCM_RATE // SAMPLE_RATE
_SAMPLE = 2
_HOST = "<i2" if sys.byteorder == "little" else ">i2"


Samples = npt.NDArray[Any]


class Pcm24:
    """The resamplers of one session, G.711 at 8 kHz on our side.

    Both directions keep one time: sample ``n`` at 8 kHz is sample ``3 n`` at 24 kHz, within a
    quarter of a millisecond, the filters' delay taken out. So milliseconds mean the same on both
    sides, and a part of ``b`` bytes of PCM becomes ``b // 6`` samples of G.711, never one more: its
    whole milliseconds (``b // 48``) are those that the server counts for it.

    Args:
        law: of the call.
    """

    def __init__(self, law: Codec) -> None:
        self.law = law
        self._up = _resampler(SAMPLE_RATE, PCM_RATE)
        self._down = _resampler(PCM_RATE, SAMPLE_RATE)
        self._rest = b""
        self._taken = 0  # samples of the part, at 24 kHz
        self._given = 0  # at 8 kHz

    def up(self, audio: bytes) -> bytes:
        """Caller audio for the wire. Nothing at first, then as much time as comes in."""
        samples = np.frombuffer(self.law.to_linear(audio), _HOST).astype(np.float32)
        return _whole(self._up.resample_chunk(samples)).astype("<i2").tobytes()

    def down(self, audio: bytes) -> bytes:
        """Return the audio that a piece completes. Half a sample waits for its other half."""
        audio = self._rest + audio
        whole = len(audio) // _SAMPLE * _SAMPLE
        self._rest = audio[whole:]
        self._taken += whole // _SAMPLE
        return self._out(np.frombuffer(audio[:whole], "<i2"), last=False)

    def part_over(self) -> bytes:
        """Return the rest of the part; the next piece begins another."""
        tail = self._out(np.zeros(0, np.float32), last=True) if self._taken else b""
        self._down.clear()
        self._rest, self._taken, self._given = b"", 0, 0
        return tail

    def _out(self, samples: Samples, *, last: bool) -> bytes:
        made = self._down.resample_chunk(samples.astype(np.float32), last=last)
        due = self._taken // _RATIO - self._given
        made = made[:due]
        if last and len(made) < due:
            made = np.concatenate([made, np.zeros(due - len(made), np.float32)])
        self._given += len(made)
        return self.law.from_linear(_whole(made).astype(_HOST).tobytes())


def _whole(samples: Samples) -> npt.NDArray[np.int16]:
    """Samples as 16-bit numbers; what the filter makes louder than those can be is cut."""
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


def _resampler(rate: int, to_rate: int) -> Any:
    # soxr's variable-rate engine, at a rate that never varies: its delay is short and constant,
    # where the other one works in blocks and holds up to 75 ms back. In floating point it adds no
    # dither, which G.711 has no use for: the same audio always becomes the same bytes.
    return soxr.ResampleStream(rate, to_rate, 1, dtype="float32", quality="HQ", vr=True)


Audio = Literal["g711", "pcm24"]

_PCM = {"type": "audio/pcm", "rate": PCM_RATE}


class Edge:
    """Translates for one session, both ways.

    Args:
        dialect: of the server.
        audio: ``g711`` hands bytes through; ``pcm24`` resamples.
        session: the GA session object of the call, which says its law.
    """

    parse: Callable[[str | bytes], ServerEvent]
    """A frame of the server as event; raises ``BadEvent``."""

    def __init__(self, dialect: Dialect, audio: Audio, session: Mapping[str, Any]) -> None:
        self._dialect = dialect
        self.pcm: Pcm24 | None = None
        if audio == "pcm24":
            alaw = format_of(session, "output") == Codec.PCMA.session_format
            self.pcm = Pcm24(Codec.PCMA if alaw else Codec.PCMU)
            log.info(
                "session.resampled",
                law=self.pcm.law.value,
                wire_rate=PCM_RATE,
                caller_delay_ms=DELAY_MS,
                why="realtime.audio is pcm24: this call is not G.711 from end to end",
            )
        # GA is read without a step more.
        self.parse = self._translated if dialect.translates else parse_event

    def command(self, body: Json) -> Json:
        """A GA client event as it goes on the wire, without ``event_id``."""
        if self.pcm is not None:
            body = _with_pcm(body)
        body, left_out = self._dialect.command(body)
        if left_out:
            log.warning(
                "session.not_in_dialect",
                dialect=self._dialect.name,
                type=body["type"],
                left_out=left_out,
            )
        return body

    def format_on_wire(
        self, session: Mapping[str, Any], direction: Literal["input", "output"]
    ) -> str | None:
        """GA's name of the format that the server shall confirm, ``None`` for any."""
        asked = format_of(session, direction)
        return asked if asked is None or self.pcm is None else _PCM["type"]  # type: ignore[return-value]

    def _translated(self, frame: str | bytes) -> ServerEvent:
        return parse_event(frame, self._dialect.event)


def _with_pcm(body: Json) -> Json:
    """``body`` with linear PCM wherever it names an audio format."""
    for key in ("session", "response"):
        inner = body.get(key)
        audio = inner.get("audio") if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(audio, Mapping):
            continue
        sides = {
            side: {**found, "format": dict(_PCM)}
            if isinstance(found, Mapping) and "format" in found
            else found
            for side, found in audio.items()
        }
        body = {**body, key: {**inner, "audio": sides}}
    return body

# SPDX-License-Identifier: GPL-2.0-or-later
"""Interface of a dialect (URL, translation of both directions), and GA, which translates nothing.

An :class:`Edge` joins one with an audio format, for one session at its WebSocket.

GA is what OpenAI's hosts speak, Azure's ``/openai/v1``, and servers like them.
"""

from __future__ import annotations

import audioop
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import soxr
import structlog

from gateway.audio.codecs import SAMPLE_RATE, Codec
from gateway.realtime.events import ServerEvent
from gateway.realtime.parse import parse_event
from gateway.realtime.session_object import format_of

Json = dict[str, Any]


class Dialect(Protocol):
    """A dialect. Stateless: one object serves all sessions.

    Audio has a path of its own (``input_audio_buffer.append`` is the same in every dialect);
    what its bytes are is the business of :mod:`gateway.realtime.dialects.dialect`.
    """

    @property
    def name(self) -> str:
        """Name in the configuration."""

    @property
    def api_base(self) -> str:
        """End of the path of a vendor's API base, to which ``/realtime`` is added."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields of the handshake that the dialect itself wants."""

    @property
    def translates(self) -> bool:
        """Whether :meth:`event` and :meth:`command` do anything."""

    def path(self, host: str) -> str:
        """Path for a URL without one."""

    def parameters(self, model: str, given: Sequence[str]) -> list[tuple[str, str]]:
        """Return what to add to the query of a URL that has the parameters ``given``."""

    def command(self, body: Json) -> tuple[Json, list[str]]:
        """A GA client event as the server wants it, and the names of what it has no word for."""

    def event(self, event: Json) -> Json:
        """A server event in GA's words. One that is GA already, or unknown, stays as it is."""


AZURE_HOSTS = (
    ".openai.azure.com",
    ".cognitiveservices.azure.com",
    ".services.ai.azure.com",
    ".openai.azure.us",
)
"""Ends of the host names of Azure resources."""

_MODEL_PARAMETERS = {"model", "call_id", "deployment"}


class Ga:
    """The dialect of the gateway itself. ``model`` is Azure's deployment there."""

    name = "ga"
    api_base = "/v1"
    headers: Mapping[str, str] = {}
    translates = False

    def path(self, host: str) -> str:
        """``/v1/realtime``, below ``/openai`` on Azure."""
        return "/openai/v1/realtime" if host.endswith(AZURE_HOSTS) else "/v1/realtime"

    def parameters(self, model: str, given: Sequence[str]) -> list[tuple[str, str]]:
        """``model``, unless the URL says by itself what to talk to."""
        return [] if not model or _MODEL_PARAMETERS & set(given) else [("model", model)]

    def command(self, body: Json) -> tuple[Json, list[str]]:
        """``body`` as it is."""
        return body, []

    def event(self, event: Json) -> Json:
        """``event`` as it is."""
        return event


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
    sides, and a part of ``b`` bytes of PCM becomes ``b // 6`` bytes of G.711, never one more:
    its whole milliseconds (``b // 48``) are those that the server counts for it.

    Args:
        codec: of the call.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._up = _resampler(SAMPLE_RATE, PCM_RATE)
        self._down = _resampler(PCM_RATE, SAMPLE_RATE)
        self._rest = b""
        self._taken = 0  # samples of the part, at 24 kHz
        self._given = 0  # at 8 kHz

    def up(self, audio: bytes) -> bytes:
        """Caller audio for the wire. Nothing at first, then as much time as comes in."""
        samples = np.frombuffer(self.codec.to_linear(audio), _HOST).astype(np.float32)
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
        return self.codec.from_linear(_whole(made).astype(_HOST).tobytes())


class Linear24:
    """What :class:`Pcm24` is to a call whose audio is at 24 kHz itself: the order of bytes, and
    whole samples."""

    def __init__(self) -> None:
        self._rest = b""

    def up(self, audio: bytes) -> bytes:
        """Caller audio for the wire."""
        return _little_endian(audio)

    def down(self, audio: bytes) -> bytes:
        """Return the samples that a piece completes."""
        audio = self._rest + audio if self._rest else audio
        whole = len(audio) // _SAMPLE * _SAMPLE
        self._rest = audio[whole:]
        return _little_endian(audio[:whole])

    def part_over(self) -> bytes:
        """Nothing: half a sample is none."""
        self._rest = b""
        return b""


def _little_endian(audio: bytes) -> bytes:
    """Samples in host byte order as they are on the wire, or the other way round."""
    return audio if sys.byteorder == "little" else audioop.byteswap(audio, _SAMPLE)


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


def resampling(audio: Audio, codec: Codec) -> Pcm24 | Linear24 | None:
    """What makes the audio of a call that of a session with ``audio`` on the wire; None for G.711.

    Resamplers are told in the log.
    """
    if codec.wide:
        return Linear24()
    if audio == "g711":
        return None
    log.info(
        "session.resampled",
        codec=codec.value,
        wire_rate=PCM_RATE,
        caller_delay_ms=DELAY_MS,
        why="the server takes 24 kHz PCM: this call is not G.711 from end to end",
    )
    return Pcm24(codec)


class Edge:
    """Translates for one session, both ways.

    Args:
        dialect: of the server.
        audio: ``g711`` hands bytes through; ``pcm24`` resamples.
        session: the GA session object of the call, which says its codec.
    """

    parse: Callable[[str | bytes], ServerEvent]
    """A frame of the server as event; raises ``BadEvent``."""

    def __init__(self, dialect: Dialect, audio: Audio, session: Mapping[str, Any]) -> None:
        self._dialect = dialect
        known = format_of(session, "output") or format_of(session, "input")
        codec = next((one for one in Codec if one.session_format == known), Codec.PCMU)
        self.pcm = resampling(audio, codec)
        # GA is read without a step more.
        self.parse = self._translated if dialect.translates else parse_event

    def command(self, body: Json) -> Json:
        """A GA client event as it goes on the wire, without ``event_id``."""
        if self.pcm is not None:
            body = with_pcm(body)
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


def with_pcm(body: Json) -> Json:
    """Return ``body`` with linear PCM wherever it names an audio format."""
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""What one session puts on its WebSocket and reads there: commands with their ids, in the server's
dialect, and audio in its format.
"""

from __future__ import annotations

import audioop
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr
import structlog

from gateway.audio.codecs import SAMPLE_RATE, Codec
from gateway.realtime.dialects import Dialect, Json
from gateway.realtime.events import (
    ClientCommand,
    CreateResponse,
    ResponseCreated,
    ServerError,
    ServerEvent,
    UpdateSession,
)
from gateway.realtime.parse import parse_event
from gateway.realtime.session_object import (
    Refused,
    changes_something,
    dotted,
    field_of,
    format_of,
    voice_of,
    without,
)

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


REQUEST_KEY = "gateway_request"
"""Key in the metadata of a response: the ``event_id`` of the request for it."""

MAX_METADATA = 16
"""Pairs that the protocol has room for."""

_REMEMBERED_COMMANDS = 256
"""Commands that an error may still refer to; servers answer at once or never."""
_REMEMBERED_REFUSALS = 64


class SentCommands:
    """The last commands of one session, by their ``event_id``.

    Args:
        refused: settings that the server did not take at set-up.
        session_id: for the log.
    """

    def __init__(self, refused: Iterable[Refused], session_id: str) -> None:
        self.refused = list(refused)
        """Settings that the server did not take; the first 64 are kept."""
        self.voice_locked = False
        """Whether the server has spoken, after which the voice cannot be changed."""
        self._log = structlog.get_logger("gateway.realtime.session").bind(session=session_id)
        self._by_id: dict[str, ClientCommand] = {}
        self._last = 0
        self._sent_again: deque[str | None] = deque(maxlen=_REMEMBERED_COMMANDS)
        """Updates that were sent again without a field."""
        self._marks = True
        """Requests for responses name themselves in their metadata."""

    def next_id(self) -> str:
        """Return the ``event_id`` of the next command."""
        self._last += 1
        return f"gw_{self._last}"

    def remember(self, event_id: str, command: ClientCommand) -> None:
        """Keep a command that was sent; the oldest goes."""
        self._by_id[event_id] = command
        if len(self._by_id) > _REMEMBERED_COMMANDS:
            del self._by_id[next(iter(self._by_id))]

    def command_of(self, event_id: str | None) -> ClientCommand | None:
        """Return the command sent with ``event_id``, if it is one of the last 256."""
        return self._by_id.get(event_id) if event_id is not None else None

    def asked_by(self, event: ResponseCreated) -> ClientCommand | None:
        """Return our request for this response; None if the server began it, or does not say."""
        event_id = event.metadata.get(REQUEST_KEY)
        return self.command_of(event_id) if isinstance(event_id, str) else None

    def body_of(self, command: ClientCommand, event_id: str) -> dict[str, Any]:
        """Return the command's JSON, which names a request for a response in its metadata."""
        body = command.body()
        if self._marks and isinstance(command, CreateResponse):
            response = dict(body.get("response") or {})
            metadata = dict(response.get("metadata") or {})
            if len(metadata) < MAX_METADATA:
                response["metadata"] = {**metadata, REQUEST_KEY: event_id}
                body["response"] = response
        return body

    def without_locked_voice(
        self, command: ClientCommand, effective: dict[str, Any]
    ) -> ClientCommand:
        """Return the command without a change of voice that the server would refuse."""
        if not self.voice_locked or not isinstance(command, UpdateSession):
            return command
        asked, in_force = voice_of(command.session), voice_of(effective)
        if asked is None or asked == in_force:
            return command
        self._log.warning("session.voice_locked", asked=asked, voice=in_force)
        return UpdateSession(without(command.session, ("audio", "output", "voice")))

    def unmarked(self, error: ServerError) -> CreateResponse | None:
        """Return the request to send again, unmarked, where the server takes no metadata."""
        command = self.command_of(error.client_event_id)
        if not self._marks or not isinstance(command, CreateResponse):
            return None
        if field_of(error, {"metadata": {REQUEST_KEY: ""}}) is None:
            return None
        self._marks = False
        if "metadata" in (command.response or {}):
            return None  # it has some of its own, and whoever asked has to do without
        self._log.info("session.requests_unmarked", code=error.code, detail=error.message)
        return command

    def without_refused_field(self, error: ServerError) -> UpdateSession | None:
        """Return the update to send again, without the one field for which it was refused.

        Once for each update, and each is smaller than the one before: so this ends.
        """
        command = self.command_of(error.client_event_id)
        if not isinstance(command, UpdateSession) or error.client_event_id in self._sent_again:
            return None
        path = field_of(error, command.session)
        if path is None:
            return None
        self._sent_again.append(error.client_event_id)
        field = dotted(path)
        if len(self.refused) < _REMEMBERED_REFUSALS:
            code = error.code or error.type or "error"
            self.refused.append(Refused(field, code, " ".join(error.message.split())))
        rest = without(command.session, path)
        again = changes_something(rest)
        self._log.warning(
            "session.setting_rejected",
            field=field,
            code=error.code,
            detail=error.message,
            what="the rest is sent again" if again else "nothing is left of the update",
        )
        return UpdateSession(rest) if again else None


def encode_command(body: dict[str, Any], event_id: str) -> bytes:
    """Return a command as it goes on the wire: one JSON object with its ``event_id``."""
    return json.dumps({**body, "event_id": event_id}, separators=(",", ":")).encode()

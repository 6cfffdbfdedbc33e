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
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr
import structlog

from gateway.audio import SAMPLE_RATE, Codec
from gateway.measures import BoundedDict
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
"""Delay (ms) that the resampler adds to the caller's audio; the agent's is not delayed."""

_RATIO = PCM_RATE // SAMPLE_RATE
_SAMPLE = 2
_HOST = "<i2" if sys.byteorder == "little" else ">i2"


Samples = npt.NDArray[Any]


class Pcm24:
    """Resamples the audio of one session: G.711 at 8 kHz in the call, 24 kHz PCM on the wire. It
    has state: pieces must come in their order.

    Sample ``n`` at 8 kHz is sample ``3 n`` at 24 kHz, within a quarter of a millisecond, since the
    filters' delay is removed. A content part of ``b`` bytes of PCM becomes ``b // 6`` bytes of
    G.711, never one more, so that both sides count the same milliseconds (``b // 48``).

    Args:
        codec: of the call: PCMU or PCMA.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._up = _resampler(SAMPLE_RATE, PCM_RATE)
        self._down = _resampler(PCM_RATE, SAMPLE_RATE)
        self._rest = b""
        self._taken = 0  # samples of the part, at 24 kHz
        self._given = 0  # at 8 kHz

    def up(self, audio: bytes) -> bytes:
        """Return caller audio (G.711) as 24 kHz PCM, 30 ms later than it came; the first 30 ms
        return ""."""
        samples = np.frombuffer(self.codec.to_linear(audio), _HOST).astype(np.float32)
        return _whole(self._up.resample_chunk(samples)).astype("<i2").tobytes()

    def down(self, audio: bytes) -> bytes:
        """Return the G.711 bytes of a piece of a content part (24 kHz PCM), "" as long as the
        filter has too little; half a sample waits for the next piece."""
        audio = self._rest + audio
        whole = len(audio) // _SAMPLE * _SAMPLE
        self._rest = audio[whole:]
        self._taken += whole // _SAMPLE
        return self._out(np.frombuffer(audio[:whole], "<i2"), last=False)

    def part_over(self) -> bytes:
        """Return the G.711 bytes left in the filter at the end of a content part, filled up with
        silence to the part's length, and reset for the next part. "" if the part had no audio."""
        tail = self._out(np.zeros(0, np.float32), last=True) if self._taken else b""
        self._down.clear()
        self._rest, self._taken, self._given = b"", 0, 0
        return tail

    def _out(self, samples: Samples, *, last: bool) -> bytes:
        """Return samples of the part resampled, as G.711, no more in all than a third of those
        taken; ``last`` empties the filter and fills up what is missing with silence."""
        made = self._down.resample_chunk(samples.astype(np.float32), last=last)
        due = self._taken // _RATIO - self._given
        made = made[:due]
        if last and len(made) < due:
            made = np.concatenate([made, np.zeros(due - len(made), np.float32)])
        self._given += len(made)
        return self.codec.from_linear(_whole(made).astype(_HOST).tobytes())


class Linear24:
    """Stands for :class:`Pcm24` in a call at 24 kHz: converts byte order, and keeps whole
    samples."""

    def __init__(self) -> None:
        self._rest = b""

    def up(self, audio: bytes) -> bytes:
        """Return caller audio (16-bit samples in host byte order) in the byte order of the wire."""
        return _little_endian(audio)

    def down(self, audio: bytes) -> bytes:
        """Return the whole samples of a piece in host byte order; half a sample waits for the next
        piece."""
        audio = self._rest + audio if self._rest else audio
        whole = len(audio) // _SAMPLE * _SAMPLE
        self._rest = audio[whole:]
        return _little_endian(audio[:whole])

    def part_over(self) -> bytes:
        """Drop half a sample at the end of a content part, and return nothing."""
        self._rest = b""
        return b""


def _little_endian(audio: bytes) -> bytes:
    """Return 16-bit samples converted between host byte order and that of the wire."""
    return audio if sys.byteorder == "little" else audioop.byteswap(audio, _SAMPLE)


def _whole(samples: Samples) -> npt.NDArray[np.int16]:
    """Return samples rounded and clipped to 16 bits."""
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


def _resampler(rate: int, to_rate: int) -> Any:
    """Return a resampler from ``rate`` to ``to_rate`` (samples a second) for mono float samples,
    with a short and constant delay; it has the state of one stream."""
    # soxr's variable-rate engine, at a rate that never varies: its delay is short and constant,
    # where the other one works in blocks and holds up to 75 ms back. In floating point it adds no
    # dither, which G.711 has no use for: the same audio always becomes the same bytes.
    return soxr.ResampleStream(rate, to_rate, 1, dtype="float32", quality="HQ", vr=True)


Audio = Literal["g711", "pcm24"]

_PCM = {"type": "audio/pcm", "rate": PCM_RATE}


def resampling(audio: Audio, codec: Codec) -> Pcm24 | Linear24 | None:
    """Return the converter between a call in ``codec`` and a session in ``audio``:
    :class:`Linear24` for a codec at 24 kHz (G.722, Opus), None where both are G.711, else a
    resampler, which is logged."""
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
    """Translates one session between the gateway (GA, the call's codec) and its server's wire.

    Args:
        dialect: of the server.
        audio: ``g711`` for G.711 on the wire, ``pcm24`` for 24 kHz PCM.
        session: the GA session object of the call, whose audio format is the call's codec
            (output, else input; PCMU where it names none).
    """

    parse: Callable[[str | bytes], ServerEvent]
    """Returns the event of a WebSocket message. Raises ``BadEvent``."""

    def __init__(self, dialect: Dialect, audio: Audio, session: Mapping[str, Any]) -> None:
        self._dialect = dialect
        known = format_of(session, "output") or format_of(session, "input")
        codec = next((one for one in Codec if one.session_format == known), Codec.PCMU)
        self.pcm = resampling(audio, codec)
        translate = dialect.event if dialect.translates else None
        self.parse = parse_event if translate is None else partial(parse_event, translate=translate)

    def command(self, body: Json) -> Json:
        """Return a GA client event as it goes on the wire, without ``event_id``: 24 kHz PCM as
        audio format where audio is converted, then the server's dialect. Fields that the dialect
        lacks are left out and logged."""
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
        """Return the audio format (``type``, as ``audio/pcmu``) that ``session.updated`` must
        confirm: ``audio/pcm`` where audio is converted. None where ``session`` asks for none."""
        asked = format_of(session, direction)
        return asked if asked is None or self.pcm is None else _PCM["type"]  # type: ignore[return-value]


def with_pcm(body: Json) -> Json:
    """Return a client event in which each audio format of its session or response is 24 kHz PCM;
    where none is named, none is added. ``body`` is not changed."""
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
"""Key in ``response.metadata`` under which a request puts its own ``event_id``."""

MAX_METADATA = 16
"""Pairs in ``response.metadata`` at most, by the protocol."""

_REMEMBERED_COMMANDS = 256
"""Commands that an ``error`` can be matched to: servers answer at once or never."""
_REMEMBERED_REFUSALS = 64


class SentCommands:
    """Client events of one session: gives them ids, and matches errors and responses to them.

    Args:
        refused: settings that the server rejected at set-up.
        session_id: of the server, for the log.
    """

    def __init__(self, refused: Iterable[Refused], session_id: str) -> None:
        self.refused = list(refused)
        """Settings that the server rejected; the first 64."""
        self.voice_locked = False
        """The server has sent audio, after which it rejects a change of voice."""
        self._log = structlog.get_logger("gateway.realtime.session").bind(session=session_id)
        self._by_id: BoundedDict[str, ClientCommand] = BoundedDict(_REMEMBERED_COMMANDS)
        self._last = 0
        self._sent_again: deque[str | None] = deque(maxlen=_REMEMBERED_COMMANDS)
        """Ids of updates that were sent again without a field."""
        self._adds_metadata = True
        """Requests for responses have :data:`REQUEST_KEY` in their metadata."""

    def next_id(self) -> str:
        """Return a new ``event_id``: ``gw_1``, ``gw_2`` and so on."""
        self._last += 1
        return f"gw_{self._last}"

    def remember(self, event_id: str, command: ClientCommand) -> None:
        """Keep a command that was sent with this id, for :meth:`command_of`; the oldest goes beyond
        256."""
        self._by_id[event_id] = command

    def command_of(self, event_id: str | None) -> ClientCommand | None:
        """Return the command sent with ``event_id``; None for no id, and for one that is not
        kept."""
        return self._by_id.get(event_id) if event_id is not None else None

    def request_of(self, event: ResponseCreated) -> ClientCommand | None:
        """Return the ``response.create`` that requested a response, by the id in the response's
        metadata. None where the server began it by itself, returns no metadata, or the request is
        not kept."""
        event_id = event.metadata.get(REQUEST_KEY)
        return self.command_of(event_id) if isinstance(event_id, str) else None

    def body_of(self, command: ClientCommand, event_id: str) -> dict[str, Any]:
        """Return a command as JSON object. A ``response.create`` has its ``event_id`` added to its
        metadata, unless that has 16 pairs already or the server has rejected metadata."""
        body = command.body()
        if self._adds_metadata and isinstance(command, CreateResponse):
            response = dict(body.get("response") or {})
            metadata = dict(response.get("metadata") or {})
            if len(metadata) < MAX_METADATA:
                response["metadata"] = {**metadata, REQUEST_KEY: event_id}
                body["response"] = response
        return body

    def without_locked_voice(
        self, command: ClientCommand, effective: dict[str, Any]
    ) -> ClientCommand:
        """Return the command; a ``session.update`` that names another voice than the one in force
        without that, once the server has sent audio, as it would reject the whole update.

        ``effective`` is the session object in force.
        """
        if not self.voice_locked or not isinstance(command, UpdateSession):
            return command
        asked, in_force = voice_of(command.session), voice_of(effective)
        if asked is None or asked == in_force:
            return command
        self._log.warning("session.voice_locked", asked=asked, voice=in_force)
        return replace(command, session=without(command.session, ("audio", "output", "voice")))

    def without_metadata(self, error: ServerError) -> CreateResponse | None:
        """Return the rejected ``response.create``, to be sent again, where our metadata is the
        reason.

        From then on no request has metadata of ours. None for other errors, for a second one of
        these, and for a request that has metadata of its own.
        """
        command = self.command_of(error.client_event_id)
        if not self._adds_metadata or not isinstance(command, CreateResponse):
            return None
        if field_of(error, {"metadata": {REQUEST_KEY: ""}}) is None:
            return None
        self._adds_metadata = False
        if "metadata" in (command.response or {}):
            return None
        self._log.info("session.requests_unmarked", code=error.code, detail=error.message)
        return command

    def without_refused_field(self, error: ServerError) -> UpdateSession | None:
        """Return the rejected ``session.update``, to be sent again, without the field that the
        error names.

        None where no field that can be left out is named, or nothing but type and formats is left.
        Each update is sent again once, and is smaller than the one before, so this ends. The field
        is noted in :attr:`refused`, in both cases.
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
        return replace(command, session=rest) if again else None


def encode_command(body: dict[str, Any], event_id: str) -> bytes:
    """Return a client event with its ``event_id`` as JSON, in UTF-8."""
    return json.dumps({**body, "event_id": event_id}, separators=(",", ":")).encode()

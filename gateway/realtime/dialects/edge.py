# SPDX-License-Identifier: GPL-2.0-or-later
"""The translation of one session at its WebSocket: a dialect and an audio format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import structlog

from gateway.audio.g711 import Codec
from gateway.realtime.dialects.base import Dialect, Json
from gateway.realtime.dialects.pcm24 import DELAY_MS, PCM_RATE, Pcm24
from gateway.realtime.events import ServerEvent
from gateway.realtime.parse import parse_event
from gateway.realtime.session_object import format_of

log = structlog.get_logger(__name__)

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

# SPDX-License-Identifier: GPL-2.0-or-later
"""A session whose server takes 24 kHz PCM only, with G.711 towards the call."""

from __future__ import annotations

from dataclasses import replace

from gateway.realtime.events import AudioDelta, AudioDone, ResponseDone, ServerEvent
from gateway.realtime.session import Session


class ResampledSession(Session):
    """Resamples both ways (:class:`gateway.realtime.dialects.dialect.Pcm24`).

    G.711 outside, as with every other; ``audio_sent_bytes`` counts what went on the wire. What is
    left in the filter comes with the end of a part, as a delta of its own before it.
    """

    part_bytes = 48_000
    """A second, which takes 5 ms to resample."""

    _part: tuple[str, str, int] | None = None

    def append(self, audio: bytes) -> None:
        """As :meth:`Session.append`; the first two frames wait in the filter."""
        assert self._edge.pcm is not None
        wire = self._edge.pcm.up(audio)
        if wire:
            super().append(wire)

    def _deliver(self, event: ServerEvent) -> None:
        if isinstance(event, AudioDelta):
            if event.part != self._part:
                self._part_over()
                self._part = event.part
            assert self._edge.pcm is not None
            audio = self._edge.pcm.down(event.audio)
            if audio:
                super()._deliver(replace(event, audio=audio))
            return
        if isinstance(event, (AudioDone, ResponseDone)):
            self._part_over()
        super()._deliver(event)

    def _part_over(self) -> None:
        if self._part is None:
            return
        assert self._edge.pcm is not None
        tail = self._edge.pcm.part_over()
        part, self._part = self._part, None
        if tail:
            super()._deliver(AudioDelta(*part, tail))

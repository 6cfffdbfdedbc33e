"""What the two queues of a call look like to the event loop, whoever implements them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.audio.g711 import Codec


@dataclass(frozen=True, slots=True)
class Transition:
    """Playout began (``playing``) or ran empty, at ``at`` (``time.monotonic()`` seconds)."""

    playing: bool
    at: float


class PlayoutQueue(Protocol):
    """Frames for the caller; see :class:`gateway.audio.playout.Playout` for the meaning of each."""

    codec: Codec
    expecting: bool

    @property
    def underruns(self) -> int: ...
    @property
    def underrun_frames(self) -> int: ...
    @property
    def frames_played(self) -> int: ...
    @property
    def frames_refused(self) -> int: ...
    def __len__(self) -> int: ...
    def put(self, audio: bytes) -> int: ...
    def flush(self) -> int: ...
    def pause(self, paused: bool) -> None: ...
    def transition(self) -> Transition | None: ...


class UplinkQueue(Protocol):
    """Frames of the caller; see :class:`gateway.audio.uplink.Uplink`."""

    codec: Codec

    @property
    def frames(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    def drain(self) -> bytes: ...

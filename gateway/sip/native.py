"""The media port and queues in C++ that our own build of pjsua2 carries.

They do what :mod:`gateway.audio.playout`, :mod:`gateway.audio.uplink` and
:class:`gateway.sip.ports.AudioPort` do, but the media clock never enters the interpreter: the
event loop is told of each beat through a file descriptor (``deploy/pjsua2/native``).
"""

from __future__ import annotations

from typing import Any

import pjsua2 as pj

from gateway.audio.g711 import Codec
from gateway.audio.queues import Transition
from gateway.audio.uplink import MAX_FRAMES

AVAILABLE = hasattr(pj, "NativeCallAudio")
"""Whether this pjsua2 has them."""

_LAWS = {Codec.PCMU: 0, Codec.PCMA: 1}


class NativePlayout:
    """As :class:`gateway.audio.playout.Playout`."""

    def __init__(self, queues: Any, codec: Codec) -> None:
        self._queues = queues
        self._codec = codec
        self._expecting = False

    @property
    def codec(self) -> Codec:
        """Law of the audio put in, and of what the caller says."""
        return self._codec

    @codec.setter
    def codec(self, codec: Codec) -> None:
        self._codec = codec
        self._queues.useLaw(_LAWS[codec])

    @property
    def expecting(self) -> bool:
        """More audio of the current part is to come."""
        return self._expecting

    @expecting.setter
    def expecting(self, expecting: bool) -> None:
        if expecting is not self._expecting:
            self._expecting = expecting
            self._queues.expect(expecting)

    @property
    def frames_played(self) -> int:
        """Frames handed to the media clock, silence not counted."""
        return int(self._queues.counters()[0])

    @property
    def underruns(self) -> int:
        """Times the clock found the queue empty in the middle of a part."""
        return int(self._queues.counters()[1])

    @property
    def underrun_frames(self) -> int:
        """20 ms frames of silence played because of that."""
        return int(self._queues.counters()[2])

    @property
    def frames_refused(self) -> int:
        """Frames that did not fit."""
        return int(self._queues.counters()[3])

    def __len__(self) -> int:
        return int(self._queues.queued())

    def put(self, audio: bytes) -> int:
        """Queue whole frames; returns how many were refused (0 or all)."""
        return int(self._queues.put(audio))

    def flush(self) -> int:
        """Take out what was not played; returns its frames."""
        self._expecting = False
        return int(self._queues.flush())

    def pause(self, paused: bool) -> None:
        """Hold the queue and play silence, or go on."""
        self._queues.pause(paused)

    def transition(self) -> Transition | None:
        """The oldest start or stop not seen yet."""
        found = self._queues.transition()
        return None if found is None else Transition(*found)


class NativeUplink:
    """As :class:`gateway.audio.uplink.Uplink`; encoded on the media clock."""

    def __init__(self, queues: Any, codec: Codec) -> None:
        self._queues = queues
        self.codec = codec
        self.drain = queues.drain

    @property
    def frames(self) -> int:
        """Frames taken from the media clock."""
        return int(self._queues.counters()[4])

    @property
    def dropped(self) -> int:
        """Frames lost because the event loop did not keep up."""
        return int(self._queues.counters()[5])


class NativeCallAudio:
    """Both directions of one call's audio, in C++."""

    __slots__ = ("codec", "playout", "queues", "uplink")

    def __init__(self, codec: Codec, max_playout_frames: int) -> None:
        self.codec = codec
        self.queues = pj.NativeCallAudio(_LAWS[codec], max_playout_frames, MAX_FRAMES)
        self.playout = NativePlayout(self.queues, codec)
        self.uplink = NativeUplink(self.queues, codec)


def make_port(name: str) -> Any:
    """A port of the bridge for such calls; on the SIP thread."""
    port = pj.NativeAudioPort()
    port.createPort(name)
    return port


def beat_fd() -> int:
    """Readable after each beat of the media clock that brought caller audio."""
    return int(pj.nativeBeatFd())


def clear_beat() -> None:
    """Take the announcement of a beat, before draining."""
    pj.nativeBeatClear()

"""The media ends of calls: pooled ports that pjmedia's clock thread calls every 20 ms.

A port is never destroyed while the library lives: the clock thread calls into it until its
asynchronous removal has run, so one freed with its call is a crash. Ports are made on demand, up
to the peak of concurrent calls, and serve one call after another; an idle one returns at once.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, Protocol

import pjsua2 as pj

from gateway.audio.g711 import FRAME_MS, PCM_FRAME_BYTES, SAMPLE_RATE, Codec
from gateway.audio.playout import Playout
from gateway.audio.uplink import Uplink
from gateway.sip import native
from gateway.sip.library import frame_writer, read_frame

_SILENCE = bytes(PCM_FRAME_BYTES)


class CallAudio:
    """Both directions of one call's audio, between the media clock and the event loop.

    Args:
        codec: the law that the call negotiated.
        max_playout_frames: bound of the playout queue, in 20 ms frames.
    """

    __slots__ = ("codec", "playout", "uplink")

    def __init__(self, codec: Codec, max_playout_frames: int) -> None:
        self.codec = codec
        self.uplink = Uplink(codec)
        self.playout = Playout(codec, max_playout_frames)


_settled_threads: set[int] = set()


def keep_thread_state() -> None:
    """Let a thread that is not Python's keep its interpreter state between callbacks.

    The interpreter makes one for each callback and frees it afterwards, four times the cost of a
    port's two callbacks. One reference that is never given back keeps it for the thread's life.
    """
    thread = threading.get_ident()
    if thread not in _settled_threads:
        _settled_threads.add(thread)
        ctypes.pythonapi.PyGILState_Ensure()


class AudioPort(pj.AudioMediaPort):  # type: ignore[misc]
    """One port of the conference bridge; carries the audio of the call it is attached to.

    Args:
        wake: called on the media clock when caller audio has come; must not wait.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake
        self._write = frame_writer()
        self._audio: CallAudio | None = None
        self._settled = False
        self.faults = 0
        """Exceptions caught in the callbacks; each is a defect."""

    def attach(self, audio: CallAudio | None) -> None:
        """Serve this call from the next frame on, or none."""
        self._audio = audio

    def onFrameRequested(self, frame: Any) -> None:  # noqa: N802 (pjsua2's name)
        """20 ms for the caller are due. Media clock: no lock, no log, nothing raised."""
        try:
            if not self._settled:
                self._settled = True
                keep_thread_state()
            audio = self._audio
            if audio is None:
                frame.type = pj.PJMEDIA_FRAME_TYPE_NONE
                return
            self._write(frame, audio.playout.pull() or _SILENCE)
            frame.size = PCM_FRAME_BYTES
            frame.type = pj.PJMEDIA_FRAME_TYPE_AUDIO
        except Exception:
            self.faults += 1

    def onFrameReceived(self, frame: Any) -> None:  # noqa: N802 (pjsua2's name)
        """20 ms from the caller are here. Media clock: no lock, no log, nothing raised."""
        try:
            audio = self._audio
            if audio is None:
                return
            if frame.type == pj.PJMEDIA_FRAME_TYPE_AUDIO:
                pcm = read_frame(frame)
                audio.uplink.push(pcm if len(pcm) == PCM_FRAME_BYTES else _SILENCE)
            else:
                # No packet came: the session's clock goes on all the same, or its voice activity
                # detection would wait for ever on a caller who uses silence suppression.
                audio.uplink.push(_SILENCE)
            self._wake()
        except Exception:
            self.faults += 1


LegAudio = CallAudio | native.NativeCallAudio
"""The audio of a leg, in either form."""


def call_audio(codec: Codec, max_playout_frames: int) -> LegAudio:
    """Both directions of a call's audio, in C++ where this pjsua2 has it."""
    make = native.NativeCallAudio if native.AVAILABLE else CallAudio
    return make(codec, max_playout_frames)


class Port(Protocol):
    """What the pool and the legs need of a port, in either form."""

    def startTransmit(self, sink: Any) -> None: ...  # noqa: N802 (pjsua2's name)
    def stopTransmit(self, sink: Any) -> None: ...  # noqa: N802


class PortPool:
    """Ports that exist, taken and given back on the SIP thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._idle: dict[type, list[Any]] = {CallAudio: [], native.NativeCallAudio: []}
        self._all: list[Any] = []

    @property
    def size(self) -> int:
        """Ports made so far: the peak of concurrent calls with media."""
        return len(self._all)

    @property
    def faults(self) -> int:
        """Exceptions caught in media callbacks."""
        return sum(port.faults for port in self._all if isinstance(port, AudioPort))

    def take(self, audio: LegAudio) -> Port:
        """A port that serves ``audio``. Raises ``pj.Error`` when the bridge has no place."""
        idle = self._idle[type(audio)]
        port = idle.pop() if idle else self._make(audio)
        port.attach(audio if isinstance(audio, CallAudio) else audio.queues)
        return port  # type: ignore[no-any-return]

    def give_back(self, port: Port) -> None:
        """End the port's service; the next call may take it."""
        if isinstance(port, AudioPort):
            port.attach(None)
            self._idle[CallAudio].append(port)
        else:
            port.detach()  # type: ignore[attr-defined]
            self._idle[native.NativeCallAudio].append(port)

    def abandon(self) -> None:
        """Leave the ports to the end of the process: their destructors must not run any more.

        Called after the library has been destroyed, when a destructor would call into nothing.
        """
        for port in self._all:
            port.this.disown()

    def _make(self, audio: LegAudio) -> Any:
        name = f"gateway-{len(self._all)}"
        if isinstance(audio, native.NativeCallAudio):
            made = native.make_port(name)
        else:
            made = AudioPort(self._wake)
            form = pj.MediaFormatAudio()
            form.type = pj.PJMEDIA_TYPE_AUDIO
            form.clockRate = SAMPLE_RATE
            form.channelCount = 1
            form.bitsPerSample = 16
            form.frameTimeUsec = FRAME_MS * 1000
            made.createPort(name, form)
        self._all.append(made)
        return made

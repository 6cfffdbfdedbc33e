# SPDX-License-Identifier: GPL-2.0-or-later
"""The media ends of calls, in C++ (``deploy/pjsua2/native``): queues, and pooled bridge ports.

Towards the caller pjmedia's clock thread takes a frame every 20 ms. From the caller, the payloads
of RTP packets are put into order and queued by the thread that receives them; nothing waits for the
clock. Neither thread enters the interpreter. The event loop is told through one file descriptor
which calls have something, and moves all of it.

A port is never destroyed while the library lives: the clock thread calls into it until its
asynchronous removal has run, so one freed with its call is a crash. Ports are made on demand, up
to the peak of concurrent calls, and serve one call after another; an idle one returns at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Protocol

import pjsua2 as pj
import structlog

from gateway.audio.g711 import FRAME_MS, SAMPLE_RATE, Codec, g722_coder
from gateway.measures import LAG, Distribution
from gateway.sip.types import UplinkCounts

log = structlog.get_logger("sip")

MAX_UPLINK_FRAMES = 250
"""Five seconds. The loop drains the queue as it fills; only a loop that hangs lets it grow, and
audio older than that is worth less to a conversation than what is said now."""

_NATIVE_CODECS = {Codec.PCMU: 0, Codec.PCMA: 1, Codec.G722: 2}

g722_coder.append(pj.NativeG722)


class Source(IntEnum):
    """Where a caller's audio is taken from."""

    NOBODY = pj.NativeCallAudio.NOBODY
    """Silence, in real time."""
    PACKETS = pj.NativeCallAudio.PACKETS
    """RTP payloads, in order, as they come."""
    BRIDGE = pj.NativeCallAudio.BRIDGE
    """A mix of several legs, every 20 ms."""


@dataclass(frozen=True, slots=True)
class Transition:
    """Playout began (``playing``) or ran empty, at ``at`` (``time.monotonic()`` seconds)."""

    playing: bool
    at: float


class Playout:
    """Frames of one call, in the order in which the caller is to hear them.

    A frame is taken by the media clock (and so goes into RTP) or by :meth:`flush`, never by both
    and never by neither: that is what makes ``audio_end_ms`` exact.
    """

    def __init__(self, queues: Any, codec: Codec, max_frames: int) -> None:
        self.max_frames = max_frames
        self.put: Callable[[bytes], int] = partial(pj._pjsua2.NativeCallAudio_put, queues)
        """Queues whole frames of G.711; returns how many were refused (0 or all).

        All or nothing, so that what was heard of a part is always a prefix of it. Fifty times a
        second and call, so the wrapper is called past SWIG's Python part.
        """
        self._queues = queues
        self._codec = codec
        self._expecting = False
        self._silenced = threading.Lock()
        self._awaits_keys = self._awaits_sound = False

    @property
    def codec(self) -> Codec:
        """Codec of the audio put in, and of what the caller says."""
        return self._codec

    @codec.setter
    def codec(self, codec: Codec) -> None:
        self._codec = codec
        self._queues.useLaw(_NATIVE_CODECS[codec])

    @property
    def expecting(self) -> bool:
        """More audio of the current part is to come: an empty queue is an underrun, no end."""
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

    @property
    def queued_ms(self) -> int:
        """Audio waiting, ms."""
        return len(self) * FRAME_MS

    def __len__(self) -> int:
        return int(self._queues.queued())

    def flush(self) -> int:
        """Take out what the clock has not taken; returns its frames."""
        self._expecting = False
        return int(self._queues.flush())

    def pause(self, paused: bool) -> None:
        """Hold the queue as it is and play silence, or go on."""
        self._queues.pause(paused)

    def await_keys(self, waiting: bool) -> None:
        """As :meth:`pause`, while SRTP has no keys: nobody could hear it."""
        with self._silenced:
            self._awaits_keys = waiting
            self._queues.awaitKeys(waiting or self._awaits_sound)

    def await_sound(self, waiting: bool) -> None:
        """As :meth:`pause`, while a sound plays that is to end before what is put in begins."""
        with self._silenced:
            self._awaits_sound = waiting
            self._queues.awaitKeys(waiting or self._awaits_keys)

    def transition(self) -> Transition | None:
        """The oldest start or stop that the event loop has not seen yet."""
        found = self._queues.transition()
        return None if found is None else Transition(*found)

    def pull(self) -> bytes | None:
        """Take a frame as the media clock does, as linear samples; None for silence. For tests."""
        frame: bytes | None = self._queues.pull()
        return frame


class Uplink:
    """The audio of one caller, in order, bounded, with counts of what was lost."""

    def __init__(self, queues: Any) -> None:
        self._queues = queues
        self.take: Callable[[], tuple[bytes, bool]] = partial(
            pj._pjsua2.NativeCallAudio_take, queues
        )
        """Takes all that waits, as G.711 bytes; and whether :meth:`Playout.transition` has
        something."""
        self.id = int(queues.id())
        """By which :func:`take_ready` names the call."""

    @property
    def counts(self) -> UplinkCounts:
        """What has become of the packets so far. Any thread."""
        counted: tuple[int, ...] = self._queues.uplinkCounters()
        in_ms = (-(-samples * 1000 // SAMPLE_RATE) for samples in counted[8:])
        return UplinkCounts(*counted[:8], *in_ms)

    def tap(self, stream: int, wait_ms: int) -> None:
        """Have the packets of this stream, by its address. SIP thread, while it is there.

        Args:
            wait_ms: how long a missing packet is waited for.
        """
        self._queues.tap(stream, wait_ms)

    def receive(self, number: int, audio: bytes) -> None:
        """Take the caller's frame of this number, which came otherwise than by RTP."""
        now = time.monotonic_ns() // 1000
        samples = number * len(audio) & 0xFFFFFFFF
        self._queues.receive(now, 0, number & 0xFFFF, samples, audio, _NATIVE_CODECS[Codec.PCMU])

    def heard_by_caller_of(self, call: CallAudio) -> None:
        """What comes here from the bridge is what the caller of ``call`` hears. SIP thread."""
        self._queues.bringTo(call.queues)

    def listen(self, source: Source) -> None:
        """Take the audio from there. SIP thread."""
        self._queues.listen(int(source))

    def drain(self) -> bytes:
        """All that waits, as G.711 bytes; empty when nothing does."""
        return self.take()[0]

    def push(self, pcm: bytes) -> None:
        """Let the media clock beat, with a frame of the bridge. For tests."""
        self._queues.push(pcm)


@dataclass(frozen=True, slots=True)
class RecorderCounts:
    """What became of the frames (20 ms) of a recording."""

    frames: int
    """All that the recording is long."""
    dropped: int
    """In whose place there is silence, since the writer took none for too long."""
    silenced: int
    """Of which nothing is kept, as somebody wanted."""
    shifted_samples: int
    """Of the caller, left out, or of silence put in, to follow the clock of playout."""


class Recorder:
    """Both sides of one call as the caller heard them, frame by frame on the clock of playout.

    Left what the caller sent, right what was sent to them, whoever it came from.

    Args:
        which: what for: a recording, or people who listen in.
    """

    def __init__(self, queues: Any, which: int = pj.NativeCallAudio.RECORDING) -> None:
        self._queues = queues
        self._which = which

    def start(self, max_frames: int) -> None:
        """Record from now on; at most so many frames wait until they are taken."""
        self._queues.startRecording(self._which, max_frames)

    def end(self) -> None:
        """Record no more; what is left can still be taken."""
        self._queues.endRecording(self._which)

    def silence(self, silent: bool) -> None:
        """Record silence, or sound again."""
        self._queues.silenceRecording(self._which, silent)

    def take(self) -> bytes:
        """Return what was recorded since the last time: G.711, left and right by turns. Any
        thread."""
        taken: bytes = self._queues.takeRecording(self._which)
        return taken

    @property
    def counts(self) -> RecorderCounts:
        """The counts so far. Any thread."""
        return RecorderCounts(*self._queues.recordingCounters(self._which))


class CallAudio:
    """Both directions of one call's audio, between the media clock and the event loop.

    Args:
        codec: the codec that the call negotiated.
        max_playout_frames: bound of the playout queue, in 20 ms frames; audio comes faster than
            real time, so it has to hold a whole answer.
        recorded: keep both directions of each 20 ms together, at most so many, instead of an
            uplink; such audio comes from the bridge.
    """

    __slots__ = (
        *("codec", "line", "monitor", "own_source", "playout", "queues", "recorder"),
        "uplink",
    )

    def __init__(
        self,
        codec: Codec,
        max_playout_frames: int,
        recorded: int = 0,
    ) -> None:
        self.codec = codec
        self.line: Any = None
        """``pj.NativeLine`` of one that was spoiled before its stream was made."""
        self.own_source = Source.BRIDGE if recorded else Source.PACKETS
        """Where its own leg's audio is taken from."""
        self.queues = pj.NativeCallAudio(
            _NATIVE_CODECS[codec], max_playout_frames, MAX_UPLINK_FRAMES
        )
        if recorded:
            self.queues.record(recorded)
        self.playout = Playout(self.queues, codec, max_playout_frames)
        self.uplink = Uplink(self.queues)
        self.recorder = Recorder(self.queues)
        self.monitor = Recorder(self.queues, pj.NativeCallAudio.LISTENING)
        """For those who listen in."""

    def spoil(self, loss_percent: int, jitter_ms: int) -> None:
        """Lose packets in both directions, and send them late, from now on: for tests of others.

        Has an effect on a call that it was called for before the call was placed.

        Args:
            loss_percent: 0, or 2 and more.
            jitter_ms: how late at most, each packet at random.
        """
        if self.line is None:
            self.line = pj.NativeLine()
        self.line.set(loss_percent, jitter_ms)

    def log_packets(self, max_bytes: int, payload: bool) -> None:
        """Keep the header of each RTP packet that comes or is sent, until it is taken.

        Args:
            max_bytes: that are kept at most.
            payload: keep what is in the packets, too.
        """
        self.queues.logPackets(max_bytes, payload)

    def take_packets(self) -> tuple[bytes, int]:
        """Return packets since the last time, as ``call_audio.hpp`` has them, and how many found no
        room."""
        found: tuple[bytes, int] = self.queues.takePackets()
        return found

    @property
    def levels(self) -> tuple[int, int]:
        """Peaks (of 32,767) of what the caller sends and of what is sent to them, just now."""
        found: tuple[int, int] = self.queues.levels()
        return found


class Port(Protocol):
    """A port of the conference bridge."""

    def attach(self, queues: Any) -> None: ...
    def detach(self) -> None: ...
    def getPortId(self) -> int: ...  # noqa: N802 (pjsua2's name)
    def startTransmit(self, sink: Any) -> None: ...  # noqa: N802 (pjsua2's name)
    def stopTransmit(self, sink: Any) -> None: ...  # noqa: N802 (pjsua2's name)


@dataclass(frozen=True, slots=True)
class BridgeFailure:
    """An operation of the bridge that failed after it was accepted."""

    operation: str
    source: int
    sink: int
    status: int


_OPERATIONS = {
    pj.PJMEDIA_CONF_OP_ADD_PORT: "add",
    pj.PJMEDIA_CONF_OP_REMOVE_PORT: "remove",
    pj.PJMEDIA_CONF_OP_CONNECT_PORTS: "connect",
    pj.PJMEDIA_CONF_OP_DISCONNECT_PORTS: "disconnect",
}


class Connections:
    """Who hears whom in the bridge: all that was asked for and not taken back. On the SIP thread.

    The bridge names ports by numbers, which it gives to the next call as soon as a stream is gone,
    and does what it is asked later, in the order of asking. So nothing may be asked for by the
    number of a stream that is gone: :meth:`forget` is called as it goes. A connection is made once
    and taken away once, so that an operation that fails is a fault.
    """

    def __init__(self) -> None:
        self._ways: dict[int, dict[tuple[int, int], tuple[Any, Any, float | None]]] = {}
        self._asked = 0
        """Disconnections so far."""

    def __len__(self) -> int:
        return len({way for ways in self._ways.values() for way in ways})

    def connect(self, source: Any, sink: Any, level: float | None = None) -> None:
        """Let ``sink`` hear ``source`` at that level, a factor; None: as it is.

        Raises ``pj.Error`` where one of them is gone.
        """
        way = (int(source.getPortId()), int(sink.getPortId()))
        present = self._ways.get(way[0], {}).get(way)
        if present is not None:
            if present[2] == level:
                return
            self._separate(way)  # a connection keeps the level that it was made with
        if level is None:
            source.startTransmit(sink)
        else:
            param = pj.AudioMediaTransmitParam()
            param.level = level
            source.startTransmit2(sink, param)
        for slot in way:
            self._ways.setdefault(slot, {})[way] = (source, sink, level)

    def separate(self, source: Any, sink: Any) -> None:
        """Let ``sink`` hear ``source`` no more."""
        way = (int(source.getPortId()), int(sink.getPortId()))
        if way in self._ways.get(way[0], {}):
            self._separate(way)

    def part(self, media: Any) -> None:
        """Let nobody hear ``media``, a port that stays, and it hear nobody."""
        for way in list(self._ways.get(int(media.getPortId()), {})):
            self._separate(way)

    def forget(self, media: Any) -> None:
        """Drop what is known of a stream that the library has removed with its connections."""
        for way in list(self._ways.get(int(media.getPortId()), {})):
            self._drop(way)

    def _separate(self, way: tuple[int, int]) -> None:
        source, sink, _level = self._drop(way)
        try:
            source.stopTransmit(sink)
        except pj.Error as error:  # one of them is gone, and the connection with it
            failure = BridgeFailure("disconnect", *way, int(error.status))
            log.error("sip.bridge_failed", **asdict(failure))
        else:
            self._asked += 1

    def _drop(self, way: tuple[int, int]) -> tuple[Any, Any, float | None]:
        for slot in set(way):
            ways = self._ways[slot]
            found = ways.pop(way)
            if not ways:
                del self._ways[slot]
        return found

    @property
    def asked(self) -> int:
        """Disconnections asked for so far."""
        return self._asked

    @property
    def done(self) -> int:
        """Disconnections that the bridge has carried out. Any thread."""
        return int(pj.nativeDisconnections())

    @staticmethod
    def failures() -> list[BridgeFailure]:
        """Return the operations that have failed since the last time, some dozens at most."""
        return [
            BridgeFailure(_OPERATIONS.get(operation, str(operation)), *rest)
            for operation, *rest in pj.nativeTakeBridgeFailures()
        ]


class PortPool:
    """Ports that exist, taken and given back on the SIP thread."""

    def __init__(self) -> None:
        self.connections = Connections()
        self._idle: deque[tuple[int, Port]] = deque()
        """Each with how many disconnections have to be done before it may serve another call."""
        self._all: list[Any] = []

    @property
    def size(self) -> int:
        """Ports made so far: the peak of concurrent calls with media."""
        return len(self._all)

    def take(self, audio: CallAudio) -> Port:
        """A port that serves ``audio``. Raises ``pj.Error`` when the bridge has no place."""
        free = bool(self._idle) and self._idle[0][0] <= self.connections.done
        port = self._idle.popleft()[1] if free else self._make()
        port.attach(audio.queues)
        return port

    @property
    def in_use(self) -> int:
        """Ports that serve a call. Any thread."""
        return len(self._all) - len(self._idle)

    def give_back(self, port: Port) -> None:
        """End the port's service; the next call may take it once nobody hears it any more."""
        port.detach()
        self.connections.part(port)
        self._idle.append((self.connections.asked, port))

    def abandon(self) -> None:
        """Leave the ports to the end of the process: their destructors must not run any more.

        Called after the library has been destroyed, when a destructor would call into nothing.
        """
        for port in self._all:
            port.this.disown()

    def _make(self) -> Port:
        made = pj.NativeAudioPort()
        made.createPort(f"gateway-{len(self._all)}")
        self._all.append(made)
        return made  # type: ignore[no-any-return]


def ready_fd() -> int:
    """Readable when calls have something for the event loop."""
    return int(pj.nativeReadyFd())


def note_ready() -> None:
    """Make the descriptor unreadable until :func:`take_ready` was called and a call has more."""
    pj.nativeReadyNoted()


def take_ready() -> list[int]:
    """The ids of the calls that have something; each is named once until it is drained."""
    ready: list[int] = pj.nativeTakeReady()
    return ready


def waited() -> float:
    """How long (s) the first of :func:`take_ready` had waited for it."""
    return float(pj.nativeWaited())


def bridge_failures() -> int:
    """How many operations of the bridge have failed since the start. Any thread."""
    return int(pj.nativeBridgeFailures())


def late_beats() -> Distribution:
    """By how much (s) the media clock came late, since the start. Any thread."""
    found = Distribution(LAG)
    found.counts, found.total = pj.nativeLateBeats()
    return found


def beats() -> int:
    """How often the media clock has ticked while ports were in use. Any thread."""
    return int(pj.nativeBeats())

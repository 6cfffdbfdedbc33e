# SPDX-License-Identifier: GPL-2.0-or-later
"""The audio of calls, in C++ (``deploy/pjsua2/native``): queues, and ports of pjmedia's bridge.

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
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Protocol

import pjsua2 as pj
import structlog

from gateway.audio import FRAME_MS, SAMPLE_RATE, Codec
from gateway.sip.rtp import UplinkCounts

log = structlog.get_logger("sip")

MAX_UPLINK_FRAMES = 250
"""Five seconds. The loop drains the queue as it fills; only a loop that hangs lets it grow, and
audio older than that is worth less to a conversation than what is said now."""

_NATIVE_CODECS = {Codec.PCMU: 0, Codec.PCMA: 1, Codec.G722: 2, Codec.OPUS: 3}


def narrowing() -> Callable[[bytes], bytes]:
    """Return a function that makes PCMU of one call's samples at 24 kHz; it has to be given all of
    them, in their order, as its filter has a memory."""
    return pj.NativeNarrow().narrow  # type: ignore[no-any-return]


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
    """A start (``playing``) or end of playout at ``at`` (``time.monotonic()``, s)."""

    playing: bool
    at: float


@dataclass(frozen=True, slots=True)
class RecorderCounts:
    """Counts of the frames (20 ms) of a recording."""

    frames: int
    """All that the recording is long."""
    dropped: int
    """In whose place there is silence, since the writer took none for too long."""
    silenced: int
    """Of which nothing is kept, as somebody wanted."""
    shifted_samples: int
    """Of the caller, left out, or of silence put in, to follow the clock of playout."""


class Playout:
    """Queue of the frames (20 ms) that one caller will hear, in order. Any thread may use it.

    Each frame is taken exactly once, by the media clock (which sends it) or by :meth:`flush`. That
    makes ``audio_end_ms`` exact.
    """

    def __init__(self, queues: Any, codec: Codec, max_frames: int) -> None:
        self.max_frames = max_frames
        self.put: Callable[[bytes], int] = partial(pj._pjsua2.NativeCallAudio_put, queues)
        """Queues whole frames of the codec; returns how many were refused (0 or all).

        All or nothing, so that the frames heard of a delta are always its first ones. Fifty times a
        second and call, so the wrapper is called past SWIG's Python part.
        """
        self._queues = queues
        self._codec = codec
        self._expecting = False
        self._silenced = threading.Lock()
        self._awaits_keys = self._awaits_sound = False

    @property
    def codec(self) -> Codec:
        """Codec of the audio in both directions."""
        return self._codec

    @codec.setter
    def codec(self, codec: Codec) -> None:
        self._codec = codec
        self._queues.useLaw(_NATIVE_CODECS[codec])

    @property
    def expecting(self) -> bool:
        """Whether more audio of the current part will come, so that an empty queue is an underrun.
        The event loop sets it; :meth:`flush` clears it."""
        return self._expecting

    @expecting.setter
    def expecting(self, expecting: bool) -> None:
        if expecting is not self._expecting:
            self._expecting = expecting
            self._queues.expect(expecting)

    @property
    def frames_played(self) -> int:
        """Return frames handed to the media clock so far, without silence."""
        return int(self._queues.counters()[0])

    @property
    def underruns(self) -> int:
        """Return how often the clock found the queue empty while more audio was expected."""
        return int(self._queues.counters()[1])

    @property
    def underrun_frames(self) -> int:
        """Return the frames (20 ms) of silence played in underruns."""
        return int(self._queues.counters()[2])

    @property
    def frames_refused(self) -> int:
        """Return frames that did not fit into the queue so far."""
        return int(self._queues.counters()[3])

    @property
    def queued_ms(self) -> int:
        """Return the audio in the queue, in ms."""
        return len(self) * FRAME_MS

    def __len__(self) -> int:
        """Return the frames in the queue."""
        return int(self._queues.queued())

    def flush(self) -> int:
        """Drop the frames that the clock has not taken, and return how many they were; nothing is
        expected then."""
        self._expecting = False
        return int(self._queues.flush())

    def pause(self, paused: bool) -> None:
        """Pause playout (silence is sent, the queue is kept), or resume it (False). The pauses of
        :meth:`await_keys` and :meth:`await_sound` are apart from this one."""
        self._queues.pause(paused)

    def await_keys(self, waiting: bool) -> None:
        """Pause playout as :meth:`pause` does while SRTP has no keys; False ends it, unless a sound
        is awaited."""
        with self._silenced:
            self._awaits_keys = waiting
            self._queues.awaitKeys(waiting or self._awaits_sound)

    def await_sound(self, waiting: bool) -> None:
        """Pause playout as :meth:`pause` does until a sound that plays has ended; False ends it,
        unless keys are awaited."""
        with self._silenced:
            self._awaits_sound = waiting
            self._queues.awaitKeys(waiting or self._awaits_keys)

    def transition(self) -> Transition | None:
        """Return the oldest start or end of playout that was not returned yet; None for none."""
        found = self._queues.transition()
        return None if found is None else Transition(*found)

    def pull(self) -> bytes | None:
        """Take a frame as the media clock does: linear samples; None where silence is sent. For
        tests."""
        frame: bytes | None = self._queues.pull()
        return frame


class Uplink:
    """Queue of one caller's audio for the session, in the codec of the call, in order and bounded,
    with counts of losses."""

    def __init__(self, queues: Any) -> None:
        self._queues = queues
        self.take: Callable[[], tuple[bytes, bool]] = partial(
            pj._pjsua2.NativeCallAudio_take, queues
        )
        """Takes all that waits, and whether :meth:`Playout.transition` has something."""
        self.id = int(queues.id())
        """By which :func:`take_ready` names the call."""

    @property
    def counts(self) -> UplinkCounts:
        """Return the counts of the caller's packets so far. Any thread."""
        counted: tuple[int, ...] = self._queues.uplinkCounters()
        in_ms = (-(-samples * 1000 // SAMPLE_RATE) for samples in counted[8:])
        return UplinkCounts(*counted[:8], *in_ms)

    def tap(self, stream: int, wait_ms: int) -> None:
        """Take the RTP packets of a stream, given by its address, from now on. On the SIP thread,
        while the stream exists.

        Args:
            wait_ms: how long a missing packet is waited for.
        """
        self._queues.tap(stream, wait_ms)

    def receive(self, number: int, audio: bytes) -> None:
        """Take the caller's frame of G.711 with this sequence number (from 0), which came without
        RTP."""
        now = time.monotonic_ns() // 1000
        samples = number * len(audio) & 0xFFFFFFFF
        self._queues.receive(now, 0, number & 0xFFFF, samples, audio, _NATIVE_CODECS[Codec.PCMU])

    def heard_by_caller_of(self, call: CallAudio) -> None:
        """Count what comes here from the bridge as heard by the caller of ``call``, so that its
        recording has it. On the SIP thread."""
        self._queues.bringTo(call.queues)

    def listen(self, source: Source) -> None:
        """Take the audio from this source, and no other, from now on. On the SIP thread."""
        self._queues.listen(int(source))

    def drain(self) -> bytes:
        """Remove and return all audio that waits, in the call's codec; empty when there is none."""
        return self.take()[0]

    def push(self, pcm: bytes) -> None:
        """Take a frame of the bridge (linear samples) as the media clock does. For tests."""
        self._queues.push(pcm)


class Recorder:
    """Records both sides of a call as the caller hears them: a frame each per 20 ms of playout.

    Left is the audio from the caller, right the audio to the caller, from all sources.

    Args:
        which: purpose: a recording, or people who listen in.
    """

    def __init__(self, queues: Any, which: int = pj.NativeCallAudio.RECORDING) -> None:
        self._queues = queues
        self._which = which

    def start(self, max_frames: int) -> None:
        """Start to record. At most ``max_frames`` frames (20 ms) wait for :meth:`take`;
        further ones become silence, and are counted."""
        self._queues.startRecording(self._which, max_frames)

    def end(self) -> None:
        """Stop recording; the frames that are left can still be taken."""
        self._queues.endRecording(self._which)

    def silence(self, silent: bool) -> None:
        """Record silence in place of both sides (True), or sound again. The length of the recording
        stays true."""
        self._queues.silenceRecording(self._which, silent)

    def take(self) -> bytes:
        """Return what was recorded since the last call, as G.711, left and right samples
        interleaved; empty when there is nothing.

        Any thread may call it.
        """
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
        """Lose RTP packets of a call in both directions, and delay those sent, to simulate a bad
        network. To be called before the call is placed, and again to change the values.

        Args:
            loss_percent: 0, or 2 and more.
            jitter_ms: largest delay; each packet has a random one.
        """
        if self.line is None:
            self.line = pj.NativeLine()
        self.line.set(loss_percent, jitter_ms)

    def log_packets(self, max_bytes: int, payload: bool) -> None:
        """Log the header of each RTP packet sent or received from now on, until
        :meth:`take_packets` takes them; what does not fit is counted.

        Args:
            max_bytes: size of the log at most.
            payload: keep the payload of the packets, too.
        """
        self.queues.logPackets(max_bytes, payload)

    def take_packets(self) -> tuple[bytes, int]:
        """Return the packets logged since the last call, and how many did not fit.

        Their format is in ``call_audio.hpp``.
        """
        found: tuple[bytes, int] = self.queues.takePackets()
        return found

    @property
    def levels(self) -> tuple[int, int]:
        """Return the current peaks (of 32,767) of what the caller sends and of what is sent to
        the caller."""
        found: tuple[int, int] = self.queues.levels()
        return found


class Port(Protocol):
    """A port of the conference bridge, as pjsua2 has it. ``attach`` has it serve the queues of a
    call's audio."""

    def attach(self, queues: Any) -> None: ...
    def detach(self) -> None: ...
    def getPortId(self) -> int: ...  # noqa: N802 (pjsua2's name)
    def startTransmit(self, sink: Any) -> None: ...  # noqa: N802 (pjsua2's name)
    def stopTransmit(self, sink: Any) -> None: ...  # noqa: N802 (pjsua2's name)


class Connections:
    """Connections of the conference bridge: those requested and not removed. On the SIP thread.

    The bridge identifies ports by slot numbers, which it reuses as soon as a stream is gone, and
    executes requests later, in their order. So no request may use the slot of a stream that is
    gone: :meth:`forget` is called when it goes. Each connection is made and removed once, so a
    failed operation is an error.
    """

    def __init__(self) -> None:
        self._ways: dict[int, dict[tuple[int, int], tuple[Any, Any, float | None]]] = {}
        self.asked = 0
        """Disconnections requested so far."""

    def __len__(self) -> int:
        """Return the number of connections."""
        return len({way for ways in self._ways.values() for way in ways})

    def connect(self, source: Any, sink: Any, level: float | None = None) -> None:
        """Let ``sink`` hear ``source``, at this level (a factor) or, with None, unchanged. Nothing
        if it does so already; one at another level is made anew.

        Raises ``pj.Error`` where one of them is gone.
        """
        way = (int(source.getPortId()), int(sink.getPortId()))
        present = self._ways.get(way[0], {}).get(way)
        if present is not None:
            if present[2] == level:
                return
            self._disconnect(way)  # a connection keeps the level that it was made with
        if level is None:
            source.startTransmit(sink)
        else:
            param = pj.AudioMediaTransmitParam()
            param.level = level
            source.startTransmit2(sink, param)
        for slot in way:
            self._ways.setdefault(slot, {})[way] = (source, sink, level)

    def disconnect(self, source: Any, sink: Any) -> None:
        """Stop ``sink`` from hearing ``source``; nothing if it does not."""
        way = (int(source.getPortId()), int(sink.getPortId()))
        if way in self._ways.get(way[0], {}):
            self._disconnect(way)

    def disconnect_all(self, media: Any) -> None:
        """Remove all connections of ``media``, in both directions; the port stays in the bridge."""
        for way in list(self._ways.get(int(media.getPortId()), {})):
            self._disconnect(way)

    def forget(self, media: Any) -> None:
        """Forget the connections of a stream that the library has removed, and with it its
        connections."""
        for way in list(self._ways.get(int(media.getPortId()), {})):
            self._drop(way)

    def _disconnect(self, way: tuple[int, int]) -> None:
        """Remove one connection and count it in ``asked``; a failure is logged, and not counted."""
        source, sink, _level = self._drop(way)
        try:
            source.stopTransmit(sink)
        except pj.Error as error:  # one of them is gone, and the connection with it
            fields = {"source": way[0], "sink": way[1], "status": int(error.status)}
            log.error("sip.bridge_failed", operation="disconnect", **fields)
        else:
            self.asked += 1

    def _drop(self, way: tuple[int, int]) -> tuple[Any, Any, float | None]:
        """Forget a connection, and return its source, sink and level."""
        for slot in set(way):
            ways = self._ways[slot]
            found = ways.pop(way)
            if not ways:
                del self._ways[slot]
        return found

    @property
    def done(self) -> int:
        """Return how many disconnections the bridge has carried out since the library began. Any
        thread."""
        return int(pj.nativeDisconnections())


class PortPool:
    """The ports that exist in the bridge; a call takes one and gives it back. On the SIP thread."""

    def __init__(self) -> None:
        self.connections = Connections()
        self._idle: deque[tuple[int, Port]] = deque()
        """Each with how many disconnections have to be done before it may serve another call."""
        self._all: list[Any] = []

    def take(self, audio: CallAudio) -> Port:
        """Return a port that serves ``audio``: the one given back first, once its disconnections
        were carried out, else a new one. Raises ``pj.Error`` when the bridge is full."""
        free = bool(self._idle) and self._idle[0][0] <= self.connections.done
        port = self._idle.popleft()[1] if free else self._make()
        port.attach(audio.queues)
        return port

    @property
    def in_use(self) -> int:
        """Return how many ports serve a call. Any thread."""
        return len(self._all) - len(self._idle)

    def give_back(self, port: Port) -> None:
        """Free a port and remove its connections; the next call may take it once that was carried
        out."""
        port.detach()
        self.connections.disconnect_all(port)
        self._idle.append((self.connections.asked, port))

    def abandon(self) -> None:
        """Leave the ports undestroyed until the process ends: their destructors would crash.

        To be called after the library has been destroyed.
        """
        for port in self._all:
            port.this.disown()

    def _make(self) -> Port:
        """Make a port in the bridge. Raises ``pj.Error`` when it is full."""
        made = pj.NativeAudioPort()
        made.createPort(f"gateway-{len(self._all)}")
        self._all.append(made)
        return made  # type: ignore[no-any-return]


def ready_fd() -> int:
    """Return the file descriptor that is readable when calls have audio for the event loop."""
    return int(pj.nativeReadyFd())


def note_ready() -> None:
    """Make the descriptor unreadable until :func:`take_ready` was called and new audio has come."""
    pj.nativeReadyNoted()


def take_ready() -> list[int]:
    """Return the ids (``Uplink.id``) of calls that have audio, or a start or end of playout; each
    is returned once until it is drained."""
    ready: list[int] = pj.nativeTakeReady()
    return ready


def waited() -> float:
    """Return how long (s) the call that was ready first had waited for the last
    :func:`take_ready`."""
    return float(pj.nativeWaited())

# SPDX-License-Identifier: GPL-2.0-or-later
"""The media end of a test's own telephone: RTP on a socket, each packet kept as it came.

No jitter buffer, no concealment, no clock but the sender's: what arrives is what was on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FRAME = 160
"""G.711 bytes of 20 ms, and RTP timestamp units."""
OPUS_PAYLOAD = 96
OPUS_STEP = 960
"""RTP timestamp units of 20 ms in Opus."""
EVENTS = "0123456789*#ABCD"
EVENT_PAYLOAD = 101
NOBODY = 9000
"""A port at which nobody listens, not even another test: below those that the kernel gives out, and
none of ``lab/ports.py`` or of a gateway's."""
_SO_TIMESTAMPNS = 35
_HEADER = struct.Struct("!BBHII")
_MARKER = 0x80


@dataclass(frozen=True, slots=True)
class Packet:
    """An RTP packet; ``at`` is when the kernel had it (Unix seconds)."""

    at: float
    sequence: int
    timestamp: int
    payload_type: int
    marker: bool
    payload: bytes
    tos: int = 0
    """The TOS byte of its IP header."""


@dataclass(slots=True)
class _Key:
    """A key that is being sent by RFC 4733: its event, and what is left of it."""

    event: int
    timestamp: int
    packets: int
    pause: int
    sent: int = 0


class RtpEnd:
    """An RTP port with its RTCP port above it. Sends 20 ms packets while it has a peer."""

    def __init__(self, payload_type: int, silence: bytes) -> None:
        self.payload_type = payload_type
        self.packets: list[Packet] = []
        self.loss: Callable[[], bool] = lambda: False
        """Asked for each packet about to be sent: True loses it on the way."""
        self.sending = True
        """False is a caller whose network is gone."""
        self.event_payload = EVENT_PAYLOAD
        """Payload number of our keys: the peer's for them."""
        self.sent = self.lost = 0
        self.sequence = random.getrandbits(15)
        """Of the next packet."""
        self.latest_s = 0.0
        """How late a packet was sent at worst: what this machine kept us waiting."""
        self._silence = frame_of(silence)
        self._socket, self._rtcp = _pair()
        self._peer: tuple[str, int] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._queue: deque[bytes] = deque()
        self._keys: deque[_Key] = deque()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._pulse = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        asyncio.get_running_loop().add_reader(self._rtcp, self._drain_rtcp)

    @property
    def port(self) -> int:
        """The RTP port."""
        return int(self._socket.getsockname()[1])

    @property
    def step(self) -> int:
        """RTP timestamp units of 20 ms."""
        return OPUS_STEP if self.payload_type == OPUS_PAYLOAD else FRAME

    def connect(self, host: str, port: int) -> None:
        """Send to this address from now on."""
        self._peer = (host, port)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name=f"rtp {self.port}")

    def say(self, audio: bytes) -> None:
        """Speak these G.711 bytes, after what waits already; the last frame is filled up."""
        for start in range(0, len(audio), FRAME):
            frame = audio[start : start + FRAME]
            self._queue.append(frame + self._silence[: FRAME - len(frame)])
        self._quiet.clear()

    def say_packets(self, packets: Sequence[bytes]) -> None:
        """Speak these packets of 20 ms, after what waits already."""
        self._queue.extend(packets)
        self._quiet.clear()

    def press(self, keys: str, *, packets: int = 4, pause: int = 3) -> None:
        """Press keys: ``packets`` and three end packets for each, ``pause`` frames between."""
        for key in keys:
            self._keys.append(_Key(EVENTS.index(key), 0, packets, pause))
        self._quiet.clear()

    async def quiet(self, within_s: float = 60.0) -> None:
        """Wait until everything has been said and pressed."""
        async with asyncio.timeout(within_s):
            await self._quiet.wait()

    async def until(self, condition: Callable[[], bool], within_s: float = 30.0) -> None:
        """Wait for a condition on what has arrived, looked at after each packet."""
        async with asyncio.timeout(within_s):
            while not condition():
                self._pulse.clear()
                await self._pulse.wait()

    async def heard_bytes(self, count: int, within_s: float = 30.0) -> None:
        """Wait until so many bytes of audio have come since the call began."""
        await self.until(lambda: len(self.packets) * FRAME >= count, within_s)

    @property
    def heard(self) -> bytes:
        """All that was heard so far, in the order of arrival."""
        return b"".join(packet.payload for packet in self.packets)

    async def close(self) -> None:
        """Give up the ports, unless that has been done."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        for end in (one for one in (self._socket, self._rtcp) if one.fileno() >= 0):
            asyncio.get_running_loop().remove_reader(end)
            end.close()

    def read_what_waits(self) -> None:
        """Take in what the kernel holds already; nothing once the ports are given up."""
        if self._socket.fileno() >= 0:
            self._read()

    def _read(self) -> None:
        while True:
            try:
                data, ancillary, _flags, sender = self._socket.recvmsg(2048, 64)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    continue
                raise
            at = came_at(ancillary)
            if len(data) < _HEADER.size:
                continue
            if self._peer is not None and sender[1] != self._peer[1]:
                continue  # for who had this port before: another test's telephone
            _first, second, sequence, timestamp, _source = _HEADER.unpack_from(data)
            self.packets.append(
                Packet(
                    at,
                    sequence,
                    timestamp,
                    second & 0x7F,
                    bool(second & _MARKER),
                    data[_HEADER.size :],
                    next((told[0] for level, kind, told in ancillary if kind == socket.IP_TOS), 0),
                )
            )
        self._pulse.set()

    def _drain_rtcp(self) -> None:
        try:
            while True:
                self._rtcp.recv(2048)
        except OSError:
            return

    async def _send_all(self) -> None:
        source = random.getrandbits(32)
        timestamp = random.getrandbits(31)
        start = time.monotonic()
        tick = 0
        while True:
            for payload_type, marker, stamp, payload in self._due(timestamp, first=tick == 0):
                if self.sending and not self.loss():
                    second = payload_type | (_MARKER if marker else 0)
                    self._put(_HEADER.pack(0x80, second, self.sequence, stamp, source) + payload)
                else:
                    self.lost += 1
                self.sequence = (self.sequence + 1) & 0xFFFF
            timestamp = (timestamp + self.step) & 0xFFFFFFFF
            self.latest_s = max(self.latest_s, time.monotonic() - start - tick * 0.02)
            tick += 1
            await asyncio.sleep(max(0.0, start + tick * 0.02 - time.monotonic()))

    def _due(self, timestamp: int, *, first: bool) -> list[tuple[int, bool, int, bytes]]:
        """What leaves in this 20 ms: a frame of audio, or packets of a key."""
        if not self._keys:
            frame = self._queue.popleft() if self._queue else self._silence
            if not self._queue:
                self._quiet.set()
            return [(self.payload_type, first, timestamp, frame)]
        key = self._keys[0]
        if key.sent == 0:
            key.timestamp = timestamp
        key.sent += 1
        if key.sent <= key.packets:
            body = struct.pack("!BBH", key.event, 10, key.sent * self.step)
            return [(self.event_payload, key.sent == 1, key.timestamp, body)]
        if key.sent == key.packets + 1:
            body = struct.pack("!BBH", key.event, 0x80 | 10, key.packets * self.step)
            return [(self.event_payload, False, key.timestamp, body)] * 3
        if key.sent >= key.packets + 1 + key.pause:
            self._keys.popleft()
            if not self._keys and not self._queue:
                self._quiet.set()
        return [(self.payload_type, False, timestamp, self._silence)]

    def _put(self, packet: bytes) -> None:
        assert self._peer is not None
        try:
            self._socket.sendto(packet, self._peer)
            self.sent += 1
        except (BlockingIOError, ConnectionRefusedError):
            self.lost += 1


_steps = itertools.cycle((1, 2, 3))


class Sender:
    """Sends audio as RTP, in packets of ``ptime`` ms, from any socket."""

    def __init__(self, end: RtpEnd, sock: socket.socket | None = None, *, ptime: int = 20) -> None:
        assert end._peer is not None
        end.sending = False
        self.peer = end._peer
        self._socket = sock or end._socket
        self.source = random.getrandbits(32)
        # Far from those before: RFC 3550 appendix A.1 takes what is a little lower for late.
        self.sequence = (end.sequence + 2**14 * next(_steps)) & 0xFFFF
        self.timestamp = random.getrandbits(30)
        self._size = ptime * 8
        self.payload_type = 0
        self.protect: Callable[[bytes], bytes] = bytes
        """Makes SRTP of each packet, where there are keys."""
        self.send: Callable[[bytes], object] = self._send
        """Takes each packet as it goes out."""

    def _send(self, packet: bytes) -> None:
        with contextlib.suppress(ConnectionRefusedError):  # of a packet before
            self._socket.sendto(packet, self.peer)

    async def say(self, audio: bytes) -> None:
        """In real time; returns when the last packet has gone."""
        start = time.monotonic()
        for at in range(0, len(audio), self._size):
            await asyncio.sleep(max(0.0, start + at / 8000 - time.monotonic()))
            self.put(audio[at : at + self._size], self.payload_type)

    def burst(self, audio: bytes) -> None:
        """At once: no busy machine makes a packet late."""
        for at in range(0, len(audio), self._size):
            self.put(audio[at : at + self._size], self.payload_type)

    def put(self, payload: bytes, payload_type: int, samples: int | None = None) -> None:
        """One packet; the clock goes on by its length, or by ``samples``."""
        header = struct.pack(
            "!BBHII", 0x80, payload_type, self.sequence, self.timestamp, self.source
        )
        self.send(self.protect(header + payload))
        self.sequence = (self.sequence + 1) & 0xFFFF
        step = len(payload) if samples is None else samples
        self.timestamp = (self.timestamp + step) & 0xFFFFFFFF


def unread(port: int) -> int:
    """Bytes that the kernel holds for whoever has this UDP port and has not read them yet."""
    rows = (line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:])
    mine = (row[4] for row in rows if int(row[1].partition(":")[2], 16) == port)
    return sum(int(queues.partition(":")[2], 16) for queues in mine)


def came_at(ancillary: Sequence[tuple[int, int, bytes]]) -> float:
    """When the kernel had a datagram of our sockets (Unix seconds), by what came with it."""
    for _level, kind, value in ancillary:
        if kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", value[:16])
            return float(seconds + nanoseconds / 1e9)
    return time.time()


def frame_of(silence: bytes) -> bytes:
    """20 ms of silence, given one byte of it, or a whole packet."""
    return silence * FRAME if len(silence) == 1 else silence


def _pair() -> tuple[socket.socket, socket.socket]:
    """An even port for RTP and the odd one above it for RTCP (RFC 3550 section 11)."""
    for _ in range(200):
        rtp = _bound(0)
        port = int(rtp.getsockname()[1])
        if port % 2 == 0:
            try:
                return rtp, _bound(port + 1)
            except OSError:
                pass
        rtp.close()
    raise OSError("no pair of ports is free")


def _bound(port: int) -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setblocking(False)
    try:
        # A test that is busy elsewhere must not lose what came meanwhile.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        end.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        end.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        end.bind(("127.0.0.1", port))
    except OSError:
        end.close()
        raise
    return end

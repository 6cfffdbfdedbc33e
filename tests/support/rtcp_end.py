# SPDX-License-Identifier: GPL-2.0-or-later
"""A telephone's media end that loses, delays and reports: RTP with jitter, and RTCP (RFC 3550)."""

from __future__ import annotations

import asyncio
import random
import struct
import time

from tests.support.rtp_end import RtpEnd, came_at

_NTP = 2_208_988_800
"""Seconds from 1900 to 1970."""
_HEADER = struct.Struct("!BBH")
_SR, _RR, _SDES = 200, 201, 202
_AGAIN_S = 0.4


class ReportingEnd(RtpEnd):
    """An :class:`RtpEnd` whose network delays packets, and which answers sender reports, the last
    one again and again: one that the machine holds up is not the only one.

    Set what it reports of the gateway's stream before the call; it is told with each report.
    """

    def __init__(self, payload_type: int, silence: bytes) -> None:
        super().__init__(payload_type, silence)
        self.delay_ms = (0.0,)
        """Delays of the packets, in turn."""
        self.reported_loss = 0.0
        """Of what the gateway sends, as a fraction."""
        self.reported_jitter_ms = 0.0
        self.network_ms = 0.0
        """There and back: the reports say that they left earlier than they do."""
        self.reports_sent = 0
        self.sender_reports = 0
        self.sent_at: list[float] = []
        """When each packet really left (s)."""
        self._turn = 0
        self._source = random.getrandbits(32)
        self._told: tuple[int, int, float] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._base: int | None = None
        asyncio.get_running_loop().remove_reader(self._rtcp)
        asyncio.get_running_loop().add_reader(self._rtcp, self._read_rtcp)

    @property
    def jitter_ms(self) -> float:
        """The jitter with which packets left, as RFC 3550 section 6.4.1 estimates it; its mean."""
        jitter, total, steps = 0.0, 0.0, 0
        for before, after in zip(self.sent_at, self.sent_at[1:], strict=False):
            jitter += (abs((after - before) * 1000 - 20) - jitter) / 16
            total, steps = total + jitter, steps + 1
        return total / steps if steps else 0.0

    def _put(self, packet: bytes) -> None:
        delay = self.delay_ms[self._turn % len(self.delay_ms)]
        self._turn += 1
        if delay:
            asyncio.get_running_loop().call_later(delay / 1000, self._leave, packet)
        else:
            self._leave(packet)

    def _leave(self, packet: bytes) -> None:
        if self._socket.fileno() < 0:
            return
        super()._put(packet)
        self.sent_at.append(time.monotonic())

    def _read_rtcp(self) -> None:
        while True:
            try:
                data, ancillary, _flags, peer = self._rtcp.recvmsg(2048, 64)
            except OSError:
                return
            at = came_at(ancillary)  # what we read late is no part of the round trip
            while len(data) >= 8:
                _first, kind, words = _HEADER.unpack_from(data)
                if kind == _SR:
                    source, seconds, fraction = struct.unpack_from("!III", data, 4)
                    self._told = (source, (seconds & 0xFFFF) << 16 | fraction >> 16, at)
                    self.sender_reports += 1
                    self._answer(peer)
                data = data[4 * (words + 1) :]
            self._pulse.set()

    def _answer(self, peer: tuple[str, int]) -> None:
        """A receiver report about the gateway's stream."""
        if self._rtcp.fileno() < 0:
            return
        assert self._told is not None
        source, last, at = self._told
        held = time.time() - at - self.network_ms / 1000
        if self._base is None and self.packets:
            self._base = self.packets[0].sequence
        count = len(self.packets)
        block = struct.pack(
            "!IIIIII",
            source,
            int(self.reported_loss * 256) << 24 | int(self.reported_loss * count),
            ((self._base or 0) + count) & 0xFFFF,
            int(self.reported_jitter_ms * 8),
            last,
            int(held * 65536) & 0xFFFFFFFF,
        )
        report = _HEADER.pack(0x81, _RR, 7) + struct.pack("!I", self._source) + block
        name = struct.pack("!IBB", self._source, 1, 4) + b"test" + b"\0\0"
        report += _HEADER.pack(0x81, _SDES, len(name) // 4) + name
        self._rtcp.sendto(report, peer)
        self.reports_sent += 1
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(_AGAIN_S, self._answer, peer)

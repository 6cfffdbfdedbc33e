"""Measured telephones: calls whose every packet has a mark and a time.

A process of its own (``python -m tests.load.phone``) that obeys JSON lines. Plain sockets: SIP as far as
a call needs it, RTP without a jitter buffer, sent every 20 ms by one clock with the calls evenly
apart, arrivals stamped by the kernel.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from . import marks
from .clocks import ANCILLARY_BYTES, SO_TIMESTAMPNS, Arrivals

FRAME_NS = 20_000_000
_HEADER = struct.Struct("!BBHII")
_RETRY_NS = 500_000_000


def _bound() -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setblocking(False)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * 1024 * 1024)
    end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    end.bind(("127.0.0.1", 0))
    return end


@dataclass(eq=False)
class Call:
    """One outgoing call."""

    number: int
    gateway: tuple[str, int]
    user: str
    sip: socket.socket = field(default_factory=_bound)
    rtp: socket.socket = field(default_factory=_bound)
    call_id: str = field(default_factory=lambda: f"{random.getrandbits(64):x}@phone")
    tag: str = field(default_factory=lambda: f"{random.getrandbits(32):x}")
    branch: str = field(default_factory=lambda: f"z9hG4bK{random.getrandbits(48):x}")
    to: str = ""
    code: int = 0
    over: bool = False
    invited_at: int = 0
    answered_at: int = 0
    peer: tuple[str, int] | None = None
    due: int = 0
    sequence: int = 0
    again_at: int = 0
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    heard: list[tuple[int, int, int, int]] = field(default_factory=list)

    def request(self, method: str, sequence: int, body: str = "") -> None:
        """Send a request of the dialog."""
        host, port = self.gateway
        own = f"127.0.0.1:{self.sip.getsockname()[1]}"
        uri = f"sip:{self.user}@{host}:{port}"
        branch = self.branch if method == "INVITE" else f"z9hG4bK{random.getrandbits(48):x}"
        kind = ["Content-Type: application/sdp"] if body else []
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/UDP {own};branch={branch};rport",
            "Max-Forwards: 70",
            f"From: <sip:measured@{own}>;tag={self.tag}",
            f"To: {self.to or f'<{uri}>'}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {sequence} {method}",
            f"Contact: <sip:measured@{own}>",
            *kind,
            f"Content-Length: {len(body)}",
        ]
        self.sip.sendto(("\r\n".join(lines) + "\r\n\r\n" + body).encode(), self.gateway)

    def invite(self) -> None:
        """Send the INVITE, or the same one again."""
        rtp_port = self.rtp.getsockname()[1]
        sdp = [
            "v=0",
            "o=- 1 1 IN IP4 127.0.0.1",
            "s=-",
            "c=IN IP4 127.0.0.1",
            "t=0 0",
            f"m=audio {rtp_port} RTP/AVP 0 101",
            "a=rtpmap:0 PCMU/8000",
            "a=rtpmap:101 telephone-event/8000",
            "a=ptime:20",
        ]
        now = time.monotonic_ns()
        self.invited_at = self.invited_at or now
        self.again_at = now + _RETRY_NS
        self.request("INVITE", 1, "\r\n".join(sdp) + "\r\n")

    def bye(self) -> None:
        """Hang up."""
        self.again_at = time.monotonic_ns() + _RETRY_NS
        self.request("BYE", 2)

    def on_sip(self, data: bytes, at: int) -> None:
        """A message for this call."""
        head, _, body = data.decode("utf-8", "replace").partition("\r\n\r\n")
        start, *lines = head.split("\r\n")
        names = ("via", "from", "to", "call-id", "cseq")
        kept = [line for line in lines if line.partition(":")[0].strip().lower() in names]
        if not start.startswith("SIP/2.0 "):
            if not start.startswith("ACK "):
                answer = ["SIP/2.0 200 OK", *kept, "Content-Length: 0"]
                self.sip.sendto(("\r\n".join(answer) + "\r\n\r\n").encode(), self.gateway)
            self.over = self.over or start.startswith("BYE ")
            return
        code = int(start.split(" ")[1])
        method = next(line for line in kept if line.lower().startswith("cseq")).split(" ")[-1]
        if method == "BYE" and code >= 200:
            self.over = True
        if method != "INVITE" or code < 200:
            return
        self.to = next(line for line in kept if line.lower().startswith("to:"))[3:].strip()
        self.request("ACK", 1)
        if self.code:
            return
        self.code, self.answered_at = code, at
        media = re.search(r"^m=audio (\d+)", body, re.M)
        if code == 200 and media:
            self.peer = (self.gateway[0], int(media[1]))
            phase = (self.number % 4) * FRAME_NS // 4 + random.randrange(FRAME_NS // 4)
            self.due = time.monotonic_ns() + phase
        else:
            self.over = True

    def send_frame(self) -> None:
        """The frame that is due."""
        packet = _HEADER.pack(
            0x80, 0, self.sequence & 0xFFFF, self.sequence * marks.FRAME, 0x10AD0000 + self.number
        ) + marks.frame(self.number, self.sequence)
        assert self.peer is not None
        at = time.monotonic_ns()
        try:
            self.rtp.sendto(packet, self.peer)
        except OSError:
            self.over = True
            return
        self.sent.append((self.number, self.sequence, at))
        self.sequence += 1
        self.due += FRAME_NS

    def close(self) -> None:
        """Give the ports up."""
        self.sip.close()
        self.rtp.close()


class Phone:
    """All measured calls and the clock that serves them."""

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.calls: list[Call] = []
        self._numbers = 0
        self._commands = b""
        self._running = True
        self._late: list[int] = []

    def run(self) -> None:
        """Obey until standard input closes."""
        while self._running:
            now = time.monotonic_ns()
            due = now + FRAME_NS
            for call in self.calls:
                if call.peer is not None and not call.over:
                    if call.due <= now:
                        self._late.append(now - call.due)
                        call.send_frame()
                    due = min(due, call.due)
                elif call.code == 0 and now >= call.again_at:
                    call.invite()
            ends = [end for call in self.calls for end in (call.sip, call.rtp)]
            # Packets are stamped by the kernel, so they can wait for the next frame to be sent.
            wait = max(0, due - time.monotonic_ns()) / 1e9
            watched = [end for call in self.calls if call.peer is None for end in (call.sip,)]
            readable = select.select([0, *watched], [], [], wait)[0]
            if 0 in readable:
                self._obey()
            for end in ends:
                if end.fileno() >= 0:
                    self._drain(end)

    def _drain(self, end: socket.socket) -> None:
        call = next((call for call in self.calls if end in (call.sip, call.rtp)), None)
        while call is not None:
            try:
                data, ancillary, _flags, _peer = end.recvmsg(4096, ANCILLARY_BYTES)
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    continue
                return
            at = self.arrivals.at(ancillary)
            if end is call.sip:
                call.on_sip(data, at)
            elif len(data) > _HEADER.size:
                sequence = int.from_bytes(data[2:4], "big")
                found = next(marks.find(data[_HEADER.size :]), None)
                call.heard.append((call.number, at, sequence, -1 if found is None else found[1]))

    def _obey(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self._running = False
            return
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            sys.stdout.write(json.dumps(self._command(json.loads(line))) + "\n")
            sys.stdout.flush()

    def _command(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "call":
                host, port = command["gateway"]
                for _ in range(command["count"]):
                    self._numbers += 1
                    call = Call(self._numbers, (host, port), command["user"])
                    self.calls.append(call)
                    call.invite()
            case "count":
                pass
            case "take":
                self.arrivals.renew()
                for call in self.calls:
                    self._drain(call.rtp)
                sent = [entry for call in self.calls for entry in call.sent]
                heard = [entry for call in self.calls for entry in call.heard]
                for call in self.calls:
                    call.sent, call.heard = [], []
                late, self._late = self._late, []
                return {"sent": sent, "heard": heard, "late_ns": late}
            case "hang_up":
                for call in self.calls:
                    if not call.over:
                        call.bye()
            case "forget":
                for call in self.calls:
                    call.close()
                self.calls = []
            case "end":
                self._running = False
            case other:
                return {"error": f"no command {other!r}"}
        return {
            "calls": [
                {
                    "number": call.number,
                    "code": call.code,
                    "over": call.over,
                    "setup_ns": call.answered_at - call.invited_at if call.answered_at else None,
                }
                for call in self.calls
            ]
        }


if __name__ == "__main__":
    Phone().run()

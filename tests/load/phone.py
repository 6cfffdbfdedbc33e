# SPDX-License-Identifier: GPL-2.0-or-later
"""Telephones whose every packet has a mark and a time, and callers by the dozen.

A process of its own (``python -m tests.load.phone``) that obeys JSON lines. RTP is sent by
one clock, every 20 ms where nothing else is asked for, the calls evenly apart, without a jitter
buffer; arrivals are stamped by the kernel, so that a reader that is late does not count.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from . import marks
from .clocks import ANCILLARY_BYTES, SO_TIMESTAMPNS, Arrivals
from .sip_call import SipCall, call_id_of

FRAME_NS = 20_000_000
_HEADER = struct.Struct("!BBHII")
_LINGER_NS = 5_000_000_000
"""How long a call that is over still answers retransmissions."""


def _bound() -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setblocking(False)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    end.bind(("127.0.0.1", 0))
    return end


class Line:
    """One call and its RTP. ``number`` is what its marks say."""

    def __init__(
        self,
        phone: Phone,
        target: tuple[str, int],
        user: str,
        *,
        keep: bool,
        network: Mapping[str, float] | None = None,
    ) -> None:
        self.phone = phone
        network = network or {}
        self._frames = int(network.get("ptime", 20)) // 20
        """In a packet."""
        self._loss = network.get("loss_percent", 0.0) / 100
        self._jitter_ns = network.get("jitter_ms", 0.0) * 1e6
        self.wide = marks.G722() if network.get("g722") else None
        """Codes what it says and hears."""
        self.number = phone.next_number()
        self.rtp = _bound()
        self.keep = keep
        """Measured: times are kept. The others only speak."""
        self.sequence = 0
        self.due = 0
        self.sent: list[tuple[int, int, int]] = []
        self.heard: list[tuple[int, int, int, int]] = []
        self.closed = False
        self.hold_ns = 0
        """How long it lasts after its answer; 0 where somebody else ends it."""
        self._silent = False
        self.sip = SipCall(
            phone.send_to(target),
            target,
            phone.own,
            user,
            int(self.rtp.getsockname()[1]),
            "0" if self.wide is None else "9",
        )

    def speak(self, now: int) -> None:
        """Send the packet that is due, through the network that this line has."""
        if self.closed or self.sip.outcome or self._silent or self.sip.media is None:
            return
        self.phone.late.append(now - self.due)
        first = self.sequence
        if random.random() >= self._loss:  # what the network loses is not among what was sent
            if self._jitter_ns:
                when = now + int(random.uniform(0, self._jitter_ns))
                self.phone.at(when, lambda _now: self._send(first))
            else:
                self._send(first)
        self.sequence += self._frames
        self.due += self._frames * FRAME_NS
        self.phone.at(self.due, self.speak)

    def _send(self, first: int) -> None:
        number, frames = first // self._frames, range(first, first + self._frames)
        packet = _HEADER.pack(
            *(0x80, 0 if self.wide is None else 9, number & 0xFFFF),
            *(first * marks.FRAME, 0x10AD0000 + self.number),
        ) + b"".join((self.wide or marks).frame(self.number, frame) for frame in frames)
        at = time.monotonic_ns()
        if self.closed or self.sip.media is None:
            return
        try:
            self.rtp.sendto(packet, self.sip.media)
        except OSError:
            self._silent = True  # the other side has closed its port: the call is about to end
            return
        if self.keep:
            self.sent += [(self.number, frame, at) for frame in frames]

    def listen(self) -> None:
        """Take what has come."""
        while not self.closed:
            try:
                data, ancillary, _flags, _peer = self.rtp.recvmsg(4096, ANCILLARY_BYTES)
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    continue
                return
            if self.keep and len(data) > _HEADER.size:
                found = next((self.wide or marks).find(data[_HEADER.size :]), None)
                mark = -1 if found is None else found[1]
                sequence = int.from_bytes(data[2:4], "big")
                at = self.phone.arrivals.at(ancillary)
                self.heard.append((self.number, at, sequence, mark))

    def close(self) -> None:
        """Give the port up."""
        self.closed = True
        self.rtp.close()


class Phone:
    """All lines and the clock that serves them."""

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.late: list[int] = []
        self._sip = _bound()
        self.own = f"127.0.0.1:{self._sip.getsockname()[1]}"
        self._lines: dict[str, Line] = {}
        self._measured: list[Line] = []
        self._numbers = itertools.count(1)
        self._order = itertools.count()
        self._timers: list[tuple[int, int, Callable[[int], None]]] = []
        self._commands = b""
        self._running = True
        self._setups_ns: list[int] = []
        self._outcomes: Counter[str] = Counter()
        self._without_retry_after = 0
        self._knocking = 0

    def next_number(self) -> int:
        """A number for a call's marks."""
        return next(self._numbers) & 0xFFF

    def send_to(self, target: tuple[str, int]) -> Callable[[bytes], None]:
        """What sends SIP there."""

        def send(data: bytes) -> None:
            with contextlib.suppress(OSError):
                self._sip.sendto(data, target)

        return send

    def at(self, when: int, what: Callable[[int], None]) -> None:
        """Do something at a monotonic time, in ns."""
        heapq.heappush(self._timers, (when, next(self._order), what))

    def run(self) -> None:
        """Obey until standard input closes."""
        while self._running:
            now = time.monotonic_ns()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2](now)
            due = self._timers[0][0] if self._timers else now + FRAME_NS
            wait = min(max(0, due - time.monotonic_ns()), FRAME_NS) / 1e9
            sip = self._sip.fileno()
            readable = select.select([0, sip], [], [], wait)[0]
            if 0 in readable:
                self._obey()
            if sip in readable:
                self._receive()
            for line in self._measured:
                line.listen()

    def _receive(self) -> None:
        while True:
            try:
                data, ancillary, _flags, _peer = self._sip.recvmsg(8192, ANCILLARY_BYTES)
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    continue
                return
            text = data.decode("utf-8", "replace")
            line = self._lines.get(call_id_of(text))
            if line is None:
                continue
            was_up = line.sip.answered_at > 0
            line.sip.receive(text, self.arrivals.at(ancillary))
            if line.sip.answered_at and not was_up:
                self._setups_ns.append(line.sip.answered_at - line.sip.invited_at)
                phase = (line.number % 4) * FRAME_NS // 4 + random.randrange(FRAME_NS // 4)
                line.due = time.monotonic_ns() + phase
                self.at(line.due, line.speak)
                if line.hold_ns:
                    self._end_later(line, line.hold_ns)
            self._watch(line)

    def _watch(self, line: Line) -> None:
        if line.sip.outcome:
            if not line.closed:
                self._outcomes[line.sip.outcome] += 1
                if line.sip.outcome == "refused_503" and not line.sip.retry_after:
                    self._without_retry_after += 1
                line.listen()
                line.close()
                self.at(time.monotonic_ns() + _LINGER_NS, lambda _now: self._forget(line))
        elif line.sip.again_at < 1 << 62:
            when = line.sip.again_at
            self.at(when, lambda now: self._on_time(line, when, now))

    def _forget(self, line: Line) -> None:
        self._lines.pop(line.sip.call_id, None)

    def _on_time(self, line: Line, when: int, now: int) -> None:
        if line.sip.again_at == when and not line.sip.outcome:
            line.sip.on_time(now)
            self._watch(line)

    def _dial(
        self,
        target: tuple[str, int],
        user: str,
        *,
        keep: bool,
        network: Mapping[str, float] | None = None,
    ) -> Line:
        line = Line(self, target, user, keep=keep, network=network)
        self._lines[line.sip.call_id] = line
        line.sip.invite(time.monotonic_ns())
        self._watch(line)
        return line

    def _end_later(self, line: Line, wait_ns: int) -> None:
        self.at(time.monotonic_ns() + wait_ns, lambda now: self._hang_up(line, now))

    def _hang_up(self, line: Line, now: int) -> None:
        line.sip.hang_up(now)
        self._watch(line)

    def _knock(self, plan: dict[str, Any], left: int, due: int) -> None:
        """Start a brief call, and the next one when it is due."""
        line = self._dial(tuple(plan["gateway"]), plan["user"], keep=False)
        # Some ring off before or while they are answered.
        early = random.random() < plan.get("early", 0.0)
        low, high = plan["early_ms"] if early else plan["hold_ms"]
        hold = int(random.uniform(low, high) * 1e6)
        if plan.get("after_answer"):
            line.hold_ns = hold
        else:
            self._end_later(line, hold)
        self._knocking = left - 1
        if left > 1:
            due += int(1e9 / plan["rate"])
            self.at(due, lambda _now: self._knock(plan, left - 1, due))

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
                target = tuple(command["gateway"])
                for _ in range(command["count"]):
                    line = self._dial(
                        target, command["user"], keep=True, network=command.get("network")
                    )
                    self._measured.append(line)
            case "knock":
                self._knock(command, command["count"], time.monotonic_ns())
            case "count":
                pass
            case "take":
                return self._take()
            case "hang_up":
                for line in tuple(self._measured):
                    self._hang_up(line, time.monotonic_ns())
            case "forget":
                self._measured = []
            case "end":
                self._running = False
            case other:
                return {"error": f"no command {other!r}"}
        return {
            "measured": [
                {"number": line.number, "up": line.sip.up, "outcome": line.sip.outcome}
                for line in self._measured
            ],
            "live": sum(not line.sip.outcome for line in self._lines.values()),
            "to_come": self._knocking,
            "outcomes": dict(self._outcomes),
            "without_retry_after": self._without_retry_after,
        }

    def _take(self) -> dict[str, Any]:
        self.arrivals.renew()
        found: dict[str, Any] = {"sent": [], "heard": []}
        for line in self._measured:
            line.listen()
            found["sent"] += line.sent
            found["heard"] += line.heard
            line.sent, line.heard = [], []
        found["late_ns"], self.late = self.late, []
        found["setups_ns"], self._setups_ns = self._setups_ns, []
        return found


if __name__ == "__main__":
    Phone().run()

# SPDX-License-Identifier: GPL-2.0-or-later
"""RTP ports after their call: held until nobody sends to them any more.

A peer whose BYE got lost, or whose network is slow, goes on sending for a while. The next call on
that port would hear it, and would even send its own audio there, since pjmedia follows the address
that RTP comes from. So a pair of ports is bound again by us as soon as a call has let go of it, and
given back when it has been silent for a while; pjsip meanwhile finds it taken and tries the next.
"""

from __future__ import annotations

import contextlib
import socket
from collections import OrderedDict
from dataclasses import dataclass

import structlog

log = structlog.get_logger("sip")

QUIET_SECONDS = 2.0
"""Silence after which a port may serve again: a hundred packets would have come."""

LEAVE_SECONDS = 1.0
"""The media clock may still be in a stream whose call is over; then its sockets close later."""

SPARE_PAIRS = 4
"""Pairs that are kept for new calls, whoever still sends to those that are held."""

TRIES_IN_A_ROW = 90
"""pjsua looks at a hundred pairs one after another, and refuses the call if all are taken."""

_DATAGRAMS_AT_A_TIME = 256


@dataclass(slots=True)
class _Held:
    sockets: tuple[socket.socket, ...]
    heard: float
    """When the last datagram came, or the call ended."""
    noisy: bool = False


class RtpPortQuarantine:
    """Lives on the SIP thread.

    Args:
        pairs: how many pairs the range has.
    """

    def __init__(self, pairs: int) -> None:
        self._pairs = pairs
        self._held: OrderedDict[tuple[str, int], _Held] = OrderedDict()
        self._leaving: dict[tuple[str, int], float] = {}
        """What the library has not let go of yet, and until when that is waited for."""
        self._room = 0
        self.given_up = 0
        """Pairs given back before they were quiet, because calls needed them."""

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, host: str, port: int, calls: int, now: float) -> None:
        """A call has let go of ``port`` and the one above; ``calls`` are still up."""
        if not self._take(host, port, now):
            self._leaving[host, port] = now + LEAVE_SECONDS
        self._room = min(TRIES_IN_A_ROW, max(0, self._pairs - calls - SPARE_PAIRS))
        self._make_room()

    def release(self, rtp_name: str, calls: int, now: float) -> None:
        """As :meth:`hold`, by ``host:port`` of a call's RTP."""
        host, _, port = rtp_name.rpartition(":")
        self.hold(host.strip("[]"), int(port), calls, now)

    def retry(self, now: float) -> None:
        """Take what the library has let go of meanwhile. To be called in every turn."""
        for key, until in list(self._leaving.items()):
            if self._take(*key, now) or now > until:
                del self._leaving[key]
        self._make_room()

    def make_way(self, calls: int) -> bool:
        """A call comes while ``calls`` are there: gives a held pair back where no other is free.

        False: there is none to be had. The library would look for one through the whole range.
        """
        taken = calls + len(self._leaving)
        while self._held and taken + len(self._held) >= self._pairs:
            self._give_up()
        return taken < self._pairs

    def _make_room(self) -> None:
        while len(self._held) > self._room:
            self._give_up()

    def _take(self, host: str, port: int, now: float) -> bool:
        sockets: list[socket.socket] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            for number in (port, port + 1):
                end = socket.socket(family, socket.SOCK_DGRAM)
                sockets.append(end)
                end.setblocking(False)
                end.bind((host, number))
        except OSError:
            for end in sockets:
                end.close()
            return False
        self._held[host, port] = _Held(tuple(sockets), now)
        return True

    def tick(self, now: float) -> None:
        """Give back what has been quiet for long enough. To be called about once a second."""
        for key, held in list(self._held.items()):
            drained = [_drain(end) for end in held.sockets]
            if any(drained):
                held.heard, held.noisy = now, True
                self._held.move_to_end(key)  # if some have to go early, the quieter ones do
            elif now - held.heard >= QUIET_SECONDS:
                self._close(key)

    def close(self) -> None:
        """Close the sockets of all ports that are held."""
        for key in list(self._held):
            self._close(key)

    def _give_up(self) -> None:
        key = next(iter(self._held))
        self.given_up += 1
        if self._held[key].noisy:
            log.warning(
                "sip.rtp_port_still_receiving",
                port=key[1],
                advice="somebody still sends to it, but sip.rtp_ports has no other left",
            )
        self._close(key)

    def _close(self, key: tuple[str, int]) -> None:
        for end in self._held.pop(key).sockets:
            end.close()


def _drain(end: socket.socket) -> bool:
    """Whether something had come."""
    came = False
    with contextlib.suppress(OSError):
        for _ in range(_DATAGRAMS_AT_A_TIME):
            end.recv(1)
            came = True
    return came

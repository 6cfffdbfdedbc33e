# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses on loopback. Every party has one of its own, as it would have in a network, so that
peers are told apart by address: all of 127.0.0.0/8 is there on Linux."""

from __future__ import annotations

import random
import socket

PBX = "127.0.0.1"
GATEWAY = "127.0.0.2"
"""A gateway that Asterisk knows as a trunk, by its address."""
PHONES = "127.0.0.3"
EXTENSION = "127.0.0.4"
"""A gateway that registers."""
PROXY = "127.0.0.5"


_PORTS = range(2000, 5000)
"""Below what the kernel gives out by itself: it would give one away before it is used."""

_random = random.SystemRandom()
_claims: list[socket.socket] = []


def free_port(host: str, in_a_row: int = 1) -> int:
    """A port that is free for UDP and TCP alike, and is no other test's until this process ends; or
    the first of several."""
    for _ in range(200):
        first = _random.choice(_PORTS)
        claims: list[socket.socket] = []
        try:
            for port in range(first, first + in_a_row):
                claims.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                claims[-1].bind(f"\0gateway-tests-port-{port}")
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(socket.AF_INET, kind) as probe:
                        probe.bind((host, port))
        except OSError:
            for claim in claims:
                claim.close()
            continue
        _claims.extend(claims)
        return first
    raise RuntimeError(f"no free port on {host}")

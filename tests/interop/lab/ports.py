# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses on loopback. Every party has one of its own, as it would have in a network, so that
peers are told apart by address: all of 127.0.0.0/8 is there on Linux."""

from __future__ import annotations

import socket

PBX = "127.0.0.1"
GATEWAY = "127.0.0.2"
"""A gateway that Asterisk knows as a trunk, by its address."""
PHONES = "127.0.0.3"
EXTENSION = "127.0.0.4"
"""A gateway that registers."""
PROXY = "127.0.0.5"


def free_port(host: str) -> int:
    """A port that is free for UDP and TCP alike."""
    for _ in range(50):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind((host, 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port on {host}")

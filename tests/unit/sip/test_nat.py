# SPDX-License-Identifier: GPL-2.0-or-later
"""Contact for TCP and TLS: where the listener is, not where the route to the peer begins."""

from __future__ import annotations

import pytest

from gateway.sip.settings import Listen
from gateway.sip.transports import forced_contact

ONE = (Listen("udp", "192.0.2.7", 5060), Listen("tls", "192.0.2.7", 5061))
TWO = (Listen("tls", "192.0.2.7", 5061), Listen("tls", "192.0.2.8", 5071))
ANY = (Listen("udp", "0.0.0.0", 5060), Listen("tcp", "0.0.0.0", 5060))
SIX = (Listen("tls", "2001:db8::7", 5061), *ONE)

CASES = {
    "pjsua's own is right for UDP": ("udp", "192.0.2.7", "203.0.113.1", ONE, ""),
    "the listener's address": ("tls", "192.0.2.7", "", ONE, "192.0.2.7:5061;transport=tls"),
    "a call that we place": ("tls", "", "", ONE, "192.0.2.7:5061;transport=tls"),
    "the one that was called": ("tls", "192.0.2.8", "", TWO, "192.0.2.8:5071;transport=tls"),
    "the route's, on all addresses": ("tcp", "192.0.2.7", "", ANY, ""),
    "behind NAT": ("tcp", "10.0.0.7", "203.0.113.1", ANY, "203.0.113.1:5060;transport=tcp"),
    "the public one comes first": (
        "tls", "192.0.2.7", "203.0.113.1", ONE, "203.0.113.1:5061;transport=tls",
    ),
    "IPv6": ("tls", "2001:db8::7", "", SIX, "[2001:db8::7]:5061;transport=tls"),
    "a public address of the other family": (
        "tls", "2001:db8::7", "203.0.113.1", SIX, "[2001:db8::7]:5061;transport=tls",
    ),
    "no such listener": ("tcp", "192.0.2.7", "", ONE, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_contact(case: str) -> None:
    transport, local, public, listeners, expected = CASES[case]
    contact = forced_contact("agent", transport, local, public, listeners)
    assert contact == (f"<sip:agent@{expected}>" if expected else "")

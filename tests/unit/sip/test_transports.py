# SPDX-License-Identifier: GPL-2.0-or-later
"""The Contact that names our listener, addresses that nobody outside reaches, and RTP ports kept
bound while somebody sends to them."""

from __future__ import annotations

import ipaddress
import socket
from types import SimpleNamespace
from typing import Any

import pjsua2 as pj
import pytest

from gateway.sip import Listen, Peer, SipSettings, Trunk
from gateway.sip.library import AgentError
from gateway.sip.transports import (
    LEAVE_SECONDS,
    QUIET_SECONDS,
    SPARE_PAIRS,
    Listeners,
    RtpPortQuarantine,
    forced_contact,
    hosts_of,
    unreachable,
)
from tests.interop.lab.ports import free_port


def free_pair() -> int:
    """An even port that is free with the one above, and no other test's."""
    first = free_port("127.0.0.1", 3)
    return first + first % 2


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def send_to(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"\x80", ("127.0.0.1", port))


def test_a_quiet_pair_comes_back_after_its_rest() -> None:
    ports, port = RtpPortQuarantine(100), free_pair()
    ports.bind("127.0.0.1", port, 0, 10.0)
    assert not is_free(port)
    assert not is_free(port + 1)
    ports.tick(10.0 + QUIET_SECONDS - 0.1)
    assert not is_free(port)
    ports.tick(10.0 + QUIET_SECONDS)
    assert is_free(port)
    assert is_free(port + 1)
    assert len(ports) == 0


@pytest.mark.parametrize("above", [0, 1])
def test_a_pair_that_is_sent_to_does_not_come_back(above: int) -> None:
    ports, port = RtpPortQuarantine(100), free_pair()
    ports.bind("127.0.0.1", port, 0, 0.0)
    for second in range(1, 30):
        send_to(port + above)
        ports.tick(float(second))
        assert not is_free(port)
    ports.tick(29.0 + QUIET_SECONDS)
    assert is_free(port)


def test_calls_come_before_quiet() -> None:
    """The pair that has been quiet for longest goes first; a noisy one as late as can be."""
    pairs = 8
    ports = RtpPortQuarantine(pairs)
    noisy = free_pair()
    ports.bind("127.0.0.1", noisy, 0, 0.0)
    send_to(noisy)
    quiet = free_pair()
    ports.bind("127.0.0.1", quiet, 0, 0.0)
    ports.tick(0.5)
    third = free_pair()
    ports.bind("127.0.0.1", third, pairs - SPARE_PAIRS - 2, 1.0)
    assert is_free(quiet)
    assert not is_free(noisy)
    assert not is_free(third)
    assert ports.given_up == 1
    ports.bind("127.0.0.1", free_pair(), pairs, 1.0)
    assert len(ports) == 0
    ports.close()


def test_a_port_that_somebody_else_has_is_left_to_them() -> None:
    ports = RtpPortQuarantine(100)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = int(other.getsockname()[1])
        ports.bind("127.0.0.1", port, 0, 0.0)
        ports.retry(LEAVE_SECONDS + 0.1)
    ports.retry(LEAVE_SECONDS + 0.2)
    assert len(ports) == 0


def test_a_port_that_the_library_still_has_is_taken_when_it_lets_go() -> None:
    ports, port = RtpPortQuarantine(100), free_pair()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        ports.bind("127.0.0.1", port, 0, 0.0)
        ports.retry(0.1)
        assert len(ports) == 0
    ports.retry(0.2)
    assert len(ports) == 1
    assert not is_free(port)
    ports.close()


def test_a_call_that_finds_no_other_pair_gets_one_that_rests() -> None:
    ports, pair = RtpPortQuarantine(10), free_pair()
    ports.bind("127.0.0.1", pair, 0, 10.0)
    assert ports.make_way(8)
    assert not is_free(pair), "another is free"
    assert ports.make_way(9)
    assert is_free(pair)
    assert not ports.make_way(10), "all are in use"
    ports.close()


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


def test_a_tls_listener_that_could_not_be_bound_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [True, False, True]
    closed: list[int] = []

    def create(_kind: int, _config: Any) -> int:
        if not free.pop(0):
            raise pj.Error()
        return len(free)

    endpoint = SimpleNamespace(
        transportCreate=create,
        transportClose=closed.append,
        transportGetInfo=lambda _identity: SimpleNamespace(localName="192.0.2.1:5061"),
    )
    monkeypatch.setattr(Listeners, "_try_certificates", lambda _self: None)
    monkeypatch.setattr(Listeners, "_secure", lambda _self, _config: None)
    listeners = Listeners(endpoint, SipSettings(listen=(Listen("tls", "192.0.2.1", 5061),)))
    listeners.open()
    with pytest.raises(AgentError):
        listeners.renew_certificates()
    assert listeners.renew_certificates() == 1
    assert closed == [2], "not what is closed already"


def test_connections_of_tls_are_marked_by_settings_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pjsip does not take the DSCP of their listener (seen with ``ss --tos``)."""
    told: list[tuple[int, int]] = []

    def create(_kind: int, config: Any) -> int:
        for qos in (config.qosParams, config.tlsConfig.qosParams):
            told.append((qos.flags, qos.dscp_val))
        return 1

    endpoint = SimpleNamespace(
        transportCreate=create,
        transportGetInfo=lambda _identity: SimpleNamespace(localName="192.0.2.1:5061"),
    )
    monkeypatch.setattr(Listeners, "_try_certificates", lambda _self: None)
    monkeypatch.setattr(Listeners, "_secure", lambda _self, _config: None)
    Listeners(endpoint, SipSettings(listen=(Listen("tls", "192.0.2.1", 5061),), dscp=24)).open()
    assert told == [(pj.PJ_QOS_PARAM_HAS_DSCP, 24)] * 2


@pytest.mark.parametrize(
    ("listen", "public", "stun", "known", "warned"),
    [
        ("127.0.0.1", "", "", "203.0.113.9", True),
        ("192.168.1.5", "", "", "203.0.113.9", True),
        ("192.168.1.5", "", "", "192.168.1.9", False),
        ("192.168.1.5", "198.51.100.1", "", "203.0.113.9", False),
        ("192.168.1.5", "", "stun.example", "203.0.113.9", False),
        ("198.51.100.1", "", "", "203.0.113.9", False),
        ("fd00::1", "", "", "2001:db8::9", True),
        ("fd00::1", "", "", "203.0.113.9", False),
    ],
)
def test_unreachable(listen: str, public: str, stun: str, known: str, warned: bool) -> None:
    settings = SipSettings(
        listen=(Listen("udp", listen, 5060),), public_address=public, stun_server=stun
    )
    lines = unreachable(settings, {"t": [known]})
    assert bool(lines) is warned
    remedy = "listen on 0.0.0.0" if listen == "127.0.0.1" else "set sip.public_address"
    assert all(remedy in line for line in lines)


def test_the_hosts_of_a_trunk() -> None:
    trunk = Trunk(
        "t",
        peers=(Peer(ipaddress.ip_network("10.1.0.0/16"), 5070),),
        registrar="[2001:db8::1]:5061",
        outbound_proxy="proxy.example:5070",
    )
    assert hosts_of(trunk) == ["proxy.example", "2001:db8::1", "10.1.0.0"]
    assert hosts_of(Trunk("t")) == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose request is whose, and when to register."""

from __future__ import annotations

import ipaddress
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.addresses import address_of
from gateway.sip import Access, Peer, Trunk
from gateway.sip.trunks import (
    RECONNECT_PAUSE_SECONDS,
    OptionsPinger,
    Registration,
    RegState,
    Trunks,
    keys_to_check,
    options_uri,
)


def peer(text: str, port: int = 0) -> Peer:
    return Peer(ipaddress.ip_network(text), port)


TRUNKS = Trunks(
    (
        Trunk("wide", peers=(peer("10.0.0.0/8"), peer("2001:db8::/32"))),
        Trunk("one", peers=(peer("10.1.2.3"),)),
        Trunk("port", peers=(peer("10.1.2.3", 5070),)),
        Trunk("away", username="4930", registrar="sip.example"),
    )
)


@pytest.mark.parametrize(
    ("source", "port", "reliable", "uri", "found"),
    [
        ("10.9.9.9", 5060, False, "sip:1@h", ("wide", "peer")),
        ("10.1.2.3", 5060, False, "sip:1@h", ("one", "peer")),
        ("10.1.2.3", 5070, False, "sip:1@h", ("port", "peer")),
        ("10.1.2.3", 40000, True, "sip:1@h", ("port", "peer")),
        ("::ffff:10.1.2.3", 5060, False, "sip:1@h", ("one", "peer")),
        ("2001:db8::7", 5060, False, "sip:1@h", ("wide", "peer")),
        ("192.0.2.1", 5060, False, "sip:1@h", None),
        ("192.0.2.1", 5060, False, "sip:4930@h", None),
        ("192.0.2.1", 5060, False, "sip:4930@h;line=00", None),
        ("192.0.2.1", 5060, False, "sip:x@h;LINE={line}", ("away", "registration")),
        ("10.1.2.3", 5060, False, "sip:4930@h:5060;line={line};ob", ("away", "registration")),
        ("no address", 5060, False, "sip:1@h", None),
        ("10.1.2.3", 5060, False, "", ("one", "peer")),
    ],
)
def test_attribution(
    source: str, port: int, reliable: bool, uri: str, found: tuple[str, str] | None
) -> None:
    seen = TRUNKS.attribute(source, port, reliable, uri.format(line=TRUNKS.lines["away"]))
    assert (None if seen is None else (seen.trunk.name, seen.how)) == found


def test_registrars_own_calls_to_our_user() -> None:
    trunks = Trunks(
        (
            Trunk("a", username="1", registrar="r"),
            Trunk("b", username="2", registrar="r"),
        )
    )
    for name in ("a", "b"):
        trunks.learn_registrar(name, "[2001:db8::1]")
    for user, name in (("1", "a"), ("2", "b")):
        found = trunks.attribute("2001:db8::1", 5060, False, f"sip:{user}@h")
        assert found is not None
        assert (found.trunk.name, found.how) == (name, "registrar")
    assert trunks.attribute("2001:db8::1", 5060, False, "sip:3@h") is None
    assert trunks.attribute("2001:db8::2", 5060, False, "sip:1@h") is None
    assert trunks.lines["a"] != trunks.lines["b"]


@pytest.mark.parametrize(
    ("unknown", "source", "have_trunks", "verdict"),
    [
        ("auto", "127.0.0.1", False, "allow"),
        ("auto", "192.168.1.7", False, "allow"),
        ("auto", "fe80::1%eth0", False, "allow"),
        ("auto", "::ffff:10.0.0.1", False, "allow"),
        ("auto", "100.64.0.1", False, "reject"),
        ("auto", "203.0.113.5", False, "reject"),
        ("auto", "2001:db8::1", False, "reject"),
        ("auto", "nonsense", False, "reject"),
        ("auto", "127.0.0.1", True, "reject"),
        ("allow", "203.0.113.5", True, "allow"),
        ("drop", "127.0.0.1", False, "drop"),
    ],
)
def test_verdict(unknown: str, source: str, have_trunks: bool, verdict: str) -> None:
    assert Access(unknown).action_for(source, have_trunks) == verdict


@given(st.text(max_size=60))
def test_any_source_has_a_verdict(source: str) -> None:
    assert Access("auto").action_for(source, False) in ("allow", "reject")
    address_of(source)


# ---- registration


def test_registration_backs_off_and_says_it_once() -> None:
    one = Registration(lambda: 0.5)
    assert one.due(0)
    assert not one.due(1)
    waits, told = [], []
    now = 0.0
    for _ in range(8):
        change = one.failed(503, "no answer", now)
        told.append(change is not None)
        assert one.next_try is not None
        waits.append(one.next_try - now)
        now = one.next_try
        assert one.due(now)
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]
    assert told == [True] + [False] * 7
    other = one.failed(500, "broken", now)
    assert other is not None
    assert one.last_error == "500 broken"
    change = one.succeeded(300, now)
    assert change is not None
    assert (one.state, one.last_error, one.expires_at) == (
        RegState.REGISTERED,
        "",
        now + 300,
    )
    assert one.succeeded(300, now + 200) is None, "a refresh is no news"
    one.failed(503, "", now)
    assert one.next_try == now + 2, "and begins anew after a success"


def test_a_rejection_is_not_hammered() -> None:
    chance = random.Random(5)
    one = Registration(chance.random)
    waits = []
    for _ in range(12):
        one.failed(401, "Unauthorized", 0)
        assert one.next_try is not None
        waits.append(one.next_try)
    assert 45 <= waits[0] <= 75
    assert max(waits) <= 900 * 1.25
    assert len(set(waits)) == len(waits), "jitter"


def test_leaving() -> None:
    one = Registration(lambda: 0.5)
    one.succeeded(60, 0)
    assert one.unregister(1)
    assert one.failed(408, "", 2) is None
    assert one.next_try is None
    one.unregistered(3)
    assert one.state is RegState.GONE
    never = Registration(lambda: 0.5)
    assert not never.unregister(0), "nobody has to be told"
    assert not never.due(100)


def test_what_crosses_the_goodbye() -> None:
    one = Registration(lambda: 0.5)
    assert one.due(0)
    assert not one.unregister(1), "not registered yet"
    assert one.succeeded(60, 2) is None
    assert one.state is RegState.LEAVING, "now there is something to end"
    two = Registration(lambda: 0.5)
    assert two.due(0)
    two.unregister(1)
    assert two.failed(503, "", 2) is None
    assert two.state is RegState.GONE
    assert not two.due(1000)


def test_no_register_beside_one_that_is_under_way() -> None:
    one = registered(100.0)
    one.renew()
    assert one.due(110.0)
    one.renew()
    assert not one.due(111.0), "pjsip would refuse it, and that would count as a failure"
    one.reachable(111.0)
    assert not one.due(111.0)
    one.succeeded(300, 112.0)
    one.renew()
    assert one.due(113.0)


def test_an_old_options_says_nothing_after_a_newer_one() -> None:
    sent: list[int] = []

    def send(_account: int, _uri: str, number: int) -> int:
        sent.append(number)
        return 0

    signalling: Any = SimpleNamespace(send_options=send)
    trunk = Trunk("pbx", peers=(peer("192.0.2.1"),), options_interval=10)
    back: list[Trunk] = []
    pinger = OptionsPinger(signalling, (trunk,), lambda _trunk: 0, back.append)
    for at in (0.0, 10.0, 20.0):
        pinger.tick(at)
    signalling.on_options(sent[1], 200)
    signalling.on_options(sent[0], 0)
    assert pinger.results == {"pbx": "200"}
    signalling.on_options(sent[2], 0)
    assert pinger.results == {"pbx": "no answer"}
    pinger.tick(30.0)
    signalling.on_options(sent[3], 404)
    assert back == [trunk]


def test_a_failed_registration_names_keys() -> None:
    trunk = Trunk("a", registrar="sip.example.net", transport="tls")
    assert "trunk.password" in keys_to_check(401, trunk)
    assert keys_to_check(0, trunk) == "trunk.registrar, sip.tls.ca, sip.tls.verify_server"
    assert keys_to_check(0, Trunk("b")) == "trunk.peers, trunk.transport"
    assert keys_to_check(500, trunk) == ""


def test_where_options_go() -> None:
    trunk = Trunk("t", username="u", registrar="[2001:db8::1]:5061", transport="tls")
    assert options_uri(trunk) == "sip:[2001:db8::1]:5061;transport=tls"
    assert options_uri(Trunk("t", peers=(peer("10.0.0.1", 5070),))) == "sip:10.0.0.1:5070"
    assert options_uri(Trunk("t", peers=(peer("10.0.0.0/8"),))) == ""


@pytest.mark.parametrize(
    ("trunk", "host", "addresses", "own"),
    [
        (Trunk("a", peers=(peer("10.0.0.0/8"),)), "10.1.1.1", (), True),
        (Trunk("a", peers=(peer("10.0.0.0/8"),)), "192.0.2.1", (), False),
        (Trunk("a", peers=(peer("10.0.0.0/8"),)), "pbx.example", ("10.1.1.1",), True),
        (Trunk("a", peers=(peer("10.0.0.0/8"),)), "pbx.example", (), False),
        (Trunk("a", username="1", registrar="SIP.example:5070"), "sip.example", (), True),
        (Trunk("a", username="1", registrar="[2001:db8::1]:5070"), "2001:db8::1", (), True),
        (Trunk("a", username="1", registrar="sip.example"), "192.0.2.1", (), False),
        (Trunk("a", outbound_proxy="p", peers=(peer("10.0.0.0/8"),)), "192.0.2.1", (), True),
        (Trunk("a"), "192.0.2.1", (), True),
    ],
)
def test_whether_a_call_leads_to_the_trunks_own_servers(
    trunk: Trunk, host: str, addresses: tuple[str, ...], own: bool
) -> None:
    assert Trunks((trunk,)).leads_to(trunk, host, addresses) is own


def registered(at: float) -> Registration:
    one = Registration(chance=lambda: 0.5)
    assert one.due(at)
    one.succeeded(300, at)
    assert one.state is RegState.REGISTERED
    return one


def test_the_registrars_connection_is_renewed_at_once() -> None:
    one = registered(100.0)
    one.disconnected(110.0, surely=True)
    assert not one.due(111.0)
    assert one.due(112.0)
    assert not one.due(113.0), "once"


def test_connections_of_others_do_not_make_us_register_all_the_time() -> None:
    one = registered(100.0)
    for now in range(101, 130):
        one.disconnected(float(now), surely=False)
        assert not one.due(float(now))
    assert one.due(100.0 + RECONNECT_PAUSE_SECONDS)


def test_a_registration_that_failed_keeps_its_pace() -> None:
    one = Registration(chance=lambda: 0.5)
    assert one.due(0.0)
    one.failed(503, "Service Unavailable", 0.0)
    planned = one.next_try
    one.disconnected(0.1, surely=True)
    assert one.next_try == planned


def test_nothing_after_the_goodbye() -> None:
    one = registered(100.0)
    one.unregister(110.0)
    one.disconnected(110.1, surely=True)
    assert not one.due(1000.0)


def test_a_registrar_that_is_back_is_registered_with_at_once() -> None:
    one = registered(100.0)
    one.reachable(150.0)
    assert one.due(150.0), "it may have forgotten us"
    one = Registration(chance=lambda: 0.5)
    assert one.due(0.0)
    for at in range(10):
        one.failed(408, "Request Timeout", float(at))
    one.reachable(10.0)
    assert one.due(10.0), "not after a back-off of a minute"


def test_a_wrong_password_is_not_tried_more_often() -> None:
    one = Registration(chance=lambda: 0.5)
    assert one.due(0.0)
    one.failed(403, "Forbidden", 0.0)
    one.reachable(1.0)
    assert not one.due(1.0)

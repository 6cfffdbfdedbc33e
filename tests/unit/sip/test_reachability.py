# SPDX-License-Identifier: GPL-2.0-or-later
"""When to register again after a connection has ended."""

from __future__ import annotations

from gateway.sip.trunks.reachability import RECONNECT_PAUSE_SECONDS, Registration, State


def registered(at: float) -> Registration:
    one = Registration(chance=lambda: 0.5)
    assert one.due(at)
    one.succeeded(300, at)
    assert one.state is State.REGISTERED
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
    one.leave(110.0)
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

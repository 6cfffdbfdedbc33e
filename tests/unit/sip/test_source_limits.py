# SPDX-License-Identifier: GPL-2.0-or-later
"""How often a source may ask, what is logged of refusals, bans, connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sip import BanPolicy, source_limits
from gateway.sip.source_limits import (
    FIRST_MESSAGE_SECONDS,
    IDLE_SECONDS,
    KNOWN_SECONDS,
    LINES_AT_ONCE,
    MAX_REFUSALS,
    OF_A_PEER,
    PER_SOURCE,
    REPEAT_SECONDS,
    Bans,
    Connections,
    RefusalLog,
    SourceBuckets,
    TokenBucket,
    is_scanner,
)


def test_bans() -> None:
    bans = Bans(BanPolicy(after=3, window=10, seconds=100))
    assert [bans.refused("a", at, surely=False) for at in (0.0, 1.0, 2.0)] == [False, False, True]
    assert bans.drops("a", 3.0)
    assert not bans.drops("b", 3.0)
    assert bans.as_json(3.0) == [{"source": "a", "seconds": 99.0, "dropped": 1}]
    assert not bans.drops("a", 102.0)
    assert bans.as_json(102.0) == []
    # Too far apart.
    assert not any(bans.refused("c", at, surely=True) for at in (0.0, 1.0, 12.0, 13.0))
    # Proved: what comes in its name does not count, what only it can send does.
    bans.proved("d", 0.0)
    assert not any(bans.refused("d", 1.0, surely=False) for _ in range(10))
    assert [bans.refused("d", 1.0, surely=True) for _ in range(3)] == [False, False, True]
    assert not any(bans.refused("f", 1.0, surely=False) for _ in range(2))
    assert bans.refused("f", 1.0, surely=False)  # by nobody knows whom
    assert bans.drops("f", 2.0)
    assert not bans.drops("f", 2.0, may_prove=True)
    assert not any(bans.refused("f", 2.0, surely=True) for _ in range(3))
    assert bans.drops("f", 3.0, may_prove=True)
    bans.proved("e", 0.0)
    assert any(bans.refused("e", KNOWN_SECONDS + 1, surely=False) for _ in range(3))
    assert not any(Bans(BanPolicy(after=0)).refused("a", 0.0, surely=True) for _ in range(99))


def test_bans_of_other_processes() -> None:
    bans = Bans(BanPolicy(after=1, window=10, seconds=100))
    bans.take([("2a00:1450:4001:81b::7", 50.0, False)], 0.0)
    assert bans.drops("2a00:1450:4001:81b::9", 1.0), "an IPv6 host is counted by its network"
    # One that proved a password long ago is as any other.
    bans.proved("192.0.2.1", 0.0)
    bans.take([("192.0.2.1", 50.0, False)], 1.0)
    assert "192.0.2.1" not in bans
    bans.take([("192.0.2.1", 50.0, False)], KNOWN_SECONDS + 1)
    assert "192.0.2.1" in bans


def test_a_short_ban_behind_a_long_one_expires() -> None:
    bans = Bans(BanPolicy(after=1, window=10, seconds=100))
    bans.take([("192.0.2.1", 90.0, False), ("192.0.2.2", 5.0, False)], 0.0)
    bans.take([("192.0.2.2", 50.0, False)], 6.0)
    assert "192.0.2.2" in bans
    bans.tick(60.0)
    assert "192.0.2.2" not in bans
    assert "192.0.2.1" in bans


def test_scanners() -> None:
    assert is_scanner("friendly-scanner")
    assert is_scanner(" SIPVicious/0.3")
    assert not is_scanner("Asterisk PBX 22.1.0")
    assert not is_scanner("")


@given(
    st.floats(0.1, 100),
    st.integers(1, 20),
    st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_a_bucket_keeps_its_rate(rate: float, burst: int, pauses: list[float]) -> None:
    bucket, now, taken = TokenBucket(rate, burst), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
        assert taken <= burst + rate * now + 1e-6
    assert bucket.take(now + burst / rate + 1)


def test_sources_are_apart_and_bounded() -> None:
    buckets = SourceBuckets(max_sources=10)
    assert buckets.take("a", 1, 1, 0.0)
    assert not buckets.take("a", 1, 1, 0.0)
    assert buckets.take("b", 1, 1, 0.0)
    assert buckets.take("a", 0, 1, 0.0), "no limit"
    for number in range(100):
        buckets.take(str(number), 1, 1, 0.0)
    assert len(buckets) == 10


def lines_of() -> tuple[RefusalLog, list[Mapping[str, Any]]]:
    lines: list[Mapping[str, Any]] = []
    return RefusalLog(lines.append), lines


def test_a_refusal_is_said_once_and_then_counted() -> None:
    log, lines = lines_of()
    for number in range(1000):
        log.note("rule", "192.0.2.1", number / 100, code=403)
    assert lines == [{"rule": "rule", "source": "192.0.2.1", "code": 403}]
    log.tick(REPEAT_SECONDS)
    assert lines[1:] == [{"rule": "rule", "source": "192.0.2.1", "repeated": 999, "seconds": 60}]
    log.tick(2 * REPEAT_SECONDS + 1)
    assert len(lines) == 2, "it has ceased"
    log.note("rule", "192.0.2.1", 3 * REPEAT_SECONDS, code=403)
    assert len(lines) == 3, "and is said anew"
    assert log.by_rule == {"rule": 1001}


def test_another_rule_is_another_line() -> None:
    log, lines = lines_of()
    log.note("a", "192.0.2.1", 0.0)
    log.note("b", "192.0.2.1", 0.0)
    assert [line["rule"] for line in lines] == ["a", "b"]


def test_made_up_sources_do_not_fill_the_disk() -> None:
    log, lines = lines_of()
    for number in range(100_000):
        log.note("rule", str(ipaddress.IPv4Address(number)), number / 10_000)
    log.tick(10 + REPEAT_SECONDS)
    assert len(lines) < 2 * LINES_AT_ONCE + 100
    assert sum(line.get("repeated", 1) for line in lines if line["source"] == "many") > 90_000
    assert log.by_rule["rule"] == 100_000
    assert len(log._logged) <= MAX_REFUSALS


# ---- connections


def connections(*, calls: Collection[str] = (), welcome: bool = True) -> Connections:
    """Those of 10.0.0.1 are a trunk's."""
    return Connections("10.0.0.1".__eq__, lambda _source: welcome, calls.__contains__)


def test_strangers_have_so_many_connections_each_and_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_limits, "OF_STRANGERS", PER_SOURCE + 2)
    made = connections()
    hosts = [f"2a00:1450:4001:81b::{number}" for number in range(PER_SOURCE)]
    assert [made.opened(number, host, 0.0) for number, host in enumerate(hosts)] == [
        ""
    ] * PER_SOURCE
    assert made.opened(98, hosts[0], 0.0) == f"more than {PER_SOURCE} connections"
    assert made.opened(99, "2a00:1450:4001:81b::ffff", 0.0) != "", "one network counts as one"
    made.closed(98)
    made.closed(98)
    assert made.opened(98, hosts[0], 0.0) != "", "what was refused was not counted"
    made.closed(0)
    assert made.opened(0, hosts[0], 0.0) == ""
    assert [made.opened(200 + n, f"192.0.2.{n}", 0.0) != "" for n in range(3)] == [
        False, False, True,
    ]  # fmt: skip
    assert made.opened(300, "10.0.0.1", 0.0) == "", "a trunk's is always taken"


def test_a_handle_that_comes_again_is_another_connection() -> None:
    """The end of the first one was not told."""
    made = connections()
    for now in range(PER_SOURCE + 5):
        assert made.opened(1, "192.0.2.1", float(now)) == ""
    assert made.overdue(PER_SOURCE + 4 + FIRST_MESSAGE_SECONDS - 0.1) == []
    assert made.opened(1, "10.0.0.1", 50.0) == ""
    assert made.overdue(1e6) == [], "it is a trunk's now"


def test_who_may_stay_silent() -> None:
    made = connections(calls={"192.0.2.3"})
    for number in range(4):
        assert made.opened(number, f"192.0.2.{number}", 0.0) == ""
    made.heard(1, 5.0)
    made.heard(99, 5.0)
    late = FIRST_MESSAGE_SECONDS
    assert made.overdue(late) == [
        (number, f"192.0.2.{number}", "connection without a message") for number in (0, 2)
    ]
    made.closed(0)
    made.closed(2)
    assert made.overdue(5.0 + IDLE_SECONDS - 0.1) == []
    assert made.overdue(5.0 + IDLE_SECONDS) == [(1, "192.0.2.1", "idle connection")]


def test_nobody_unwelcome_is_connected() -> None:
    made = connections(welcome=False)
    assert made.opened(1, "192.0.2.1", 0.0) == "connection of a stranger"
    assert made.opened(2, "10.0.0.1", 0.0) == ""


def test_one_connection_too_many_of_a_trunk_closes_the_longest_silent() -> None:
    made = connections()
    for number in range(OF_A_PEER):
        made.opened(number, "10.0.0.1", float(number))
        assert made.surplus_connection("10.0.0.1") is None
    made.heard(0, 1000.0)
    made.opened(999, "10.0.0.1", 1001.0)
    assert made.surplus_connection("10.0.0.1") == 1
    made.closed(1)
    assert made.surplus_connection("10.0.0.1") is None

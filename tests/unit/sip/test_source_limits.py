# SPDX-License-Identifier: GPL-2.0-or-later
"""How often a source may ask, what is logged of refusals, bans, connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.sip import BanPolicy
from gateway.sip.source_limits import (
    KNOWN_SECONDS,
    LINES_AT_ONCE,
    MAX_REFUSALS,
    REPEAT_SECONDS,
    Bans,
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

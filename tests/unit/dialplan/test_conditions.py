# SPDX-License-Identifier: GPL-2.0-or-later
"""Conditions of a route: which calls they take, and which cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from gateway.config import ConfigError
from gateway.dialplan import InviteFacts
from tests.unit.dialplan.test_dialplan import MONDAY_NOON, facts, one


def takes(folder: Path, conditions: str, call: InviteFacts) -> bool:
    return one(folder, conditions).match(call) is not None


@pytest.mark.parametrize(
    ("conditions", "call", "taken"),
    [
        ('to = "^100$"', facts("100"), True),
        ('to = "^100$"', facts("1000"), False),
        ('\n\nto = "100"', facts("81009"), True),
        ('from = "^\\\\+49"', facts(from_user="+4930"), True),
        ('from = "^\\\\+49"', facts(from_user="alice"), False),
        ('headers = { X-Queue = "^vip$" }', facts(headers={"x-queue": ("vip",)}), True),
        ('headers = { X-Queue = "^vip$" }', facts(headers={"X-Queue": ("a", "vip")}), True),
        ('headers = { X-Queue = "^vip$" }', facts(headers={"X-Queue": ("vips",)}), False),
        ('headers = { X-Queue = "" }', facts(headers={"X-Queue": ("any",)}), True),
        ('headers = { X-Queue = "" }', facts(), False),
        ('source = "192.0.2.0/24"', facts(), True),
        ('source = "192.0.2.7"', facts(), True),
        ('source = ["10.0.0.0/8", "192.0.2.8"]', facts(), False),
        ('source = "192.0.2.0/24"', facts(source_ip="::ffff:192.0.2.7"), True),
        ('source = "2001:db8::/32"', facts(source_ip="2001:db8::1"), True),
        ('source = "2001:db8::/32"', facts(), False),
        ('source = "0.0.0.0/0"', facts(source_ip="?"), False),
        ('trunk = "isp"', facts(trunk="isp"), True),
        ('trunk = "isp"', facts(), False),
        ('to = "^100$"\nfrom = "^bob$"', facts(), False),
        ('pai = "^\\\\+4930"', facts(pai=("alice", "+4930123")), True),
        ('pai = "^\\\\+4930"', facts(pai=("alice",)), False),
        ('pai = ""', facts(), False),
        ('diversion = "^200$"', facts(diversion=("300", "200")), True),
        ('diversion = "^200$"', facts(), False),
        ("", facts(), True),
    ],
)
def test_conditions(tmp_path: Path, conditions: str, call: InviteFacts, taken: bool) -> None:
    assert takes(tmp_path, conditions, call) is taken


def local(day: int, hour: int, minute: int = 0) -> datetime:
    """In March 2026, of which the 2nd is a Monday, on the wall in Berlin."""
    return datetime(2026, 3, day, hour, minute, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize(
    ("hours", "at", "taken"),
    [
        ('"mon-fri 08:00-18:00"', local(2, 8), True),
        ('"mon-fri 08:00-18:00"', local(2, 7, 59), False),
        ('"mon-fri 08:00-18:00"', local(6, 17, 59), True),
        ('"mon-fri 08:00-18:00"', local(6, 18), False),
        ('"mon-fri 08:00-18:00"', local(7, 12), False),
        ('"8:00-18:00"', local(7, 12), True),
        ('"sat, sun 10:00-14:00"', local(8, 10), True),
        ('"sat, sun 10:00-14:00"', local(9, 10), False),
        ('"sat-mon 10:00-14:00"', local(9, 10), True),
        ('"SAT-MON 10:00 - 14:00"', local(10, 10), False),
        ('"fri 22:00-06:00"', local(6, 23), True),
        ('"fri 22:00-06:00"', local(7, 5, 59), True),
        ('"fri 22:00-06:00"', local(7, 6), False),
        ('"fri 22:00-06:00"', local(6, 5), False),
        ('"fri 20:00-24:00"', local(6, 23, 59), True),
        ('"fri 20:00-24:00"', local(7, 0), False),
        ('["mon 08:00-09:00", "mon 10:00-11:00"]', local(2, 10, 30), True),
        ('["mon 08:00-09:00", "mon 10:00-11:00"]', local(2, 9, 30), False),
        # Noon in London is one o'clock in Berlin, and two in July's other zone.
        ('"13:00-13:01"', MONDAY_NOON, True),
        ('"14:00-14:01"', datetime(2026, 7, 6, 12, 0, tzinfo=UTC), True),
    ],
)
def test_hours(tmp_path: Path, hours: str, at: datetime, taken: bool) -> None:
    conditions = f'hours = {hours}\ntimezone = "Europe/Berlin"'
    assert takes(tmp_path, conditions, facts(at=at)) is taken


@pytest.mark.parametrize(
    ("hours", "message"),
    [
        ("mon-fry 08:00-18:00", "'fry' is not a weekday"),
        ("08:00", "must be like"),
        ("08:00-08:00", "same minute"),
        ("08:00-25:00", "25:00 is no time of day"),
        ("08:60-09:00", "08:60 is no time of day"),
        ("24:00-01:00", "24:00 can only be an end"),
    ],
)
def test_bad_hours(tmp_path: Path, hours: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one(tmp_path, f'hours = "{hours}"\ntimezone = "UTC"')


@pytest.mark.parametrize("zone", ["Europe/Berlyn", "../etc/passwd", "/etc/passwd", ""])
def test_bad_timezone(tmp_path: Path, zone: str) -> None:
    with pytest.raises(ConfigError, match="time zone"):
        one(tmp_path, f'hours = "08:00-09:00"\ntimezone = "{zone}"')


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ('to = "("', "to", "not a valid regular expression: missing ), unterminated subpattern at"),
        ("to = 100", "to", "must be a regular expression, as a string"),
        ('headers = { X-A = "[" }', "headers.X-A", "unterminated character set at position 1"),
        ('headers = { "X A" = "1" }', 'headers."X A"', "not a valid SIP header name"),
        ('headers = { X-A = "1", x-a = "2" }', "headers.X-A", "twice"),
        ('source = "10.0.0.5/8"', "source", "did you mean 10.0.0.0/8?"),
        ('source = "pbx"', "source", "must be an address or network"),
        ("source = []", "source", "matches nobody"),
        ('pai = "("', "pai", "not a valid regular expression"),
    ],
)
def test_what_is_no_condition(tmp_path: Path, line: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one(tmp_path, line)
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, f"route[0].{key}")
    assert message in problem.message

# SPDX-License-Identifier: GPL-2.0-or-later
"""The dialplans that a user starts from: they load, and take the calls that they say they take."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from gateway.dialplan import Dialplan, InviteFacts, load_dialplan

FOLDER = Path(__file__).parents[3] / "dialplans"
BERLIN = ZoneInfo("Europe/Berlin")
OPEN = datetime(2026, 3, 2, 10, 0, tzinfo=BERLIN)
CLOSED = datetime(2026, 3, 1, 10, 0, tzinfo=BERLIN)


@pytest.fixture(scope="module")
def examples() -> Dialplan:
    return load_dialplan(FOLDER, {})


@pytest.mark.parametrize(
    ("number", "at", "headers", "source", "route"),
    [
        ("100", OPEN, {}, "127.0.0.1", "reception"),
        ("200", CLOSED, {}, "198.51.100.1", "keypad"),
        ("300", OPEN, {}, "127.0.0.1", "shop-open"),
        ("300", CLOSED, {}, "127.0.0.1", "shop-closed"),
        ("300", CLOSED, {"X-Priority": ("urgent",)}, "127.0.0.1", "shop-urgent"),
        ("300", OPEN, {"X-Priority": ("normal",)}, "127.0.0.1", "shop-open"),
        ("400", OPEN, {}, "127.0.0.1", "echo"),
        ("4012", OPEN, {}, "10.1.2.3", "echo"),
        ("400", OPEN, {}, "198.51.100.1", None),
        ("500", OPEN, {}, "127.0.0.1", "customers"),
        ("1000", OPEN, {}, "127.0.0.1", None),
    ],
)
def test_who_answers(
    examples: Dialplan,
    number: str,
    at: datetime,
    headers: dict[str, tuple[str, ...]],
    source: str,
    route: str | None,
) -> None:
    match = examples.match(
        InviteFacts(
            to_user=number,
            from_user="alice",
            to_uri=f"sip:{number}@127.0.0.1",
            from_uri="sip:alice@127.0.0.1",
            source_ip=source,
            at=at,
            headers=headers,
        )
    )
    assert (match.route.name if match else None) == route


def test_each_says_something_first_and_has_instructions(examples: Dialplan) -> None:
    for route in examples.routes:
        if route.test_line:
            continue
        assert route.greeting is not None
        assert route.session_settings()["instructions"].strip()


def test_the_reception_is_the_one_that_the_manual_shows(examples: Dialplan) -> None:
    reception = examples.routes[0]
    assert reception.greeting is not None
    assert reception.greeting.say == "Good morning, reception. How can I help?"
    assert reception.session_settings()["audio"] == {"output": {"voice": "marin"}}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose earlier calls are looked up, what is told of them, and a database that is away."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.bridge.route_data import (
    TRUST,
    WAITING,
    CallerHistories,
    earlier_of,
    number_trust,
    trusted_number,
)
from gateway.dialplan import Route
from gateway.records.database import Database
from gateway.records.tables import CLOSED
from gateway.sip.leg import Invite
from gateway.sip.messages.headers import invite_of
from tests.support.kept_rows import row

NUMBER = "+49301234567"


def invite(number: str = NUMBER, *headers: str, trunk: str = "carrier") -> Invite:
    lines = ["INVITE sip:1@gw SIP/2.0", f"From: <sip:{number}@host>;tag=1", "To: <sip:1@gw>"]
    made = invite_of("\r\n".join([*lines, *headers, "", ""]), "192.0.2.1:5060")
    return Invite(**{name: getattr(made, name) for name in made.__slots__} | {"trunk": trunk})


ASSERTED = f"P-Asserted-Identity: <sip:{NUMBER}@carrier.example>"


@pytest.mark.parametrize(
    ("asked", "trust", "found"),
    [
        (invite(), "trunk", NUMBER),
        (invite("+49 (30) 123-45.67".replace(" ", "")), "trunk", NUMBER),
        (invite(trunk=""), "trunk", ""),
        (invite(trunk=""), "any", NUMBER),
        (invite(), "asserted", ""),
        (invite(NUMBER, ASSERTED), "asserted", NUMBER),
        (invite(NUMBER, ASSERTED, trunk=""), "asserted", ""),
        (invite("+4930999", ASSERTED), "asserted", ""),
        (invite("anonymous", ASSERTED), "asserted", ""),
        (invite(NUMBER, ASSERTED), "trunk", NUMBER),
        (invite("+4930999", ASSERTED), "trunk", ""),
        (invite("+4930999", ASSERTED), "any", "+4930999"),
        (invite("anonymous"), "any", ""),
        (invite("alice"), "any", ""),
        (invite("0000"), "any", ""),
        (invite("+49********7"), "any", ""),
        (invite(NUMBER, "Privacy: critical;ID"), "trunk", ""),
        (invite(NUMBER, "Privacy: none"), "trunk", NUMBER),
    ],
)
def test_whose_number_counts(asked: Invite, trust: str, found: str) -> None:
    assert trusted_number(asked, trust) == found
    assert (number_trust(asked) in TRUST[: TRUST.index(trust) + 1]) == bool(found)


def a_route(**history: Any) -> Route:
    return Route.model_validate({"name": "r", "caller_history": {"enabled": True, **history}})


def rows(count: int, said: str) -> list[dict[str, Any]]:
    entry = {"who": "caller", "text": said}
    return [
        {
            "id": f"c{n}",
            "invited_at": datetime(2026, 11, 20, 10, n, tzinfo=UTC),
            "outcome": "completed",
            "disposition": 'sold\n"x"',
            "out_of_band": [{"key": "q", "status": "completed", "text": "an operator's"}],
            "transcript": [{"who": "system", "text": "hidden"}, entry, {"who": "agent"}],
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("length", [10, 100_000])
@pytest.mark.parametrize("count", [1, 10])
def test_what_is_told_is_quoted_and_has_its_bounds(count: int, length: int) -> None:
    route = a_route(max_chars=600)
    found = earlier_of(route, rows(count, '"\n' + "y" * length))
    assert len(found.text) <= 600
    assert found.text.count("\n") <= count
    assert found.text.splitlines()[1].startswith("- 2026-11-20 ")
    assert "hidden" not in found.text
    assert "operator" not in found.text
    assert found.values["last_call.disposition"] == "sold 'x'"
    assert len(found.values["last_call.summary"]) <= 600
    assert found.calls == tuple(f"c{n}" for n in range(count))


async def test_only_calls_that_count_are_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/calls.sqlite3"
    ago = (datetime.now(UTC) - timedelta(days=200)).isoformat()
    lately = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    good: dict[str, Any] = {
        "from_number": NUMBER,
        "direction": "inbound",
        "route": "r",
        "trunk": "carrier",
        "invited_at": lately,
        "answered_at": lately,
        "ended_at": lately,
        "record": {
            "number_trust": "trunk",
            "out_of_band": [],
            "transcript": [{"who": "caller", "text": "Hello."}],
        },
    }
    wrong: list[dict[str, Any]] = [
        {"from_number": "+4930"},
        {"direction": "outbound"},
        {"route": "other"},
        {"record": {**good["record"], "number_trust": "any"}},
        {"record": {**good["record"], "number_trust": ""}},
        {"record": None},
        {"invited_at": ago},
        {"answered_at": None},
        {"ended_at": None},
    ]
    database = Database(url)
    database.write([row("good", CLOSED, **good)])
    sure = {**good["record"], "number_trust": "asserted"}
    database.write([row("sure", CLOSED, **{**good, "record": sure})])
    database.write([row(f"n{n}", CLOSED, **{**good, **one}) for n, one in enumerate(wrong)])
    histories = CallerHistories(url)
    lookup = histories.of(a_route(), invite())
    assert lookup is not None
    found = await lookup()
    assert set(found.calls) == {"good", "sure"}
    assert 'Its last words: "caller: Hello."' in found.text
    database.anonymize(["good"], "erased")
    assert (await lookup()).calls == ("sure",)
    assert histories.of(Route.model_validate({"name": "r"}), invite()) is None
    histories.stop()
    database.close()


async def test_a_database_that_is_away_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = CallerHistories(f"sqlite:///{tmp_path}/none.sqlite3")
    lookup = histories.of(a_route(), invite())
    assert lookup is not None
    assert (await lookup()).calls == ()  # there is no file yet
    lookup = histories.of(a_route(timeout=0.01), invite())
    assert lookup is not None
    hangs = threading.Event()
    monkeypatch.setattr(histories, "_read", lambda *_: hangs.wait(20) and [])
    failures = [(await lookup()).failure for _ in range(WAITING + 1)]
    assert set(failures[:-1]) == {"no answer within 0.01 s"}
    assert failures[-1] == "too many lookups wait for the database"
    hangs.set()
    histories.stop()
    assert CallerHistories(None).of(a_route(), invite()) is None

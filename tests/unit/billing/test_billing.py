# SPDX-License-Identifier: GPL-2.0-or-later
"""Accounts of calls, and budgets of callers, routes and days: exact to the last digit."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.billing import (
    Account,
    Accounts,
    Budgets,
    Level,
    Reached,
    Scope,
    Watch,
    budget_plan,
    budgets_of,
)
from gateway.billing.ledger import DaySums, Ledger
from gateway.billing.prices import Usage, load_prices
from gateway.config import ConfigError
from gateway.planning.check import load_all
from gateway.realtime.events import InputTranscribed, ResponseDone, SessionUsage
from gateway.text import money

CHECK = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 119,
        "audio_tokens": 13,
        "image_tokens": 0,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}
"""The usage of a captured response."""
PRICES = load_prices()


def test_a_routes_budget_goes_before_the_configurations(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "a.toml").write_text(
        '[[route]]\nname = "a"\n[[route]]\nname = "b"\n'
        '[[route.transfer]]\nname = "Desk"\nto = "sip:1@pbx"\n'
        "[route.budget]\nper_call = 0.5\nper_caller = 0\nper_day = 7\n"
        'warning_threshold = 1\ntransfer_to = "desk"\n'
    )
    file = tmp_path / "gateway.toml"
    file.write_text(
        '[realtime]\nurl = "ws://127.0.0.1:1"\n[dialplan]\nfolder = "plans"\n'
        "[cost.budget]\nper_call = 0.1\nper_caller = 2\nper_day = 30\n"
    )
    config, dialplan = load_all(file, {})
    first, second = (budgets_of(config, route) for route in dialplan.routes)
    assert first == Budgets(Decimal("0.1"), Decimal(2), None, Decimal(30), Decimal("0.8"))
    assert second == Budgets(Decimal("0.5"), None, Decimal(7), Decimal(30), Decimal(1))
    assert budget_plan(config, dialplan.routes[1]).transfer_to == "desk"
    (tmp_path / "plans" / "a.toml").write_text(
        '[[route]]\nname = "a"\nbudget.transfer_to = "desk"\n'
    )
    with pytest.raises(ConfigError, match=r"there is no \[\[route.transfer\]\]"):
        load_all(file, {})


def test_each_worker_keeps_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    file = tmp_path / "gateway.toml"
    for more, alone, second in (
        ("", None, None),
        ('[records]\nfolder = "r"\n', "r/today.cost", "r/today-1.cost"),
        ('[cost]\nstate_file = "l.json"\n', "l.json", "l-1.json"),
    ):
        file.write_text(
            '[realtime]\nurl = "ws://127.0.0.1:1"\n[dialplan]\nfolder = "plans"\n'
            f"[workers]\ncount = 2\n{more}"
        )
        config, _ = load_all(file, {})
        assert config.ledger == (alone and tmp_path / alone)
        assert config.for_worker(1).ledger == (second and tmp_path / second)


# ---- the account of a call


class _Day:
    def __init__(self) -> None:
        self.date = "2026-11-20"
        self.unknown: list[str] = []
        self.accounts = Accounts(PRICES, Ledger(), lambda: self.date, self.unknown.append)

    def open(self, model: str = "gpt-realtime", number: str = "1", **limits: str) -> Account:
        budgets = Budgets(**{name: Decimal(value) for name, value in limits.items()})
        return self.accounts.open(
            model=model,
            host="api.openai.com",
            transcriber="whisper-1",
            route="r",
            number=number,
            budgets=budgets,
        )


def _done(usage: dict[str, Any] | None = CHECK, status: str = "completed") -> ResponseDone:
    return ResponseDone("resp_1", status, None, None, None, (), usage)


def test_a_call_adds_up_and_says_it() -> None:
    day = _Day()
    account = day.open()
    for _ in range(3):
        assert account.take(_done()) is None
    account.take(InputTranscribed("i", "Hello", {"type": "duration", "seconds": 30}))
    account.take(_done(None, "failed"))
    told = json.loads(json.dumps(account.as_json()))
    assert told == {
        "currency": "USD",
        "total": 0.0238968,
        "priced": 0.0238968,
        "model": "gpt-realtime",
        "responses": 4,
        "responses_without_usage": 0,
        "tokens": {
            "input": {"text": 357, "audio": 39, "image": 0},
            "cached": {"text": 192, "audio": 0, "image": 0},
            "output": {"text": 90, "audio": 273, "image": 0},
        },
        "unpriced": [],
        "transcription": {
            "model": "whisper-1",
            "turns": 1,
            "seconds": 30.0,
            "tokens": Usage().as_json(),
        },
    }
    assert day.accounts.ledger.spent(day.date, ("day", "")) == Decimal("0.0238968")


def test_a_live_session_is_counted_by_its_seconds_and_never_twice() -> None:
    """Usage is cumulative, of each session by itself; a budget warns and ends between reports."""
    day = _Day()
    account = day.open("gpt-live-1.1", call="0.10", warning_threshold="0.5")

    def used(session: str, seconds: float, *, reported: bool = True) -> str | None:
        event = SessionUsage(session, "gpt-live-1.1", seconds, reported)
        reached = account.take(event)
        return None if reached is None else reached.level.value

    assert used("live_1", 15.0) is None
    assert used("live_1", 30.0) is None
    assert used("live_1", 20.0) is None, "it never goes back"
    assert account.total == Decimal("0.025")
    assert used("live_2", 30.0, reported=False) == "warn"
    assert used("live_2", 89.0, reported=False) is None
    assert used("live_2", 90.0, reported=False) == "limit"
    told = account.as_json()
    assert (told["total"], told["session_seconds"]) == (0.1, 120.0)


def test_each_session_is_priced_by_its_own_server() -> None:
    """A fallback from a Live session to another model is no model without a price."""
    account = _Day().open("gpt-live-1.1")
    account.take(SessionUsage("live_1", "gpt-live-1.1", 15.0, True))
    account.use("gpt-realtime", "api.openai.com", "whisper-1")
    account.take(_done())
    account.use("gpt-realtime-2.1", "eu.api.openai.com", "whisper-1")
    account.take(_done())
    told = account.as_json()
    assert (told["unpriced"], told["model"]) == ([], "gpt-realtime-2.1")
    assert account.total == Decimal("0.0125") + Decimal("0.0069656") + Decimal("0.00792616")


def test_what_has_no_price_is_counted_and_said_once() -> None:
    day = _Day()
    for _ in range(2):
        account = day.open("nobody-knows", call="0.0001")
        assert account.take(_done()) is None
        told = account.as_json()
        assert (told["total"], told["priced"], told["unpriced"]) == (None, 0.0, ["nobody-knows"])
        assert told["tokens"]["output"]["audio"] == 91
    assert day.unknown == ["nobody-knows"]
    assert day.accounts.ledger.own.unpriced == 2


def test_a_response_that_should_have_told_leaves_the_total_open() -> None:
    account = _Day().open()
    account.take(_done(None))
    assert account.as_json()["total"] is None


def test_a_call_is_warned_once_and_stopped_once() -> None:
    account = _Day().open(call="0.0200")
    told = [account.take(_done()) for _ in range(5)]
    assert [one and (one.level, one.scope) for one in told] == [
        None,
        None,
        (Level.LIMIT, Scope.CALL),  # 0.0139 is below 0.8 of it, 0.0209 above all of it
        None,
        None,
    ]
    assert str(told[2]) == "call: 0.0208968 of 0.02"
    account = _Day().open(call="0.0170")
    told = [account.take(_done()) for _ in range(4)]
    assert [one and one.level for one in told] == [None, Level.WARN, Level.LIMIT, None]


def test_numbers_routes_and_days_share_their_money() -> None:
    day = _Day()
    day.open(number="1").take(_done())
    day.open(number="1").take(_done())
    other = day.accounts.open(
        model="gpt-realtime",
        host="",
        transcriber="",
        route="s",
        number="2",
        budgets=Budgets(number=Decimal("0.02"), route=Decimal("0.02"), day=Decimal("0.02")),
    )
    reached = other.take(_done())
    assert reached == Reached(Level.LIMIT, Scope.DAY, Decimal("0.0208968"), Decimal("0.02"))
    accounts = day.accounts
    assert accounts.exhausted("r", "3", Budgets(route=Decimal("0.01"))) is not None
    assert accounts.exhausted("s", "3", Budgets(route=Decimal("0.01"))) is None
    assert accounts.exhausted("s", "1", Budgets(number=Decimal("0.0139312"))) is not None
    assert accounts.exhausted("s", "1", Budgets(number=Decimal("0.0139313"))) is None
    assert accounts.exhausted("s", "1", Budgets(call=Decimal("0.0001"))) is None
    day.date = "2026-11-21"
    assert accounts.exhausted("r", "1", Budgets(day=Decimal("0.01"))) is None, "a new day"
    assert accounts.as_json()["shared_total"] == "0"


def test_the_limit_goes_before_the_warning() -> None:
    watch = Watch(Budgets(call=Decimal(10), day=Decimal(1)))
    reached = watch.look({Scope.CALL: Decimal(9), Scope.DAY: Decimal(1)})
    assert reached is not None
    assert (reached.level, reached.scope) == (Level.LIMIT, Scope.DAY)
    assert watch.look({Scope.CALL: Decimal(11), Scope.DAY: Decimal(2)}) is None


def test_sums_survive_their_file() -> None:
    ledger = Ledger()
    ledger.begin("2026-11-20")
    ledger.add("2026-11-20", "r", "+49", Decimal("0.0069656"))
    ledger.add("2026-11-20", "r", "+49", None)
    assert DaySums.from_json(json.loads(json.dumps(ledger.own.as_json()))) == ledger.own


@pytest.mark.parametrize(
    "text", ["{}", "[]", '"x"', '{"day": "x", "total": "-1", "calls": 0, "unpriced": 0}', "null"]
)
def test_what_is_no_ledger_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is no ledger"):
        DaySums.from_json(json.loads(text))


def test_other_workers_count() -> None:
    ledger = Ledger()
    ledger.add("d", "r", "1", Decimal(1))
    ledger.others = (
        DaySums("d", Decimal(2), routes={"r": Decimal(2)}, numbers={"1": Decimal(2)}),
        DaySums("yesterday", Decimal(9)),
    )
    for pair in (("day", ""), ("route", "r"), ("number", "1")):
        assert ledger.spent("d", pair) == Decimal(3)


@pytest.mark.parametrize(
    ("amount", "text"),
    [("1", "1.00"), ("0.5", "0.50"), ("0.0069656", "0.0069656"), ("12.345", "12.345")],
)
def test_money_in_words(amount: str, text: str) -> None:
    assert money(Decimal(amount)) == text

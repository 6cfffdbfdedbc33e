# SPDX-License-Identifier: GPL-2.0-or-later
"""Usage, prices and sums: tables, exact to the last digit."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from gateway.billing.prices import (
    OWN_FILE,
    PriceBook,
    Tokens,
    Usage,
    load_prices,
    transcription_usage_of,
    usage_of,
)
from gateway.config import ConfigError
from gateway.planning.check import check, load_all
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


def _cost(model: str, usage: dict[str, Any], host: str = "api.openai.com") -> Decimal | None:
    price = PRICES.price(model, host)
    return None if price is None else price.of(usage_of(usage))


def test_the_check_value() -> None:
    assert _cost("gpt-realtime", CHECK) == Decimal("0.0069656")
    docs = (Path(__file__).parents[3] / "docs" / "cost.md").read_text(encoding="utf-8")
    assert "= 0.0069656 USD" in docs


@pytest.mark.parametrize(
    ("model", "host", "cost"),
    [
        # (55 text + 64 cached + 13 audio in, 30 text + 91 audio out) at each model's prices.
        ("gpt-realtime-2025-08-28", "api.openai.com", "0.0069656"),
        ("gpt-realtime-1.5", "api.openai.com", "0.0069656"),
        ("gpt-realtime-2", "api.openai.com", "0.0072056"),
        ("gpt-realtime-2.1", "api.openai.com", "0.0072056"),
        ("gpt-realtime-2.1", "eu.api.openai.com", "0.00792616"),
        ("gpt-realtime", "eu.api.openai.com", "0.0069656"),
        ("gpt-realtime-mini", "api.openai.com", "0.00205884"),
        ("gpt-realtime-mini-2025-10-06", "api.openai.com", "0.00205884"),
        ("gpt-realtime-2.1-mini", "jp.api.openai.com", "0.002264724"),
        ("gpt-4o-realtime-preview", "api.openai.com", "0.020695"),
        ("gpt-4o-realtime-preview-2024-12-17", "x", "0.020695"),
        ("gpt-4o-realtime-preview-2025-06-03", "x", "0.008835"),
        ("gpt-4o-mini-realtime-preview-2024-12-17", "x", "0.0020742"),
        # A reseller's flat price: (132 in * 2 + 121 out * 8) / 1,000,000.
        ("gpt-realtime", "api.cometapi.com", "0.001232"),
    ],
)
def test_prices_of_models(model: str, host: str, cost: str) -> None:
    assert _cost(model, CHECK, host) == Decimal(cost)


@pytest.mark.parametrize(
    "model", ["gpt-realtime-9", "my-deployment", "gpt-realtime-2025-09-01", ""]
)
def test_a_model_that_nobody_knows_has_no_price(model: str) -> None:
    assert _cost(model, CHECK) is None


@pytest.mark.parametrize(
    ("model", "usage", "cost"),
    [
        ("gpt-realtime-whisper", {"type": "duration", "seconds": 60}, "0.017"),
        ("whisper-1", {"type": "duration", "seconds": 90.5}, "0.00905"),
        (
            "gpt-4o-mini-transcribe",
            {
                "type": "tokens",
                "input_tokens": 100,
                "output_tokens": 20,
                "input_token_details": {"audio_tokens": 90, "text_tokens": 10},
            },
            "0.000225",
        ),
        ("gpt-4o-transcribe", {"type": "duration", "seconds": 1}, None),
        ("whisper-1", {"type": "tokens", "input_tokens": 5}, None),
    ],
)
def test_transcription(model: str, usage: dict[str, Any], cost: str | None) -> None:
    price = PRICES.price(model)
    assert price is not None
    assert price.of(transcription_usage_of(usage)) == (None if cost is None else Decimal(cost))


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        (CHECK, Usage(Tokens(119, 13), Tokens(64), Tokens(30, 91))),
        ({}, Usage()),
        # Beta: no images, and no details of what was cached.
        (
            {"input_token_details": {"cached_tokens": 130, "text_tokens": 119, "audio_tokens": 13}},
            Usage(Tokens(119, 13), Tokens(119, 11)),
        ),
        # Totals only: the dearest, audio. A rest beside details: text.
        ({"input_tokens": 7, "output_tokens": 5}, Usage(Tokens(0, 7), output=Tokens(0, 5))),
        (
            {"input_tokens": 20, "input_token_details": {"audio_tokens": 13}},
            Usage(Tokens(7, 13)),
        ),
        # Cached is part of what came in, whatever is said.
        (
            {
                "input_token_details": {
                    "text_tokens": 5,
                    "cached_tokens_details": {"text_tokens": 9, "audio_tokens": 4},
                }
            },
            Usage(Tokens(5), Tokens(5)),
        ),
        (
            {
                "input_tokens": "many",
                "output_tokens": -5,
                "input_token_details": [1],
                "output_token_details": {"text_tokens": True, "audio_tokens": float("nan")},
            },
            Usage(),
        ),
        ({"type": "duration", "seconds": "long"}, Usage()),
    ],
)
def test_usage_is_read_with_patience(usage: dict[str, Any], read: Usage) -> None:
    assert usage_of(usage) == read


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.dictionaries(
        st.sampled_from(
            ["input_tokens", "input_token_details", "cached_tokens_details", "audio_tokens", "type"]
        ),
        inner,
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*CHECK, "type", "seconds"]), _JSON))
def test_no_usage_stops_a_call(usage: dict[str, Any]) -> None:
    read = usage_of(usage)
    for name in ("text", "audio", "image"):
        assert 0 <= getattr(read.cached, name) <= getattr(read.input, name)
    price = PRICES.price("gpt-realtime")
    assert price is not None
    assert (price.of(read) or Decimal(0)) >= 0


def test_no_price_for_what_was_used_is_no_cost() -> None:
    image = {"input_token_details": {"image_tokens": 10}}
    assert _cost("gpt-4o-realtime-preview", image) is None
    assert _cost("gpt-realtime", image) == Decimal("0.00005")


def _book(folder: Path, text: str) -> PriceBook:
    file = folder / "prices.toml"
    file.write_text(text, encoding="utf-8")
    return load_prices(file)


def test_ones_own_prices_go_first(tmp_path: Path) -> None:
    book = _book(
        tmp_path,
        """
[[model]]
match = ["mine"]
same_as = "gpt-realtime"
[[model]]
match = ["gpt-realtime"]
flat = { input = 1, output = 1 }
[[model]]
match = ["gpt-realtime"]
hosts = ["*.example"]
flat = { input = 0.5, output = 0.5 }
[[uplift]]
hosts = ["gold.example"]
match = ["*"]
factor = 2
""",
    )
    for model, host, cost in (
        ("gpt-realtime", "x", "0.000253"),
        ("mine", "x", "0.000253"),
        ("GPT-Realtime", "a.example", "0.0001265"),
        ("mine", "gold.example", "0.000253"),
        ("gpt-realtime-1.5", "x", "0.0069656"),
    ):
        price = book.price(model, host)
        assert price is not None
        assert price.of(usage_of(CHECK)) == Decimal(cost), (model, host)


def test_another_currency_stands_alone(tmp_path: Path) -> None:
    book = _book(tmp_path, 'currency = "EUR"\n[[model]]\nmatch = ["m"]\nper_minute = 1\n')
    assert book.currency == "EUR"
    assert book.price("gpt-realtime") is None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[[model]]\nmatch = ["a"]\n', 1, "has no price"),
        ("[[model]]\nper_minute = 1\n", 1, "missing"),
        ('[[model]]\nmatch = ["a"]\nper_minute = -1\n', 3, "greater than or equal to 0"),
        ('[[model]]\nmatch = ["a"]\nper_minute = "x"\n', 3, "decimal"),
        ('[[model]]\nmatch = ["a"]\ntext = { inputs = 1 }\n', 3, 'did you mean "input"?'),
        ('[[model]]\nmatch = ["a*"]\nsame_as = "ab"\n', 3, "names the entry itself"),
        ('currency = "dollars"\n', 1, "match"),
    ],
)
def test_mistakes_of_a_price_file_have_their_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _book(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.line == line
    assert message in problem.message


def test_the_manuals_prices_are_good(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "cost.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```$", docs, re.MULTILINE | re.DOTALL)
    book = _book(tmp_path, example)
    price = book.price("my-deployment", "x.openai.azure.com")
    assert price is not None
    assert price.of(usage_of(CHECK)) == Decimal("0.0069656")


def test_check_tells_what_is_wrong_with_a_price_file(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "prices.toml").write_text('[[model]]\nmatch = ["a"]\nper_minute = -1\n')
    file = tmp_path / "gateway.toml"
    file.write_text(
        '[realtime]\nurl = "ws://127.0.0.1:1"\n[dialplan]\nfolder = "plans"\n'
        '[cost]\nprices = "prices.toml"\n'
    )
    status, lines = check(file, {})
    assert status == 2
    (line,) = lines
    assert line.startswith(f"{tmp_path / 'prices.toml'}:3: model[0].per_minute: must be greater")


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


def test_a_circle_of_names_ends(tmp_path: Path) -> None:
    book = _book(
        tmp_path,
        '[[model]]\nmatch = ["a"]\nsame_as = "b"\n[[model]]\nmatch = ["b"]\nsame_as = "a"\n',
    )
    assert book.price("a") is None


def test_every_entry_of_our_own_file_has_a_price_of_its_own() -> None:
    text = OWN_FILE.read_text(encoding="utf-8")
    names = re.findall(r'"(gpt-[^"*]+|whisper-1)"', text)
    assert len(names) > 12
    assert all(PRICES.price(name) is not None for name in names)


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

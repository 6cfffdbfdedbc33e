# SPDX-License-Identifier: GPL-2.0-or-later
"""Usage and prices: tables, exact to the last digit."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from gateway.planning.check import check
from tests.unit.billing.test_billing import CHECK, PRICES


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

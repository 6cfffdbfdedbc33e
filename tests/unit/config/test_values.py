# SPDX-License-Identifier: GPL-2.0-or-later
"""Regular expressions of the operator, on what a stranger may send."""

from __future__ import annotations

import pytest

from gateway.config.values import pattern_of
from gateway.text import MAX_SUBJECT, matched, searched


@pytest.mark.parametrize(
    "text",
    [r"(\d+)+$", r"^(\d+-?)*$", r"(?:a*)*", r"^((\w+\s*)+)x", r"(?:x|(?:\d*)*)y", r"(a{1,50})+"],
)
def test_what_may_take_for_ever_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="may take exponential time"):
        pattern_of(text)


@pytest.mark.parametrize(
    "text", [r"^\+?(?P<number>\d{3,15})$", r"(?:\d+,)*", r"(\d{2} )+", ".*", r"^(sales|help)-\d+$"]
)
def test_what_cannot_is_taken(text: str) -> None:
    assert pattern_of(text).pattern == text


def test_no_regular_expression() -> None:
    with pytest.raises(ValueError, match=r"is not a valid regular expression: .* at position 1"):
        pattern_of("(")
    with pytest.raises(ValueError, match="nested too deeply"):
        pattern_of("(" * 5000 + ")" * 5000)


def test_a_long_text_matches_nothing() -> None:
    pattern = pattern_of("1*")
    assert searched(pattern, "1" * MAX_SUBJECT)
    assert matched(pattern, "1" * MAX_SUBJECT)
    assert searched(pattern, "1" * (MAX_SUBJECT + 1)) is None
    assert matched(pattern, "1" * (MAX_SUBJECT + 1)) is None

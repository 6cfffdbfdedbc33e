# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway's own tools: what the model is shown of them, and which arguments are taken."""

from __future__ import annotations

import pytest

from gateway.call.tools.definitions import entry_problem


@pytest.mark.parametrize(
    ("kind", "digits", "wrong"),
    [
        ("card_number", "4111111111111111", ""),
        ("card_number", "4111111111111112", "no valid card number"),
        ("card_number", "41111111111", "11 digits"),
        ("expiry", "1226", ""),
        ("expiry", "1126", ""),
        ("expiry", "1026", "expired"),
        ("expiry", "1326", "no month"),
        ("expiry", "1299", "too far"),
        ("security_code", "123", ""),
        ("security_code", "12", "2 digits"),
        ("digits", "1", ""),
        ("digits", "1*", "other keys"),
    ],
)
def test_sensitive_entries_are_checked(kind: str, digits: str, wrong: str) -> None:
    found = entry_problem(kind, digits, 2026, 11)
    assert wrong in found if wrong else found == ""
    assert digits not in found

# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of a route: what a section may not say, and what it may not beside another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.dialplan import load_dialplan


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('hold_wait.enabled = true\nmachine_detection.music = "hangup"', "machine_detection.music"),
        (
            'hold_wait.enabled = true\nsession.audio.input.turn_detection = "null"',
            "session.audio.input.turn_detection",
        ),
        ('hold_wait.transfer_to = "nobody"', "hold_wait.transfer_to"),
        ('[[route.hold_wait.key]]\nwords = "1"\ndigits = "one"', "hold_wait.key"),
        ("line.min_level = 3.0", "line.min_level"),
        ("line.max_loss = 101", "line.max_loss"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "a.toml").write_text(f'[[route]]\nname = "a"\n{text}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(place)):
        load_dialplan(tmp_path, {})

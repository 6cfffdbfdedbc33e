# SPDX-License-Identifier: GPL-2.0-or-later
"""What a route says of its sessions beside their objects: messages at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.dialplan import Route, load_dialplan
from gateway.planning.route_tools import content_plan


def route_of(folder: Path, text: str) -> Route:
    (folder / "r.toml").write_text(f'[[route]]\nname = "r"\n{text}', encoding="utf-8")
    (route,) = load_dialplan(folder, {}).routes
    return route


def test_messages_at_the_start_are_texts_or_files_with_variables(tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text(
        "\nYou speak with {from_name|somebody}.\n", encoding="utf-8"
    )
    messages = (
        'message = [{ file = "rules.txt" }, { role = "user", text = "Hi." },'
        ' { role = "assistant", text = "Hello." }]'
    )
    plan = content_plan(route_of(tmp_path, messages), {"from_name": "Ann"})
    assert plan.messages == (
        ("system", "You speak with Ann."), ("user", "Hi."), ("assistant", "Hello."),
    )  # fmt: skip
    (tmp_path / "rules.txt").write_bytes(b"x" * 16_001)
    with pytest.raises(ConfigError, match="1 to 16000 characters"):
        route_of(tmp_path, messages)

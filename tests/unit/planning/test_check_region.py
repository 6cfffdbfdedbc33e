# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the data of calls may be: no server, route or tool elsewhere is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.planning.check import check

EU = '[realtime]\nurl = "wss://eu.api.openai.com/v1/realtime"\napi_key = "k"\nregion = "eu"\n'
OTHER = '[[realtime_server]]\nname = "b"\nurl = "{url}"\napi_key = "k"\n'
GUARD = '[[route.guardrail]]\nname = "g"\nurl = "https://api.openai.com/v1/moderations"\n'


@pytest.mark.parametrize(
    ("config", "route", "words"),
    [
        (EU, "", ""),
        (EU + OTHER.format(url="wss://eu.api.openai.com/v1/realtime"), "", ""),
        (EU + OTHER.format(url="ws://127.0.0.1:1/v1/realtime"), "", ""),
        (EU + OTHER.format(url="wss://x.openai.azure.com/openai/v1") + 'region = "eu"', "", ""),
        (EU.replace("eu.api", "api"), "", "gateway.toml:2: realtime.url: is not in"),
        (EU.replace("eu.api", "us.api"), "", "use eu.api.openai.com"),
        (
            EU + OTHER.format(url="wss://api.openai.com/v1/realtime"),
            "",
            "gateway.toml:7: realtime_server[0].url: is not in",
        ),
        (
            EU + OTHER.format(url="wss://x.openai.azure.com/openai/v1"),
            "",
            "its host does not tell whether it is in",
        ),
        (
            EU + '[[tools.mcp]]\nname = "m"\nurl = "https://api.openai.com/mcp"\n',
            "",
            "tools.mcp[0].url: is not in",
        ),
        (
            EU,
            '[route.realtime]\nurl = "wss://api.openai.com/v1/realtime"\napi_key = "k"\n',
            "r.toml:6: route r, realtime.url: is not in",
        ),
        (
            EU,
            '[route.realtime]\nurl = "wss://speech.example/v1"\napi_key = "k"\nregion = "eu"\n',
            "",
        ),
        (EU, GUARD, "guardrail[0].url: is not in"),
    ],
)
def test_regions_are_not_mixed(tmp_path: Path, config: str, route: str, words: str) -> None:
    (tmp_path / "dialplans").mkdir()
    text = f"[[route]]\nname = 'r'\n[route.session]\ninstructions = 'Talk.'\n{route}"
    (tmp_path / "dialplans" / "r.toml").write_text(text)
    (tmp_path / "gateway.toml").write_text(config)
    status, lines = check(tmp_path / "gateway.toml", {})
    told = "\n".join(lines)
    assert status == (2 if words else 0), told
    assert words in told

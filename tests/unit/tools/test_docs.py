# SPDX-License-Identifier: GPL-2.0-or-later
"""The page about tools and the example beside the dialplans: what they show is good."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway import cli
from gateway.planning.check import check, load_all
from gateway.planning.route_tools import function_plans, tool_executor
from gateway.tools import ToolCall
from tests.support.harness import eventually

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "dialplans" / "tools" / "gateway.toml"
ENVIRON = {"PYTHON": sys.executable}
BASE = """
[realtime]
url = "ws://127.0.0.1:8765"
[dialplan]
folder = "routes"
"""
TRUNK = """
[[trunk]]
name = "carrier"
peers = ["192.0.2.1"]
"""


def shown(language: str) -> list[str]:
    """The blocks of code in the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_what_the_page_shows(tmp_path: Path) -> None:
    (module,) = shown("python")
    (tmp_path / "hotel_tools.py").write_text(module)
    tools, route, hook, mcp, approval, callbacks, promise = shown("toml")
    (tmp_path / "gateway.toml").write_text(BASE + tools + mcp + callbacks + TRUNK)
    (tmp_path / "routes").mkdir()
    here = '[[route]]\nname = "hotel"\n' + route.replace("]  ", ', "find_guest"]  ', 1)
    there = '\n[[route]]\nname = "call-back"\ngreeting.say = "About {callback_reason}."\n'
    text = hook + here + 'mcp = ["crm"]\n' + approval + promise + there
    (tmp_path / "routes" / "r.toml").write_text(text)
    names = ("PMS_TOKEN", "CRM_TOKEN", "OPS_TOKEN")
    status, told = check(tmp_path / "gateway.toml", dict.fromkeys(names, "secret-of-the-page"))
    assert status == 0, told


def test_the_example(tmp_path: Path) -> None:
    status, told = check(EXAMPLE, ENVIRON)
    assert status == 0, told
    assert any("3 in Python, 1 over HTTP, MCP servers: guests" in line for line in told), told
    assert not [line for line in told if line.startswith("  note: ")], told

    async def main() -> list[str]:
        box = tool_executor(*load_all(EXAMPLE, ENVIRON))
        await box.start()
        # On a busy machine the server is up after its deadline.
        await eventually(lambda: "guests_check_out" in box.of("hotel"), "the tools", 90)
        loop = asyncio.get_running_loop()
        results: list[asyncio.Future[str]] = []
        for name, arguments in (
            ("room_price", '{"kind": "double", "nights": 2}'),
            ("guests_find_guest", '{"room": 12}'),
            ("book_room", '{"kind": "double", "arrival": "2020-01-01"}'),
        ):
            results.append(loop.create_future())
            call = ToolCall("c", name, arguments, "call-1", "hotel", variables={"from": "1"})
            box.run(call, results[-1].set_result)
        try:
            assert function_plans(box.of("hotel"))["guests_check_out"].approval
            return await asyncio.gather(*results)
        finally:
            await box.stop()

    assert asyncio.run(main()) == [
        '{"euros":240.0}',
        "Ann Example",
        '{"error": "rooms can be booked from tomorrow on"}',
    ]


def test_route_test_shows_the_tools_of_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", sys.executable)
    told = CliRunner().invoke(cli.main, ["route-test", "-c", str(EXAMPLE), "--to", "500"])
    assert told.exit_code == 0, told.output
    for name in ("room_price", "book_room", "weather", "set_language", "schedule_callback"):
        assert f'"{name}"' in told.output

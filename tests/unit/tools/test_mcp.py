# SPDX-License-Identifier: GPL-2.0-or-later
"""MCP servers that the gateway calls, as processes of their own made with the official package."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.planning.check import check, load_all
from gateway.planning.route_tools import function_plans, tool_executor
from gateway.tools import ToolCall, mcp
from gateway.tools.executor import ToolExecutor
from gateway.tools.mcp import McpServer, McpSettings
from tests import support
from tests.support.harness import closed_port, eventually

DOUBLE = Path(support.__file__).with_name("mcp_double.py")
CONFIG = """
[realtime]
url = "ws://127.0.0.1:8765"
[dialplan]
folder = "routes"
[tools]
max_result_chars = 300
[[tools.mcp]]
name = "crm"
"""
STDIO = f"""command = [{json.dumps(sys.executable)}, {json.dumps(str(DOUBLE))}]
connect_timeout = 60.0
"""
NUMBER = '{"number": "1"}'
ROUTE = '[[route]]\nname = "r"\nmcp = ["crm"]\n'


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "FIRST_PAUSE", 0.05)


def config_of(folder: Path, server: str) -> Path:
    """A configuration with this MCP server."""
    (folder / "routes").mkdir(exist_ok=True)
    (folder / "routes" / "r.toml").write_text(ROUTE)
    (folder / "gateway.toml").write_text(CONFIG + server)
    return folder / "gateway.toml"


def run(
    folder: Path, server: str, work: Callable[[ToolExecutor], Awaitable[Any]], **env: str
) -> Any:
    """Do something with the tool executor of this configuration."""

    async def main() -> Any:
        box = tool_executor(*load_all(config_of(folder, server), env))
        await box.start()
        try:
            return await work(box)
        finally:
            await box.stop()

    return asyncio.run(main())


async def use(box: ToolExecutor, name: str, arguments: str = "{}") -> str:
    """What the model gets."""
    result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    box.run(ToolCall("c", name, arguments, "call-1", "r"), result.set_result)
    return await result


@contextmanager
def http_server(token: str = "") -> Iterator[str]:
    """A server over HTTP; yields its URL."""
    port = closed_port()
    env = {"MCP_TOKEN": token, "PYTHONPATH": "", "PATH": "/usr/bin"}
    process = subprocess.Popen([sys.executable, str(DOUBLE), str(port)], env=env)
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(60)


def test_over_stdio(tmp_path: Path) -> None:
    more = 'env = { CRM_KEY = "${env:KEY}" }\nallowed_tools = ["find_customer", "numbers", '
    more += '"fails", "environment"]\n'

    async def work(box: ToolExecutor) -> None:
        told = {one["name"]: one for one in box.definitions("r")}
        assert set(told) == {
            "crm_find_customer",
            "crm_numbers",
            "crm_fails",
            "crm_environment",
        }
        assert told["crm_find_customer"]["description"] == "Find a customer by telephone number."
        assert told["crm_find_customer"]["parameters"]["required"] == ["number"]
        assert await use(box, "crm_find_customer", '{"number": "+49"}') == "Ann Example, +49, False"
        assert "'number' is a required property" in await use(box, "crm_find_customer")
        assert "Error executing tool fails" in await use(box, "crm_fails")
        assert await use(box, "crm_environment", '{"name": "CRM_KEY"}') == "s3cret"
        assert await use(box, "crm_environment", '{"name": "OPENAI_API_KEY"}') == "not set"
        assert "[cut: only the first 300" in await use(box, "crm_numbers", '{"count": 500}')
        assert box.states() == {"crm": {"state": "up", "tools": 4}}

    run(tmp_path, STDIO + more, work, KEY="s3cret")


def test_a_tool_that_takes_too_long(tmp_path: Path) -> None:
    async def work(box: ToolExecutor) -> None:
        assert "no result within 0.3 s" in await use(box, "crm_slow")

    run(tmp_path, STDIO + "timeout = 0.3\n", work)


def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    async def work(box: ToolExecutor) -> None:
        assert "is lost" in await use(box, "crm_die")

        async def found() -> bool:
            said = await use(box, "crm_find_customer", NUMBER)
            assert "Ann" in said or "cannot be reached" in said or "is lost" in said
            return "Ann" in said

        await eventually(found, "the server that is started again", 90)

    run(tmp_path, STDIO, work)


def test_over_http_with_a_token(tmp_path: Path) -> None:
    with http_server("s3cret") as url:
        more = f'url = "{url}"\nauthorization = "${{env:TOKEN}}"\n'

        async def work(box: ToolExecutor) -> None:
            await eventually(lambda: bool(box.of("r")), "the tools", 90)
            assert "Ann" in await use(box, "crm_find_customer", '{"number": "1"}')

        run(tmp_path, more, work, TOKEN="s3cret")
        config, _ = load_all(config_of(tmp_path, more), {"TOKEN": "s3cret"})
        assert "s3cret" in config.secrets()


def test_over_http_with_the_wrong_token_and_then_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with http_server("other") as url:
        more = f'url = "{url}"\nauthorization = "s3cret"\nconnect_timeout = 2.0\n'

        async def work(box: ToolExecutor) -> None:
            assert box.of("r") == {}
            assert "not available" in await use(box, "crm_find_customer")

        run(tmp_path, more, work)
    assert "s3cret" not in "".join(capsys.readouterr())


def test_a_server_over_http_that_goes_and_comes_back(tmp_path: Path) -> None:
    with http_server() as url:
        more = f'url = "{url}"\n'
        config = load_all(config_of(tmp_path, more), {})
        port = url.split(":")[2].split("/")[0]

        async def until(box: ToolExecutor, words: str) -> None:
            async def said() -> bool:
                return words in await use(box, "crm_find_customer", NUMBER)

            await eventually(said, words, 90)

        async def main() -> None:
            box = tool_executor(*config)
            await box.start()
            try:
                await until(box, "Ann")
                await use(box, "crm_die")
                await until(box, "cannot be reached")
                again = subprocess.Popen([sys.executable, str(DOUBLE), port])  # noqa: ASYNC220
                try:
                    await until(box, "Ann")
                finally:
                    again.terminate()
                    await asyncio.to_thread(again.wait, 60)
            finally:
                await box.stop()

        asyncio.run(main())


def test_a_server_that_is_not_there_delays_the_start_no_longer_than_said(tmp_path: Path) -> None:
    async def work(box: ToolExecutor) -> None:
        assert box.definitions("r") == []
        assert box.states()["crm"]["tools"] == 0

    run(tmp_path, 'command = ["/no/such/program"]\nconnect_timeout = 0.3\n', work)


def test_a_server_that_fails_while_it_is_stopped_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its transport raises what failed, in place of the cancellation."""
    began: list[None] = []

    @contextlib.asynccontextmanager
    async def connected(_server: McpServer) -> AsyncIterator[None]:
        began.append(None)
        try:
            yield
        finally:
            raise BaseExceptionGroup("of a task group", [OSError()])

    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(McpServer, "_connected", connected)
    monkeypatch.setattr(McpServer, "_list", nothing)
    monkeypatch.setattr("gateway.tools.mcp.FIRST_PAUSE", 0.01)

    async def main() -> bool:
        server = McpServer(McpSettings("s"))
        await server.start()
        await server.stop()
        assert server._owner is not None
        return server._owner.done()

    assert asyncio.run(main())
    assert len(began) == 1


def test_servers_that_the_realtime_server_calls(tmp_path: Path) -> None:
    more = """
client = "provider"
url = "https://crm.example/mcp"
authorization = "s3cret"
headers = { X-Tenant = "t" }
description = "Customers."
allowed_tools = ["find"]
require_approval = { never = ["find"] }
"""

    async def work(box: ToolExecutor) -> None:
        assert box.definitions("r") == [
            {
                "type": "mcp",
                "server_label": "crm",
                "server_url": "https://crm.example/mcp",
                "authorization": "s3cret",
                "headers": {"X-Tenant": "t"},
                "server_description": "Customers.",
                "allowed_tools": ["find"],
                "require_approval": {"never": {"tool_names": ["find"]}},
            }
        ]

    run(tmp_path, more, work)


def test_approval_of_tools_that_the_gateway_calls(tmp_path: Path) -> None:
    async def work(box: ToolExecutor) -> None:
        needed = {name: plan.approval for name, plan in function_plans(box.of("r")).items()}
        assert needed["crm_die"] is True
        assert needed["crm_find_customer"] is False

    run(tmp_path, STDIO + 'require_approval = { always = ["die"] }\n', work)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("", "must have one of url, command and connector_id"),
        (STDIO + 'url = "http://x"', "must have one of url, command and connector_id"),
        (STDIO + 'client = "provider"', "cannot run a command of ours"),
        ('connector_id = "c"', 'client = "provider"'),
        ('url = "http://x"\nenv = { A = "b" }', "has no effect without command"),
        ('url = "http://x"\n[[tools.mcp]]\nname = "crm"\nurl = "http://y"', "is used twice"),
    ],
)
def test_mistakes(tmp_path: Path, server: str, words: str) -> None:
    status, told = check(config_of(tmp_path, server), {})
    assert status == 2
    assert words in "\n".join(told), told

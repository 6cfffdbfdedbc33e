# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers, access, limits and tools in ``gateway.toml``: what each may not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from gateway.config.sections import (
    AccessSettings,
    DialectName,
    McpServerSettings,
    NeedsApproval,
    dialect_problem,
    region_problem,
)
from tests.unit.config.test_config import LOCAL, load, problems, the_problem


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ('url = "wss://h/p?model=x"', "url", "use the key model"),
        ('url = "wss://h/p?api-key=x"', "url", "must not carry a key"),
        ('url = "wss://user:pw@h/p"', "url", "user or password"),
        ('url = "wss://h:port/p"', "url", "is not a URL"),
        ('url = "wss://h/p#f"', "url", "fragment"),
        ('url = "wss:///p"', "url", "name a host"),
        ('api_key_header = "x-key"', "api_key_header", "'authorization' or 'api-key'"),
        ('model = ""', "model", "must not be empty"),
        ('headers.Authorization = "x"', "headers.Authorization", "set by the gateway"),
        ('headers.X-Y = "a\\nb"', "headers.X-Y", "not allowed in a header"),
        ("headers.X-Y = 1", "headers.X-Y", "string"),
        ('api_key = "sk 1"', "api_key", "not allowed in a key"),
        ("api_key = '\"sk-1\"'", "api_key", "begins with a quotation mark"),
        ('api_key = "{env:KEY}"', "api_key", "write ${env:KEY}"),
        ('api_key = "env:KEY"', "api_key", "write ${env:KEY}"),
        ('ca = "no/such/ca.pem"', "ca", "no effect without TLS"),
        ('url = "wss://h/p"\nca = "no/such/ca.pem"', "ca", "cannot be read"),
        ('url = "wss://h/p"\nca = "/dev/null"', "ca", "no PEM certificate"),
    ],
)
def test_bad_realtime(tmp_path: Path, line: str, key: str, message: str) -> None:
    base = "" if line.startswith("url") else 'url = "ws://127.0.0.1/"\n'
    api_key = "" if line.startswith("api_key =") else 'api_key = "sk-1"\n'
    text = f"[realtime]\n{base}{api_key}{line}\n"
    number, at, said = the_problem(tmp_path, text)
    assert (number, at) == (text.count("\n"), f"realtime.{key}")
    assert message in said


def test_a_password_whose_variable_is_empty(tmp_path: Path) -> None:
    trunk = '[[trunk]]\nname = "a"\nregistrar = "h"\nusername = "u"\npassword = "${env:PW}"\n'
    (found,) = problems(tmp_path, LOCAL + trunk, PW="")
    assert found == (7, "trunk[0].password", "${env:PW} is empty")
    load(tmp_path, LOCAL + trunk.replace("PW", "PW:-"), PW="")


def test_url_is_required(tmp_path: Path) -> None:
    assert the_problem(tmp_path, "") == (1, "realtime", "missing, and it has no default")
    assert the_problem(tmp_path, "\n[realtime]\nmodel = 'm'\n") == (
        2,
        "realtime.url",
        "missing, and it has no default",
    )


def test_key_is_required_for_another_machine(tmp_path: Path) -> None:
    remote = '[realtime]\nurl = "wss://example.com/v1/realtime"\n'
    line, key, message = the_problem(tmp_path, remote)
    assert (line, key) == (1, "realtime.api_key")
    assert "not on this machine" in message
    assert load(tmp_path, remote + 'api_key = ""\n').realtime.api_key is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_key_may_be_unset_for_this_machine(tmp_path: Path, host: str) -> None:
    text = f'[realtime]\nurl = "ws://{host}:1/"\napi_key = "${{env:KEY}}"\n'
    assert load(tmp_path, text).realtime.api_key is None
    key = load(tmp_path, text, KEY="sk-1").realtime.api_key
    assert key is not None
    assert key.get_secret_value() == "sk-1"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('[access]\nrealm = "a\\"b"', "access.realm", "without quotes"),
        ('[access]\nauth_algorithms = ["MD5", "MD5"]', "access.auth_algorithms", "twice"),
        ("[access]\nauth_algorithms = []", "access.auth_algorithms", "at least 1 item"),
        ('[outbound]\nallowed_prefixes = ["+49 30"]', "outbound.allowed_prefixes", "number prefix"),
        ('[outbound]\ncountry = "GER"', "outbound.country", "ISO 3166"),
        (
            '[outbound]\nallowed_classes = ["premum"]',
            "outbound.allowed_classes",
            'did you mean "premium_rate"?',
        ),
        ("[outbound]\nenabled = true", "outbound.allowed_prefixes", "name the allowed dest"),
        ('[cost]\ntimezone = "Europe/Berlyn"', "cost.timezone", "is not a known time zone"),
        ("[cost.budget]\nwarning_threshold = 0.0", "cost.budget.warning_threshold", "greater than"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, key: str, message: str) -> None:
    _, name, said = the_problem(tmp_path, f"{LOCAL}{text}\n")
    assert name == key
    assert message in said


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ('name = "a b"\nurl = "https://h/"', "letters, digits, dashes"),
        ('name = "a"', "one of url, command and connector_id"),
        ('name = "a"\nurl = "https://h/"\ncommand = ["x"]', "one of url, command and"),
        ('name = "a"\ncommand = ["x"]\nclient = "provider"', "cannot run a command of ours"),
        ('name = "a"\nconnector_id = "c"', 'client = "provider"'),
        ('name = "a"\nurl = "https://h/"\nenv.X = "1"', "has no effect without command"),
        (
            'name = "a"\nurl = "https://h/"\n[[tools.mcp]]\nname = "a"\nurl = "https://g/"',
            "is used twice",
        ),
    ],
)
def test_mcp_servers_that_cannot_be(tmp_path: Path, server: str, message: str) -> None:
    _, name, said = the_problem(tmp_path, f"{LOCAL}[[tools.mcp]]\n{server}\n")
    assert name.startswith("tools.mcp[")
    assert message in said


@pytest.mark.parametrize(
    ("concurrent", "unacknowledged", "limits"),
    [
        (None, None, (6, 3)),  # half of the calls, and a quarter, rounded up
        (0, None, (0, 0)),
        (4, None, (4, 3)),
        (None, 5, (6, 5)),
        (0, 5, (0, 5)),
        (None, 0, (6, 0)),
    ],
)
def test_how_many_calls_unknown_sources_may_have(
    concurrent: int | None, unacknowledged: int | None, limits: tuple[int, int]
) -> None:
    access = AccessSettings(
        max_concurrent_calls=concurrent, max_unacknowledged_calls=unacknowledged
    )
    assert (access.concurrent_of(11), access.unacknowledged_of(11)) == limits


@pytest.mark.parametrize(
    ("needs", "asked_about", "in_session"),
    [
        ("always", {"read", "write"}, "always"),
        ("never", set(), "never"),
        (NeedsApproval(always=("write",)), {"write"}, {"always": {"tool_names": ["write"]}}),
        (NeedsApproval(never=("read",)), {"write"}, {"never": {"tool_names": ["read"]}}),
        (NeedsApproval(), set(), {}),
    ],
)
def test_which_tools_of_an_mcp_server_need_approval(
    needs: Literal["always", "never"] | NeedsApproval, asked_about: set[str], in_session: Any
) -> None:
    server = McpServerSettings(name="crm", url="https://h/", require_approval=needs)
    assert {one for one in ("read", "write") if server.needs_approval(one)} == asked_about
    assert server.session_tool() == {
        "type": "mcp",
        "server_label": "crm",
        "server_url": "https://h/",
        "require_approval": in_session,
    }


@pytest.mark.parametrize(
    ("url", "dialect", "fits"),
    [
        ("wss://h/v1/realtime", "ga", True),
        ("wss://h/v1/realtime", "beta", True),
        ("wss://h/v1/realtime/", "azure-preview", False),
        ("wss://h/openai/v1", "azure-preview", False),
        ("wss://h/openai/realtime?api-version=2025-04-01-preview", "ga", False),
        ("wss://h/openai/realtime/", "beta", False),
        ("wss://h/openai/realtime", "azure-preview", True),
    ],
)
def test_the_dialect_of_an_address(url: str, dialect: DialectName, fits: bool) -> None:
    assert (dialect_problem(url, dialect) is None) is fits


@pytest.mark.parametrize(
    ("url", "declared", "good"),
    [
        ("wss://eu.api.openai.com/v1", "", True),
        ("wss://EU.api.openai.com/v1", "", True),
        ("wss://api.openai.com/v1", "eu", False),  # its host tells, whatever is said of it
        ("wss://us.api.openai.com/v1", "eu", False),
        ("wss://eu.api.openai.com.example/v1", "", False),
        ("wss://voice.example/v1", "", False),
        ("wss://voice.example/v1", "eu", True),
        ("wss://voice.example/v1", "us", False),
        ("ws://127.0.0.1:1/v1", "", True),
        ("ws://localhost/v1", "us", True),
    ],
)
def test_whether_a_server_is_in_the_region(url: str, declared: str, good: bool) -> None:
    assert (region_problem(url, declared, "eu") is None) is good
    assert region_problem(url, declared, "") is None

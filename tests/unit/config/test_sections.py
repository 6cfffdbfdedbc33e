# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers, access, limits and tools in ``gateway.toml``: what each may not be."""

from __future__ import annotations

from pathlib import Path

import pytest

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

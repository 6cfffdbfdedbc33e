# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command of ``gateway``: its help, old names, and what is imported for it."""

from __future__ import annotations

import socket
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from gateway.audio import Codec
from gateway.cli import main

COMMANDS = main.list_commands(click.Context(main))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"  gateway {name}" in result.output


def test_help_is_grouped() -> None:
    result = CliRunner().invoke(main, ["--help"])
    for title in ("Serve:", "Configure:", "Live calls:", "Develop:"):
        assert title in result.output
    for name in COMMANDS:
        assert f"\n  {name} " in result.output


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("call", "test-call"),
        ("tell", "send-message"),
        ("show", "send-image"),
        ("respond", "create-response"),
        ("ask", "query"),
    ],
)
def test_an_old_name_is_answered_with_the_new(old: str, new: str) -> None:
    result = CliRunner().invoke(main, [old, "x"])
    assert result.exit_code == 2
    assert f"'gateway {old}' is now 'gateway {new}'" in result.output


@pytest.mark.parametrize("command", ["check", "run", "doctor", "status", "reload"])
def test_a_configuration_without_its_option(command: str) -> None:
    result = CliRunner().invoke(main, [command, "gateway.toml"])
    assert result.exit_code == 2
    assert "(gateway.toml); write -c gateway.toml" in result.output


def test_an_argument_that_is_no_configuration() -> None:
    result = CliRunner().invoke(main, ["emulator", "hotel.toml"])
    assert result.exit_code == 2
    assert "-c" not in result.output


def test_a_mistyped_command() -> None:
    result = CliRunner().invoke(main, ["chekc"])
    assert result.exit_code == 2
    assert "there is no command 'chekc'; did you mean 'check'?" in result.output


def imported(code: str) -> set[str]:
    """Modules that are loaded after ``code`` ran in a fresh interpreter."""
    command = f"{code}\nimport sys\nprint('modules:', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("modules:")[2].split())


HELP = """
from click.testing import CliRunner
from gateway.audio import Codec
from gateway.cli import main
assert CliRunner().invoke(main, [{name!r}, "--help"]).exit_code == 0
"""


@pytest.mark.parametrize("code", ["import gateway.app.service", HELP.format(name="run")])
def test_the_service_needs_no_development_tools(code: str) -> None:
    """They are an extra of the package: emulator, pictures, speech."""
    names = imported(code)
    assert not [name for name in names if name.startswith("gateway.devtools")]
    assert not names & {"matplotlib", "espeakng_loader", "webrtcvad"}


@pytest.mark.parametrize(
    "name", ["status", "reload", "webhooks", "calls", "say", "hangup", "transcript"]
)
def test_live_commands_import_little(name: str) -> None:
    """They answer at once: neither configuration models nor pjsua2 are loaded."""
    names = imported(HELP.format(name=name))
    assert not names & {"pydantic", "pjsua2", "structlog", "rich", "numpy", "websockets"}


@pytest.mark.parametrize(
    "codec", [name for one in Codec for name in (one.value, one.value.lower())]
)
def test_a_test_call_takes_each_codec_in_any_case(codec: str) -> None:
    call = ["test-call", "sip:1@127.0.0.1:9", "--codec", codec, "--local", "x"]
    run = CliRunner().invoke(main, call)
    assert (run.exit_code, type(run.exception)) == (2, SystemExit), run.output
    assert "--local x: write HOST:PORT" in run.output


def test_a_token_has_a_name_that_the_configuration_takes() -> None:
    result = CliRunner().invoke(main, ["token", "create", "--name", "my token"])
    assert result.exit_code == 2
    assert "must be 1 to 64 letters" in result.output


@pytest.mark.parametrize("before", [[], ["--listen", "127.0.0.1:0", "--text-model"]])
def test_the_emulator_says_which_address_is_taken(before: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(main, ["emulator", *(before or ["--listen"]), where])
    assert result.exit_code == 2
    assert result.output.endswith(f"{where}: Address already in use\n")


def test_the_emulator_says_that_its_address_has_a_name_without_a_host() -> None:
    result = CliRunner().invoke(main, ["emulator", "--listen", "nosuch.invalid:8090"])
    assert result.exit_code == 2
    assert result.output.startswith("nosuch.invalid:8090: ")
    assert "Unknown error" not in result.output


def test_a_call_has_a_name() -> None:
    result = CliRunner().invoke(main, ["hangup", ""])
    assert result.exit_code == 2
    assert "CALL is empty" in result.output

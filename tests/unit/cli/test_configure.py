# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway init`` writes files that the check finds good, and overwrites none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.planning.check import load_all


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["init", "--folder", str(folder), *options])


def test_a_softphone_and_the_emulator(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    config, dialplan = load_all(tmp_path / "gateway.toml", {})
    assert config.sip.listen[0].host == "127.0.0.1"
    assert dialplan.routes[0].to is not None
    assert dialplan.routes[0].to.pattern == "^100$"
    assert "note:" not in result.output


def test_a_pbx_and_the_live_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    options = "--kind pbx --host 192.0.2.10 --number 100 --number +4930 --server openai"
    result = run(tmp_path, *options.split(), "--key-env", "MY_KEY")
    assert result.exit_code == 0, result.output
    assert "note:" not in result.output
    config, dialplan = load_all(tmp_path / "gateway.toml")
    assert [str(peer) for peer in config.trunk[0].peers] == ["192.0.2.10"]
    assert config.sip.listen[0].host == "0.0.0.0"
    assert dialplan.routes[0].to is not None
    assert dialplan.routes[0].to.fullmatch("+4930")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_pbx_on_this_machine_keeps_port_5060(tmp_path: Path, address: str) -> None:
    result = run(tmp_path, "--kind", "pbx", "--host", address, "--number", "100")
    assert result.exit_code == 0, result.output
    config, _ = load_all(tmp_path / "gateway.toml", {})
    (listen,) = config.sip.listen
    assert (listen.host, listen.port) == (address, 5080)
    assert f"contact = sip:{str(listen).removeprefix('udp:')}, match = {address}" in result.output


@pytest.mark.parametrize("host", ["192.0.2.10:5062", "pbx.example:5060", "[2001:db8::1]:5060"])
def test_a_pbx_has_no_port(tmp_path: Path, host: str) -> None:
    result = run(tmp_path, "--kind", "pbx", "--host", host)
    assert result.exit_code == 2
    assert "without a port" in result.output


@pytest.mark.parametrize("host", ["sip:192.0.2.10", "[2001:db8::1]"])
def test_the_address_of_a_pbx_as_a_uri_has_it(tmp_path: Path, host: str) -> None:
    assert run(tmp_path, "--kind", "pbx", "--host", host).exit_code == 0
    config, _ = load_all(tmp_path / "gateway.toml", {})
    assert str(config.trunk[0].peers[0]) in host


def test_a_trunk_whose_password_is_not_set(tmp_path: Path) -> None:
    options = "--kind trunk --host sip.example.net --username me --password-env NO_SUCH_PASSWORD"
    result = run(tmp_path, *options.split())
    assert result.exit_code == 2
    assert "NO_SUCH_PASSWORD" in result.output
    assert (tmp_path / "gateway.toml").exists()


def test_a_number_as_people_write_it(tmp_path: Path) -> None:
    assert run(tmp_path, "--number", "+49 (30) 12-34").exit_code == 0
    _, dialplan = load_all(tmp_path / "gateway.toml", {})
    assert dialplan.routes[0].to is not None
    assert dialplan.routes[0].to.fullmatch("+49301234")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--number", " ", "is no number"),
        ("--number", "sip:100@pbx", "is no number"),
        ("--server", "opanai", "is none of emulator, openai, and no URL"),
        ("--key-env", "sk-proj-1", "is no name of an environment variable"),
    ],
)
def test_what_cannot_be_is_asked_again(tmp_path: Path, option: str, value: str, says: str) -> None:
    result = run(tmp_path, option, value)
    assert result.exit_code == 2
    assert says in result.output
    assert not (tmp_path / "gateway.toml").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text("mine")
    assert run(tmp_path).exit_code == 1
    assert (tmp_path / "gateway.toml").read_text() == "mine"
    assert not (tmp_path / "dialplans").exists()


def test_without_a_terminal_a_host_has_to_be_given(tmp_path: Path) -> None:
    result = run(tmp_path, "--kind", "pbx")
    assert result.exit_code == 2
    assert "Address of the PBX?" in result.output

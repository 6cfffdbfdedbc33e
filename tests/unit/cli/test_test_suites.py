# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway test`` where there is nobody to call, or a mistake: exit status 2, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.test_suites import _gateway_of
from tests.interop.lab.ports import free_port

CALL = '[[call]]\nname = "one"\n[[call.step]]\ndo = "wait_answer"\n'


@pytest.mark.parametrize(
    ("suite", "config", "options", "told"),
    [
        ('[[call]]\nname = "one"\n', None, [], "s.toml:1: call[0]: needs steps"),
        (CALL, None, [], "gateway.toml names no address to call: give --target"),
        (CALL, "[sip]\nlisten = []\n", [], "names no address to call: give --target"),
        (CALL, None, ["--only", "two"], "--only: no call has such a name"),
        (CALL, "[sip\n", ["--target", "sip:127.0.0.1"], "gateway.toml:1: TOML syntax"),
        (CALL, None, ["--target", "sip:"], "is no SIP address; write sip:127.0.0.1:5060"),
        (CALL, None, ["--local", "x"], "names no address to call"),
        (CALL, '[sip]\nlisten = ["udp:0.0.0.0:{port}"]\n', [], "start it: gateway run -c"),
    ],
)
def test_nobody_is_called(
    suite: str, config: str | None, options: list[str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(suite)
    if config is not None:
        port = str(free_port("127.0.0.1"))
        (tmp_path / "gateway.toml").write_text(config.replace("{port}", port))
    told_config = ["-c", str(tmp_path / "gateway.toml")]
    result = CliRunner().invoke(main, ["test", str(tmp_path / "s.toml"), *told_config, *options])
    assert result.exit_code == 2, result.output
    assert told in result.output, result.output


def test_a_gateway_that_names_no_address_is_at_the_default_one(tmp_path: Path) -> None:
    """And the records of one with a database only are waited for."""
    config = tmp_path / "gateway.toml"
    for text, keeps in (("", False), ('[records]\ndatabase = "sqlite:///calls"\n', True)):
        config.write_text(f'[control]\nsocket = "s"\n{text}')
        target, witness = _gateway_of(config)
        assert target == "sip:127.0.0.1:5060"
        assert witness._keeps_records is keeps

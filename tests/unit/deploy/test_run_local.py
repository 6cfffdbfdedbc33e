# SPDX-License-Identifier: GPL-2.0-or-later
"""``make run``: says when to call, and reads what the gateway reports for as long as it runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.planning.check import load_all

FILE = Path(__file__).parents[3] / "deploy" / "setup" / "run_local.py"

GATEWAY = """
import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.settimeout(10)
for said in [b"READY=1", *[b"WATCHDOG=1"] * 1000]:
    s.sendto(said, os.environ["NOTIFY_SOCKET"])
"""
"""More reports than a socket holds; each that nobody reads would end this with a traceback."""


@pytest.fixture
def run_local() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_local", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("listen", "to", "uri"),
    [
        ('"tcp:127.0.0.1:5060"', "^100$", "sip:100@127.0.0.1:5060;transport=tcp from"),
        ('"tcp:127.0.0.1:1", "udp:0.0.0.0:5062"', r"^\+4930$", "sip:+4930@127.0.0.1:5062 from"),
        (
            '"udp:[::]:5060"',
            "^(200|300)$",
            "sip:200@[::1]:5060 from a softphone. Other numbers: 300.",
        ),
    ],
)
def test_an_address_that_can_be_called(
    run_local: ModuleType, tmp_path: Path, listen: str, to: str, uri: str
) -> None:
    (tmp_path / "dialplans").mkdir()
    (tmp_path / "dialplans" / "a.toml").write_text(f"[[route]]\nname = 'a'\nto = '{to}'\n")
    file = tmp_path / "gateway.toml"
    server = 'url = "ws://127.0.0.1:8765/v1/realtime"'
    file.write_text(f"[sip]\nlisten = [{listen}]\n[realtime]\n{server}\n")
    assert f"Call {uri}" in run_local._where_to_call(*load_all(file, {}))


def test_reports_are_read_to_the_end(
    run_local: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_command: str, **environ: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", GATEWAY], env=environ)

    monkeypatch.setattr(run_local, "_start", start)
    monkeypatch.setattr(run_local.signal, "signal", lambda *_: None)
    config: Any
    for name in ("GATEWAY_CONSOLE", "GATEWAY_BROWSER_CALLS", "GATEWAY_KEY_HASH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    key = run_local._open_console()
    config, dialplan = load_all(FILE.parents[2] / "gateway.toml")
    assert run_local._run_gateway(Path("gateway.toml"), config, dialplan, key) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("Call sip:100@127.0.0.1:5060 from a softphone.")
    console = re.fullmatch(r"Or call from the browser: http://127.0.0.1:\d+/console/(.*)", second)
    assert console is not None
    assert console[1] == f"#/key/{key}/call/100"

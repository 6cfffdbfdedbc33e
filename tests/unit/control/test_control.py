# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket, over a real Unix socket, and what people see of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli.live_calls import call_lines, duration, line_of, status, status_lines
from gateway.cli.main import main
from gateway.control import server as server_module
from gateway.control.server import MAX_LINE_BYTES, ControlError, ControlServer

STATUS: dict[str, Any] = {
    "version": "1.0",
    "pjsua2": {"distribution": "pjsua2 2.17", "tls": "OpenSSL 3"},
    "uptime_seconds": 93784,
    "draining": False,
    "listen": ["udp:127.0.0.1:5060"],
    "max_calls": 100,
    "calls": [
        {
            "route": "reception",
            "age_seconds": 61.2,
            "from": "sip:1@a",
            "to": "sip:2@b",
            "trunk": "carrier",
            "codec": "PCMA",
            "security": "srtp sdes AES_CM_128_HMAC_SHA1_80",
        }
    ],
    "trunks": [
        {
            "name": "carrier",
            "state": "failed",
            "since_seconds": 5,
            "expires_seconds": None,
            "last_error": "401 Unauthorized",
            "next_try_seconds": 58.2,
            "options": "",
            "calls": 1,
        }
    ],
    "refused": {'access.unknown_sources = "auto"': 17},
    "dropped": {"records": 0, "media faults": 2},
}


def commands() -> dict[str, Any]:
    def broken(_request: object = None) -> dict[str, Any]:
        raise RuntimeError("secret detail")

    def status(_request: object = None) -> dict[str, Any]:
        return STATUS

    return {"status": status, "broken": broken}


async def ask(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    answers = []
    for line in lines:
        writer.write(line + b"\n")
        answers.append(json.loads(await reader.readline()))
    writer.close()
    return answers


def test_answers_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def run() -> None:
        server = ControlServer(path, commands())
        await server.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        good, unknown, nonsense, wrong, failed, again = await ask(
            path,
            b'{"command": "status"}',
            b'{"command": "reboot"}',
            b"GET / HTTP/1.1",
            b"[1]",
            b'{"command": "broken"}',
            b'{"command": "status"}',
        )
        assert good == {"ok": True, **STATUS} == again
        assert unknown["error"] == "unknown command; there are: broken, status"
        assert not nonsense["ok"]
        assert not wrong["ok"]
        assert "secret" not in failed["error"]
        with pytest.raises(ControlError, match="another gateway"):
            await ControlServer(path, commands()).start()
        await server.stop()
        assert not path.exists()

    asyncio.run(run())


def test_a_line_without_an_end_is_cut_off(tmp_path: Path) -> None:
    async def run() -> None:
        server = ControlServer(tmp_path / "socket", commands())
        await server.start()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
        writer.write(b"x" * (2 * MAX_LINE_BYTES + 1))
        with contextlib.suppress(ConnectionResetError):  # there was more than it has read
            assert await reader.read() == b""
        writer.close()
        await server.stop()

    asyncio.run(run())


def test_what_a_dead_gateway_left_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def run(at: Path) -> None:
        server = ControlServer(at, commands())
        await server.start()
        await server.stop()

    asyncio.run(run(path))
    path.write_text("a file")
    with pytest.raises(ControlError, match="no socket"):
        asyncio.run(run(path))
    with pytest.raises(ControlError, match="longer than 107 bytes"):
        asyncio.run(run(tmp_path / ("x" * 120)))


async def test_a_socket_that_was_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LOOK_SECONDS", 0.01)
    path = tmp_path / "socket"
    server = ControlServer(path, commands())
    await server.start()
    path.unlink()
    async with asyncio.timeout(5):
        while not path.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await ask(path, b'{"command": "status"}'))[0]["ok"]
    await server.stop()
    assert not path.exists()


def test_the_caller_of_a_call_that_we_place() -> None:
    placed = {"call_id": "out-1", "route": "r", "age_seconds": 3, "from": "", "to": "sip:2@b"}
    placed |= {"state": "talking", "codec": "PCMU", "cost": {"priced": 0.5, "currency": "USD"}}
    line = "out-1  talking       3 s  gateway -> 2, route r, PCMU, 0.5000 USD"
    assert list(call_lines([placed])) == [line]
    placed |= {"state": "ringing", "from": "sip:+49301@x;user=phone", "codec": "", "cost": {}}
    line = "out-1  ringing       3 s  +49301 -> 2, route r, no media yet"
    assert list(call_lines([placed])) == [line]


def test_status_for_people() -> None:
    text = "\n".join(status_lines(STATUS))
    for part in (
        "up for 1 d 2 h",
        "1 of 100",
        "1 min 1 s  sip:1@a to sip:2@b by carrier, route reception, PCMA srtp sdes",
        "carrier: failed for 5 s, last error 401 Unauthorized, next try in 58 s, 1 calls",
        '17  access.unknown_sources = "auto"',
        "2 media faults",
    ):
        assert part in text
    assert "records" not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (3600, "1 h"), (3661, "1 h 1 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_status_of_nobody(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[realtime]\napi_key = "${env:NOT_SET}"\n')
    result = CliRunner().invoke(status, ["-c", str(config)])
    assert result.exit_code == 1
    assert "control.socket is not set" in result.output
    config.write_text('[control]\nsocket = "x"\n')
    result = CliRunner().invoke(status, ["-c", str(config)])
    assert result.exit_code == 1
    assert f"no gateway answers on {tmp_path / 'x'}" in result.output


def test_lines_of_a_transcript() -> None:
    entry = {"at_ms": 1500.0, "who": "agent", "text": "One two.", "heard": "One"}
    assert line_of(entry) == "     1.5  agent   One two.  [heard: One]"
    assert line_of({"at_ms": 0, "who": "caller", "text": ""}).endswith("caller  (no words)")


@pytest.mark.parametrize("name", ["say", "send-message", "create-response", "query", "transcript"])
def test_commands_for_a_call_say_what_is_wrong(tmp_path: Path, name: str) -> None:
    words = [] if name == "transcript" else ["words"]
    asked = [name, "call-1", *words, "--socket", str(tmp_path / "none")]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1
    assert "no gateway answers on" in result.output

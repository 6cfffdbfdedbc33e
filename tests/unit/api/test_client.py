# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands ask of the gateway's socket, where that is, and what is no answer."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.api.client import NoAnswerError, RefusedError, ask_within, socket_of, sockets_at


async def asked(path: Path, command: str, **fields: Any) -> dict[str, Any]:
    return await asyncio.to_thread(partial(ask_within, 30.0, path, command, **fields))


async def test_what_is_no_gateway_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail\r\n")
        writer.close()

    other = await asyncio.start_unix_server(answer, path)
    with pytest.raises(NoAnswerError, match="is no gateway"):
        await asked(path, "status")
    other.close()
    with pytest.raises(NoAnswerError, match="no gateway answers"):
        await asked(path, "status")


class Gateway:
    """A socket that gives one answer."""

    def __init__(self, body: bytes, status: str = "200 OK") -> None:
        self.told = b"HTTP/1.1 %s\r\nA: b\r\n\r\n%s" % (status.encode(), body)
        self.got = b""

    async def ask(self, path: Path, command: str, **fields: Any) -> dict[str, Any]:
        server = await asyncio.start_unix_server(self._answer, path)
        try:
            return await asked(path, command, **fields)
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(one for one in head.split(b"\r\n") if one.startswith(b"Content-Length: "))
        self.got = head + await reader.readexactly(int(length[16:]))
        writer.write(self.told)
        writer.close()


@pytest.mark.parametrize(
    ("command", "fields", "line", "body"),
    [
        ("calls", {}, "GET /api/v1/calls ", b""),
        ("record", {"call": "a/b?c#d"}, "GET /api/v1/calls/a%252Fb%3Fc%23d ", b""),
        ("deliveries", {"dead": "true", "limit": 5},
         "GET /api/v1/webhooks/deliveries?dead=true&limit=5 ", b""),
        ("hangup", {"call": "c1"}, "POST /api/v1/calls/c1/hangup ", b"{}"),
        ("say", {"call": "c1", "text": "x"}, "POST /api/v1/calls/c1/say ", b'{"text": "x"}'),
        ("transfer_outcome", {"call": "c", "transfer": "t"},
         "GET /api/v1/calls/c/transfers/t ", b""),
    ],
)  # fmt: skip
async def test_a_command_is_a_request(
    tmp_path: Path, command: str, fields: dict[str, Any], line: str, body: bytes
) -> None:
    gateway = Gateway(b'{"a": 1}')
    assert await gateway.ask(tmp_path / "s", command, **fields) == {"a": 1}
    assert gateway.got.startswith(line.encode())
    assert gateway.got.partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize(
    ("body", "status", "error", "text"),
    [
        (b'{"error": {"message": "not now"}}', "409 X", RefusedError, "^not now$"),
        (b'{"error": {}}', "409 X", RefusedError, "^refused$"),
        (b"[1]", "200 OK", NoAnswerError, "is no gateway"),
        (b"\xff{}", "200 OK", NoAnswerError, "is no gateway"),
        (b"", "200 OK", NoAnswerError, "is no gateway"),
    ],
)
async def test_answers_that_are_none(
    tmp_path: Path, body: bytes, status: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await Gateway(body, status).ask(tmp_path / "s", "status")


def test_the_sockets_of_workers(tmp_path: Path) -> None:
    one = tmp_path / "gateway.sock"
    assert sockets_at(one) == [one], "whose absence is then told by its name"
    for name in ("gateway-10.sock", "gateway-2.sock", "gateway-x.sock", "gateway-2.old"):
        (tmp_path / name).touch()
    assert sockets_at(one) == [tmp_path / "gateway-2.sock", tmp_path / "gateway-10.sock"]
    one.touch()
    assert sockets_at(one) == [one]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'[control]\nsocket = "run/s"\n', "run/s"),
        (b'\xef\xbb\xbf[control]\nsocket = "/run/s"\n', "/run/s"),
        (b'[control]\nsocket = "${env:HERE}/s"\n[x]\ny = "${env:NOT_SET}"\n', "HERE/s"),
        (b"[control]\nsocket = 7\n", "control.socket is not set"),
        (b"control = 7\n", "control.socket is not set"),
        (b"", "control.socket is not set"),
        (b"[control\n", "gateway.toml: "),
        (b"\xff", "gateway.toml: "),
    ],
)
def test_where_the_socket_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, found: str
) -> None:
    """Relative to the configuration; of secrets that are not there nothing is needed."""
    monkeypatch.setenv("HERE", "HERE")
    config = tmp_path / "gateway.toml"
    with pytest.raises(NoAnswerError, match="No such file"):
        socket_of(config)
    config.write_bytes(text)
    if found.endswith("s"):
        assert socket_of(config) == tmp_path / found
    else:
        with pytest.raises(NoAnswerError, match=found):
            socket_of(config)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The API on its Unix socket, and what people see of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from click.testing import CliRunner
from uvicorn.server import ServerState
from websockets.asyncio.client import unix_connect
from websockets.frames import Frame, Opcode

from gateway.api import connections
from gateway.api.access import send_until_closed
from gateway.api.backend import Backend, EventFeed, Role, Token, hash_of
from gateway.api.client import RefusedError, ask_within
from gateway.api.server import ApiServer, _bound
from gateway.cli import main
from gateway.cli.live_calls import call_lines, duration, line_of, status, status_lines
from gateway.sip.agent import AgentError
from tests.support import idle_clock
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import eventually

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

    def refused(_request: object = None) -> dict[str, Any]:
        raise RefusedError("not now")

    return {"status": lambda _request: STATUS, "hangup": broken, "say": refused}


def server() -> ApiServer:
    """The API of a process that has these commands only."""

    async def metrics() -> bytes:
        return b""

    backend = Backend(
        commands=commands(),
        live=list,
        record=lambda _call: None,
        database=None,
        feed=EventFeed("boot"),
        ready=dict,
        problems=dict,
        metrics=metrics,
        drain=lambda: None,
    )
    return ApiServer(backend, (Token("reader", Role.READONLY, hash_of("gw_reader")),))


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[ApiServer]:
    """The API on a Unix socket."""
    served = server()
    await served.open_socket(path)
    try:
        yield served
    finally:
        await served.close_socket()


async def asked(path: Path, command: str, **fields: Any) -> dict[str, Any]:
    return await asyncio.to_thread(partial(ask_within, 30.0, path, command, **fields))


@pytest.mark.parametrize("error", [None, ZeroDivisionError("defect")])
async def test_a_server_that_ends_by_itself_is_a_part_that_has_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    over = asyncio.Event()

    class Ends:
        should_exit = False

        async def serve(self, sockets: object) -> None:
            await over.wait()
            if error is not None:
                raise error

    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    monkeypatch.setattr(ApiServer, "_make", lambda _server, _local: Ends())
    served = server()
    await served.listen("127.0.0.1", 0)
    over.set()
    await eventually(lambda: bool(told), "a report")
    assert told[0]["background"].get_name() == "api"
    assert isinstance(told[0]["exception"], type(error) if error else RuntimeError)
    with contextlib.suppress(ZeroDivisionError):
        await served.stop()
    stopped = server()
    over.clear()
    await stopped.listen("127.0.0.1", 0)
    asyncio.get_running_loop().call_soon(over.set)
    with contextlib.suppress(ZeroDivisionError):
        await stopped.stop()
    assert len(told) == 1, "one that is told to end is none"


async def test_a_client_that_takes_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.api.server.UNREAD_SECONDS", 0.5)
    with _bound("127.0.0.1", 0) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.to_thread(client.connect, listener.getsockname())
        taken, _ = await asyncio.get_running_loop().sock_accept(listener)
        _reader, writer = await asyncio.open_connection(sock=taken)
        writer.write(bytes(8 * 1024 * 1024))
        async with asyncio.timeout(30):
            with pytest.raises(OSError, match="timed out"):
                await writer.drain()


@pytest.mark.parametrize(("longest_s", "apart_s"), [(5.0, 0.02), (0.1, 0.0)])
def test_bodies_that_are_slow_to_read_are_read_in_turn(
    monkeypatch: pytest.MonkeyPatch, longest_s: float, apart_s: float
) -> None:
    """Ten clients send chunks of one byte: after what came with its request, no two are read at a
    time, so that calls wait for one piece and not for ten; also where there are more than have
    their turns in the longest rest."""
    monkeypatch.setattr(connections, "LONGEST_REST_SECONDS", longest_s)
    spent_s = 0.0
    read_at: dict[socket.socket, list[float]] = {}

    class Noted(connections.Connection):
        def handle_events(self) -> None:
            nonlocal spent_s
            spent_s += 0.003
            super().handle_events()

        def data_received(self, data: bytes) -> None:
            client = self.transport.get_extra_info("socket")
            read_at.setdefault(client, []).append(self.loop.time())
            super().data_received(data)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all"})

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 1000 + b"0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    async def main() -> None:
        config = uvicorn.Config(app, http=Noted, lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: Noted(config, state, {}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        answers = await asyncio.gather(*(ask(port) for _ in range(10)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        server.close()

    # As the thread computes: what the calls of this test really take is nobody's doing.
    monkeypatch.setattr(connections, "thread_time", lambda: spent_s)
    idle_clock.run(main())
    later = sorted(moment for moments in read_at.values() for moment in moments[1:])
    between = [after - before for before, after in itertools.pairwise(later)]
    assert len(between) > 20
    assert min(between) > apart_s


async def test_who_sends_to_a_websocket_does_not_outlive_its_work() -> None:
    """A defect, or the end of what is followed, is no reason to wait for the client."""

    class Quiet:
        async def receive(self) -> dict[str, str]:
            await asyncio.Event().wait()
            raise AssertionError

    async def defective() -> None:
        raise ZeroDivisionError

    async with asyncio.timeout(15):
        with pytest.raises(ZeroDivisionError):
            await send_until_closed(cast(Any, Quiet()), defective())


async def test_answers_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await asked(path, "status") == STATUS
        with pytest.raises(RefusedError, match="not now"):
            await asked(path, "say", call="c", text="words")
        with pytest.raises(RefusedError, match="the gateway's log says why"):
            await asked(path, "hangup", call="c")
        with pytest.raises(AgentError, match="another gateway"):
            await server().open_socket(path)
        assert await asked(path, "status") == STATUS
    assert not path.exists()


async def test_a_websocket_is_read_no_faster_than_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends pings without end would take the event loop from all calls."""
    monkeypatch.setattr(connections, "FRAMES_PER_SECOND", 50_000)
    held: list[connections.WebSocketConnection] = []
    go_on = connections.WebSocketConnection._go_on

    def noted(self: connections.WebSocketConnection) -> None:
        held.append(self)
        go_on(self)

    monkeypatch.setattr(connections.WebSocketConnection, "_go_on", noted)
    path = tmp_path / "gateway.sock"
    events = "ws://gateway/api/v1/events"
    async with opened(path), unix_connect(str(path), events) as ws, asyncio.timeout(WITHIN_S):
        # As few bytes as a client's ping has.
        ws.transport.write(Frame(Opcode.PING, b"").serialize(mask=True) * 20_000)
        await (await ws.ping())
        # The last pause may begin with what the last ping came in.
        await eventually(lambda: len(held) == held[-1].held_back, "the end of each pause")
    assert len(held) >= 5


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        ("", "GET", "/api/v1/status", 200),
        ("gw_reader", "GET", "/api/v1/status", 200),
        ("gw_reader", "POST", "/api/v1/calls/c/hangup", 403),
        ("gw_wrong", "GET", "/api/v1/status", 401),
    ],
)
async def test_a_token_counts_on_the_socket_too(
    tmp_path: Path, token: str, method: str, path: str, status: int
) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "socket"))
    async with (
        opened(tmp_path / "socket"),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as http,
    ):
        assert (await http.request(method, path, headers=headers)).status_code == status


async def test_what_a_dead_gateway_left_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with opened(path):
        assert await asked(path, "status") == STATUS
    path.write_text("a file")
    for wrong, words in (
        (path, "no socket"),
        (tmp_path / ("x" * 120), "longer than 107 bytes"),
        (tmp_path / "none" / "x", "No such file"),
    ):
        with pytest.raises(AgentError, match=words):
            await server().open_socket(wrong)


async def test_a_socket_that_was_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.01)
    path = tmp_path / "socket"
    async with opened(path):
        path.unlink()
        await eventually(path.exists, "the socket")
        assert await asked(path, "status") == STATUS
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Two workers of one machine: each one's API, and every command, reaches the calls of both."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from click.testing import CliRunner
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from gateway.api.backend import hash_of
from gateway.api.siblings import ANSWER_SECONDS
from gateway.cli import main
from tests.calls.test_api import TOKENS
from tests.calls.test_applications import KEY, ROUTES, SESSION, settings
from tests.interop.lab.ports import free_port
from tests.support.gateway_process import Gateway
from tests.support.harness import GatewayStack, eventually
from tests.support.http_service import HttpService, http_service, self_signed
from tests.support.sip_phone import Phone, PhoneCall

ROLES = "".join(
    f'[[api.token]]\nname = "{role}-one"\nrole = "{role}"\nhash = "HASH {token}"\n'
    for role, token in TOKENS.items()
)


class Pair:
    """A gateway as two workers; ``world`` has the first."""

    def __init__(self, world: GatewayStack, receiver: HttpService) -> None:
        self.world = world
        self.receiver = receiver
        self.gateways = [
            Gateway(world.gateway.config, options=("--no-supervisor", "--worker", str(number)))
            for number in (0, 1)
        ]
        world.gateway = self.gateways[0]
        self.phone = Phone(("127.0.0.1", 0))

    async def start(self) -> None:
        await self.world.start()
        await self.gateways[1].start()
        self.phone.gateway = self.gateways[1].sip
        await self.phone.start()

    async def stop(self) -> None:
        for gateway, phone in zip(self.gateways, (self.world.phone, self.phone), strict=True):
            status = await gateway.stop()
            await phone.stop()
            gateway.check(status)
        await self.world.emulator.stop()

    def http(self, token: str = TOKENS["operator"], worker: int = 0) -> httpx.AsyncClient:
        """A client of a worker's API."""
        address = self.gateways[worker].all("api.listening")[-1]["address"]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(
            base_url=f"http://{address}", headers=headers, trust_env=False, timeout=20
        )

    async def dial(self, user: str = "greeted") -> tuple[PhoneCall, str]:
        """A call of the second worker, and its id."""
        call = self.phone.call(user)
        call.invite()
        await call.answered()
        await self.gateways[1].wait("call.confirmed", call=call.call_id)
        return call, self.gateways[1].ids_of(call.call_id)[0]

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run a command with the configuration's file."""
        config = ("-c", str(self.world.gateway.config))
        ran = await asyncio.to_thread(CliRunner().invoke, main, [*arguments, *config])
        return ran.exit_code, ran.output


@pytest.fixture(scope="module")
def pair(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two workers with one emulator."""
    with http_service() as receiver:
        roles = ROLES
        for token in TOKENS.values():
            roles = roles.replace(f"HASH {token}", hash_of(token))
        api = settings(receiver.url).replace("[api]\n", "[api]\nbrowser_calls = 1\n")
        application, _, rest = api.partition("[[webhook]]")
        workers = '[workers]\ncount = 2\n[control]\nsocket = "gateway.sock"\n'
        world = GatewayStack(
            tmp_path_factory.mktemp("workers"),
            routes=ROUTES,
            more=f"{application}{roles}[[webhook]]{rest}{workers}",
            max_calls=4,
            listen=(f"udp:127.0.0.1:{free_port('127.0.0.1', 2)}",),
        )
        made = Pair(world, receiver)
        runner.run(made.start())
        yield made
        runner.run(made.stop())


async def test_commands_reach_the_calls_of_every_worker(pair: Pair) -> None:
    call, name = await pair.dial()
    own = await pair.world.dial("greeted")
    status, listed = await pair.command("calls")
    assert status == 0
    assert name in listed
    assert pair.world.gateway.ids_of(own.call_id)[0] in listed
    status, text = await pair.command("status", "--json")
    assert sorted(json.loads(text)["workers"]) == ["gateway-0.sock", "gateway-1.sock"]
    assert (await pair.command("say", name[:-2], "Hello."))[0] == 0
    status, words = await pair.command("hangup", call.call_id)
    assert (status, words) == (0, f"{name} is hung up\n")
    await call.hung_up()
    status, words = await pair.command("hangup", name)
    assert (status, "no call in progress has this id" in words) == (1, True)
    status, words = await pair.command("reload")
    assert (status, words.splitlines()) == (
        0,
        [f"gateway-{n}.sock: nothing has changed" for n in (0, 1)],
    )
    await pair.world.summary_at_end(own)


async def test_the_api_of_one_worker_serves_the_calls_of_the_other(pair: Pair) -> None:
    call, name = await pair.dial()
    async with pair.http() as http:
        live = (await http.get("/api/v1/calls", params={"live": True})).json()["calls"]
        assert [row["id"] for row in live] == [name]
        whole = (await http.get(f"/api/v1/calls/{name}")).json()
        assert whole["record"]["call_id"] == name
        told = (await http.get(f"/api/v1/calls/{name}/transcript")).json()
        assert told["call"] == name
        for token, status in ((TOKENS["readonly"], 403), ("gw_wrong", 401), ("", 401)):
            async with pair.http(token) as other:
                refused = await other.post(f"/api/v1/calls/{name}/hangup")
                assert refused.status_code == status
                answer = await other.get(f"/api/v1/calls/{name}/transcript")
                assert answer.status_code == status
        assert (await http.post(f"/api/v1/calls/{name}/hangup")).json() == {"call": name}
    await call.hung_up()
    line = await pair.gateways[1].wait("api.audit", action="hangup", call=name)
    assert (line["who"], line["role"], line["peer"]) == ("operator-one", "operator", "127.0.0.1")


async def test_events_of_both_workers_come_in_one_stream_and_resume(pair: Pair) -> None:
    async def followed(worker: int, last: str, ends: int, gaps: int = 0) -> list[tuple[str, Any]]:
        """Ids and events from behind an id, until so many calls have ended, and gaps were told."""
        seen: list[tuple[str, Any]] = []
        headers = {"Last-Event-ID": last} if last else {}
        async with (
            pair.http(worker=worker) as http,
            http.stream("GET", "/api/v1/events", headers=headers) as stream,
        ):
            async for line in stream.aiter_lines():
                began.set()
                name, _, value = line.partition(": ")
                if name == "id":
                    seen.append((value, None))
                elif name == "data":
                    seen[-1] = (seen[-1][0], json.loads(value))
                    types = [event["type"] for _, event in seen]
                    if types.count("call.ended") >= ends and types.count("feed.gap") >= gaps:
                        return seen
        raise AssertionError(seen)

    began = asyncio.Event()
    first = asyncio.create_task(followed(0, "", 2))
    await began.wait()
    await pair.world.summary_at_end(await pair.world.dial())
    call, _ = await pair.dial()
    await call.hang_up()
    seen = await first
    calls = {event["call_id"] for _, event in seen}
    assert len(calls) == 2, "one of each worker"
    assert len({number for number, _ in seen}) == len(seen)
    # From each event on, at either worker: nothing is missing, and nothing comes twice.
    for worker, at in ((0, 0), (1, 0), (1, len(seen) // 2)):
        ends = 2 - sum(event["type"] == "call.ended" for _, event in seen[: at + 1])
        again = await followed(worker, seen[at][0], ends)
        key = [(event["call_id"], event["sequence"]) for _, event in again]
        assert sorted(key) == sorted((e["call_id"], e["sequence"]) for _, e in seen[at + 1 :])
    gap = await followed(1, "gone.7", 2, gaps=2)
    assert [event["type"] for _, event in gap].count("feed.gap") == 2, "of each worker"


async def test_who_is_logged_in_at_one_worker_watches_calls_of_the_other(pair: Pair) -> None:
    call, name = await pair.dial()
    async with pair.http("") as http:
        base = str(http.base_url).rstrip("/")
        page = {"X-Requested-With": "gateway-console", "Origin": base}
        given = {"Authorization": f"Bearer {TOKENS['operator']}", **page}
        assert (await http.post("/api/v1/session", headers=given)).status_code == 200
        path = f"/api/v1/calls/{name}"
        assert (await http.get(f"{path}/progress")).json()["call"]["call_id"] == name
        assert name in (await http.get("/api/v1/levels")).json()["levels"]
        refused_log = await http.put("/api/v1/log", json={"level": "info"}, headers=page)
        assert refused_log.status_code == 403
        cookie = "; ".join(f"{one.name}={one.value}" for one in http.cookies.jar)
        url = f"{base.replace('http', 'ws', 1)}{path}/audio"
        for origin in ("http://evil.example", f"{base}0"):
            headers = {"Cookie": cookie, "Origin": origin}
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, additional_headers=headers, proxy=None)
            assert refused.value.response.status_code == 401
        headers = {"Cookie": cookie, "Origin": base}
        async with connect(url, additional_headers=headers, proxy=None) as socket:
            assert json.loads(await socket.recv())["codec"] == "PCMU"
            assert len(await socket.recv()) > 320
        hung = await http.post(f"{path}/hangup", headers=page)
        assert hung.json() == {"call": name}
    await call.hung_up()
    for action in ("listen", "hangup", "read"):
        line = await pair.gateways[1].wait("api.audit", action=action, call=name)
        assert (line["who"], line["role"], line["result"]) == ("operator-one", "operator", "ok")


async def test_a_call_of_the_other_worker_by_its_odd_call_id(pair: Pair) -> None:
    call = pair.phone.call("greeted")
    del pair.phone.calls[call.call_id]
    call.call_id = "odd?after%23x@test"
    pair.phone.calls[call.call_id] = call
    call.invite()
    await call.answered()
    await pair.gateways[1].wait("call.confirmed", call=call.call_id)
    async with pair.http() as http:
        path = f"/api/v1/calls/{quote(call.call_id, safe='')}/hangup"
        answer = await http.post(path)
    assert answer.json() == {"call": pair.gateways[1].ids_of(call.call_id)[0]}
    await call.hung_up()


async def test_what_a_client_sends_for_the_other_worker_may_be_long_or_cut(pair: Pair) -> None:
    call, name = await pair.dial()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3 * 1024):
            yield bytes(1024)

    async with pair.http() as http:
        for method, path in (("POST", "say"), ("GET", "transcript")):
            answer = await http.request(method, f"/api/v1/calls/{name}/{path}", content=endless())
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "too_long"
    host, _, port = pair.gateways[0].all("api.listening")[-1]["address"].rpartition(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/calls/{name}/say HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n"
    writer.write(f"{head}Authorization: Bearer {TOKENS['operator']}\r\n\r\nx".encode())
    await writer.drain()
    writer.close()
    async with pair.http() as http:
        hung = await http.post(f"/api/v1/calls/{name}/hangup")
        assert hung.json() == {"call": name}
    await call.hung_up()
    assert not pair.gateways[0].all("api.failed")


async def test_a_worker_that_hangs_is_passed_over(pair: Pair) -> None:
    own = await pair.world.dial("greeted")
    name = pair.world.gateway.ids_of(own.call_id)[0]
    pair.gateways[1].signal(signal.SIGSTOP)
    try:
        async with pair.http() as http, asyncio.timeout(ANSWER_SECONDS):
            live = (await http.get("/api/v1/calls", params={"live": True})).json()["calls"]
            assert [row["id"] for row in live] == [name]
            assert (await http.get("/api/v1/calls/none")).status_code == 404
    finally:
        pair.gateways[1].signal(signal.SIGCONT)
    await pair.world.summary_at_end(own)


async def test_an_application_asks_any_worker(pair: Pair) -> None:
    pair.receiver.asked.clear()
    call = pair.phone.call("asked")
    call.invite()
    await eventually(lambda: len(pair.receiver.asked) == 1, "the webhook")
    name = json.loads(pair.receiver.asked[0].body)["data"]["call_id"]
    async with pair.http() as operator:
        live = (await operator.get("/api/v1/calls", params={"live": True})).json()["calls"]
        assert [(row["id"], row["state"]) for row in live] == [
            (name.removeprefix("rtc_"), "incoming")
        ]
    base = f"/v1/realtime/calls/{name}"
    async with pair.http(KEY) as http:
        unknown = await http.post("/v1/realtime/calls/rtc_none/accept", json=SESSION)
        assert unknown.status_code == 404
        accepted = await http.post(f"{base}/accept", json=SESSION)
        assert (accepted.status_code, accepted.content) == (200, b"")
        again = await http.post(f"{base}/reject", json={})
        assert (again.status_code, again.headers["x-should-retry"]) == (400, "false")
        url = f"{http.base_url}/v1/realtime?call_id=".replace("http", "ws", 1)
        headers = {"Authorization": f"Bearer {KEY}"}
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url + "rtc_none", additional_headers=headers, proxy=None):
                pass
        assert refused.value.response.status_code == 404
        async with connect(url + name, additional_headers=headers, proxy=None) as sideband:
            first: dict[str, Any] = json.loads(await asyncio.wait_for(sideband.recv(), 20))
            assert first["type"] == "session.created"
            await call.answered()
            await sideband.send('{"type": "response.create"}')
            async with asyncio.timeout(20):
                while json.loads(await sideband.recv())["type"] != "response.done":
                    pass
            assert (await http.post(f"{base}/hangup")).status_code == 200
            await call.hung_up()
            await sideband.wait_closed()
            assert sideband.close_code == 1000


@asynccontextmanager
async def tls_proxy(address: str, folder: Path) -> AsyncIterator[int]:
    """Pass connections on to ``address`` as a proxy with TLS does, Host as it came and
    ``X-Forwarded-Proto`` added to the first request; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(folder))
    host, _, port = address.rpartition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            line, rest = await reader.readline(), b"X-Forwarded-Proto: https\r\n"
            there, back = await asyncio.open_connection(host, int(port))
            back.write(line + rest)
            await asyncio.gather(pump(reader, back), pump(there, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_browser_calls_through_a_proxy_with_tls(pair: Pair, tmp_path: Path) -> None:
    """Its cookie is for TLS only; the other worker's console sees the call, and ends it."""
    address = pair.gateways[0].all("api.listening")[-1]["address"]
    async with tls_proxy(address, tmp_path) as port:
        trusted = ssl.create_default_context(cafile=str(tmp_path / "server.crt"))
        origin = f"https://127.0.0.1:{port}"
        async with httpx.AsyncClient(verify=trusted, trust_env=False, timeout=20) as http:
            token = {"Authorization": f"Bearer {TOKENS['operator']}", "Origin": origin}
            answer = await http.post(f"{origin}/api/v1/session", headers=token)
            cookie = answer.headers["set-cookie"]
        assert {"Secure", "HttpOnly", "SameSite=strict"} <= {p.strip() for p in cookie.split(";")}
        uri = f"wss://127.0.0.1:{port}/api/v1/browser-call?to=greeted"
        fields = {"Cookie": cookie.partition(";")[0]}
        with pytest.raises(InvalidStatus) as refused:
            await connect(
                uri, ssl=trusted, proxy=None, additional_headers=fields, origin=Origin("https://x")
            )
        assert refused.value.response.status_code == 403
        async with connect(
            uri,
            ssl=trusted,
            proxy=None,
            additional_headers=fields,
            origin=Origin(origin),
        ) as page:
            name = json.loads(await page.recv())["call"]
            heard = 0
            async with asyncio.timeout(20):
                while heard < 20:  # frames of the greeting
                    heard += isinstance(message := await page.recv(), bytes) and any(
                        byte != 0xFF for byte in message
                    )
            async with pair.http(worker=1) as http:
                live = (await http.get("/api/v1/calls", params={"live": True})).json()["calls"]
                assert [row["id"] for row in live] == [name]
                assert (await http.post(f"/api/v1/calls/{name}/hangup")).status_code == 200
            told = [m async for m in page if isinstance(m, str)]
        assert json.loads(told[-1])["type"] == "ended"
    summary = await pair.gateways[0].wait("call.summary", call=name)
    assert summary["ending"]["why"] == "operator"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests about another worker's call: where they go, with whose rights, and what silent workers
cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.exceptions import HTTPException
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection, unix_serve

from gateway.api import siblings as siblings_module
from gateway.api.backend import POSITION, EventFeed, Role, Token
from gateway.api.connections import HOP, LOCAL, PEER, RIGHTS, ROLE, USER, as_local
from gateway.api.siblings import SILENT_SECONDS, ForwardToWorker, Siblings, merged
from tests.support import idle_clock


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are on a clock of their own, or longer than a busy machine needs."""
    monkeypatch.setattr(siblings_module, "CONNECT_SECONDS", 60.0)
    monkeypatch.setattr(siblings_module, "LOOK_SECONDS", 60.0)


JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
HERE = json.dumps({"here": True}).encode()


class Worker:
    """Another worker's socket: answers each path with bytes; a path without any hangs."""

    def __init__(self, answers: Mapping[str, bytes]) -> None:
        self.answers = dict(answers)
        self.asked: list[bytes] = []
        self.lasting = False
        """Answers do not end with their connection."""
        self._change = asyncio.Condition()

    async def asked_times(self, count: int) -> None:
        async with self._change:
            await self._change.wait_for(lambda: len(self.asked) >= count)

    @contextlib.asynccontextmanager
    async def at(self, path: Path) -> AsyncIterator[Worker]:
        server = await asyncio.start_unix_server(self._answer, path)
        yield self
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
        body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
        async with self._change:
            self.asked.append(head + body)
            self._change.notify_all()
        told = self.answers.get(head.split(b" ")[1].decode().partition("?")[0])
        writer.write(told or b"")
        if told is None or self.lasting:
            await reader.read()
        writer.close()


def answer(body: bytes, head: bytes = JSON) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_a_worker_that_does_not_answer_costs_only_its_own_rows(tmp_path: Path) -> None:
    """One is there, one hangs, one has an error, one speaks no JSON, one is not there."""
    rows = json.dumps({"calls": [{"id": "c1"}], "levels": {"c1": [1, 2]}}).encode()
    here = Worker(dict.fromkeys(("/api/v1/calls", "/api/v1/levels"), answer(rows)))
    failing = Worker({"/api/v1/calls": b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}"})
    odd = Worker({"/api/v1/calls": answer(b"oops"), "/api/v1/levels": b"\0\r\n\r\n"})

    async def main() -> None:
        paths = [tmp_path / name for name in ("here", "hangs", "failing", "odd", "none")]
        asked = Siblings(paths)
        async with contextlib.AsyncExitStack() as stack:
            for worker, path in zip((here, Worker({}), failing, odd), paths, strict=False):
                await stack.enter_async_context(worker.at(path))
            assert await asked.live() == [{"id": "c1"}]
            assert await asked.levels() == {"c1": [1, 2]}
            assert await asked.worker_with("c1") is None

    idle_clock.run(main())
    assert b"GET /api/v1/calls?live=true&limit=1000 " in here.asked[0]
    assert b"\r\nx-gateway-hop: 1\r\n" in here.asked[0], "it asks no other in turn"


class Own:
    """This worker's application."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b"own"})


OPERATOR = Token("ops", Role.OPERATOR, "")
COMMAND = "/api/v1/calls/c1/hangup"


def forwarding(path: Path, token: Token | None = OPERATOR, here: str = "") -> ForwardToWorker:
    return ForwardToWorker(Own(), Siblings([path]), lambda call: call == here, lambda _scope: token)


def client(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=("192.0.2.1", 5))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


async def test_a_request_goes_to_the_worker_that_has_the_call(tmp_path: Path) -> None:
    head = b"HTTP/1.1 202 Fine\r\nX-A: b\r\nServer: other\r\nRetry-After: 3\r\n"
    worker = Worker({"/api/v1/here": answer(HERE), COMMAND: answer(b'{"ok":1}', head)})
    forward = forwarding(tmp_path / "w")
    headers = {PEER: "127.0.0.1", USER: "root", RIGHTS: "admin", "Cookie": "s=1", "X-C": "d"}
    async with worker.at(tmp_path / "w"), client(forward) as http:
        got = await http.post(f"{COMMAND}?a=b%26c", headers=headers, json={"x": 1})
    assert (got.status_code, got.json()) == (202, {"ok": 1})
    assert (got.headers["x-a"], got.headers["retry-after"]) == ("b", "3")
    assert "server" not in got.headers
    told = worker.asked[-1].decode()
    assert told.startswith(f"POST {COMMAND}?a=b%26c HTTP/1.1\r\n")
    assert told.endswith('\r\n\r\n{"x":1}')
    lines = told.lower().split("\r\n")
    wanted = {HOP: "1", PEER: "192.0.2.1", USER: "ops", RIGHTS: "operator", "x-c": "d"}
    assert {f"{name}: {value}" for name, value in wanted.items()} <= set(lines)
    assert not {f"{USER}: root", f"{RIGHTS}: admin", f"{PEER}: 127.0.0.1"} & set(lines), (
        "what a client makes up of itself counts for nothing"
    )
    assert not [line for line in lines if line.startswith("cookie")]


@pytest.mark.parametrize(
    ("path", "headers", "token", "here"),
    [
        ("/api/v1/calls", {}, OPERATOR, ""),
        ("/api/v1/calls/export", {}, OPERATOR, ""),
        ("/api/v1/status", {}, OPERATOR, ""),
        (COMMAND, {}, OPERATOR, "c1"),
        (COMMAND, {}, None, ""),
        (COMMAND, {HOP: "1"}, OPERATOR, ""),
        ("/api/v1/calls/c2/hangup", {}, OPERATOR, ""),
    ],
    ids=["no call", "export", "status", "ours", "no token", "forwarded", "nobody's"],
)
async def test_other_requests_are_answered_here(
    tmp_path: Path, path: str, headers: dict[str, str], token: Token | None, here: str
) -> None:
    nobody = answer(json.dumps({"here": False}).encode())
    worker = Worker({"/api/v1/here": answer(HERE) if "c2" not in path else nobody})
    forward = forwarding(tmp_path / "w", token, here)
    async with worker.at(tmp_path / "w"), client(forward) as http:
        assert (await http.post(path, headers=headers)).status_code == 299
    assert cast(Own, forward.app).asked == [path]
    assert len(worker.asked) == ("c2" in path)


@pytest.mark.parametrize("who", ["jürg %41", "root"])
async def test_a_client_of_the_unix_socket_keeps_its_name_and_role(
    tmp_path: Path, who: str
) -> None:
    worker = Worker({"/api/v1/here": answer(HERE), COMMAND: answer(b"{}")})
    forward = forwarding(tmp_path / "w")

    async def local(scope: Any, receive: Any, send: Any) -> None:
        await forward({**scope, "client": None, LOCAL: who, ROLE: Role.READONLY}, receive, send)

    async with worker.at(tmp_path / "w"), client(local) as http:
        headers = {b"X-Forwarded-User": "jürg".encode("latin-1")}
        assert (await http.post(COMMAND, headers=headers)).status_code == 200
    raw = [tuple(line.split(b": ")) for line in worker.asked[-1].lower().split(b"\r\n") if line]
    assert (b"x-forwarded-user", "jürg".encode("latin-1")) in raw
    scopes: list[Any] = []

    async def there(scope: Any, _receive: Any, _send: Any) -> None:
        scopes.append(scope)

    await as_local(there)({"type": "http", "headers": raw[1:], "client": ("root", 0)}, None, None)
    assert (scopes[0][LOCAL], scopes[0][ROLE], scopes[0]["client"]) == (
        who,
        Role.READONLY,
        ("local", 0),
    )


async def test_a_token_of_the_client_goes_along_and_says_all(tmp_path: Path) -> None:
    worker = Worker({"/api/v1/here": answer(HERE), COMMAND: answer(b"{}")})
    async with worker.at(tmp_path / "w"), client(forwarding(tmp_path / "w")) as http:
        await http.post(COMMAND, headers={"Authorization": "Bearer gw_ops", RIGHTS: "admin"})
    lines = worker.asked[-1].lower().split(b"\r\n")
    assert b"authorization: bearer gw_ops" in lines
    assert not [line for line in lines if line.startswith((USER.encode(), RIGHTS.encode()))]


async def test_a_worker_that_ends_before_its_answer_is_503(tmp_path: Path) -> None:
    worker = Worker({"/api/v1/here": answer(HERE), COMMAND: b""})
    with capture_logs() as logs:
        async with worker.at(tmp_path / "w"), client(forwarding(tmp_path / "w")) as http:
            got = await http.post(COMMAND)
    assert (got.status_code, got.headers["retry-after"]) == (503, "1")
    assert [one["event"] for one in logs] == ["api.worker_silent"]


async def test_a_body_that_is_too_long_is_413(tmp_path: Path) -> None:
    """Nothing of it reaches the other worker."""
    worker = Worker({"/api/v1/here": answer(HERE)})
    sent: list[Any] = []

    async def receive() -> Any:
        raise HTTPException(413, cast(Any, {"code": "too_long", "message": "m"}))

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": COMMAND, "query_string": b"", "headers": []}
    async with worker.at(tmp_path / "w"):
        await forwarding(tmp_path / "w")(scope, receive, send)
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"]) == {"error": {"code": "too_long", "message": "m"}}
    assert len(worker.asked) == 1


class Page:
    """A client's WebSocket, as the ASGI server has it."""

    def __init__(self, path: str, query: str = "") -> None:
        self.scope = {
            "type": "websocket",
            "path": path,
            "query_string": query.encode(),
            "headers": [(b"host", b"gateway"), (b"sec-websocket-key", b"x")],
            "extensions": {"websocket.http.response": {}},
            "client": ("192.0.2.1", 5),
        }
        self.coming: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.coming.put_nowait({"type": "websocket.connect"})

    async def told(self) -> Any:
        return await self.sent.get()


LISTEN = "/api/v1/calls/c1/audio"


async def test_a_websocket_goes_on_to_the_worker_until_either_ends(tmp_path: Path) -> None:
    requests: list[str] = []

    def look(server: ServerConnection, request: Any) -> Any:
        requests.append(f"{request.path} {request.headers.get(USER, '')}")
        if request.path.startswith("/api/v1/here"):
            return server.respond(HTTPStatus.OK, HERE.decode())
        return None

    async def echo(server: ServerConnection) -> None:
        async for message in server:
            if message == "end":
                await server.close(4001, "over")
                return
            await server.send(message)

    page = Page(LISTEN, "side=both")
    server = await unix_serve(echo, str(tmp_path / "w"), process_request=look)
    with contextlib.closing(server):
        forward = forwarding(tmp_path / "w")
        task = asyncio.create_task(
            forward(cast(Any, page.scope), page.coming.get, cast(Any, page.sent.put))
        )
        assert (await page.told())["type"] == "websocket.accept"
        for sent in ({"text": "a"}, {"bytes": b"\0"}):
            page.coming.put_nowait({"type": "websocket.receive", **sent})
            got = await page.told()
            assert {name: got[name] for name in sent} == sent
        page.coming.put_nowait({"type": "websocket.receive", "text": "end"})
        closed = await page.told()
        await task
    assert (closed["type"], closed["code"]) == ("websocket.close", 4001)
    assert requests[-1] == f"{LISTEN}?side=both ops"


@pytest.mark.parametrize(
    ("head", "status", "body"),
    [
        (b"HTTP/1.1 429 No\r\nContent-Length: 2\r\n\r\n{}", 429, b"{}"),
        (b"nothing of the kind\r\n\r\n", 503, b""),
        (b"", 503, b""),
    ],
    ids=["refused", "no HTTP", "ended"],
)
async def test_a_handshake_that_fails_is_told(
    tmp_path: Path, head: bytes, status: int, body: bytes
) -> None:
    worker = Worker({"/api/v1/here": answer(HERE), "/v1/realtime": head})
    page = Page("/v1/realtime", "call_id=rtc_1")
    async with worker.at(tmp_path / "w"):
        forward = forwarding(tmp_path / "w")
        await forward(cast(Any, page.scope), page.coming.get, cast(Any, page.sent.put))
    begun, rest = await page.told(), await page.told()
    assert (begun["status"], rest["body"]) == (status, body)
    assert b"call=rtc_1" in worker.asked[0]


def stream(*events: tuple[str, str]) -> bytes:
    lines = "".join(f"id: {number}\nevent: x\ndata: {data}\n\n" for number, data in events)
    return b"HTTP/1.1 200 OK\r\n\r\n" + lines.encode()


def test_a_stream_of_events_that_ends_is_asked_for_again(tmp_path: Path) -> None:
    """From behind the last event on; what is no event is passed over with its stream."""

    async def main() -> None:
        worker = Worker({"/api/v1/events": stream(("w.1", '{"type": "a"}'), ("w.2", "no JSON"))})
        async with worker.at(tmp_path / "w"):
            events = Siblings([tmp_path / "w"]).events(tmp_path / "w", "x.7")
            assert await anext(events) == ("w.1", {"type": "a"})
            worker.answers["/api/v1/events"] = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
            coming = asyncio.ensure_future(anext(events))
            await worker.asked_times(4)
            worker.answers["/api/v1/events"] = stream(("w.3", '{"type": "b"}'))
            assert await coming == ("w.3", {"type": "b"})
            await events.aclose()
        targets = [one.split(b" ")[1] for one in worker.asked]
        assert targets[0] == b"/api/v1/events?after=x.7"
        assert targets[-1] == b"/api/v1/events?after=w.2"

    idle_clock.run(main())


class Others(Siblings):
    """Another worker whose events come from a feed; a second one never answers."""

    def __init__(self, feed: EventFeed) -> None:
        super().__init__([Path("w"), Path("hangs")])
        self._feed = feed
        self.ended = 0

    async def events(
        self, path: Path, after: str
    ) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        try:
            if path == Path("hangs"):
                await asyncio.Event().wait()
            yield self._feed.position(after), {"type": POSITION}
            async for event in self._feed.follow(after):
                yield event
        finally:
            self.ended += 1


def test_events_of_all_workers_come_and_an_id_resumes_at_each() -> None:
    async def main() -> None:
        own, other = EventFeed("own"), EventFeed("w")
        for feed in (own, other):
            feed.add({"type": "before"})
        workers = Others(other)
        events = merged(own, workers, "")
        assert await anext(events) == ("", {})
        other.add({"type": "a"})
        assert await anext(events) == ("own.1,w.2", {"type": "a"})
        own.add({"type": "b"})
        number, event = await anext(events)
        assert (number, event) == ("own.2,w.2", {"type": "b"})
        await events.aclose()
        assert workers.ended == 2, "nothing is followed any more"
        own.add({"type": "c"})
        other.add({"type": "d"})
        again = merged(own, workers, number)
        assert await anext(again) == ("", {})
        found = [await anext(again) for _ in range(2)]
        assert sorted(event["type"] for _number, event in found) == ["c", "d"]
        assert found[-1][0] == "own.3,w.3"
        await again.aclose()

    idle_clock.run(main())


def test_a_worker_that_sends_no_line_end_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings_module, "MAX_MESSAGE_BYTES", 1000)

    async def main() -> None:
        worker = Worker({"/api/v1/events": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000})
        worker.lasting = True
        async with worker.at(tmp_path / "w"):
            events = Siblings([tmp_path / "w"]).events(tmp_path / "w", "")
            coming = asyncio.ensure_future(anext(events))
            clock = asyncio.get_running_loop().time
            began = clock()
            await worker.asked_times(2)
            assert clock() - began < SILENT_SECONDS
            worker.answers["/api/v1/events"] = stream(("w.1", '{"type": "a"}'))
            assert await coming == ("w.1", {"type": "a"})
            await events.aclose()

    idle_clock.run(main())

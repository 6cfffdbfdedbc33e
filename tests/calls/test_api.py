# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP API of a running gateway, as HTTP clients use it."""

from __future__ import annotations

import asyncio
import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from gateway.api import connections
from gateway.api.backend import MAX_FOLLOWERS, hash_of
from gateway.api.connections import CONNECTIONS
from tests.calls.test_demo import had_no_cpu
from tests.calls.test_keys import events_of
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import PATIENT, GatewayStack, eventually
from tests.support.listening import all_arrives, is_silence, noise

TOKENS = {"readonly": "gw_reader-77aa", "operator": "gw_operator-88bb", "admin": "gw_admin-99cc"}
API = '[api]\nlisten = "127.0.0.1:0"\n' + "".join(
    f'[[api.token]]\nname = "{role}-one"\nrole = "{role}"\nhash = "{hash_of(token)}"\n'
    for role, token in TOKENS.items()
)
NOTED = """
[[route]]
name = "noted"
to = "^noted$"
greeting.say = "Hello."
[route.disposition]
default = "abandoned"
values = ["completed", "no_agent"]
"""
WORLD = {"more": API + PATIENT, "routes": NOTED}


class Client:
    """An HTTP client with the token of a role; none for an empty one."""

    def __init__(self, world: GatewayStack, role: str = "admin", token: str = "") -> None:
        address = world.gateway.all("api.listening")[-1]["address"]
        given = token or TOKENS.get(role, "")
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        self.http = httpx.AsyncClient(
            base_url=f"http://{address}", headers=headers, trust_env=False, timeout=20
        )

    async def __aenter__(self) -> httpx.AsyncClient:
        return self.http

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()


async def metric(http: httpx.AsyncClient, name: str, /, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    text = (await http.get("/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_a_call_is_listed_while_it_lasts_and_afterwards(world: GatewayStack) -> None:
    async with Client(world, "readonly") as http:
        call = await world.dial("greeted")
        found = (await http.get("/api/v1/calls", params={"live": True})).json()["calls"]
        (one,) = [row for row in found if row["sip_call_id"] == call.call_id]
        assert (one["state"], one["route"], one["outcome"]) == ("talking", "greeted", "")
        whole = (await http.get(f"/api/v1/calls/{one['id']}")).json()
        assert whole["id"] == one["id"]
        assert "route greeted takes it" in whole["explanation"][1]
        async with Client(world, "operator") as other:
            for name in (one["id"][-8:], call.call_id):
                found = (await other.get(f"/api/v1/calls/{name}")).json()
                assert (found["id"], found["record"]["call_id"]) == (one["id"], one["id"])
            plain = await other.post(f"/api/v1/calls/{one['id']}/say", content='{"text": "Hi"}')
            assert "needs Content-Type: application/json" in plain.json()["error"]["message"]
            gone = await other.delete(f"/api/v1/calls/{one['id']}")
            assert gone.json()["error"]["code"] == "method_not_allowed"
        await world.summary_at_end(call)

        past: dict[str, Any] = {}

        async def ended() -> bool:
            past.update((await http.get(f"/api/v1/calls/{one['id']}")).json())
            return bool(past.get("outcome") == "completed" and past["record"])

        await eventually(ended, "the end of the call")
        assert past["record"]["call_id"] == one["id"]
        assert "transcript" not in past["record"], "what was said is not for this role"
        async with Client(world, "operator") as other:
            whole = (await other.get(f"/api/v1/calls/{one['id']}")).json()
            told = (await other.get(f"/api/v1/calls/{one['id'][-8:]}/transcript")).json()
        assert told["call"] == one["id"]
        assert told["transcript"] == whole["record"]["transcript"], "also once it is over"
        assert [event["type"] for event in past["events"]][-1] == "call.ended"
        assert past.keys() >= one.keys() - {"explanation"}, "live and past have one form"
        listed = (await http.get("/api/v1/calls", params={"sip_call_id": call.call_id})).json()
        assert [row["id"] for row in listed["calls"]] == [one["id"]]


async def test_route_model_and_operator_say_how_a_call_went(world: GatewayStack) -> None:
    wrong = {"name": "set_disposition", "arguments": '{"disposition": "lost"}'}
    right = {"name": "set_disposition", "arguments": '{"disposition": "no_agent"}'}
    answers = [{"kind": "nothing", "tools": [wrong]}, {"kind": "nothing", "tools": [right]}]
    world.behave(vad="off", answers=[*answers, {"kind": "silent"}])
    call = await world.dial("noted")
    noted = await world.gateway.wait("call.disposition", call=call.call_id)
    assert (noted["by"], noted["disposition"]) == ("model", "no_agent")
    call_id = noted["call"]
    async with Client(world, "operator") as http:
        live = (await http.get(f"/api/v1/calls/{call_id}")).json()
        assert live["disposition"] == "no_agent"
        path = f"/api/v1/calls/{call_id}/disposition"
        for text in ("", "x" * 65):
            assert (await http.post(path, json={"disposition": text})).status_code == 409
        done = await http.post(path, json={"disposition": "callback"})
        assert (done.status_code, done.json()["disposition"]) == (200, "callback")
        done = await http.post(path, json={"disposition": "call\rback\x1b[2J"})
        assert done.json()["disposition"] == "call back\\u001b[2J", "one line of a terminal"
        await http.post(path, json={"disposition": "callback"})
        long = await http.post(
            f"/api/v1/calls/{call_id}/transfer", json={"destination": "1" * 10**6}
        )
        assert (long.status_code, len(long.content) < 500) == (422, True)
        await world.summary_at_end(call)
        assert (await world.record(call))["disposition"] == "callback"
    world.behave(vad="off", answers=[{"kind": "silent"}])
    left = await world.dial("noted")
    assert (await world.summary_at_end(left))["disposition"] == "abandoned"


async def test_commands_act_on_the_call_and_are_audited(world: GatewayStack) -> None:
    call = await world.dial()
    call_id = (await world.gateway.wait("call.session_up", call=call.call_id))["call"]
    async with Client(world, "operator") as http:
        said = await http.post(f"/api/v1/calls/{call_id}/say", json={"text": "One moment."})
        assert said.status_code == 200, said.text
        hung = await http.post(f"/api/v1/calls/{call_id}/hangup")
        assert hung.json() == {"call": call_id}
    await call.hung_up()
    assert (await world.summary(call))["ending"]["why"] == "operator"
    line = await world.gateway.wait("api.audit", action="hangup", call=call_id)
    assert (line["who"], line["role"], line["result"]) == ("operator-one", "operator", "ok")


async def test_an_operator_holds_mutes_interrupts_and_presses_keys(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 30}, {"kind": "silent"}])
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await call.rtp.until(lambda: any(not is_silence(p) for p in call.rtp.packets))
    (name,) = world.gateway.ids_of(call.call_id)
    async with Client(world, "operator") as http:

        async def post(path: str, body: Any = None, status: int = 200) -> dict[str, Any]:
            answer = await http.post(f"/api/v1/calls/{name}/{path}", json=body)
            assert answer.status_code == status, answer.text
            return dict(answer.json())

        assert await post("responses/cancel") == {"call": name}
        await session.wait_until(lambda s: s.seen("conversation.item.truncate") != [], 20)
        await post("hold")
        before = len(call.rtp.packets)
        await call.rtp.until(lambda: sum(not is_silence(p) for p in call.rtp.packets[before:]) > 10)
        held = (await http.get(f"/api/v1/calls/{name}")).json()
        assert (held["state"], held["record"]["call_id"]) == ("held", name)
        refused = await post("dtmf", {"digits": "1"}, 409)
        assert "something else is being done" in refused["error"]["message"]
        await post("unhold")
        await post("unhold", status=409)
        await post("mute")
        unheard, heard = noise(1, 0.4), noise(2, 0.4)
        # Silence after it, so that none of it is still on its way when it is heard again.
        call.rtp.say(unheard + b"\xff" * 4000)
        await call.rtp.quiet()
        await post("unmute")
        call.rtp.say(heard)
        await all_arrives(session, heard[1600:], 20)
        assert unheard[:1600] not in bytes(session.received)
        await post("dtmf", {"digits": "12w#"})
        await call.rtp.until(lambda: "".join(key for key, _ in events_of(call)) == "12#")
        await post("dtmf", {"digits": "x"}, 409)
    await world.summary_at_end(call)


async def test_the_level_of_the_log_changes_while_it_runs(world: GatewayStack) -> None:
    async with Client(world) as http:
        assert (await http.get("/api/v1/log")).json() == {"level": "debug"}
        for level in ("info", "debug"):
            answer = await http.put("/api/v1/log", json={"level": level})
            assert answer.json() == {"level": level}
            call = await world.dial()
            await world.summary_at_end(call)
            assert bool(world.gateway.all("call.end", call=call.call_id)) is (level == "debug")
    line = await world.gateway.wait("api.audit", action="log", level_of_log="info")
    assert (line["who"], line["result"]) == ("admin-one", "ok")


async def test_all_calls_are_exported(world: GatewayStack) -> None:
    async with Client(world, "readonly") as http:
        call = await world.dial()
        await world.summary_at_end(call)
        wanted = {"sip_call_id": call.call_id}

        async def there() -> bool:
            found = (await http.get("/api/v1/calls", params=wanted)).json()
            return bool(found["calls"])

        await eventually(there, "its row")
        lines = (await http.get("/api/v1/calls/export", params=wanted)).text.splitlines()
        assert [json.loads(line)["sip_call_id"] for line in lines] == [call.call_id]
        table = await http.get("/api/v1/calls/export", params={**wanted, "format": "csv"})
        header, row = csv.reader(table.text.splitlines())
        assert dict(zip(header, row, strict=True))["route"] == "plain"


@pytest.mark.parametrize(
    "wrong",
    ["since=0001-01-01T00:00:00%2B01:00", "since=x", "limit=0", "number=%00", "direction=up"],
)
async def test_a_parameter_that_makes_no_sense(world: GatewayStack, wrong: str) -> None:
    async with Client(world, "readonly") as http:
        for path in ("/api/v1/calls", "/api/v1/calls/export"):
            if not (path.endswith("export") and wrong.startswith("limit")):
                answer = await http.get(f"{path}?{wrong}")
                assert answer.status_code == 422, answer.text
                assert answer.json()["error"]["param"] == f"query.{wrong.partition('=')[0]}"
        early = await http.get("/api/v1/calls?since=0001-01-01T00:00:00")
        assert early.status_code == 200, early.text


async def test_health_readiness_and_metrics_need_no_token(world: GatewayStack) -> None:
    async with Client(world, "") as http:
        assert (await http.get("/healthz")).json() == {"ok": True, "problems": {}}
        assert (await http.get("/readyz")).json() == {"ready": True, "reasons": {}}
        name, labels = "gateway_calls_ended_total", {"route": "plain", "outcome": "completed"}
        before = await metric(http, name, **labels)
        call = await world.dial()
        await world.summary_at_end(call)

        async def counted() -> bool:
            return await metric(http, name, **labels) == before + 1

        await eventually(counted, "counters")
        assert await metric(http, "gateway_ready") == 1
        assert await metric(http, "gateway_call_duration_seconds_count") >= 1
        assert await metric(http, "gateway_call_setup_seconds_count", stage="answered") >= 1
        text = (await http.get("/metrics")).text
    assert call.call_id not in text
    assert not any(line["call"] in text for line in world.gateway.all("call.summary"))


async def test_events_come_and_resume(world: GatewayStack) -> None:
    async with Client(world, "readonly") as http:
        seen: list[tuple[str, dict[str, Any]]] = []

        async def follow(last: str, count: int) -> None:
            headers = {"Last-Event-ID": last} if last else {}
            async with http.stream("GET", "/api/v1/events", headers=headers) as stream:
                number = ""
                async for line in stream.aiter_lines():
                    if line.startswith("id: "):
                        number = line.removeprefix("id: ")
                    if line.startswith("data: "):
                        seen.append((number, json.loads(line.removeprefix("data: "))))
                        if len(seen) == count:
                            return

        async with Client(world, "") as other:
            assert (await other.get("/api/v1/events")).status_code == 401
        following = asyncio.create_task(follow("", 3))
        await asyncio.sleep(0)
        while not following.done():  # the stream may begin after the first of them
            await world.summary_at_end(await world.dial())
        await following
        assert {event["type"] for _, event in seen} <= {
            *("call.incoming", "call.ringing", "call.answered", "call.ended"),
        }
        first = seen[0][0]
        after = seen[1:]
        seen.clear()
        await follow(first, 2)
        assert seen == after, "what came behind that id"


async def test_of_many_who_follow_at_once_no_more_than_the_limit_may(world: GatewayStack) -> None:
    address = world.gateway.all("api.listening")[-1]["address"]
    headers = {"Authorization": f"Bearer {TOKENS['readonly']}"}
    sockets: list[ClientConnection] = []
    statuses: list[int] = []

    async def follow() -> None:
        try:
            url = f"ws://{address}/api/v1/events"
            sockets.append(
                await connect(url, additional_headers=headers, proxy=None, open_timeout=WITHIN_S)
            )
        except InvalidStatus as refused:
            statuses.append(refused.response.status_code)

    await asyncio.gather(*(follow() for _ in range(MAX_FOLLOWERS + 20)))
    assert (len(sockets), set(statuses)) == (MAX_FOLLOWERS, {429})
    async with Client(world, "readonly") as http:
        assert (await http.get("/api/v1/events")).status_code == 429
        await asyncio.gather(*(one.close() for one in sockets))

        async def free() -> bool:
            async with http.stream("GET", "/api/v1/events") as stream:
                return stream.status_code == 200

        await eventually(free, "a place")


async def test_events_come_by_websocket_and_resume(world: GatewayStack) -> None:
    address = world.gateway.all("api.listening")[-1]["address"]
    uri = f"ws://{address}/api/v1/events"
    headers = {"Authorization": f"Bearer {TOKENS['readonly']}"}
    with pytest.raises(InvalidStatus) as refused:
        await connect(uri)
    assert refused.value.response.status_code == 401
    call = world.phone.call("plain")
    seen: list[dict[str, Any]] = []
    async with connect(uri, additional_headers=headers) as follower:
        call.invite()
        await call.answered()
        await world.gateway.wait("call.confirmed", call=call.call_id)
        name = (await world.summary_at_end(call))["call"]
        # The end of one before may be told late.
        while not seen or (seen[-1]["type"], seen[-1]["call_id"]) != ("call.ended", name):
            seen.append(json.loads(await follower.recv()))
    of_it = [one["type"] for one in seen if one["call_id"] == name]
    assert of_it[-2:] == ["call.answered", "call.ended"]
    async with connect(
        f"{uri}?after={seen[0]['last_event_id']}", additional_headers=headers
    ) as again:
        resumed = [json.loads(await again.recv()) for _ in seen[1:]]
    assert resumed == seen[1:], "what came behind that id"
    async with connect(f"{uri}?after=gone-1", additional_headers=headers) as late:
        assert json.loads(await late.recv())["type"] == "feed.gap"


async def test_bad_requests_are_refused_without_their_content(world: GatewayStack) -> None:
    async with Client(world, "operator") as http:
        wrong = await http.post("/api/v1/calls/x/say", json={"text": ["secret-quokka"]})
        assert wrong.status_code == 422
        assert wrong.json()["error"]["param"] == "body.text"
        assert "quokka" not in wrong.text
        long = await http.post("/api/v1/calls/x/say", content=b"x" * (3 * 1024 * 1024))
        assert long.status_code == 413
        unknown = await http.get("/api/v1/nothing")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")


async def test_draining_is_not_ready_and_ends_the_process(own_folder: Path) -> None:
    world = GatewayStack(own_folder, more=API, drain_seconds=30)
    starting = asyncio.create_task(world.start())
    await eventually(lambda: bool(world.gateway.all("api.listening")), "the API")
    async with Client(world) as http:
        while (ready := await http.get("/readyz")).status_code != 200:
            # Never 500: what is asked before SIP has started is answered, too.
            assert (ready.status_code, ready.json()["reasons"]["state"]) == (503, "starting")
            assert (await http.get("/metrics")).status_code == 200
            assert (await http.get("/api/v1/status")).status_code == 200
    await starting
    call = await world.dial()
    async with Client(world) as http:
        assert (await http.post("/api/v1/drain")).status_code == 202
        await world.gateway.wait("gateway.state", state="draining")
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["reasons"]) == (503, {"state": "draining"})
        assert (await http.get("/healthz")).status_code == 200
    await world.summary_at_end(call)
    await world.stop(await world.gateway.ended())


async def test_no_token_is_in_any_log(world: GatewayStack) -> None:
    async with Client(world) as http:
        await http.put("/api/v1/log", json={"level": "debug"})
    await eventually(lambda: bool(world.gateway.all("api.audit")), "an audit line")
    text = json.dumps(world.gateway.lines)
    assert not any(token in text for token in TOKENS.values())


def _answer(response: str) -> str:
    return response.split("\r\n", 1)[0].removeprefix("HTTP/1.1 ")


async def _said(world: GatewayStack, request: str) -> str:
    """What comes in answer to these bytes, until the connection ends or no more comes."""
    host, _, port = world.gateway.all("api.listening")[-1]["address"].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.encode("latin-1"))
    async with asyncio.timeout(WITHIN_S):
        said = await reader.read(65536)
    writer.close()
    return said.decode("latin-1")


async def test_without_a_token_no_body_is_read(world: GatewayStack) -> None:
    request = "POST /api/v1/calls HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n{"
    assert _answer(await _said(world, request)) == "401 Unauthorized"


async def test_nobody_is_sent_elsewhere_by_the_host_that_a_client_names(
    world: GatewayStack,
) -> None:
    request = "GET /api/v1/status/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    assert "evil" not in await _said(world, request)


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_connections_that_say_nothing_keep_nobody_out(world: GatewayStack) -> None:
    host, _, port = world.gateway.all("api.listening")[-1]["address"].rpartition(":")
    beginnings = ("", "GET /healthz HTT", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Le")
    held = []
    for number in range(CONNECTIONS + 60):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(beginnings[number % 3].encode())
        held.append((reader, writer))
    async with Client(world, "") as http:
        assert (await http.get("/healthz")).status_code == 200
    async with asyncio.timeout(WITHIN_S):
        for reader, _writer in held[:60]:  # those that waited for longest had to go
            with suppress(ConnectionError):
                assert await reader.read() == b""
    assert _descriptors(world.gateway.pid) < CONNECTIONS + 100
    for _reader, writer in held:
        writer.close()


@pytest.mark.parametrize(
    "beginning",
    [b"", b"GET / HTTP/1.1\r\nHost", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na"],
)
async def test_a_request_that_never_ends_is_given_up(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.2)

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    config = uvicorn.Config(app, http=connections.Connection, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: connections.Connection(config, state, {}), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(beginning)
    async with asyncio.timeout(WITHIN_S):
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    server.close()
    await asyncio.gather(*state.tasks)
    assert not state.connections


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


_ASKS_FOR_A_WEBSOCKET = tuple(f"{name}: {value}" for name, value in UPGRADE.items())


async def test_handshakes_that_cannot_be_read(world: GatewayStack) -> None:
    """Without a token: each is closed, and others are served however many there are."""
    address = world.gateway.all("api.listening")[-1]["address"]
    host, port = address.split(":")
    more = {
        "long": {"Sec-WebSocket-Extensions": "a;b=" * 3000},
        "many": {f"x-{number}": "y" for number in range(200)},
        "method": {},
    }
    for kind, fields in more.items():
        method = "POST" if kind == "method" else "GET"
        lines = [f"{method} /api/v1/browser-call?to=1 HTTP/1.1", "Host: x"]
        lines += [f"{name}: {value}" for name, value in {**UPGRADE, **fields}.items()]
        for _ in range(100):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            async with asyncio.timeout(WITHIN_S):
                assert (await reader.read()).startswith(b"HTTP/1.1 400 "), kind
            writer.close()
    async with Client(world, "") as http:
        assert (await http.get("/healthz")).status_code == 200


_TEXT_OF_NO_UTF_8 = b"\x81\x81\x00\x00\x00\x00\xff"
_CHUNKED = "Transfer-Encoding: chunked"
_ADMIN = f"Authorization: Bearer {TOKENS['admin']}"
WRONG: dict[str, tuple[str, tuple[str, ...], bytes]] = {
    "a WebSocket without a token": ("GET /api/v1/events", _ASKS_FOR_A_WEBSOCKET, b""),
    "a WebSocket to no call": ("GET /api/v1/calls/x/audio", (*_ASKS_FOR_A_WEBSOCKET, _ADMIN), b""),
    "a text that is no UTF-8": (
        "GET /api/v1/events",
        (*_ASKS_FOR_A_WEBSOCKET, _ADMIN),
        _TEXT_OF_NO_UTF_8,
    ),
    "a broken chunk behind the answer": ("POST /api/v1/calls", (_CHUNKED,), b"ZZ\r\n"),
    "a broken chunk beside an answer": ("GET /api/v1/events", (_CHUNKED, _ADMIN), b"ZZ\r\n"),
    "no HTTP behind an answer": ("GET /healthz", (), b"\0\0\r\n\r\n"),
}
"""First line and fields of a request, and what follows once it is answered."""


async def test_what_clients_send_is_no_error_of_ours(world: GatewayStack) -> None:
    """Each connection is closed, and the log has a line of the first such requests."""
    host, _, port = world.gateway.all("api.listening")[-1]["address"].rpartition(":")
    since = len(world.gateway.lines)
    for start, fields, behind in WRONG.values():
        for _ in range(4):
            reader, writer = await asyncio.open_connection(host, int(port))
            request = "\r\n".join((f"{start} HTTP/1.1", "Host: a", *fields, "", ""))
            writer.write(request.encode())
            async with asyncio.timeout(WITHIN_S):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(behind)
                with suppress(ConnectionError):
                    await reader.read()
            writer.close()
    async with Client(world) as http:
        await http.put("/api/v1/log", json={"level": "debug"})
    await eventually(lambda: bool(_since(world, since, "api.audit")), "an audit line")
    bad = [line for line in world.gateway.lines[since:] if line["level"] == "error"]
    assert not [line for line in bad if not had_no_cpu(dict(line))]
    counts = [line["count"] for line in world.gateway.all("api.invalid_request")]
    assert counts
    assert counts == [2**power for power in range(len(counts))]
    assert len(_since(world, since, "api.invalid_request")) < 12


def _since(world: GatewayStack, since: int, event: str) -> list[Any]:
    return [line for line in world.gateway.lines[since:] if line["event"] == event]


async def test_chunks_of_one_byte_rest_between_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them are one read, for which all calls would wait, of whoever has no token."""
    monkeypatch.setattr(connections, "SLOW_SECONDS", 0)
    read: list[int] = []
    rests: list[bool] = []

    class Noted(connections.Connection):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            read.append(len(data))
            rests.append(not self.transport.is_reading())

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all"})

    config = uvicorn.Config(app, http=Noted, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: Noted(config, state, {}), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 3000 + b"0\r\n\r\n")
    async with asyncio.timeout(WITHIN_S):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    server.close()
    await asyncio.gather(*state.tasks)
    assert max(read) <= connections.HTTP_READ_BYTES
    assert any(rests)


async def test_fields_that_are_slow_to_read(world: GatewayStack) -> None:
    """Libraries take minutes for such a cookie, and every call would stand still."""
    fields = ({"Cookie": 'a="' + "\\" * 60_000 + '"'}, {"Cookie": "a=b;" * 15_000})
    async with Client(world, "") as http:
        for given in fields:
            assert (await http.get("/healthz", headers=given)).status_code == 200
            assert (await http.get("/api/v1/calls", headers=given)).status_code == 401
        for origin in ("http://[", "//[::1", "null"):
            headers = {**UPGRADE, "Origin": origin}
            answer = await http.get("/api/v1/browser-call?to=1", headers=headers)
            assert answer.status_code == 403

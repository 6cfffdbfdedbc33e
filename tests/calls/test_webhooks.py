# SPDX-License-Identifier: GPL-2.0-or-later
"""Webhooks of real calls: signed, repeated until they arrive, and never doubled by their id."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from standardwebhooks.webhooks import Webhook

from gateway.records import webhooks
from gateway.records.spool import Delivery, Spool
from gateway.records.webhooks import Endpoint, Outbox, WebhookSender, signature
from tests.calls.test_operator import command
from tests.calls.test_records import KILLS, kill_while_calls_come, rows_of
from tests.support import figures
from tests.support.gateway_process import Gateway
from tests.support.harness import GatewayStack, eventually
from tests.support.http_service import Answer, HttpService, http_service
from tests.support.referred import dial

SECRET = "whsec_" + base64.b64encode(b"a key of webhooks, 32 bytes long").decode()
OTHER = "whsec_" + base64.b64encode(b"the key before that, also longer").decode()


def hooks(url: str, events: list[str]) -> str:
    """Lines of the configuration."""
    return (
        f'[[webhook]]\nname = "crm"\nurl = "{url}"\nsecret = "{SECRET}"\n'
        f'previous_secret = "{OTHER}"\nevents = {json.dumps(events)}\n'
    )


async def test_events_of_a_call_are_signed_for_official_clients(own_folder: Path) -> None:
    with http_service() as receiver:
        told = ["call.incoming", "call.answered", "call.ended"]
        world = GatewayStack(own_folder, more=hooks(receiver.url, told))
        await world.start()
        call = await world.dial("greeted")
        summary = await world.summary_at_end(call)
        await eventually(lambda: len(receiver.asked) >= 3, "three deliveries")
        lines = json.dumps(world.gateway.lines)
        await world.stop()
    assert SECRET not in lines
    by_type = {got.json["type"]: got for got in receiver.asked}
    assert sorted(by_type) == sorted(told)
    for got in receiver.asked:
        for secret in (SECRET, OTHER):
            Webhook(secret).verify(got.body, dict(got.headers))
        client = OpenAI(api_key="none", webhook_secret=SECRET)
        client.webhooks.verify_signature(got.body.decode(), dict(got.headers))
        assert got.headers["idempotency-key"] == got.headers["webhook-id"]
        assert got.json["data"]["call_id"] == summary["call"]
    assert by_type["call.ended"].json["data"]["outcome"] == "completed"
    order = [by_type[kind].json["data"]["sequence"] for kind in told]
    assert order == sorted(order)


async def test_deliveries_outlive_kill_9(own_folder: Path) -> None:
    with http_service() as receiver:
        receiver.answers = [Answer(503)]
        world = GatewayStack(own_folder, more=hooks(receiver.url, ["call.incoming", "call.ended"]))
        await world.start()
        call = await world.dial()
        call_id = (await world.gateway.wait("call.session_up", call=call.call_id))["call"]
        await eventually(lambda: len(receiver.asked) >= 1, "a first try")
        world.gateway.signal(signal.SIGKILL)
        await world.gateway.ended()
        await world.phone.forget(call)
        receiver.asked.clear()
        receiver.answers = [Answer(200)]
        world.gateway = Gateway(world.gateway.config)
        await world.gateway.start()
        await eventually(lambda: len(receiver.asked) >= 2, "both")
        await world.gateway.stop()
        await world.phone.stop()
        await world.emulator.stop()
    told = {got.json["type"]: got.json["data"] for got in receiver.asked}
    assert told["call.ended"]["why"] == "process_lost"
    assert {data["call_id"] for data in told.values()} == {call_id}


async def test_each_call_has_one_end_by_its_id_after_kill_9_at_random_moments(
    own_folder: Path,
) -> None:
    with http_service() as receiver:
        world = GatewayStack(own_folder, more=hooks(receiver.url, ["call.incoming", "call.ended"]))
        await world.start()
        answered = await kill_while_calls_come(world, kills=max(KILLS, 3), calls=20)
        assert len(answered) > 3

        def ids() -> dict[str, set[str]]:
            found: dict[str, set[str]] = {}
            for got in tuple(receiver.asked):
                if not got.body.endswith(b"}"):
                    continue  # it was cut off by a kill
                if got.json["type"] == "call.ended":
                    call = got.json["data"]["call_id"]
                    found.setdefault(call, set()).add(got.headers["webhook-id"])
            return found

        def all_told() -> bool:
            rows = rows_of(world)
            wanted = {row["id"] for one in answered for row in rows.get(one.call_id, ())}
            return len(wanted) == len(answered) and wanted <= ids().keys()

        await eventually(all_told, "the end of each call")
        await world.gateway.stop()
        await world.phone.stop()
        await world.emulator.stop()
    assert {len(each) for each in ids().values()} == {1}, "a repeated delivery has its first id"
    told = f"{len(ids())} calls, the end of each told by one id; {len(receiver.asked)} requests"
    figures.show(f"webhooks, kill -9 {max(KILLS, 3)} times", told)


def delivery(**fields: Any) -> Delivery:
    """A delivery that is due."""
    known = {"id": "m1", "endpoint": "crm", "call_id": "c1", "body": "{}", "created": 0.0}
    return Delivery(**{**known, "due": 0.0, **fields})


@asynccontextmanager
async def sending(folder: Path, receiver: HttpService) -> AsyncIterator[WebhookSender]:
    """A sender with one endpoint."""
    endpoint = Endpoint("crm", receiver.url, (SECRET,), frozenset({"call.ended"}), {"x-a": "b"})
    made = WebhookSender(folder, [endpoint], lambda: True)
    await made.start()
    yield made
    await made.stop()


async def test_what_fails_is_tried_again_and_given_up_when_it_is_no_use(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0.05,) * 5)
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "MAX_AGE", 1e12)
    spool = Spool(own_folder)
    spool.add([], [delivery()])
    with http_service() as receiver:
        async with sending(own_folder, receiver) as sender:
            receiver.answers = [Answer(500)]
            await eventually(lambda: len(receiver.asked) >= 3, "three tries")
            assert {got.headers["webhook-id"] for got in receiver.asked} == {"m1"}
            assert receiver.asked[0].headers["x-a"] == "b"
            receiver.answers = [Answer(403)]
            await eventually(lambda: sender.results["crm", "dead"] == 1, "given up")
            (dead,) = await sender.deliveries(dead=True)
            assert (dead.id, dead.error) == ("m1", "HTTP 403")
            receiver.answers = [Answer(200)]
            assert await sender.resend("m1") == 1
            await eventually(lambda: sender.results["crm", "delivered"] == 1, "delivered")
            assert await sender.deliveries(dead=True) == await sender.deliveries(dead=False) == []


@pytest.mark.parametrize(
    ("tries", "status", "wait", "age", "pause"),
    [
        (0, 0, 0.0, 0.0, 5.0),
        (1, 500, 0.0, 0.0, 30.0),
        (2, 429, 300.0, 0.0, 300.0),
        (2, 429, 9999.0, 0.0, 3600.0),
        (9, 503, 0.0, 0.0, 3600.0),
        (9, 503, 0.0, 72 * 3600.0, None),
        (0, 404, 0.0, 0.0, None),
        (0, 302, 0.0, 0.0, 5.0),
    ],
)
def test_when_the_next_try_is(
    monkeypatch: pytest.MonkeyPatch,
    tries: int,
    status: int,
    wait: float,
    age: float,
    pause: float | None,
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(webhooks, "uniform", lambda low, _high: low)
    found = webhooks._next_try(delivery(tries=tries, created=1e9 - age), status, wait)
    assert (None if found is None else found - 1e9) == pause


def test_an_event_goes_to_those_who_want_it() -> None:
    ends = Endpoint("a", "http://a", ("k",), frozenset({"call.ended"}), {})
    both = Endpoint("b", "http://b", ("k",), frozenset({"call.ended", "call.incoming"}), {})
    event = {"id": "e", "call_id": "c", "sequence": 1, "at": "t", "data": {"state": "x"}}
    found = Outbox([ends, both])({**event, "type": "call.incoming"})
    assert [one.endpoint for one in found] == ["b"]
    assert json.loads(found[0].body)["data"] == {"call_id": "c", "sequence": 1, "state": "x"}
    assert len(signature(("k", "l"), "e", 1, b"{}").split()) == 2


EVENTS = {
    *("call.incoming", "call.ringing", "call.answered", "call.ended"),
    *("call.transferring", "call.transferred", "call.transfer_failed"),
    *("call.budget", "call.trouble"),
}
HOOKED_ROUTES = """
[[route]]
name = "desk"
to = "^desk$"
greeting.say = "Hello."
[[route.transfer]]
name = "desk"
to = "sip:1002@pbx.example"
[[route]]
name = "poor"
to = "^poor$"
greeting.say = "Hello."
[route.budget]
per_call = 0.0001
"""


async def test_every_event_arrives_signed(own_folder: Path) -> None:
    with http_service() as receiver:
        more = hooks(receiver.url, sorted(EVENTS))
        world = GatewayStack(own_folder, routes=HOOKED_ROUTES, more=more)
        await world.start()
        words = {"kind": "pattern", "seconds": 0.2}
        wanted = {"name": "transfer_call", "arguments": '{"destination": "desk"}'}
        for outcome in ("200 OK", "486 Busy Here"):
            world.behave(vad="off", answers=[{"kind": "nothing", "tools": [wanted]}, words])
            call = await dial(world, "desk")
            await call.asked()
            call.notify("180 Ringing")
            call.notify(outcome, last=True)
            if outcome != "200 OK":
                await world.gateway.wait("call.transfer_failed", call=call.call_id)
                await call.hang_up()
            await world.gateway.wait("call.summary", call=call.call_id)
        world.behave(answers=[{"kind": "pattern", "seconds": 2}])
        poor = world.phone.call("poor")
        poor.invite()
        await poor.answered()
        await world.gateway.wait("call.summary", call=poor.call_id)
        world.behave(end={"code": 1011, "after_s": 0.3, "first_sessions": 1})
        lost = await world.dial("desk")
        await world.gateway.wait("call.session_replaced", call=lost.call_id)
        await world.summary_at_end(lost)
        with suppress(AssertionError):  # a delivery that is missing is named below
            await eventually(
                lambda: {got.json["type"] for got in tuple(receiver.asked)} >= EVENTS,
                "all events",
            )
        await world.stop()
    assert {got.json["type"] for got in receiver.asked} == EVENTS
    ids = [got.headers["webhook-id"] for got in receiver.asked]
    assert len(ids) == len(set(ids))
    for got in receiver.asked:
        Webhook(SECRET).verify(got.body, dict(got.headers))
        data = got.json["data"]
        assert data.keys() >= {"call_id", "sequence", "state", "direction", "route"}


def broken_tls(folder: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody has signed."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def serve(kind: str, folder: Path, asked: list[bytes]) -> tuple[asyncio.Server, str]:
    """A receiver that misbehaves, and its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        with suppress(OSError):
            if kind == "hangs":
                await reader.read()
            elif kind == "endless":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
            elif kind == "garbage":
                writer.write(b"\0\1 what\r\n\r\n")
            elif kind == "bomb":
                packed = gzip.compress(bytes(40_000_000))
                head = f"Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n" + head.encode() + packed)
            elif kind.startswith("later"):
                after = kind.removeprefix("later ").encode()
                writer.write(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nRetry-After: ")
                writer.write(after + b"\r\n\r\n")
            elif kind == "redirect":
                writer.write(
                    b"HTTP/1.1 307 No\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
                )
        writer.close()

    tls = broken_tls(folder) if kind == "tls" else None
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    return server, f"http{'s' if tls else ''}://127.0.0.1:{port}/hook"


@pytest.mark.parametrize(
    ("kind", "result", "error"),
    [
        ("hangs", "failed", "TimeoutError"),
        ("endless", "delivered", ""),
        ("garbage", "failed", "RemoteProtocolError"),
        ("redirect", "failed", "HTTP 307"),
        ("bomb", "delivered", ""),
        ("later ²", "failed", "HTTP 503"),
        ("later " + "9" * 5000, "failed", "HTTP 503"),
        ("tls", "failed", "CERTIFICATE_VERIFY_FAILED"),
    ],
)
async def test_receivers_that_misbehave(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, result: str, error: str
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 1.0 if kind == "hangs" else 30.0)
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "MAX_AGE", 1e12)
    Spool(own_folder).add([], [delivery()])
    asked: list[bytes] = []
    server, url = await serve(kind, own_folder, asked)
    endpoint = Endpoint("crm", url, (SECRET,), frozenset({"call.ended"}), {})
    sender = WebhookSender(own_folder, [endpoint], lambda: True)
    await sender.start()
    await eventually(lambda: sender.results["crm", result] == 1, result)
    waiting = await sender.deliveries(dead=False)
    await sender.stop()
    server.close()
    if result == "failed":
        assert [one.tries for one in waiting] == [1]
        assert error in waiting[0].error
    else:
        assert waiting == []
    assert len(asked) == (0 if kind == "tls" else 1)
    assert sum(sender.seconds["crm"].counts) == 1


async def test_the_spool_is_closed_once_nobody_reads_it(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled look goes on in its thread: without its connection it would end the process."""
    reads, go_on, steps = threading.Event(), threading.Event(), list[str]()

    def due(_spool: Spool, _now: float, _count: int) -> list[Delivery]:
        reads.set()
        go_on.wait(30)
        steps.append("read")
        return []

    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 0.1)
    monkeypatch.setattr(webhooks, "CLOSE_SECONDS", 60.0)
    monkeypatch.setattr(Spool, "due", due)
    monkeypatch.setattr(Spool, "close", lambda _spool: steps.append("closed"))
    endpoint = Endpoint("crm", "http://127.0.0.1:9", (SECRET,), frozenset({"call.ended"}), {})
    sender = WebhookSender(own_folder, [endpoint], lambda: True)
    await sender.start()
    await eventually(reads.is_set, "a look into the spool")
    stopping = asyncio.create_task(sender.stop())
    await eventually(lambda: sender._client is not None and sender._client.is_closed, "its stop")
    go_on.set()
    await stopping
    assert steps[0] == "read"
    assert "closed" in steps


async def test_an_endpoint_that_is_gone_gets_nothing_more_until_it_is_asked_for(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "PER_ENDPOINT", 1)
    Spool(own_folder).add([], [delivery(id=f"m{n}") for n in range(5)])
    with http_service() as receiver:
        receiver.answers = [Answer(410)]
        async with sending(own_folder, receiver) as sender:
            await eventually(lambda: sender.results["crm", "dead"] == 5, "all given up")
            assert len(receiver.asked) == 1
            assert await sender.waiting() == {"crm": (0, None, 5)}
            receiver.answers = [Answer(200)]
            assert await sender.resend("*") == 5
            await eventually(lambda: sender.results["crm", "delivered"] == 5, "all delivered")


async def test_the_command_lists_and_resends(own_folder: Path) -> None:
    with http_service() as receiver:
        receiver.answers = [Answer(403)]
        more = hooks(receiver.url, ["call.ended"]) + '[control]\nsocket = "gateway.sock"\n'
        world = GatewayStack(own_folder, more=more)
        await world.start()
        summary = await world.summary_at_end(await world.dial("greeted"))
        await world.gateway.wait("webhook.dead")
        status, said = await command(world, "webhooks", "--dead")
        assert (status, summary["call"] in said, "HTTP 403" in said) == (0, True, True)
        receiver.answers = [Answer(200)]
        assert await command(world, "webhooks", "--resend", "all") == (0, "tried anew: 1\n")
        await eventually(lambda: len(receiver.asked) == 2, "delivered")
        assert (await command(world, "webhooks", "--resend", "none"))[0] == 1
        await world.stop()
    assert receiver.asked[0].headers["webhook-id"] == receiver.asked[1].headers["webhook-id"]

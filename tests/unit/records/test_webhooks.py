# SPDX-License-Identifier: GPL-2.0-or-later
"""Deliveries to webhooks: signed, tried again, given up."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.records import webhooks
from gateway.records.spool import Delivery, Spool
from gateway.records.webhooks import Endpoint, Outbox, WebhookSender, signature
from tests.support.harness import eventually
from tests.support.http_service import Answer, HttpService, http_service

SECRET = "whsec_" + base64.b64encode(b"a key of webhooks, 32 bytes long").decode()


async def test_a_spool_that_hangs_takes_no_thread_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the event loop's pool are few."""
    go_on = threading.Event()
    monkeypatch.setattr(Spool, "waiting", lambda _spool: (go_on.wait(30), {})[1])
    sender = WebhookSender(tmp_path, [Endpoint("a", "", (), frozenset(), {})], lambda: True)
    asked = [asyncio.create_task(sender.waiting()) for _ in range(40)]
    try:
        async with asyncio.timeout(15):
            await asyncio.sleep(0)
            assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        go_on.set()
    assert [await one for one in asked] == [{"a": (0, None, 0)}] * 40


async def test_a_spool_that_hangs_does_not_hold_up_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, closed = threading.Event(), threading.Event()

    def close(_spool: Spool) -> None:
        go_on.wait(60)
        closed.set()

    monkeypatch.setattr(webhooks, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(Spool, "close", close)
    sender = WebhookSender(tmp_path, [], lambda: False)
    await sender.start()
    await sender.stop()
    assert not closed.is_set()
    go_on.set()


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0.05,) * 5)
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "MAX_AGE", 1e12)
    spool = Spool(tmp_path)
    spool.add([], [delivery()])
    with http_service() as receiver:
        async with sending(tmp_path, receiver) as sender:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, result: str, error: str
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 1.0 if kind == "hangs" else 30.0)
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "MAX_AGE", 1e12)
    Spool(tmp_path).add([], [delivery()])
    asked: list[bytes] = []
    server, url = await serve(kind, tmp_path, asked)
    endpoint = Endpoint("crm", url, (SECRET,), frozenset({"call.ended"}), {})
    sender = WebhookSender(tmp_path, [endpoint], lambda: True)
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
    # One that hangs has so little time that a busy machine may not have asked.
    assert len(asked) in {"tls": (0,), "hangs": (0, 1)}.get(kind, (1,))
    assert sum(sender.seconds["crm"].counts) == 1


async def test_the_spool_is_closed_once_nobody_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    sender = WebhookSender(tmp_path, [endpoint], lambda: True)
    await sender.start()
    await eventually(reads.is_set, "a look into the spool")
    stopping = asyncio.create_task(sender.stop())
    await eventually(lambda: sender._client is not None and sender._client.is_closed, "its stop")
    go_on.set()
    await stopping
    assert steps[0] == "read"
    assert "closed" in steps


async def test_an_endpoint_that_is_gone_gets_nothing_more_until_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "PER_ENDPOINT", 1)
    Spool(tmp_path).add([], [delivery(id=f"m{n}") for n in range(5)])
    with http_service() as receiver:
        receiver.answers = [Answer(410)]
        async with sending(tmp_path, receiver) as sender:
            await eventually(lambda: sender.results["crm", "dead"] == 5, "all given up")
            assert len(receiver.asked) == 1
            assert await sender.waiting() == {"crm": (0, None, 5)}
            receiver.answers = [Answer(200)]
            assert await sender.resend("*") == 5
            await eventually(lambda: sender.results["crm", "delivered"] == 5, "all delivered")

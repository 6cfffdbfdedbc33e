# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may use which path of the API, as its description says; and who guesses tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import structlog
from fastapi import FastAPI

from gateway.api import access
from gateway.api.access import Access
from gateway.api.backend import Backend, EventFeed, Refusal, Role, Token, hash_of
from gateway.api.server import make_app

ROLES = ["", "wrong", "application", "readonly", "operator", "admin"]
TOKENS = tuple(Token(role, Role[role.upper()], hash_of(f"gw_{role}")) for role in ROLES[2:])
ROW = {"id": "c1", "direction": "inbound", "route": "r", "trunk": "", "invited_at": "2026-01-01"}


class Hosted:
    """Calls of applications of which there is none."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: object) -> None:
            raise Refusal(404, "call_id_not_found", name)

        return refuse


def app(live: Sequence[dict[str, Any]] = (), recordings: Path | None = None) -> FastAPI:
    """The API of a process whose every command does nothing."""

    class Commands(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            trunks = [{"name": "a"}]
            return lambda request: {"call": request.get("call", "c1"), "trunks": trunks}

    async def metrics() -> bytes:
        return b""

    async def reload() -> Mapping[str, Any]:
        return {"applied": True}

    return make_app(
        Backend(
            commands=Commands(),
            live=lambda: list(live),
            record=lambda _call: None,
            database=None,
            feed=EventFeed("boot"),
            ready=dict,
            problems=dict,
            metrics=metrics,
            drain=lambda: None,
            reload=reload,
            applications=cast(Any, Hosted()),
            recordings=recordings,
        ),
        TOKENS,
    )


APP = app()
SCHEMA = APP.openapi()
OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in SCHEMA["paths"].items()
    for method, operation in methods.items()
]


def client(made: FastAPI, role: str = "") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer gw_{role}"} if role else {}
    transport = httpx.ASGITransport(made, client=("192.0.2.1", 5))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


def example(schema: Mapping[str, Any]) -> Any:
    """The least value that a schema takes."""
    if "$ref" in schema:
        return example(SCHEMA["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return example(schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        wanted = schema.get("required", ())
        return {name: example(schema["properties"][name]) for name in wanted}
    return {"string": "7", "integer": 1, "boolean": True}[schema["type"]]


def request_of(path: str, operation: Mapping[str, Any]) -> tuple[str, Any]:
    """The path with its parameters, and the body."""
    for one in operation.get("parameters", ()):
        if one["in"] == "path":
            path = path.replace(f"{{{one['name']}}}", str(example(one["schema"])))
    content = operation.get("requestBody", {}).get("content", {})
    body = content.get("application/json")
    return path, None if body is None else example(body["schema"])


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=[f"{one[0]} {one[1]}" for one in OPERATIONS]
)
async def test_each_path_is_for_its_role_and_those_above(
    method: str,
    path: str,
    operation: Mapping[str, Any],
    role: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "FREE_FAILURES", 10_000)
    needed = operation["x-role"]  # a path without a role is a mistake
    if path == "/api/v1/events":
        method, path = "GET", "/api/v1/events?after=" + "x" * 5000  # an error, where it is allowed
    path, body = request_of(path, operation)
    async with client(APP, role) as http:
        answer = await http.request(method, path, json=body)
    known = role in ROLES[2:]
    if needed == "none":
        allowed = True
    elif needed == "application":
        allowed = role == "application"
    else:
        allowed = known and Role[role.upper()] >= Role[needed.upper()]
    if allowed:
        assert answer.status_code not in (401, 403), answer.text
        assert answer.status_code < 500, answer.text
        assert str(answer.status_code) in operation["responses"], answer.status_code
    else:
        assert answer.status_code == (403 if known else 401), answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) >= {"code", "message"}


@pytest.mark.parametrize("body", [b"\xff", b"{", b"[]", b'{"text": 5}'])
async def test_a_body_that_makes_no_sense(body: bytes) -> None:
    async with client(APP, "admin") as http:
        headers = {"Content-Type": "application/json"}
        answer = await http.post("/api/v1/calls/c/say", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["param"].startswith("body")


def test_the_description_names_every_answer() -> None:
    schemas = SCHEMA["components"]["schemas"]
    for method, path, operation in OPERATIONS:
        where = f"{method} {path}"
        assert operation.get("description"), where
        assert operation["x-role"] == "none" or operation["security"] == [{"token": []}], where
        if path.startswith("/api/"):
            told = operation["responses"]["401"]["content"]["application/json"]["schema"]
            assert told["$ref"].rpartition("/")[2] == "Failure", where
    assert SCHEMA["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert {"Row", "Rows", "Whole", "Failure", "Trunks", "Dial"} <= schemas.keys()


async def test_who_guesses_tokens_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("gateway.api.access.asyncio.sleep", sleep)
    made = app()
    with structlog.testing.capture_logs() as lines:
        async with client(made, "guess") as http:
            for _ in range(12):
                assert (await http.get("/api/v1/calls")).status_code == 401
        async with client(made, "admin") as http:
            assert (await http.get("/api/v1/calls")).status_code == 200
    assert waited == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]
    told = [line for line in lines if line["event"] == "api.login_failed"]
    assert [(line["source"], line["count"]) for line in told] == [
        ("192.0.2.1", count) for count in (4, 5, 7, 11)
    ]


async def test_of_many_who_guess_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_DELAYED", 2)
    monkeypatch.setattr(access, "FREE_FAILURES", 0)
    guarded = Access(TOKENS)
    waiting = [asyncio.create_task(guarded.refuse(f"192.0.2.{n}")) for n in range(2)]
    await asyncio.sleep(0)
    refused = await guarded.refuse("192.0.2.9")
    assert refused is not None
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "8")
    for task in waiting:
        task.cancel()


def test_sources_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_SOURCES", 10)
    monkeypatch.setattr(access, "FORGET_SECONDS", 1e-9)

    async def run() -> None:
        guarded = Access(TOKENS)
        assert [guarded.failed("192.0.2.1") for _ in range(20)] == [0.0] * 20
        for number in range(50):
            guarded.failed(f"2001:db8:{number}::1")
        assert len(guarded._failures) == 10

    asyncio.run(run())


async def test_a_recording_that_grows_while_it_is_read_is_as_long_as_it_was(
    tmp_path: Path,
) -> None:
    made = app([ROW], tmp_path)
    file = tmp_path / "20260101_c1.wav"
    file.write_bytes(bytes(100_000))
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        with file.open("ab") as more:
            more.write(bytes(1000))

    path = "/api/v1/calls/c1/recording"
    headers = [(b"authorization", b"Bearer gw_operator")]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b""}
    await cast(Any, made)(scope, receive, send)
    assert dict(sent[0]["headers"])[b"content-length"] == b"100000"
    assert sum(len(message["body"]) for message in sent[1:]) == 100_000

# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools that are HTTP requests, against a real server."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.call.plan import GuardrailPlan
from gateway.config import ConfigError
from gateway.dialplan import load_dialplan
from gateway.planning.check import check, load_all
from gateway.planning.route_tools import tool_executor
from gateway.tools import Question, ToolCall, http
from gateway.tools.executor import ToolExecutor
from gateway.tools.http import MAX_BODY, MAX_PAUSE, HttpClient, _retry_after
from tests.support.config import load_config
from tests.support.http_service import Answer, HttpService, http_service

CONFIG = """
[realtime]
url = "ws://127.0.0.1:8765"
[dialplan]
folder = "routes"
[tools]
max_result_chars = 200
"""
ROUTE = """
[[route]]
name = "r"
to = "^(?P<room>[0-9]+)$"
"""


@pytest.fixture
def service() -> Iterator[HttpService]:
    """A service."""
    with http_service() as made:
        yield made


def executor_of(folder: Path, tool: str, environ: dict[str, str] | None = None) -> ToolExecutor:
    """The tools of a gateway with this dialplan."""
    (folder / "routes").mkdir()
    (folder / "routes" / "r.toml").write_text(ROUTE + tool)
    (folder / "gateway.toml").write_text(CONFIG)
    return tool_executor(*load_all(folder / "gateway.toml", environ or {}))


def use(folder: Path, tool: str, arguments: str = "{}", **environ: str) -> str:
    """What the model gets from the only tool."""

    async def main() -> str:
        box = executor_of(folder, tool, environ)
        (name,) = box.of("r")
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        call = ToolCall(
            "c1",
            name,
            arguments,
            "call\r\n-1",
            "r",
            "sip:alice@example",
            variables={"from": "+49 30/1", "room": "../7"},
        )
        box.run(call, result.set_result)
        try:
            return await result
        finally:
            await box.stop()

    return asyncio.run(main())


def hook(url: str, more: str = "") -> str:
    """A ``[[route.tool]]``."""
    return f"""
[[route.tool]]
name = "guest"
description = "Who is in a room."
url = "{url}"
{more}
"""


def test_post(tmp_path: Path, service: HttpService) -> None:
    service.answers = [Answer(body='{\n  "name": "Ann"\n}')]
    more = """
headers = { Authorization = "Bearer ${env:TOKEN}" }
[route.tool.fields]
nights = "integer"
kind = { type = "string", enum = ["single", "double"], optional = true }
"""
    tool = hook(service.url + "/rooms/{room}?by={from}", more)
    assert use(tmp_path, tool, '{"nights": 2}', TOKEN="s3cret") == '{"name":"Ann"}'
    (asked,) = service.asked
    assert asked.method == "POST"
    assert asked.path == "/rooms/..%2F7?by=%2B49%2030%2F1", "nothing of a caller's is an address"
    assert asked.json == {"nights": 2}
    assert asked.headers["authorization"] == "Bearer s3cret"
    assert asked.headers["x-gateway-call"] == "call-1"
    assert asked.headers["idempotency-key"] == "call-1:c1"


def test_get(tmp_path: Path, service: HttpService) -> None:
    fields = 'method = "GET"\nfields = { city = "string", days = "integer", exact = "boolean" }'
    tool = hook(service.url + "/{arg.city}/weather?lang=en", fields)
    use(tmp_path, tool, '{"city": "a/b?c", "days": 3, "exact": true}')
    assert service.asked[0].path == "/a%2Fb%3Fc/weather?lang=en&days=3&exact=true"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 3 ", 3.0),
        ("6", MAX_PAUSE),
        ("3600", MAX_PAUSE),
        ("9" * 5000, MAX_PAUSE),
        ("-1", None),
        ("1.5", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("\u00b2", None),
        ("", None),
    ],
)
def test_a_service_says_when_to_come_again(value: str, seconds: float | None) -> None:
    response = httpx.Response(503, headers=[(b"Retry-After", value.encode())])
    assert _retry_after(response) == seconds


@pytest.mark.parametrize(
    ("answers", "more", "result", "times"),
    [
        ([Answer(404, '{"detail": "no such room"}')], "", 'answered 404: {\\"detail', 1),
        ([Answer(503), Answer(body="ok")], 'method = "GET"', "ok", 2),
        ([Answer(503), Answer(body="ok")], "idempotent = true", "ok", 2),
        ([Answer(503), Answer(body="ok")], "", "answered 503", 1),
        ([Answer(503)], 'method = "PUT"\nretries = 1', "answered 503", 2),
        ([Answer(429, headers={"Retry-After": "0"}), Answer(body="ok")], 'method = "GET"', "ok", 2),
        ([Answer(hang_up=True), Answer(body="ok")], 'method = "GET"', "ok", 2),
        ([Answer(hang_up=True), Answer(body="ok")], "", "whether it was done is not known", 1),
        ([Answer(302, headers={"Location": "/elsewhere"})], "", "answered 302", 1),
        ([Answer(body="x" * 300)], "", "[cut: only the first 200 characters", 1),
        ([Answer(body="x" * (MAX_BODY + 1))], "", "larger than", 1),
    ],
)
def test_what_comes_back(
    tmp_path: Path,
    service: HttpService,
    answers: list[Answer],
    more: str,
    result: str,
    times: int,
) -> None:
    service.answers = answers
    assert result in use(tmp_path, hook(service.url + "/x", more))
    assert len(service.asked) == times


def test_an_answer_that_comes_too_late(tmp_path: Path, service: HttpService) -> None:
    service.answers = [Answer(seconds=30)]
    tool = hook(service.url, 'timeout = 0.2\nmethod = "GET"')
    assert "no result within 0.2 s" in use(tmp_path, tool)
    assert len(service.asked) <= 1, "it is not asked for again"


def test_nobody_there(tmp_path: Path) -> None:
    tool = hook("http://127.0.0.1:1/path?token=s3cret", "retries = 1")
    assert use(tmp_path, tool) == '{"error": "127.0.0.1 cannot be reached"}'


def test_arguments_are_checked_before_anything_is_sent(
    tmp_path: Path, service: HttpService
) -> None:
    tool = hook(service.url, 'fields = { nights = { type = "integer", minimum = 1 } }')
    said = use(tmp_path, tool, '{"nights": 0, "x": 1}')
    assert "nights: 0 is less than the minimum of 1" in said
    assert "'x' was unexpected" in said
    assert service.asked == []


@pytest.mark.parametrize(
    ("answer", "approve", "reason"),
    [
        (Answer(body='{"approve": true}'), True, ""),
        (Answer(body='{"approve": false, "reason": "too much"}'), False, "too much"),
        (Answer(body='{"approve": "yes"}'), False, ""),
        (Answer(body="[]"), False, "the answer was not understood"),
        (Answer(body="yes"), False, "the answer was not understood"),
        (Answer(500), False, "nobody could be asked"),
        (Answer(seconds=30), False, "nobody answered in time"),
    ],
)
def test_the_operator_is_asked(
    tmp_path: Path, service: HttpService, answer: Answer, approve: bool, reason: str
) -> None:
    service.answers = [answer]
    rule = f"""
[[route.approval]]
tool = "guest"
policy = "allow"
[[route.approval]]
tool = "*"
policy = "ask_http"
url = "{service.url}/approve"
headers = {{ X-Key = "k" }}
timeout = {0.2 if answer.seconds else 20.0}
"""

    async def main() -> tuple[bool, str]:
        box = executor_of(tmp_path, rule)
        result: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()
        call = ToolCall("c1", "refund", '{"amount": 3}', "call-1", "r", "sip:a@b", "sip:c@d")
        box.ask(Question(call, 1), lambda yes, why: result.set_result((yes, why)))
        try:
            return await result
        finally:
            await box.stop()

    assert asyncio.run(main()) == (approve, reason)
    if answer.seconds:
        return  # on a busy machine the question may not have come in that time
    assert service.asked[0].json == {
        "call": "call-1",
        "route": "r",
        "caller": "sip:a@b",
        "called": "sip:c@d",
        "tool": "refund",
        "arguments": {"amount": 3},
    }
    assert service.asked[0].headers["x-key"] == "k"


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        (hook("http://{from}/x"), "must not have variables in the host"),
        (hook("ftp://x/y"), "must begin with http:// or https://"),
        (hook("http://a:b@x/y"), "must not carry user or password"),
        (hook("http://x/{arg.room}"), "there is no parameter for {arg.room}"),
        (hook("http://x/{romm}"), 'did you mean "room"?'),
        (hook("http://x", "fields = { a = { type = 3 } }"), "is no JSON Schema"),
        (hook("http://x", 'parameters = { type = "string" }'), 'of type "object"'),
        (hook("http://x", 'headers = { Host = "y" }'), "is set by the gateway"),
        (hook("http://x", 'filler_text = "Wait."'), "filler_text and filler_sound need a time"),
        (hook("http://x").replace('"guest"', '"end_call"'), "built-in tool"),
        (hook("http://x").replace('"guest"', '"a b"'), "must be 1 to 64 letters"),
        (hook("http://x") + hook("http://y"), "'guest' is used twice"),
        (
            'tools = ["gest"]\n[[tool]]\nname = "guest"\ndescription = "x"\nurl = "http://x"',
            'did you mean "guest"?',
        ),
        ('mcp = ["crm"]', 'there is no [[tools.mcp]] "crm"'),
        (
            '[[route.approval]]\ntool = "x"\npolicy = "ask_http"',
            'is needed for policy = "ask_http"',
        ),
        ('[[route.approval]]\ntool = "x"\npolicy = "ask_caller"\nurl = "http://x"', "only"),
        ('[route.set_language]\nlanguages = { German = "de" }', "is not a language code"),
        ('[route.set_language]\ninstruction = "x"', "must contain {language}"),
    ],
)
def test_mistakes(tmp_path: Path, tool: str, words: str) -> None:
    (tmp_path / "routes").mkdir()
    (tmp_path / "routes" / "r.toml").write_text(ROUTE + tool)
    (tmp_path / "gateway.toml").write_text(CONFIG)
    with pytest.raises(ConfigError) as caught:
        load_all(tmp_path / "gateway.toml", {})
    assert words in str(caught.value), str(caught.value)
    assert "r.toml:" in str(caught.value)


def test_tools_that_routes_share(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        """
[[tool]]
name = "guest"
description = "x"
url = "http://x/{from}"
headers = { X-Key = "s3cret" }
[[route]]
name = "one"
tools = ["gu*"]
[[route]]
name = "two"
"""
    )
    plan = load_dialplan(tmp_path, {})
    assert "s3cret" in plan.secrets()
    (tmp_path / "routes").mkdir()
    (tmp_path / "gateway.toml").write_text(CONFIG)

    async def names() -> list[list[str]]:
        box = tool_executor(load_config(tmp_path / "gateway.toml", {}), plan)
        told: list[list[Any]] = [
            [one["name"] for one in box.definitions(r)] for r in ("one", "two")
        ]
        await box.stop()
        return told

    assert asyncio.run(names()) == [["guest"], []]


def test_what_is_seldom_meant(tmp_path: Path) -> None:
    (tmp_path / "routes").mkdir()
    tool = """
[[tool]]
name = "unused"
description = "x"
url = "http://other.example/x?a=b"
headers = { X-Key = "k" }
[[route]]
name = "r"
mcp = ["crm"]
[[route.approval]]
tool = "refnd"
policy = "deny"
"""
    (tmp_path / "routes" / "r.toml").write_text(tool)
    server = '[[tools.mcp]]\nname = "crm"\nclient = "provider"\nurl = "https://x/mcp"\n'
    config = CONFIG + server + 'require_approval = "always"\n'
    (tmp_path / "gateway.toml").write_text(config.replace('8765"', '8765"\ndialect = "beta"'))
    status, told = check(tmp_path / "gateway.toml", {})
    assert status == 0, told
    assert "the dialect beta knows no MCP; crm will not be there" in "\n".join(told)
    text = "\n".join(told)
    assert "  tools     0 in Python, 1 over HTTP, MCP servers: crm" in text
    assert "no route offers unused" in text
    assert "http://other.example/x gets secrets unencrypted" in text
    assert 'route r: no tool fits the approval of "refnd"' in text
    assert "tools of crm need approval, but no rule approves them" in text


def test_through_a_proxy(tmp_path: Path, service: HttpService) -> None:
    service.answers = [Answer(body="from the proxy")]
    (tmp_path / "routes").mkdir()
    (tmp_path / "routes" / "r.toml").write_text(ROUTE + hook("http://pms.example/x"))
    (tmp_path / "gateway.toml").write_text(CONFIG + f'http_proxy = "{service.url}"\n')

    async def main() -> str:
        box = tool_executor(*load_all(tmp_path / "gateway.toml", {}))
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        box.run(ToolCall("c", "guest", "{}", "call-1", "r"), result.set_result)
        try:
            return await result
        finally:
            await box.stop()

    assert asyncio.run(main()) == "from the proxy"
    assert service.asked[0].path == "http://pms.example/x"


def test_a_compressed_answer_is_read(tmp_path: Path, service: HttpService) -> None:
    body = gzip.compress(b'{"name": "Ann"}')
    service.answers = [Answer(body=body, headers={"Content-Encoding": "gzip"})]
    assert use(tmp_path, hook(service.url)) == '{"name":"Ann"}'
    assert service.asked[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("coding", "body", "words"),
    [
        ("gzip", gzip.compress(bytes(64 * MAX_BODY), 1, mtime=0), f"larger than {MAX_BODY} bytes"),
        ("deflate", zlib.compress(bytes(64 * MAX_BODY), 1), f"larger than {MAX_BODY} bytes"),
        ("gzip", b"no gzip at all", "cannot be decompressed"),
        ("br", b"\x0b\x02\x80", "content coding that was not asked for"),
        ("gzip, gzip", gzip.compress(b"{}", mtime=0), "content coding that was not asked for"),
    ],
)
def test_a_compressed_answer_is_never_larger_than_its_bound(
    tmp_path: Path, service: HttpService, coding: str, body: bytes, words: str
) -> None:
    service.answers = [Answer(body=body, headers={"Content-Encoding": coding})]
    tracemalloc.start()
    try:
        assert words in use(tmp_path, hook(service.url))
        assert tracemalloc.get_traced_memory()[1] < 24 * MAX_BODY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(body='{"allow": true}'), (True, "")),
        (Answer(body='{"allow": false, "reason": "rude"}'), (False, "rude")),
        (Answer(body='{"allow": "yes"}'), (None, "the answer was not understood")),
        (Answer(body="<html>"), (None, "the answer was not understood")),
        (Answer(status=500), (None, "nobody could be asked")),
        (Answer(body='{"allow": false}', seconds=30), (None, "too late")),
    ],
)
def test_somebody_is_asked_over_http(answer: Answer, verdict: http.Verdict) -> None:
    async def asked(url: str) -> http.Verdict:
        client = HttpClient(2)
        timeout = 0.2 if answer.seconds else 20.0
        rule = GuardrailPlan(url=url, headers={"X-Key": "k"}, timeout=timeout, name="g")
        call = ToolCall("key", "agent", "One sentence.", call="c1", route="r")
        try:
            return await http.ask_content(client, rule, call)
        finally:
            await client.close()

    with http_service() as service:
        service.answers = [answer]
        assert asyncio.run(asked(service.url)) == verdict
    if answer.seconds:
        return  # on a busy machine the question may not have come in that time
    (request,) = service.asked
    assert request.headers["x-key"] == "k"
    assert (request.json["who"], request.json["text"]) == ("agent", "One sentence.")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces of real calls, as a collector of OpenTelemetry gets them, and their context elsewhere."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.calls.test_tools import calls
from tests.calls.test_webhooks import hooks
from tests.support.harness import GatewayStack, eventually
from tests.support.http_service import Answer, Asked, HttpService, http_service

HERE = Path(__file__).parents[1] / "support"
KEY = "key-of-the-collector-17"

MORE = """
[tracing]
endpoint = "{collector}/v1/traces"
headers = {{ X-Key = "{key}" }}
"""
MCP = f"""
[[tools.mcp]]
name = "crm"
command = ["python3", "{HERE / "mcp_double.py"}"]
connect_timeout = 60.0
"""

ROUTES = """
[[tool]]
name = "look_up"
description = "Looks something up."
url = "{tool}"
[[route]]
name = "tooled"
to = "^tooled$"
tools = ["*"]
{mcp}
[route.greeting]
say = "Hello."
"""


def spans_of(asked: Asked) -> list[Span]:
    """The spans of one request."""
    packed = asked.headers.get("content-encoding") == "gzip"
    read = ExportTraceServiceRequest.FromString(
        gzip.decompress(asked.body) if packed else asked.body
    )
    (resource,) = read.resource_spans
    facts = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert facts["service.name"] == "sip-realtime-gateway"
    return [span for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def services() -> Iterator[tuple[HttpService, HttpService]]:
    """A collector, and a service of tools."""
    with http_service() as collector, http_service() as tool:
        yield collector, tool


def world_of(folder: Path, collector: str, tool: str, more: str = "") -> GatewayStack:
    """A gateway that traces."""
    filled = MORE.format(collector=collector, key=KEY)
    routes = ROUTES.replace("{tool}", f"{tool}/tool")
    routes = routes.replace("{mcp}", 'mcp = ["crm"]' if "mcp" in more else "")
    return GatewayStack(folder, routes=routes, more=filled + more)


async def test_one_trace_for_each_call(
    own_folder: Path, services: tuple[HttpService, HttpService]
) -> None:
    collector, tool = services
    world = world_of(own_folder, collector.url, tool.url, MCP + hooks(tool.url, ["call.ended"]))
    await world.start()
    world.behave(**calls(("look_up", {}), ("crm_trace", {})))
    call = await world.dial("tooled")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) > 1, 20)
    summary = await world.summary_at_end(call)
    await eventually(lambda: bool(collector.asked), "a trace")
    await eventually(lambda: len(tool.asked) > 1, "tool and webhook")
    await world.stop()
    # One export, which comes again where this machine was too busy to answer it in time.
    asked, *again = collector.asked
    assert all(spans_of(one) == spans_of(asked) for one in again)
    assert (asked.path, asked.headers["x-key"]) == ("/v1/traces", KEY)
    assert KEY not in json.dumps(world.gateway.lines)
    spans = {span.name: span for span in spans_of(asked)}
    root = spans["call tooled"]
    assert {span.trace_id.hex() for span in spans.values()} == {summary["trace_id"]}
    assert spans.keys() >= {"setup", "session", "tool look_up"}
    assert {span.parent_span_id for name, span in spans.items() if span is not root} == {
        root.span_id
    }
    assert (root.parent_span_id, root.kind) == (b"", Span.SPAN_KIND_SERVER)
    facts = {one.key: one.value.string_value for one in root.attributes}
    assert facts["sip.call_id"] == call.call_id
    assert facts["gateway.outcome"] == "completed"
    for span in spans.values():
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    assert b"127.0.0.1" not in asked.body, "no address, no number"
    by_path = {one.path: one.headers["traceparent"].split("-") for one in tool.asked}
    used, hook = by_path["/tool"], by_path["/"]
    assert used == ["00", summary["trace_id"], spans["tool look_up"].span_id.hex(), "01"]
    (told,) = (
        event.body["item"]["output"]
        for event in session.seen("conversation.item.create")
        if "traceparent" in str(event.body)
    )
    assert f"{summary['trace_id']}-{spans['tool crm_trace'].span_id.hex()}" in told
    assert hook == ["00", summary["trace_id"], root.span_id.hex(), "01"]


async def test_what_failed_says_so(
    own_folder: Path, services: tuple[HttpService, HttpService]
) -> None:
    collector, tool = services
    world = world_of(own_folder, collector.url, tool.url)
    await world.start()
    world.behave(refuse={"step": "connect", "code": "invalid_api_key"})
    call = world.phone.call("plain")
    call.invite()
    await call.refused()
    await eventually(lambda: bool(collector.asked), "a trace")
    await world.stop()
    root, *_ = spans_of(collector.asked[0])
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert root.status.message == "session_refused"


@pytest.mark.parametrize("way", ["nobody listens", "hangs", "fails"])
async def test_a_collector_that_is_away_harms_nothing(
    own_folder: Path, services: tuple[HttpService, HttpService], way: str
) -> None:
    collector, tool = services
    collector.answers = [Answer(400) if way == "fails" else Answer(200, seconds=8)]
    url = "http://127.0.0.1:9" if way == "nobody listens" else collector.url
    world = world_of(own_folder, url, tool.url)
    await world.start()
    for _ in range(2):
        await world.summary_at_end(await world.dial("greeted"))
    if way == "fails":
        await world.gateway.wait("trace.export_failed")
    await world.stop()
    failed = world.gateway.all("trace.export_failed")
    assert len(failed) <= 1, "said once"
    assert KEY not in json.dumps(world.gateway.lines)

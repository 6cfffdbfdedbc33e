# SPDX-License-Identifier: GPL-2.0-or-later
"""A canary that falls behind is stopped for all processes; the gateway's calls to itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.dialplan.route_session import Canary
from tests.calls.test_api import API, Client, metric
from tests.calls.test_applications import SECRET
from tests.calls.test_shared import PATIENT, decided, gateways
from tests.support.harness import GatewayStack, closed_port, eventually
from tests.support.http_service import HttpService, http_service
from tests.support.sip_phone import PhoneCall

ROUTES = f"""
[[route]]
name = "sales"
to = "^sales$"
fallback = []
[route.canary]
share = 50
session.instructions = "Be brief."
realtime.url = "ws://127.0.0.1:{closed_port()}/v1/realtime"
[route.canary.stop]
min_calls = 2
[[route]]
name = "mute"
to = "^mute$"
"""
MORE = f"""{PATIENT}{API}
[control]
socket = "gateway.sock"
[[synthetic_call]]
name = "greets"
to = "greeted"
[[synthetic_call]]
name = "mute"
route = "mute"
heard_within = 0.3
[[synthetic_call]]
name = "nobody"
to = "nobody"
"""
SHARED = Canary.model_validate({"share": 50, "session": {"instructions": "x"}})
OURS, OTHERS = (
    [f"+4930{n}" for n in range(20) if SHARED.has("sales", f"+4930{n}") is side]
    for side in (True, False)
)


@pytest.fixture(scope="module")
def receiver() -> Iterator[HttpService]:
    """Where webhooks go."""
    with http_service() as service:
        yield service


def sales(world: GatewayStack, caller: str) -> PhoneCall:
    """A call of this number to the route with a canary."""
    call = world.phone.call("sales")
    call.caller = caller
    call.invite()
    return call


async def test_a_canary_that_falls_behind_is_stopped(
    own_folder: Path, tmp_path: Path, receiver: HttpService
) -> None:
    url = f"sqlite:///{tmp_path / 'all.sqlite3'}"
    hook = (
        f'[[webhook]]\nname = "ops"\nurl = "{receiver.url}"\nsecret = "{SECRET}"\n'
        'events = ["canary.stopped", "synthetic.failed", "call.ended"]\n'
    )
    async with (
        gateways(own_folder, url, 2, hook + MORE, routes=ROUTES) as (one, other),
        Client(one) as http,
        Client(other) as there,
    ):

        async def running(client: object = http, wanted: bool = True) -> bool:
            found = (await client.get("/api/v1/canaries")).json()["canaries"]  # type: ignore[attr-defined]
            return [row["running"] for row in found] == [wanted]

        for client in (http, there):
            await eventually(partial(running, client), "the canary runs")
        calls = [sales(one, caller) for caller in (*OURS[:2], *OTHERS[:2])]
        assert await decided(calls) == [503, 503, 200, 200]
        for call in calls[2:]:
            await one.summary_at_end(call)
        assert (await one.summary(calls[0]))["variant"] == "canary"
        assert (await one.summary(calls[2]))["variant"] == "control"
        for client in (http, there):
            await eventually(partial(running, client, False), "it is stopped")
        line = await one.gateway.wait("canary.stopped", route="sales")
        assert (line["who"], line["why"]) == (
            "gateway",
            "failed: 100.0 % of its calls, 0.0 % of the others",
        )
        await other.gateway.wait("canary.stopped", route="sales")
        assert await metric(there, "gateway_canary_active", route="sales") == 0
        ended = partial(metric, http, "gateway_variant_calls_ended_total", route="sales")
        assert await ended(variant="canary", outcome="failed") == 2
        again = sales(other, OURS[0])
        assert await decided([again]) == [200]
        await other.summary_at_end(again)

        run = partial(CliRunner().invoke, main)
        arguments = ["canary", "sales", "-c", str(one.gateway.config)]
        told = json.loads((await asyncio.to_thread(run, [*arguments, "--json"])).output)
        assert {line["name"]: line["failed"] for line in told["lines"]}["canary"] == 2
        assert told["stopped_by"] == "gateway"
        shown = await asyncio.to_thread(run, [*arguments, "--start"])
        assert shown.output.startswith("running; calls since"), shown.output
        await eventually(partial(running, there), "it runs again")
        stopped = await there.post("/api/v1/canaries/sales/stop")
        assert stopped.json() == {"route": "sales", "running": False, "changed": True}
        assert (await there.post("/api/v1/canaries/none/stop")).status_code == 409
        await other.gateway.wait("api.audit", action="canary_stop", who="admin-one")

        def bodies() -> list[dict[str, Any]]:
            """One of each: what is answered late is sent again."""
            asked = {one.headers["webhook-id"]: one.body for one in tuple(receiver.asked)}
            return [json.loads(body) for body in asked.values()]

        def hooked() -> bool:
            kinds = [body["type"] for body in bodies()]
            variants = {body["data"].get("variant") for body in bodies()}
            assert kinds.count("canary.stopped") <= 2
            assert kinds.count("synthetic.failed") <= 4
            return (kinds.count("canary.stopped"), kinds.count("synthetic.failed")) == (2, 4) and (
                variants >= {"synthetic", "canary"}
            )

        passed = await one.gateway.wait("synthetic.passed", name="greets")
        assert passed["heard_ms"] > 0
        failed = await one.gateway.wait("synthetic.failed", name="mute")
        assert failed["why"] == "the agent was not heard within 0.3 s"
        failed = await one.gateway.wait("synthetic.failed", name="nobody")
        assert failed["why"] == "not answered: SIP 404, no_route"
        await eventually(hooked, "webhooks")
        assert await metric(http, "gateway_synthetic_up", name="greets") == 1
        assert await metric(http, "gateway_synthetic_up", name="mute") == 0
        counted = partial(metric, http, "gateway_synthetic_calls_total")
        assert await counted(name="greets", result="passed") >= 1
        assert await counted(name="mute", result="failed") >= 1
        assert await metric(http, "gateway_synthetic_heard_seconds", name="greets") > 0

        async def in_rows() -> bool:
            rows = (await http.get("/api/v1/calls", params={"live": False})).json()["calls"]
            ours = [row for row in rows if row["variant"] == "synthetic"]
            return {row["route"] for row in ours} == {"greeted", "mute", ""}

        await eventually(in_rows, "rows of the synthetic calls")
        report = await asyncio.to_thread(run, ["report", "-c", str(one.gateway.config)])
        assert "greeted" not in report.output
        assert "sales" in report.output

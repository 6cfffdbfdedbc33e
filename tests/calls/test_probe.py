# SPDX-License-Identifier: GPL-2.0-or-later
"""Health checks of realtime servers: one that fails is known before a caller has to find out."""

from __future__ import annotations

import asyncio

from gateway.api.client import ask
from tests.support.harness import GatewayStack

WORLD = {
    "realtime": "health_check_interval = 0.2",
    "routes": """
[[route]]
name = "away"
to = "^away$"
fallback = [{action = "redirect", to = "sip:desk@pbx.example"}]
""",
    "more": """
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["nobody"]
""",
}


async def test_trouble_is_known_and_so_is_its_end(world: GatewayStack) -> None:
    """Refused at once while the server gives no sessions; taken again as soon as it does."""
    world.behave(refuse={"step": "upgrade", "http_status": 503})
    await world.gateway.wait("realtime.unhealthy")
    call = world.phone.call("plain")
    call.invite()
    final = await call.refused()
    assert final.code == 503
    assert "retry-after" in final.headers
    record = await world.record(call)
    assert not world.gateway.all("session.connecting", call=call.call_id), "nobody tried again"
    assert record["ending"]["why"] == "session_unreachable"
    away = world.phone.call("away")
    away.invite()
    moved = await away.refused()
    assert (moved.code, moved.headers["contact"]) == (302, "<sip:desk@pbx.example>")
    path = world.folder / "gateway.sock"
    placed = await asyncio.to_thread(ask, path, "dial", to="sip:nobody@127.0.0.1:9", route="away")
    line = await world.gateway.wait("call.summary", call=placed["call"])
    assert line["ending"]["why"] == "session_unreachable"
    assert not world.gateway.all("session.connecting", call=placed["call"])
    world.behave()
    await world.gateway.wait("realtime.healthy")
    again = await world.dial("plain")
    assert world.gateway.all("session.connecting", call=again.call_id)
    await world.summary_at_end(again)
